/* test_copy.c - tests of contiguous copies and writes: all alignments, both vector widths, threads, full files. */
#include "harness.h"
#include "tmpfs.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../../csrc/store/platform/copy.h"
#include "../../csrc/store/platform/threads.h"

#if defined(__x86_64__)
extern int prs_copy_use_avx2_;
#else
static int prs_copy_use_avx2_;
#endif

static unsigned char *pattern(size_t n, uint64_t seed)
{
    unsigned char *p = malloc(n + 8);
    CHECK(p != NULL);
    for (size_t i = 0; i < n; i += 8) {
        uint64_t r = test_random(&seed);
        memcpy(p + i, &r, 8);
    }
    return p;
}

/* Check that the bytes around the destination do not change. */
static void check_kernel(void (*copy)(void *, const void *, size_t), size_t n, size_t dst_skew, size_t src_skew,
                         const unsigned char *from, unsigned char *to)
{
    unsigned char *dst = to + 256 + dst_skew;
    const unsigned char *src = from + src_skew;
    memset(dst - 128, 0x5a, 128);
    memset(dst + n, 0xa5, 128);
    if (n) {
        dst[0] = (unsigned char)~src[0];
        dst[n - 1] = (unsigned char)~src[n - 1];
    }
    copy(dst, src, n);
    CHECK_MEM(dst, src, n);
    for (int i = 1; i <= 128; i++)
        CHECK(dst[-i] == 0x5a);
    for (int i = 0; i < 128; i++)
        CHECK(dst[n + (size_t)i] == 0xa5);
}

static void check_all_alignments(void (*copy)(void *, const void *, size_t))
{
    enum { MOST = 70000 };
    unsigned char *from = pattern(MOST + 1024, 3), *to = malloc(MOST + 1024);
    static const size_t sizes[] = {0, 1, 63, 64, 127, 128, 4095, 4096, 4097, 4160, 5000, 8192, 65536, 69999};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t skew = 0; skew < 66; skew += skew < 34 ? 1 : 16)
            check_kernel(copy, sizes[s], skew, (skew * 7) % 65, from, to);
    free(from);
    free(to);
}

TEST(copy_keeps_to_its_bytes)
{
    check_all_alignments(prs_copy);
}

TEST(streaming_copy_keeps_to_its_bytes)
{
    check_all_alignments(prs_copy_nt);
}

TEST(streaming_copy_without_avx2_keeps_to_its_bytes)
{
    prs_copy_use_avx2_ = 0;
    check_all_alignments(prs_copy_nt);
    prs_copy_use_avx2_ = 1;
}

TEST(copy_of_nothing_takes_null)
{
    prs_copy(NULL, NULL, 0);
    prs_copy_parallel(NULL, NULL, 0, 0);
}

static void parallel_2(void *dst, const void *src, size_t n)
{
    prs_copy_parallel(dst, src, n, 2);
}

static void parallel_any(void *dst, const void *src, size_t n)
{
    prs_copy_parallel(dst, src, n, 0);
}

TEST(big_copies_on_one_and_several_threads)
{
    size_t n = PRS_COPY_PARALLEL_MIN + ((size_t)3 << 20) + 4321;
    unsigned char *from = pattern(n + 1024, 5), *to = malloc(n + 1024);
    check_kernel(prs_copy, n, 3, 1, from, to);
    check_kernel(parallel_2, n, 0, 0, from, to);
    check_kernel(parallel_any, n, 17, 5, from, to);
    check_kernel(parallel_any, PRS_COPY_PARALLEL_MIN, 1, 0, from, to);
    check_kernel(parallel_any, PRS_COPY_PARALLEL_MIN - 1, 1, 0, from, to);
    free(from);
    free(to);
}

TEST(number_of_threads)
{
    CHECK(prs_cpu_count() >= 1);
    CHECK((long)prs_cpu_idle() < sysconf(_SC_NPROCESSORS_ONLN));
    CHECK(prs_crew_size(1 << 30, 1, 0) <= 1 + prs_cpu_count());
    CHECK_EQ(prs_crew_size(1 << 30, 1, 2), prs_cpu_count() < 2 ? 1 : 2); /* an explicit maximum is used */
    CHECK_EQ(prs_crew_size(100, 1000, 0), 1);
    CHECK_EQ(prs_crew_size(1 << 30, 1, 1), 1);
    CHECK(prs_crew_size(1 << 30, 1, 1000000) <= PRS_COPY_MAX_THREADS);
    cpu_set_t old, one;
    CHECK_EQ(sched_getaffinity(0, sizeof old, &old), 0);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &old)) {
            CPU_SET(i, &one);
            break;
        }
    CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    CHECK_EQ(prs_cpu_count(), 1);
    CHECK_EQ(prs_crew_size(1 << 30, 1, 0), 1);
    CHECK_EQ(sched_setaffinity(0, sizeof old, &old), 0);
}

static void *mask_of_helper(void *arg)
{
    sigset_t *seen = arg;
    pthread_sigmask(SIG_BLOCK, NULL, seen);
    return NULL;
}

TEST(helpers_block_signals_and_the_caller_keeps_its_mask)
{
    sigset_t before, after, helper;
    sigemptyset(&helper);
    pthread_sigmask(SIG_BLOCK, NULL, &before);
    prs_crew crew;
    prs_crew_start(&crew, 1, mask_of_helper, &helper);
    CHECK_EQ(crew.count, 1);
    prs_crew_join(&crew);
    pthread_sigmask(SIG_BLOCK, NULL, &after);
    CHECK(sigismember(&helper, SIGINT) && sigismember(&helper, SIGTERM) && sigismember(&helper, SIGCHLD));
    CHECK_EQ(sigismember(&before, SIGINT), sigismember(&after, SIGINT));
}

