/* test_names.c - tests of the index of names: bind, find, list, free, replace, move, a full index and deaths. */
#include "harness.h"
#include "prs.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
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
    if (prs_name_find(s, name, strlen(name), &id, NULL) != PRS_OK)
        return false;
    CHECK_EQ(prs_pin(s, &id, &view), PRS_OK);
    bool same = strcmp((const char *)view.data, text) == 0;
    prs_unpin(s, &id);
    prs_unref(s, &id);
    return same;
}

TEST(a_named_object_outlives_its_producer)
{
    prs_store *s = open_store();
    prs_oid id = put(s, "weights");
    CHECK_EQ(prs_name_bind(s, "w", 1, &id, 0, &error), PRS_OK);
    prs_unref(s, &id);
    CHECK(reads(s, "w", "weights"));
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    prs_dispose(s);
}

TEST(a_taken_name_is_refused_until_its_object_is_freed)
{
    prs_store *s = open_store();
    prs_oid a = put(s, "a"), b = put(s, "b");
    CHECK_EQ(prs_name_bind(s, "n", 1, &a, 0, &error), PRS_OK);
    CHECK_EQ(prs_name_bind(s, "n", 1, &b, 0, &error), PRS_E_EXISTS);
    CHECK(reads(s, "n", "a"));
    CHECK_EQ(prs_free(s, &a, &error), PRS_OK);
    prs_oid gone;
    CHECK_EQ(prs_name_find(s, "n", 1, &gone, NULL), PRS_E_NOTFOUND);
    CHECK_EQ(prs_name_bind(s, "n", 1, &b, 0, &error), PRS_OK);
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
    for (; rc == PRS_OK && n < 70000; n++) {
        last = put(s, "x");
        rc = prs_name_bind(s, name, (size_t)snprintf(name, sizeof name, "name %d", n), &last, 0, &error);
        if (rc == PRS_OK)
            prs_unref(s, &last);
    }
    CHECK_EQ(rc, PRS_E_OBJECTS);
    CHECK_EQ(n, 65537);
    prs_oid first;
    CHECK_EQ(prs_name_find(s, "name 7", 6, &first, NULL), PRS_OK);
    CHECK_EQ(prs_free(s, &first, &error), PRS_OK);
    CHECK_EQ(prs_name_bind(s, "again", 5, &last, 0, &error), PRS_OK);
    uint32_t cursor = 0;
    char text[PRS_NAME_MAX + 1];
    int listed = 0;
    for (prs_oid id; prs_name_next(s, &cursor, "", 0, text, &id, NULL);)
        listed++;
    CHECK_EQ(listed, 65536);
    static const struct {
        const char *prefix;
        int names;
    } prefixes[] = {{"name ", 65535}, {"name 6553", 7}, {"name 65535", 1}, {"again", 1}, {"again ", 0}, {"ame", 0}};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        const char *prefix = prefixes[i].prefix;
        cursor = 0, listed = 0;
        for (prs_oid id; prs_name_next(s, &cursor, prefix, strlen(prefix), text, &id, NULL); listed++)
            CHECK(strncmp(text, prefix, strlen(prefix)) == 0);
        CHECK_EQ(listed, prefixes[i].names);
    }
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    prs_dispose(s);
}

