/* test_headroom.c - tests of cgroup limits, in simulated directory trees and in a real cgroup that the test creates. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../../csrc/store/platform/fill.h"
#include "../../csrc/store/platform/headroom.h"

#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)

/* ---- simulated trees ----------------------------------------------------------------------------- */

static char root[64];

static void drop_root(void)
{
    char command[128];
    if (!root[0] || getpid() != test_pid_)
        return;
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    root[0] = 0;
    if (system(command) != 0)
        fprintf(stderr, "%s failed\n", command);
}

static void new_root(void)
{
    static int registered;
    if (!registered)
        registered = atexit(drop_root) == 0; /* if a case fails, the next case or the exit removes its tree */
    drop_root();
    strcpy(root, "/tmp/prs-test-headroom-XXXXXX");
    CHECK(mkdtemp(root) != NULL);
}

/* Write a file of the tree and create its directories. */
__attribute__((format(printf, 2, 3))) static void put(const char *path, const char *format, ...)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *at = full + strlen(root) + 1; (at = strchr(at, '/')); at++) {
        *at = 0;
        CHECK(mkdir(full, 0700) == 0 || errno == EEXIST);
        *at = '/';
    }
    FILE *f = fopen(full, "w");
    CHECK_MSG(f != NULL, "%s: %s", full, strerror(errno));
    va_list args;
    va_start(args, format);
    vfprintf(f, format, args);
    va_end(args);
    fclose(f);
}

static void put_meminfo(uint64_t total, uint64_t available)
{
    put("/proc/meminfo", "MemTotal:       %llu kB\nMemFree:         1234 kB\nMemAvailable:   %llu kB\nBuffers: 7 kB\n",
        (unsigned long long)total / 1024, (unsigned long long)available / 1024);
}

static void put_v1(const char *dir, uint64_t limit, uint64_t usage, uint64_t cache)
{
    char path[300];
    snprintf(path, sizeof path, "%s/memory.limit_in_bytes", dir);
    put(path, "%llu\n", (unsigned long long)limit);
    snprintf(path, sizeof path, "%s/memory.usage_in_bytes", dir);
    put(path, "%llu\n", (unsigned long long)usage);
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    put(path,
        "cache 99999999999\ninactive_file 1\nactive_file 2\ntotal_shmem 5000000000\n"
        "total_inactive_file %llu\ntotal_active_file %llu\ntotal_unevictable 4\n",
        (unsigned long long)(cache / 4), (unsigned long long)(cache - cache / 4));
}

static void put_v2(const char *dir, const char *max, const char *high, uint64_t usage, uint64_t cache)
{
    char path[300];
    snprintf(path, sizeof path, "%s/memory.max", dir);
    put(path, "%s\n", max);
    snprintf(path, sizeof path, "%s/memory.high", dir);
    put(path, "%s\n", high);
    snprintf(path, sizeof path, "%s/memory.current", dir);
    put(path, "%llu\n", (unsigned long long)usage);
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    put(path, "anon 5\nfile 77777777777\nshmem 8\ninactive_file %llu\nactive_file %llu\n",
        (unsigned long long)(cache / 2), (unsigned long long)(cache - cache / 2));
}

#define V1_UNLIMITED ((uint64_t)9223372036854771712u)
#define ROOT_MOUNTS "22 1 0:5 / / rw - ext4 /dev/vda rw\n23 22 0:6 / /proc rw - proc proc rw\n"

TEST(only_the_machine_limits)
{
    new_root();
    put("/proc/self/cgroup", "0::/\n");
    put("/proc/self/mountinfo", ROOT_MOUNTS);
    put_meminfo(100 * GIB, 10 * GIB);
    prs_headroom h;
    prs_headroom_limit which;
    CHECK_EQ(prs_headroom_open_at(&h, root), 0);
    CHECK_EQ(prs_headroom_bytes(&h, &which), 8 * GIB); /* 2 % of 100 GiB stay */
    CHECK_EQ(strcmp(which.path, "/proc/meminfo"), 0);
    CHECK_EQ(which.limit, 100 * GIB);
    CHECK_EQ(which.usage, 90 * GIB);
    CHECK_EQ(which.free, 10 * GIB);
    CHECK_EQ(which.margin, 2 * GIB);
    CHECK_EQ(prs_headroom_capacity(&h), 30 * GIB);
    drop_root();
}

