#include "checker.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

namespace emulator {

constexpr size_t WORD_BYTES = 4;
constexpr size_t SECTOR_BYTES = 32, BANKS = 32;

Checker::Checker(Launch& launch)
    : launch(launch), counters(*launch.options.counters),
      buffers(launch.options.buffer, launch.options.buffer + launch.options.buffers),
      shared_words(MOST_SHARED_BYTES / WORD_BYTES) {
    // Arrays that overlap, as views of one array do, share what is known of their memory.
    std::vector<Region> found;
    for (const Buffer& b : buffers) {
        uintptr_t end = b.base + (b.rows ? (b.rows - 1) * b.stride_bytes + b.row_bytes : 0);
        found.push_back({b.base, end, std::min(b.item_bytes, WORD_BYTES), {}});
    }
    std::sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.begin < b.begin; });
    for (Region& r : found) {
        if (!regions.empty() && r.begin < regions.back().end) {
            regions.back().end = std::max(regions.back().end, r.end);
            regions.back().grain = std::min(regions.back().grain, r.grain);
        } else {
            regions.push_back(r);
        }
    }
    for (Region& r : regions) r.words.resize((r.end - r.begin + r.grain - 1) / r.grain);
}

// ---- the time of a block ---------------------------------------------------------------------------

void Checker::begin_block(Block& of) {
    block = &of;
    block_number++;
    barriers_passed = 0;
    size_t warps = (of.size() + WARP - 1) / WARP;
    exchanges_passed.assign(warps, 0);
    requests.resize(warps);
    times.resize(of.size());
    std::fill(shared_words.begin(), shared_words.end(), Word{});
}

void Checker::end_block() { count_requests(); }

void Checker::barrier() {
    barriers_passed++;
    counters.barriers++;
    count_requests();
}

void Checker::exchange(unsigned warp) {
    exchanges_passed[warp]++;
    counters.exchanges++;
}

void Checker::tensor_step(long long flops) {
    counters.tensor_steps++;
    counters.tensor_flops += flops;
}

// ---- an access -------------------------------------------------------------------------------------

bool Checker::is_shared(uintptr_t address) const {
    return address - uintptr_t(block->arena.get()) < MOST_SHARED_BYTES;
}

void Checker::access(uintptr_t address, size_t size, bool write, bool atomic, const void* at) {
    const Fiber& fiber = block->self();
    if (address - uintptr_t(fiber.stack) < STACK_BYTES) return;  // its own, as registers are
    uintptr_t fibers = uintptr_t(block->fibers.data());
    if (address - fibers < block->fibers.size() * sizeof(Fiber)) return;  // threadIdx and the like
    if (address - uintptr_t(&here) < sizeof here) return;
    if (!write && address >= launch.options.image_begin && address < launch.options.image_end) return;
    code = at;
    if (size > 1 && address % size) fault_at(address, size, write, "not aligned to its size");
    bool shared = is_shared(address);
    if (shared)
        shared_access(address, size, write, atomic);
    else
        global_access(address, size, write, atomic);
    count(address, size, write, shared, at);
}

void Checker::shared_access(uintptr_t address, size_t size, bool write, bool atomic) {
    size_t at = address - uintptr_t(block->arena.get());
    const auto& arrays = block->arrays;
    bool inside = std::any_of(arrays.begin(), arrays.end(), [&](const SharedArray& a) {
        return at >= a.begin && at + size <= a.begin + a.size;
    });
    if (!inside) fault_at(address, size, write, "outside of every shared array");
    for (size_t i = at / WORD_BYTES; i <= (at + size - 1) / WORD_BYTES; i++) {
        Word& word = shared_words[i];
        if (word.in_flight) fault_at(address, size, write, "which an asynchronous copy has not reached");
        if (!write && word.write_block != block_number)
            fault_at(address, size, write, "which nothing in this block has written");
        note(word, address, write, atomic);
    }
}

Checker::Region* Checker::region_of(uintptr_t address) {
    for (Region& r : regions)
        if (address >= r.begin && address < r.end) return &r;
    return nullptr;
}

