// Sees every access to memory that a kernel makes: finds those that are wrong, and counts the
// others.
//
// Kernels are compiled with -fsanitize=thread, which makes the compiler call a function for each
// access; but these functions are ours (hooks.cpp), not the sanitizer's.
#pragma once
#include <string>
#include <vector>

#include "block.h"
#include "races.h"
#include "traffic.h"

namespace emulator {

// An array argument: `rows` rows of `row_bytes`, `stride_bytes` apart (one a net; a plain array is
// one row). The same fields are in __init__.py.
struct Buffer {
    uintptr_t base;
    size_t row_bytes, stride_bytes, rows, item_bytes;
    int written;  // whether the kernel may write to it
    const char* name;
};

class Checker {
public:
    explicit Checker(Launch& launch);

    void begin_block(Block& block);
    void end_block();
    void barrier();
    void exchange(unsigned warp, unsigned mask, Exchange kind);
    void copy_begins(const Copy& copy, const void* code);
    void copy_ends(const Copy& copy);
    void flops(long long count) { counters.flops += count; }
    void tensor_step(long long flops);

    // `code` is where in the kernel's code the access is. One that is not `counted` is a part of
    // another one.
    void access(uintptr_t address, size_t size, Access kind, const void* code, bool counted = true);

private:
    // A stretch of memory that one or several buffers lie in.
    struct Region {
        uintptr_t begin, end;
        size_t grain;  // bytes of a Word
        std::vector<Word> words;
    };

    Launch& launch;
    Counters& counters;
    std::vector<Buffer> buffers;
    std::vector<Region> regions;
    std::vector<Word> shared_words;  // by byte, but of each array only one for each of its numbers
    Block* block = nullptr;
    Races races;
    Traffic traffic;
    uintptr_t code = 0;  // of the access in hand, an offset in the kernel's library

    unsigned thread() const { return block->current; }
    bool is_shared(uintptr_t address) const;
    void shared_access(uintptr_t address, size_t size, Access kind);
    void global_access(uintptr_t address, size_t size, Access kind);
    void note(Word& word, uintptr_t address, Access kind);
    template <typename F>
    void for_shared_words(uintptr_t address, size_t size, F function);
    template <typename F>
    void for_global_words(uintptr_t address, size_t size, F function);
    std::string describe(uintptr_t address) const;
    [[noreturn]] void fault_at(uintptr_t address, size_t size, Access kind, const char* what);
};

}  // namespace emulator
