/*
 * copy_strided.c - copying strided arrays once, into contiguous C order.
 *
 * Purpose    `put(a[::2])` gathers directly into the store, without an intermediate array.
 * Algorithm  Normalize the array (drop extents of 1, merge dimensions that are contiguous to each
 *            other, turn a contiguous innermost dimension into one bigger item), then iterate over the
 *            index tuples of the outer dimensions, with a tight loop over the innermost one. Where
 *            another dimension has a smaller stride than the innermost (transposed arrays), loop over
 *            both in tiles, so that each source line is fully used while it is in the cache.
 * Guarantee  The functions read only the elements of the array, write as many bytes as these elements have, and need
 *            no alignment. They refuse sizes that overflow, before they copy anything.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "copy.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "atomic.h"
#include "threads.h"

/* Columns are the source lines that a tile uses at the same time. There are so few of them that they stay in the
 * second-level cache even if the stride maps all of them to one set. Measured, see docs/internals/copying.md. */
#define TILE_COLS 16
#define TILE_ROWS 64

/* Items larger than this are not tiled: each one already uses most of a cache line. */
#define TILE_ITEM_MAX 32

/* Copy contiguous runs of at least this size with stores that bypass the cache. */
#define STREAM_ITEM_MIN ((size_t)8 << 10)

#define PIECE_BYTES ((size_t)512 << 10)

typedef struct strided {
    int ndim;
    size_t item;                             /* bytes copied per innermost step */
    size_t total;                            /* bytes written */
    size_t shape[PRS_STRIDED_MAX_DIMS];      /* all >= 2 */
    ptrdiff_t strides[PRS_STRIDED_MAX_DIMS]; /* strides of the source */
    size_t out[PRS_STRIDED_MAX_DIMS];        /* strides of the destination */
} strided;

static int normalize(strided *a, int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides, size_t itemsize)
{
    if (ndim < 0 || ndim > PRS_STRIDED_MAX_DIMS)
        return -EINVAL;
    bool empty = itemsize == 0;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0)
            return -EINVAL;
        empty |= shape[i] == 0;
    }
    a->ndim = 0;
    a->item = itemsize;
    a->total = 0;
    if (empty)
        return 0;
    size_t total = itemsize;
    for (int i = 0; i < ndim; i++) {
        if (__builtin_mul_overflow(total, (size_t)shape[i], &total) || total > PTRDIFF_MAX)
            return -EINVAL;
        if (shape[i] == 1)
            continue;
        ptrdiff_t span;
        /* unreached by tests (no test): a stride larger than any memory */
        if (a->ndim > 0 && !__builtin_mul_overflow(shape[i], strides[i], &span) && a->strides[a->ndim - 1] == span) {
            a->shape[a->ndim - 1] *= (size_t)shape[i];
            a->strides[a->ndim - 1] = strides[i];
        } else {
            a->shape[a->ndim] = (size_t)shape[i];
            a->strides[a->ndim] = strides[i];
            a->ndim++;
        }
    }
    a->total = total;
    if (a->ndim > 0 && a->strides[a->ndim - 1] == (ptrdiff_t)itemsize) {
        a->ndim--;
        a->item = itemsize * a->shape[a->ndim];
    }
    size_t out = a->item;
    for (int i = a->ndim - 1; i >= 0; i--) {
        a->out[i] = out;
        out *= a->shape[i];
    }
    return 0;
}

/* ---- one row ----------------------------------------------------------------------------------- */

/* The compiler turns a memcpy of constant size into one unaligned load and store. */
#define ROW_LOOP(size)               \
    for (size_t i = 0; i < n; i++) { \
        memcpy(dst, src, (size));    \
        dst += (size);               \
        src += stride;               \
    }

static void copy_row(char *dst, const char *src, size_t n, ptrdiff_t stride, size_t item)
{
    switch (item) {
    case 1:
        ROW_LOOP(1) break;
    case 2:
        ROW_LOOP(2) break;
    case 4:
        ROW_LOOP(4) break;
    case 8:
        ROW_LOOP(8) break;
    case 16:
        ROW_LOOP(16) break;
    default:
        if (item < STREAM_ITEM_MIN) {
            ROW_LOOP(item)
        } else { /* these are rows of a big matrix: as in every big copy, do not read the lines that we overwrite */
            for (size_t i = 0; i < n; i++, dst += item, src += stride)
                prs_copy_nt(dst, src, item);
        }
    }
}

/* ---- tiles over two dimensions ----------------------------------------------------------------- */

