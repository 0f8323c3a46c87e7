// Sees every access to memory that a kernel makes: finds those that are wrong, and counts the others.
//
// Kernels are compiled with -fsanitize=thread, which makes the compiler call a function for each
// access; but these functions are ours (checker.cpp), not the sanitizer's.
#pragma once
#include <unordered_map>
#include <vector>

#include "block.h"

namespace emulator {

// An array argument: `rows` rows of `row_bytes`, `stride_bytes` apart (one a net; a plain array is one
// row). The same fields are in __init__.py.
struct Buffer {
    uintptr_t base;
    size_t row_bytes, stride_bytes, rows, item_bytes;
    int written;  // whether the kernel may write to it
    const char* name;
};

// What a launch did; __init__.py says what each field means, in this order.
struct Counters {
    long long load_requests, load_sectors, ideal_load_sectors;
    long long store_requests, store_sectors, ideal_store_sectors;
    long long bytes_read, bytes_written;
    long long shared_requests, shared_wavefronts, ideal_shared_wavefronts;
    long long barriers, exchanges, flops, tensor_steps, tensor_flops;
};

// What is known of a few bytes of memory: who wrote and read them last.
struct Word {
    unsigned write_block, write_barrier, write_exchange;  // blocks from 1 on; 0: nobody
    unsigned read_block, read_barrier, read_exchange;
    unsigned short writer, reader;
    bool many_readers, many_warps, many_blocks;  // read by more than `reader`, since `read_barrier`
    bool atomic;                                 // the last write was an atomic one
    bool was_read, was_written;                  // in this launch
    unsigned short in_flight;                    // 1 + the thread whose copy has not landed
};

class Checker {
public:
    explicit Checker(Launch& launch);

    void begin_block(Block& block);
    void end_block();
    void barrier();
    void exchange(unsigned warp);
    void copy_begins(const Copy& copy, const void* code);
    void copy_ends(const Copy& copy, const void* code);
    void flops(long long count) { counters.flops += count; }
    void tensor_step(long long flops);

    // `code` is where in the kernel's code the access is.
    void access(uintptr_t address, size_t size, bool write, bool atomic, const void* code);

private:
    // A stretch of memory that one or several buffers lie in.
    struct Region {
        uintptr_t begin, end;
        size_t grain;  // bytes of a Word
        std::vector<Word> words;
    };
    // What the lanes of a warp access at one place in the code, the same time round.
    struct Request {
        bool shared, write;
        size_t size;
        unsigned count = 0;
        uintptr_t addresses[WARP];
    };

    Launch& launch;
    Counters& counters;
    std::vector<Buffer> buffers;
    std::vector<Region> regions;
    Block* block = nullptr;
    unsigned block_number = 0;
    unsigned barriers_passed = 0;
    std::vector<unsigned> exchanges_passed;  // by each warp
    std::vector<Word> shared_words;
    // By warp: the requests so far, by place in the code and time round; by thread: the times round.
    std::vector<std::unordered_map<unsigned long long, Request>> requests;
    std::vector<std::unordered_map<uintptr_t, unsigned>> times;

    unsigned thread() const { return block->current; }
    unsigned warp() const { return block->current / WARP; }
    bool is_shared(uintptr_t address) const;
    Region* region_of(uintptr_t address);
    void shared_access(uintptr_t address, size_t size, bool write, bool atomic);
    void global_access(uintptr_t address, size_t size, bool write, bool atomic);
    void note(Word& word, uintptr_t address, bool write, bool atomic);
    void count(uintptr_t address, size_t size, bool write, bool shared, const void* code);
    void count_requests();
    std::vector<char> describe(uintptr_t address);
    [[noreturn]] void fault_at(uintptr_t address, size_t size, bool write, const char* what);

    const void* code = nullptr;  // of the access in hand
};

}  // namespace emulator
