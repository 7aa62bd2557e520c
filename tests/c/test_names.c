/* test_names.c - tests of the index of names: bind, find, list, free, rebind, a full index and deaths. */
#include "harness.h"
#include "prs.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static prs_error error;

static prs_store *open_store(void)
{
    prs_store *s = NULL;
    CHECK_EQ(prs_create(&s, &(prs_options){.capacity = 64u << 20}, &error), PRS_OK);
    return s;
}

static prs_oid put(prs_store *s, const char *text)
{
    prs_draft d;
    CHECK_EQ(prs_alloc(s, strlen(text) + 1, 0, &d, &error), PRS_OK);
    memcpy(d.dst, text, strlen(text) + 1);
    CHECK_EQ(prs_seal(s, &d, &error), PRS_OK);
    return d.id;
}

static bool reads(prs_store *s, const char *name, const char *text)
{
    prs_oid id;
    prs_view view;
    if (prs_name_find(s, name, strlen(name), &id) != PRS_OK)
        return false;
    bool same = prs_pin(s, &id, &view) == PRS_OK && strcmp((const char *)view.data, text) == 0;
    if (same)
        prs_unpin(s, &id);
    prs_unref(s, &id);
    return same;
}

TEST(a_named_object_outlives_its_producer)
{
    prs_store *s = open_store();
    prs_oid id = put(s, "weights");
    CHECK_EQ(prs_name_bind(s, "w", 1, &id, &error), PRS_OK);
    prs_unref(s, &id);
    CHECK(reads(s, "w", "weights"));
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    prs_dispose(s);
}

TEST(a_taken_name_is_refused_until_its_object_is_freed)
{
    prs_store *s = open_store();
    prs_oid a = put(s, "a"), b = put(s, "b");
    CHECK_EQ(prs_name_bind(s, "n", 1, &a, &error), PRS_OK);
    CHECK_EQ(prs_name_bind(s, "n", 1, &b, &error), PRS_E_EXISTS);
    CHECK(reads(s, "n", "a"));
    CHECK_EQ(prs_free(s, &a, &error), PRS_OK);
    prs_oid gone;
    CHECK_EQ(prs_name_find(s, "n", 1, &gone), PRS_E_NOTFOUND);
    CHECK_EQ(prs_name_bind(s, "n", 1, &b, &error), PRS_OK);
    CHECK(reads(s, "n", "b"));
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    prs_dispose(s);
}

TEST(the_table_fills_and_is_reused)
{
    prs_store *s = open_store();
    char name[32];
    prs_oid last = {0};
    int rc = PRS_OK, n = 0;
    for (; rc == PRS_OK && n < 5000; n++) {
        last = put(s, "x");
        rc = prs_name_bind(s, name, (size_t)snprintf(name, sizeof name, "name %d", n), &last, &error);
        if (rc == PRS_OK)
            prs_unref(s, &last);
    }
    CHECK_EQ(rc, PRS_E_OBJECTS);
    CHECK_EQ(n, 4097);
    prs_oid first;
    CHECK_EQ(prs_name_find(s, "name 7", 6, &first), PRS_OK);
    CHECK_EQ(prs_free(s, &first, &error), PRS_OK);
    CHECK_EQ(prs_name_bind(s, "again", 5, &last, &error), PRS_OK);
    uint32_t cursor = 0;
    char text[PRS_NAME_MAX + 1];
    int listed = 0;
    for (prs_oid id; prs_name_next(s, &cursor, text, &id);)
        listed++;
    CHECK_EQ(listed, 4096);
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    prs_dispose(s);
}