/* Rows run along dimension p (small source stride), columns along the last dimension (big source stride). */
static void copy_tiles(char *dst, const char *src, const strided *a, int p)
{
    int last = a->ndim - 1;
    size_t rows = a->shape[p], cols = a->shape[last];
    ptrdiff_t row_stride = a->strides[p], col_stride = a->strides[last];
    for (size_t i0 = 0; i0 < rows; i0 += TILE_ROWS) {
        size_t i1 = rows - i0 < TILE_ROWS ? rows : i0 + TILE_ROWS;
        for (size_t j0 = 0; j0 < cols; j0 += TILE_COLS) {
            size_t width = cols - j0 < TILE_COLS ? cols - j0 : TILE_COLS;
            for (size_t i = i0; i < i1; i++)
                copy_row(dst + i * a->out[p] + j0 * a->item,
                         src + (ptrdiff_t)i * row_stride + (ptrdiff_t)j0 * col_stride, width, col_stride, a->item);
        }
    }
}

static size_t magnitude(ptrdiff_t stride)
{
    return stride < 0 ? (size_t)0 - (size_t)stride : (size_t)stride;
}

/* Return the dimension with the smallest source stride, or -1 if that is the last one. */
static int tile_partner(const strided *a)
{
    int best = -1;
    if (a->ndim < 2 || a->item > TILE_ITEM_MAX)
        return -1;
    size_t least = magnitude(a->strides[a->ndim - 1]);
    for (int i = 0; i < a->ndim - 1; i++) {
        size_t m = magnitude(a->strides[i]);
        if (m != 0 && m < least) {
            best = i;
            least = m;
        }
    }
    return best;
}

static void gather(char *dst, const char *src, const strided *a)
{
    if (a->total == 0)
        return;
    if (a->ndim == 0) {
        prs_copy(dst, src, a->item);
        return;
    }
    int last = a->ndim - 1, p = tile_partner(a);
    size_t at[PRS_STRIDED_MAX_DIMS] = {0};
    for (;;) {
        if (p >= 0)
            copy_tiles(dst, src, a, p);
        else
            copy_row(dst, src, a->shape[last], a->strides[last], a->item);
        int d = last - 1;
        for (; d >= 0; d--) { /* indices of the outer dimensions only */
            if (d == p)
                continue;
            src += a->strides[d];
            dst += a->out[d];
            if (++at[d] < a->shape[d])
                break;
            src -= (ptrdiff_t)a->shape[d] * a->strides[d];
            dst -= a->shape[d] * a->out[d];
            at[d] = 0;
        }
        if (d < 0)
            return;
    }
}

int prs_copy_strided(void *dst, const void *src, int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides,
                     size_t itemsize)
{
    strided a;
    int rc = normalize(&a, ndim, shape, strides, itemsize);
    if (rc == 0)
        gather(dst, src, &a);
    return rc;
}

/* ---- several threads --------------------------------------------------------------------------- */

typedef struct parallel_gather {
    const strided *a;
    char *dst;
    const char *src;
    int dim;     /* the dimension to split */
    size_t step; /* extent of that dimension in one piece */
    prs_atomic_u64 next;
} parallel_gather;

static void *gather_pieces(void *arg)
{
    parallel_gather *job = arg;
    size_t extent = job->a->shape[job->dim];
    for (;;) {
        uint64_t i = prs_fetch_add_relaxed(&job->next, 1u);
        if (i > extent / job->step || i * job->step >= extent)
            return NULL;
        size_t from = (size_t)i * job->step;
        strided part = *job->a;
        part.shape[job->dim] = extent - from < job->step ? extent - from : job->step;
        gather(job->dst + from * part.out[job->dim], job->src + (ptrdiff_t)from * part.strides[job->dim], &part);
    }
}

int prs_copy_strided_parallel(void *dst, const void *src, int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides,
                              size_t itemsize, unsigned max_threads)
{
    strided a;
    int rc = normalize(&a, ndim, shape, strides, itemsize);
    if (rc != 0 || a.total == 0)
        return rc;
    if (a.ndim == 0) {
        prs_copy_parallel(dst, src, a.item, max_threads);
        return 0;
    }
    /* Gathering is slower than copying, so threads are worthwhile even for smaller sizes. */
    unsigned threads = prs_crew_size(a.total, (size_t)2 << 20, max_threads);
    int dim = 0;
    for (int i = 1; i < a.ndim && a.shape[dim] < 16 * (size_t)threads; i++)
        if (a.shape[i] > a.shape[dim])
            dim = i;
    /* unreached by tests (other kernel): more CPUs than rows */
    if (threads <= 1 || a.shape[dim] < threads) {
        gather(dst, src, &a);
        return 0;
    }
    size_t pieces = a.total / PIECE_BYTES;
    /* unreached by tests (impossible): a thread copies at least 2 MiB */
    if (pieces < threads)
        pieces = threads;
    size_t step = a.shape[dim] / pieces;
    parallel_gather job = {.a = &a, .dst = dst, .src = src, .dim = dim, .step = step ? step : 1};
    atomic_init(&job.next, 0);
    prs_crew crew;
    prs_crew_start(&crew, threads - 1, gather_pieces, &job);
    gather_pieces(&job);
    prs_crew_join(&crew);
    return 0;
}
