/*
 * copy_bench.c - measures copies into shared memory for each state of the pages and each way to copy.
 *
 *     cc -std=gnu11 -O2 -pthread -Icsrc/store/platform bench/c/copy_bench.c csrc/store/platform/copy.c csrc/store/platform/threads.c \
 *        csrc/store/platform/fill.c csrc/store/platform/copy_strided.c csrc/store/platform/pages.c -o copy_bench
 *     ./copy_bench [fill|reuse|cross|gather] [MB] [rounds]
 *
 * Every round runs every candidate once, in rotating order. The output is the medians of the rounds
 * and of the ratios within each round. Other load on the machine then affects all candidates alike.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "copy.h"
#include "threads.h"
#include "fill.h"

enum { MAX_ROUNDS = 101, MAX_WAYS = 12 };

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static void need(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *v, int n)
{
    double sorted[MAX_ROUNDS];
    memcpy(sorted, v, (size_t)n * sizeof *v);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    return sorted[n / 2];
}

/* ---- ways to copy -------------------------------------------------------------------------------- */

typedef struct place {
    int fd;
    char *map;
    const char *src;
    size_t n;
    enum prs_page_state state;
} place;

static void way_memcpy(const place *p)
{
    memcpy(p->map, p->src, p->n);
}

static void way_nt(const place *p)
{
    prs_copy_nt(p->map, p->src, p->n);
}

static void way_pwrite(const place *p)
{
    need(prs_copy_to_file(p->fd, 0, p->src, p->n, NULL) == 0, "pwrite");
}

static void way_populate(const place *p)
{
    need(madvise(p->map, p->n, 23 /* MADV_POPULATE_WRITE */) == 0, "populate");
    prs_copy_nt(p->map, p->src, p->n);
}

static void *run_half(void *arg)
{
    void **job = arg;
    ((void (*)(const place *))job[0])(job[1]);
    return NULL;
}

/* Run `way` on two threads, each with half of the bytes. */
static void on_two(void (*way)(const place *), const place *p)
{
    size_t half = p->n / 2 & ~(size_t)4095;
    place low = *p, high = *p;
    low.n = half;
    high.n -= half;
    high.map += half;
    high.src += half;
    void *job[] = {(void *)way, &high};
    prs_crew crew;
    prs_crew_start(&crew, 1, run_half, job);
    way(&low);
    prs_crew_join(&crew);
}

static void way_nt_2(const place *p)
{
    on_two(way_nt, p);
}

static void way_populate_2(const place *p)
{
    on_two(way_populate, p);
}

static void way_fill(const place *p)
{
    need(prs_fill(p->fd, 0, p->map, p->src, p->n, p->state, 0, NULL) == 0, "prs_fill");
}

static void way_fill_1(const place *p)
{
    need(prs_fill(p->fd, 0, p->map, p->src, p->n, p->state, 1, NULL) == 0, "prs_fill");
}

typedef struct way {
    const char *name;
    void (*run)(const place *);
    unsigned states; /* one bit for each page state in which the candidate is measured */
    bool base;       /* prs_fill must not be slower than this candidate */
} way;

#define WARM 1u
#define SECOND 2u
#define COLD 4u
static const way WAYS[] = {
    {"memcpy into the mapping", way_memcpy, WARM | SECOND | COLD, true},
    {"non-temporal, 1 thread", way_nt, WARM, true},
    {"non-temporal, 2 threads", way_nt_2, WARM, true},
    {"pwrite", way_pwrite, WARM | SECOND | COLD, true},
    {"populate + non-temporal", way_populate, SECOND | COLD, true},
    {"the same, 2 threads", way_populate_2, SECOND | COLD, false},
    {"prs_fill, 1 thread", way_fill_1, WARM | SECOND | COLD, false},
    {"prs_fill", way_fill, WARM | SECOND | COLD, false},
};
enum { N_WAYS = sizeof WAYS / sizeof *WAYS };
static const char *const STATES[] = {"warm", "second-hand", "cold"};

static char *source(size_t n)
{
    char *src = malloc(n);
    need(src != NULL, "malloc");
    for (size_t i = 0; i < n; i += 8)
        memcpy(src + i, &i, n - i < 8 ? n - i : 8);
    return src;
}

static place prepare(const char *src, size_t n, enum prs_page_state state)
{
    place p = {.fd = memfd_create("bench", MFD_CLOEXEC), .src = src, .n = n, .state = state};
    need(p.fd >= 0 && ftruncate(p.fd, (off_t)n) == 0, "memfd");
    if (state == PRS_PAGES_BACKED)
        way_pwrite(&p);
    p.map = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, p.fd, 0);
    need(p.map != MAP_FAILED, "mmap");
    if (state == PRS_PAGES_MAPPED)
        memset(p.map, 1, n);
    return p;
}

