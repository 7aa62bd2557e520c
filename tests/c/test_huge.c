/* test_huge.c - huge pages for what is put into pages that nobody used: that they come, and what happens when they do not. */
#include "corpses.h"

#include "huge.h"
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define BLOCK ((size_t)PRS_HUGE)

/* The engine's wishes for huge pages go through this: counted, refused from the `refuse`th on, or slow from the `nap`th on, or deadly. */
static prs_atomic_u32 wishes;
static uint32_t refuse, nap, deadly;
static int refusal;

int madvise(void *at, size_t n, int advice)
{
    if (advice == 25) { /* MADV_COLLAPSE */
        uint32_t wish = prs_fetch_add_relaxed(&wishes, 1) + 1;
        if (deadly && wish >= deadly)
            kill(getpid(), SIGKILL);
        if (nap && wish >= nap)
            usleep(100000);
        if (refuse && wish >= refuse) {
            errno = refusal;
            return -1;
        }
    }
    return (int)syscall(SYS_madvise, at, n, advice);
}

static void begin(uint32_t from, int error, uint32_t slow_from)
{
    prs_store_relaxed(&wishes, 0);
    refuse = from, refusal = error, nap = slow_from;
    prs_huge_forget_();
    prs_huge_slow_ = slow_from ? 50000000 : UINT64_MAX;
}

/* ---- areas ------------------------------------------------------------------------------------------- */

typedef struct test_area {
    prs_area area;
    size_t size;
} test_area;

/* The file begins with a block that is not the area's, as a store's does. */
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

/* Bytes of the mapping at `at` that one entry each maps 2 MiB of. */
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

/* A fill that must succeed, however it is done, and the marks it must leave. */
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
    begin(0, 0, 0);
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
    for (unsigned threads = 1; threads <= 3; threads++) {
        begin(0, 0, 0);
        test_area t = new_area(16 * BLOCK);
        fill(&t, 100, 9 * BLOCK, threads);
        CHECK_EQ(prs_load_relaxed(&wishes), 8);
        CHECK_EQ(huge_at(t.area.map), 8 * BLOCK);
        CHECK(prs_pages_all(t.area.mapped, BLOCK / PRS_PAGE, 8 * BLOCK / PRS_PAGE));
        fill(&t, 0, 10 * BLOCK, threads); /* now it is there */
        CHECK_EQ(prs_load_relaxed(&wishes), 8);
        CHECK_EQ(prs_area_punch(&t.area, 2 * BLOCK + 5 * PRS_PAGE, 3 * BLOCK, NULL), 0);
        fill(&t, 0, 10 * BLOCK, threads);
        CHECK_EQ(prs_load_relaxed(&wishes), 10); /* of the hole, the two blocks that it holds whole */
        drop_area(&t);
    }
}

TEST(what_is_only_backed_reads_as_zero)
{
    begin(0, 0, 0);
    test_area t = new_area(4 * BLOCK);
    CHECK_EQ(prs_area_populate(&t.area, 0, 4 * BLOCK, 2, NULL), 0);
    CHECK_EQ(huge_at(t.area.map), 4 * BLOCK);
    for (size_t i = 0; i < 4 * BLOCK; i += 61)
        CHECK_EQ(t.area.map[i], 0);
    drop_area(&t);
}

TEST(who_is_refused_does_without)
{
    static const struct {
        uint32_t refuse;
        int error;
        uint32_t nap, wishes;
    } cases[] = {
        {1, EINVAL, 0, 1}, {1, ENOMEM, 0, 1}, {4, EAGAIN, 0, 4}, {8, EBUSY, 0, 8}, {0, 0, 1, 1}, {0, 0, 5, 5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        begin(cases[i].refuse, cases[i].error, cases[i].nap);
        test_area t = new_area(20 * BLOCK);
        fill(&t, BLOCK / 2, 9 * BLOCK, 1);
        CHECK_EQ(prs_load_relaxed(&wishes), cases[i].wishes);
        fill(&t, 12 * BLOCK, 3 * BLOCK, 1); /* and asks no more for a while */
        CHECK_EQ(prs_load_relaxed(&wishes), cases[i].wishes);
        drop_area(&t);
        begin(cases[i].refuse, cases[i].error, cases[i].nap);
        t = new_area(20 * BLOCK);
        fill(&t, BLOCK / 2, 16 * BLOCK, 3);
        CHECK(prs_load_relaxed(&wishes) < 15);
        drop_area(&t);
    }
}

TEST(a_mapping_that_lies_otherwise_gets_none)
{
    begin(0, 0, 0);
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
        begin(0, 0, 0);
        test_area t = new_area(8 * BLOCK);
        struct rlimit limit = {5 * BLOCK, 5 * BLOCK};
        unsigned char *from = bytes(4 * BLOCK, 1);
        CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
        CHECK_EQ(prs_area_fill(&t.area, 2 * BLOCK, from, 4 * BLOCK, 1, NULL), -EFBIG); /* in the file: to the 7th */
        CHECK_EQ(prs_load_relaxed(&wishes), 0);
        CHECK_EQ(backed_bytes(t.area.fd), 0);
        CHECK_EQ(prs_area_fill(&t.area, 0, from, 4 * BLOCK, 1, NULL), 0);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

TEST(a_full_file_system_keeps_nothing)
{
    char dir[] = "/tmp/prs-test-tmpfs-XXXXXX", path[64];
    CHECK(mkdtemp(dir) != NULL);
    if (mount("none", dir, "tmpfs", 0, "size=15m") != 0) {
        rmdir(dir);
        SKIP("no tmpfs can be mounted here");
    }
    snprintf(path, sizeof path, "%s/f", dir);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    umount2(dir, MNT_DETACH);
    rmdir(dir);
    CHECK(fd >= 0);
    begin(0, 0, 0);
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
        CHECK(backed_bytes(fd) <= BLOCK + 2 * PRS_PAGE); /* pages that hold other bytes as well stay */
    }
    CHECK_EQ(prs_area_punch(&t.area, 0, 16 * BLOCK, NULL), 0);
    CHECK_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)(17 * BLOCK)), 0);
    prs_huge_forget_();
    fill(&t, 0, 5 * BLOCK, 1);
    free(from);
    drop_area(&t);
}

