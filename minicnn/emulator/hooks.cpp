// The functions that the compiler calls for each access of a checked kernel.
#include <cstring>

#include "checker.h"

using emulator::Access;

static void report(const volatile void* address, size_t size, Access kind, const void* code,
                   bool counted = true) {
    emulator::Block* block = emulator::block;
    if (block && block->checker)
        block->checker->access(uintptr_t(address), size, kind, code, counted);
}

#define CODE __builtin_return_address(0)
#define HOOKS(size)                                                                      \
    extern "C" void __tsan_read##size(void* a) { report(a, size, Access::read, CODE); }  \
    extern "C" void __tsan_write##size(void* a) { report(a, size, Access::write, CODE); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

// An access to several values at once, such as a struct, which need not be aligned to its whole
// size. It is reported word by word if it is aligned to words, else byte by byte.
static void report_pieces(const void* begin, size_t size, Access kind, const void* code) {
    size_t piece = uintptr_t(begin) % 4 || size % 4 ? 1 : 4;
    for (size_t i = 0; i < size; i += piece) report((const char*)begin + i, piece, kind, code);
}

#define UNALIGNED_HOOKS(size)                                \
    extern "C" void __tsan_unaligned_read##size(void* a) {   \
        report_pieces(a, size, Access::read, CODE);          \
    }                                                        \
    extern "C" void __tsan_unaligned_write##size(void* a) {  \
        report_pieces(a, size, Access::write, CODE);         \
    }
UNALIGNED_HOOKS(2)
UNALIGNED_HOOKS(4)
UNALIGNED_HOOKS(8)
UNALIGNED_HOOKS(16)
extern "C" void __tsan_read_range(void* a, size_t n) { report_pieces(a, n, Access::read, CODE); }
extern "C" void __tsan_write_range(void* a, size_t n) { report_pieces(a, n, Access::write, CODE); }

void* emulator::copied(void* to, const void* from, size_t size, const void* code) {
    report_pieces(from, size, Access::read, code);
    report_pieces(to, size, Access::write, code);
    return memmove(to, from, size);
}
extern "C" void* __tsan_memcpy(void* to, const void* from, size_t n) {
    return emulator::copied(to, from, n, CODE);
}
extern "C" void* __tsan_memmove(void* to, const void* from, size_t n) {
    return emulator::copied(to, from, n, CODE);
}
extern "C" void* __tsan_memset(void* to, int value, size_t n) {
    report_pieces(to, n, Access::write, CODE);
    return memset(to, value, n);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}

// Atomic operations. Kernels use relaxed order only, and a checked kernel runs on one thread. The
// loads belong to operations that end in an exchange (shim.h); only the exchange is counted.
#define FETCH_HOOK(bits, type, name)                                                      \
    extern "C" type __tsan_atomic##bits##_##name(volatile type* a, type v, int) {         \
        report(a, sizeof v, Access::atomic, CODE);                                        \
        return __atomic_##name(a, v, __ATOMIC_RELAXED);                                   \
    }
#define ATOMIC_HOOKS(bits, type)                                                          \
    FETCH_HOOK(bits, type, fetch_add)                                                     \
    FETCH_HOOK(bits, type, fetch_sub)                                                     \
    FETCH_HOOK(bits, type, fetch_and)                                                     \
    FETCH_HOOK(bits, type, fetch_or)                                                      \
    extern "C" type __tsan_atomic##bits##_exchange(volatile type* a, type v, int) {       \
        report(a, sizeof v, Access::atomic, CODE);                                        \
        return __atomic_exchange_n(a, v, __ATOMIC_RELAXED);                               \
    }                                                                                     \
    extern "C" type __tsan_atomic##bits##_load(const volatile type* a, int) {             \
        report(a, sizeof *a, Access::atomic, CODE, false);                                \
        return __atomic_load_n(a, __ATOMIC_RELAXED);                                      \
    }                                                                                     \
    static type exchange_if(volatile type* a, type expected, type v, const void* code) {  \
        report(a, sizeof v, Access::atomic, code);                                        \
        __atomic_compare_exchange_n(a, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
        return expected;                                                                  \
    }                                                                                     \
    extern "C" type __tsan_atomic##bits##_compare_exchange_val(volatile type* a, type expected, \
                                                               type v, int, int) {        \
        return exchange_if(a, expected, v, CODE);                                         \
    }                                                                                     \
    extern "C" int __tsan_atomic##bits##_compare_exchange_strong(volatile type* a, type* expected, \
                                                                 type v, int, int) {      \
        type before = *expected;                                                          \
        return (*expected = exchange_if(a, before, v, CODE)) == before;                   \
    }
ATOMIC_HOOKS(32, int)
ATOMIC_HOOKS(64, long long)
