// Counts the memory requests of a launch's warps, and the sectors and wavefronts that they take.
#pragma once
#include <unordered_map>
#include <vector>

#include "block.h"

namespace emulator {

// The counts of a launch. Counts in __init__.py has the same fields and explains them.
struct Counters {
    long long load_requests, load_sectors, ideal_load_sectors;
    long long store_requests, store_sectors, ideal_store_sectors;
    long long bytes_read, bytes_written;
    long long shared_requests, shared_wavefronts, ideal_shared_wavefronts;
    long long barriers, exchanges, flops, tensor_steps, tensor_flops;
};

// A request consists of the accesses that the lanes of a warp make at one place in the code, in the
// same execution of that place since the last barrier. So it is on a GPU whose warps do not
// diverge.
class Traffic {
public:
    explicit Traffic(Counters& counters) : counters(counters) {}

    void begin_block(int threads);
    // `code` is an offset in the kernel's library.
    void add(unsigned thread, uintptr_t address, size_t size, bool write, bool shared, size_t code);
    // Counts the requests since the last barrier.
    void settle();

private:
    struct Request {
        bool shared, write;
        size_t size;
        unsigned lanes = 0;
        uintptr_t addresses[WARP];  // by lane
    };

    Counters& counters;
    // For each warp: {place in the code and number of its execution: request}. For each thread:
    // {place in the code: number of executions so far}.
    std::vector<std::unordered_map<unsigned long long, Request>> requests;
    std::vector<std::unordered_map<unsigned long long, unsigned>> times;

    void count_shared(const Request& request);
    void count_global(const Request& request);
};

}  // namespace emulator
