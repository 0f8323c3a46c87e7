#include "runtime.h"

#include <atomic>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>
#include <sys/mman.h>

#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#else
#error "port emulator_switch"
#endif
extern "C" void emulator_switch(void** save, void* load);

namespace emulator {

thread_local Place* here;

namespace {

const size_t STACK = 64 << 10;
enum State { NEW, READY, AT_BARRIER, AT_EXCHANGE, ENDED };

struct Fiber {
    Place place;
    State state;
    void* sp;
    char* stack;
    const void* site;
    unsigned mask;
    int parity;
    bool predicate;
    int result;
    alignas(16) char value[2][64];
};

struct Launch {
    void (*entry)(void**);
    void** arguments;
    Index grid, block;
    unsigned shared;
    int order;
    std::atomic<long long> next;
    std::atomic<bool> failed;
    std::mutex lock;
    char* message;
    size_t size;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<char*> stacks, free_stacks;
    void* scheduler_sp = nullptr;
    Launch* launch = nullptr;
    int current = 0;
    std::vector<char> arena;
    size_t used = 0, dynamic_at = 0;
    std::vector<long> slots;
};

thread_local Block* block;

Fiber& self() { return block->fibers[block->current]; }

void to_scheduler() { emulator_switch(&self().sp, block->scheduler_sp); }

void body() {
    block->launch->entry(block->launch->arguments);
    self().state = ENDED;
    to_scheduler();
    abort();
}

void start(Fiber& fiber) {
    if (block->free_stacks.empty()) {
        char* memory = (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        block->stacks.push_back(memory);
        block->free_stacks.push_back(memory);
    }
    fiber.stack = block->free_stacks.back();
    block->free_stacks.pop_back();
    void** top = (void**)(fiber.stack + STACK);
    *--top = nullptr;
    *--top = (void*)body;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.sp = top;
}

void set_message(Launch& launch, const Place* at, const char* text) {
    std::lock_guard<std::mutex> guard(launch.lock);
    if (launch.failed.exchange(true)) return;
    if (at)
        snprintf(launch.message, launch.size, "block (%u, %u, %u), thread (%u, %u, %u): %s", at->block.x,
                 at->block.y, at->block.z, at->thread.x, at->thread.y, at->thread.z, text);
    else
        snprintf(launch.message, launch.size, "%s", text);
}

void run_block(Launch& launch, Index index) {
    Block& b = *block;
    int n = launch.block.x * launch.block.y * launch.block.z;
    b.fibers.resize(n);
    b.used = 0;
    memset(b.arena.data(), 0xff, b.arena.size() < 65536 ? b.arena.size() : 65536);
    b.slots.assign(b.slots.size(), -1);
    size_t dynamic = launch.shared;
    if (b.arena.size() < dynamic + 232448) b.arena.resize(dynamic + 232448);
    b.dynamic_at = 0;
    b.used = (dynamic + 255) / 256 * 256;
    for (int i = 0; i < n; i++) {
        Fiber& f = b.fibers[i];
        f.state = NEW;
        f.parity = 0;
        f.place = {{i % launch.block.x, i / launch.block.x % launch.block.y,
                    i / launch.block.x / launch.block.y},
                   index, launch.block, launch.grid};
    }
    int live = n;
    while (live) {
        bool ran = false;
        for (int k = 0; k < n; k++) {
            int i = launch.order ? n - 1 - k : k;
            Fiber& f = b.fibers[i];
            if (f.state == NEW) start(f);
            else if (f.state != READY) continue;
            f.state = READY;
            b.current = i;
            here = &f.place;
            ran = true;
            emulator_switch(&b.scheduler_sp, f.sp);
            if (launch.failed) {
                b.free_stacks = b.stacks;
                return;
            }
            if (f.state == ENDED) {
                b.free_stacks.push_back(f.stack);
                live--;
            }
        }
        int waiting = 0, votes = 0;
        const Fiber* first = nullptr;
        for (auto& f : b.fibers)
            if (f.state == AT_BARRIER) {
                if (!first) first = &f;
                if (first->site != f.site) {
                    set_message(launch, &f.place, "threads of the block wait at different barriers");
                    b.free_stacks = b.stacks;
                    return;
                }
                waiting++;
                votes += f.predicate;
            }
        if (waiting == n) {
            for (auto& f : b.fibers) { f.state = READY; f.result = votes; }
        } else if (!ran) {
            set_message(launch, first ? &first->place : nullptr,
                        "waits for threads that have ended or wait elsewhere");
            b.free_stacks = b.stacks;
            return;
        }
    }
}

void run_blocks(Launch& launch) {
    static thread_local Block mine;
    block = &mine;
    mine.launch = &launch;
    long long x = launch.grid.x, y = launch.grid.y, total = x * y * launch.grid.z;
    for (long long i; !launch.failed && (i = launch.next++) < total;)
        run_block(launch, {unsigned(i % x), unsigned(i / x % y), unsigned(i / x / y)});
}

struct Pool {
    std::vector<std::thread> threads;
    std::mutex lock;
    std::condition_variable wake, done;
    Launch* launch = nullptr;
    unsigned long generation = 0;
    int busy = 0;
    void loop() {
        unsigned long seen = 0;
        for (;;) {
            Launch* work;
            {
                std::unique_lock<std::mutex> guard(lock);
                wake.wait(guard, [&] { return generation != seen; });
                seen = generation;
                work = launch;
            }
            run_blocks(*work);
            std::lock_guard<std::mutex> guard(lock);
            if (--busy == 0) done.notify_one();
        }
    }
    void run(Launch& work, int cores) {
        while ((int)threads.size() < cores - 1) {
            threads.emplace_back([this] { loop(); });
            threads.back().detach();
        }
        if (!threads.empty() && cores > 1) {
            std::lock_guard<std::mutex> guard(lock);
            launch = &work;
            busy = threads.size();
            generation++;
            wake.notify_all();
        }
        run_blocks(work);
        std::unique_lock<std::mutex> guard(lock);
        done.wait(guard, [&] { return busy == 0; });
    }
};

}  // namespace

int barrier(const void* site, Vote vote, bool predicate) {
    Fiber& f = self();
    f.state = AT_BARRIER;
    f.site = site;
    f.predicate = predicate;
    to_scheduler();
    int n = block->fibers.size();
    switch (vote) {
        case Vote::all: return self().result == n;
        case Vote::any: return self().result > 0;
        default: return self().result;
    }
}

void exchange(const void* site, unsigned mask, const void* value, size_t size) {
    Fiber& f = self();
    int first = block->current / 32 * 32, n = block->fibers.size();
    if (!(mask >> (block->current - first) & 1)) fault("takes part in a warp's exchange whose mask leaves it out");
    if (n - first < 32) mask &= (1u << (n - first)) - 1;
    f.parity ^= 1;
    if (size) memcpy(f.value[f.parity], value, size);
    f.state = AT_EXCHANGE;
    f.mask = mask;
    f.site = site;
    bool all = true;
    for (int i = 0; i < 32 && all; i++)
        if (mask >> i & 1) {
            Fiber& other = block->fibers[first + i];
            all = other.state == AT_EXCHANGE && other.mask == mask;
        }
    if (all) {
        for (int i = 0; i < 32; i++)
            if (mask >> i & 1) block->fibers[first + i].state = READY;
        return;
    }
    to_scheduler();
}

const void* lane_value(unsigned lane) {
    Fiber& f = self();
    return block->fibers[block->current / 32 * 32 + lane].value[f.parity];
}

void* shared_array(int slot, size_t size, size_t alignment, const char* name) {
    Block& b = *block;
    if ((int)b.slots.size() <= slot) b.slots.resize(slot + 1, -1);
    if (b.slots[slot] < 0) {
        b.used = (b.used + 255) / 256 * 256;
        b.slots[slot] = b.used;
        b.used += size + 64;
        if (b.used > b.arena.size()) fault("too much shared memory");
    }
    return b.arena.data() + b.slots[slot];
}

void* dynamic_shared() { return block->arena.data(); }

void fault(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    set_message(*block->launch, here, text);
    to_scheduler();
    abort();
}

void copy_async(void* shared, const void* global, size_t size, bool inside) {
    if (inside) memcpy(shared, global, size);
    else memset(shared, 0, size);
}
void commit_copies() {}
void wait_copies(int) {}
void count_flops(long long) {}
void count_tensor_step(long long) {}

}  // namespace emulator

extern "C" int emulator_launch(void (*entry)(void**), void** arguments, const unsigned* grid,
                               const unsigned* block, unsigned shared, int order, int cores,
                               char* message, size_t size) {
    static emulator::Pool* pool = new emulator::Pool;
    emulator::Launch launch{entry, arguments, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]},
                            shared, order, {0}, {false}, {}, message, size};
    pool->run(launch, cores);
    return launch.failed;
}
