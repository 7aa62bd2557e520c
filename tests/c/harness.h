/*
 * harness.h - the complete C test framework: one header, no dependencies.
 *
 * A test program includes this once and has this form:
 *
 *     TEST(name_of_the_case) { CHECK(1 + 1 == 2); CHECK_EQ(f(), 0); }
 *     TEST_MAIN()
 *
 * Cases run in the order in which they are defined; each prints a line with `ok`, `FAIL` or `skip`,
 * its name and its time. A failed CHECK prints file, line and values and ends the case; the program
 * then exits with 1. Arguments select cases by substring; `-l` lists them. The last line is "N
 * passed, M failed", with ", K skipped" when cases were skipped.
 */
#ifndef PRS_TEST_HARNESS_H
#define PRS_TEST_HARNESS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct test_case {
    const char *name;
    void (*run)(void);
    struct test_case *next;
} test_case;

static test_case *test_first_;
static test_case **test_last_ = &test_first_;
static jmp_buf test_out_; /* used only by the test's main thread, see CHECK */
static pid_t test_pid_;

enum { TEST_FAILED_ = 1, TEST_SKIPPED_ = 2 };

#define TEST(name)                                                         \
    static void test_##name##_(void);                                      \
    static test_case test_case_##name##_ = {#name, test_##name##_, NULL};  \
    __attribute__((constructor)) static void test_register_##name##_(void) \
    {                                                                      \
        *test_last_ = &test_case_##name##_;                                \
        test_last_ = &test_case_##name##_.next;                            \
    }                                                                      \
    static void test_##name##_(void)

/* Fail the case. A forked child cannot end the case: it prints the reason and exits with 101, for which the parent must
 * check. */
__attribute__((format(printf, 3, 4), noreturn, unused)) static void test_fail_(const char *file, int line,
                                                                               const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    if (getpid() != test_pid_)
        _exit(101);
    longjmp(test_out_, TEST_FAILED_);
}

/* Use checks only in the thread that runs the case or in a forked child; other threads must pass their results to the
 * first thread. */
#define CHECK(cond)                                                    \
    do {                                                               \
        if (!(cond))                                                   \
            test_fail_(__FILE__, __LINE__, "check failed: %s", #cond); \
    } while (0)

#define CHECK_MSG(cond, ...)                             \
    do {                                                 \
        if (!(cond))                                     \
            test_fail_(__FILE__, __LINE__, __VA_ARGS__); \
    } while (0)

/* Compare integers of any type as long long (including unsigned 64-bit values, printed as signed). */
#define CHECK_EQ(a, b)                                                                \
    do {                                                                              \
        long long a_ = (long long)(a), b_ = (long long)(b);                           \
        if (a_ != b_)                                                                 \
            test_fail_(__FILE__, __LINE__, "%s == %s: %lld != %lld", #a, #b, a_, b_); \
    } while (0)

#define CHECK_MEM(a, b, n)                                                                                      \
    do {                                                                                                        \
        const unsigned char *a_ = (const void *)(a), *b_ = (const void *)(b);                                   \
        size_t n_ = (n), i_ = 0;                                                                                \
        while (i_ < n_ && a_[i_] == b_[i_])                                                                     \
            i_++;                                                                                               \
        if (i_ < n_)                                                                                            \
            test_fail_(__FILE__, __LINE__, "%s and %s differ at byte %zu of %zu: %02x != %02x", #a, #b, i_, n_, \
                       a_[i_], b_[i_]);                                                                         \
    } while (0)

/* End the case as skipped. Use this only for features that this machine lacks, never for failures. */
#define SKIP(why)                            \
    do {                                     \
        printf("     skipped: %s\n", (why)); \
        longjmp(test_out_, TEST_SKIPPED_);   \
    } while (0)

__attribute__((unused)) static uint64_t test_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* xorshift64*: reproducible; PRS_TEST_SEED overrides the given seed. */
__attribute__((unused)) static uint64_t test_random(uint64_t *state)
{
    uint64_t x = *state ? *state : 0x9e3779b97f4a7c15u;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1du;
}

__attribute__((unused)) static uint64_t test_seed(uint64_t fallback)
{
    const char *text = getenv("PRS_TEST_SEED");
    return text && *text ? strtoull(text, NULL, 0) : fallback;
}

__attribute__((unused)) static int test_main_(int argc, char **argv)
{
    /* volatile, because they change between setjmp and longjmp */
    volatile int passed = 0, failed = 0, skipped = 0;
    test_pid_ = getpid();
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1 && strcmp(argv[1], "-l") == 0) {
        for (test_case *c = test_first_; c; c = c->next)
            puts(c->name);
        return 0;
    }
    for (test_case *volatile c = test_first_; c; c = c->next) {
        int wanted = argc <= 1;
        for (int i = 1; i < argc; i++)
            wanted |= strstr(c->name, argv[i]) != NULL;
        if (!wanted)
            continue;
        volatile uint64_t start = test_now_ns();
        int how = setjmp(test_out_);
        if (how == 0)
            c->run();
        double ms = (double)(test_now_ns() - start) / 1e6;
        printf("%s %s (%.1f ms)\n", how == 0 ? "ok  " : how == TEST_SKIPPED_ ? "skip" : "FAIL", c->name, ms);
        if (how == 0)
            passed++;
        else if (how == TEST_SKIPPED_)
            skipped++;
        else
            failed++;
    }
    if (passed + failed + skipped == 0) {
        fprintf(stderr, "no case matches\n");
        failed = 1;
    }
    printf("%d passed, %d failed", passed, failed);
    if (skipped)
        printf(", %d skipped", skipped);
    putchar('\n');
    return failed != 0;
}

#define TEST_MAIN()                    \
    int main(int argc, char **argv)    \
    {                                  \
        return test_main_(argc, argv); \
    }

#endif /* PRS_TEST_HARNESS_H */