static void drop(place *p)
{
    need(memcmp(p->map + p->n - 64, p->src + p->n - 64, 64) == 0, "contents differ");
    munmap(p->map, p->n);
    close(p->fd);
}

static void bench_fill(size_t n, int rounds)
{
    char *src = source(n);
    static double rate[3][MAX_WAYS][MAX_ROUNDS];
    for (int r = 0; r < rounds; r++)
        for (int s = 0; s < 3; s++) {
            place warm = {0};
            if (s == PRS_PAGES_MAPPED)
                warm = prepare(src, n, PRS_PAGES_MAPPED);
            for (int i = 0; i < N_WAYS; i++) {
                int w = (i + r) % N_WAYS;
                if (!(WAYS[w].states >> s & 1))
                    continue;
                place p = s == PRS_PAGES_MAPPED ? warm : prepare(src, n, (enum prs_page_state)s);
                double start = now();
                WAYS[w].run(&p);
                rate[s][w][r] = (double)n / (now() - start) / 1e9;
                if (s != PRS_PAGES_MAPPED)
                    drop(&p);
            }
            if (s == PRS_PAGES_MAPPED)
                drop(&warm);
        }
    for (int s = 0; s < 3; s++) {
        double best[MAX_ROUNDS] = {0};
        for (int w = 0; w < N_WAYS; w++)
            for (int r = 0; r < rounds; r++)
                if (WAYS[w].base && (WAYS[w].states >> s & 1) && rate[s][w][r] > best[r])
                    best[r] = rate[s][w][r];
        printf("%zu MB, %s: GB/s, ratio to the best of the plain ways in the same round\n", n / 1000000, STATES[s]);
        for (int w = 0; w < N_WAYS; w++) {
            if (!(WAYS[w].states >> s & 1))
                continue;
            double ratio[MAX_ROUNDS];
            for (int r = 0; r < rounds; r++)
                ratio[r] = rate[s][w][r] / best[r];
            printf("  %-26s %6.2f  %5.2f\n", WAYS[w].name, median(rate[s][w], rounds), median(ratio, rounds));
        }
    }
    free(src);
}

/* Let one process fill the same extent repeatedly, as the store does. */
static void bench_reuse(size_t n, int rounds)
{
    enum { PUTS = 6 };
    char *src = source(n);
    size_t pages = (n + 4095) / 4096;
    static double rate[PUTS + 1][MAX_ROUNDS];
    double ratio[MAX_ROUNDS];
    for (int r = 0; r < rounds; r++) {
        place p = prepare(src, n, PRS_PAGES_UNBACKED);
        prs_area area = {.fd = p.fd, .map = p.map};
        area.backed = prs_pages_at(calloc(1, prs_pages_bytes(pages)), pages);
        area.mapped = prs_pages_at(calloc(1, prs_pages_bytes(pages)), pages);
        for (int i = 0; i < PUTS; i++) {
            double start = now();
            need(prs_area_fill(&area, 0, src, n, 0, NULL) == 0, "prs_area_fill");
            rate[i][r] = (double)n / (now() - start) / 1e9;
        }
        double start = now();
        way_nt_2(&p);
        rate[PUTS][r] = (double)n / (now() - start) / 1e9;
        ratio[r] = rate[2][r] / rate[PUTS][r];
        free((void *)area.backed.words);
        free((void *)area.mapped.words);
        drop(&p);
    }
    printf("%zu MB, the same place again and again: GB/s\n", n / 1000000);
    for (int i = 0; i < PUTS; i++)
        printf("  put %d                      %6.2f\n", i + 1, median(rate[i], rounds));
    printf("  non-temporal, 2 threads    %6.2f   put 3 is %.2f of it\n", median(rate[PUTS], rounds),
           median(ratio, rounds));
    free(src);
}