TEST(death_while_naming_leaves_a_name_or_nothing)
{
    static const char *const points[] = {"name_linked", "name_written", "link_counted", "link_filled", "name_cleared"};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        prs_store *s = open_store();
        prs_oid old = put(s, "old");
        CHECK_EQ(prs_name_bind(s, "n", 1, &old, 0, &error), PRS_OK);
        CHECK_EQ(prs_free(s, &old, &error), PRS_OK);
        pid_t pid = fork();
        if (pid == 0) {
            prs_oid id = put(s, "new");
            prs_failpoint_arm(points[i], PRS_FAIL_KILL, 1, 0);
            prs_name_bind(s, "n", 1, &id, 0, &error);
            _exit(0);
        }
        int status;
        waitpid(pid, &status, 0);
        if (prs_failpoint_names()[0] != NULL)
            CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        CHECK_EQ(prs_reap_dead(s, 0), PRS_OK);
        CHECK_EQ(prs_check(s, &error), PRS_OK);
        prs_oid found;
        int rc = prs_name_find(s, "n", 1, &found, NULL);
        CHECK(rc == PRS_OK || rc == PRS_E_NOTFOUND);
        prs_oid mine = put(s, "mine");
        CHECK_EQ(prs_name_bind(s, "n", 1, &mine, 0, &error), rc == PRS_OK ? PRS_E_EXISTS : PRS_OK);
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
    CHECK_EQ(prs_name_bind(s, "n", 1, &id, PRS_NAME_EPHEMERAL, &error), PRS_OK);
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    CHECK(reads(s, "n", "claim"));
    CHECK_EQ(prs_name_bind(s, "n", 1, &id, 0, &error), PRS_E_EXISTS);
    CHECK_EQ(prs_pin(s, &id, &view), PRS_OK);
    prs_unref(s, &id);
    CHECK(reads(s, "n", "claim"));
    prs_unpin(s, &id);
    CHECK_EQ(prs_name_find(s, "n", 1, &found, NULL), PRS_E_NOTFOUND);
    uint32_t cursor = 0;
    char text[PRS_NAME_MAX + 1];
    CHECK_EQ(prs_name_next(s, &cursor, "", 0, text, &found, NULL), 0);
    prs_oid next = put(s, "next");
    CHECK_EQ(prs_name_bind(s, "n", 1, &next, PRS_NAME_EPHEMERAL, &error), PRS_OK);
    CHECK(reads(s, "n", "next"));
    CHECK_EQ(prs_free(s, &next, &error), PRS_OK);
    CHECK_EQ(prs_name_find(s, "n", 1, &found, NULL), PRS_E_NOTFOUND);
    CHECK_EQ(prs_name_bind(s, "n", 1, &next, 0, &error), PRS_E_FREED);
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
        CHECK_EQ(prs_name_bind(s, "mine", 4, &mine, PRS_NAME_EPHEMERAL, &error), PRS_OK);
        pid_t pid = fork();
        if (pid == 0) {
            prs_oid id = put(s, "theirs");
            if (i == 0) /* dies with the store lock, so the next client rebuilds the tables */
                prs_failpoint_arm(points[i], PRS_FAIL_KILL, 1, 0);
            prs_name_bind(s, "theirs", 6, &id, PRS_NAME_EPHEMERAL, &error);
            kill(getpid(), SIGKILL);
        }
        int status;
        waitpid(pid, &status, 0);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        CHECK(reads(s, "mine", "mine"));
        CHECK_EQ(prs_reap_dead(s, 0), PRS_OK);
        CHECK_EQ(prs_check(s, &error), PRS_OK);
        CHECK_EQ(prs_name_find(s, "theirs", 6, &found, NULL), PRS_E_NOTFOUND);
        CHECK(reads(s, "mine", "mine"));
        prs_unref(s, &mine);
        prs_stats stats;
        CHECK_EQ(prs_get_stats(s, &stats), PRS_OK);
        CHECK_EQ(stats.objects, 0);
        prs_dispose(s);
    }
}

static uint64_t version_of(prs_store *s, const char *name)
{
    prs_oid id;
    prs_name_info info = {0};
    CHECK_EQ(prs_name_find(s, name, strlen(name), &id, &info), PRS_OK);
    CHECK(info.age < 1000);
    prs_unref(s, &id);
    return info.version;
}

static uint64_t count_of_objects(prs_store *s)
{
    prs_stats stats;
    CHECK_EQ(prs_check(s, &error), PRS_OK);
    CHECK_EQ(prs_get_stats(s, &stats), PRS_OK);
    return stats.objects;
}

TEST(a_replaced_object_lives_as_long_as_somebody_holds_it)
{
    static const uint32_t kinds[] = {0, PRS_NAME_EPHEMERAL};
    for (size_t i = 0; i < 4; i++) {
        prs_store *s = open_store();
        uint32_t first = kinds[i % 2], second = kinds[i / 2];
        prs_oid old = put(s, "old"), new = put(s, "new");
        CHECK_EQ(prs_name_bind(s, "n", 1, &old, first | PRS_NAME_REPLACE, &error), PRS_OK);
        uint64_t version = version_of(s, "n");
        CHECK_EQ(prs_name_bind(s, "n", 1, &new, second, &error), PRS_E_EXISTS);
        CHECK_EQ(prs_name_bind(s, "n", 1, &new, second | PRS_NAME_REPLACE, &error), PRS_OK);
        CHECK(reads(s, "n", "new"));
        CHECK(version_of(s, "n") > version);
        CHECK_EQ(prs_state(s, &old), PRS_OK);
        CHECK_EQ(count_of_objects(s), 2);
        prs_unref(s, &old);
        CHECK_EQ(count_of_objects(s), 1);
        prs_unref(s, &new);
        CHECK_EQ(count_of_objects(s), second ? 0 : 1);
        /* The same object again: the name stays, its version rises. */
        prs_oid third = put(s, "third");
        for (int round = 0; round < 3; round++) {
            CHECK_EQ(prs_name_bind(s, "n", 1, &third, PRS_NAME_REPLACE, &error), PRS_OK);
            CHECK(version_of(s, "n") > version);
            version = version_of(s, "n");
        }
        prs_unref(s, &third);
        CHECK(reads(s, "n", "third"));
        CHECK_EQ(count_of_objects(s), 1);
        prs_dispose(s);
    }
}

