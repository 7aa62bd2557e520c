/*
 * fill.c - writing bytes to pages of a shared file, by the method that suits their state.
 *
 * Purpose    A put may write to pages that this process has not mapped or the kernel has not allocated.  Then page
 *            tables and page allocation take time in addition to the copy. If two cores share this work well, such a
 *            put takes half the time.
 * Algorithm  Work is cut into pieces at fixed file offsets. For backed pages, any thread processes any
 *            piece. For unbacked pages, only the caller uses pwrite, from the first piece upwards,
 *            because pwrite takes the inode's lock; helpers go from the last piece downwards: they fault pages in,
 *            for which they do not need the inode's lock, and copy. One counter limits the claims to the number of
 *            pieces, so caller and helpers never get the same piece.
 * Guarantee  See fill.h. If a helper cannot populate a piece, it uses pwrite, which either succeeds or
 *            returns the reason.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "fill.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <unistd.h>

#include "advise.h"
#include "copy.h"
#include "threads.h"
#include "huge.h"

/* Measured, see docs/internals/copying.md. The values are multiples of any page size. */
#define PIECE_UNBACKED ((size_t)256 << 10)
#define PIECE_BACKED ((size_t)2 << 20)
#define PIECE_POPULATE ((size_t)2 << 20)

/* Minimum number of bytes per thread; for fewer bytes, creating a helper costs more than it saves. */
#define WORTH_UNBACKED ((size_t)2 << 20)
#define WORTH_BACKED ((size_t)4 << 20)

/* ---- work in pieces ---------------------------------------------------------------------------- */

typedef struct fill_job {
    int fd;
    uint64_t off;
    char *map;
    const char *src;
    size_t n;
    size_t piece; /* in bytes; pieces begin at multiples of this size in the file */
    size_t pieces;
    int advice;
    prs_atomic_u64 claimed;    /* number of pieces handed out */
    prs_atomic_u64 from_back;  /* pieces claimed by helpers, from the last one downwards */
    prs_atomic_u64 failed_end; /* end, in bytes, of the last piece that could not be mapped */
    prs_atomic_u32 error;      /* a positive errno: the first error, which later errors do not replace */
    prs_atomic_u32 caller_cpu; /* the CPU on which the caller wrote its last piece */
} fill_job;

static void job_init(fill_job *job, size_t piece)
{
    job->piece = piece;
    /* unreached by tests (impossible): the caller has returned if there is nothing to fill */
    job->pieces = job->n == 0 ? 0 : (size_t)((job->off + job->n - 1) / piece - job->off / piece) + 1;
    atomic_init(&job->claimed, 0);
    atomic_init(&job->from_back, 0);
    atomic_init(&job->failed_end, 0);
    atomic_init(&job->error, 0);
    atomic_init(&job->caller_cpu, UINT32_MAX - 1);
}

/* Return the number of this thread's CPU without a system call, or a value that matches no CPU if it is unknown. */
static uint32_t this_cpu(void)
{
    int cpu = sched_getcpu();
    /* unreached by tests (other kernel): a kernel that cannot tell the CPU */
    return cpu < 0 ? UINT32_MAX : (uint32_t)cpu;
}

static bool claim(fill_job *job, uint64_t *ticket)
{
    *ticket = prs_fetch_add_relaxed(&job->claimed, 1u);
    return *ticket < job->pieces && prs_load_relaxed(&job->error) == 0;
}

/* Compute piece k as the bytes [from, to) of the job. */
static void bounds(const fill_job *job, uint64_t k, size_t *from, size_t *to)
{
    uint64_t start = (job->off / job->piece + k) * job->piece;
    *from = start > job->off ? (size_t)(start - job->off) : 0;
    uint64_t end = start + job->piece - job->off;
    *to = end < job->n ? (size_t)end : job->n;
}

static void report(fill_job *job, int rc)
{
    uint32_t none = 0;
    if (rc < 0)
        prs_cas_relaxed(&job->error, &none, (uint32_t)-rc);
}

static void write_piece(fill_job *job, size_t from, size_t to)
{
    report(job, prs_copy_to_file(job->fd, job->off + from, job->src + from, to - from, NULL));
}

static void note_unmapped(fill_job *job, uint64_t end)
{
    uint64_t seen = prs_load_relaxed(&job->failed_end);
    /* unreached by tests (race) */
    while (seen < end && !prs_cas_weak_relaxed(&job->failed_end, &seen, end))
        continue;
}

/* ---- unbacked: pwrite upwards, populate and copy downwards ------------------------------------- */

