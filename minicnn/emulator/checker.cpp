#include "checker.h"

#include <algorithm>
#include <cstdio>

namespace emulator {

constexpr size_t WORD_BYTES = 4;

Checker::Checker(Launch& launch)
    : launch(launch), counters(*launch.options.counters),
      buffers(launch.options.buffer, launch.options.buffer + launch.options.buffers),
      traffic(counters) {
    // Arrays that overlap, such as views of one array, share the state of their memory.
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

void Checker::begin_block(Block& of) {
    block = &of;
    races.begin_block(of.size());
    traffic.begin_block(of.size());
}

void Checker::end_block() { traffic.settle(); }

void Checker::barrier() {
    races.barrier();
    traffic.settle();
    counters.barriers++;
}

void Checker::exchange(unsigned warp, unsigned mask, Exchange kind) {
    if (kind == Exchange::sync) races.sync_warp(warp, mask);
    counters.exchanges += kind != Exchange::tensor_step;
}

void Checker::tensor_step(long long flops) {
    counters.tensor_steps++;
    counters.tensor_flops += flops;
}

// ---- an access ----------------------------------------------------------------------------------

bool Checker::is_shared(uintptr_t address) const {
    return address - uintptr_t(block->arena.get()) < ARENA_BYTES;
}

void Checker::access(uintptr_t address, size_t size, Access kind, const void* at, bool counted) {
    const Fiber& fiber = block->self();
    if (address - uintptr_t(fiber.stack) < STACK_BYTES) return;  // local variables
    uintptr_t fibers = uintptr_t(block->fibers.data());
    if (address - fibers < block->fibers.size() * sizeof(Fiber)) return;  // threadIdx and others
    if (address - uintptr_t(&here) < sizeof here) return;
    const Options& options = launch.options;
    bool in_image = address >= options.image_begin && address < options.image_end;
    if (kind == Access::read && in_image) return;  // a constant of the source
    code = uintptr_t(at) - options.image_begin;
    if (size > 1 && address % size) fault_at(address, size, kind, "not aligned to its size");
    bool shared = is_shared(address);
    if (shared)
        shared_access(address, size, kind);
    else
        global_access(address, size, kind);
    if (counted) traffic.add(thread(), address, size, kind != Access::read, shared, code);
}

template <typename F>
void Checker::for_shared_words(uintptr_t address, size_t size, F function) {
    size_t at = address - uintptr_t(block->arena.get());
    for (const SharedArray& a : block->arrays) {
        if (at < a.begin || at + size > a.begin + a.size) continue;
        if (shared_words.size() < a.begin + a.size) shared_words.resize(a.begin + a.size);
        size_t grain = std::min(a.item_bytes, WORD_BYTES);
        for (size_t i = at / grain * grain; i < at + size; i += grain) function(shared_words[i]);
        return;
    }
}

void Checker::shared_access(uintptr_t address, size_t size, Access kind) {
    bool inside = false;
    for_shared_words(address, size, [&](Word& word) {
        inside = true;
        if (word.of_block != races.block()) word = {};  // the state of an earlier block
        word.of_block = races.block();
        if (word.copies)
            fault_at(address, size, kind, "which an asynchronous copy has not reached");
        if (kind != Access::write && !word.write.block)
            fault_at(address, size, kind, "which nothing in this block has written");
        note(word, address, kind);
    });
    if (!inside) fault_at(address, size, kind, "outside of every shared array");
}

template <typename F>
void Checker::for_global_words(uintptr_t address, size_t size, F function) {
    for (Region& r : regions) {
        if (address < r.begin || address >= r.end) continue;
        for (size_t i = (address - r.begin) / r.grain; i * r.grain < address - r.begin + size; i++)
            function(r.words[i], r.grain);
        return;
    }
}

void Checker::global_access(uintptr_t address, size_t size, Access kind) {
    bool inside = false, allowed = false;
    for (const Buffer& b : buffers) {
        size_t offset = address - b.base;
        if (address < b.base || !b.rows) continue;
        size_t row = b.stride_bytes ? std::min(offset / b.stride_bytes, b.rows - 1) : 0;
        offset -= row * b.stride_bytes;
        if (offset + size > b.row_bytes) continue;
        inside = true;
        allowed |= kind == Access::read || b.written;
    }
    if (!inside) fault_at(address, size, kind, "outside of every array of the launch");
    if (!allowed) fault_at(address, size, kind, "in an array that is const");
    for_global_words(address, size, [&](Word& word, size_t bytes) {
        if (word.copies && kind != Access::read)
            fault_at(address, size, kind, "which an asynchronous copy has yet to read");
        note(word, address, kind);
        if (kind != Access::read) {
            counters.bytes_written += word.was_written ? 0 : bytes;
            word.was_written = true;
        } else if (!word.was_written) {  // else a cache that holds everything would have it
            counters.bytes_read += word.was_read ? 0 : bytes;
            word.was_read = true;
        }
    });
}

void Checker::note(Word& word, uintptr_t address, Access kind) {
    Conflict conflict;
    if (!races.note(word, thread(), kind, &conflict)) return;
    static const char* const has[] = {"read", "written", "changed"};
    const char* did = has[int(conflict.access)];
    char what[300];
    if (conflict.thread < 0) {
        snprintf(what, sizeof what, "which another block has %s, and nothing orders blocks", did);
    } else {
        Index i = block->fibers[conflict.thread].place.thread;
        bool same_warp = conflict.thread / WARP == thread() / WARP;
        snprintf(what, sizeof what,
                 "which thread (%u, %u, %u) of this block has %s, with no %s in between", i.x, i.y,
                 i.z, did, same_warp ? "__syncwarp()" : "barrier");
    }
    fault_at(address, 0, kind, what);
}

// ---- asynchronous copies ------------------------------------------------------------------------
// Until a copy has been waited for, nothing may access its target or write to its source.

void Checker::copy_begins(const Copy& copy, const void* at) {
    uintptr_t to = uintptr_t(copy.shared), from = uintptr_t(copy.global);
    code = uintptr_t(at) - launch.options.image_begin;
    if (!is_shared(to)) fault_at(to, copy.size, Access::write, "which is not shared memory");
    if (from % copy.size) fault_at(from, copy.size, Access::read, "not aligned to its size");
    if (copy.inside) {
        access(from, copy.size, Access::read, at);
        for_global_words(from, copy.size, [](Word& word, size_t) { word.copies++; });
    }
    access(to, copy.size, Access::write, at);
    for_shared_words(to, copy.size, [](Word& word) { word.copies++; });
}

void Checker::copy_ends(const Copy& copy) {
    for_shared_words(uintptr_t(copy.shared), copy.size, [&](Word& word) {
        word.copies--;
        races.write_ends(word, thread());
    });
    if (!copy.inside) return;
    for_global_words(uintptr_t(copy.global), copy.size, [&](Word& word, size_t) {
        word.copies--;
        note(word, uintptr_t(copy.global), Access::read);  // the copy may have read it just now
    });
}

// ---- messages -----------------------------------------------------------------------------------

// The name of an address: an element of the nearest array, even past its ends.
std::string Checker::describe(uintptr_t address) const {
    constexpr long long NEAR = 4096;
    char text[300];
    snprintf(text, sizeof text, "address %#zx", size_t(address));
    long long nearest = NEAR;
    auto distance = [](long long offset, long long size) {
        return offset < 0 ? -offset : std::max(0LL, offset + 1 - size);
    };
    if (is_shared(address)) {
        snprintf(text, sizeof text, "shared memory");
        for (const SharedArray& a : block->arrays) {
            long long offset = (long long)(address - uintptr_t(block->arena.get()) - a.begin);
            if (!a.size || distance(offset, a.size) >= nearest) continue;
            nearest = distance(offset, a.size);
            snprintf(text, sizeof text, "%s[%lld] (of %zu)", a.name,
                     offset / (long long)a.item_bytes, a.size / a.item_bytes);
        }
        return text;
    }
    for (const Buffer& b : buffers) {
        if (!b.rows) continue;
        long long offset = (long long)(address - b.base), row = 0;
        if (b.stride_bytes && offset > 0)
            row = std::min<long long>(offset / (long long)b.stride_bytes, b.rows - 1);
        offset -= row * (long long)b.stride_bytes;
        if (distance(offset, b.row_bytes) >= nearest) continue;
        nearest = distance(offset, b.row_bytes);
        long long item = offset / (long long)b.item_bytes;
        size_t items = b.row_bytes / b.item_bytes;
        if (b.rows == 1)
            snprintf(text, sizeof text, "%s[%lld] (of %zu)", b.name, item, items);
        else
            snprintf(text, sizeof text, "%s[%lld][%lld] (%zu rows of %zu)", b.name, row, item,
                     b.rows, items);
    }
    return text;
}

void Checker::fault_at(uintptr_t address, size_t size, Access kind, const char* what) {
    launch.fault_address = code;
    static const char* const does[] = {"reads", "writes", "changes"};
    char text[400];
    int begin = snprintf(text, sizeof text, "%s ", does[int(kind)]);
    if (size) begin += snprintf(text + begin, sizeof text - begin, "%zu bytes at ", size);
    snprintf(text + begin, sizeof text - begin, "%s, %s", describe(address).c_str(), what);
    fault(text);
}

}  // namespace emulator
