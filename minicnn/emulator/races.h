// Finds races: accesses to one word of memory that nothing orders.
#pragma once
#include <array>
#include <vector>

#include "block.h"

namespace emulator {

enum class Access { read, write, atomic };

// The last plain (not atomic) write to a word. Blocks are numbered from 1; block 0: no write.
struct Write {
    unsigned block, barrier, time;
    unsigned short thread;
};

// The accesses to a word that later accesses may race with: either all reads, or all atomic
// operations. For the last block, since its last barrier: lanes of one warp, and whether there were
// others.
struct Accesses {
    unsigned block, barrier;
    unsigned lanes;  // of `warp`
    unsigned time;   // of all lanes; if `mixed`, an index of Races::mixed_times
    unsigned short another_warps;  // 1 + a thread of another warp; 0: none
    unsigned char warp;
    bool mixed;        // lanes accessed it at different times
    bool many_blocks;  // other blocks accessed it, too
};

// The state of a few bytes of memory. All zeros: no access yet.
struct Word {
    Write write;
    Accesses reads, atomics;
    unsigned of_block;           // for shared memory: the block that the state belongs to
    unsigned short copies;       // asynchronous copies in flight, from or to these bytes
    bool was_read, was_written;  // in this launch
};

// The earlier access that an access races with.
struct Conflict {
    Access access;
    int thread;  // of this block; -1: of another block
};

// Two accesses to one word race if at least one is a plain write, or one is plain and one atomic,
// unless something orders them. __syncthreads() orders accesses of a block, __syncwarp() those of
// the lanes that take part; nothing orders those of two blocks. Shuffles and votes do not order
// memory accesses, as in CUDA's specification.
class Races {
public:
    void begin_block(int threads);
    void barrier();
    void sync_warp(unsigned warp, unsigned mask);

    // Records an access. Returns whether it races with an earlier one, and sets *conflict to that.
    bool note(Word& word, unsigned thread, Access access, Conflict* conflict);
    // Records that a write, which began earlier, has finished.
    void write_ends(Word& word, unsigned thread) const;

    unsigned block() const { return block_number; }

private:
    // Time is the number of calls of __syncwarp() in the warp so far. All that lane b did before
    // time known[a][b] is ordered before what lane a does now.
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
