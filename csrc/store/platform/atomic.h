/*
 * atomic.h - named memory orders, futex wait and wake, a private spinlock.
 *
 * Purpose    Provide one set of operations for all words that threads or processes share. The memory
 *            order is part of each name, so that it is visible in each call, and no call uses C11's
 *            default order by accident.
 * Algorithm  Type-generic macros over <stdatomic.h>, and shared futexes (no PRIVATE flag), which work
 *            between processes that map the word at different addresses.
 * Guarantee  There are no stand-alone fences, because ThreadSanitizer does not support them. Where store buffering
 *            matters (between pin and free), both sides use seq_cst read-modify-writes and seq_cst loads. All atomics
 *            here are lock-free, hence address-free and usable in shared memory.
 */
#ifndef PRS_ATOMIC_H
#define PRS_ATOMIC_H

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef _Atomic uint8_t prs_atomic_u8;
typedef _Atomic uint32_t prs_atomic_u32;
typedef _Atomic uint64_t prs_atomic_u64;

_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "32-bit atomics must be lock-free: they live in shared memory");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free: they live in shared memory");
_Static_assert(sizeof(prs_atomic_u32) == 4 && _Alignof(prs_atomic_u32) == 4, "layout of an atomic u32");
_Static_assert(sizeof(prs_atomic_u64) == 8 && _Alignof(prs_atomic_u64) == 8, "layout of an atomic u64");

/* ---- loads and stores ------------------------------------------------------------------------ */

#define prs_load_relaxed(p) atomic_load_explicit((p), memory_order_relaxed)
#define prs_load_acquire(p) atomic_load_explicit((p), memory_order_acquire)
#define prs_load_seqcst(p) atomic_load_explicit((p), memory_order_seq_cst)

#define prs_store_relaxed(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define prs_store_release(p, v) atomic_store_explicit((p), (v), memory_order_release)
#define prs_store_seqcst(p, v) atomic_store_explicit((p), (v), memory_order_seq_cst)

/* ---- read-modify-write; each returns the previous value --------------------------------------- */

#define prs_exchange_relaxed(p, v) atomic_exchange_explicit((p), (v), memory_order_relaxed)
#define prs_exchange_acquire(p, v) atomic_exchange_explicit((p), (v), memory_order_acquire)
#define prs_exchange_release(p, v) atomic_exchange_explicit((p), (v), memory_order_release)
#define prs_exchange_seqcst(p, v) atomic_exchange_explicit((p), (v), memory_order_seq_cst)

#define prs_fetch_add_relaxed(p, v) atomic_fetch_add_explicit((p), (v), memory_order_relaxed)
#define prs_fetch_add_seqcst(p, v) atomic_fetch_add_explicit((p), (v), memory_order_seq_cst)

#define prs_fetch_sub_relaxed(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_relaxed)
#define prs_fetch_sub_acqrel(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_acq_rel)
#define prs_fetch_sub_seqcst(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_seq_cst)

#define prs_fetch_or_relaxed(p, v) atomic_fetch_or_explicit((p), (v), memory_order_relaxed)
#define prs_fetch_or_acqrel(p, v) atomic_fetch_or_explicit((p), (v), memory_order_acq_rel)
#define prs_fetch_or_seqcst(p, v) atomic_fetch_or_explicit((p), (v), memory_order_seq_cst)

#define prs_fetch_and_acqrel(p, v) atomic_fetch_and_explicit((p), (v), memory_order_acq_rel)
#define prs_fetch_and_seqcst(p, v) atomic_fetch_and_explicit((p), (v), memory_order_seq_cst)

/* ---- compare and swap: true when *p was *expected; otherwise *expected becomes *p -------------- */

#define prs_cas_relaxed(p, expected, desired) \
    atomic_compare_exchange_strong_explicit((p), (expected), (desired), memory_order_relaxed, memory_order_relaxed)
#define prs_cas_acquire(p, expected, desired) \
    atomic_compare_exchange_strong_explicit((p), (expected), (desired), memory_order_acquire, memory_order_acquire)
#define prs_cas_acqrel(p, expected, desired) \
    atomic_compare_exchange_strong_explicit((p), (expected), (desired), memory_order_acq_rel, memory_order_acquire)
#define prs_cas_seqcst(p, expected, desired) \
    atomic_compare_exchange_strong_explicit((p), (expected), (desired), memory_order_seq_cst, memory_order_seq_cst)
/* May fail spuriously: use it in loops only. */
#define prs_cas_weak_relaxed(p, expected, desired) \
    atomic_compare_exchange_weak_explicit((p), (expected), (desired), memory_order_relaxed, memory_order_relaxed)
#define prs_cas_weak_seqcst(p, expected, desired) \
    atomic_compare_exchange_weak_explicit((p), (expected), (desired), memory_order_seq_cst, memory_order_seq_cst)

/* ---- waiting ----------------------------------------------------------------------------------- */

