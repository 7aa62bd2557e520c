/* test_fill.c - tests of filling mapped, backed and unbacked pages, areas of mixed states, and full file systems. */
#include "harness.h"
#include "tmpfs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "../../csrc/store/platform/copy.h"
#include "../../csrc/store/platform/fill.h"

/*
 * These functions replace system calls of the engine. If `lame` is set, the caller's writes are slow, so that a helper
 * gets most of the work even on a busy machine; `cpus` determines whether the threads appear to run on different CPUs.
 */
static int lame;
static enum { CPUS_AS_THEY_ARE, CPUS_DIFFER, CPUS_SAME } cpus;

ssize_t pwrite(int fd, const void *from, size_t n, off_t offset)
{
    if (lame)
        usleep(3000);
    return syscall(SYS_pwrite64, fd, from, n, offset);
}

/* If `unwilling` is set, MADV_POPULATE fails in each thread after this number of calls, as it does on kernels without
 * this advice. */
static int unwilling;
static _Thread_local int populates;
static void (*meanwhile)(void); /* called once before MADV_POPULATE, to simulate another process */

int madvise(void *at, size_t n, int advice)
{
    if (meanwhile && advice == 23) {
        void (*first)(void) = meanwhile;
        meanwhile = NULL;
        first();
    }
    if (unwilling && (advice == 22 || advice == 23) && populates++ >= unwilling) {
        errno = EINVAL;
        return -1;
    }
    return (int)syscall(SYS_madvise, at, n, advice);
}

int sched_getcpu(void)
{
    unsigned cpu = 0;
    if (cpus == CPUS_SAME)
        return 0;
    if (cpus == CPUS_DIFFER)
        return (int)syscall(SYS_gettid);
    return syscall(SYS_getcpu, &cpu, NULL, NULL) == 0 ? (int)cpu : -1;
}

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

static int new_file(size_t n)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, (off_t)n), 0);
    return fd;
}

static unsigned char *map_file(int fd, size_t n)
{
    unsigned char *map = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED);
    return map;
}