TEST(a_name_is_unbound_and_moved)
{
    prs_store *s = open_store();
    prs_oid a = put(s, "a"), b = put(s, "b"), found;
    CHECK_EQ(prs_name_unbind(s, "n", 1, NULL, NULL, &error), PRS_E_NOTFOUND);
    CHECK_EQ(prs_name_move(s, "n", 1, "m", 1, &error), PRS_E_NOTFOUND);
    CHECK_EQ(prs_name_bind(s, "n", 1, &a, 0, &error), PRS_OK);
    CHECK_EQ(prs_name_bind(s, "ephemeral", 9, &b, PRS_NAME_EPHEMERAL, &error), PRS_OK);
    uint64_t version = version_of(s, "n");
    CHECK_EQ(prs_name_move(s, "n", 1, "n", 1, &error), PRS_E_EXISTS);
    CHECK_EQ(prs_name_move(s, "n", 1, "ephemeral", 9, &error), PRS_E_EXISTS);
    CHECK_EQ(prs_name_move(s, "n", 1, "", 0, &error), PRS_E_INVAL);
    CHECK_EQ(prs_name_move(s, "n", 1, "moved", 5, &error), PRS_OK);
    prs_unref(s, &a);
    CHECK(reads(s, "moved", "a"));
    CHECK(version_of(s, "moved") > version);
    CHECK_EQ(prs_name_find(s, "n", 1, &found, NULL), PRS_E_NOTFOUND);
    /* To a name whose object is gone. */
    CHECK_EQ(prs_name_move(s, "moved", 5, "n", 1, &error), PRS_OK);
    CHECK_EQ(prs_name_move(s, "n", 1, "moved", 5, &error), PRS_OK);
    CHECK_EQ(prs_name_move(s, "ephemeral", 9, "still", 5, &error), PRS_OK);
    CHECK(reads(s, "still", "b"));
    prs_unref(s, &b);
    CHECK_EQ(prs_name_find(s, "still", 5, &found, NULL), PRS_E_NOTFOUND);
    CHECK_EQ(prs_name_move(s, "moved", 5, "still", 5, &error), PRS_OK);
    CHECK_EQ(count_of_objects(s), 1);
    CHECK_EQ(prs_name_unbind(s, "still", 5, &b, NULL, &error), PRS_E_NOTFOUND);
    CHECK_EQ(prs_name_unbind(s, "still", 5, &a, NULL, &error), PRS_OK);
    CHECK_EQ(prs_name_unbind(s, "still", 5, NULL, NULL, &error), PRS_E_NOTFOUND);
    CHECK_EQ(count_of_objects(s), 0);
    prs_dispose(s);
}

