// Between the shim, which kernels are compiled against, and the runtime, which executes them.
//
// A block's threads are fibers: each has a stack, and one after the other they run on one thread of
// the machine until they wait for each other. Blocks are spread over the machine's cores.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

struct Index {
    unsigned x, y, z;
};

// What a thread of a kernel knows of itself.
struct Place {
    Index thread, block, block_size, grid_size;
};

extern thread_local Place* here;  // of the fiber that runs

enum class Vote { none, count, all, any };

// Waits until every thread of the block is here; `site` tells one barrier in the code from another.
int barrier(const void* site, Vote vote, bool predicate);

// Waits until every lane of the warp that is in `mask` is here, each with a value of its own;
// `lane_value` has another lane's then, until this lane's next exchange but one.
void exchange(const void* site, unsigned mask, const void* value, size_t size);
const void* lane_value(unsigned lane);

// The block's shared memory: that of the declaration number `slot`, and that of the launch.
void* shared_array(int slot, size_t size, size_t alignment, const char* name);
void* dynamic_shared();

// Ends the launch with a message about the thread that runs.
[[noreturn]] void fault(const char* format, ...);

// What a thread of the kernel has started to copy from global to shared memory.
void copy_async(void* shared, const void* global, size_t size, bool inside);
void commit_copies();
void wait_copies(int groups_left);

void count_flops(long long flops);
void count_tensor_step(long long flops);

}  // namespace emulator
