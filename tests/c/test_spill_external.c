/* test_spill_external.c - spill files that the caller writes and reads, with a test codec that negates every byte. */
#include "harness.h"
#include "prs.h"
#include "store.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MB ((size_t)1 << 20)
#define SIZE (4 * MB)
#define FEW ((size_t)100 * 1000)

static prs_error error;
static char absolute[4096];

static prs_store *open_store(size_t capacity, uint32_t flags)
{
    char top[] = "/var/tmp/prs-hand-XXXXXX";
    if (!absolute[0]) {
        CHECK(mkdtemp(top) != NULL);
        CHECK(realpath(top, absolute) != NULL);
    }
    prs_store *s = NULL;
    prs_options options = {.capacity = capacity, .spill_dir = absolute, .flags = flags};
    CHECK_EQ(prs_create(&s, &options, &error), PRS_OK);
    CHECK_EQ(prs_spill_form(s), flags);
    return s;
}

static void close_store(prs_store *s)
{
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    prs_dispose(s);
    rmdir(absolute);
    absolute[0] = 0;
}

static void path_of(prs_store *s, const prs_oid *id, char path[8192])
{
    snprintf(path, 8192, "%s/%016llx/%08x-%016llx", absolute, (unsigned long long)prs_id(s), id->slot,
             (unsigned long long)id->serial);
}

static uint64_t sum(const uint8_t *bytes, size_t n)
{
    uint64_t all = 0;
    for (size_t i = 0; i < n; i++)
        all = all * 31 + bytes[i];
    return all;
}

static int spill(prs_store *s, const prs_oid *victim)
{
    prs_spill_job job;
    int rc = prs_spill_begin(s, victim, &job, &error);
    if (rc < 0)
        return rc;
    uint8_t *negated = malloc(job.size);
    for (size_t i = 0; i < job.size; i++)
        negated[i] = (uint8_t)~job.data[i];
    uint64_t digest = sum(job.data, job.size);
    CHECK_EQ(prs_spill_append(s, &job, negated, job.size / 2, &error), PRS_OK);
    CHECK_EQ(prs_spill_append(s, &job, negated + job.size / 2, job.size - job.size / 2, &error), PRS_OK);
    free(negated);
    return prs_spill_finish(s, &job, PRS_SPILL_LZ4, PRS_SPILL_XXH3, digest, &error);
}

static prs_oid put(prs_store *s, size_t size, uint8_t seed)
{
    prs_draft d;
    uint8_t *bytes = malloc(size);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(seed + i / 4096);
    int rc;
    while ((rc = prs_alloc(s, size, 0, &d, &error)) == PRS_E_FULL) {
        prs_oid victims[PRS_SPILL_VICTIMS];
        int gone = 0;
        for (int round = 0; round < PRS_SPILL_ROUNDS && !gone; round++) {
            int n = prs_spill_choose(s, size, round, victims, &error);
            CHECK(n >= 0);
            for (int i = 0; i < n; i++)
                gone += spill(s, &victims[i]) == PRS_OK;
        }
        CHECK(gone > 0);
    }
    CHECK_MSG(rc == PRS_OK, "%s", error.what);
    CHECK_EQ(prs_write(s, &d, 0, bytes, size, &error), PRS_OK);
    free(bytes);
    if (prs_draft_in_file(s, &d)) {
        const uint8_t *written;
        CHECK_EQ(prs_seal(s, &d, &error), PRS_E_INVAL); /* a file without a trailer is refused */
        CHECK_EQ(prs_draft_map(s, &d, &written, &error), PRS_OK);
        uint64_t digest = sum(written, d.size);
        prs_draft_unmap(written, d.size);
        CHECK_EQ(prs_draft_finish(s, &d, PRS_SPILL_XXH3, digest, &error), PRS_OK);
    }
    CHECK_EQ(prs_seal(s, &d, &error), PRS_OK);
    return d.id;
}

static int pin(prs_store *s, const prs_oid *id, prs_view *view)
{
    int rc = prs_pin(s, id, view);
    if (rc != PRS_E_SPILLED)
        return rc;
    prs_restore r;
    rc = prs_restore_begin(s, id, PRS_PIN_PLAIN, &r, &error);
    if (rc < 0)
        return rc;
    if (r.trailer.codec != PRS_SPILL_RAW) {
        CHECK_EQ(r.trailer.stored, r.trailer.size);
        CHECK_EQ(prs_restore_read(&r, 0, r.at, r.trailer.size), PRS_OK);
        CHECK_EQ(prs_restore_read(&r, r.trailer.stored, r.at, 1), PRS_E_CORRUPT);
        for (size_t i = 0; i < r.trailer.size; i++)
            r.at[i] = (uint8_t)~r.at[i];
    }
    if (sum(r.at, r.trailer.size) != r.trailer.digest) {
        prs_restore_cancel(s, &r);
        return PRS_E_CORRUPT;
    }
    return prs_restore_end(s, &r, view);
}