TEST(v1_the_tightest_level_decides)
{
    new_root();
    put("/proc/self/cgroup", "5:cpu,cpuacct:/elsewhere\n4:memory:/outer/mid/inner\n0::/x\n");
    put("/proc/self/mountinfo",
        ROOT_MOUNTS "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
                    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
                    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n");
    put_meminfo(64 * GIB, 60 * GIB);
    put_v1("/sys/fs/cgroup/memory", V1_UNLIMITED, 50 * GIB, 0);
    put_v1("/sys/fs/cgroup/memory/outer", 8 * GIB, 6 * GIB, 1 * GIB);
    put_v1("/sys/fs/cgroup/memory/outer/mid", V1_UNLIMITED, 3 * GIB, 0);
    put_v1("/sys/fs/cgroup/memory/outer/mid/inner", 4 * GIB, 1 * GIB, 512 * MIB);
    prs_headroom h;
    prs_headroom_limit which;
    CHECK_EQ(prs_headroom_open_at(&h, root), 0);
    CHECK_EQ(prs_headroom_bytes(&h, &which), 3 * GIB - 8 * GIB / 50);
    CHECK_EQ(strcmp(which.path, "/sys/fs/cgroup/memory/outer"), 0);
    CHECK_EQ(prs_headroom_capacity(&h), (4 * GIB / 10 * 3) & ~(uint64_t)4095);
    /* limits change at run time */
    put_v1("/sys/fs/cgroup/memory/outer/mid/inner", 2 * GIB, 1 * GIB, 512 * MIB);
    CHECK_EQ(prs_headroom_bytes(&h, &which), 1536 * MIB - 64 * MIB);
    CHECK_EQ(strcmp(which.path, "/sys/fs/cgroup/memory/outer/mid/inner"), 0);
    CHECK_EQ(which.usage, 1 * GIB);
    drop_root();
}

TEST(v1_in_a_container_whose_cgroup_is_the_mount)
{
    new_root();
    put("/proc/self/cgroup", "4:memory:/docker/abc\n");
    put("/proc/self/mountinfo", "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
    put_meminfo(64 * GIB, 60 * GIB);
    put_v1("/sys/fs/cgroup/memory", 1 * GIB, 100 * MIB, 0);
    prs_headroom h;
    CHECK_EQ(prs_headroom_open_at(&h, root), 0);
    CHECK_EQ(prs_headroom_bytes(&h, NULL), 1 * GIB - 164 * MIB);
    drop_root();
}

TEST(names_of_the_host_that_are_not_visible_here)
{
    static const char *const own[] = {"/docker/abc/def", "/../../outside", "/docker/abcdef"};
    for (int i = 0; i < 3; i++) {
        new_root();
        put("/proc/self/cgroup", "4:memory:%s\n", own[i]);
        put("/proc/self/mountinfo", "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
        put_meminfo(64 * GIB, 60 * GIB);
        put_v1("/sys/fs/cgroup/memory", 1 * GIB, 100 * MIB, 0);
        prs_headroom h;
        CHECK_EQ(prs_headroom_open_at(&h, root), 0);
        CHECK_EQ(prs_headroom_bytes(&h, NULL), 1 * GIB - 164 * MIB);
        drop_root();
    }
}

TEST(v2_max_high_and_parents)
{
    new_root();
    put("/proc/self/cgroup", "0::/user.slice/job\n");
    put("/proc/self/mountinfo", ROOT_MOUNTS "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
    put_meminfo(64 * GIB, 60 * GIB);
    put("/sys/fs/cgroup/cgroup.procs", "1\n"); /* the root has no memory files */
    put_v2("/sys/fs/cgroup/user.slice", "max", "max", 20 * GIB, 0);
    put_v2("/sys/fs/cgroup/user.slice/job", "4294967296", "max", 1 * GIB, 512 * MIB);
    prs_headroom h;
    prs_headroom_limit which;
    CHECK_EQ(prs_headroom_open_at(&h, root), 0);
    CHECK_EQ(prs_headroom_bytes(&h, &which), 3584 * MIB - 4 * GIB / 50);
    put_v2("/sys/fs/cgroup/user.slice/job", "4294967296", "2147483648", 1 * GIB, 512 * MIB);
    CHECK_EQ(prs_headroom_bytes(&h, &which), 1536 * MIB - 64 * MIB);
    CHECK_EQ(which.limit, 2 * GIB);
    put_v2("/sys/fs/cgroup/user.slice", "21474836480", "max", 20 * GIB, 100 * MIB);
    CHECK_EQ(prs_headroom_bytes(&h, &which), 0); /* only 100 MiB are free, which is less than 2 % of 20 GiB */
    CHECK_EQ(which.free, 100 * MIB);
    CHECK_EQ(strcmp(which.path, "/sys/fs/cgroup/user.slice"), 0);
    drop_root();
}

TEST(hybrid_both_count)
{
    new_root();
    put("/proc/self/cgroup", "4:memory:/a\n0::/b\n");
    put("/proc/self/mountinfo", "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
                                "41 31 0:38 / /sys/fs/cgroup/unified\\040dir rw - cgroup2 cgroup2 rw\n");
    put_meminfo(64 * GIB, 60 * GIB);
    put_v1("/sys/fs/cgroup/memory/a", 3 * GIB, 0, 0);
    put_v2("/sys/fs/cgroup/unified dir/b", "2147483648", "max", 0, 0);
    prs_headroom h;
    CHECK_EQ(prs_headroom_open_at(&h, root), 0);
    CHECK_EQ(prs_headroom_bytes(&h, NULL), 2 * GIB - 64 * MIB);
    put_v1("/sys/fs/cgroup/memory/a", 1 * GIB, 0, 0);
    CHECK_EQ(prs_headroom_bytes(&h, NULL), 1 * GIB - 64 * MIB);
    drop_root();
}

TEST(small_containers_keep_a_quarter)
{
    new_root();
    put("/proc/self/cgroup", "0::/\n");
    put("/proc/self/mountinfo", "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    put_meminfo(64 * GIB, 60 * GIB);
    put_v2("/sys/fs/cgroup", "67108864", "max", 10 * MIB, 0);
    prs_headroom h;
    CHECK_EQ(prs_headroom_open_at(&h, root), 0);
    CHECK_EQ(prs_headroom_bytes(&h, NULL), 64 * MIB - 10 * MIB - 16 * MIB);
    drop_root();
}

TEST(broken_files_limit_nothing)
{
    static const char *const texts[] = {"",
                                        "\n",
                                        "garbage\n",
                                        "::::\n",
                                        "0::relative\n",
                                        ":\n",
                                        "\\\\\\\n",
                                        "1 2 3\n",
                                        "4:memory:/a\n1 2 3 4 5 - cgroup cgroup memory\n",
                                        "- - - - - - - -\n",
                                        "1 2 3 / /m - cgroup2\n",
                                        "1 2 3 / /m rw - cgroup x\n",
                                        "1 2 3 / /m rw\n",
                                        "1 2 3 / /m rw -\n",
                                        "1 2 3 / /m rw - cgroup2\n1 2 3 / /m rw - cgroup source\n",
                                        "1 2 3 \\0 \\18 rw - cgroup s memoryless,memory2\n",
                                        "MemTotal: many\nMemAvailable: few\n",
                                        "MemTotal: 18446744073709551615 kB\nMemAvailable: 18446744073709551615 kB\n",
                                        "MemTotal:\t\tx\nMemAvailable:   :\n",
                                        "MemTotal: 1 kB\n",
                                        "MemAvailable: 1 kB\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        new_root();
        put("/proc/self/cgroup", "%s", texts[i]);
        put("/proc/self/mountinfo", "%s", texts[i]);
        put("/proc/meminfo", "%s", texts[i]);
        prs_headroom h;
        CHECK_EQ(prs_headroom_open_at(&h, root), 0);
        CHECK(prs_headroom_bytes(&h, NULL) == UINT64_MAX);
        CHECK_EQ(prs_headroom_capacity(&h), 0);
        CHECK_EQ(prs_headroom_reserve(&h, 100 * GIB, NULL), 0);
        drop_root();
    }
    prs_headroom h;
    CHECK_EQ(prs_headroom_open_at(&h, "/nonexistent"), -ENOENT);
    CHECK(prs_headroom_bytes(&h, NULL) == UINT64_MAX);
    char longer[400];
    memset(longer, 'x', sizeof longer);
    longer[399] = 0;
    CHECK_EQ(prs_headroom_open_at(&h, longer), -ENAMETOOLONG);
}

/* Lines before and after the relevant ones are far longer than the reader's buffer, and numbers overflow. */
TEST(long_lines_and_huge_numbers)
{
    new_root();
    char *noise = malloc(20001);
    memset(noise, 'a', 20000);
    noise[20000] = 0;
    put("/proc/self/cgroup", "7:%s:/x\n4:memory:/a\n", noise);
    put("/proc/self/mountinfo", "1 2 3 / /m rw - overlay o %s\n35 31 0:32 / /cg rw - cgroup cgroup rw,memory\n%s\n",
        noise, noise);
    put_meminfo(64 * GIB, 60 * GIB);
    put_v1("/cg/a", 1 * GIB, 0, 0);
    prs_headroom h;
    CHECK_EQ(prs_headroom_open_at(&h, root), 0);
    CHECK_EQ(prs_headroom_bytes(&h, NULL), 1 * GIB - 64 * MIB);
    put("/cg/a/memory.limit_in_bytes", "99999999999999999999999999\n");
    CHECK_EQ(prs_headroom_bytes(&h, NULL), 60 * GIB - 64 * GIB / 50);
    put("/cg/a/memory.limit_in_bytes", "18446744073709551615\n");
    CHECK_EQ(prs_headroom_bytes(&h, NULL), 60 * GIB - 64 * GIB / 50);
    put_v1("/cg/a", 1 * GIB, 2 * GIB, 4 * GIB); /* usage above the limit, cache above the usage */
    CHECK_EQ(prs_headroom_bytes(&h, NULL), 1 * GIB - 64 * MIB);
    put_v1("/cg/a", 1 * GIB, 2 * GIB, 0);
    CHECK_EQ(prs_headroom_bytes(&h, NULL), 0);
    put("/cg/a/memory.usage_in_bytes", "?\n");
    CHECK_EQ(prs_headroom_bytes(&h, NULL), 60 * GIB - 64 * GIB / 50);
    free(noise);
    drop_root();
}

static void small_tree(prs_headroom *h, uint64_t limit, uint64_t usage)
{
    put("/proc/self/cgroup", "0::/\n");
    put("/proc/self/mountinfo", "30 22 0:26 / /cg rw - cgroup2 cgroup2 rw\n");
    put_meminfo(64 * GIB, 60 * GIB);
    char max[32];
    snprintf(max, sizeof max, "%llu", (unsigned long long)limit);
    put_v2("/cg", max, "max", usage, 0);
    CHECK_EQ(prs_headroom_open_at(h, root), 0);
}

TEST(reserve_looks_once_per_budget)
{
    new_root();
    prs_headroom h;
    small_tree(&h, 1 * GIB, 0);
    CHECK_EQ(prs_headroom_reserve(&h, 1 * MIB, NULL), 0);
    small_tree(&(prs_headroom){.root = ""}, 1 * GIB, 1 * GIB); /* full now, but not measured yet */
    int granted = 0;
    uint64_t start = test_now_ns();
    while (granted < 100 && prs_headroom_reserve(&h, 1 * MIB, NULL) == 0)
        granted++;
    CHECK(granted <= 16);
    if (test_now_ns() - start < 50000000)
        CHECK_EQ(granted, 16);
    prs_headroom_limit why;
    CHECK_EQ(prs_headroom_reserve(&h, 1 * MIB, &why), -ENOMEM);
    CHECK_EQ(strcmp(why.path, "/cg"), 0);
    CHECK_EQ(why.limit, 1 * GIB);
    CHECK_EQ(why.usage, 1 * GIB);
    CHECK_EQ(why.free, 0);
    CHECK_EQ(prs_headroom_reserve(&h, 0, NULL), 0);
    drop_root();
}

TEST(an_old_budget_is_not_trusted)
{
    new_root();
    prs_headroom h;
    small_tree(&h, 1 * GIB, 0);
    CHECK_EQ(prs_headroom_reserve(&h, 1 * MIB, NULL), 0);
    put_v2("/cg", "1073741824", "max", 1 * GIB, 0);
    usleep(150000);
    CHECK_EQ(prs_headroom_reserve(&h, 4096, NULL), -ENOMEM);
    drop_root();
}

TEST(what_is_held_counts_until_it_is_settled)
{
    new_root();
    prs_headroom h;
    prs_headroom_limit why;
    small_tree(&h, 1 * GIB, 0);
    CHECK_EQ(prs_headroom_hold(&h, 600 * MIB, NULL), 0);
    CHECK_EQ(prs_headroom_hold(&h, 600 * MIB, &why), -ENOMEM);
    CHECK_EQ(why.pending, 600 * MIB);
    CHECK_EQ(prs_headroom_bytes(&h, NULL), (1024 - 64 - 600) * MIB);
    CHECK_EQ(prs_headroom_hold(&h, 300 * MIB, NULL), 0);
    prs_headroom_settle(&h, 300 * MIB);
    prs_headroom_settle(&h, 400 * MIB); /* settle the bytes in two parts */
    prs_headroom_settle(&h, 200 * MIB);
    CHECK_EQ(prs_headroom_hold(&h, 900 * MIB, NULL), 0);
    prs_headroom_after_fork(&h);
    CHECK_EQ(prs_headroom_bytes(&h, NULL), (1024 - 64) * MIB);
    CHECK_EQ(prs_headroom_hold(&h, UINT64_MAX, &why), -ENOMEM);
    CHECK_EQ(prs_headroom_bytes(&h, NULL), (1024 - 64) * MIB);
    drop_root();
}

typedef struct holder {
    prs_headroom *h;
    unsigned granted;
} holder;

static void *hold_some(void *arg)
{
    holder *me = arg;
    for (int i = 0; i < 20; i++)
        me->granted += prs_headroom_hold(me->h, 40 * MIB, NULL) == 0;
    return NULL;
}

TEST(threads_together_never_hold_more_than_there_is)
{
    new_root();
    prs_headroom h;
    small_tree(&h, 1 * GIB, 0);
    holder all[4];
    pthread_t t[4];
    unsigned granted = 0;
    for (int i = 0; i < 4; i++) {
        all[i] = (holder){&h, 0};
        CHECK_EQ(pthread_create(&t[i], NULL, hold_some, &all[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
        granted += all[i].granted;
    }
    CHECK(granted * 40 <= 1024 - 64);
    CHECK(granted >= 1);
    drop_root();
}

/* ---- this machine -------------------------------------------------------------------------------- */

TEST(this_machine)
{
    prs_headroom h;
    prs_headroom_limit which;
    CHECK_EQ(prs_headroom_open(&h), 0);
    uint64_t bytes = prs_headroom_bytes(&h, &which), capacity = prs_default_capacity();
    printf("     %llu MiB of headroom (%s), capacity %llu MiB\n", (unsigned long long)(bytes / MIB), which.path,
           (unsigned long long)(capacity / MIB));
    CHECK(bytes < UINT64_MAX);
    CHECK(capacity > 0 && capacity % 4096 == 0);
    CHECK(capacity < (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE));
}

enum { REAL_LIMIT_MIB = 256, REAL_TRIES_MIB = 400 };
static char cgroup[PRS_HEADROOM_PATH + 64];
static char delegated[PRS_HEADROOM_PATH]; /* the cgroup (v2) in which we enabled the memory controller */

static int write_text(const char *dir, const char *name, const char *text)
{
    char path[PRS_HEADROOM_PATH + 128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = write(fd, text, strlen(text));
    close(fd);
    return n == (ssize_t)strlen(text) ? 0 : -1;
}

/* Make a child cgroup with a limit; `cgroup` gets its directory. */
static int make_cgroup(void)
{
    prs_headroom h;
    prs_headroom_open(&h);
    char limit[32];
    snprintf(limit, sizeof limit, "%llu", (unsigned long long)(REAL_LIMIT_MIB * MIB));
    for (int t = 0; t < PRS_HEADROOM_TREES; t++) {
        if (h.trees[t].version == 0)
            continue;
        snprintf(cgroup, sizeof cgroup, "%s/prs-test-%d", h.trees[t].path, (int)getpid());
        char path[PRS_HEADROOM_PATH + 64], now[256] = "";
        snprintf(path, sizeof path, "%s/cgroup.subtree_control", h.trees[t].path);
        FILE *f = h.trees[t].version == 2 ? fopen(path, "r") : NULL;
        if (f) { /* works only if our own cgroup is the root or has no process */
            if (fgets(now, sizeof now, f) == NULL)
                now[0] = 0;
            fclose(f);
            if (!strstr(now, "memory") && write_text(h.trees[t].path, "cgroup.subtree_control", "+memory") == 0)
                strcpy(delegated, h.trees[t].path);
        }
        if (mkdir(cgroup, 0755) != 0)
            continue;
        if (write_text(cgroup, t == 0 ? "memory.limit_in_bytes" : "memory.max", limit) == 0) {
            write_text(cgroup, t == 0 ? "memory.swappiness" : "memory.swap.max", "0");
            return 0;
        }
        rmdir(cgroup);
    }
    return -1;
}

static void drop_cgroup(void)
{
    for (int i = 0; i < 100 && rmdir(cgroup) != 0; i++)
        usleep(20000); /* rmdir fails while memory is charged to the cgroup */
    if (delegated[0])
        write_text(delegated, "cgroup.subtree_control", "-memory");
}

/* Runs in the child: fill a memfd step by step, with or without reserving headroom first. Exit with 0 after -ENOMEM, or
 * with 1 at the end. */
static void fill_in_cgroup(int ask, unsigned threads)
{
    enum { STEP_MIB = 4 };
    if (write_text(cgroup, "cgroup.procs", "0") != 0)
        _exit(50);
    prs_headroom h;
    prs_headroom_limit why;
    if (prs_headroom_open(&h) != 0)
        _exit(51);
    int fd = memfd_create("test", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)(REAL_TRIES_MIB * MIB)) != 0)
        _exit(52);
    char *map = mmap(NULL, REAL_TRIES_MIB * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *from = malloc(STEP_MIB * MIB);
    if (map == MAP_FAILED || !from)
        _exit(53);
    memset(from, 7, STEP_MIB * MIB);
    for (uint64_t i = 0; i < REAL_TRIES_MIB / STEP_MIB; i++) {
        if (ask && prs_headroom_hold(&h, STEP_MIB * MIB, &why) != 0) {
            uint64_t filled = i * STEP_MIB;
            printf("     stopped at %llu of %d MiB: %s, usage %llu MiB\n", (unsigned long long)filled, REAL_LIMIT_MIB,
                   why.path, (unsigned long long)(why.usage / MIB));
            fflush(stdout);
            if (strcmp(why.path, cgroup) != 0 || why.limit != REAL_LIMIT_MIB * MIB || why.usage > why.limit)
                _exit(54);
            _exit(filled >= REAL_LIMIT_MIB / 8 ? 0 : 55);
        }
        int rc = prs_fill(fd, i * STEP_MIB * MIB, map + i * STEP_MIB * MIB, from, STEP_MIB * MIB, PRS_PAGES_UNBACKED,
                          threads, NULL);
        if (rc != 0)
            _exit(56);
        if (ask)
            prs_headroom_settle(&h, STEP_MIB * MIB);
    }
    _exit(1);
}

static int run_in_cgroup(int ask, unsigned threads)
{
    fflush(stdout);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        fill_in_cgroup(ask, threads);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    return status;
}

TEST(a_real_cgroup_limit_is_an_error_and_not_a_kill)
{
    if (make_cgroup() != 0) {
        if (delegated[0])
            write_text(delegated, "cgroup.subtree_control", "-memory");
        SKIP("no memory cgroup can be made here");
    }
    int asked = run_in_cgroup(1, 1), threaded = run_in_cgroup(1, 2), blind = run_in_cgroup(0, 2);
    drop_cgroup();
    CHECK_MSG(WIFEXITED(asked) && WEXITSTATUS(asked) == 0, "asking: status %x", (unsigned)asked);
    CHECK_MSG(WIFEXITED(threaded) && WEXITSTATUS(threaded) == 0, "asking, threads: status %x", (unsigned)threaded);
    /* If the child reserves no headroom, the kernel kills the child. This proves that the limit was in force. */
    CHECK_MSG(WIFSIGNALED(blind) && WTERMSIG(blind) == SIGKILL, "not asking: status %x", (unsigned)blind);
    CHECK(access(cgroup, F_OK) != 0);
}

TEST_MAIN()