void Checker::global_access(uintptr_t address, size_t size, bool write, bool atomic) {
    bool inside = false, allowed = false;
    for (const Buffer& b : buffers) {
        size_t offset = address - b.base;
        if (address < b.base || !b.rows) continue;
        size_t row = b.stride_bytes ? std::min(offset / b.stride_bytes, b.rows - 1) : 0;
        offset -= row * b.stride_bytes;
        if (offset + size > b.row_bytes) continue;
        inside = true;
        allowed |= !write || b.written;
    }
    if (!inside) fault_at(address, size, write, "outside of every array of the launch");
    if (!allowed) fault_at(address, size, write, "in an array that is const");
    Region& region = *region_of(address);
    size_t first = (address - region.begin) / region.grain;
    size_t last = (address - region.begin + size - 1) / region.grain;
    for (size_t i = first; i <= last; i++) {
        Word& word = region.words[i];
        note(word, address, write, atomic);
        bool& before = write ? word.was_written : word.was_read;
        if (!before) (write ? counters.bytes_written : counters.bytes_read) += region.grain;
        before = true;
    }
}

// Two accesses to one word, one of them a write, are a race unless something orders them: a barrier
// those of a block, an exchange those of a warp, nothing those of two blocks.
void Checker::note(Word& word, uintptr_t address, bool write, bool atomic) {
    unsigned me = thread(), my_exchange = exchanges_passed[warp()];
    auto unordered = [&](unsigned other_block, unsigned barrier, unsigned exchange, unsigned other) {
        if (!other_block) return false;
        if (other_block != block_number) return true;
        if (other == me || barrier != barriers_passed) return false;
        return other / WARP != warp() || exchange == my_exchange;
    };
    bool after_write = unordered(word.write_block, word.write_barrier, word.write_exchange, word.writer);
    if (after_write && !(atomic && word.atomic)) {
        char text[160];
        snprintf(text, sizeof text, "which thread %u of %s block has written, with nothing in between",
                 unsigned(word.writer), word.write_block == block_number ? "this" : "another");
        fault_at(address, 0, write, text);
    }
    if (write) {
        bool in_barrier = word.read_block == block_number && word.read_barrier == barriers_passed;
        bool after_read =
            unordered(word.read_block, word.read_barrier, word.read_exchange, word.reader) ||
            word.many_blocks || (in_barrier && word.many_warps) ||
            (in_barrier && word.many_readers &&
             (word.reader / WARP != warp() || word.read_exchange == my_exchange));
        if (after_read && !atomic) {
            char text[160];
            snprintf(text, sizeof text, "which thread %u of %s block has read, with nothing in between",
                     unsigned(word.reader), word.read_block == block_number ? "this" : "another");
            fault_at(address, 0, write, text);
        }
        word.write_block = block_number;
        word.write_barrier = barriers_passed;
        word.write_exchange = my_exchange;
        word.writer = me;
        word.atomic = atomic;
        return;
    }
    if (word.read_block && word.read_block != block_number) word.many_blocks = true;
    if (word.read_block == block_number && word.read_barrier == barriers_passed) {
        if (word.reader / WARP != warp())
            word.many_warps = true;
        else if (word.read_exchange == my_exchange)
            word.many_readers |= word.reader != me;
        else
            word.many_readers = false;
    } else {
        word.many_readers = word.many_warps = false;
    }
    word.read_block = block_number;
    word.read_barrier = barriers_passed;
    word.read_exchange = my_exchange;
    word.reader = me;
}

// ---- asynchronous copies ---------------------------------------------------------------------------

void Checker::copy_begins(const Copy& copy, const void* at) {
    code = at;
    uintptr_t to = uintptr_t(copy.shared), from = uintptr_t(copy.global);
    if (!is_shared(to)) fault_at(to, copy.size, true, "which is not shared memory, by a copy");
    if (to % copy.size || from % copy.size) fault_at(to, copy.size, true, "not aligned, by a copy");
    if (copy.inside) access(from, copy.size, false, false, at);
    access(to, copy.size, true, false, at);
    size_t first = (to - uintptr_t(block->arena.get())) / WORD_BYTES;
    for (size_t i = 0; i < copy.size / WORD_BYTES; i++) shared_words[first + i].in_flight = 1 + thread();
}

void Checker::copy_ends(const Copy& copy, const void*) {
    size_t first = (uintptr_t(copy.shared) - uintptr_t(block->arena.get())) / WORD_BYTES;
    for (size_t i = 0; i < copy.size / WORD_BYTES; i++) {
        Word& word = shared_words[first + i];
        word.in_flight = 0;
        word.write_barrier = barriers_passed;  // it is written now, for those who wait for it
        word.write_exchange = exchanges_passed[warp()];
    }
}