TEST(who_dies_on_the_way_leaves_what_the_next_one_can_use)
{
    SEVERAL_PROCESSES();
    for (uint32_t at = 1; at <= 8; at += 3) {
        test_area t = new_area(9 * BLOCK);
        pid_t pid = fork();
        if (pid == 0) {
            child_setup(30);
            begin(0, 0, 0);
            deadly = at;
            fill(&t, 5, 8 * BLOCK, 1);
            _exit(0);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        CHECK(backed_bytes(t.area.fd) > 0); /* and nobody knows */
        CHECK_EQ(prs_pages_count(t.area.backed, 0, t.area.backed.count), 0);
        begin(0, 0, 0);
        unsigned char *from = bytes(9 * BLOCK, 3);
        CHECK_EQ(prs_area_fill(&t.area, 0, from, 9 * BLOCK, 2, NULL), 0);
        CHECK_MEM(t.area.map, from, 9 * BLOCK);
        CHECK_EQ(huge_at(t.area.map), 9 * BLOCK);
        free(from);
        drop_area(&t);
    }
}

/* ---- a store ------------------------------------------------------------------------------------------ */

TEST(readers_map_them_by_one_entry_each)
{
    begin(0, 0, 0);
    prs_store *s = store_of(64 * MIB), *reader = client_of(s);
    size_t n = 20 * MIB;
    prs_oid id = put(s, n, 4);
    CHECK(prs_load_relaxed(&wishes) >= n / BLOCK - 2);
    CHECK_EQ(verify(reader, &id, n, 4), PRS_OK);
    CHECK(huge_at(reader->ro) >= n - 3 * BLOCK);

    prs_view v;
    prs_error e;
    void *map;
    size_t len;
    uint8_t *data;
    for (int round = 0; round < 3; round++) { /* found a place, tried it again, found it taken */
        void *other = NULL;
        CHECK_EQ(prs_pin(reader, &id, &v), PRS_OK);
        CHECK_EQ(prs_cow_open(reader, &id, &v, &map, &len, &data, &e), PRS_OK);
        CHECK(content_right(data, n, 4));
        CHECK(huge_at(data) >= n - 3 * BLOCK);
        data[n / 2] ^= 1; /* a copy of a page from here on, and of no other byte */
        data[n / 2] ^= 1;
        CHECK(content_right(data, n, 4));
        data[n / 2] ^= 1;
        if (round == 1)
            CHECK_EQ(prs_cow_open(reader, &id, &v, &other, &len, &data, &e), PRS_OK);
        prs_cow_close(map, len);
        if (other)
            prs_cow_close(other, len);
        prs_unpin(reader, &id);
        CHECK_EQ(verify(reader, &id, n, 4), PRS_OK);
    }
    prs_unref(s, &id);
    close_store(reader);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(windows_get_them_too)
{
    begin(0, 0, 0);
    prs_store *s = store_of(64 * MIB);
    size_t n = 20 * MIB;
    prs_draft d;
    prs_error e;
    CHECK_EQ(prs_alloc(s, n, PRS_ALLOC_WINDOW, &d, &e), PRS_OK);
    CHECK(huge_at(d.window) >= n - 3 * BLOCK);
    content(d.window, n, 9);
    CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
    CHECK_EQ(verify(s, &d.id, n, 9), PRS_OK);
    prs_window_close(s, &d);
    prs_unref(s, &d.id);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST_MAIN()
