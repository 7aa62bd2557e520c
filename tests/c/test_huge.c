/* test_huge.c - tests of huge pages for puts into unused pages, also on kernels without huge pages. */
#include "corpses.h"

#include "huge.h"
#include "tmpfs.h"
#include <sys/resource.h>
#include <sys/syscall.h>

#define BLOCK ((size_t)PRS_HUGE)

/* These functions replace the engine's requests for huge pages. They count the requests and, from a certain request on,
 * refuse or delay them, kill the process, or report success without an effect. The replaced clock is `ahead` of the
 * real clock, or of `frozen`. */
static prs_atomic_u32 wishes;
static uint32_t refuse, slow, asleep, deadly;
static int refusal;
static bool lying;
static uint64_t ahead;
static time_t frozen;

int clock_gettime(clockid_t clock, struct timespec *ts)
{
    int rc = (int)syscall(SYS_clock_gettime, clock, ts);
    if (clock == CLOCK_MONOTONIC) {
        if (frozen)
            *ts = (struct timespec){frozen, 0};
        ts->tv_sec += (time_t)ahead;
    }
    return rc;
}

static void spin(long ms)
{
    struct timespec begun, now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begun);
    do
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    while ((now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000 < ms);
}

int madvise(void *at, size_t n, int advice)
{
    if (advice == 25) { /* MADV_COLLAPSE */
        uint32_t wish = prs_fetch_add_relaxed(&wishes, 1) + 1;
        if (deadly && wish >= deadly)
            kill(getpid(), SIGKILL);
        if (slow && wish >= slow)
            spin(100);
        if (asleep && wish >= asleep)
            usleep(300000);
        if (refuse && wish >= refuse) {
            errno = refusal;
            return -1;
        }
        if (lying)
            return 0;
    }
    return (int)syscall(SYS_madvise, at, n, advice);
}

/* Let all requests succeed; a request counts as slow if it takes 50 ms of CPU time or 200 ms of real time. */
static void begin(void)
{
    prs_store_relaxed(&wishes, 0);
    refuse = slow = asleep = deadly = 0;
    lying = false;
    prs_huge_forget_();
    prs_huge_limits_.cpu = 50000000;
    prs_huge_limits_.real = 200000000;
}

static void without_limits(void)
{
    begin();
    prs_huge_limits_.cpu = prs_huge_limits_.real = UINT64_MAX;
}

/* ---- areas ------------------------------------------------------------------------------------------- */

typedef struct test_area {
    prs_area area;
    size_t size;
} test_area;

