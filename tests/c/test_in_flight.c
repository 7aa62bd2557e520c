/* test_in_flight.c - tests of the list of references in flight, and of ending those whose message was lost. */
#include "engine.h"

static prs_error error;

static int list(prs_store *s, prs_flight *out, int cap)
{
    uint32_t cursor = 0;
    int n = prs_flights(s, &cursor, out, cap, &error);
    CHECK_MSG(n >= 0, "prs_flights: %d %s", n, error.what);
    return n;
}

static int end_of(prs_store *s, int32_t pid, int64_t min_age)
{
    int n = prs_flights_end(s, pid, min_age, &error);
    CHECK_MSG(n >= 0, "prs_flights_end: %d %s", n, error.what);
    return n;
}

/* Fork a child that puts `count` objects, takes a token for each and dies; return its pid. */
static pid_t send_and_die(prs_store *s, int count, int kind)
{
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(20);
        for (int i = 0; i < count; i++) {
            prs_oid id = put(s, 100 + (uint64_t)i, (uint64_t)i);
            prs_token token;
            CHECK_EQ(prs_token_take(s, &id, kind, &token), PRS_OK);
            prs_unref(s, &id);
        }
        kill(getpid(), SIGKILL);
    }
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
    return pid;
}

TEST(a_token_shows_its_sender_object_and_age)
{
    prs_store *s = store_of(8 * MIB);
    prs_flight f[4];
    CHECK_EQ(list(s, f, 4), 0);
    prs_oid id = put(s, 100, 1);
    prs_token once, sticky;
    CHECK_EQ(prs_token_take_noted(s, &id, PRS_TOKEN_ONCE, 77, &once), PRS_OK);
    CHECK_EQ(prs_token_take(s, &id, PRS_TOKEN_STICKY, &sticky), PRS_OK);
    CHECK_EQ(list(s, f, 4), 2);
    CHECK(f[0].note == 77 && f[1].note == 0 && f[0].size == 100);
    CHECK(f[0].id.serial == id.serial && f[0].id.slot == id.slot && f[0].id.generation == id.generation);
    CHECK(f[0].token.index == once.index && f[0].token.serial == once.serial && f[0].kind == PRS_TOKEN_ONCE);
    CHECK_EQ(f[1].kind, PRS_TOKEN_STICKY);
    CHECK_EQ(f[0].sender_pid, getpid());
    CHECK(f[0].sender_alive && !f[0].object_gone);
    CHECK(f[0].age <= 2);
    CHECK_EQ(end_of(s, 0, 0), 0); /* the sender is still alive */
    prs_token_drop(s, &id, &sticky);
    CHECK_EQ(list(s, f, 4), 1);
    CHECK_EQ(prs_token_claim(s, &id, &once), PRS_OK);
    CHECK_EQ(list(s, f, 4), 0);
    prs_unref(s, &id);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(tokens_of_freed_objects_do_not_fill_the_table)
{
    prs_store *s = store_of(8 * MIB);
    prs_oid kept = put(s, 100, 1);
    prs_token token;
    for (uint32_t i = 0; i < 64 * PRS_LINK_CHUNK; i++) {
        if (i % 100 == 0)
            CHECK_EQ(prs_token_take(s, &kept, PRS_TOKEN_STICKY, &token), PRS_OK);
        prs_oid id = put(s, 64, 1);
        CHECK_EQ(prs_token_take(s, &id, i % 2 ? PRS_TOKEN_ONCE : PRS_TOKEN_STICKY, &token), PRS_OK);
        CHECK_EQ(prs_free(s, &id, &error), PRS_OK); /* the message was read elsewhere, or lost */
        prs_unref(s, &id);
    }
    CHECK(prs_links_published(s) <= 2 * PRS_LINK_CHUNK);
    uint32_t of_kept = 0, cursor = 0;
    prs_flight f[64];
    for (int n; (n = prs_flights(s, &cursor, f, 64, &error)) > 0;)
        for (int k = 0; k < n; k++)
            of_kept += f[k].id.serial == kept.serial && !f[k].object_gone;
    CHECK_EQ(of_kept, (64 * PRS_LINK_CHUNK + 99) / 100);
    CHECK_EQ(prs_free(s, &kept, &error), PRS_OK);
    prs_unref(s, &kept);
    close_store(s);
}

TEST(tokens_of_dead_senders_are_ended_by_pid_and_age)
{
    if (SANITIZED_THREADS)
        SKIP("nothing here for this sanitizer to see");
    prs_store *s = store_of(8 * MIB);
    pid_t first = send_and_die(s, 100, PRS_TOKEN_ONCE), second = send_and_die(s, 3, PRS_TOKEN_ONCE);
    prs_oid mine = put(s, 10, 7);
    prs_token token;
    CHECK_EQ(prs_token_take(s, &mine, PRS_TOKEN_ONCE, &token), PRS_OK);
    prs_reap_dead(s, 0); /* frees the senders' client slots, but their pids stay in the links */
    prs_flight f[128];
    CHECK_EQ(list(s, f, 128), 104);
    int of_first = 0;
    for (int i = 0; i < 104; i++) {
        CHECK_EQ(f[i].sender_alive, f[i].sender_pid == getpid());
        of_first += f[i].sender_pid == first;
    }
    CHECK_EQ(of_first, 100);
    CHECK_EQ(end_of(s, second, 3600 * PRS_SECOND), 0); /* the token is too young */
    CHECK_EQ(end_of(s, second, 0), 3);
    CHECK_EQ(stats_of(s).objects, 101);
    CHECK_EQ(end_of(s, 0, 0), 100);
    CHECK_EQ(list(s, f, 128), 1);
    CHECK_EQ(prs_token_claim(s, &mine, &token), PRS_OK);
    prs_unref(s, &mine);
    prs_unref(s, &mine);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(bytes_that_may_be_loaded_again_outlive_their_sender)
{
    if (SANITIZED_THREADS)
        SKIP("nothing here for this sanitizer to see");
    prs_store *s = store_of(8 * MIB);
    send_and_die(s, 2, PRS_TOKEN_STICKY);
    CHECK_EQ(end_of(s, 0, 0), 0);
    prs_flight f[4];
    CHECK_EQ(list(s, f, 4), 2);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(prs_free(s, &f[i].id, &error), PRS_OK);
    prs_deferred_run_all(s);
    CHECK_EQ(list(s, f, 4), 2);
    CHECK(f[0].object_gone && f[1].object_gone && f[0].size == 0);
    CHECK_EQ(end_of(s, 0, 0), 2); /* their objects no longer exist */
    CHECK_EQ(stats_of(s).in_flight, 0);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(a_list_longer_than_one_look_is_walked)
{
    prs_store *s = store_of(8 * MIB);
    prs_oid id = put(s, 100, 1);
    enum { N = 5000 };
    static prs_token token[N];
    for (int i = 0; i < N; i++)
        CHECK_EQ(prs_token_take(s, &id, PRS_TOKEN_ONCE, &token[i]), PRS_OK);
    for (int i = 0; i < N - 1; i++)
        prs_token_drop(s, &id, &token[i]);
    prs_flight f[2];
    CHECK_EQ(list(s, f, 2), 1); /* the token follows 4,999 free records */
    CHECK_EQ(f[0].token.serial, token[N - 1].serial);
    uint32_t cursor = UINT32_MAX - 1;
    CHECK_EQ(prs_flights(s, &cursor, f, 2, &error), 0);
    prs_token_drop(s, &id, &token[N - 1]);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST_MAIN()