static void *fill_downwards(void *arg)
{
    fill_job *job = arg;
    uint64_t ticket;
    /* Page faults cost more per byte than pwrite, so a helper is worthwhile only on a CPU other than the caller's. */
    while (prs_load_relaxed(&job->caller_cpu) != this_cpu() && claim(job, &ticket)) {
        size_t from, to;
        bounds(job, job->pieces - 1 - prs_fetch_add_relaxed(&job->from_back, 1u), &from, &to);
        if (prs_advise(job->map + from, to - from, job->advice) == 0) {
            prs_copy(job->map + from, job->src + from, to - from);
        } else { /* the kernel is old or the file system is full: the caller continues alone */
            note_unmapped(job, to);
            write_piece(job, from, to);
            return NULL;
        }
    }
    return NULL;
}

static int fill_unbacked(fill_job *job, unsigned max_threads, size_t *mapped_from)
{
    unsigned threads = job->map ? prs_crew_size(job->n, WORTH_UNBACKED, max_threads) : 1;
    *mapped_from = job->n;
    if (threads <= 1)
        return prs_copy_to_file(job->fd, job->off, job->src, job->n, NULL);
    job->advice = MADV_POPULATE_WRITE;
    job_init(job, PIECE_UNBACKED);
    prs_crew crew;
    prs_crew_start(&crew, threads - 1, fill_downwards, job);
    uint64_t ticket;
    for (uint64_t k = 0; claim(job, &ticket); k++) {
        prs_store_relaxed(&job->caller_cpu, this_cpu());
        size_t from, to;
        bounds(job, k, &from, &to);
        write_piece(job, from, to);
    }
    prs_crew_join(&crew);
    uint64_t back = prs_load_relaxed(&job->from_back), failed = prs_load_relaxed(&job->failed_end);
    if (back > 0) {
        size_t from, to;
        bounds(job, job->pieces - back, &from, &to);
        *mapped_from = failed > from ? (size_t)failed : from;
    }
    return -(int)prs_load_relaxed(&job->error);
}

/* ---- backed: map around, then copy ------------------------------------------------------------- */

static void *map_and_copy(void *arg)
{
    fill_job *job = arg;
    uint64_t k;
    while (claim(job, &k)) {
        size_t from, to;
        bounds(job, k, &from, &to);
        if (prs_advise(job->map + from, to - from, job->advice) == 0) {
            /* Another process has filled these pages, so they are not in our cache: bypass it. */
            prs_copy_nt(job->map + from, job->src + from, to - from);
        } else {
            note_unmapped(job, job->n);
            write_piece(job, from, to);
        }
    }
    return NULL;
}

/* The caller and its helpers all run this function. */
static int run_alike(fill_job *job, void *(*work)(void *), size_t piece, size_t worth, unsigned max_threads)
{
    job_init(job, piece);
    prs_crew crew;
    unsigned threads = prs_crew_size(job->n, worth, max_threads);
    prs_crew_start(&crew, threads - 1, work, job);
    work(job);
    prs_crew_join(&crew);
    return -(int)prs_load_relaxed(&job->error);
}

static int fill_backed(fill_job *job, unsigned max_threads, size_t *mapped_from)
{
    *mapped_from = job->n;
    if (!job->map)
        return prs_copy_to_file(job->fd, job->off, job->src, job->n, NULL);
    job->advice = MADV_POPULATE_READ;
    int rc = run_alike(job, map_and_copy, PIECE_BACKED, WORTH_BACKED, max_threads);
    *mapped_from = (size_t)prs_load_relaxed(&job->failed_end);
    return rc;
}

int prs_fill(int fd, uint64_t off, void *map, const void *src, size_t n, enum prs_page_state state,
             unsigned max_threads, size_t *mapped_from)
{
    size_t ignored;
    if (!mapped_from)
        mapped_from = &ignored;
    *mapped_from = n;
    if (off > INT64_MAX || n > INT64_MAX - off)
        return -EFBIG;
    if (map && (((uintptr_t)map ^ off) & (prs_page_size() - 1)) != 0)
        return -EINVAL;
    if (n == 0)
        return 0;
    fill_job job = {.fd = fd, .off = off, .map = map, .src = src, .n = n};
    switch (state) {
    case PRS_PAGES_MAPPED:
        if (map) {
            prs_copy_parallel(map, src, n, max_threads);
            *mapped_from = 0;
            return 0;
        }
        return fill_backed(&job, max_threads, mapped_from);
    case PRS_PAGES_BACKED:
        return fill_backed(&job, max_threads, mapped_from);
    case PRS_PAGES_UNBACKED:
        return fill_unbacked(&job, max_threads, mapped_from);
    }
    return -EINVAL;
}

/* ---- populate ---------------------------------------------------------------------------------- */

static void *populate_pieces(void *arg)
{
    fill_job *job = arg;
    uint64_t k;
    while (claim(job, &k)) {
        size_t from, to;
        bounds(job, k, &from, &to);
        report(job, prs_advise(job->map + from, to - from, job->advice));
    }
    return NULL;
}

