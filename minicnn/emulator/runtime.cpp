// Executes kernels: distributes thread blocks over the CPU's cores, and runs their threads as
// fibers.
#include "runtime.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>
#include <sys/mman.h>
#include <unistd.h>

#include "block.h"
#include "checker.h"
#include "fiber.h"

namespace emulator {

thread_local Place* here;
thread_local Block* block;

constexpr int POISON = 0xff;  // unwritten memory is NaN, so that reading it shows in results

void Launch::fail(const Place* at, const char* text) {
    std::lock_guard<std::mutex> guard(lock);
    if (failed) return;  // only the first fault is reported
    if (at)
        snprintf(message, message_bytes, "block (%u, %u, %u), thread (%u, %u, %u) %s", at->block.x,
                 at->block.y, at->block.z, at->thread.x, at->thread.y, at->thread.z, text);
    else
        snprintf(message, message_bytes, "%s", text);
    failed = true;
}

// ---- fibers -------------------------------------------------------------------------------------

static void leave() {
    emulator_switch(&block->self().stack_pointer, block->scheduler_stack_pointer);
}

static void thread_body() {
    block->launch->entry(block->launch->arguments);
    block->self().state = State::ended;
    leave();
    abort();  // not reached: a thread that has ended is never resumed
}

void Block::start(Fiber& fiber) {
    if (free_stacks.empty()) {
        constexpr int ACCESS = PROT_READ | PROT_WRITE, KIND = MAP_PRIVATE | MAP_ANON;
        void* memory = mmap(nullptr, STACK_BYTES, ACCESS, KIND, -1, 0);
        if (memory == MAP_FAILED) {
            launch->fail(nullptr, "out of memory for the stacks of threads");
            return;
        }
        stacks.push_back((char*)memory);
        free_stacks.push_back((char*)memory);
    }
    fiber.stack = free_stacks.back();
    free_stacks.pop_back();
    fiber.stack_pointer = emulator_new_stack(fiber.stack, STACK_BYTES, thread_body);
    fiber.state = State::ready;
}

// ---- a block ------------------------------------------------------------------------------------

void Block::begin(Index index) {
    Index size = launch->block_size;
    fibers.resize(size.x * size.y * size.z);
    for (unsigned i = 0; i < fibers.size(); i++) {
        Fiber& f = fibers[i];
        Index thread = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        f.place = {thread, index, size, launch->grid};
        f.state = State::fresh;
        f.slot = f.groups = 0;
        f.copies.clear();
    }
    if (!arena) arena.reset(new char[ARENA_BYTES]);
    arena_used = SHARED_GAP + launch->shared_bytes;
    memset(arena.get(), POISON, arena_used);
    arrays = {{nullptr, SHARED_GAP, launch->shared_bytes, 1, "dynamic shared memory"}};
    if (checker) checker->begin_block(*this);
}

// Runs a thread until it waits or ends. Returns false if it cannot run.
bool Block::resume(int i) {
    Fiber& fiber = fibers[i];
    if (fiber.state == State::fresh) start(fiber);
    if (fiber.state != State::ready) return false;
    current = i;
    here = &fiber.place;
    emulator_switch(&scheduler_stack_pointer, fiber.stack_pointer);
    if (fiber.state == State::ended) free_stacks.push_back(fiber.stack);
    return true;
}

// "file.cu:12" from a site with a whole path.
static const char* short_name(const char* site) {
    const char* slash = strrchr(site, '/');
    return slash ? slash + 1 : site;
}

static bool same_site(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }

// Called when no thread can run. If all wait at the same barrier, lets them continue. Otherwise
// reports a fault and returns false.
bool Block::release() {
    const Fiber* first = nullptr;
    int waiting = 0, votes = 0;
    for (const Fiber& fiber : fibers) {
        if (fiber.state == State::ended) continue;
        char text[300];
        if (fiber.state == State::at_exchange) {
            snprintf(text, sizeof text, "waits for lanes of its warp that do not come (%s)",
                     short_name(fiber.site));
            launch->fail(&fiber.place, text);
            return false;
        }
        if (!first) first = &fiber;
        if (!same_site(fiber.site, first->site)) {
            snprintf(text, sizeof text, "waits at the barrier of %s, others at that of %s",
                     short_name(fiber.site), short_name(first->site));
            launch->fail(&fiber.place, text);
            return false;
        }
        waiting++;
        votes += fiber.predicate;
    }
    if (waiting < size()) {
        char text[300];
        snprintf(text, sizeof text, "waits at the barrier of %s for threads that have ended",
                 short_name(first->site));
        launch->fail(&first->place, text);
        return false;
    }
    for (Fiber& fiber : fibers) {
        fiber.votes = votes;
        fiber.state = State::ready;
    }
    if (checker) checker->barrier();
    return true;
}

void Block::run(Launch& of, Index index) {
    launch = &of;
    begin(index);
    int n = size(), order = of.options.order;
    // A step that is coprime to n visits all threads.
    int step = 1, offset = 0;
    if (order == int(Order::shuffled)) {
        step = n / 2 + 1;
        while (std::gcd(step, n) != 1) step++;
        offset = (index.x * 7 + index.y * 3 + index.z) % n;
    }
    for (;;) {
        bool ran = false, ended = true;
        for (int k = 0; k < n && !of.failed; k++) {
            bool backward = order == int(Order::backward);
            int i = backward ? n - 1 - k : int((offset + (long long)k * step) % n);
            ran |= resume(i);
            ended &= fibers[i].state == State::ended;
        }
        if (of.failed || ended || (!ran && !release())) break;
    }
    if (of.failed) free_stacks = stacks;  // also those of threads that have not ended
    if (checker) checker->end_block();
}

// ---- barriers and exchanges ---------------------------------------------------------------------

int barrier(const char* site, Vote vote, bool predicate) {
    Fiber& fiber = block->self();
    fiber.state = State::at_barrier;
    fiber.site = site;
    fiber.predicate = predicate;
    leave();
    if (vote == Vote::all) return fiber.votes == block->size();
    if (vote == Vote::any) return fiber.votes > 0;
    return fiber.votes;
}

unsigned lane() { return block->current % WARP; }

unsigned exchange(const char* site, Exchange kind, unsigned mask, const void* value, size_t size) {
    Fiber& fiber = block->self();
    int first = block->current - lane();
    if (!(mask >> lane() & 1))
        fault("takes part in an exchange whose mask leaves it out", site);
    if (block->size() - first < int(WARP)) mask &= (1u << (block->size() - first)) - 1;
    fiber.slot ^= 1;  // other lanes may not have read the value of the exchange before
    if (size) memcpy(fiber.value[fiber.slot], value, size);
    fiber.state = State::at_exchange;
    fiber.site = site;
    fiber.mask = mask;
    unsigned slots = 0;
    for (unsigned i = WARP; i-- > 0;) {  // usually the last lane arrives last
        if (!(mask >> i & 1)) continue;
        const Fiber& other = block->fibers[first + i];
        bool arrived = other.state == State::at_exchange && other.mask == mask &&
                       same_site(other.site, site);
        if (!arrived) {
            leave();
            return mask;
        }
        slots |= unsigned(other.slot) << i;
    }
    for (unsigned i = 0; i < WARP; i++) {  // this lane was the last to arrive
        if (!(mask >> i & 1)) continue;
        block->fibers[first + i].state = State::ready;
        block->fibers[first + i].slots = slots;
    }
    if (block->checker) block->checker->exchange(first / WARP, mask, kind);
    // The other lanes run first. So all of them have read their values before any lane reaches its
    // second exchange after this one, which overwrites them.
    leave();
    return mask;
}

const void* lane_value(unsigned number) {
    unsigned slots = block->self().slots;
    return block->fibers[block->current - lane() + number].value[slots >> number & 1];
}

// ---- shared memory and copies into it -----------------------------------------------------------

void* shared_array(const void* key, size_t size, size_t item_bytes, const char* name) {
    constexpr size_t ALIGNMENT = 128;
    for (const SharedArray& array : block->arrays)
        if (array.key == key) return block->arena.get() + array.begin;
    size_t begin = (block->arena_used + SHARED_GAP + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (begin + size + SHARED_GAP > ARENA_BYTES) fault("asks for more shared memory than there is");
    block->arrays.push_back({key, begin, size, item_bytes, name});
    block->arena_used = begin + size;
    memset(block->arena.get() + begin, POISON, size);
    return block->arena.get() + begin;
}

void* dynamic_shared(size_t item_bytes, const char* name) {
    SharedArray& array = block->arrays[0];
    array.item_bytes = item_bytes;
    array.name = name;
    return block->arena.get() + array.begin;
}

static void land(const Copy& copy) {
    if (copy.inside)
        memcpy(copy.shared, copy.global, copy.size);
    else
        memset(copy.shared, 0, copy.size);
}

void copy_async(void* shared, const void* global, size_t size, bool inside) {
    Fiber& fiber = block->self();
    Copy copy{shared, global, size, inside, fiber.groups};
    if (block->checker) block->checker->copy_begins(copy, __builtin_return_address(0));
    if (!block->launch->options.late_copies) land(copy);
    fiber.copies.push_back(copy);
}

void commit_copies() { block->self().groups++; }

void wait_copies(int groups_left) {
    Fiber& fiber = block->self();
    size_t kept = 0;
    for (const Copy& copy : fiber.copies) {
        if (copy.group >= fiber.groups - groups_left) {
            fiber.copies[kept++] = copy;
            continue;
        }
        if (block->launch->options.late_copies) land(copy);
        if (block->checker) block->checker->copy_ends(copy);
    }
    fiber.copies.resize(kept);
}

// ---- faults and counts --------------------------------------------------------------------------

void fault(const char* text, const char* site) {
    char whole[600];
    if (site)
        snprintf(whole, sizeof whole, "%s (%s)", text, short_name(site));
    else
        snprintf(whole, sizeof whole, "%s", text);
    block->launch->fail(here, whole);
    leave();
    abort();  // not reached: no thread is resumed after a fault
}

void count_flops(long long flops) {
    if (block->checker) block->checker->flops(flops);
}

void count_tensor_step(long long flops) {
    if (block->checker) block->checker->tensor_step(flops);
}

// ---- a launch -----------------------------------------------------------------------------------

static void run_blocks(Launch& launch, Checker* checker) {
    static thread_local Block mine;
    block = &mine;
    mine.checker = checker;
    long long x = launch.grid.x, y = launch.grid.y, total = x * y * launch.grid.z;
    bool backward = launch.options.order != int(Order::forward);
    for (long long i; !launch.failed && (i = launch.next_block++) < total;) {
        long long b = backward ? total - 1 - i : i;
        mine.run(launch, {unsigned(b % x), unsigned(b / x % y), unsigned(b / x / y)});
    }
}

// The threads of the CPU that run launches; they are started once and never end.
class Pool {
public:
    void run(Launch& launch, int cores) {
        while (helpers < cores - 1) {
            std::thread([this, number = helpers] { serve(number); }).detach();
            helpers++;
        }
        {
            std::lock_guard<std::mutex> guard(lock);
            work = &launch;
            invited = busy = cores - 1;
            launches++;
        }
        if (cores > 1) wake.notify_all();
        run_blocks(launch, nullptr);
        std::unique_lock<std::mutex> guard(lock);
        done.wait(guard, [&] { return busy == 0; });
    }

private:
    std::mutex lock;
    std::condition_variable wake, done;
    Launch* work = nullptr;
    unsigned long launches = 0;  // so far
    int helpers = 0, invited = 0, busy = 0;

    void serve(int number) {
        unsigned long seen = 0;
        for (;;) {
            Launch* launch;
            {
                std::unique_lock<std::mutex> guard(lock);
                wake.wait(guard, [&] { return launches != seen; });
                seen = launches;
                if (number >= invited) continue;
                launch = work;
            }
            run_blocks(*launch, nullptr);
            std::lock_guard<std::mutex> guard(lock);
            if (--busy == 0) done.notify_one();
        }
    }
};

}  // namespace emulator

// Runs a kernel. Returns 0; or 1, with a message and the address of the fault in the kernel's code.
extern "C" int emulator_launch(void (*entry)(void**), void** arguments, const unsigned* grid,
                               const unsigned* block_size, unsigned shared_bytes,
                               const emulator::Options* options, char* message,
                               size_t message_bytes, uintptr_t* fault_address) {
    using namespace emulator;
    // A forked child does not have the pool's threads, so it starts its own pool.
    static Pool* pool = nullptr;
    static pid_t owner;
    if (!pool || owner != getpid()) {
        pool = new Pool;
        owner = getpid();
    }
    Launch launch;
    launch.entry = entry;
    launch.arguments = arguments;
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.block_size = {block_size[0], block_size[1], block_size[2]};
    launch.shared_bytes = shared_bytes;
    launch.options = *options;
    launch.message = message;
    launch.message_bytes = message_bytes;
    if (shared_bytes > MOST_SHARED_BYTES) {
        launch.fail(nullptr, "asks for more shared memory than there is");
    } else if (options->buffers < 0) {
        long long blocks = 1LL * grid[0] * grid[1] * grid[2];
        pool->run(launch, int(std::min<long long>(options->cores, blocks)));
    } else {
        Checker checker(launch);
        run_blocks(launch, &checker);
    }
    block = nullptr;
    *fault_address = launch.fault_address;
    return launch.failed;
}