/* Find the size above which one way is faster than another. Destinations rotate through 256 MB, the source is fixed. */
static void bench_cross(int rounds)
{
    enum { SPAN = 256 << 20 };
    char *src = source(SPAN / 2);
    place warm = prepare(src, SPAN, PRS_PAGES_MAPPED);
    puts("   KiB   memcpy  nt 1   nt 2  | second: pwrite  fill 1   fill | cold: pwrite  fill 1   fill   (GB/s)");
    for (size_t n = (size_t)64 << 10; n <= (size_t)64 << 20; n *= 2) {
        double v[9][MAX_ROUNDS];
        for (int r = 0; r < rounds; r++) {
            size_t reps = ((size_t)32 << 20) / n, at = (size_t)r * 7919 * 4096;
            reps = reps < 1 ? 1 : reps > 64 ? 64 : reps;
            for (int w = 0; w < 3; w++) {
                double t = 0;
                for (size_t k = 0; k < reps; k++) {
                    at = (at + n) % (SPAN - n);
                    place p = {.map = warm.map + (at & ~(size_t)63), .src = src, .n = n};
                    double start = now();
                    (w == 0 ? way_memcpy : w == 1 ? way_nt : way_nt_2)(&p);
                    t += now() - start;
                }
                v[w][r] = (double)(n * reps) / t / 1e9;
            }
            for (int w = 3; w < 9; w++) {
                double t = 0;
                size_t few = reps > 8 ? 8 : reps;
                for (size_t k = 0; k < few; k++) {
                    place p = prepare(src, n, w < 6 ? PRS_PAGES_BACKED : PRS_PAGES_UNBACKED);
                    double start = now();
                    (w % 3 == 0 ? way_pwrite : w % 3 == 1 ? way_fill_1 : way_fill)(&p);
                    t += now() - start;
                    drop(&p);
                }
                v[w][r] = (double)(n * few) / t / 1e9;
            }
        }
        printf("%6zu  ", n >> 10);
        for (int w = 0; w < 9; w++)
            printf("%s%7.2f", w == 3 || w == 6 ? "   |   " : "", median(v[w], rounds));
        putchar('\n');
    }
    memcpy(warm.map + SPAN - 64, src, 64);
    munmap(warm.map, SPAN);
    close(warm.fd);
    free(src);
}

static void bench_gather(size_t n, int rounds)
{
    char *src = source(2 * n), *dst = malloc(n);
    need(dst != NULL, "malloc");
    memset(dst, 0, n);
    ptrdiff_t count = (ptrdiff_t)(n / 8), side = 1;
    while ((side + 1) * (side + 1) <= count)
        side++;
    ptrdiff_t flat[] = {count}, two[] = {16}, back[] = {-8}, square[] = {side, side}, turned[] = {8, side * 8};
    ptrdiff_t power = 1;
    while (power * power * 4 <= count)
        power *= 2;
    ptrdiff_t square2[] = {power, power}, turned2[] = {8, power * 8}, part[] = {side, side / 2}, rows[] = {side * 8, 8};
    const struct {
        const char *name;
        const char *src;
        int ndim;
        const ptrdiff_t *shape, *strides;
    } cases[] = {
        {"a[::2], 8 bytes", src, 1, flat, two},      {"a[::-1], 8 bytes", src + n - 8, 1, flat, back},
        {"a.T, 8 bytes", src, 2, square, turned},    {"a.T, sides a power of 2", src, 2, square2, turned2},
        {"a[:, :n/2], 8 bytes", src, 2, part, rows},
    };
    puts("gather                        1 thread   several   (GB/s written)");
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        double v[2][MAX_ROUNDS];
        size_t bytes = 8;
        for (int i = 0; i < cases[c].ndim; i++)
            bytes *= (size_t)cases[c].shape[i];
        for (int r = 0; r < rounds; r++)
            for (int w = 0; w < 2; w++) {
                double start = now();
                (void)prs_copy_strided_parallel(dst, cases[c].src, cases[c].ndim, cases[c].shape, cases[c].strides, 8,
                                                w == 0 ? 1 : 0);
                v[w][r] = (double)bytes / (now() - start) / 1e9;
            }
        printf("  %-26s %9.2f %9.2f\n", cases[c].name, median(v[0], rounds), median(v[1], rounds));
    }
    free(src);
    free(dst);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    size_t n = argc > 2 ? (size_t)strtoull(argv[2], NULL, 10) * 1000000 : 0;
    int rounds = argc > 3 ? atoi(argv[3]) : 0;
    if (rounds < 0 || rounds > MAX_ROUNDS || (argc > 2 && n == 0)) {
        fprintf(stderr, "usage: copy_bench [fill|reuse|cross|gather] [MB] [rounds <= %d]\n", MAX_ROUNDS);
        return 2;
    }
    bool all = !*what, known = all;
    static const size_t SIZES[] = {100000000, 1000000000};
    for (int i = 0; i < 2; i++) {
        size_t size = n ? n : SIZES[i];
        int times = rounds ? rounds : size > 300000000 ? 5 : 15;
        if (n && i)
            break;
        if (all || strcmp(what, "fill") == 0)
            bench_fill(size, times), known = true;
        if (all || strcmp(what, "reuse") == 0)
            bench_reuse(size, times), known = true;
    }
    if (all || strcmp(what, "cross") == 0)
        bench_cross(rounds ? rounds : 7), known = true;
    if (all || strcmp(what, "gather") == 0)
        bench_gather(n ? n : 100000000, rounds ? rounds : 7), known = true;
    if (!known)
        fprintf(stderr, "unknown part: %s\n", what);
    return known ? 0 : 2;
}
