/*
 * huge.c - backing whole blocks of a shared file that have no page yet, each by one huge page.
 *
 * Purpose    For each block, page faults or a pwrite allocate, clear, charge and map 512 pages one by one. For a huge
 *            page the kernel does each of these steps once, and every reader maps it with one fault.  By default,
 *            systems disable huge pages of shared memory (shmem_enabled "never"), but that only affects page faults:
 *            the kernel still honours an explicit MADV_COLLAPSE.
 * Algorithm  The kernel cannot collapse an empty block, but it can collapse one with a single page, so we create that
 *            page first.  After a successful collapse we populate the block, because some kernels report success but do
 *            nothing.  A counter assigns blocks to the caller and its helpers.  A machine with fragmented memory may
 *            take long to find a huge page, and so may a virtual machine that returns free huge pages to its host (4 to
 *            7 ms per block here, 0.13 ms if it has them; pwrite takes 0.7 to 1.5 ms).  After a slow block this process
 *            avoids huge pages for one second, after the next slow one for two seconds, and so on.  Whether a block is
 *            slow depends on its CPU time, which other threads do not increase; a second limit, in real time, covers
 *            sleeps in the kernel.
 * Guarantee  See huge.h.  A process that dies after creating the page and before the copy leaves unmarked pages.  The
 *            next owner of the range writes to them as to pages that do not exist.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "huge.h"

#include <errno.h>
#include <time.h>

#include "advise.h"
#include "atomic.h"
#include "copy.h"
#include "threads.h"
#include "pages.h"

/* Measured, see docs/internals/copying.md. */
#define WORTH ((size_t)4 << 20) /* minimum bytes per thread */
#define SECOND 1000000000ull
#define PAUSE_MAX (64 * SECOND) /* also the pause if the system refuses the advice or does not know it */

/* See huge.h. */
struct prs_huge_limits prs_huge_limits_ = {.cpu = 1500000, .real = 50000000};

static prs_atomic_u64 resume; /* time before which we make no attempt */
static prs_atomic_u64 paused; /* length of the last pause in ns */
static prs_atomic_u32 worked; /* whether at least one request worked */

void prs_huge_forget_(void)
{
    prs_store_relaxed(&resume, 0);
    prs_store_relaxed(&paused, 0);
    prs_store_relaxed(&worked, 0);
}

static void leave_alone(uint64_t now, int rc)
{
    uint64_t next = 2 * prs_load_relaxed(&paused);
    /* EINVAL can also mean a full file system. */
    /* unreached by tests (other kernel): an emulator that ignores madvise */
    bool never = rc == -EOPNOTSUPP || (rc == -EINVAL && !prs_load_relaxed(&worked));
    next = next < SECOND ? SECOND : next;
    if (never || next > PAUSE_MAX)
        next = PAUSE_MAX;
    prs_store_relaxed(&paused, next);
    prs_store_relaxed(&resume, now + next);
}

typedef struct huge_job {
    char *map;
    const char *src;
    uint64_t blocks;
    prs_atomic_u64 claimed; /* number of blocks handed out */
    prs_atomic_u64 failed;  /* the first block that failed */
    prs_atomic_u32 stop;
} huge_job;

static uint64_t now(clockid_t clock)
{
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int back(char *at)
{
    int rc = prs_advise(at, PRS_PAGE, MADV_POPULATE_WRITE);
    if (rc == 0 && madvise(at, PRS_HUGE, MADV_COLLAPSE) != 0)
        rc = -errno; /* do not retry after EAGAIN: the caller has another method */
    return rc == 0 ? prs_advise(at, PRS_HUGE, MADV_POPULATE_WRITE) : rc;
}

static void note_failed(huge_job *job, uint64_t block)
{
    uint64_t seen = prs_load_relaxed(&job->failed);
    /* unreached by tests (race, 2 branches): two threads are refused at the same time */
    while (block < seen && !prs_cas_weak_relaxed(&job->failed, &seen, block))
        continue;
}

static void *work(void *arg)
{
    huge_job *job = arg;
    uint64_t k;
    while (!prs_load_relaxed(&job->stop) && (k = prs_fetch_add_relaxed(&job->claimed, 1u)) < job->blocks) {
        char *at = job->map + k * PRS_HUGE;
        uint64_t real = now(CLOCK_MONOTONIC), cpu = now(CLOCK_THREAD_CPUTIME_ID);
        int rc = back(at);
        cpu = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
        uint64_t ended = now(CLOCK_MONOTONIC);
        if (rc != 0) {
            note_failed(job, k);
        } else {
            prs_store_relaxed(&worked, 1);
            if (job->src)
                prs_copy_nt(at, job->src + k * PRS_HUGE, PRS_HUGE);
        }
        if (rc != 0 || cpu > prs_huge_limits_.cpu || ended - real > prs_huge_limits_.real) {
            if (prs_exchange_relaxed(&job->stop, 1) == 0) /* one pause, even if several threads found slow blocks */
                leave_alone(ended, rc);
        }
    }
    return NULL;
}

bool prs_huge_blocks(uint64_t off, const char *map, size_t n, size_t *skip, size_t *bytes)
{
    if (n < PRS_HUGE)
        return false;
    uint64_t until = prs_load_relaxed(&resume), time = now(CLOCK_MONOTONIC);
    if (time < until && until - time <= PAUSE_MAX) /* otherwise the clock was set back (process restored) */
        return false;
    *skip = (size_t)(-off & (PRS_HUGE - 1));
    /* unreached by tests (other kernel): huge pages of another size */
    if (!map || (((uintptr_t)map ^ off) & (PRS_HUGE - 1)) != 0 || prs_page_size() != PRS_PAGE)
        return false;
    *bytes = (n - *skip) & ~(size_t)(PRS_HUGE - 1);
    return *bytes != 0;
}

size_t prs_huge_fill(char *map, const char *src, size_t n, unsigned max_threads)
{
    int saved = errno;
    huge_job job = {.map = map, .src = src, .blocks = n / PRS_HUGE};
    atomic_init(&job.claimed, 0);
    atomic_init(&job.failed, job.blocks);
    atomic_init(&job.stop, 0);
    prs_crew crew;
    prs_crew_start(&crew, prs_crew_size(n, WORTH, max_threads) - 1, work, &job);
    work(&job);
    prs_crew_join(&crew);
    errno = saved;
    if (!prs_load_relaxed(&job.stop))
        prs_store_relaxed(&paused, 0);
    uint64_t claimed = prs_load_relaxed(&job.claimed), failed = prs_load_relaxed(&job.failed);
    return (size_t)((claimed < failed ? claimed : failed) * PRS_HUGE);
}