/* Make an area; as in a store, the file begins with a block that does not belong to it. */
static test_area area_of(int fd, size_t size, size_t skew)
{
    test_area t = {.area = {.fd = fd, .base = BLOCK}, .size = size};
    CHECK_EQ(ftruncate(fd, (off_t)(BLOCK + size)), 0);
    char *room = mmap(NULL, size + 2 * BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED);
    room += (-(uintptr_t)room & (BLOCK - 1)) + skew;
    t.area.map = mmap(room, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, (off_t)BLOCK);
    CHECK(t.area.map != MAP_FAILED);
    size_t words = prs_pages_bytes(size / PRS_PAGE);
    void *shared = mmap(NULL, words, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    t.area.backed = prs_pages_at(shared, size / PRS_PAGE);
    t.area.mapped = prs_pages_at(calloc(1, words), size / PRS_PAGE);
    return t;
}

static test_area new_area(size_t size)
{
    return area_of(memfd_create("test", MFD_CLOEXEC), size, 0);
}

static void drop_area(test_area *t)
{
    munmap(t->area.map, t->size);
    munmap(t->area.backed.words, prs_pages_bytes(t->size / PRS_PAGE));
    free((void *)t->area.mapped.words);
    close(t->area.fd);
}

/* Return the number of bytes of the mapping at `at` that are mapped as huge pages of 2 MiB. */
static size_t huge_at(const void *at)
{
    char line[512];
    size_t kib = 0;
    bool here = false;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    CHECK(smaps != NULL);
    while (fgets(line, sizeof line, smaps)) {
        unsigned long from, to, of;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            here = from <= (uintptr_t)at && (uintptr_t)at < to;
        else if (here && sscanf(line, "ShmemPmdMapped: %lu kB", &of) == 1)
            kib += of;
    }
    fclose(smaps);
    return kib << 10;
}

static uint64_t backed_bytes(int fd)
{
    struct stat st;
    CHECK_EQ(fstat(fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static unsigned char *bytes(size_t n, uint64_t seed)
{
    uint64_t *p = malloc(n + 8);
    CHECK(p != NULL);
    for (size_t i = 0; i <= n / 8; i++)
        p[i] = seed + i * 0x9E3779B97F4A7C15u;
    return (unsigned char *)p;
}

/* Fill a range, which must succeed by any method, and check the marks that it leaves. */
static void fill(test_area *t, size_t off, size_t n, unsigned threads)
{
    unsigned char *from = bytes(n, off + n);
    uint64_t grown, missing = prs_area_missing(&t->area, off, n);
    CHECK_EQ(prs_area_fill(&t->area, off, from, n, threads, &grown), 0);
    CHECK_EQ(grown, missing);
    CHECK_MEM(t->area.map + off, from, n);
    CHECK_EQ(prs_area_missing(&t->area, off, n), 0);
    CHECK_EQ(prs_pages_count(t->area.backed, 0, t->area.backed.count) * PRS_PAGE, backed_bytes(t->area.fd));
    free(from);
}

/* Return whether this kernel can back the file by huge pages: from Linux 6.1 on, unless shmem_enabled is "deny". */
static bool to_be_had(void)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    test_area t = area_of(fd, BLOCK, 0);
    without_limits();
    fill(&t, 0, BLOCK, 1);
    bool had = huge_at(t.area.map) != 0;
    drop_area(&t);
    return had;
}

#define HUGE_PAGES()  \
    if (!to_be_had()) \
    SKIP("no huge pages of shared memory here")

TEST(whole_blocks_are_found)
{
    static const struct {
        uint64_t off;
        size_t n, skip, bytes;
    } cases[] = {
        {0, BLOCK, 0, BLOCK},
        {0, BLOCK - 1, 0, 0},
        {1, BLOCK, 0, 0},
        {1, 2 * BLOCK - 1, BLOCK - 1, BLOCK},
        {1, 2 * BLOCK - 2, 0, 0},
        {5 * BLOCK, 3 * BLOCK + 7, 0, 3 * BLOCK},
        {5 * BLOCK - 7, 3 * BLOCK + 7, 7, 3 * BLOCK},
        {3, 0, 0, 0},
        {UINT64_MAX - 5, 5, 0, 0},
    };
    without_limits();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t skip, n;
        const char *map = (const char *)(uintptr_t)(cases[i].off + 64 * BLOCK);
        CHECK_EQ(prs_huge_blocks(cases[i].off, map, cases[i].n, &skip, &n), cases[i].bytes != 0);
        if (cases[i].bytes)
            CHECK(skip == cases[i].skip && n == cases[i].bytes);
        CHECK(!prs_huge_blocks(cases[i].off, map + PRS_PAGE, cases[i].n, &skip, &n));
        CHECK(!prs_huge_blocks(cases[i].off, NULL, cases[i].n, &skip, &n));
    }
}

TEST(what_nobody_used_gets_huge_pages)
{
    HUGE_PAGES();
    for (unsigned threads = 1; threads <= 3; threads++) {
        without_limits();
        test_area t = new_area(16 * BLOCK);
        fill(&t, 100, 9 * BLOCK, threads);
        CHECK_EQ(prs_load_relaxed(&wishes), 8);
        CHECK_EQ(huge_at(t.area.map), 8 * BLOCK);
        CHECK(prs_pages_all(t.area.mapped, BLOCK / PRS_PAGE, 8 * BLOCK / PRS_PAGE));
        fill(&t, 0, 10 * BLOCK, threads); /* the range is already mapped */
        CHECK_EQ(prs_load_relaxed(&wishes), 8);
        CHECK_EQ(prs_area_punch(&t.area, 2 * BLOCK + 5 * PRS_PAGE, 3 * BLOCK, NULL), 0);
        fill(&t, 0, 10 * BLOCK, threads);
        CHECK_EQ(prs_load_relaxed(&wishes), 10); /* the hole contains two whole blocks */
        drop_area(&t);
    }
}

TEST(what_is_only_backed_reads_as_zero)
{
    HUGE_PAGES();
    without_limits();
    test_area t = new_area(4 * BLOCK);
    CHECK_EQ(prs_area_populate(&t.area, 0, 4 * BLOCK, 2, NULL), 0);
    CHECK_EQ(huge_at(t.area.map), 4 * BLOCK);
    for (size_t i = 0; i < 4 * BLOCK; i += 61)
        CHECK_EQ(t.area.map[i], 0);
    drop_area(&t);
}

TEST(who_is_refused_does_without)
{
    HUGE_PAGES();
    static const struct {
        uint32_t refuse;
        int error;
        uint32_t slow, asleep, wishes;
    } cases[] = {
        {1, EINVAL, 0, 0, 1}, {1, ENOMEM, 0, 0, 1}, {4, EAGAIN, 0, 0, 4}, {8, EBUSY, 0, 0, 8},
        {0, 0, 1, 0, 1},      {0, 0, 5, 0, 5},      {0, 0, 0, 3, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (unsigned threads = SANITIZED_THREADS ? 3 : 1; threads <= 3; threads += 2) {
            without_limits();
            if (cases[i].slow || cases[i].asleep)
                begin();
            refuse = cases[i].refuse, refusal = cases[i].error, slow = cases[i].slow, asleep = cases[i].asleep;
            test_area t = new_area(20 * BLOCK);
            errno = 77;
            int64_t begun = prs_now();
            fill(&t, BLOCK / 2, 15 * BLOCK, threads);
            CHECK_EQ(errno, 77);
            uint32_t seen = prs_load_relaxed(&wishes);
            CHECK(threads == 1 ? seen == cases[i].wishes : seen < 14);
            fill(&t, 16 * BLOCK, 3 * BLOCK, threads); /* no requests are made for a while */
            if (prs_now() - begun < 1000000000)       /* the shortest pause, unless a busy machine took longer */
                CHECK_EQ(prs_load_relaxed(&wishes), seen);
            drop_area(&t);
        }
    }
}

/* Advance the clock to the next request, make the request, and return the seconds until then. */
static uint64_t pause_of(unsigned threads)
{
    uint64_t begun = ahead;
    size_t skip, n;
    while (!prs_huge_blocks(0, (const char *)BLOCK, BLOCK, &skip, &n))
        ahead++;
    uint32_t before = prs_load_relaxed(&wishes);
    test_area t = new_area(8 * BLOCK);
    fill(&t, 0, 8 * BLOCK, threads);
    drop_area(&t);
    CHECK(prs_load_relaxed(&wishes) > before);
    return ahead - begun;
}

TEST(pauses_get_longer_until_all_goes_well)
{
    SEVERAL_PROCESSES(); /* skipped under TSan, because this case measures time */
    HUGE_PAGES();
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    frozen = now.tv_sec;
    for (unsigned threads = 1; threads <= 3; threads += 2) {
        without_limits();
        pause_of(threads); /* huge pages work on this machine */
        refuse = 1, refusal = EINVAL;
        pause_of(threads);
        CHECK_EQ(pause_of(threads), 1);
        CHECK_EQ(pause_of(threads), 2);
        CHECK_EQ(pause_of(threads), 4);
        refuse = 0;
        CHECK_EQ(pause_of(threads), 8);
        refuse = 1;
        pause_of(threads);
        CHECK_EQ(pause_of(threads), 1);
        CHECK_EQ(pause_of(threads), 2);
        for (int i = 0; i < 5; i++)
            pause_of(threads);
        CHECK_EQ(pause_of(threads), 64); /* the longest pause */
    }
    without_limits();
    refuse = 1, refusal = EINVAL; /* the first result in this process */
    pause_of(1);
    CHECK_EQ(pause_of(1), 64);
    ahead = 0; /* the clock was set back by more than any pause */
    CHECK_EQ(pause_of(1), 0);
    frozen = 0;
}

TEST(a_mapping_that_lies_otherwise_gets_none)
{
    without_limits();
    test_area t = area_of(memfd_create("test", MFD_CLOEXEC), 4 * BLOCK, PRS_PAGE);
    fill(&t, 0, 4 * BLOCK, 1);
    CHECK_EQ(prs_load_relaxed(&wishes), 0);
    drop_area(&t);
}

TEST(beyond_the_limit_of_a_file_nothing_is_backed)
{
    SEVERAL_PROCESSES();
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(30);
        without_limits();
        test_area t = new_area(8 * BLOCK);
        struct rlimit limit = {5 * BLOCK, 5 * BLOCK};
        unsigned char *from = bytes(4 * BLOCK, 1);
        CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
        CHECK_EQ(prs_area_fill(&t.area, 2 * BLOCK, from, 4 * BLOCK, 1, NULL), -EFBIG); /* ends at block 7 of the file */
        CHECK_EQ(prs_load_relaxed(&wishes), 0);
        CHECK_EQ(backed_bytes(t.area.fd), 0);
        CHECK_EQ(prs_area_fill(&t.area, 0, from, 4 * BLOCK, 1, NULL), 0);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

/* Some kernels report success without doing anything: using such pages would raise SIGBUS. */
TEST(a_lie_is_found_out)
{
    int fd = file_on_tmpfs("size=5m");
    if (fd < 0)
        SKIP("no tmpfs can be mounted here");
    without_limits();
    lying = true;
    test_area t = area_of(fd, 4 * BLOCK, 0);
    unsigned char *from = bytes(4 * BLOCK, 1);
    CHECK_EQ(prs_area_fill(&t.area, 0, from, 4 * BLOCK, 1, NULL), -ENOSPC);
    fill(&t, 0, 2 * BLOCK, 1);
    free(from);
    drop_area(&t);
}

static void fill_up(int fd)
{
    without_limits();
    test_area t = area_of(fd, 16 * BLOCK, 0);
    fill(&t, 0, BLOCK, 1);
    unsigned char *from = bytes(12 * BLOCK, 1);
    for (unsigned threads = 1; threads <= 2; threads++) {
        prs_huge_forget_();
        uint64_t grown;
        CHECK_EQ(prs_area_fill(&t.area, 2 * BLOCK + 5, from, 12 * BLOCK, threads, &grown), -ENOSPC);
        CHECK_EQ(grown, 0);
        CHECK_EQ(prs_pages_count(t.area.backed, 0, t.area.backed.count), BLOCK / PRS_PAGE);
        CHECK_EQ(prs_pages_count(t.area.mapped, 0, t.area.mapped.count), BLOCK / PRS_PAGE);
        CHECK(backed_bytes(fd) <= BLOCK + 2 * PRS_PAGE); /* partial pages stay, because they contain other bytes */
    }
    CHECK_EQ(prs_area_punch(&t.area, 0, 16 * BLOCK, NULL), 0);
    CHECK_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)(17 * BLOCK)), 0);
    prs_huge_forget_();
    fill(&t, 0, 5 * BLOCK, 1);
    free(from);
    drop_area(&t);
}

TEST(a_full_file_system_keeps_nothing)
{
    static const char *const sizes[] = {"size=15m", "size=14m"}; /* full inside a block, or between two blocks */
    for (int i = 0; i < 2; i++) {
        int fd = file_on_tmpfs(sizes[i]);
        if (fd < 0)
            SKIP("no tmpfs can be mounted here");
        fill_up(fd);
    }
}

TEST(who_dies_on_the_way_leaves_what_the_next_one_can_use)
{
    SEVERAL_PROCESSES();
    HUGE_PAGES();
    for (uint32_t at = 1; at <= 8; at += 3) {
        test_area t = new_area(9 * BLOCK);
        pid_t pid = fork();
        if (pid == 0) {
            child_setup(30);
            without_limits();
            deadly = at;
            fill(&t, 5, 8 * BLOCK, 1);
            _exit(0);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        CHECK(backed_bytes(t.area.fd) > 0); /* but these pages are not marked */
        CHECK_EQ(prs_pages_count(t.area.backed, 0, t.area.backed.count), 0);
        without_limits();
        unsigned char *from = bytes(9 * BLOCK, 3);
        CHECK_EQ(prs_area_fill(&t.area, 0, from, 9 * BLOCK, 2, NULL), 0);
        CHECK_MEM(t.area.map, from, 9 * BLOCK);
        CHECK_EQ(huge_at(t.area.map), 9 * BLOCK);
        free(from);
        drop_area(&t);
    }
}

/* ---- a store ------------------------------------------------------------------------------------------ */

static size_t address_space(void)
{
    size_t pages = 0;
    FILE *statm = fopen("/proc/self/statm", "r");
    CHECK(statm != NULL && fscanf(statm, "%zu", &pages) == 1);
    fclose(statm);
    return pages * PRS_PAGE;
}

typedef struct copy {
    void *map;
    size_t len;
    uint8_t *data;
} copy;

static copy copy_of(prs_store *s, const prs_oid *id)
{
    copy c;
    prs_view v;
    prs_error e;
    CHECK_EQ(prs_pin(s, id, &v), PRS_OK);
    CHECK_EQ(prs_cow_open(s, id, &v, &c.map, &c.len, &c.data, &e), PRS_OK);
    return c;
}

TEST(readers_map_them_by_one_entry_each)
{
    HUGE_PAGES();
    prs_store *s = store_of(128 * MIB), *reader = client_of(s);
    prs_oid first = put(s, 300001, 3); /* so that the next objects are not page-aligned */
    size_t n[2] = {20 * MIB, 12 * MIB + 5};
    prs_oid id[2] = {put(s, n[0], 4), put(s, n[1], 5)};
    CHECK(prs_load_relaxed(&wishes) >= (n[0] + n[1]) / BLOCK - 4);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(verify(reader, &id[i], n[i], (uint64_t)(4 + i)), PRS_OK);
    CHECK(huge_at(reader->ro) >= n[0] + n[1] - 6 * BLOCK);

    size_t before = 0;
    for (int round = 0; round < 20; round++) { /* the last address is free, or a mapping of another size uses it */
        copy c[4];
        for (int i = 0; i < 4; i++) {
            c[i] = copy_of(reader, &id[i % 2]);
            CHECK(content_right(c[i].data, n[i % 2], (uint64_t)(4 + i % 2)));
            CHECK(huge_at(c[i].data) >= n[i % 2] - 3 * BLOCK);
            c[i].data[n[1] / 2] ^= 0xFF; /* this write makes a private copy of a page */
        }
        for (int i = 0; i < 4; i++) {
            c[i].data[n[1] / 2] ^= 0xFF;
            CHECK(content_right(c[i].data, n[i % 2], (uint64_t)(4 + i % 2)));
            prs_cow_close(c[i].map, c[i].len);
            prs_unpin(reader, &id[i % 2]);
        }
        if (round == 1)
            before = address_space();
    }
    CHECK(address_space() <= before + BLOCK);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(verify(reader, &id[i], n[i], (uint64_t)(4 + i)), PRS_OK);
        prs_unref(s, &id[i]);
    }
    prs_unref(s, &first);
    close_store(reader);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(without_room_to_look_for_a_place_any_place_will_do)
{
    SEVERAL_PROCESSES();
    if (SANITIZED)
        SKIP("a sanitizer takes more room than there is");
    prs_store *s = store_of(64 * MIB);
    prs_oid id = put(s, 20 * MIB, 4);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(30);
        struct rlimit room = {address_space() + 21 * MIB, RLIM_INFINITY};
        CHECK_EQ(setrlimit(RLIMIT_AS, &room), 0);
        copy c = copy_of(s, &id);
        CHECK(content_right(c.data, 20 * MIB, 4));
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    prs_unref(s, &id);
    close_store(s);
}

TEST(windows_get_them_too)
{
    HUGE_PAGES();
    without_limits();
    prs_store *s = store_of(64 * MIB);
    size_t n = 20 * MIB;
    prs_draft d;
    prs_error e;
    for (int round = 0; round < 3; round++) { /* the pages exist in rounds 2 and 3 */
        CHECK_EQ(prs_alloc(s, n, PRS_ALLOC_WINDOW, &d, &e), PRS_OK);
        CHECK(huge_at(d.window) >= n - 3 * BLOCK);
        content(d.window, n, 9);
        CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
        CHECK_EQ(verify(s, &d.id, n, 9), PRS_OK);
        prs_window_close(s, &d);
        prs_unref(s, &d.id);
    }
    CHECK_EMPTY(s);
    close_store(s);
}

TEST_MAIN()