static void verify(prs_store *s, const prs_oid *id, size_t size, uint8_t seed)
{
    prs_view v;
    CHECK_EQ(pin(s, id, &v), PRS_OK);
    CHECK_EQ(v.size, size);
    for (size_t i = 0; i < size; i += 511)
        CHECK(v.data[i] == (uint8_t)(seed + i / 4096));
    prs_unpin(s, id);
}

#define FORM (PRS_OPEN_SPILL_LZ4 | PRS_OPEN_SPILL_DIGEST)

TEST(objects_go_and_come_back)
{
    enum { N = 24 };
    prs_store *s = open_store(32 * MB, FORM);
    prs_oid id[N];
    for (int i = 0; i < N; i++)
        id[i] = put(s, SIZE, (uint8_t)i);
    prs_stats stats;
    CHECK_EQ(prs_get_stats(s, &stats), PRS_OK);
    CHECK(stats.spilled >= N - 8);
    for (int i = 0; i < N; i++)
        verify(s, &id[i], SIZE, (uint8_t)i);
    prs_view v, w;
    CHECK_EQ(pin(s, &id[0], &v), PRS_OK);
    CHECK_EQ(prs_pin(s, &id[0], &w), PRS_OK); /* the object is in memory */
    CHECK(v.data == w.data);
    prs_restore r;
    CHECK_EQ(prs_restore_begin(s, &id[0], PRS_PIN_PLAIN, &r, &error), PRS_E_EXISTS);
    void *map;
    size_t len;
    uint8_t *data;
    CHECK_EQ(prs_cow_open(s, &id[0], &v, &map, &len, &data, &error), PRS_OK);
    CHECK(memcmp(data, v.data, SIZE) == 0);
    data[5] ^= 1;
    CHECK(data[5] != v.data[5]);
    prs_cow_close(map, len);
    prs_unpin(s, &id[0]);
    prs_unpin(s, &id[0]);
    prs_oid large = put(s, 40 * MB, 3);
    verify(s, &large, 40 * MB, 3);
    for (int i = 0; i < N; i++)
        prs_unref(s, &id[i]);
    prs_unref(s, &large);
    prs_deferred_run_all(s);
    CHECK_EQ(prs_get_stats(s, &stats), PRS_OK);
    CHECK_EQ(stats.objects, 0);
    close_store(s);
}

TEST(a_trailer_that_does_not_fit_is_refused)
{
    prs_store *s = open_store(32 * MB, FORM);
    prs_oid id = put(s, FEW, 1);
    CHECK_EQ(spill(s, &id), PRS_OK);
    char path[8192];
    path_of(s, &id, path);
    struct stat st;
    CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0400);
    CHECK_EQ(st.st_size, (off_t)(FEW + sizeof(prs_spill_trailer)));
    CHECK_EQ(chmod(path, 0600), 0);
    FILE *file = fopen(path, "r+b");
    CHECK(file != NULL);
    prs_spill_trailer good, t;
    CHECK(fseek(file, (long)FEW, SEEK_SET) == 0 && fread(&good, sizeof good, 1, file) == 1);
    for (size_t byte = 0; byte < sizeof t; byte++) {
        for (int bit = 0; bit < 8; bit += 3) {
            t = good;
            ((uint8_t *)&t)[byte] ^= (uint8_t)(1 << bit);
            CHECK(fseek(file, (long)FEW, SEEK_SET) == 0 && fwrite(&t, sizeof t, 1, file) == 1 && fflush(file) == 0);
            prs_view v;
            CHECK_EQ(pin(s, &id, &v), PRS_E_CORRUPT);
        }
    }
    CHECK(fseek(file, (long)FEW, SEEK_SET) == 0 && fwrite(&good, sizeof good, 1, file) == 1 && fclose(file) == 0);
    verify(s, &id, FEW, 1);
    const off_t lengths[] = {0, 63, 64, (off_t)FEW, (off_t)(FEW + 63), (off_t)(FEW + 65)};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        prs_view v;
        CHECK_EQ(truncate(path, lengths[i]), 0);
        CHECK_EQ(pin(s, &id, &v), PRS_E_CORRUPT);
    }
    CHECK_EQ(unlink(path), 0);
    prs_view v;
    CHECK_EQ(pin(s, &id, &v), PRS_E_LOST);
    prs_unref(s, &id);
    close_store(s);
}