static uint64_t backed_bytes(int fd)
{
    struct stat st;
    CHECK_EQ(fstat(fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* Return the number of pages of [at, at + n) that have a page table entry in this process. */
static size_t present_pages(const unsigned char *at, size_t n)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    size_t count = 0, size = (size_t)sysconf(_SC_PAGESIZE);
    for (uintptr_t page = (uintptr_t)at / size; page < ((uintptr_t)at + n + size - 1) / size; page++) {
        uint64_t entry = 0;
        CHECK_EQ(pread(fd, &entry, 8, (off_t)(page * 8)), 8);
        count += entry >> 63;
    }
    close(fd);
    return count;
}

static void *return_arg(void *arg)
{
    return arg;
}

static int count_threads(void)
{
    DIR *dir = opendir("/proc/self/task");
    CHECK(dir != NULL);
    int n = 0;
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 2;
}

/* True on Linux 5.14 and later, if it is not emulated. */
static bool kernel_populates(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *map = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(map != MAP_FAILED);
    bool works = madvise(map, page, 23 /* MADV_POPULATE_WRITE */) == 0 && present_pages(map, page) == 1;
    munmap(map, page);
    return works;
}

static const char *const STATES[] = {"mapped", "backed", "unbacked"};

static void check_fill(enum prs_page_state state, bool with_map, size_t skew, size_t n, unsigned threads)
{
    size_t size = (n + skew + 3 * 4096) & ~(size_t)4095;
    int fd = new_file(size);
    unsigned char *other = map_file(fd, size), *from = pattern(n, n + skew);
    if (state != PRS_PAGES_UNBACKED)
        memset(other, 0x77, size);
    unsigned char *map = map_file(fd, size);
    if (state == PRS_PAGES_MAPPED)
        memset(map, 0x77, size);
    size_t mapped_from = 12345678;
    int rc = prs_fill(fd, skew, with_map ? map + skew : NULL, from, n, state, threads, &mapped_from);
    CHECK_MSG(rc == 0, "%s, %zu bytes: %d", STATES[state], n, rc);
    CHECK(mapped_from <= n);
    if (n > 0 && (!with_map || (state == PRS_PAGES_UNBACKED && threads == 1)))
        CHECK_EQ(mapped_from, n);
    if (with_map && (state == PRS_PAGES_MAPPED || (state == PRS_PAGES_BACKED && kernel_populates())))
        CHECK_EQ(mapped_from, 0);
    if (mapped_from < n) {
        size_t pages = (skew + n - 1) / 4096 - (skew + mapped_from) / 4096 + 1;
        CHECK_EQ(present_pages(map + skew + mapped_from, n - mapped_from), pages);
    }
    CHECK_MEM(other + skew, from, n);
    unsigned char rest = state == PRS_PAGES_UNBACKED ? 0 : 0x77;
    for (size_t i = 0; i < skew; i++)
        CHECK(other[i] == rest);
    for (size_t i = skew + n; i < size; i++)
        CHECK(other[i] == rest);
    munmap(map, size);
    munmap(other, size);
    close(fd);
    free(from);
}

TEST(fill_in_every_state)
{
    static const size_t sizes[] = {0, 1, 4095, 4096, 100001, 300000, ((size_t)5 << 20) + 77};
    pthread_t first; /* a sanitizer starts its own thread when the first thread is created */
    CHECK_EQ(pthread_create(&first, NULL, return_arg, NULL), 0);
    pthread_join(first, NULL);
    usleep(50000);
    int before = count_threads();
    for (int state = 0; state <= PRS_PAGES_UNBACKED; state++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (unsigned threads = 0; threads < 4; threads++)
                for (int with_map = 0; with_map < 2; with_map++)
                    check_fill((enum prs_page_state)state, with_map, (size_t)(s + threads) * 1333, sizes[s], threads);
    for (int i = 0; i < 6000 && count_threads() > before; i++)
        usleep(10000); /* a joined thread is visible until the kernel has removed it */
    CHECK_EQ(count_threads(), before);
}

TEST(fill_of_many_pieces)
{
    for (int state = 0; state <= PRS_PAGES_UNBACKED; state++)
        check_fill((enum prs_page_state)state, true, 4096 * 3 + 64, ((size_t)33 << 20) + 5, 0);
}

static size_t fill_cold(size_t n, unsigned threads)
{
    int fd = new_file(n + 8192);
    unsigned char *map = map_file(fd, n + 8192), *from = pattern(n, 4);
    size_t mapped_from = 0;
    lame = 1;
    int rc = prs_fill(fd, 100, map + 100, from, n, PRS_PAGES_UNBACKED, threads, &mapped_from);
    lame = 0;
    CHECK_EQ(rc, 0);
    if (mapped_from < n)
        CHECK_EQ(present_pages(map + 100 + mapped_from, n - mapped_from),
                 prs_pages_end(100 + mapped_from, n - mapped_from) - prs_pages_first(100 + mapped_from));
    CHECK_MEM(map + 100, from, n);
    munmap(map, n + 8192);
    close(fd);
    free(from);
    return mapped_from;
}

/* Repeat until the rest is within the limits, because a busy machine may delay either thread. */
static size_t fill_cold_within(size_t n, unsigned threads, size_t least, size_t most)
{
    size_t left = fill_cold(n, threads);
    for (int i = 1; i < 20 && (left < least || left > most); i++)
        left = fill_cold(n, threads);
    return left;
}

TEST(helpers_fill_unbacked_pages_from_the_back)
{
    size_t n = ((size_t)12 << 20) + 3;
    if (!kernel_populates() || prs_cpu_count() < 2)
        SKIP("no second CPU, or no populate");
    cpus = CPUS_DIFFER;
    size_t with_1 = fill_cold_within(n, 2, 1, n / 2), with_2 = fill_cold_within(n, 3, 1, n / 2);
    cpus = CPUS_SAME; /* a helper stops when it detects that it is on the caller's CPU */
    size_t beside = fill_cold_within(n, 2, n / 2 + 1, n);
    cpus = CPUS_AS_THEY_ARE;
    unwilling = 3;
    cpus = CPUS_DIFFER;
    size_t after_3 = fill_cold_within(n, 2, n - 3 * 262144, n - 1), after_6 = fill_cold(n, 3);
    unwilling = 0;
    cpus = CPUS_AS_THEY_ARE;
    CHECK_MSG(after_3 < n && after_3 >= n - 3 * 262144, "left %zu of %zu", after_3, n);
    CHECK_MSG(after_6 <= n && after_6 >= n - 6 * 262144, "left %zu of %zu", after_6, n);
    CHECK_MSG(with_1 > 0 && with_1 <= n / 2, "one helper left %zu of %zu", with_1, n);
    CHECK_MSG(with_2 > 0 && with_2 <= n / 2, "two helpers left %zu of %zu", with_2, n);
    CHECK_MSG(beside > n / 2, "a helper on the same CPU left %zu of %zu", beside, n);
}

TEST(fill_and_populate_without_the_kernels_help)
{
    size_t n = (size_t)9 << 20;
    int fd = new_file(n);
    unsigned char *from = pattern(n, 4);
    for (int state = PRS_PAGES_BACKED; state <= PRS_PAGES_UNBACKED; state++)
        for (int limit = 1; limit <= 2; limit++) {
            unsigned char *map = map_file(fd, n);
            size_t mapped_from = 0;
            unwilling = limit;
            populates = 0;
            int rc = prs_fill(fd, 0, map, from + limit, n - 2, (enum prs_page_state)state, 1, &mapped_from);
            unwilling = 0;
            CHECK_EQ(rc, 0);
            CHECK_EQ(mapped_from, n - 2); /* the mapped pages are not contiguous, so none is reported */
            CHECK_MEM(map, from + limit, n - 2);
            munmap(map, n);
        }
    CHECK_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)n), 0);
    unsigned char *map = map_file(fd, n);
    unwilling = 1;
    populates = 1;
    int rc = prs_populate(fd, 4096, map + 4096, n - 4096, PRS_PAGES_UNBACKED, 1);
    unwilling = 0;
    CHECK_EQ(rc, 0);
    CHECK_EQ(backed_bytes(fd), n - 4096);
    CHECK_EQ(present_pages(map + 4096, n - 4096), n / 4096 - 1);
    munmap(map, n);
    close(fd);
    free(from);
}