/* Return the status of a child that dies at a failpoint while it replaces, moves or unbinds "n". */
static int killed(prs_store *s, const char *point, int what)
{
    pid_t pid = fork();
    if (pid == 0) {
        prs_oid id = put(s, "new");
        prs_failpoint_arm(point, PRS_FAIL_KILL, 1, 0);
        if (what == 0)
            prs_name_bind(s, "n", 1, &id, PRS_NAME_REPLACE, &error);
        else if (what == 1)
            prs_name_move(s, "n", 1, "m", 1, &error);
        else
            prs_name_unbind(s, "n", 1, NULL, NULL, &error);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    return status;
}

TEST(death_while_replacing_moving_or_unbinding_leaves_one_object)
{
    static const char *const points[] = {"link_filled",  "link_counted",  "name_linked", "name_written",
                                         "name_cleared", "name_replaced", "bury_freed",  "bury_uncounted"};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        for (int what = 0; what < 3; what++) {
            bool applies = what < 2 || i == 4 || i > 5;
            prs_store *s = open_store();
            prs_oid old = put(s, "old"), found;
            CHECK_EQ(prs_name_bind(s, "n", 1, &old, 0, &error), PRS_OK);
            prs_unref(s, &old);
            int status = killed(s, points[i], what);
            if (prs_failpoint_names()[0] != NULL && applies)
                CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
            CHECK_EQ(prs_reap_dead(s, 0), PRS_OK);
            bool is_old = reads(s, "n", "old"), is_new = reads(s, "n", "new"), moved = reads(s, "m", "old");
            if (what == 0)
                CHECK(is_old != is_new && !moved);
            else if (what == 1)
                CHECK(is_old != moved && !is_new);
            else
                CHECK(!is_new && !moved);
            CHECK_EQ(count_of_objects(s), what < 2 || is_old ? 1 : 0);
            /* Everything can be named again. */
            if (what == 1)
                CHECK_EQ(prs_name_unbind(s, moved ? "m" : "n", 1, NULL, NULL, &error), PRS_OK);
            prs_oid mine = put(s, "mine");
            CHECK_EQ(prs_name_bind(s, "n", 1, &mine, PRS_NAME_REPLACE, &error), PRS_OK);
            prs_unref(s, &mine);
            CHECK(reads(s, "n", "mine"));
            CHECK_EQ(count_of_objects(s), 1);
            CHECK_EQ(prs_name_unbind(s, "n", 1, NULL, NULL, &error), PRS_OK);
            CHECK_EQ(count_of_objects(s), 0);
            CHECK_EQ(prs_name_find(s, "n", 1, &found, NULL), PRS_E_NOTFOUND);
            prs_dispose(s);
        }
}

TEST(uses_are_counted_and_ordered)
{
    prs_store *s = open_store();
    prs_oid a = put(s, "a"), b = put(s, "b"), found;
    prs_name_info first, second;
    CHECK_EQ(prs_name_bind(s, "a", 1, &a, 0, &error), PRS_OK);
    CHECK_EQ(prs_name_bind(s, "b", 1, &b, 0, &error), PRS_OK);
    prs_unref(s, &a);
    CHECK_EQ(prs_name_use(s, "a", 1, UINT32_MAX, &found, &first), PRS_OK);
    prs_unref(s, &found);
    CHECK_EQ(first.uses, 1);
    CHECK_EQ(prs_name_find(s, "b", 1, &found, &second), PRS_OK);
    prs_unref(s, &found);
    CHECK(second.used < first.used && second.uses == 0);
    for (uint32_t i = 1; i <= 3; i++) {
        CHECK_EQ(prs_name_use(s, "b", 1, UINT32_MAX, &found, &second), PRS_OK);
        prs_unref(s, &found);
        CHECK(second.used > first.used && second.uses == i);
    }
    CHECK_EQ(prs_name_count(s, "b", 1, 4, 9), PRS_OK);
    CHECK_EQ(prs_name_count(s, "b", 1, 0, 1ull << 40), PRS_OK);
    CHECK_EQ(prs_name_find(s, "b", 1, &found, &second), PRS_OK);
    prs_unref(s, &found);
    CHECK(second.uses == 7 && second.note == (1ull << 40) + 9);
    CHECK_EQ(prs_name_use(s, "c", 1, UINT32_MAX, &found, NULL), PRS_E_NOTFOUND);
    CHECK_EQ(prs_name_count(s, "c", 1, 1, 1), PRS_E_NOTFOUND);
    CHECK_EQ(prs_name_use(s, "b", 1, 0, &found, &second), PRS_E_NOTFOUND);
    CHECK_EQ(prs_name_find(s, "b", 1, &found, &second), PRS_OK);
    prs_unref(s, &found);
    CHECK_EQ(second.uses, 7);
    CHECK_EQ(prs_free(s, &b, &error), PRS_OK);
    CHECK_EQ(prs_name_use(s, "b", 1, UINT32_MAX, &found, NULL), PRS_E_NOTFOUND);
    CHECK_EQ(prs_name_count(s, "b", 1, 1, 1), PRS_E_NOTFOUND);
    prs_unref(s, &b);
    CHECK_EQ(count_of_objects(s), 1);
    prs_dispose(s);
}

TEST(readers_always_find_an_object_while_it_is_replaced)
{
    prs_store *s = open_store();
    prs_oid id = put(s, "00000000");
    CHECK_EQ(prs_name_bind(s, "n", 1, &id, 0, &error), PRS_OK);
    prs_unref(s, &id);
    pid_t pids[3];
    for (int child = 0; child < 3; child++) {
        pids[child] = fork();
        if (pids[child])
            continue;
        uint64_t last = 0;
        long number = 0;
        for (int round = 0; round < 20000; round++) {
            prs_view view;
            prs_name_info info;
            if (prs_name_find(s, "n", 1, &id, &info) != PRS_OK || info.version < last)
                _exit(1);
            if (prs_pin(s, &id, &view) != PRS_OK || atol((const char *)view.data) < number)
                _exit(2);
            last = info.version;
            number = atol((const char *)view.data);
            prs_unpin(s, &id);
            prs_unref(s, &id);
        }
        _exit(0);
    }
    char text[16];
    int living = 3;
    for (int i = 1; living; i++) {
        snprintf(text, sizeof text, "%08d", i);
        id = put(s, text);
        CHECK_EQ(prs_name_bind(s, "n", 1, &id, PRS_NAME_REPLACE, &error), PRS_OK);
        prs_unref(s, &id);
        for (int status; waitpid(-1, &status, WNOHANG) > 0; living--)
            CHECK_EQ(status, 0);
    }
    CHECK_EQ(prs_reap_dead(s, 0), PRS_OK);
    CHECK_EQ(count_of_objects(s), 1);
    prs_dispose(s);
}

TEST_MAIN()
