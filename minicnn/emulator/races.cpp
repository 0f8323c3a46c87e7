// For each word there is the last plain write, a set of reads and a set of atomic operations:
//
// - a plain write must be ordered after the last plain write, all reads and all atomic operations.
//   The last plain write is enough, because it was ordered after all earlier ones;
// - a read must be ordered after the last plain write and all atomic operations;
// - an atomic operation must be ordered after the last plain write and all reads.
//
// Reads need no order among themselves, and neither do atomic operations. So the last of them does
// not represent the earlier ones, and sets are needed. A set holds only accesses that can still
// race. If two blocks accessed the word, any later write races. If two warps did so since the last
// barrier, any write before the next barrier races. For one warp the set has the lanes, without
// those whose access is ordered before that of another lane in the set.
#include "races.h"

#include <algorithm>

namespace emulator {

void Races::begin_block(int threads) {
    block_number++;
    barriers_passed = 0;
    mixed_times.clear();
    warps.resize((threads + WARP - 1) / WARP);  // their times are not reset: they only grow
}

void Races::barrier() {
    barriers_passed++;
    mixed_times.clear();
}

void Races::sync_warp(unsigned warp, unsigned mask) {
    Warp& w = warps[warp];
    w.time++;
    std::array<unsigned, WARP> joined{};
    for (unsigned lane = 0; lane < WARP; lane++)
        if (mask >> lane & 1)
            for (unsigned i = 0; i < WARP; i++) joined[i] = std::max(joined[i], w.known[lane][i]);
    for (unsigned lane = 0; lane < WARP; lane++)
        if (mask >> lane & 1) joined[lane] = w.time;
    for (unsigned lane = 0; lane < WARP; lane++)
        if (mask >> lane & 1) w.known[lane] = joined;
}

bool Races::note(Word& word, unsigned thread, Access access, Conflict* conflict) {
    if (!comes_before(word.write, thread)) {
        *conflict = {Access::write, word.write.block == block_number ? word.write.thread : -1};
        return true;
    }
    int* other = &conflict->thread;
    conflict->access = Access::atomic;
    if (access != Access::atomic && !come_before(word.atomics, thread, other)) return true;
    conflict->access = Access::read;
    if (access != Access::read && !come_before(word.reads, thread, other)) return true;
    if (access == Access::write)
        write_ends(word, thread);
    else
        add(access == Access::read ? word.reads : word.atomics, thread);
    return false;
}

void Races::write_ends(Word& word, unsigned thread) const {
    word.write = {block_number, barriers_passed, warps[thread / WARP].time, (unsigned short)thread};
}

unsigned Races::time_of(const Accesses& set, unsigned lane) const {
    return set.mixed ? mixed_times[set.time][lane] : set.time;
}

bool Races::comes_before(const Write& write, unsigned thread) const {
    if (!write.block) return true;
    if (write.block != block_number) return false;
    if (write.barrier != barriers_passed || write.thread == thread) return true;
    return write.thread / WARP == thread / WARP &&
           warps[thread / WARP].known[thread % WARP][write.thread % WARP] > write.time;
}

bool Races::come_before(const Accesses& set, unsigned thread, int* other) const {
    if (!set.block) return true;
    *other = -1;
    if (set.many_blocks || set.block != block_number) return false;
    if (set.barrier != barriers_passed) return true;
    bool same_warp = set.warp == thread / WARP;
    if (same_warp && set.another_warps) {
        *other = set.another_warps - 1;
        return false;
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (!(set.lanes >> lane & 1)) continue;
        *other = int(set.warp * WARP + lane);
        if (!same_warp) return false;
        const auto& known = warps[set.warp].known[thread % WARP];
        if (*other != int(thread) && known[lane] <= time_of(set, lane)) return false;
    }
    return true;
}

void Races::add(Accesses& set, unsigned thread) {
    unsigned warp = thread / WARP, mine = 1u << thread % WARP;
    if (set.block != block_number || set.barrier != barriers_passed) {
        bool many_blocks = set.many_blocks || (set.block && set.block != block_number);
        set = {};
        set.block = block_number;
        set.barrier = barriers_passed;
        set.warp = (unsigned char)warp;
        set.many_blocks = many_blocks;
    }
    if (set.warp != warp) {
        set.another_warps = (unsigned short)(1 + thread);
        return;
    }
    unsigned now = warps[warp].time;
    if (set.mixed || set.time != now) {
        const auto& known = warps[warp].known[thread % WARP];
        for (unsigned lane = 0; lane < WARP; lane++)
            if (known[lane] > time_of(set, lane)) set.lanes &= ~(1u << lane);
        bool others = set.lanes & ~mine;
        if (others && !set.mixed) {  // for example, two halves of a warp that diverged
            mixed_times.emplace_back();
            mixed_times.back().fill(set.time);
            set.time = unsigned(mixed_times.size() - 1);
        }
        set.mixed = others;
    }
    set.lanes |= mine;
    (set.mixed ? mixed_times[set.time][thread % WARP] : set.time) = now;
}

}  // namespace emulator