// ---- messages --------------------------------------------------------------------------------------

std::vector<char> Checker::describe(uintptr_t address) {
    char text[300];
    if (is_shared(address)) {
        size_t at = address - uintptr_t(block->arena.get());
        snprintf(text, sizeof text, "shared memory");
        size_t nearest = 0;
        for (const SharedArray& a : block->arrays)
            if (at >= a.begin && a.begin >= nearest && (a.size || a.key)) {
                nearest = a.begin;
                snprintf(text, sizeof text, "byte %zu of %s (%zu bytes)", at - a.begin, a.name, a.size);
            }
    } else {
        snprintf(text, sizeof text, "address %#zx", size_t(address));
        const Buffer* nearest = nullptr;
        for (const Buffer& b : buffers) {
            uintptr_t end = b.base + (b.rows - 1) * b.stride_bytes + b.row_bytes;
            bool near = address + 4096 >= b.base && address < end + 4096;
            if (near && (!nearest || (address >= b.base && address < end))) nearest = &b;
        }
        if (nearest) {
            const Buffer& b = *nearest;
            long long offset = (long long)(address - b.base);
            long long row = b.stride_bytes && offset > 0 ? offset / (long long)b.stride_bytes : 0;
            row = std::min<long long>(row, b.rows - 1);
            offset -= row * b.stride_bytes;
            snprintf(text, sizeof text, "%s[%lld][%lld] (%zu rows of %zu)", b.name, row,
                     offset / (long long)b.item_bytes, b.rows, b.row_bytes / b.item_bytes);
        }
    }
    return std::vector<char>(text, text + strlen(text) + 1);
}

void Checker::fault_at(uintptr_t address, size_t size, bool write, const char* what) {
    launch.fault_address = uintptr_t(code) - launch.options.image_begin;
    std::vector<char> where = describe(address);
    if (size)
        fault("%s %zu bytes at %s, %s", write ? "writes" : "reads", size, where.data(), what);
    fault("%s %s, %s", write ? "writes" : "reads", where.data(), what);
}

// ---- counters --------------------------------------------------------------------------------------
// The accesses that the lanes of a warp make at one place in the code, the same time round, are one
// request, as they are on a GPU whose warps keep together.

void Checker::count(uintptr_t address, size_t size, bool write, bool shared, const void* at) {
    unsigned time = times[thread()][uintptr_t(at)]++;
    unsigned long long key = (uintptr_t(at) - launch.options.image_begin) << 32 | time;
    Request& request = requests[warp()][key];
    request.shared = shared;
    request.write = write;
    request.size = size;
    if (request.count < WARP) request.addresses[request.count++] = address;
}

// How often the banks must be asked: a bank gives one word at a time, to all lanes that want that one.
// Of 8 bytes a lane half a warp is served at a time, of 16 a quarter.
static long long wavefronts(const uintptr_t* addresses, unsigned count, size_t size) {
    unsigned lanes = size <= WORD_BYTES ? WARP : WARP * WORD_BYTES / size;
    long long sum = 0;
    for (unsigned first = 0; first < count; first += lanes) {
        std::vector<uintptr_t> words[BANKS];
        size_t most = 0;
        for (unsigned i = first; i < std::min(first + lanes, count); i++)
            for (size_t byte = 0; byte < std::max(size, WORD_BYTES); byte += WORD_BYTES) {
                uintptr_t word = (addresses[i] + byte) / WORD_BYTES;
                auto& of_bank = words[word % BANKS];
                if (std::find(of_bank.begin(), of_bank.end(), word) == of_bank.end())
                    of_bank.push_back(word);
                most = std::max(most, of_bank.size());
            }
        sum += most;
    }
    return sum;
}

void Checker::count_requests() {
    for (auto& of_warp : requests) {
        for (auto& [key, r] : of_warp) {
            if (r.shared) {
                unsigned lanes = r.size <= WORD_BYTES ? WARP : WARP * WORD_BYTES / r.size;
                counters.shared_requests++;
                counters.shared_wavefronts += wavefronts(r.addresses, r.count, r.size);
                counters.ideal_shared_wavefronts += (r.count + lanes - 1) / lanes;
                continue;
            }
            std::vector<uintptr_t> sectors, items;
            for (unsigned i = 0; i < r.count; i++) {
                sectors.push_back(r.addresses[i] / SECTOR_BYTES);
                items.push_back(r.addresses[i]);
            }
            auto distinct = [](std::vector<uintptr_t>& v) {
                std::sort(v.begin(), v.end());
                return (long long)(std::unique(v.begin(), v.end()) - v.begin());
            };
            long long bytes = distinct(items) * r.size;
            (r.write ? counters.store_requests : counters.load_requests)++;
            (r.write ? counters.store_sectors : counters.load_sectors) += distinct(sectors);
            (r.write ? counters.ideal_store_sectors : counters.ideal_load_sectors) +=
                (bytes + SECTOR_BYTES - 1) / SECTOR_BYTES;
        }
        of_warp.clear();
    }
    for (auto& of_thread : times) of_thread.clear();
}

}  // namespace emulator

