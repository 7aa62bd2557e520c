/* test_spill.c - tests of full stores: spilled objects, objects larger than the store, deaths at each step. */
#include "harness.h"
#include "prs.h"
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MB ((size_t)1 << 20)

static prs_error error;
static char top[] = "/var/tmp/prs-spill-XXXXXX";
static char absolute[4096];

static const char *spill_dir(void)
{
    if (!absolute[0]) {
        CHECK(mkdtemp(top) != NULL);
        CHECK(realpath(top, absolute) != NULL);
    }
    return absolute;
}

static int entries(const char *path, int deep)
{
    int n = 0;
    DIR *d = opendir(path);
    if (!d)
        return -1;
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.')
            continue;
        char sub[8192];
        snprintf(sub, sizeof sub, "%s/%s", path, e->d_name);
        n += deep ? entries(sub, 0) : 1;
    }
    closedir(d);
    return n;
}

static prs_store *open_store(size_t capacity)
{
    prs_store *s = NULL;
    prs_options options = {.capacity = capacity, .spill_dir = spill_dir()};
    CHECK_EQ(prs_create(&s, &options, &error), PRS_OK);
    return s;
}

static prs_oid put(prs_store *s, size_t size, uint8_t seed)
{
    prs_draft d;
    uint8_t *bytes = malloc(size);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(seed + i / 4096);
    CHECK_MSG(prs_alloc(s, size, 0, &d, &error) == PRS_OK, "%s", error.what);
    CHECK_MSG(prs_write(s, &d, 0, bytes, size, &error) == PRS_OK, "%s", error.what);
    free(bytes);
    CHECK_EQ(prs_seal(s, &d, &error), PRS_OK);
    return d.id;
}

static void verify(prs_store *s, const prs_oid *id, size_t size, uint8_t seed)
{
    prs_view v;
    int rc;
    while ((rc = prs_pin(s, id, &v)) == PRS_E_AGAIN)
        prs_wait(s, id, -1);
    CHECK_EQ(rc, PRS_OK);
    CHECK_EQ(v.size, size);
    for (size_t i = 0; i < size; i += 511)
        CHECK(v.data[i] == (uint8_t)(seed + i / 4096));
    prs_unpin(s, id);
}

TEST(a_thousand_random_reads_over_ten_times_the_store)
{
    enum { N = 200 };
    prs_store *s = open_store(75 * MB);
    prs_oid id[N];
    for (int i = 0; i < N; i++)
        id[i] = put(s, 4 * MB + (size_t)i * 64, (uint8_t)i);
    prs_stats stats;
    CHECK_EQ(prs_get_stats(s, &stats), PRS_OK);
    CHECK_EQ(stats.objects, N);
    CHECK(stats.spilled >= 180);
    srand(1);
    for (int k = 0; k < 1000; k++) {
        int i = rand() % N;
        verify(s, &id[i], 4 * MB + (size_t)i * 64, (uint8_t)i);
    }
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    for (int i = 0; i < N; i++)
        prs_unref(s, &id[i]);
    prs_deferred_run_all(s);
    CHECK_EQ(prs_get_stats(s, &stats), PRS_OK);
    CHECK_EQ(stats.objects, 0);
    CHECK_EQ(stats.used, 0);
    CHECK_EQ(entries(spill_dir(), 1), 1); /* only the lock file is left */
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    prs_dispose(s);
    CHECK_EQ(entries(spill_dir(), 0), 0);
}

TEST(an_object_larger_than_the_store)
{
    prs_store *s = open_store(100 * MB);
    prs_oid id = put(s, 300 * MB, 9);
    verify(s, &id, 300 * MB, 9);
    prs_view v;
    void *map;
    size_t len;
    uint8_t *data;
    CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
    CHECK_EQ(prs_cow_open(s, &id, &v, &map, &len, &data, &error), PRS_OK);
    data[0] = 77;
    CHECK(v.data[0] == 9);
    prs_cow_close(map, len);
    prs_unpin(s, &id);
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    prs_unref(s, &id);
    CHECK_EQ(entries(spill_dir(), 1), 1);
    prs_dispose(s);
}

