/*
 * Tests of what a client does with the slot of a freed object: it keeps the slot for the next put, or returns it,
 * either immediately or when the lock is free.
 */
#include "corpses.h"

TEST(who_only_read_and_freed_can_put)
{
    prs_store *s = store_of(16 * MIB), *reader = client_of(s);
    prs_oid first = put(s, 100, 1), id = put(s, 100, 2); /* the first one is at offset 0 */
    CHECK_EQ(prs_ref(reader, &id), PRS_OK);
    prs_unref(s, &id);
    prs_unref(reader, &id); /* this was the last hold */
    CHECK_EQ(stats_of(s).objects, 1);
    prs_oid other = put(reader, 100, 3);
    CHECK_EQ(verify(reader, &other, 100, 3), PRS_OK);
    prs_unref(reader, &other);
    prs_unref(s, &first);
    close_store(reader);
    CHECK_EMPTY(s);
    close_store(s);
}

/* Make large and small objects that refer to others; the slot of a small one would fit into a magazine if the object
 * had no edge. */
enum { MANY = 2 * PRS_PENDING_CAP + 40 };

static void make(prs_store *s, prs_oid *outer)
{
    prs_error e;
    for (int i = 0; i < MANY; i++) {
        prs_oid inner = put(s, 3000, (uint64_t)i);
        prs_draft d;
        CHECK_EQ(prs_alloc(s, i % 2 ? 64 : 40000, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
        CHECK_EQ(prs_add_edge(s, &d, &inner, &e), PRS_OK);
        CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
        prs_unref(s, &inner);
        outer[i] = d.id;
    }
}

TEST(what_is_freed_while_the_lock_is_held_goes_when_it_is_free)
{
    prs_store *s = store_of(64 * MIB), *holder = client_of(s);
    static prs_oid outer[MANY];
    for (int round = 0; round < 3; round++) {
        make(s, outer);
        CHECK_EQ(stats_of(s).objects, 2 * MANY);
        CHECK_EQ(prs_tables_prefault(holder), 0);
        CHECK_EQ(prs_lock(holder, PRS_SECOND, NULL), PRS_OK);
        for (int i = 0; i < MANY; i++)
            prs_unref(s, &outer[i]);
        prs_unlock(holder);
        prs_deferred_run_all(s);
        CHECK_EQ(stats_of(s).objects, 0);
        CHECK_EQ(stats_of(s).edges, 0);
        CHECK(stats_of(s).reserved < MIB); /* all extents of 40,000 bytes were returned */
    }
    close_store(holder);
    CHECK_EMPTY(s);
    close_store(s);
}

/* The lock is busy until the client has left. The client then counts as dead, and another client returns its slots. */
TEST(who_leaves_while_the_lock_is_held_leaves_nothing_behind)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(64 * MIB);
    int made[2], held[2];
    char one = 1;
    CHECK(pipe(made) == 0 && pipe(held) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(30);
        static prs_oid outer[MANY];
        make(s, outer);
        s->lock_timeout = 10 * PRS_MS;
        CHECK(write(made[1], &one, 1) == 1 && read(held[0], &one, 1) == 1);
        for (int i = 0; i < MANY; i++)
            prs_unref(s, &outer[i]);
        prs_close(s);
        _exit(0);
    }
    CHECK_EQ(read(made[0], &one, 1), 1);
    CHECK_EQ(stats_of(s).objects, 2 * MANY);
    CHECK_EQ(prs_tables_prefault(s), 0);
    CHECK_EQ(prs_lock(s, PRS_SECOND, NULL), PRS_OK);
    CHECK_EQ(write(held[1], &one, 1), 1);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    prs_unlock(s);
    prs_reap_dead(s, 0);
    prs_deferred_run_all(s);
    CHECK_CLIENTS(s, 1);
    CHECK_EMPTY(s);
    for (int i = 0; i < 2; i++)
        close(made[i]), close(held[i]);
    close_store(s);
}

TEST_MAIN()
