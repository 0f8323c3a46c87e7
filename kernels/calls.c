// How Python calls kernels: one by one, or, once a step has been recorded, a step at a time.
#ifdef _OPENMP
#include <omp.h>
#endif

// What every kernel is entered by: `arguments` points to each of its arguments.
typedef void (*Entry)(void** arguments);

void call_all(int count, const Entry* entries, void*** arguments) {
    for (int i = 0; i < count; ++i) entries[i](arguments[i]);
}

// How many threads share a kernel's work from now on; without OpenMP it is always one.
void use_threads(int count) {
#ifdef _OPENMP
    omp_set_num_threads(count);
#else
    (void)count;
#endif
}

int has_threads(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
