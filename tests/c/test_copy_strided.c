/* test_copy_strided.c - compares strided copies with an element-by-element model. */
#include "harness.h"

#include <errno.h>

#include "../../csrc/store/platform/copy.h"

/* The model, which visits the index tuples in C order. */
static void model(unsigned char *dst, const unsigned char *src, int ndim, const ptrdiff_t *shape,
                  const ptrdiff_t *strides, size_t item)
{
    if (ndim == 0) {
        memcpy(dst, src, item);
        return;
    }
    size_t inner = item;
    for (int i = 1; i < ndim; i++)
        inner *= (size_t)shape[i];
    for (ptrdiff_t i = 0; i < shape[0]; i++)
        model(dst + (size_t)i * inner, src + i * strides[0], ndim - 1, shape + 1, strides + 1, item);
}

static unsigned char *pattern(size_t n)
{
    unsigned char *p = malloc(n + 8);
    CHECK(p != NULL);
    uint64_t seed = 99;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t r = test_random(&seed);
        memcpy(p + i, &r, 8);
    }
    return p;
}

static void check(const unsigned char *src, int ndim, const ptrdiff_t *shape, const ptrdiff_t *strides, size_t item)
{
    size_t total = item;
    for (int i = 0; i < ndim; i++)
        total *= (size_t)shape[i];
    unsigned char *want = malloc(total + 1), *got = malloc(total + 64);
    CHECK(want && got);
    if (total)
        model(want, src, ndim, shape, strides, item);
    for (int threads = 1; threads <= 3; threads++) {
        memset(got, 0x11, total + 64);
        int rc = threads == 1 ? prs_copy_strided(got, src, ndim, shape, strides, item)
                              : prs_copy_strided_parallel(got, src, ndim, shape, strides, item, (unsigned)threads);
        CHECK_EQ(rc, 0);
        CHECK_MEM(got, want, total);
        for (int i = 0; i < 64; i++)
            CHECK(got[total + (size_t)i] == 0x11);
    }
    free(want);
    free(got);
}

static const size_t ITEMS[] = {1, 2, 3, 4, 8, 12, 16, 24, 32, 40, 100};
enum { N_ITEMS = sizeof ITEMS / sizeof *ITEMS };

TEST(every_second_element)
{
    unsigned char *src = pattern(1 << 20);
    for (int i = 0; i < N_ITEMS; i++) {
        ptrdiff_t shape = 1000, stride = (ptrdiff_t)ITEMS[i] * 2;
        check(src, 1, &shape, &stride, ITEMS[i]);
    }
    free(src);
}

TEST(reversed_and_broadcast)
{
    unsigned char *src = pattern(1 << 20);
    for (int i = 0; i < N_ITEMS; i++) {
        ptrdiff_t item = (ptrdiff_t)ITEMS[i];
        ptrdiff_t shape[] = {50, 60}, back[] = {-60 * item, -item}, flat[] = {0, 0}, mixed[] = {item, 0},
                  row[] = {0, item};
        check(src + 2999 * ITEMS[i], 2, shape, back, ITEMS[i]);
        check(src, 2, shape, flat, ITEMS[i]);
        check(src, 2, shape, mixed, ITEMS[i]);
        check(src, 2, shape, row, ITEMS[i]);
    }
    free(src);
}

TEST(transposed)
{
    unsigned char *src = pattern(2 << 20);
    for (int i = 0; i < N_ITEMS; i++) {
        ptrdiff_t item = (ptrdiff_t)ITEMS[i];
        ptrdiff_t shape[] = {70, 131}, fortran[] = {item, 70 * item};
        check(src, 2, shape, fortran, ITEMS[i]);
        ptrdiff_t shape3[] = {13, 70, 9}, swapped[] = {70 * item, item, 13 * 70 * item};
        check(src, 3, shape3, swapped, ITEMS[i]);
        ptrdiff_t upside[] = {-70 * item, item, 13 * 70 * item};
        check(src + 12 * 70 * item, 3, shape3, upside, ITEMS[i]);
    }
    free(src);
}

TEST(unaligned_source_and_odd_strides)
{
    unsigned char *src = pattern(1 << 20);
    for (int i = 0; i < N_ITEMS; i++) {
        ptrdiff_t shape[] = {31, 17}, strides[] = {1001, (ptrdiff_t)ITEMS[i] + 3};
        check(src + 1, 2, shape, strides, ITEMS[i]);
    }
    free(src);
}

TEST(contiguous_blocks_and_contiguous_arrays)
{
    unsigned char *src = pattern(1 << 20);
    ptrdiff_t shape[] = {10, 20, 30}, c_order[] = {600 * 8, 30 * 8, 8}, slice[] = {20 * 40 * 8, 40 * 8, 8};
    check(src, 3, shape, c_order, 8);
    check(src, 3, shape, slice, 8);
    ptrdiff_t ones[] = {1, 10, 1, 7, 1}, odd[] = {77777777, 160, -5, 16, 123};
    check(src, 5, ones, odd, 8);
    free(src);
}

