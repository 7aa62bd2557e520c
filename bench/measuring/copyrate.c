/*
 * copyrate.c - the fastest known copies, written separately from the store's code, as a reference for it.
 *
 * The copies use plain memcpy or non-temporal stores, in one thread or in several threads with equal shares.
 * copyrate.py compiles this file on demand; it is not part of the package.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { MOST_THREADS = 64 };

struct part {
    char *dst;
    const char *src;
    size_t n;
    int streaming;
};

#if defined(__x86_64__)
__attribute__((target("avx"))) static void stream(char *dst, const char *src, size_t n)
{
    size_t head = -(uintptr_t)dst & 31;
    if (head > n)
        head = n;
    memcpy(dst, src, head);
    dst += head, src += head, n -= head;
    for (; n >= 128; dst += 128, src += 128, n -= 128) {
        __m256i a = _mm256_loadu_si256((const __m256i *)src);
        __m256i b = _mm256_loadu_si256((const __m256i *)(src + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(src + 64));
        __m256i d = _mm256_loadu_si256((const __m256i *)(src + 96));
        _mm256_stream_si256((__m256i *)dst, a);
        _mm256_stream_si256((__m256i *)(dst + 32), b);
        _mm256_stream_si256((__m256i *)(dst + 64), c);
        _mm256_stream_si256((__m256i *)(dst + 96), d);
    }
    _mm_sfence();
    memcpy(dst, src, n);
}

int copyrate_can_stream(void)
{
    return __builtin_cpu_supports("avx") != 0;
}
#else
static void stream(char *dst, const char *src, size_t n)
{
    memcpy(dst, src, n);
}

int copyrate_can_stream(void)
{
    return 0;
}
#endif

static void *work(void *arg)
{
    const struct part *part = arg;
    if (part->streaming)
        stream(part->dst, part->src, part->n);
    else
        memcpy(part->dst, part->src, part->n);
    return NULL;
}

/* Returns 0, or an errno value if a thread cannot be started. */
int copyrate_copy(void *dst, const void *src, size_t n, int streaming, int threads)
{
    pthread_t thread[MOST_THREADS];
    struct part part[MOST_THREADS];
    int made = 0, status = 0;
    if (threads < 1)
        threads = 1;
    if (threads > MOST_THREADS)
        threads = MOST_THREADS;
    size_t each = n / (size_t)threads & ~(size_t)4095;
    for (int i = 0; i < threads; i++) {
        size_t at = each * (size_t)i;
        part[i] = (struct part){(char *)dst + at, (const char *)src + at, i == threads - 1 ? n - at : each, streaming};
    }
    for (int i = 1; i < threads && !status; i++) {
        status = pthread_create(&thread[i], NULL, work, &part[i]);
        made += !status;
    }
    if (!status)
        work(&part[0]);
    for (int i = 1; i <= made; i++)
        pthread_join(thread[i], NULL);
    return status;
}