int prs_populate(int fd, uint64_t off, void *map, size_t n, enum prs_page_state state, unsigned max_threads)
{
    if (off > INT64_MAX || n > INT64_MAX - off)
        return -EFBIG;
    if (!map || (((uintptr_t)map ^ off) & (prs_page_size() - 1)) != 0)
        return -EINVAL;
    if (n == 0 || state == PRS_PAGES_MAPPED)
        return 0;
    fill_job job = {.fd = fd, .off = off, .map = map, .n = n};
    job.advice = state == PRS_PAGES_BACKED ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;
    if (run_alike(&job, populate_pieces, PIECE_POPULATE, WORTH_UNBACKED, max_threads) == 0)
        return 0;

    /* On a full file system MADV_POPULATE fails with an unspecific EFAULT, and kernels before 5.14 do not have it.
     * fallocate backs the pages or returns the reason; after its success, touching the pages is safe. */
    int saved = errno, rc = 0;
    /* unreached by tests (no test, 2 branches): a kernel that does not populate, under a file size limit */
    if (n > prs_file_limit() || off > prs_file_limit() - n)
        return -EFBIG;
    while (fallocate(fd, 0, (off_t)off, (off_t)n) != 0) {
        /* unreached by tests (no injected fault): fallocate interrupted */
        if (errno != EINTR) {
            rc = -errno;
            break;
        }
    }
    errno = saved;
    if (rc != 0)
        return rc;
    uintptr_t page = prs_page_size();
    for (volatile char *at = job.map - ((uintptr_t)job.map & (page - 1)); at < job.map + n; at += page)
        (void)*at;
    return 0;
}

/* ---- areas: ranges of mixed states ------------------------------------------------------------- */

static bool area_holds(const prs_area *area, uint64_t off, size_t n)
{
    uint64_t bytes = area->backed.count << PRS_PAGE_SHIFT;
    return off <= bytes && n <= bytes - off;
}

uint64_t prs_area_missing(const prs_area *area, uint64_t off, size_t n)
{
    if (!area_holds(area, off, n))
        return 0;
    uint64_t first = prs_pages_first(off), pages = prs_pages_end(off, n) - first;
    return (pages - prs_pages_count(area->backed, first, pages)) << PRS_PAGE_SHIFT;
}

/* Return the state of `page`; *run_end gets the end of the run of pages in that state, at most `end`. */
static enum prs_page_state run_state(const prs_area *area, uint64_t page, uint64_t end, uint64_t *run_end)
{
    if (!prs_pages_test(area->backed, page)) {
        *run_end = prs_pages_next_set(area->backed, page, end);
        return PRS_PAGES_UNBACKED;
    }
    uint64_t backed_end = prs_pages_next_clear(area->backed, page, end);
    /* unreached by tests (no test): a mapping without a bitmap */
    if (!area->map || !area->mapped.words) {
        *run_end = backed_end;
        return PRS_PAGES_BACKED;
    }
    if (!prs_pages_test(area->mapped, page)) {
        *run_end = prs_pages_next_set(area->mapped, page, backed_end);
        return PRS_PAGES_BACKED;
    }
    *run_end = prs_pages_next_clear(area->mapped, page, backed_end);
    return PRS_PAGES_MAPPED;
}

/* Punch the whole pages of a run that failed, whose bits we have not set. */
static void punch_failed(const prs_area *area, uint64_t off, uint64_t end)
{
    uint64_t from = (off + PRS_PAGE - 1) & ~(PRS_PAGE - 1), to = end & ~(PRS_PAGE - 1);
    int saved = errno;
    /* unreached by tests (no test): the failed range has no whole page */
    if (from < to) /* best effort: only the first error matters */
        (void)fallocate(area->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(area->base + from),
                        (off_t)(to - from));
    errno = saved;
}

static void mark_mapped(const prs_area *area, uint64_t from, uint64_t to)
{
    if (area->mapped.words && from < to) {
        uint64_t first = prs_pages_first(from);
        prs_pages_set(area->mapped, first, prs_pages_end(from, to - from) - first);
    }
}

/* Fill [off, off + n), whose pages are all in `state`. If src is NULL, only populate them. */
static int fill_alike(const prs_area *area, uint64_t off, const char *src, size_t n, enum prs_page_state state,
                      unsigned max_threads)
{
    char *map = area->map ? area->map + off : NULL;
    size_t mapped_from = 0;
    int rc = src ? prs_fill(area->fd, area->base + off, map, src, n, state, max_threads, &mapped_from)
                 : prs_populate(area->fd, area->base + off, map, n, state, max_threads);
    if (rc == 0 && state != PRS_PAGES_MAPPED)
        mark_mapped(area, off + mapped_from, off + n);
    return rc;
}

