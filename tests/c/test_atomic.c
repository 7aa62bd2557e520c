/* test_atomic.c - tests of the named memory orders, the futex between mappings and processes, and the spinlock. */
#include "harness.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "../../csrc/store/platform/atomic.h"

TEST(read_modify_write_yields_the_value_before)
{
    prs_atomic_u64 w = 5;
    CHECK_EQ(prs_fetch_or_seqcst(&w, 0x10u), 5);
    CHECK_EQ(prs_fetch_and_seqcst(&w, ~(uint64_t)1), 0x15);
    CHECK_EQ(prs_fetch_add_relaxed(&w, 1u), 0x14);
    CHECK_EQ(prs_fetch_sub_acqrel(&w, 5u), 0x15);
    CHECK_EQ(prs_exchange_release(&w, 77u), 0x10);
    uint64_t expected = 76;
    CHECK(!prs_cas_seqcst(&w, &expected, 1u));
    CHECK_EQ(expected, 77);
    CHECK(prs_cas_seqcst(&w, &expected, 1u));
    CHECK_EQ(prs_load_seqcst(&w), 1);
}

TEST(low_half_is_where_the_low_bits_are)
{
    prs_atomic_u64 w = 0x1122334455667788u;
    uint32_t low;
    memcpy(&low, prs_low_half(&w), 4);
    CHECK_EQ(low, 0x55667788u);
}

TEST(futex_wait_returns_at_once_when_the_word_differs)
{
    prs_atomic_u32 w = 1;
    errno = 1234;
    CHECK_EQ(prs_futex_wait(&w, 2, -1), -EAGAIN);
    CHECK_EQ(errno, 1234);
}

TEST(futex_wait_ends_at_its_timeout)
{
    prs_atomic_u32 w = 1;
    uint64_t start = test_now_ns();
    CHECK_EQ(prs_futex_wait(&w, 1, 30000000), -ETIMEDOUT);
    uint64_t took = test_now_ns() - start;
    CHECK(took >= 29000000);
    CHECK(took < 5000000000u);
    CHECK_EQ(prs_futex_wait(&w, 1, 0), -ETIMEDOUT);
}

static void on_signal(int sig)
{
    (void)sig;
}

TEST(futex_wait_reports_a_signal)
{
    struct sigaction act = {.sa_handler = on_signal}, old;
    CHECK_EQ(sigaction(SIGALRM, &act, &old), 0);
    prs_atomic_u32 w = 1;
    struct itimerspec when = {.it_interval = {0, 5000000}, .it_value = {0, 5000000}};
    timer_t timer;
    CHECK_EQ(timer_create(CLOCK_MONOTONIC, NULL, &timer), 0);
    CHECK_EQ(timer_settime(timer, 0, &when, NULL), 0);
    int rc = prs_futex_wait(&w, 1, 5000000000);
    timer_delete(timer);
    sigaction(SIGALRM, &old, NULL);
    CHECK_EQ(rc, -EINTR);
}

TEST(futex_wakes_another_process_through_another_mapping)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, 4096), 0);
    prs_atomic_u64 *mine = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    prs_atomic_u64 *other = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(mine != MAP_FAILED && other != MAP_FAILED && mine != other);
    fflush(stdout);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) { /* the child waits through the read-only mapping */
        while (prs_load_seqcst(other) == 0) {
            int rc = prs_futex_wait(prs_low_half(other), 0, 10000000000);
            CHECK_MSG(rc == 0 || rc == -EAGAIN, "wait: %d", rc);
        }
        _exit(prs_load_seqcst(other) == 7 ? 0 : 1);
    }
    usleep(20000); /* the waiter is most likely asleep by now; the test is valid either way */
    prs_store_seqcst(mine, 7u);
    CHECK(prs_futex_wake(prs_low_half(mine), INT_MAX) >= 0);
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    munmap(mine, 4096);
    munmap((void *)other, 4096);
    close(fd);
}

static prs_spin lock = PRS_SPIN_INIT;
static uint64_t guarded; /* not atomic, so that TSan reports a race if the lock does not order the accesses */

static void *count_up(void *arg)
{
    unsigned rounds = *(unsigned *)arg;
    for (unsigned i = 0; i < rounds; i++) {
        prs_spin_lock(&lock);
        guarded++;
        prs_spin_unlock(&lock);
    }
    return NULL;
}

TEST(spinlock_excludes)
{
    enum { THREADS = 4 };
    unsigned rounds = 50000;
    pthread_t t[THREADS];
    guarded = 0;
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&t[i], NULL, count_up, &rounds), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    CHECK_EQ(guarded, (uint64_t)THREADS * rounds);
    CHECK(prs_spin_trylock(&lock));
    CHECK(!prs_spin_trylock(&lock));
    prs_spin_unlock(&lock);
}

static void *count_once(void *arg)
{
    (void)arg;
    prs_spin_lock(&lock);
    guarded++;
    prs_spin_unlock(&lock);
    return NULL;
}

TEST(spinlock_waiter_survives_an_owner_that_sleeps)
{
    pthread_t t;
    guarded = 0;
    prs_spin_lock(&lock);
    CHECK_EQ(pthread_create(&t, NULL, count_once, NULL), 0);
    usleep(20000);
    CHECK_EQ(guarded, 0);
    prs_spin_unlock(&lock);
    pthread_join(t, NULL);
    CHECK_EQ(guarded, 1);
}

/* Store buffering (Dekker): with seq_cst on both sides, at least one of the two threads sees the other's write. */
static prs_atomic_u64 sb_x, sb_y;
static prs_atomic_u32 sb_gate;
enum { SB_ROUNDS = 20000 };
static uint8_t sb_saw[2][SB_ROUNDS];

static void *sb_side(void *arg)
{
    int me = arg != NULL;
    prs_atomic_u64 *mine = me ? &sb_y : &sb_x, *theirs = me ? &sb_x : &sb_y;
    for (uint32_t i = 0; i < SB_ROUNDS; i++) {
        prs_fetch_add_seqcst(&sb_gate, 1u);
        for (unsigned spins = 0; prs_load_seqcst(&sb_gate) < 2 * (i + 1); spins++)
            spins < 100 ? prs_pause() : (void)sched_yield();
        prs_fetch_or_seqcst(mine, (uint64_t)i + 1);
        sb_saw[me][i] = prs_load_seqcst(theirs) != 0;
        prs_fetch_add_seqcst(&sb_gate, 0u);
        /* second gate, so that both threads have read before one clears its word */
        static prs_atomic_u32 done;
        prs_fetch_add_seqcst(&done, 1u);
        for (unsigned spins = 0; prs_load_seqcst(&done) < 2 * (i + 1); spins++)
            spins < 100 ? prs_pause() : (void)sched_yield();
        prs_store_seqcst(mine, 0u);
    }
    return NULL;
}

TEST(seqcst_forbids_that_both_sides_miss_each_other)
{
    pthread_t t;
    CHECK_EQ(pthread_create(&t, NULL, sb_side, &sb_gate), 0);
    sb_side(NULL);
    pthread_join(t, NULL);
    for (int i = 0; i < SB_ROUNDS; i++)
        CHECK_MSG(sb_saw[0][i] | sb_saw[1][i], "round %d: both missed", i);
}

TEST_MAIN()