TEST(who_spills_may_read_what_he_spills)
{
    prs_store *s = open_store(32 * MB, FORM);
    prs_oid id = put(s, SIZE, 7), other = put(s, SIZE, 8);
    prs_spill_job job, inner;
    prs_view v;
    CHECK_EQ(prs_spill_begin(s, &id, &job, &error), PRS_OK);
    CHECK_EQ(prs_spill_begin(s, &id, &inner, &error), PRS_E_AGAIN);
    CHECK_EQ(prs_spill_begin(s, &other, &inner, &error), PRS_OK); /* begin a nested job */
    CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
    CHECK(v.data == job.data && v.data[0] == 7);
    prs_spill_cancel(s, &inner);
    CHECK_EQ(prs_spill_append(s, &job, job.data, job.size, &error), PRS_OK);
    CHECK_EQ(prs_spill_finish(s, &job, PRS_SPILL_LZ4, PRS_SPILL_XXH3, 0, &error), PRS_E_AGAIN);
    char path[8192];
    path_of(s, &id, path);
    CHECK(access(path, F_OK) != 0);
    prs_unpin(s, &id);
    /* A forked child is another client, so for the child the object is being spilled. */
    CHECK_EQ(prs_spill_begin(s, &id, &job, &error), PRS_OK);
    pid_t pid = fork();
    if (pid == 0) {
        prs_store *again = NULL;
        if (prs_attach_pid(&again, (int32_t)getppid(), -1, job.id.store, NULL, &error) != PRS_OK)
            _exit(1);
        _exit(prs_pin(again, &id, &v) != PRS_E_AGAIN || prs_pin(s, &id, &v) != PRS_E_AGAIN);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    prs_spill_cancel(s, &job);
    verify(s, &id, SIZE, 7);
    verify(s, &other, SIZE, 8);
    prs_unref(s, &id);
    prs_unref(s, &other);
    close_store(s);
}

TEST(a_dead_spiller_leaves_nothing)
{
    prs_store *s = open_store(32 * MB, FORM);
    prs_oid id = put(s, SIZE, 5);
    char path[8192];
    path_of(s, &id, path);
    pid_t pid = fork();
    if (pid == 0) {
        prs_spill_job job;
        if (prs_spill_begin(s, &id, &job, &error) == PRS_OK)
            (void)prs_spill_append(s, &job, job.data, job.size, &error);
        _exit(access(path, F_OK) == 0 ? 7 : 1);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    CHECK_EQ(prs_reap_dead(s, 0), PRS_OK);
    CHECK(access(path, F_OK) != 0);
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    verify(s, &id, SIZE, 5);
    CHECK_EQ(spill(s, &id), PRS_OK);
    verify(s, &id, SIZE, 5);
    prs_unref(s, &id);
    close_store(s);
}

TEST(a_child_forked_in_the_middle_leaves_the_file_to_its_parent)
{
    prs_store *s = open_store(32 * MB, FORM);
    prs_oid id = put(s, SIZE, 5);
    char path[8192];
    path_of(s, &id, path);
    uint8_t *negated = malloc(SIZE);
    for (int how = 0; how < 2; how++) {
        prs_spill_job job;
        CHECK_EQ(prs_spill_begin(s, &id, &job, &error), PRS_OK);
        for (size_t i = 0; i < SIZE; i++)
            negated[i] = (uint8_t)~job.data[i];
        uint64_t digest = sum(job.data, SIZE);
        CHECK_EQ(prs_spill_append(s, &job, negated, SIZE / 2, &error), PRS_OK);
        pid_t pid = fork();
        if (pid == 0) {
            memset(negated, 0, SIZE);
            if (how == 0) {
                CHECK_EQ(prs_spill_append(s, &job, negated, SIZE / 2, &error), PRS_OK);
                CHECK_EQ(prs_spill_finish(s, &job, PRS_SPILL_LZ4, PRS_SPILL_XXH3, 0, &error), PRS_E_AGAIN);
            } else {
                prs_spill_cancel(s, &job);
            }
            _exit(0);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        struct stat st;
        CHECK(stat(path, &st) == 0 && st.st_size == (off_t)(SIZE / 2));
        if (how == 0) {
            prs_spill_cancel(s, &job);
            continue;
        }
        CHECK_EQ(prs_spill_append(s, &job, negated + SIZE / 2, SIZE / 2, &error), PRS_OK);
        CHECK_EQ(prs_spill_finish(s, &job, PRS_SPILL_LZ4, PRS_SPILL_XXH3, digest, &error), PRS_OK);
    }
    free(negated);
    CHECK_EQ(access(path, F_OK), 0);
    verify(s, &id, SIZE, 5);
    prs_unref(s, &id);
    close_store(s);
}

/* Take the same steps as a client that has declared the spiller dead. */
static void undo(prs_store *s, const prs_oid *id)
{
    uint64_t word;
    while (prs_word_state(word = prs_load_seqcst(&prs_slot_at(s, id->slot)->word)) != PRS_STATE_SPILLING)
        usleep(1000);
    prs_spill_undo(s, id->slot, word);
}

TEST(a_spiller_that_was_taken_for_dead_commits_no_file_that_is_gone)
{
    if (prs_failpoint_names()[0] == NULL)
        return; /* skip this, because only failpoints make this race likely */
    prs_store *s = open_store(32 * MB, FORM);
    prs_oid id = put(s, SIZE, 5);
    char path[8192];
    path_of(s, &id, path);
    int told[2];
    char one = 1;
    CHECK_EQ(pipe(told), 0);
    pid_t pid = fork();
    if (pid == 0) {
        prs_spill_job job;
        CHECK_EQ(prs_spill_begin(s, &id, &job, &error), PRS_OK);
        CHECK_EQ(prs_spill_append(s, &job, job.data, job.size, &error), PRS_OK);
        CHECK_EQ(write(told[1], &one, 1), 1);
        while (access(path, F_OK) == 0)
            usleep(1000);
        CHECK_EQ(prs_spill_finish(s, &job, PRS_SPILL_LZ4, PRS_SPILL_XXH3, 0, &error), PRS_E_AGAIN);
        _exit(0);
    }
    CHECK_EQ(read(told[0], &one, 1), 1);
    prs_failpoint_arm("spill_removed", PRS_FAIL_HOLD, 1, 500);
    undo(s, &id);
    prs_failpoint_arm("spill_removed", 0, 1, 0);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    verify(s, &id, SIZE, 5);
    close(told[0]);
    close(told[1]);
    prs_unref(s, &id);
    close_store(s);
}

TEST(a_spiller_that_was_taken_for_dead_opens_no_file_of_the_next_one)
{
    if (prs_failpoint_names()[0] == NULL)
        return;
    prs_store *s = open_store(32 * MB, FORM);
    prs_oid id = put(s, SIZE, 5);
    pid_t pid = fork();
    if (pid == 0) {
        prs_spill_job job;
        prs_failpoint_arm("spill_marked", PRS_FAIL_HOLD, 1, 1000);
        CHECK_EQ(prs_spill_begin(s, &id, &job, &error), PRS_E_AGAIN);
        _exit(0);
    }
    undo(s, &id);
    CHECK_EQ(spill(s, &id), PRS_OK);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    verify(s, &id, SIZE, 5);
    prs_unref(s, &id);
    close_store(s);
}

TEST(rubbish_under_the_name_of_a_file_is_replaced)
{
    prs_store *s = open_store(32 * MB, FORM);
    prs_oid id = put(s, SIZE, 5);
    char path[8192];
    path_of(s, &id, path);
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && ftruncate(fileno(file), (off_t)(3 * SIZE)) == 0 && fclose(file) == 0);
    CHECK_EQ(chmod(path, 0400), 0);
    CHECK_EQ(spill(s, &id), PRS_OK);
    verify(s, &id, SIZE, 5);
    prs_unref(s, &id);
    close_store(s);
}

TEST(a_file_that_is_removed_while_it_is_made_is_not_made_anew)
{
    prs_store *s = open_store(16 * MB, FORM);
    prs_draft d;
    char path[8192];
    CHECK_EQ(prs_alloc(s, 20 * MB, 0, &d, &error), PRS_OK);
    path_of(s, &d.id, path);
    CHECK_EQ(prs_write(s, &d, 0, "abc", 3, &error), PRS_OK);
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(prs_write(s, &d, 3, "abc", 3, &error), PRS_E_SYS);
    CHECK_EQ(error.sys_errno, ENOENT);
    CHECK_EQ(prs_draft_finish(s, &d, PRS_SPILL_XXH3, 0, &error), PRS_E_SYS);
    CHECK(access(path, F_OK) != 0);
    prs_abort(s, &d);
    close_store(s);
}

TEST_MAIN()
