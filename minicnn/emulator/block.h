// The state of a block that runs: its threads, its shared memory, and the launch that it is of.
//
// A block's threads are fibers: each has a stack of its own, and they take turns on one thread of
// the machine, changing only where they wait for each other.
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
constexpr size_t MOST_SHARED_BYTES = 227 << 10;  // of a block, on any GPU so far
constexpr size_t SHARED_GAP = 128;  // so that no shared array's end is another's beginning
constexpr size_t ARENA_BYTES = SHARED_GAP + MOST_SHARED_BYTES + SHARED_GAP;
constexpr unsigned WARP = 32;

enum class State { fresh, ready, at_barrier, at_exchange, ended };
enum class Order : int { forward, backward, shuffled };

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
    void* stack_pointer;  // while another runs
    char* stack;
    const char* site;  // of the barrier or the exchange it waits at
    unsigned mask;     // of the exchange
    bool predicate;
    int votes;
    int turn;                       // which of its two values is of the exchange in hand
    unsigned turns;                 // the same of all lanes, a bit each, once they are here
    alignas(16) char value[2][64];  // what it gives to others
    std::vector<Copy> copies;       // under way
    int groups;                     // of copies that were committed
};

// What Python asks for; the same fields are in __init__.py.
struct Options {
    int order, late_copies, cores;
    int buffers;             // of the checker; -1: do not check
    const Buffer* buffer;
    Counters* counters;
    uintptr_t image_begin, image_end;  // of the kernel's library, with its constants
};

struct Launch {
    void (*entry)(void**);
    void** arguments;
    Index grid, block_size;
    unsigned shared_bytes;
    Options options;
    std::atomic<long long> next_block{0};
    std::atomic<bool> failed{false};
    std::mutex lock;  // of the message
    char* message;
    size_t message_bytes;
    uintptr_t fault_address = 0;  // in the kernel's code, less the image's beginning

    void fail(const Place* at, const char* text);
};

struct SharedArray {
    const void* key;     // of its declaration
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
    std::vector<SharedArray> arrays;  // the first is what the launch asked for
    Checker* checker = nullptr;

    Fiber& self() { return fibers[current]; }
    int size() const { return fibers.size(); }
    void run(Launch& launch, Index index);

private:
    void begin(Index index);
    void start(Fiber& fiber);
    bool turn_of(int fiber);
    bool release();
};

extern thread_local Block* block;  // that runs on this thread of the machine

}  // namespace emulator