TEST(pinned_objects_stay_where_they_are)
{
    prs_store *s = open_store(32 * MB);
    prs_oid kept = put(s, 8 * MB, 1);
    prs_view v, w;
    CHECK_EQ(prs_pin(s, &kept, &v), PRS_OK);
    prs_oid other[20];
    for (int i = 0; i < 20; i++)
        other[i] = put(s, 4 * MB, (uint8_t)(i + 2));
    CHECK_EQ(prs_pin(s, &kept, &w), PRS_OK);
    CHECK(v.data == w.data && v.data[4096] == 2);
    for (int i = 0; i < 20; i++)
        verify(s, &other[i], 4 * MB, (uint8_t)(i + 2));
    /* If all objects are pinned, a put fails, and nothing is lost. */
    prs_oid pinned[32];
    int n = 0, rc = PRS_OK;
    while (n < 32 && rc == PRS_OK) {
        prs_draft d;
        rc = prs_alloc(s, 4 * MB, 0, &d, &error);
        if (rc == PRS_OK) {
            CHECK_EQ(prs_seal(s, &d, &error), PRS_OK);
            pinned[n] = d.id;
            CHECK_EQ(prs_pin(s, &pinned[n++], &w), PRS_OK);
        }
    }
    CHECK_EQ(rc, PRS_E_FULL);
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    prs_close(s); /* pins hold the handle */
    prs_unpin(s, &kept);
    prs_unpin(s, &kept);
    for (int i = 0; i < n; i++)
        prs_unpin(s, &pinned[i]);
    prs_dispose(s);
}

TEST(a_missing_or_short_file_loses_that_object_alone)
{
    prs_store *s = open_store(16 * MB);
    prs_oid id[12];
    for (int i = 0; i < 12; i++)
        id[i] = put(s, 4 * MB, (uint8_t)i);
    char path[8192];
    int missing = -1, shortened = -1;
    for (int i = 0; i < 12 && shortened < 0; i++) {
        snprintf(path, sizeof path, "%s/%016llx/%08x-%016llx", spill_dir(), (unsigned long long)prs_id(s), id[i].slot,
                 (unsigned long long)id[i].serial);
        if (missing < 0 && unlink(path) == 0)
            missing = i;
        else if (chmod(path, 0600) == 0 && truncate(path, 100) == 0)
            shortened = i;
    }
    CHECK(missing >= 0 && shortened >= 0);
    prs_view v;
    CHECK_EQ(prs_pin(s, &id[missing], &v), PRS_E_LOST);
    CHECK_EQ(prs_pin(s, &id[shortened], &v), PRS_E_CORRUPT);
    for (int i = 0; i < 12; i++)
        if (i != missing && i != shortened)
            verify(s, &id[i], 4 * MB, (uint8_t)i);
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    prs_dispose(s);
}

TEST(death_at_every_step_of_spilling)
{
    static const char *const points[] = {"spill_marked",      "spill_written", "spill_committed", "spill_extent",
                                         "spill_rolled_back", "spill_adopted", "spill_removed"};
    for (size_t k = 0; k < sizeof points / sizeof *points; k++) {
        prs_store *s = open_store(24 * MB);
        prs_oid mine[4];
        for (int i = 0; i < 4; i++)
            mine[i] = put(s, 4 * MB, (uint8_t)i);
        pid_t pid = fork();
        if (pid == 0) {
            if (strcmp(points[k], "spill_rolled_back") == 0 ||
                strcmp(points[k], "spill_adopted") == 0) /* the disk is full, so the spill is rolled back */
                prs_failpoint_arm("spill_created", PRS_FAIL_ERRNO, 1, ENOSPC);
            prs_failpoint_arm(points[k], PRS_FAIL_KILL, 1, 0);
            for (int i = 0; i < 8; i++) {
                prs_draft d;
                if (prs_alloc(s, 4 * MB, 0, &d, &error) == PRS_OK && prs_seal(s, &d, &error) == PRS_OK && i % 2)
                    prs_free(s, &d.id, &error);
            }
            for (int i = 0; i < 4; i++)
                prs_free(s, &mine[i], &error);
            _exit(0);
        }
        int status;
        waitpid(pid, &status, 0);
        if (prs_failpoint_names()[0] != NULL)
            CHECK_MSG(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "%s was not hit", points[k]);
        CHECK_EQ(prs_reap_dead(s, 0), PRS_OK);
        CHECK_MSG(prs_check(s, &error) == PRS_OK, "%s: %s", points[k], error.what);
        if (strcmp(points[k], "spill_removed") != 0) /* at that point the child had begun to free the objects */
            for (int i = 0; i < 4; i++)
                verify(s, &mine[i], 4 * MB, (uint8_t)i);
        prs_oid more[10];
        for (int i = 0; i < 10; i++)
            more[i] = put(s, 4 * MB, (uint8_t)(100 + i));
        for (int i = 0; i < 10; i++)
            verify(s, &more[i], 4 * MB, (uint8_t)(100 + i));
        for (int i = 0; i < 10; i++)
            prs_unref(s, &more[i]);
        for (int i = 0; i < 4; i++)
            prs_unref(s, &mine[i]);
        prs_deferred_run_all(s);
        prs_stats stats;
        CHECK_EQ(prs_get_stats(s, &stats), PRS_OK);
        CHECK_MSG(stats.objects == 0 && stats.used == 0, "%s leaks", points[k]);
        CHECK_MSG(entries(spill_dir(), 1) == 1, "%s leaves a file", points[k]);
        CHECK_EQ(prs_check(s, &error), PRS_OK);
        prs_dispose(s);
    }
}

