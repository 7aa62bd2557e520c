/*
 * Tests that an object that refers to bytes of another object holds these bytes, even after prs_free.
 */
#include "corpses.h"

/* Make a CREATING draft that refers to bytes of `inner`. */
static prs_draft referring(prs_store *s, const prs_oid *inner)
{
    prs_draft d;
    prs_error e = {0};
    CHECK_EQ(prs_alloc(s, 64, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
    int rc = prs_add_bytes_edge(s, &d, inner, &e);
    CHECK_MSG(rc == PRS_OK, "prs_add_bytes_edge: %d %s", rc, e.what);
    return d;
}

static prs_oid refer(prs_store *s, const prs_oid *inner)
{
    prs_error e;
    prs_draft d = referring(s, inner);
    CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
    return d.id;
}

static void check_named(prs_store *s, const prs_oid *id, uint64_t size, uint64_t seed)
{
    prs_view v;
    CHECK_EQ(prs_pin(s, id, &v), PRS_E_FREED);
    CHECK_EQ(prs_pin_named(s, id, &v), PRS_OK);
    CHECK(v.size == size && content_right(v.data, size, seed));
    prs_unpin(s, id);
}

TEST(freed_bytes_stay_while_an_object_refers_to_them)
{
    prs_error e;
    for (uint64_t size = 100; size <= 100000; size += 99900) {
        prs_store *s = store_of(16 * MIB), *reader = client_of(s);
        prs_oid inner = put(s, size, 1), outer = refer(s, &inner), second = refer(s, &inner);
        CHECK_EQ(prs_free(s, &inner, &e), PRS_OK);
        prs_unref(s, &inner);
        for (int i = 0; i < 20; i++) { /* these puts reuse the memory of `inner` if it was freed by mistake */
            prs_oid other = put(s, size, 9);
            prs_unref(s, &other);
        }
        check_named(s, &inner, size, 1);
        check_named(reader, &inner, size, 1);
        CHECK_STORE(s);
        prs_unref(s, &outer);
        check_named(reader, &inner, size, 1);
        prs_unref(s, &second);
        prs_view v;
        prs_deferred_run_all(s);
        CHECK(prs_pin_named(reader, &inner, &v) < 0);
        close_store(reader);
        CHECK_EMPTY(s);
        close_store(s);
    }
}

TEST(an_edge_that_only_names_an_object_does_not_keep_freed_bytes)
{
    prs_error e;
    prs_draft d;
    prs_store *s = store_of(16 * MIB);
    prs_oid inner = put(s, 100000, 1), outer = refer(s, &inner);
    CHECK_EQ(prs_alloc(s, 64, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
    CHECK_EQ(prs_add_edge(s, &d, &inner, &e), PRS_OK);
    CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
    CHECK_EQ(prs_free(s, &inner, &e), PRS_OK);
    check_named(s, &inner, 100000, 1);
    prs_unref(s, &outer); /* this is the last object that uses the bytes; the other one only refers to the object */
    prs_deferred_run_all(s);
    prs_view v;
    CHECK(prs_pin_named(s, &inner, &v) < 0);
    prs_unref(s, &inner);
    prs_unref(s, &d.id);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(more_edges_than_the_count_holds)
{
    enum { N = 600 };
    static prs_oid outer[N];
    prs_error e;
    prs_store *s = store_of(16 * MIB);
    prs_oid inner = put(s, 5000, 3);
    for (int i = 0; i < N; i++)
        outer[i] = refer(s, &inner);
    CHECK_EQ(prs_free(s, &inner, &e), PRS_OK);
    CHECK_STORE(s);
    for (int i = 0; i < N; i++) {
        check_named(s, &inner, 5000, 3);
        prs_unref(s, &outer[i]);
        prs_deferred_run_all(s);
    }
    prs_unref(s, &inner);
    CHECK_EMPTY(s);
    close_store(s);
}

/* The caller has pinned the bytes, so an edge can be added even though the object was just freed. */
TEST(freed_bytes_that_are_pinned_can_be_referred_to)
{
    prs_error e;
    prs_view v;
    prs_store *s = store_of(16 * MIB);
    prs_oid inner = put(s, 70000, 4);
    CHECK_EQ(prs_pin(s, &inner, &v), PRS_OK);
    CHECK_EQ(prs_free(s, &inner, &e), PRS_OK);
    prs_oid outer = refer(s, &inner);
    prs_unpin(s, &inner);
    check_named(s, &inner, 70000, 4);
    prs_draft given_up = referring(s, &inner);
    prs_unref(s, &outer);
    check_named(s, &inner, 70000, 4);
    prs_abort(s, &given_up);
    prs_deferred_run_all(s);
    CHECK(prs_pin_named(s, &inner, &v) < 0);
    prs_unref(s, &inner);
    CHECK_EMPTY(s);
    close_store(s);
}

/* In each case the freeing process, the referring process or its holder dies, or the store lock is stolen and the links
 * are recounted. */
TEST(deaths_neither_lose_nor_leak_the_bytes)
{
    SEVERAL_PROCESSES();
    static const char *const points[] = {"link_filled",    "link_counted",       "edge_chained", "free_marked",
                                         "freeing",        "freeing_scanned",    "retired",      "give_edges",
                                         "bury_uncounted", "freeing_rolled_back"};
    for (size_t k = 0; k < sizeof points / sizeof *points; k++) {
        prs_error e;
        prs_store *s = store_of(16 * MIB);
        prs_oid inner = put(s, 70000, 5), outer = refer(s, &inner);
        pid_t pid = fork();
        if (pid == 0) {
            child_setup(30);
            CHECK(prs_failpoint_arm(points[k], PRS_FAIL_KILL, 1, 0));
            prs_oid mine = refer(s, &inner);
            prs_free(s, &inner, &e);
            prs_unref(s, &mine);
            prs_deferred_run_all(s);
            prs_oid more = put(s, 300000, 6);
            prs_unref(s, &more);
            prs_deferred_run_all(s);
            kill(getpid(), SIGKILL); /* this operation did not cross the failpoint */
        }
        int status = reap_child(pid);
        CHECK_KILLED(status, SIGKILL);
        prs_oid other = put(s, 70000, 7);
        prs_reap_dead(s, 0);
        prs_free(s, &inner, &e);
        check_named(s, &inner, 70000, 5);
        CHECK_STORE(s);
        prs_unref(s, &outer);
        prs_unref(s, &inner);
        prs_unref(s, &other);
        CHECK_EMPTY(s);
        close_store(s);
    }
}

TEST_MAIN()
