// Inspects every access to memory that a kernel makes: reports wrong ones, and counts the others.
//
// Kernels are compiled with -fsanitize=thread, so the compiler inserts a function call for each
// access. hooks.cpp defines these functions, in place of the sanitizer's library.
#pragma once
#include <string>
#include <vector>

#include "block.h"
#include "races.h"
#include "traffic.h"

namespace emulator {

// An array argument: `rows` rows of `row_bytes`, `stride_bytes` apart. A per-net array has a row
// for each net, a plain array one row. __init__.py has the same struct.
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

    // Checks and counts an access at address `code` of the kernel's code. An access that is part of
    // another one is not `counted`.
    void access(uintptr_t address, size_t size, Access kind, const void* code, bool counted = true);

private:
    // A range of memory that contains one buffer, or several that overlap.
    struct Region {
        uintptr_t begin, end;
        size_t grain;  // bytes per Word
        std::vector<Word> words;
    };

    Launch& launch;
    Counters& counters;
    std::vector<Buffer> buffers;
    std::vector<Region> regions;
    std::vector<Word> shared_words;  // by byte offset; only the first byte of each word is used
    Block* block = nullptr;
    Races races;
    Traffic traffic;
    uintptr_t code = 0;  // of the current access, as an offset in the kernel's library

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
