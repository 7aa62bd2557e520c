/*
 * headroom.h - how much memory may be allocated before the kernel kills processes.
 *
 * Purpose    At a cgroup's limit, the kernel sends SIGKILL to a process that backs more shared memory, be it by
 *            pwrite, fallocate or a page fault. So code that is about to back new pages must reserve the bytes here
 *            first. Without enough room, the reservation fails with an error.
 * Algorithm  Take the minimum of MemAvailable and of (limit - usage + file cache that can be dropped) of every
 *            memory cgroup from the process's own up to the visible root (v1, v2 or both mounted). A margin is kept
 *            free. A measurement takes some 50 us, so we use its result for up to 16 MiB of growth and 100 ms.
 * Guarantee  The functions use neither the heap nor locks, and may be called from any thread. The margin covers what
 *            other processes allocate between measurement and use. A limit that cannot be read is ignored.
 */
#ifndef PRS_HEADROOM_H
#define PRS_HEADROOM_H

#include <stddef.h>
#include <stdint.h>

#include "atomic.h"

#define PRS_HEADROOM_PATH 1024
#define PRS_HEADROOM_TREES 2 /* at most one v1 and one v2 hierarchy */

/* The growth in bytes, and the time, for which one measurement is used. */
#define PRS_HEADROOM_BUDGET ((uint64_t)16 << 20)
#define PRS_HEADROOM_FRESH_NS ((uint64_t)100000000)

/* The limit that has been or would be reached; sizes are in bytes. */
typedef struct prs_headroom_limit {
    char path[256];   /* the cgroup's directory or "/proc/meminfo"; the end of the path if it is longer */
    uint64_t limit;   /* limit of the cgroup, or MemTotal */
    uint64_t usage;   /* usage of the cgroup, or MemTotal - MemAvailable */
    uint64_t free;    /* limit - usage + what can be reclaimed, before the margin */
    uint64_t margin;  /* the part of `available` that we keep free */
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
    prs_atomic_u64 measured; /* time at which the budget was set, CLOCK_MONOTONIC_COARSE */
    prs_atomic_u64 pending;  /* bytes held and not yet settled */
} prs_headroom;

/*
 * Find the process's cgroups. Returns 0, or -errno if /proc cannot be read; the struct can be used in that case, too,
 * but contains no limits. Call it again in a process that has, or a forked child that may have, moved to another
 * cgroup.
 */
int prs_headroom_open(prs_headroom *h);
int prs_headroom_open_at(prs_headroom *h, const char *root);

/* Measure and return the number of bytes that may be allocated now without using the margin; `which` (may be
 * NULL) gets the tightest limit. */
uint64_t prs_headroom_bytes(prs_headroom *h, prs_headroom_limit *which);

/*
 * Return 0 if `bytes` more bytes may be backed, or -ENOMEM after setting `why` (may be NULL). Use this for small
 * growth.
 */
int prs_headroom_reserve(prs_headroom *h, uint64_t bytes, prs_headroom_limit *why);

/*
 * Do the same for large growth that takes a while. The bytes stay reserved against requests of other threads of this
 * process until the caller settles them. After the pages were backed, or backing them failed, call
 * prs_headroom_settle for all these bytes, in one or more calls.
 */
int prs_headroom_hold(prs_headroom *h, uint64_t bytes, prs_headroom_limit *why);
void prs_headroom_settle(prs_headroom *h, uint64_t bytes);

/* In a forked child: reset the bytes that the parent's threads have reserved. */
void prs_headroom_after_fork(prs_headroom *h);

/* Return 30 % of MemTotal or of the tightest cgroup limit, whichever is smaller, in whole pages; return 0 if neither is
 * known. */
uint64_t prs_headroom_capacity(prs_headroom *h);
uint64_t prs_default_capacity(void);

#endif /* PRS_HEADROOM_H */