// ---- what the compiler calls -----------------------------------------------------------------------

static void seen(void* address, size_t size, bool write, bool atomic, const void* code) {
    emulator::Block* block = emulator::block;
    if (block && block->checker) block->checker->access(uintptr_t(address), size, write, atomic, code);
}

#define HOOKS(size)                                                                               \
    extern "C" void __tsan_read##size(void* a) { seen(a, size, false, false, __builtin_return_address(0)); } \
    extern "C" void __tsan_write##size(void* a) { seen(a, size, true, false, __builtin_return_address(0)); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
#define UNALIGNED_HOOKS(size)                                                                     \
    extern "C" void __tsan_unaligned_read##size(void* a) {                                        \
        seen(a, size, false, false, __builtin_return_address(0));                                 \
    }                                                                                             \
    extern "C" void __tsan_unaligned_write##size(void* a) {                                       \
        seen(a, size, true, false, __builtin_return_address(0));                                  \
    }
UNALIGNED_HOOKS(2)
UNALIGNED_HOOKS(4)
UNALIGNED_HOOKS(8)
UNALIGNED_HOOKS(16)

// A range is seen byte by byte: nothing says how wide its accesses are.
extern "C" void __tsan_read_range(void* a, size_t n) {
    for (size_t i = 0; i < n; i++) seen((char*)a + i, 1, false, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* a, size_t n) {
    for (size_t i = 0; i < n; i++) seen((char*)a + i, 1, true, false, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}

// Atomic operations; the one order that kernels use is the relaxed one, and here one thread runs.
#define ATOMIC_HOOKS(bits, type, size)                                                            \
    extern "C" type __tsan_atomic##bits##_fetch_add(volatile type* a, type v, int) {              \
        seen((void*)a, size, true, true, __builtin_return_address(0));                            \
        return __atomic_fetch_add(a, v, __ATOMIC_RELAXED);                                        \
    }                                                                                             \
    extern "C" type __tsan_atomic##bits##_fetch_sub(volatile type* a, type v, int) {              \
        seen((void*)a, size, true, true, __builtin_return_address(0));                            \
        return __atomic_fetch_sub(a, v, __ATOMIC_RELAXED);                                        \
    }                                                                                             \
    extern "C" type __tsan_atomic##bits##_fetch_and(volatile type* a, type v, int) {              \
        seen((void*)a, size, true, true, __builtin_return_address(0));                            \
        return __atomic_fetch_and(a, v, __ATOMIC_RELAXED);                                        \
    }                                                                                             \
    extern "C" type __tsan_atomic##bits##_fetch_or(volatile type* a, type v, int) {               \
        seen((void*)a, size, true, true, __builtin_return_address(0));                            \
        return __atomic_fetch_or(a, v, __ATOMIC_RELAXED);                                         \
    }                                                                                             \
    extern "C" type __tsan_atomic##bits##_exchange(volatile type* a, type v, int) {               \
        seen((void*)a, size, true, true, __builtin_return_address(0));                            \
        return __atomic_exchange_n(a, v, __ATOMIC_RELAXED);                                       \
    }                                                                                             \
    extern "C" type __tsan_atomic##bits##_load(const volatile type* a, int) {                     \
        seen((void*)a, size, false, true, __builtin_return_address(0));                           \
        return __atomic_load_n(a, __ATOMIC_RELAXED);                                              \
    }                                                                                             \
    extern "C" int __tsan_atomic##bits##_compare_exchange_strong(volatile type* a, type* expected, \
                                                                 type v, int, int) {              \
        seen((void*)a, size, true, true, __builtin_return_address(0));                            \
        return __atomic_compare_exchange_n(a, expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
    }
ATOMIC_HOOKS(32, int, 4)
ATOMIC_HOOKS(64, long long, 8)