/* If a process may not create threads, the caller copies everything. */
TEST(copy_without_threads_to_be_had)
{
    size_t n = PRS_COPY_PARALLEL_MIN * 2;
    unsigned char *from = pattern(n, 6), *to = malloc(n);
    fflush(stdout);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct rlimit none = {0, 0};
        if (setrlimit(RLIMIT_NPROC, &none) != 0)
            _exit(2);
        if (getuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) /* RLIMIT_NPROC does not apply to root */
            _exit(2);
        pthread_t t;
        if (pthread_create(&t, NULL, mask_of_helper, malloc(sizeof(sigset_t))) == 0)
            _exit(3);
        prs_copy_parallel(to, from, n, 0);
        _exit(memcmp(to, from, n) != 0);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    free(from);
    free(to);
    CHECK(WIFEXITED(status));
    if (WEXITSTATUS(status) == 2 || WEXITSTATUS(status) == 3)
        SKIP("threads cannot be forbidden here");
    CHECK_EQ(WEXITSTATUS(status), 0);
}

TEST(write_to_file_at_an_offset)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, 1 << 20), 0);
    unsigned char *from = pattern(100000, 8), *back = malloc(100000);
    size_t written = 1;
    errno = 77;
    CHECK_EQ(prs_copy_to_file(fd, 12345, from, 100000, &written), 0);
    CHECK_EQ(written, 100000);
    CHECK_EQ(pread(fd, back, 100000, 12345), 100000);
    CHECK_MEM(back, from, 100000);
    CHECK_EQ(prs_copy_to_file(fd, 0, from, 0, NULL), 0);
    CHECK_EQ(errno, 77);
    close(fd);
    CHECK_EQ(prs_copy_to_file(-1, 0, from, 10, &written), -EBADF);
    CHECK_EQ(written, 0);
    CHECK_EQ(prs_copy_to_file(-1, UINT64_MAX, from, 10, NULL), -EFBIG);
    CHECK_EQ(prs_copy_to_file(-1, INT64_MAX - 5, from, 10, NULL), -EFBIG);
    free(from);
    free(back);
}

/* Replaces the engine's pwrite. Of every `awkward` calls, one is interrupted and one writes only a third of the
 * bytes. */
static int awkward, pwrites;

ssize_t pwrite(int fd, const void *from, size_t n, off_t offset)
{
    pwrites++;
    if (awkward && pwrites % awkward == 1) {
        errno = EINTR;
        return -1;
    }
    if (awkward && pwrites % awkward == 2)
        n = (n + 2) / 3;
    return syscall(SYS_pwrite64, fd, from, n, offset);
}

TEST(write_to_file_goes_on_after_interruptions_and_short_writes)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    CHECK(fd >= 0);
    unsigned char *from = pattern(50000, 12), *back = malloc(50000);
    size_t written = 0;
    awkward = 3;
    pwrites = 0;
    errno = 77;
    int rc = prs_copy_to_file(fd, 5, from, 50000, &written), calls = pwrites;
    awkward = 0;
    CHECK_EQ(rc, 0);
    CHECK_EQ(written, 50000);
    CHECK_EQ(calls, 3);
    CHECK_EQ(errno, 77);
    CHECK_EQ(pread(fd, back, 50000, 5), 50000);
    CHECK_MEM(back, from, 50000);
    close(fd);
    free(from);
    free(back);
}

static void nothing(int sig)
{
    (void)sig;
}

TEST(write_to_file_reports_what_was_written_before_a_limit)
{
    char path[] = "/tmp/prs-test-copy-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    unlink(path);
    signal(SIGXFSZ, SIG_DFL); /* the default action, as in a program that does not handle the signal */
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 10000;
    unsigned char *from = pattern(20000, 9);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    size_t written = 0;
    int rc = prs_copy_to_file(fd, 0, from, 20000, &written);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
    CHECK_EQ(rc, -EFBIG);
    CHECK_EQ(written, 10000);
    close(fd);
    free(from);
}

TEST(write_to_file_survives_signals)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    size_t n = (size_t)24 << 20;
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, (off_t)n), 0);
    struct sigaction act = {.sa_handler = nothing}, old; /* without SA_RESTART */
    sigaction(SIGALRM, &act, &old);
    struct itimerspec when = {.it_interval = {0, 200000}, .it_value = {0, 200000}};
    timer_t timer;
    CHECK_EQ(timer_create(CLOCK_MONOTONIC, NULL, &timer), 0);
    timer_settime(timer, 0, &when, NULL);
    unsigned char *from = pattern(n, 10);
    int rc = prs_copy_to_file(fd, 0, from, n, NULL);
    timer_delete(timer);
    sigaction(SIGALRM, &old, NULL);
    CHECK_EQ(rc, 0);
    unsigned char *map = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED);
    CHECK_MEM(map, from, n);
    munmap(map, n);
    close(fd);
    free(from);
}

TEST(write_to_a_full_file_system_is_an_error)
{
    int fd = file_on_tmpfs("size=1m");
    if (fd < 0)
        SKIP("no tmpfs can be mounted here");
    unsigned char *from = pattern(2 << 20, 11);
    size_t written = 0;
    CHECK_EQ(ftruncate(fd, 8 << 20), 0);
    CHECK_EQ(prs_copy_to_file(fd, 0, from, 2 << 20, &written), -ENOSPC);
    CHECK_EQ(written, 1 << 20);
    close(fd);
    free(from);
}

TEST_MAIN()
