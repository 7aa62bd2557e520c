/* test_pages.c - compares the page bitmap with an array of bytes, and tests its bounds and concurrent threads. */
#include "harness.h"

#include <pthread.h>

#include "../../csrc/store/platform/pages.h"

enum { COUNT = 333 }; /* deliberately not a multiple of 64 */
static prs_atomic_u64 words[COUNT / 64 + 3];
static const uint64_t GUARD = 0xdeadbeefcafef00du;

static prs_pages fresh(void)
{
    memset(words, 0, sizeof words);
    words[COUNT / 64 + 1] = GUARD;
    words[COUNT / 64 + 2] = GUARD;
    return prs_pages_at(words, COUNT);
}

TEST(size_of_the_shared_part)
{
    CHECK_EQ(prs_pages_bytes(0), 0);
    CHECK_EQ(prs_pages_bytes(1), 8);
    CHECK_EQ(prs_pages_bytes(64), 8);
    CHECK_EQ(prs_pages_bytes(65), 16);
    CHECK_EQ(prs_pages_bytes(UINT64_MAX), (UINT64_MAX / 64 + 1) * 8);
}

TEST(bytes_to_pages)
{
    CHECK_EQ(prs_pages_first(4095), 0);
    CHECK_EQ(prs_pages_end(4095, 1), 1);
    CHECK_EQ(prs_pages_end(4095, 2), 2);
    CHECK_EQ(prs_pages_end(8192, 0), 2);
    CHECK_EQ(prs_pages_end(0, 4096), 1);
}

TEST(against_a_model)
{
    prs_pages p = fresh();
    unsigned char model[COUNT] = {0};
    uint64_t seed = test_seed(7);
    for (int step = 0; step < 20000; step++) {
        uint64_t first = test_random(&seed) % COUNT, n = test_random(&seed) % (COUNT - first + 1);
        if (test_random(&seed) % 3 == 0)
            n %= 5;
        uint64_t changed = 0, set = 0, next_set = first + n, next_clear = first + n;
        int op = (int)(test_random(&seed) % 2);
        for (uint64_t i = first; i < first + n; i++)
            changed += model[i] != op;
        CHECK_EQ(op ? prs_pages_set(p, first, n) : prs_pages_clear(p, first, n), changed);
        memset(model + first, op, n);

        first = test_random(&seed) % COUNT;
        n = test_random(&seed) % (COUNT - first + 1);
        next_set = next_clear = first + n;
        for (uint64_t i = first + n; i-- > first;) {
            set += model[i];
            *(model[i] ? &next_set : &next_clear) = i;
        }
        CHECK_EQ(prs_pages_count(p, first, n), set);
        CHECK_EQ(prs_pages_next_set(p, first, first + n), next_set);
        CHECK_EQ(prs_pages_next_clear(p, first, first + n), next_clear);
        CHECK_EQ(prs_pages_all(p, first, n), set == n);
        CHECK_EQ(prs_pages_test(p, first), model[first]);
    }
    CHECK_EQ(words[COUNT / 64 + 1], GUARD);
}

TEST(ranges_outside_are_clipped)
{
    prs_pages p = fresh();
    CHECK_EQ(prs_pages_set(p, COUNT - 1, UINT64_MAX), 1);
    CHECK_EQ(prs_pages_set(p, COUNT, 10), 0);
    CHECK_EQ(prs_pages_set(p, UINT64_MAX, UINT64_MAX), 0);
    CHECK_EQ(prs_pages_set(p, 0, UINT64_MAX), COUNT - 1);
    CHECK_EQ(prs_pages_count(p, 0, UINT64_MAX), COUNT);
    CHECK_EQ(prs_pages_clear(p, UINT64_MAX - 1, 5), 0);
    CHECK(!prs_pages_test(p, COUNT));
    CHECK(!prs_pages_test(p, UINT64_MAX));
    CHECK(!prs_pages_all(p, COUNT, 1));
    CHECK(!prs_pages_all(p, 0, COUNT + 1));
    CHECK(!prs_pages_all(p, 1, UINT64_MAX));
    CHECK(prs_pages_all(p, 0, COUNT));
    CHECK_EQ(prs_pages_next_clear(p, 0, UINT64_MAX), COUNT);
    CHECK_EQ(prs_pages_next_set(p, COUNT + 5, UINT64_MAX), COUNT);
    CHECK_EQ(words[COUNT / 64] >> (COUNT % 64), 0);
    CHECK_EQ(words[COUNT / 64 + 1], GUARD);
}

/* Threads set overlapping ranges; each page must be counted as changed by exactly one of them. */
static void *set_ranges(void *arg)
{
    uint64_t seed = (uintptr_t)arg, changed = 0;
    prs_pages p = prs_pages_at(words, COUNT);
    for (int i = 0; i < 3000; i++)
        changed += prs_pages_set(p, test_random(&seed) % COUNT, test_random(&seed) % 40);
    return (void *)(uintptr_t)changed;
}

TEST(racing_threads_count_each_page_once)
{
    prs_pages p = fresh();
    pthread_t t[3];
    uint64_t total = 0;
    for (uintptr_t i = 0; i < 3; i++)
        CHECK_EQ(pthread_create(&t[i], NULL, set_ranges, (void *)(i * 77 + 1)), 0);
    for (int i = 0; i < 3; i++) {
        void *changed;
        pthread_join(t[i], &changed);
        total += (uintptr_t)changed;
    }
    CHECK_EQ(total, prs_pages_count(p, 0, COUNT));
    CHECK(total > COUNT / 2);
}

TEST_MAIN()
