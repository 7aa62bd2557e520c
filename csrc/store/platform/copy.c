/*
 * copy.c - contiguous copies into shared memory.
 *
 * Purpose    A put copies its bytes once, as fast as the memory allows.
 * Algorithm  Small copies use the C library's memcpy, which leaves the data in the cache for a reader nearby.
 *            Big copies use non-temporal stores (AVX2, else SSE2), which save reading each line before
 *            writing it. Even bigger copies are cut into pieces. An atomic counter assigns the pieces to the caller
 *            and its helpers, so that a helper without a CPU delays only one piece.
 * Guarantee  When the call returns, dst contains the bytes of src, visible to every thread that synchronizes
 *            with the caller: each thread that used non-temporal stores executes a fence.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "copy.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "atomic.h"
#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* ---- non-temporal kernels ---------------------------------------------------------------------- */

#if defined(__x86_64__)

/* Both kernels require that dst is aligned to 64 and n is a multiple of 128; src may have any alignment. */

__attribute__((target("avx2"))) static void stream_avx2(char *dst, const char *src, size_t n)
{
    for (size_t i = 0; i < n; i += 128) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)(src + i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(src + i + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(const void *)(src + i + 64));
        __m256i d = _mm256_loadu_si256((const __m256i *)(const void *)(src + i + 96));
        _mm256_stream_si256((__m256i *)(void *)(dst + i), a);
        _mm256_stream_si256((__m256i *)(void *)(dst + i + 32), b);
        _mm256_stream_si256((__m256i *)(void *)(dst + i + 64), c);
        _mm256_stream_si256((__m256i *)(void *)(dst + i + 96), d);
    }
}

static void stream_sse2(char *dst, const char *src, size_t n)
{
    for (size_t i = 0; i < n; i += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(src + i));
        __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(src + i + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(src + i + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(const void *)(src + i + 48));
        _mm_stream_si128((__m128i *)(void *)(dst + i), a);
        _mm_stream_si128((__m128i *)(void *)(dst + i + 16), b);
        _mm_stream_si128((__m128i *)(void *)(dst + i + 32), c);
        _mm_stream_si128((__m128i *)(void *)(dst + i + 48), d);
    }
}

/* This is for tests, which must use the SSE2 kernel even on a machine with AVX2. */
int prs_copy_use_avx2_ = 1;

void prs_copy_nt(void *dst_, const void *src_, size_t n)
{
    char *dst = dst_;
    const char *src = src_;
    if (n < 4096) {
        memcpy(dst, src, n);
        return;
    }
    size_t head = (size_t)(-(uintptr_t)dst & 63);
    memcpy(dst, src, head);
    dst += head;
    src += head;
    n -= head;
    size_t body = n & ~(size_t)127;
    /* unreached by tests (other kernel): a processor without AVX2; a switch tests the other kernel */
    if (prs_copy_use_avx2_ && __builtin_cpu_supports("avx2"))
        stream_avx2(dst, src, body);
    else
        stream_sse2(dst, src, body);
    memcpy(dst + body, src + body, n - body);
    _mm_sfence();
}

#else

/* On other architectures the C library's memcpy is the fastest known kernel; it uses non-temporal stores itself where
 * they help. */
void prs_copy_nt(void *dst, const void *src, size_t n)
{
    memcpy(dst, src, n);
}

#endif

void prs_copy(void *dst, const void *src, size_t n)
{
    if (n < PRS_COPY_NT_MIN) {
        if (n) /* memcpy(NULL, NULL, 0) is undefined */
            memcpy(dst, src, n);
    } else {
        prs_copy_nt(dst, src, n);
    }
}

/* ---- several threads --------------------------------------------------------------------------- */

#define PIECE ((size_t)1 << 20)

typedef struct parallel_copy {
    char *dst;
    const char *src;
    size_t n;
    size_t pieces;
    prs_atomic_u64 next;
} parallel_copy;

static void *copy_pieces(void *arg)
{
    parallel_copy *job = arg;
    for (;;) {
        uint64_t i = prs_fetch_add_relaxed(&job->next, 1u);
        if (i >= job->pieces)
            return NULL;
        size_t from = (size_t)i * PIECE;
        size_t len = job->n - from < PIECE ? job->n - from : PIECE;
        prs_copy_nt(job->dst + from, job->src + from, len);
    }
}

void prs_copy_parallel(void *dst, const void *src, size_t n, unsigned max_threads)
{
    unsigned threads = n < PRS_COPY_PARALLEL_MIN ? 1 : prs_crew_size(n, PRS_COPY_PARALLEL_MIN / 2, max_threads);
    if (threads <= 1) {
        prs_copy(dst, src, n);
        return;
    }
    parallel_copy job = {.dst = dst, .src = src, .n = n, .pieces = n / PIECE + (n % PIECE != 0)};
    atomic_init(&job.next, 0);
    prs_crew crew;
    prs_crew_start(&crew, threads - 1, copy_pieces, &job);
    copy_pieces(&job);
    prs_crew_join(&crew);
}

/* ---- into a file ------------------------------------------------------------------------------- */

uint64_t prs_file_limit(void)
{
    struct rlimit limit;
    /* unreached by tests (no injected fault): getrlimit */
    return getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < INT64_MAX ? limit.rlim_cur : INT64_MAX;
}

int prs_copy_to_file(int fd, uint64_t offset, const void *src_, size_t n, size_t *written)
{
    const char *src = src_;
    int saved = errno, rc = 0;
    size_t done = 0;
    uint64_t limit = prs_file_limit();
    if (offset > INT64_MAX || n > INT64_MAX - offset)
        rc = -EFBIG;
    bool beyond = rc == 0 && offset + n > limit;
    if (beyond) /* write up to the limit */
        n = offset < limit ? limit - offset : 0;
    while (rc == 0 && done < n) {
        ssize_t got = pwrite(fd, src + done, n - done, (off_t)(offset + done));
        if (got > 0)
            done += (size_t)got;
        /* unreached by tests (other kernel): a file system that writes nothing and reports no error */
        else if (got == 0)
            rc = -ENOSPC; /* the file system writes nothing and reports no error */
        else if (errno != EINTR)
            rc = -errno;
    }
    if (rc == 0 && beyond)
        rc = -EFBIG;
    if (written)
        *written = done;
    errno = saved;
    return rc;
}