TEST(death_while_naming_leaves_a_name_or_nothing)
{
    static const char *const points[] = {"name_linked", "name_written", "link_counted", "link_filled", "name_cleared"};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        prs_store *s = open_store();
        prs_oid old = put(s, "old");
        CHECK_EQ(prs_name_bind(s, "n", 1, &old, &error), PRS_OK);
        CHECK_EQ(prs_free(s, &old, &error), PRS_OK);
        pid_t pid = fork();
        if (pid == 0) {
            prs_oid id = put(s, "new");
            prs_failpoint_arm(points[i], PRS_FAIL_KILL, 1, 0);
            prs_name_bind(s, "n", 1, &id, &error);
            _exit(0);
        }
        int status;
        waitpid(pid, &status, 0);
        if (prs_failpoint_names()[0] != NULL)
            CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        CHECK_EQ(prs_reap_dead(s, 0), PRS_OK);
        CHECK_EQ(prs_check(s, &error), PRS_OK);
        prs_oid found;
        int rc = prs_name_find(s, "n", 1, &found);
        CHECK(rc == PRS_OK || rc == PRS_E_NOTFOUND);
        prs_oid mine = put(s, "mine");
        CHECK_EQ(prs_name_bind(s, "n", 1, &mine, &error), rc == PRS_OK ? PRS_E_EXISTS : PRS_OK);
        CHECK(reads(s, "n", rc == PRS_OK ? "new" : "mine"));
        CHECK_EQ(prs_check(s, &error), PRS_OK);
        prs_dispose(s);
    }
}

TEST(an_ephemeral_name_ends_with_the_last_holder_of_its_object)
{
    prs_store *s = open_store();
    prs_oid id = put(s, "claim"), found;
    prs_view view;
    CHECK_EQ(prs_name_bind_as(s, "n", 1, &id, false, &error), PRS_OK);
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    CHECK(reads(s, "n", "claim"));
    CHECK_EQ(prs_name_bind(s, "n", 1, &id, &error), PRS_E_EXISTS);
    CHECK_EQ(prs_pin(s, &id, &view), PRS_OK);
    prs_unref(s, &id);
    CHECK(reads(s, "n", "claim"));
    prs_unpin(s, &id);
    CHECK_EQ(prs_name_find(s, "n", 1, &found), PRS_E_NOTFOUND);
    uint32_t cursor = 0;
    char text[PRS_NAME_MAX + 1];
    CHECK_EQ(prs_name_next(s, &cursor, text, &found), 0);
    prs_oid next = put(s, "next");
    CHECK_EQ(prs_name_bind_as(s, "n", 1, &next, false, &error), PRS_OK);
    CHECK(reads(s, "n", "next"));
    CHECK_EQ(prs_free(s, &next, &error), PRS_OK);
    CHECK_EQ(prs_name_find(s, "n", 1, &found), PRS_E_NOTFOUND);
    CHECK_EQ(prs_name_bind(s, "n", 1, &next, &error), PRS_E_FREED);
    prs_stats stats;
    prs_unref(s, &next);
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    CHECK_EQ(prs_get_stats(s, &stats), PRS_OK);
    CHECK_EQ(stats.objects, 0);
    prs_dispose(s);
}

TEST(an_ephemeral_name_ends_with_its_killed_client_and_outlives_a_rebuild)
{
    static const char *const points[] = {"name_written", "none"};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        prs_store *s = open_store();
        prs_oid mine = put(s, "mine"), found;
        CHECK_EQ(prs_name_bind_as(s, "mine", 4, &mine, false, &error), PRS_OK);
        pid_t pid = fork();
        if (pid == 0) {
            prs_oid id = put(s, "theirs");
            if (i == 0) /* dies with the store lock, so the next client rebuilds the tables */
                prs_failpoint_arm(points[i], PRS_FAIL_KILL, 1, 0);
            prs_name_bind_as(s, "theirs", 6, &id, false, &error);
            kill(getpid(), SIGKILL);
        }
        int status;
        waitpid(pid, &status, 0);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        CHECK(reads(s, "mine", "mine"));
        CHECK_EQ(prs_reap_dead(s, 0), PRS_OK);
        CHECK_EQ(prs_check(s, &error), PRS_OK);
        CHECK_EQ(prs_name_find(s, "theirs", 6, &found), PRS_E_NOTFOUND);
        CHECK(reads(s, "mine", "mine"));
        prs_unref(s, &mine);
        prs_stats stats;
        CHECK_EQ(prs_get_stats(s, &stats), PRS_OK);
        CHECK_EQ(stats.objects, 0);
        prs_dispose(s);
    }
}

TEST_MAIN()