TEST(scalars_and_empty_arrays)
{
    unsigned char src[64] = "scalar here", dst[64] = {0};
    CHECK_EQ(prs_copy_strided(dst, src, 0, NULL, NULL, 8), 0);
    CHECK_MEM(dst, "scalar h", 8);
    CHECK_EQ(dst[8], 0);
    ptrdiff_t shape[] = {5, 0, 3}, strides[] = {1, 2, 3};
    CHECK_EQ(prs_copy_strided(NULL, NULL, 3, shape, strides, 8), 0);
    CHECK_EQ(prs_copy_strided_parallel(NULL, NULL, 3, shape, strides, 8, 0), 0);
    ptrdiff_t two[] = {2, 2};
    CHECK_EQ(prs_copy_strided(NULL, NULL, 2, two, strides, 0), 0);
    CHECK_EQ(prs_copy_strided_parallel(NULL, NULL, 0, NULL, NULL, 0, 0), 0);
}

TEST(nonsense_is_refused)
{
    ptrdiff_t shape[65], strides[65];
    unsigned char byte = 0;
    for (int i = 0; i < 65; i++)
        shape[i] = 2, strides[i] = 0;
    CHECK_EQ(prs_copy_strided(&byte, &byte, 65, shape, strides, 1), -EINVAL);
    CHECK_EQ(prs_copy_strided(&byte, &byte, 64, shape, strides, 1), -EINVAL); /* 2**64 bytes */
    CHECK_EQ(prs_copy_strided(&byte, &byte, -1, shape, strides, 1), -EINVAL);
    shape[0] = shape[1] = PTRDIFF_MAX;
    CHECK_EQ(prs_copy_strided(&byte, &byte, 2, shape, strides, 8), -EINVAL);
    shape[1] = -2;
    CHECK_EQ(prs_copy_strided(&byte, &byte, 2, shape, strides, 1), -EINVAL);
    shape[0] = 0; /* an empty array, but the arguments are still invalid */
    CHECK_EQ(prs_copy_strided_parallel(&byte, &byte, 2, shape, strides, 1, 0), -EINVAL);
    CHECK_EQ(byte, 0);
}

/* These rows are long enough for stores that bypass the cache. */
TEST(long_rows_with_gaps)
{
    unsigned char *src = pattern(200 << 10);
    static const ptrdiff_t widths[] = {(8 << 10) - 1, 8 << 10, (8 << 10) + 1, 20000};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        ptrdiff_t shape[] = {5, widths[i]}, strides[] = {widths[i] + 100, 1};
        check(src, 2, shape, strides, 1);
        ptrdiff_t back[] = {-(widths[i] + 100), 1};
        check(src + 4 * (widths[i] + 100), 2, shape, back, 1);
    }
    free(src);
    src = pattern(7 << 20); /* rows that are longer than the pieces of one thread */
    check(src, 2, (ptrdiff_t[]){3, 2 << 20}, (ptrdiff_t[]){(2 << 20) + 100, 1}, 1);
    free(src);
}

TEST(random_views)
{
    enum { SIZE = 1 << 20 };
    unsigned char *src = pattern(SIZE);
    uint64_t seed = test_seed(4);
    for (int round = 0; round < 400; round++) {
        size_t item = ITEMS[test_random(&seed) % N_ITEMS];
        int ndim = (int)(test_random(&seed) % 6);
        ptrdiff_t shape[6], strides[6], low = 0, high = 0;
        for (int i = 0; i < ndim; i++) {
            shape[i] = 1 + (ptrdiff_t)(test_random(&seed) % 8);
            strides[i] = (ptrdiff_t)(test_random(&seed) % 2001) - 1000;
            if (test_random(&seed) % 3 == 0)
                strides[i] = (ptrdiff_t)item * (ptrdiff_t)(test_random(&seed) % 9);
            ptrdiff_t reach = (shape[i] - 1) * strides[i];
            *(reach < 0 ? &low : &high) += reach;
        }
        CHECK(high - low + (ptrdiff_t)item < SIZE);
        check(src - low, ndim, shape, strides, item);
    }
    free(src);
}

TEST(big_arrays_on_threads)
{
    size_t n = (size_t)24 << 20;
    unsigned char *src = pattern(n);
    ptrdiff_t half = (ptrdiff_t)n / 16, step = 16;
    check(src, 1, &half, &step, 8);
    ptrdiff_t shape[] = {1021, 1531}, fortran[] = {8, 1021 * 8}, wide[] = {2, 700000}, pairs[] = {(ptrdiff_t)n / 2, 16};
    check(src, 2, shape, fortran, 8);
    check(src, 2, wide, pairs, 8);
    ptrdiff_t rows[] = {3000, 4000}, part[] = {8000, 1};
    check(src, 2, rows, part, 1);
    free(src);
}

TEST_MAIN()