/* Tell the core that this is a spin loop. */
static inline void prs_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || (defined(__arm__) && __ARM_ARCH >= 7)
    __asm__ __volatile__("yield");
#elif defined(__powerpc64__)
    __asm__ __volatile__("or 27,27,27");
#elif defined(__riscv)
    __asm__ __volatile__(".word 0x0100000f"); /* pause; a no-op fence on cores without Zihintpause */
#endif
}

/* Return the low half of a 64-bit word, on which a futex on that word waits. */
static inline void *prs_low_half(prs_atomic_u64 *word)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (char *)word + 4;
#else
    return word;
#endif
}

static inline long prs_futex_call_(void *addr, int op, uint32_t value, const void *timeout)
{
#if defined(SYS_futex)
    return syscall(SYS_futex, addr, op, value, timeout, NULL, 0);
#else
    return syscall(SYS_futex_time64, addr, op, value, timeout, NULL, 0);
#endif
}

/*
 * Sleep while the aligned 32-bit word at `addr` is `expected`, at most `timeout_ns` from now (< 0: no
 * limit). `addr` may lie in a shared mapping, also a read-only one.
 * Returns 0 (woken, possibly spuriously: check again), -EAGAIN (the word differed), -ETIMEDOUT, or
 * -EINTR (a signal; never retried here, so that the caller can run its handlers). errno is kept.
 */
static inline int prs_futex_wait(const volatile void *addr, uint32_t expected, int64_t timeout_ns)
{
#if defined(SYS_futex)
    long ts[2]; /* this system call expects two longs on every ABI */
#else
    int64_t ts[2];
#endif
    const void *timeout = NULL;
    /* unreached by tests (no test): a wait without limit, which the engine never makes */
    if (timeout_ns >= 0) {
        int64_t seconds = timeout_ns / 1000000000;
#if defined(SYS_futex)
        if (sizeof(long) < 8 && seconds > INT_MAX)
            seconds = INT_MAX;
        ts[0] = (long)seconds;
        ts[1] = (long)(timeout_ns % 1000000000);
#else
        ts[0] = seconds;
        ts[1] = timeout_ns % 1000000000;
#endif
        timeout = ts;
    }
    int saved = errno;
    long rc = prs_futex_call_((void *)(uintptr_t)addr, 0 /* FUTEX_WAIT */, expected, timeout);
    int err = rc < 0 ? -errno : 0;
    errno = saved;
    return err;
}

/* Wake at most `count` waiters on `addr` (INT_MAX: all). Returns the number of woken waiters, or -errno. */
static inline int prs_futex_wake(const volatile void *addr, int count)
{
    int saved = errno;
    long rc = prs_futex_call_((void *)(uintptr_t)addr, 1 /* FUTEX_WAKE */, (uint32_t)count, NULL);
    /* unreached by tests (impossible): the word is always mapped and aligned */
    int out = rc < 0 ? -errno : (int)rc;
    errno = saved;
    return out;
}

/* ---- a spinlock for private data: short critical sections, no system call while held ----------- */

/*
 * Use this lock for private memory only, because it does not detect the death of its owner. All zero
 * means unlocked. The lock is neither recursive nor fair. Waiters first pause, then call sched_yield,
 * then sleep briefly, so that an owner that lost its CPU gets it back even from waiters with a higher
 * real-time priority.
 */
typedef struct prs_spin {
    prs_atomic_u32 held;
} prs_spin;

#define PRS_SPIN_INIT {0}

static inline void prs_spin_init(prs_spin *lock)
{
    atomic_init(&lock->held, 0);
}

static inline bool prs_spin_trylock(prs_spin *lock)
{
    /* unreached by tests (race, 2 branches) */
    return prs_load_relaxed(&lock->held) == 0 && prs_exchange_acquire(&lock->held, 1) == 0;
}

/* The slow path is a separate function, so that prs_spin_lock inlines to one exchange and a branch. */
__attribute__((noinline, unused)) static void prs_spin_wait_(prs_spin *lock)
{
    for (unsigned round = 0;; round++) {
        while (prs_load_relaxed(&lock->held) != 0) {
            if (round < 128) {
                prs_pause();
                /* unreached by tests (race): the owner of the lock has lost its CPU */
            } else if (round < 256) {
                sched_yield();
            } else {
                struct timespec nap = {0, 50000};
                nanosleep(&nap, NULL);
            }
            round++;
        }
        /* unreached by tests (race) */
        if (prs_exchange_acquire(&lock->held, 1) == 0)
            return;
    }
}

static inline void prs_spin_lock(prs_spin *lock)
{
    if (__builtin_expect(prs_exchange_acquire(&lock->held, 1) != 0, 0))
        prs_spin_wait_(lock);
}

static inline void prs_spin_unlock(prs_spin *lock)
{
    prs_store_release(&lock->held, 0);
}

#endif /* PRS_ATOMIC_H */
