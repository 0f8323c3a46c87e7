// The interface between kernels, which are compiled against shim.h, and the runtime.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

struct Index {
    unsigned x, y, z;
};

// A thread's threadIdx, blockIdx, blockDim and gridDim.
struct Place {
    Index thread, block, block_size, grid_size;
};

extern thread_local Place* here;  // that of the running thread

enum class Vote { none, count, all, any };

// Waits until all threads of the block have arrived, and returns the result of their vote. `site`
// is the source line; it must be the same for all threads.
int barrier(const char* site, Vote vote, bool predicate);

// Waits until every lane of the warp that is in `mask` has arrived, each with its own value. Then
// lane_value returns these values, until the lane's next exchange. Returns the mask without lanes
// that do not exist: a block's last warp may have fewer than 32.
enum class Exchange { values, sync, tensor_step };
unsigned exchange(const char* site, Exchange kind, unsigned mask, const void* value, size_t size);
const void* lane_value(unsigned lane);
unsigned lane();

// The block's shared memory: the array of the declaration that `key` identifies, and the dynamic
// shared memory of the launch.
void* shared_array(const void* key, size_t size, size_t item_bytes, const char* name);
void* dynamic_shared(size_t item_bytes, const char* name);

// Ends the launch with a message about the running thread and its source line.
[[noreturn]] void fault(const char* text, const char* site = nullptr);

// Asynchronous copies: cp.async, the commit of a group, and the wait for all groups but the last
// `groups_left`.
void copy_async(void* shared, const void* global, size_t size, bool inside);
void commit_copies();
void wait_copies(int groups_left);

// Copies a struct, and reports the accesses to the checker.
void* copied(void* to, const void* from, size_t size, const void* code);

void count_flops(long long flops);
void count_tensor_step(long long flops);

}  // namespace emulator
