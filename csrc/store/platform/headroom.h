/*
 * headroom.h - how much memory may be allocated before the kernel kills processes.
 *
 * Purpose    At a cgroup's limit, the kernel sends SIGKILL to a process that backs more shared memory, be it by
 *            pwrite, fallocate or a page fault. So code that is about to back new pages asks here first and
 *            fails with an error.
 * Algorithm  Take the tightest of MemAvailable and, for every memory cgroup from the process's own up to the visible
 *            root (v1, v2 or both mounted), limit - usage + file cache that can be dropped. A margin stays free. A
 *            measurement costs some 50 us, so it serves for 16 MiB of growth and 100 ms.
 * Guarantee  No function here uses the heap or a lock; any thread may call. The margin covers what other processes
 *            allocate between measurement and use. A limit that cannot be read is ignored.
 */
#ifndef PRS_HEADROOM_H
#define PRS_HEADROOM_H

#include <stddef.h>
#include <stdint.h>

#include "atomic.h"

#define PRS_HEADROOM_PATH 1024
#define PRS_HEADROOM_TREES 2 /* at most one v1 and one v2 hierarchy */

/* Growth that one measurement allows, and for how long. */
#define PRS_HEADROOM_BUDGET ((uint64_t)16 << 20)
#define PRS_HEADROOM_FRESH_NS ((uint64_t)100000000)

/* Which limit is or would be hit; sizes in bytes. */
typedef struct prs_headroom_limit {
    char path[256];   /* the cgroup's directory or "/proc/meminfo"; the end of the path if it is longer */
    uint64_t limit;   /* of the cgroup; MemTotal */
    uint64_t usage;   /* of the cgroup; MemTotal - MemAvailable */
    uint64_t free;    /* limit - usage + what can be reclaimed, before the margin */
    uint64_t margin;  /* how much of that is kept free */
    uint64_t pending; /* held by puts in progress in this process */
} prs_headroom_limit;

typedef struct prs_headroom {
    /* Prefix of every path: "" except in tests. Set by prs_headroom_open_at. */
    char root[256];
    struct {
        int version;                  /* 1, 2; 0: absent */
        size_t top;                   /* length of the mount point, the first part of `path` */
        char path[PRS_HEADROOM_PATH]; /* the process's own directory, root included */
    } trees[PRS_HEADROOM_TREES];
    prs_atomic_u64 budget;   /* bytes of growth that need no new measurement */
    prs_atomic_u64 measured; /* when the budget was set, CLOCK_MONOTONIC_COARSE */
    prs_atomic_u64 pending;  /* bytes held and not yet settled */
} prs_headroom;

/*
 * Find the process's cgroups. Returns 0, or -errno when it cannot even read /proc; the struct is usable then, too, and
 * knows no limits. Call it again in a process that has moved to another cgroup (also after fork, if it may have).
 */
int prs_headroom_open(prs_headroom *h);
int prs_headroom_open_at(prs_headroom *h, const char *root);

/* Measure and return the bytes that may be allocated now, margin kept; `which` (may be NULL) gets the tightest
 * limit. */
uint64_t prs_headroom_bytes(prs_headroom *h, prs_headroom_limit *which);

/*
 * Return 0 if `bytes` more may be backed, or -ENOMEM with `why` (may be NULL) set. For small
 * growth.
 */
int prs_headroom_reserve(prs_headroom *h, uint64_t bytes, prs_headroom_limit *why);

/*
 * The same for big growth that takes a while: the bytes count against requests of other threads of this process until
 * prs_headroom_settle has been called for all of them, in one or more calls (their pages are backed by then, or will
 * not be).
 */
int prs_headroom_hold(prs_headroom *h, uint64_t bytes, prs_headroom_limit *why);
void prs_headroom_settle(prs_headroom *h, uint64_t bytes);

/* In a forked child: forget what the parent's threads held. */
void prs_headroom_after_fork(prs_headroom *h);

/* Return 30 % of the smaller of MemTotal and the tightest cgroup limit, in whole pages; 0 when neither is known. */
uint64_t prs_headroom_capacity(prs_headroom *h);
uint64_t prs_default_capacity(void);

#endif /* PRS_HEADROOM_H */