TEST(what_a_killed_store_left_is_removed_by_the_next)
{
    pid_t pid = fork();
    if (pid == 0) {
        prs_store *s = open_store(16 * MB);
        for (int i = 0; i < 10; i++)
            put(s, 4 * MB, 1);
        raise(SIGKILL);
    }
    waitpid(pid, NULL, 0);
    CHECK_EQ(entries(spill_dir(), 0), 1);
    CHECK_EQ(prs_spill_count_ended(spill_dir()), 1);
    CHECK_EQ(entries(spill_dir(), 0), 1);
    prs_store *s = open_store(16 * MB);
    CHECK_EQ(entries(spill_dir(), 0), 1); /* only its own directory is left */
    CHECK_EQ(prs_spill_clean(spill_dir()), 0);
    prs_dispose(s);
    CHECK_EQ(rmdir(spill_dir()), 0);
    absolute[0] = 0;
    strcpy(top, "/var/tmp/prs-spill-XXXXXX");
}

/* The only client is idle. A process that cleans up must not remove its files. */
TEST(a_client_without_descriptors_keeps_its_spill_directory)
{
    volatile int *said = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(said != MAP_FAILED);
    const char *directory = spill_dir();
    pid_t pid = fork();
    if (pid == 0) {
        alarm(240);
        prs_store *s = open_store(16 * MB);
        prs_oid id[10];
        for (int i = 0; i < 10; i++)
            id[i] = put(s, 4 * MB, (uint8_t)i);
        for (int fd = 3; fd < 1024; fd++)
            close(fd);
        said[0] = 1;
        while (!said[1])
            usleep(1000);
        for (int i = 0; i < 10; i++)
            verify(s, &id[i], 4 * MB, (uint8_t)i);
        _exit(0);
    }
    while (!said[0] && waitpid(pid, NULL, WNOHANG) == 0)
        usleep(1000);
    CHECK_EQ(prs_spill_clean(directory), 0);
    CHECK_EQ(entries(directory, 0), 1);
    said[1] = 1;
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK_EQ(prs_spill_clean(directory), 1);
    munmap((void *)said, 4096);
}

TEST(a_forked_child_that_leaves_takes_nothing_along)
{
    enum { N = 12 };
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* some init processes do not reap orphans */
    prs_store *s = open_store(4 * MB);
    prs_oid id[N];
    for (int i = 0; i < N; i++)
        id[i] = put(s, MB, (uint8_t)i);
    for (int round = 0; round < 2; round++) { /* a child, then a grandchild whose parent has exited */
        pid_t pid = fork();
        if (pid == 0) {
            if (round && fork() > 0)
                _exit(0);
            verify(s, &id[1], MB, 1);
            prs_close(s);
            _exit(0);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        while (waitpid(-1, NULL, 0) > 0) /* by now the grandchild is our child */
            ;
    }
    for (int i = 0; i < N; i++)
        verify(s, &id[i], MB, (uint8_t)i);
    prs_dispose(s);
    CHECK_EQ(entries(spill_dir(), 1), 0);
}

static void file_of(char path[8192], prs_store *s, const prs_oid *id)
{
    snprintf(path, 8192, "%s/%016llx/%08x-%016llx", spill_dir(), (unsigned long long)prs_id(s), id->slot,
             (unsigned long long)id->serial);
}

/* Cleaning removes only directories that have names of stores. */
TEST(cleaning_leaves_what_is_no_store_alone)
{
    static const char *const others[] = {"notes", "0123456789ABCDEF", "0123456789abcdeg", "0123456789abcdef0"};
    char path[8192];
    CHECK_EQ(prs_spill_clean("/no-such-directory"), -ENOENT);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        snprintf(path, sizeof path, "%s/%s", spill_dir(), others[i]);
        CHECK_EQ(mkdir(path, 0700), 0);
    }
    snprintf(path, sizeof path, "%s/fedcba9876543210", spill_dir()); /* a file with the name of a store */
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    CHECK(fd >= 0);
    close(fd);
    CHECK_EQ(prs_spill_clean(spill_dir()), 0);
    CHECK_EQ(entries(spill_dir(), 0), 5);
    CHECK_EQ(unlink(path), 0);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        snprintf(path, sizeof path, "%s/%s", spill_dir(), others[i]);
        CHECK_EQ(rmdir(path), 0);
    }
}