/* The same as fill_run for unbacked pages, but back whole blocks by huge pages if the kernel has them. */
static int fill_fresh(const prs_area *area, uint64_t off, const char *src, size_t n, unsigned max_threads)
{
    uint64_t at = area->base + off, limit = n < PRS_HUGE ? 0 : prs_file_limit();
    size_t skip, huge = 0;
    if (area->map && n >= PRS_HUGE && at <= limit && n <= limit - at &&
        prs_huge_blocks(at, area->map + off, n, &skip, &huge)) {
        huge = prs_huge_fill(area->map + off + skip, src ? src + skip : NULL, huge, max_threads);
        mark_mapped(area, off + skip, off + skip + huge);
    }
    if (huge == 0)
        return fill_alike(area, off, src, n, PRS_PAGES_UNBACKED, max_threads);
    int rc = skip ? fill_alike(area, off, src, skip, PRS_PAGES_UNBACKED, max_threads) : 0;
    size_t rest = skip + huge;
    if (rc == 0 && rest < n)
        /* unreached by tests (no test): populating without writing, with pages after the last whole block */
        rc = fill_alike(area, off + rest, src ? src + rest : NULL, n - rest, PRS_PAGES_UNBACKED, max_threads);
    return rc;
}

static int area_walk(const prs_area *area, uint64_t off, const char *src, size_t n, unsigned max_threads,
                     uint64_t *grown)
{
    uint64_t ignored;
    if (!grown)
        grown = &ignored;
    *grown = 0;
    if (!area_holds(area, off, n))
        return -EFAULT;
    uint64_t last = off + n, page_end = prs_pages_end(off, n);
    for (uint64_t page = prs_pages_first(off), run_end; page < page_end; page = run_end) {
        enum prs_page_state state = run_state(area, page, page_end, &run_end);
        /* unreached by tests (race): bits change while we walk over them */
        if (run_end <= page) /* the bits have changed meanwhile: advance by one page */
            run_end = page + 1;
        uint64_t from = page << PRS_PAGE_SHIFT, to = run_end << PRS_PAGE_SHIFT;
        from = from < off ? off : from;
        to = to > last ? last : to;
        size_t len = (size_t)(to - from);
        const char *bytes = src ? src + (from - off) : NULL;
        if (state != PRS_PAGES_UNBACKED) {
            int rc = fill_alike(area, from, bytes, len, state, max_threads);
            if (rc != 0)
                return rc;
            continue;
        }
        int rc = fill_fresh(area, from, bytes, len, max_threads);
        if (rc != 0) {
            if (area->mapped.words)
                prs_pages_clear(area->mapped, page, run_end - page);
            if (src) /* whole pages that we only populate may belong to other processes, which may be using them */
                punch_failed(area, from, to);
            return rc;
        }
        *grown += prs_pages_set(area->backed, page, run_end - page) << PRS_PAGE_SHIFT;
    }
    return 0;
}

int prs_area_fill(const prs_area *area, uint64_t off, const void *src, size_t n, unsigned max_threads, uint64_t *grown)
{
    if (!src && n)
        return -EINVAL;
    return area_walk(area, off, n ? src : "", n, max_threads, grown);
}

int prs_area_populate(const prs_area *area, uint64_t off, size_t n, unsigned max_threads, uint64_t *grown)
{
    return area_walk(area, off, NULL, n, max_threads, grown);
}

int prs_area_punch(const prs_area *area, uint64_t off, size_t n, uint64_t *shrunk)
{
    if (shrunk)
        *shrunk = 0;
    if (!area_holds(area, off, n))
        return -EFAULT;
    uint64_t from = (off + PRS_PAGE - 1) & ~(PRS_PAGE - 1), to = (off + n) & ~(PRS_PAGE - 1);
    if (from >= to)
        return 0;
    /* Clear the bits before punching, because a marked page must be backed. */
    uint64_t first = from >> PRS_PAGE_SHIFT, pages = (to - from) >> PRS_PAGE_SHIFT;
    uint64_t cleared = prs_pages_clear(area->backed, first, pages);
    /* unreached by tests (no test): an area without a bitmap returns pages */
    if (area->mapped.words)
        prs_pages_clear(area->mapped, first, pages);
    int saved = errno, rc = 0;
    /* unreached by tests (failing call) */
    while (fallocate(area->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(area->base + from),
                     (off_t)(to - from)) != 0) {
        /* unreached by tests (failing call) */
        /* unreached by tests (no injected fault): fallocate interrupted */
        if (errno != EINTR) {
            rc = -errno;
            break;
        }
    }
    errno = saved;
    if (shrunk)
        *shrunk = cleared << PRS_PAGE_SHIFT;
    return rc;
}
