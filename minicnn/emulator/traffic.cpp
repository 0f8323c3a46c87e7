#include "traffic.h"

#include <algorithm>

namespace emulator {

constexpr size_t SECTOR_BYTES = 32, BANKS = 32, BANK_BYTES = 4;

static size_t distinct(std::vector<uintptr_t>& values) {
    std::sort(values.begin(), values.end());
    return size_t(std::unique(values.begin(), values.end()) - values.begin());
}

void Traffic::begin_block(int threads) {
    requests.resize((threads + WARP - 1) / WARP);
    times.resize(threads);
}

void Traffic::add(unsigned thread, uintptr_t address, size_t size, bool write, bool shared,
                  size_t code) {
    unsigned long long place = (unsigned long long)code << 2 | shared << 1 | write;
    unsigned time = times[thread][place]++;
    Request& request = requests[thread / WARP][place << 32 | time];
    request.shared = shared;
    request.write = write;
    request.size = size;
    request.lanes |= 1u << thread % WARP;
    request.addresses[thread % WARP] = address;
}

void Traffic::settle() {
    for (auto& of_warp : requests) {
        for (auto& [key, request] : of_warp) {
            if (request.shared)
                count_shared(request);
            else
                count_global(request);
        }
        of_warp.clear();
    }
    for (auto& of_thread : times) of_thread.clear();
}

// In a wavefront each bank serves one word, to all lanes that access it. With 8 bytes per lane,
// half a warp is served at a time; with 16 bytes, a quarter.
void Traffic::count_shared(const Request& request) {
    unsigned at_once = WARP;
    if (request.size > BANK_BYTES) at_once = unsigned(WARP * BANK_BYTES / request.size);
    for (unsigned first = 0; first < WARP; first += at_once) {
        std::vector<uintptr_t> words[BANKS];
        for (unsigned lane = first; lane < first + at_once; lane++) {
            if (!(request.lanes >> lane & 1)) continue;
            for (size_t byte = 0; byte < request.size; byte += BANK_BYTES) {
                uintptr_t word = (request.addresses[lane] + byte) / BANK_BYTES;
                words[word % BANKS].push_back(word);
            }
        }
        size_t most = 0;
        for (auto& of_bank : words) most = std::max(most, distinct(of_bank));
        counters.shared_wavefronts += (long long)most;
        counters.ideal_shared_wavefronts += most > 0;
    }
    counters.shared_requests++;
}

void Traffic::count_global(const Request& request) {
    std::vector<uintptr_t> sectors, items;
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (!(request.lanes >> lane & 1)) continue;
        sectors.push_back(request.addresses[lane] / SECTOR_BYTES);
        items.push_back(request.addresses[lane]);
    }
    size_t bytes = distinct(items) * request.size;
    long long taken = (long long)distinct(sectors);
    long long ideal = (long long)((bytes + SECTOR_BYTES - 1) / SECTOR_BYTES);
    if (request.write) {
        counters.store_requests++;
        counters.store_sectors += taken;
        counters.ideal_store_sectors += ideal;
    } else {
        counters.load_requests++;
        counters.load_sectors += taken;
        counters.ideal_load_sectors += ideal;
    }
}

}  // namespace emulator