TEST(the_file_of_a_draft_disappears)
{
    prs_store *s = open_store(8 * MB);
    static const ptrdiff_t shape[] = {1 << 20, 3}, strides[] = {6, 2};
    uint8_t *bytes = calloc(6, 1 << 20);
    prs_draft d;
    char path[8192];
    bytes[6] = 5;
    for (int gone = 0; gone < 2; gone++) {
        CHECK_EQ(prs_alloc(s, 10 * MB, 0, &d, &error), PRS_OK);
        CHECK_EQ(prs_write_strided(s, &d, 4 * MB, bytes, 2, shape, strides, 1, &error),
                 PRS_OK); /* gathered in memory, then written */
        if (gone) {
            const uint8_t *at;
            file_of(path, s, &d.id);
            CHECK_EQ(unlink(path), 0);
            CHECK_EQ(prs_write(s, &d, 0, bytes, 10, &error), PRS_E_SYS);
            CHECK_EQ(prs_draft_map(s, &d, &at, &error), PRS_E_LOST);
            CHECK_EQ(prs_draft_finish(s, &d, PRS_SPILL_UNDIGESTED, 0, &error), PRS_E_SYS);
            CHECK_EQ(prs_seal(s, &d, &error), PRS_E_SYS);
            CHECK(error.sys_errno == ENOENT);
            prs_abort(s, &d);
        } else {
            prs_view v;
            CHECK_EQ(prs_seal(s, &d, &error), PRS_OK);
            CHECK_EQ(prs_pin(s, &d.id, &v), PRS_OK);
            CHECK(v.data[4 * MB + 3] == 5 && v.data[4 * MB] == 0);
            prs_unpin(s, &d.id);
            prs_unref(s, &d.id);
        }
    }
    free(bytes);
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    prs_dispose(s);
    CHECK_EQ(entries(spill_dir(), 0), 0);
}

/* Other code closes some or all descriptors. */
TEST(the_directory_is_found_again)
{
    for (int which = 1; which <= 3; which++) { /* 1: the directory, 2: the lock in it */
        prs_store *s = open_store(16 * MB);
        prs_oid id[8];
        char path[8192], link[8192];
        for (int i = 0; i < 8; i++)
            id[i] = put(s, 4 * MB, (uint8_t)i);
        file_of(path, s, &id[0]);
        size_t len = (size_t)(strrchr(path, '/') - path);
        int closed = 0;
        for (int fd = 3; fd < 64; fd++) {
            char proc[64];
            snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
            ssize_t n = readlink(proc, link, sizeof link - 1);
            if (n >= (ssize_t)len && memcmp(link, path, len) == 0 && (which & (n == (ssize_t)len ? 1 : 2)) &&
                close(fd) == 0)
                closed |= n == (ssize_t)len ? 1 : 2;
        }
        CHECK_EQ(closed, which);
        for (int i = 0; i < 8; i++)
            verify(s, &id[i], 4 * MB, (uint8_t)i);
        for (int i = 0; i < 3; i++) { /* these puts create and remove files in the directory */
            prs_oid more = put(s, 4 * MB, 9);
            prs_unref(s, &more);
        }
        prs_spill_clean(spill_dir());
        for (int i = 0; i < 8; i++) {
            verify(s, &id[i], 4 * MB, (uint8_t)i);
            prs_unref(s, &id[i]);
        }
        CHECK_EQ(prs_check(s, &error), PRS_OK);
        prs_dispose(s);
        CHECK_EQ(entries(spill_dir(), 0), 0);
    }
}

TEST(a_directory_in_memory_is_refused)
{
    prs_store *s;
    CHECK_EQ(prs_create(&s, &(prs_options){.capacity = 16 * MB, .spill_dir = "/dev/shm"}, &error), PRS_E_INVAL);
    CHECK(strstr(error.what, "tmpfs") != NULL);
    if (absolute[0])
        rmdir(absolute);
}

TEST_MAIN()