TEST(nonsense_is_refused)
{
    int fd = new_file(8192);
    unsigned char *map = map_file(fd, 8192), byte = 1;
    CHECK_EQ(prs_fill(fd, 0, map + 1, &byte, 1, PRS_PAGES_MAPPED, 0, NULL), -EINVAL);
    CHECK_EQ(prs_fill(fd, UINT64_MAX, NULL, &byte, 1, PRS_PAGES_BACKED, 0, NULL), -EFBIG);
    CHECK_EQ(prs_fill(fd, 5, NULL, &byte, SIZE_MAX, PRS_PAGES_BACKED, 0, NULL), -EFBIG);
    CHECK_EQ(prs_fill(-1, 0, NULL, &byte, 1, PRS_PAGES_UNBACKED, 0, NULL), -EBADF);
    CHECK_EQ(prs_fill(fd, 0, map, &byte, 1, (enum prs_page_state)9, 0, NULL), -EINVAL);
    CHECK_EQ(prs_populate(fd, 0, NULL, 1, PRS_PAGES_UNBACKED, 0), -EINVAL);
    CHECK_EQ(prs_populate(fd, 0, map + 5, 1, PRS_PAGES_UNBACKED, 0), -EINVAL);
    CHECK_EQ(prs_populate(fd, UINT64_MAX, map, 1, PRS_PAGES_UNBACKED, 0), -EFBIG);
    CHECK_EQ(prs_populate(fd, 4096, map, SIZE_MAX, PRS_PAGES_UNBACKED, 0), -EFBIG);
    CHECK_EQ(prs_populate(fd, 0, map, 0, PRS_PAGES_UNBACKED, 0), 0);
    CHECK_EQ(map[0], 0);
    munmap(map, 8192);
    close(fd);
}

TEST(populate_backs_and_maps_and_keeps_contents)
{
    size_t n = (size_t)6 << 20;
    int fd = new_file(n);
    unsigned char *map = map_file(fd, n);
    CHECK_EQ(prs_populate(fd, 4096 + 7, map + 4096 + 7, n - 8192, PRS_PAGES_UNBACKED, 0), 0);
    CHECK_EQ(present_pages(map + 4096, n - 8192 + 7), (n - 8192) / 4096 + 1);
    CHECK_EQ(backed_bytes(fd), n - 4096);
    memset(map, 3, n);
    munmap(map, n);
    map = map_file(fd, n);
    CHECK_EQ(prs_populate(fd, 0, map, n, PRS_PAGES_BACKED, 0), 0);
    CHECK_EQ(present_pages(map, n), n / 4096);
    for (size_t i = 0; i < n; i += 512)
        CHECK(map[i] == 3);
    munmap(map, n);
    close(fd);
}

