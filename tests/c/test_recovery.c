/*
 * What recovery owes in single, constructed situations: each case is one interleaving that a storm meets once in
 * thousands of deaths, or one check whose absence no random death would show.
 */
#include "engine.h"

/* A child dies with the store lock in hand: whoever needs it next is its thief. */
static void die_with_the_lock(prs_store *s)
{
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(20);
        CHECK_EQ(prs_lock(s, PRS_SECOND, NULL), PRS_OK);
        kill(getpid(), SIGKILL);
    }
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
}

static void steal(prs_store *s)
{
    uint64_t before = prs_load_relaxed(&s->super->stolen);
    die_with_the_lock(s);
    CHECK_EQ(prs_lock(s, 5 * PRS_SECOND, NULL), PRS_OK);
    prs_unlock(s);
    CHECK_EQ(prs_load_relaxed(&s->super->stolen), before + 1);
}

/* An object that names others. */
static prs_oid naming(prs_store *s, const prs_oid *inner, int n, uint64_t seed)
{
    prs_draft d;
    prs_error e;
    CHECK_EQ(prs_alloc(s, 64, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
    for (int i = 0; i < n; i++)
        CHECK_EQ(prs_add_edge(s, &d, &inner[i], &e), PRS_OK);
    content(d.dst, 64, seed);
    CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
    return d.id;
}

static void continue_child(pid_t pid)
{
    kill(pid, SIGCONT);
    int status = reap_child(pid);
    CHECK_EXITED(status);
}

static void drop(prs_store *s, prs_oid *id)
{
    prs_unref(s, id);
    prs_drain(s);
}

/* Edges that a living client has in hand to bury are its own, whatever happened to what they held. The thief that freed their
 * records had them ended a second time, as somebody else's token by then (found by the storm: "the stack of free links is
 * broken" after 3,650 kills). */
TEST(a_thief_leaves_the_edges_that_others_bury)
{
    if (SANITIZED_THREADS)
        SKIP("nothing here for this sanitizer to see");
    prs_store *s = store_of(16 * MIB);
    prs_oid inner[3] = {put(s, 100, 1), put(s, 100, 2), put(s, 100, 3)};
    prs_oid outer = naming(s, inner, 3, 4);
    fflush(NULL);
    int ready[2], go[2];
    CHECK(pipe(ready) == 0 && pipe(go) == 0);
    pid_t pid = fork();
    if (pid == 0) { /* lets go of the outer object last, and stops between retiring it and ending its edges */
        char byte = 'x';
        child_setup(30);
        for (int i = 0; i < 3; i++)
            prs_unref(s, &inner[i]);
        CHECK(write(ready[1], &byte, 1) == 1 && read(go[0], &byte, 1) == 1);
        prs_failpoint_arm("give_unlocked", PRS_FAIL_STOP, 1, 0);
        drop(s, &outer);
        prs_close(s);
        _exit(0);
    }
    char byte;
    int status;
    prs_error e;
    CHECK(read(ready[0], &byte, 1) == 1);
    prs_unref(s, &outer);
    for (int i = 0; i < 3; i++)
        prs_unref(s, &inner[i]);
    CHECK(write(go[1], "x", 1) == 1);
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK(WIFSTOPPED(status));
    CHECK_EQ(prs_free(s, &inner[1], &e), PRS_OK); /* ended for everyone: gone at once, its edge is not */
    CHECK(prs_state(s, &inner[1]) < 0);
    CHECK_EQ(prs_state(s, &inner[0]), PRS_OK);
    steal(s);
    CHECK_EQ(prs_check(s, &e), PRS_OK);
    enum { MESSAGES = 8 };
    prs_token token[MESSAGES];
    prs_oid sent = put(s, 100, 5);
    for (int i = 0; i < MESSAGES; i++)
        CHECK_EQ(prs_token_take(s, &sent, PRS_TOKEN_ONCE, &token[i]), PRS_OK);
    prs_unref(s, &sent);
    continue_child(pid);
    prs_look(s, 0);
    CHECK_STORE(s);
    CHECK_EQ(stats_of(s).in_flight, MESSAGES);
    CHECK_EQ(stats_of(s).edges, 0);
    for (int i = 0; i < MESSAGES; i++) {
        CHECK_EQ(prs_token_claim(s, &sent, &token[i]), PRS_OK);
        CHECK_EQ(verify(s, &sent, 100, 5), PRS_OK);
        if (i)
            prs_unref(s, &sent);
    }
    prs_unref(s, &sent);
    CHECK_EMPTY(s);
    close_store(s);
    close(ready[0]), close(ready[1]), close(go[0]), close(go[1]);
}

/* A client died with edges to bury while a stopped process has the lock: it stays known until they are somebody's. */
TEST(edges_of_the_dead_are_not_forgotten_while_the_lock_is_taken)
{
    if (SANITIZED_THREADS)
        SKIP("nothing here for this sanitizer to see");
    prs_store *s = store_with((prs_options){.capacity = 16 * MIB, .lock_timeout = 60 * PRS_MS});
    prs_oid inner = put(s, 100, 1);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(30);
        prs_oid outer = naming(s, &inner, 1, 2);
        prs_failpoint_arm("give_unlocked", PRS_FAIL_KILL, 1, 0);
        drop(s, &outer);
        _exit(7);
    }
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
    prs_unref(s, &inner);
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        child_setup(30);
        CHECK_EQ(prs_lock(s, PRS_SECOND, NULL), PRS_OK);
        raise(SIGSTOP);
        prs_unlock(s);
        prs_close(s);
        _exit(0);
    }
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK(WIFSTOPPED(status));
    prs_look(s, 0);
    uint64_t reaped = prs_load_relaxed(&s->super->reaped);
    CHECK_EQ(prs_state(s, &inner), PRS_OK); /* held by the edge that nobody could end yet */
    continue_child(pid);
    prs_look(s, 0);
    CHECK_EQ(prs_load_relaxed(&s->super->reaped), reaped + 1);
    CHECK(prs_state(s, &inner) < 0);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST_MAIN()
