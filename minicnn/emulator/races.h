// Which accesses to one word of memory nothing orders: races.
#pragma once
#include <array>
#include <vector>

#include "block.h"

namespace emulator {

enum class Access { read, write, atomic };

// The last plain write to a word. Blocks are numbered from 1 on; 0: there was none.
struct Write {
    unsigned block, barrier, time;
    unsigned short thread;
};

// Those who have read a word, or those who have changed it by atomic operations: of the last block
// some lanes of one warp since a barrier, and whether there were others.
struct Accesses {
    unsigned block, barrier;
    unsigned lanes;  // of `warp`
    unsigned time;   // of all lanes; if `mixed`, the number of their Races::mixed_times
    unsigned short another_warps;  // 1 + a thread of another warp; 0: there was none
    unsigned char warp;
    bool mixed, many_blocks;
};

// What is known of a few bytes of memory. All zeros: nothing.
struct Word {
    Write write;
    Accesses reads, atomics;
    unsigned of_block;             // of shared memory: the block that this is about
    unsigned short copies;         // asynchronous ones under way from here or to here
    bool was_read, was_written;    // in this launch
};

// The access that another one races with.
struct Conflict {
    Access access;
    int thread;  // of this block; -1: of another block
};

// Two accesses to one word, one of them a plain write or one of them plain and one atomic, are a
// race unless something orders them: __syncthreads() those of a block, __syncwarp() those of the
// lanes that take part, nothing those of two blocks. Shuffles and votes order no memory, as CUDA
// has it.
class Races {
public:
    void begin_block(int threads);
    void barrier();
    void sync_warp(unsigned warp, unsigned mask);

    // Takes in an access. Gives whether it races with one before it.
    bool note(Word& word, unsigned thread, Access access, Conflict* conflict);
    // A write that began earlier is done now.
    void write_ends(Word& word, unsigned thread) const;

    unsigned block() const { return block_number; }

private:
    // Time is the number of __syncwarp() of the warp so far. What lane b did before its last one
    // that lane a knows of, known[a][b], comes before what a does now.
    struct Warp {
        unsigned time;
        std::array<std::array<unsigned, WARP>, WARP> known;
    };

    unsigned block_number = 0, barriers_passed = 0;
    std::vector<Warp> warps;
    std::vector<std::array<unsigned, WARP>> mixed_times;  // by lane

    unsigned time_of(const Accesses& set, unsigned lane) const;
    bool comes_before(const Write& write, unsigned thread) const;
    bool come_before(const Accesses& set, unsigned thread, int* other) const;
    void add(Accesses& set, unsigned thread);
};

}  // namespace emulator