/* MADV_POPULATE_READ makes writable page table entries, so the second put to these pages is fast. */
TEST(backed_pages_are_mapped_writable)
{
    size_t n = (size_t)4 << 20;
    int fd = new_file(n);
    unsigned char *from = pattern(n, 1);
    CHECK_EQ(prs_fill(fd, 0, NULL, from, n, PRS_PAGES_UNBACKED, 1, NULL), 0);
    unsigned char *map = map_file(fd, n);
    CHECK_EQ(prs_populate(fd, 0, map, n, PRS_PAGES_BACKED, 1), 0);
    int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    CHECK(zero >= 0);
    struct rusage before, after;
    getrusage(RUSAGE_THREAD, &before);
    for (size_t i = 0; i < n; i += 4096) /* the kernel writes, so that the sanitizers' shadow memory is not touched */
        CHECK_EQ(syscall(SYS_read, zero, map + i, 1), 1);
    getrusage(RUSAGE_THREAD, &after);
    long faults = after.ru_minflt - before.ru_minflt;
    munmap(map, n);
    close(zero);
    close(fd);
    free(from);
    if (!kernel_populates()) {
        SKIP("no populate here");
    }
#if defined(__x86_64__)
    CHECK_MSG(faults < (long)(n / 4096 / 8), "%ld write faults", faults);
#else
    printf("     %ld write faults in %zu pages\n", faults, n / 4096); /* this only affects the speed */
#endif
}

/* ---- areas --------------------------------------------------------------------------------------- */

typedef struct test_area {
    prs_area area;
    size_t size; /* pages of the area; the file has one more page before them */
    unsigned char *view;
} test_area;

static test_area new_area_on(int fd, size_t size)
{
    test_area t = {.size = size};
    t.view = map_file(fd, size + 4096) + 4096;
    t.area.fd = fd;
    t.area.base = 4096;
    t.area.map = (char *)map_file(fd, size + 4096) + 4096;
    t.area.backed = prs_pages_at(calloc(1, prs_pages_bytes(size / 4096)), size / 4096);
    t.area.mapped = prs_pages_at(calloc(1, prs_pages_bytes(size / 4096)), size / 4096);
    return t;
}

static test_area new_area(size_t size)
{
    return new_area_on(new_file(size + 4096), size);
}

static void drop_area(test_area *t)
{
    munmap(t->view - 4096, t->size + 4096);
    munmap(t->area.map - 4096, t->size + 4096);
    close(t->area.fd);
    free((void *)t->area.backed.words);
    free((void *)t->area.mapped.words);
}

/* Check that the bitmaps agree with the kernel. */
static void check_marks(const test_area *t)
{
    uint64_t pages = t->size / 4096;
    CHECK_EQ(prs_pages_count(t->area.backed, 0, pages) * 4096, backed_bytes(t->area.fd));
    for (uint64_t p = 0; p < pages; p++)
        if (prs_pages_test(t->area.mapped, p))
            CHECK_EQ(present_pages((unsigned char *)t->area.map + p * 4096, 1), 1);
}

TEST(an_area_gets_warm_within_three_puts)
{
    size_t n = (size_t)20 << 20;
    test_area t = new_area(n + 8192);
    uint64_t grown;
    for (uint64_t put = 0; put < 3; put++) {
        unsigned char *from = pattern(n, put + 1);
        CHECK_EQ(prs_area_missing(&t.area, 100, n), put == 0 ? n + 4096 : 0);
        CHECK_EQ(prs_area_fill(&t.area, 100, from, n, 0, &grown), 0);
        CHECK_EQ(grown, put == 0 ? n + 4096 : 0);
        CHECK_MEM(t.view + 100, from, n);
        check_marks(&t);
        free(from);
    }
    CHECK(!kernel_populates() || prs_pages_all(t.area.mapped, 0, n / 4096 + 1));
    drop_area(&t);
}

