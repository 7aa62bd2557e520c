/* test_snapshot.c - tests of inspecting a store that no process uses, without changing it. */
#include "harness.h"
#include "prs.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define OBJECTS 20

static prs_error error;
static char path[128];

static prs_oid put(prs_store *s, size_t size)
{
    prs_draft d;
    CHECK_EQ(prs_alloc(s, size, 0, &d, &error), PRS_OK);
    CHECK_EQ(prs_seal(s, &d, &error), PRS_OK);
    return d.id;
}

/* Leave a store whose only client was killed while it held objects, a view and a name. */
static void crash(void)
{
    snprintf(path, sizeof path, "/dev/shm/pyray_ser-ctest-inspect-%d", (int)getpid());
    unlink(path);
    pid_t pid = fork();
    if (pid == 0) {
        prs_store *s;
        prs_view view;
        CHECK_EQ(prs_create(&s, &(prs_options){.path = path, .capacity = 16u << 20}, &error), PRS_OK);
        prs_oid id = {0};
        for (int i = 0; i < OBJECTS; i++)
            id = put(s, 100000 + (size_t)i);
        CHECK_EQ(prs_pin(s, &id, &view), PRS_OK);
        CHECK_EQ(prs_name_bind(s, "kept", 4, &id, 0, &error), PRS_OK);
        raise(SIGKILL);
    }
    int status;
    waitpid(pid, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void *contents(size_t *n)
{
    int fd = open(path, O_RDONLY);
    struct stat st;
    CHECK(fd >= 0 && fstat(fd, &st) == 0);
    *n = (size_t)st.st_size;
    char *bytes = malloc(*n);
    for (size_t at = 0; at < *n;) {
        ssize_t got = pread(fd, bytes + at, *n - at, (off_t)at);
        CHECK(got > 0);
        at += (size_t)got;
    }
    close(fd);
    return bytes;
}

TEST(what_the_dead_held_is_shown_and_stays)
{
    crash();
    size_t before_len, after_len;
    void *before = contents(&before_len);
    prs_store *s;
    char spill_dir[PRS_SPILL_DIR_MAX];
    CHECK_MSG(prs_snapshot(&s, path, spill_dir, &error) == PRS_OK, "%s", error.what);
    CHECK(spill_dir[0] == 0 && prs_spill_directory(s)[0] == 0);
    prs_record records[64];
    uint32_t cursor = 0;
    CHECK_EQ(prs_list(s, &cursor, records, 64), OBJECTS);
    int pinned = 0;
    for (int i = 0; i < OBJECTS; i++) {
        CHECK_EQ(records[i].ref_holders, 1);
        CHECK_EQ(records[i].state, PRS_STATE_SEALED);
        CHECK(records[i].off + records[i].extent <= prs_capacity(s) && records[i].extent >= records[i].size);
        pinned += (int)records[i].pin_holders;
    }
    CHECK_EQ(pinned, 1);
    char text[PRS_NAME_MAX + 1];
    prs_oid id;
    cursor = 0;
    CHECK_EQ(prs_name_next(s, &cursor, "", 0, text, &id, NULL), 1);
    CHECK(strcmp(text, "kept") == 0);
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    prs_dispose(s);
    void *after = contents(&after_len);
    CHECK(before_len == after_len && memcmp(before, after, before_len) == 0);
    free(before);
    free(after);
    unlink(path);
}

TEST(what_is_no_store_is_refused)
{
    prs_store *s;
    char spill_dir[PRS_SPILL_DIR_MAX];
    CHECK_EQ(prs_snapshot(&s, "/dev/shm/pyray_ser-ctest-no-such-store", spill_dir, &error), PRS_E_NOTFOUND);
    CHECK(s == NULL);
    CHECK_EQ(prs_snapshot(&s, "/proc/self/exe", spill_dir, &error), PRS_E_FOREIGN); /* this is a symbolic link */
    CHECK_EQ(prs_snapshot(&s, "/proc/self/stat/x", spill_dir, &error), PRS_E_SYS);
    CHECK_EQ(prs_snapshot(&s, "/proc/self/fd", spill_dir, &error), PRS_E_FOREIGN);
    crash();
    /* Change every word of the superblock in turn: prs_snapshot must return an error or a valid store. */
    int refused = 0;
    for (off_t at = 0; at < 160; at += 8) {
        uint64_t word, wrong = ~(uint64_t)0;
        int fd = open(path, O_RDWR);
        CHECK(pread(fd, &word, 8, at) == 8 && pwrite(fd, &wrong, 8, at) == 8);
        int rc = prs_snapshot(&s, path, spill_dir, &error);
        if (rc == PRS_OK)
            prs_dispose(s);
        else
            refused++;
        CHECK_EQ(pwrite(fd, &word, 8, at), 8);
        close(fd);
    }
    CHECK(refused >= 14);
    CHECK_EQ(truncate(path, 5000), 0);
    CHECK(prs_snapshot(&s, path, spill_dir, &error) < 0);
    unlink(path);
}

TEST_MAIN()
