// Counts what a launch asks of memory: the requests of warps, and what it takes to serve them.
#pragma once
#include <unordered_map>
#include <vector>

#include "block.h"

namespace emulator {

// What a launch did; __init__.py says what each field means, in this order.
struct Counters {
    long long load_requests, load_sectors, ideal_load_sectors;
    long long store_requests, store_sectors, ideal_store_sectors;
    long long bytes_read, bytes_written;
    long long shared_requests, shared_wavefronts, ideal_shared_wavefronts;
    long long barriers, exchanges, flops, tensor_steps, tensor_flops;
};

// The accesses that the lanes of a warp make at one place in the code, the same time round since a
// barrier, are one request, as they are on a GPU whose warps keep together.
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
    // By warp: the requests, by place in the code and time round; by thread: the times round.
    std::vector<std::unordered_map<unsigned long long, Request>> requests;
    std::vector<std::unordered_map<unsigned long long, unsigned>> times;

    void count_shared(const Request& request);
    void count_global(const Request& request);
};

}  // namespace emulator