TEST(an_area_without_mapping_is_written_through_the_file)
{
    size_t n = (size_t)5 << 20;
    test_area t = new_area(n);
    prs_area blind = t.area;
    blind.map = NULL;
    blind.mapped = prs_pages_at(NULL, 0);
    unsigned char *from = pattern(n, 2);
    for (int put = 0; put < 2; put++)
        CHECK_EQ(prs_area_fill(&blind, 10, from + put, n - 100, 0, NULL), 0);
    CHECK_MEM(t.view + 10, from + 1, n - 100);
    CHECK_EQ(prs_area_populate(&blind, 0, 0, 0, NULL), 0);
    check_marks(&t);
    free(from);
    drop_area(&t);
}

TEST(an_area_refuses_ranges_outside)
{
    test_area t = new_area(1 << 20);
    unsigned char byte = 1;
    uint64_t grown = 5;
    CHECK_EQ(prs_area_fill(&t.area, 1 << 20, &byte, 1, 0, &grown), -EFAULT);
    CHECK_EQ(grown, 0);
    CHECK_EQ(prs_area_fill(&t.area, UINT64_MAX, &byte, 1, 0, NULL), -EFAULT);
    CHECK_EQ(prs_area_fill(&t.area, 1, &byte, SIZE_MAX, 0, NULL), -EFAULT);
    CHECK_EQ(prs_area_fill(&t.area, 0, NULL, 1, 0, NULL), -EINVAL);
    CHECK_EQ(prs_area_punch(&t.area, 4096, 1 << 20, NULL), -EFAULT);
    CHECK_EQ(prs_area_populate(&t.area, UINT64_MAX - 5, 10, 0, NULL), -EFAULT);
    CHECK_EQ(prs_area_fill(&t.area, 1 << 20, NULL, 0, 0, NULL), 0);
    CHECK_EQ(prs_area_missing(&t.area, 0, SIZE_MAX), 0);
    check_marks(&t);
    drop_area(&t);
}

TEST(random_fills_populates_and_punches_against_a_model)
{
    enum { SIZE = 3 << 20 };
    test_area t = new_area(SIZE);
    unsigned char *model = calloc(1, SIZE), *from = pattern(2 * SIZE, 3);
    uint64_t seed = test_seed(12), total = 0;
    for (int step = 0; step < 300; step++) {
        uint64_t off = test_random(&seed) % SIZE, n = test_random(&seed) % (SIZE - off + 1), change = 0;
        if (test_random(&seed) % 2)
            n %= 9000;
        switch (test_random(&seed) % 5) {
        case 0: {
            CHECK_EQ(prs_area_punch(&t.area, off, n, &change), 0);
            uint64_t a = (off + 4095) & ~4095u, b = (off + n) & ~(uint64_t)4095;
            if (a < b)
                memset(model + a, 0, b - a);
            total -= change;
            break;
        }
        case 1:
            CHECK_EQ(prs_area_populate(&t.area, off, n, 2, &change), 0);
            total += change;
            break;
        default: {
            const unsigned char *src = from + test_random(&seed) % SIZE;
            CHECK_EQ(prs_area_fill(&t.area, off, src, n, 2, &change), 0);
            memcpy(model + off, src, n);
            total += change;
        }
        }
        CHECK_EQ(total, prs_pages_count(t.area.backed, 0, SIZE / 4096) * 4096);
        CHECK_EQ(total, backed_bytes(t.area.fd));
    }
    check_marks(&t);
    CHECK_MEM(t.view, model, SIZE);
    free(model);
    free(from);
    drop_area(&t);
}

/* Threads fill neighbouring ranges that share pages at their edges. */
enum { NEIGHBOURS = 4, SHARE = (2 << 20) + 1000 };

typedef struct neighbour {
    const prs_area *area;
    const unsigned char *from;
    size_t at;
    uint64_t grown;
    int rc;
} neighbour;

static void *fill_share(void *arg)
{
    neighbour *me = arg;
    me->rc = prs_area_fill(me->area, me->at, me->from + me->at, SHARE, 2, &me->grown);
    return NULL;
}

TEST(neighbours_on_one_page_fill_at_the_same_time)
{
    size_t n = (size_t)NEIGHBOURS * SHARE, size = (n + 4095) & ~(size_t)4095;
    unsigned char *from = pattern(n, 5);
    for (int round = 0; round < 5; round++) {
        test_area t = new_area(size);
        neighbour all[NEIGHBOURS];
        pthread_t thread[NEIGHBOURS];
        uint64_t grown = 0;
        for (size_t i = 0; i < NEIGHBOURS; i++) {
            all[i] = (neighbour){.area = &t.area, .from = from, .at = i * SHARE};
            CHECK_EQ(pthread_create(&thread[i], NULL, fill_share, &all[i]), 0);
        }
        for (size_t i = 0; i < NEIGHBOURS; i++) {
            pthread_join(thread[i], NULL);
            CHECK_EQ(all[i].rc, 0);
            grown += all[i].grown;
        }
        CHECK_EQ(grown, size);
        CHECK_MEM(t.view, from, n);
        check_marks(&t);
        drop_area(&t);
    }
    free(from);
}

