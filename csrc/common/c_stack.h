/* Determines how far the C stack of the calling thread may grow.
 *
 * We locate the main thread's stack without /proc, which may not be mounted: the stack ends where the kernel stored the
 * program's name and may grow to RLIMIT_STACK. (For the main thread, pthread_getattr_np reads /proc/self/maps in glibc,
 * and in musl covers only the pages mapped so far.) For other threads, pthread_getattr_np returns the stack.
 */
#ifndef PRP_C_STACK_H
#define PRP_C_STACK_H

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h> /* must come first: it enables the C library's extensions */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/auxv.h>
#include <sys/resource.h>

/* Number of bytes of the stack that we reserve for foreign code and error handling. */
#define PRP_STACK_RESERVE ((uintptr_t)96 * 1024)
/* The maximum number of bytes that we use of an unlimited main stack; the kernel keeps more than this free below the
 * stack. */
#define PRP_STACK_UNLIMITED ((uintptr_t)64 << 20)

typedef struct {
    uintptr_t low, high;
} prp_stack_range;

static inline prp_stack_range prp_main_stack(void)
{
    uintptr_t name = (uintptr_t)getauxval(AT_EXECFN), random = (uintptr_t)getauxval(AT_RANDOM);
    uintptr_t high = name > random ? name : random;
    struct rlimit limit;
    if (!high || getrlimit(RLIMIT_STACK, &limit) != 0)
        return (prp_stack_range){0, 0};
    uintptr_t size = limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur > PRP_STACK_UNLIMITED
                         ? PRP_STACK_UNLIMITED
                         : (uintptr_t)limit.rlim_cur;
    return size < high ? (prp_stack_range){high - size, high} : (prp_stack_range){0, 0};
}

static inline prp_stack_range prp_thread_stack(void)
{
    pthread_attr_t attr;
    void *address;
    size_t size, guard = 0;
    prp_stack_range range = {0, 0};
    if (pthread_getattr_np(pthread_self(), &attr) != 0)
        return range;
    (void)pthread_attr_getguardsize(&attr, &guard);
    if (pthread_attr_getstack(&attr, &address, &size) == 0 && size > guard)
        range = (prp_stack_range){(uintptr_t)address + guard, (uintptr_t)address + size};
    pthread_attr_destroy(&attr);
    return range;
}

static inline bool prp_on_stack(prp_stack_range range, uintptr_t here)
{
    return range.low < here && here <= range.high;
}

/* Return the lowest address that the calling thread's stack may reach; `reserve` bytes, or a quarter of a small stack,
 * stay free below it. Return 0 if it is unknown. A thread's stack does not move, so we look it up once. Code that runs
 * on a different stack, as some coroutines do, is not limited. */
static inline uintptr_t prp_stack_limit(uintptr_t reserve)
{
    static __thread prp_stack_range kept;
    prp_stack_range range = kept; /* each access to a thread-local variable costs a call */
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    if (__builtin_expect(!range.high, 0)) {
        range = prp_main_stack();
        if (!prp_on_stack(range, here))
            range = prp_thread_stack();
        if (!range.high)
            range.high = 1; /* the stack is unknown */
        kept = range;
    }
    if (!prp_on_stack(range, here))
        return 0;
    uintptr_t quarter = (range.high - range.low) / 4;
    return range.low + (quarter < reserve ? quarter : reserve);
}

static inline bool prp_stack_low(uintptr_t reserve)
{
    return (uintptr_t)__builtin_frame_address(0) < prp_stack_limit(reserve);
}

#endif
