// Between kernels, compiled against shim.h, and the runtime that executes them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

struct Index {
    unsigned x, y, z;
};

// What a thread of a kernel knows of itself: threadIdx, blockIdx, blockDim, gridDim.
struct Place {
    Index thread, block, block_size, grid_size;
};

extern thread_local Place* here;  // of the thread that runs

enum class Vote { none, count, all, any };

// Waits until all threads of the block are here, and gives what they voted. `site` names the place
// in the source, which must be one for all of them.
int barrier(const char* site, Vote vote, bool predicate);

// Waits until every lane of the warp that is in `mask` is here, each with a value of its own. Then
// lane_value has the values, until the lane's next exchange. Gives the lanes that there are, as a
// mask: a block's last warp may have fewer than 32.
enum class Exchange { values, sync, tensor_step };
unsigned exchange(const char* site, Exchange kind, unsigned mask, const void* value, size_t size);
const void* lane_value(unsigned lane);
unsigned lane();

// The block's shared memory: the array of a declaration, which `key` stands for, and what the
// launch asked for.
void* shared_array(const void* key, size_t size, size_t item_bytes, const char* name);
void* dynamic_shared(size_t item_bytes, const char* name);

// Ends the launch with a message about the thread that runs, and where in the source it is.
[[noreturn]] void fault(const char* text, const char* site = nullptr);

// Copies that the thread goes on without: cp.async, its groups, and the wait for all groups but the
// last `groups_left`.
void copy_async(void* shared, const void* global, size_t size, bool inside);
void commit_copies();
void wait_copies(int groups_left);

// A copy of a struct, seen by the checker.
void* copied(void* to, const void* from, size_t size, const void* code);

void count_flops(long long flops);
void count_tensor_step(long long flops);

}  // namespace emulator
