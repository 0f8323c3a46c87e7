// The state of a running thread block: its threads, its shared memory, and its launch.
//
// The threads of a block are fibers. Each has its own stack; one thread of the CPU runs them all,
// and switches between them only where they wait for each other.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime.h"

namespace emulator {

class Checker;
struct Buffer;
struct Counters;

constexpr size_t STACK_BYTES = 64 << 10;
constexpr size_t MOST_SHARED_BYTES = 227 << 10;  // of a block, the most on any GPU so far
constexpr size_t SHARED_GAP = 128;  // between shared arrays, to detect accesses past their ends
constexpr size_t ARENA_BYTES = SHARED_GAP + MOST_SHARED_BYTES + SHARED_GAP;
constexpr unsigned WARP = 32;

enum class State { fresh, ready, at_barrier, at_exchange, ended };
enum class Order : int { forward, backward, shuffled };

// An asynchronous copy to shared memory; not `inside`: it writes zeros.
struct Copy {
    void* shared;
    const void* global;
    size_t size;
    bool inside;
    int group;
};

struct Fiber {
    Place place;
    State state;
    void* stack_pointer;  // while it does not run
    char* stack;
    const char* site;  // the source line of the barrier or exchange at which it waits
    unsigned mask;     // of the exchange
    bool predicate;    // its vote at the barrier
    int votes;         // the number of true votes
    int slot;                       // of its two values, the one for the current exchange
    unsigned slots;                 // those of all lanes, a bit each, when the exchange is complete
    alignas(16) char value[2][64];  // what other lanes read
    std::vector<Copy> copies;       // in flight
    int groups;                     // number of committed groups of copies
};

// A launch's options, set by Python; __init__.py has the same struct.
struct Options {
    int order, late_copies, cores;
    int buffers;  // their number, for the checker; -1: do not check
    const Buffer* buffer;
    Counters* counters;
    uintptr_t image_begin, image_end;  // the kernel's library in memory, with its constants
};

struct Launch {
    void (*entry)(void**);
    void** arguments;
    Index grid, block_size;
    unsigned shared_bytes;
    Options options;
    std::atomic<long long> next_block{0};
    std::atomic<bool> failed{false};
    std::mutex lock;  // for the message
    char* message;
    size_t message_bytes;
    uintptr_t fault_address = 0;  // in the kernel's code, relative to the image

    void fail(const Place* at, const char* text);
};

struct SharedArray {
    const void* key;     // identifies its declaration
    size_t begin, size;  // in the arena
    size_t item_bytes;
    const char* name;
};

struct Block {
    Launch* launch = nullptr;
    std::vector<Fiber> fibers;
    std::vector<char*> free_stacks, stacks;
    void* scheduler_stack_pointer = nullptr;
    int current = 0;  // the fiber that runs
    std::unique_ptr<char[]> arena;  // shared memory
    size_t arena_used = 0;
    std::vector<SharedArray> arrays;  // the first one is the launch's dynamic shared memory
    Checker* checker = nullptr;

    Fiber& self() { return fibers[current]; }
    int size() const { return fibers.size(); }
    void run(Launch& launch, Index index);

private:
    void begin(Index index);
    void start(Fiber& fiber);
    bool resume(int fiber);
    bool release();
};

extern thread_local Block* block;  // the one that this thread of the CPU runs

}  // namespace emulator