static test_area beside;
static unsigned char neighbours[4096];

static void a_neighbour_writes(void)
{
    CHECK_EQ(prs_area_populate(&beside.area, 4 * 4096, 4096, 1, NULL), 0);
    memcpy(beside.area.map + 4 * 4096, neighbours, 4096);
}

TEST(who_populates_in_vain_takes_nothing_from_others)
{
    size_t size = 32 * 4096;
    int fd = file_on_tmpfs("size=64k");
    if (fd < 0)
        SKIP("no tmpfs can be mounted here");
    CHECK_EQ(ftruncate(fd, (off_t)size + 4096), 0);
    test_area t = new_area_on(fd, size);
    beside = t; /* simulates another process, with a separate bitmap of mapped pages */
    beside.area.mapped = prs_pages_at(calloc(1, prs_pages_bytes(size / 4096)), size / 4096);
    memset(neighbours, 0xA5, sizeof neighbours);
    meanwhile = a_neighbour_writes; /* called after the bitmap was read and before the failure */
    CHECK_EQ(prs_area_populate(&t.area, 0, size, 1, NULL), -ENOSPC);
    CHECK(meanwhile == NULL);
    CHECK_EQ(prs_pages_count(t.area.backed, 0, size / 4096), 1);
    CHECK_MEM(t.view + 4 * 4096, neighbours, 4096);
    free((void *)beside.area.mapped.words);
    drop_area(&t);
}

TEST(a_full_file_system_is_an_error_and_keeps_nothing)
{
    size_t size = (size_t)16 << 20;
    int fd = file_on_tmpfs("size=4m"), rc[5] = {0};
    if (fd < 0)
        SKIP("no tmpfs can be mounted here");
    CHECK_EQ(ftruncate(fd, (off_t)size + 4096), 0);
    test_area t = new_area_on(fd, size);
    unsigned char *from = pattern(size, 6);
    uint64_t grown;
    CHECK_EQ(prs_area_fill(&t.area, 0, from, 1 << 20, 0, &grown), 0);
    rc[0] = prs_area_fill(&t.area, 4096, from, 12 << 20, 0, &grown); /* some pages are backed, others are not */
    rc[1] = prs_area_fill(&t.area, 1 << 20, from, 12 << 20, 1, &grown);
    lame = 1; /* slow the caller down, so that the helper fills the file system */
    cpus = CPUS_DIFFER;
    rc[4] = prs_area_fill(&t.area, 1 << 20, from, 12 << 20, 2, &grown);
    lame = 0;
    cpus = CPUS_AS_THEY_ARE;
    rc[2] = prs_area_populate(&t.area, 0, 12 << 20, 0, &grown); /* we own the whole range, so we may punch it */
    CHECK_EQ(prs_area_punch(&t.area, 1 << 20, 11 << 20, NULL), 0);
    /* Pages that are marked as backed but do not exist also cause an error. */
    prs_pages_set(t.area.backed, 512, 2048);
    rc[3] = prs_area_fill(&t.area, 2 << 20, from, 8 << 20, 0, &grown);
    prs_pages_clear(t.area.backed, 512, 2048);
    CHECK_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096 + (2 << 20), 8 << 20), 0);
    for (int i = 0; i < 5; i++)
        CHECK_MSG(rc[i] == -ENOSPC, "case %d: %d", i, rc[i]);
    check_marks(&t);
    CHECK(backed_bytes(fd) <= (2 << 20) + 4096);
    /* Afterwards a fill succeeds again. */
    CHECK_EQ(prs_area_fill(&t.area, 1 << 20, from, 2 << 20, 0, &grown), 0);
    CHECK_EQ(grown, 2 << 20);
    CHECK_MEM(t.view + (1 << 20), from, 2 << 20);
    free(from);
    drop_area(&t);
}

TEST_MAIN()
