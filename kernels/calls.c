// How Python calls kernels: one by one, or a recorded step in one call.
#ifdef _OPENMP
#include <omp.h>
#endif

// Every kernel has such an entry function; `arguments` holds a pointer to each argument.
typedef void (*Entry)(void** arguments);

void call_all(int count, const Entry* entries, void*** arguments) {
    for (int i = 0; i < count; ++i) entries[i](arguments[i]);
}

// Sets the number of threads that share a kernel's work; without OpenMP it is always one.
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
