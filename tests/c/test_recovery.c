/*
 * Tests of the rebuild by a process that has stolen the lock (the thief). Each test constructs an interleaving that
 * occurs in a storm (test_engine_storm.c) only once in thousands of deaths, or tests a check whose absence random
 * deaths would not reveal. test_reaping.c tests which clients count as dead.
 */
#include "corpses.h"
#include <sys/syscall.h>

/* ---- a thief and others ---------------------------------------------------------------------------------------- */

/* Edges that a living client is about to end belong to that client, even if the objects that they held were freed. If a
 * thief freed their records, the client would end the records a second time, when they may already be tokens of another
 * client (the storm found this: "the stack of free links is broken" after 3,650 kills). */
TEST(a_thief_leaves_the_edges_that_others_bury)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    prs_oid inner[3] = {put(s, 100, 1), put(s, 100, 2), put(s, 100, 3)};
    prs_oid outer = naming(s, inner, 3, 4);
    fflush(NULL);
    int ready[2], go[2];
    CHECK(pipe(ready) == 0 && pipe(go) == 0);
    pid_t pid = fork();
    if (pid == 0) { /* releases the outer object last, and stops before ending its edges */
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
    CHECK_EQ(prs_free(s, &inner[1], &e), PRS_OK); /* this ends the object for all clients, but not its edge */
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
    goes_on(pid);
    prs_reap_dead(s, 0);
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

/* A client died before it had ended its edges, and a stopped process holds the lock. The client's slot must stay until
 * another client adopts the edges. */
TEST(edges_of_the_dead_are_not_forgotten_while_the_lock_is_taken)
{
    SEVERAL_PROCESSES();
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
    prs_reap_dead(s, 0);
    uint64_t reaped = prs_load_relaxed(&s->super->reaped);
    CHECK_EQ(prs_state(s, &inner), PRS_OK); /* the edge holds `inner`, because no client could end the edge yet */
    goes_on(pid);
    prs_reap_dead(s, 0);
    CHECK_EQ(prs_load_relaxed(&s->super->reaped), reaped + 1);
    CHECK(prs_state(s, &inner) < 0);
    CHECK_EMPTY(s);
    close_store(s);
}

/* ---- rebuild --------------------------------------------------------------------------------------------------- */

static int populate_errors;     /* if this is not 0, no page can be backed */
static void (*meanwhile)(void); /* called once before MADV_POPULATE, to simulate another thread */

int madvise(void *at, size_t len, int advice)
{
    if (meanwhile && advice == MADV_POPULATE_WRITE) {
        void (*first)(void) = meanwhile;
        meanwhile = NULL;
        first();
    }
    if (populate_errors && advice == MADV_POPULATE_WRITE) {
        errno = ENOMEM;
        return -1;
    }
    return (int)syscall(SYS_madvise, at, len, advice);
}

static void die_splitting(prs_store *s, struct told *told)
{
    (void)told;
    prs_draft d;
    prs_error e;
    prs_failpoint_arm("extent_split", PRS_FAIL_KILL, 1, 0);
    (void)prs_alloc(s, 3 * MIB, 0, &d, &e);
}

/* The thief cannot map all tables because there is no memory. The thief must release the lock, and the next client that
 * takes the lock must rebuild. */
TEST(a_rebuild_that_fails_is_done_by_the_next_owner)
{
    SEVERAL_PROCESSES();
    enum { N = 1500 };
    static prs_oid id[N];
    prs_store *s = store_of(16 * MIB), *t = client_of(s);
    struct told *told = new_told();
    prs_error e = {0};
    for (int i = 0; i < N; i++) /* a second chunk of slots, which t has not mapped */
        id[i] = put(s, 40, (uint64_t)i);
    CHECK(prs_load_relaxed(&t->slots_seen) < prs_load_relaxed(&s->super->published));
    dies(s, told, die_splitting);
    populate_errors = 1;
    CHECK_EQ(prs_lock(t, 5 * PRS_SECOND, &e), PRS_E_BACKING);
    populate_errors = 0;
    CHECK(e.what[0]);
    CHECK_EQ(s->super->arena.dirty, 1);
    CHECK(!prs_trylock(s)); /* destructors use this call; it never rebuilds */
    CHECK_EQ(prs_check(s, &e), PRS_OK);
    CHECK_EQ(s->super->arena.dirty, 0);
    CHECK(prs_trylock(s));
    prs_unlock(s);
    for (int i = 0; i < N; i++) {
        CHECK_EQ(verify(s, &id[i], 40, (uint64_t)i), PRS_OK);
        prs_unref(s, &id[i]);
    }
    close_store(t);
    prs_reap_dead(s, 0);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

TEST(overlapping_extents_are_refused_and_remembered)
{
    SEVERAL_PROCESSES();
    for (int how = 0; how < 2; how++) {
        prs_store *s = store_of(16 * MIB);
        prs_error e = {0};
        prs_oid a = put(s, 300000, 1), b = put(s, 300000, 2);
        prs_slot *slot = prs_slot_at(s, b.slot);
        uint64_t off = prs_load_relaxed(&slot->off), cap = prs_load_relaxed(&slot->cap);
        if (how == 0)
            prs_store_relaxed(&slot->off, prs_load_relaxed(&prs_slot_at(s, a.slot)->off));
        else
            prs_store_relaxed(&slot->cap, PRS_UNIT - off); /* off + cap wraps around to the first unit */
        CHECK_EQ(steal_with(s, &e), PRS_E_CORRUPT);
        CHECK(e.what[0]);
        prs_store_relaxed(&slot->off, off);
        prs_store_relaxed(&slot->cap, cap);
        CHECK_EQ(prs_check(s, &e), PRS_E_CORRUPT); /* other bytes may have been damaged, too */
        close_store(s);
    }
}

static void stop_counting(prs_store *s, struct told *told)
{
    (void)told;
    CHECK_EQ(prs_lock(s, PRS_SECOND, NULL), PRS_OK); /* take the lock, as a thief would */
    prs_failpoint_arm("rebuild_counting", PRS_FAIL_STOP, 1, 0);
    CHECK_EQ(prs_rebuild(s, NULL), PRS_OK);
    prs_unlock(s);
    raise(SIGSTOP); /* stop here, because a leaving client tries to free all objects */
}

/* During a rebuild the counts of links are zero for a short time. Objects that only links hold must survive this, and
 * the following sweep must free the objects that were released meanwhile. */
TEST(what_was_let_go_during_a_rebuild_is_swept_and_nothing_else)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    prs_oid gone = put(s, 100, 1), sent = put(s, 100, 2);
    prs_token token;
    CHECK_EQ(prs_token_take(s, &sent, PRS_TOKEN_ONCE, &token), PRS_OK);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(30);
        prs_unref(s, &gone);
        prs_unref(s, &sent);
        say(&told->ready);
        await(&told->go);
        stop_counting(s, told);
        prs_close(s);
        _exit(0);
    }
    await(&told->ready);
    say(&told->go);
    int status;
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK(WIFSTOPPED(status));
    prs_unref(s, &gone);
    prs_unref(s, &sent);
    CHECK_EQ(prs_state(s, &sent), PRS_OK);
    kill(pid, SIGCONT);
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK(WIFSTOPPED(status));
    CHECK_EQ(prs_state(s, &sent), PRS_OK);
    prs_reap_dead(s, 0);
    CHECK(prs_state(s, &gone) < 0);
    goes_on(pid);
    CHECK_EQ(prs_token_claim(s, &sent, &token), PRS_OK);
    CHECK_EQ(verify(s, &sent, 100, 2), PRS_OK);
    prs_unref(s, &sent);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

TEST(a_rebuild_keeps_tokens_names_and_edges)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    prs_error e;
    prs_token once, sticky;
    prs_oid inner[2] = {put(s, 100, 1), put(s, 100, 2)}, named = put(s, 100, 3), found;
    prs_oid outer = naming(s, inner, 2, 4), top = naming(s, &outer, 1, 5);
    CHECK_EQ(prs_token_take(s, &inner[0], PRS_TOKEN_ONCE, &once), PRS_OK);
    CHECK_EQ(prs_token_take(s, &inner[0], PRS_TOKEN_STICKY, &sticky), PRS_OK);
    CHECK_EQ(prs_name_bind(s, "kept", 4, &named, 0, &e), PRS_OK);
    prs_unref(s, &named);
    prs_unref(s, &outer);
    prs_unref(s, &inner[0]);
    prs_unref(s, &inner[1]);
    for (int i = 0; i < 3; i++) {
        steal(s);
        prs_reap_dead(s, 0);
        CHECK_STORE(s);
        CHECK_EQ(stats_of(s).in_flight, 2);
        CHECK_EQ(stats_of(s).edges, 3);
        CHECK_EQ(prs_load_relaxed(&prs_slot_at(s, inner[0].slot)->links), 3);
        CHECK_EQ(prs_name_find(s, "kept", 4, &found, NULL), PRS_OK);
        prs_unref(s, &found);
    }
    drop(s, &top);
    prs_reap_dead(s, 0);
    CHECK(prs_state(s, &outer) < 0 && prs_state(s, &inner[1]) < 0);
    CHECK_EQ(prs_token_claim(s, &inner[0], &once), PRS_OK);
    prs_unref(s, &inner[0]);
    CHECK_EQ(prs_state(s, &inner[0]), PRS_OK);
    prs_token_drop(s, &inner[0], &sticky);
    CHECK(prs_state(s, &inner[0]) < 0);
    CHECK_EQ(prs_free(s, &named, &e), PRS_OK);
    CHECK_EMPTY(s);
    close_store(s);
}

/* The slot of the outer object is free or reused, so its edges belong to no object, and the thief must end them. */
TEST(edges_of_a_slot_that_was_retired_or_used_again_are_buried_by_the_thief)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    for (int how = 0; how < 3; how++) {
        prs_oid inner = put(s, 100, 1);
        prs_oid outer = naming(s, &inner, 1, 2), again = {0};
        prs_slot *slot = prs_slot_at(s, outer.slot);
        uint32_t edge = prs_load_relaxed(&slot->edges);
        CHECK_EQ(prs_lock(s, PRS_SECOND, NULL), PRS_OK); /* so that no client ends the edges of `outer` */
        prs_store_relaxed(&slot->edges, PRS_NIL);
        prs_unlock(s);
        prs_unref(s, &outer);
        if (how == 0) { /* the slot is in a magazine, where no code searches for edges that a rebuild adds */
            CHECK_EQ(prs_word_state(prs_load_seqcst(&slot->word)), PRS_STATE_RESERVED);
            s->links[edge].owner.outer.generation = prs_word_generation(prs_load_seqcst(&slot->word));
        } else if (how == 1) {
            prs_magazines_flush(s);
            CHECK_EQ(prs_word_state(prs_load_seqcst(&slot->word)), PRS_STATE_FREE);
        } else {
            again = put_in_slot(s, outer.slot, 64, 3);
        }
        steal(s);
        prs_deferred_run_all(s);
        CHECK_EQ(stats_of(s).edges, 0);
        prs_reap_dead(s, 0); /* the dead client held the object, too */
        prs_unref(s, &inner);
        CHECK(prs_state(s, &inner) < 0);
        if (how == 2)
            prs_unref(s, &again);
        CHECK_EMPTY(s);
    }
    close_store(s);
}

/* ---- edges -------------------------------------------------------------------------------------------------------- */

TEST(a_thief_goes_on_with_its_own_edges)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    prs_oid inner[3] = {put(s, 100, 1), put(s, 100, 2), put(s, 100, 3)};
    prs_oid outer = naming(s, inner, 3, 4);
    uint32_t torn = prs_load_relaxed(&prs_slot_at(s, outer.slot)->edges);
    CHECK_EQ(prs_lock(s, PRS_SECOND, NULL), PRS_OK);
    prs_link_splice(s, outer.slot);
    s->dying = s->links[torn].next_edge; /* simulates a dead client that had adopted only a part of the chain */
    s->links[torn].owner.client.index = PRS_NIL;
    prs_unlock(s);
    steal(s);
    prs_deferred_run_all(s);
    CHECK_EQ(stats_of(s).edges, 0);
    prs_reap_dead(s, 0);
    for (int i = 0; i < 3; i++) {
        prs_unref(s, &inner[i]);
        CHECK(prs_state(s, &inner[i]) < 0);
    }
    prs_unref(s, &outer);
    CHECK_EMPTY(s);
    close_store(s);
}

/* The object that an edge held was freed for all clients, and its slot was reused. The edge must not hold the new
 * object. */
TEST(an_edge_of_a_slot_that_was_used_again_counts_nothing)
{
    prs_store *s = store_of(16 * MIB);
    prs_error e;
    prs_oid inner = put(s, 100, 1), outer = naming(s, &inner, 1, 2);
    CHECK_EQ(prs_free(s, &inner, &e), PRS_OK);
    prs_unref(s, &inner);
    prs_deferred_run_all(s);
    prs_oid sent = put_in_slot(s, inner.slot, 100, 3);
    CHECK_EQ(prs_load_relaxed(&prs_slot_at(s, sent.slot)->links), 0);
    prs_token token;
    CHECK_EQ(prs_token_take(s, &sent, PRS_TOKEN_ONCE, &token), PRS_OK);
    prs_unref(s, &sent);
    drop(s, &outer);
    CHECK_EQ(prs_state(s, &sent), PRS_OK);
    CHECK_EQ(prs_token_claim(s, &sent, &token), PRS_OK);
    CHECK_EQ(verify(s, &sent, 100, 3), PRS_OK);
    prs_unref(s, &sent);
    CHECK(prs_state(s, &sent) < 0);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(a_token_of_what_is_freed_is_refused_and_counts_nothing)
{
    prs_store *s = store_of(16 * MIB);
    prs_error e;
    prs_view v;
    prs_token token;
    prs_oid id = put(s, 100, 1);
    CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
    CHECK_EQ(prs_free(s, &id, &e), PRS_OK);
    CHECK_EQ(prs_token_take(s, &id, PRS_TOKEN_ONCE, &token), PRS_E_FREED);
    CHECK_EQ(prs_load_relaxed(&prs_slot_at(s, id.slot)->links), 0);
    CHECK_EQ(stats_of(s).in_flight, 0);
    prs_unpin(s, &id);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    close_store(s);
}

/* ---- names ---------------------------------------------------------------------------------------------------------- */

TEST(a_name_without_a_link_and_a_link_without_a_name_end_with_a_rebuild)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    prs_error e;
    prs_oid a = put(s, 100, 1), b = put(s, 100, 2), found;
    CHECK_EQ(prs_name_bind(s, "a", 1, &a, 0, &e), PRS_OK);
    CHECK_EQ(prs_name_bind(s, "b", 1, &b, 0, &e), PRS_OK);
    CHECK_EQ(prs_free(s, &a, &e), PRS_OK);
    prs_unref(s, &a);
    s->names[1].serial = 0; /* simulates a death between clearing the name and ending the link */
    CHECK_EQ(prs_load_relaxed(&prs_slot_at(s, b.slot)->links), 1);
    steal(s);
    CHECK_EQ(s->names[0].serial, 0);
    CHECK_EQ(prs_load_relaxed(&prs_slot_at(s, b.slot)->links), 0);
    CHECK_EQ(prs_name_find(s, "b", 1, &found, NULL), PRS_E_NOTFOUND);
    prs_reap_dead(s, 0);
    prs_unref(s, &b);
    CHECK(prs_state(s, &b) < 0);
    CHECK_EMPTY(s);
    close_store(s);
}

/* A name is bound again after its object was freed, while a client still has a view of the old object: the old
 * link must end together with the old binding. */
TEST(a_name_gives_its_object_up_when_it_is_bound_anew)
{
    prs_store *s = store_of(16 * MIB);
    prs_error e;
    prs_view v;
    prs_oid old = put(s, 100, 1), young = put(s, 100, 2);
    CHECK_EQ(prs_name_bind(s, "n", 1, &old, 0, &e), PRS_OK);
    CHECK_EQ(prs_pin(s, &old, &v), PRS_OK);
    CHECK_EQ(prs_free(s, &old, &e), PRS_OK);
    CHECK_EQ(prs_name_bind(s, "n", 1, &young, 0, &e), PRS_OK);
    CHECK_EQ(prs_load_relaxed(&prs_slot_at(s, old.slot)->links), 0);
    CHECK_EQ(prs_check(s, &e), PRS_OK);
    int links = 0;
    for (uint32_t i = 0; i < s->super->arena.link_bump; i++)
        links += s->links[i].kind == PRS_LINK_NAME;
    CHECK_EQ(links, 1);
    prs_unpin(s, &old);
    prs_unref(s, &old);
    prs_unref(s, &young);
    CHECK_EQ(prs_free(s, &young, &e), PRS_OK);
    CHECK_EMPTY(s);
    close_store(s);
}

/* ---- tables and reserved slots ------------------------------------------------------------------------------------- */

TEST(two_grow_the_tables_at_once)
{
    prs_store *s = store_of(16 * MIB);
    prs_error e;
    prs_oid id = put(s, 100, 1);
    uint32_t had = prs_load_relaxed(&s->super->published);
    CHECK_EQ(prs_slots_grow(s, had, &e), PRS_OK);
    CHECK_EQ(prs_slots_grow(s, had, &e), PRS_OK); /* simulates a client that read `had` before the first call */
    CHECK_EQ(prs_load_relaxed(&s->super->published), had + PRS_SLOT_CHUNK);
    CHECK_STORE(s);
    uint32_t links = prs_load_relaxed(&s->super->links_published);
    CHECK_EQ(prs_links_grow(s, links, &e), PRS_OK);
    CHECK_EQ(prs_links_grow(s, links, &e), PRS_OK);
    CHECK_EQ(prs_load_relaxed(&s->super->links_published), links + PRS_LINK_CHUNK);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    close_store(s);
}

static void put_where_others_published(prs_store *s, struct told *told)
{
    prs_failpoint_arm("tables_looked", PRS_FAIL_STOP, 1, 0);
    told->id[1] = put(s, MIB, 2);
    CHECK(told->id[1].slot < prs_load_relaxed(&s->slots_seen));
    CHECK_EQ(prs_load_relaxed(&s->slots_seen), prs_load_relaxed(&s->super->published));
}

static void end_flights_where_others_published(prs_store *s, struct told *told)
{
    (void)told;
    prs_error e;
    prs_failpoint_arm("tables_looked", PRS_FAIL_STOP, 1, 0);
    CHECK_EQ(prs_flights_end(s, 0, 0, &e), 0);
}

/* If other clients publish slots after a process has mapped the tables and before it has the lock, the process must map
 * these slots, too, before it uses them. */
TEST(slots_published_before_the_lock_is_taken_are_mapped)
{
    SEVERAL_PROCESSES();
    enum { N = PRS_SLOT_CHUNK + 200 };
    static prs_oid id[2 * N];
    struct told *told = new_told();
    prs_store *s = store_of(16 * MIB);
    id[0] = put(s, 40, 0);
    CHECK_EQ(prs_token_take(s, &id[0], PRS_TOKEN_ONCE, &told->token), PRS_OK);
    prs_token_drop(s, &id[0], &told->token); /* there are links */
    pid_t pid[2] = {stops(s, told, put_where_others_published), 0};
    for (int n = 1; n < 2 * N; n++) {
        if (n == N) { /* the first process must map the new slots, the second one the following slots and the links */
            goes_on(pid[0]);
            pid[1] = stops(s, told, end_flights_where_others_published);
        }
        id[n] = put(s, 40, (uint64_t)n);
    }
    prs_oid *sent = &id[2 * N - 1];
    CHECK(sent->slot >= 2 * PRS_SLOT_CHUNK);
    CHECK_EQ(prs_token_take(s, sent, PRS_TOKEN_ONCE, &told->token), PRS_OK);
    goes_on(pid[1]);
    CHECK_EQ(stats_of(s).in_flight, 1);
    CHECK_STORE(s);
    CHECK_EQ(prs_token_claim(s, sent, &told->token), PRS_OK);
    prs_unref(s, sent);
    for (int n = 0; n < 2 * N; n++) {
        CHECK_EQ(verify(s, &id[n], 40, (uint64_t)n), PRS_OK);
        prs_unref(s, &id[n]);
    }
    prs_reap_dead(s, 0);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

static prs_store *grows;

static void another_maps_more_slots(void)
{
    prs_error e;
    CHECK_EQ(prs_slots_grow(grows, prs_load_relaxed(&grows->super->published), &e), PRS_OK);
    CHECK_EQ(prs_tables_prefault(grows), 0);
}

static void another_maps_more_links(void)
{
    prs_error e;
    CHECK_EQ(prs_links_grow(grows, prs_load_relaxed(&grows->super->links_published), &e), PRS_OK);
    CHECK_EQ(prs_tables_prefault(grows), 0);
}

/* If a thread maps the tables early and records their length late, it must not lower the mark that another thread
 * has raised meanwhile. */
TEST(what_was_mapped_stays_known)
{
    prs_store *s = store_of(16 * MIB), *t = client_of(s);
    prs_error e;
    grows = t;
    CHECK_EQ(prs_slots_grow(s, prs_load_relaxed(&s->super->published), &e), PRS_OK);
    meanwhile = another_maps_more_slots;
    CHECK_EQ(prs_tables_prefault(t), 0);
    CHECK(meanwhile == NULL);
    CHECK_EQ(prs_load_relaxed(&t->slots_seen), prs_load_relaxed(&s->super->published));
    CHECK_EQ(prs_links_grow(s, prs_load_relaxed(&s->super->links_published), &e), PRS_OK);
    meanwhile = another_maps_more_links;
    CHECK_EQ(prs_tables_prefault(t), 0);
    CHECK(meanwhile == NULL);
    CHECK_EQ(prs_load_relaxed(&t->links_seen), prs_load_relaxed(&s->super->links_published));
    close_store(t);
    CHECK_EMPTY(s);
    close_store(s);
}

/* A magazine contains entries whose slots were reclaimed and are RESERVED again, with smaller extents. */
TEST(an_entry_that_was_taken_back_is_no_claim_any_more)
{
    enum { N = 64 };
    prs_store *s = store_of(16 * MIB), *t = client_of(s);
    prs_oid one = put(t, 1000, 1), small[N], large[N];
    prs_unref(t, &one);
    CHECK(prs_magazines_reclaim(s) > 0);
    CHECK_STORE(s);
    small[0] = put(t, 40, 0); /* this refill reserves the slots of these entries */
    for (int i = 0; i < N; i++) {
        large[i] = put(t, 1000, (uint64_t)i + N);
        CHECK(prs_load_relaxed(&prs_slot_at(s, large[i].slot)->cap) >= 1000);
    }
    for (int i = 1; i < N; i++)
        small[i] = put(t, 40, (uint64_t)i);
    CHECK_STORE(s);
    for (int i = 0; i < N; i++) {
        CHECK_EQ(verify(t, &small[i], 40, (uint64_t)i), PRS_OK);
        CHECK_EQ(verify(t, &large[i], 1000, (uint64_t)i + N), PRS_OK);
        prs_unref(t, &small[i]);
        prs_unref(t, &large[i]);
    }
    close_store(t);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(reserves_that_could_not_be_backed_are_given_back)
{
    prs_store *s = store_of(16 * MIB);
    prs_error e = {0};
    prs_oid id;
    CHECK(prs_failpoint_arm("backing", PRS_FAIL_ERRNO_ON, 2, ENOSPC)); /* the first grows the table of slots */
    CHECK_EQ(try_put(s, 20000, 1, &id, &e), PRS_E_BACKING);
    CHECK_EQ(e.sys_errno, ENOSPC);
    CHECK(prs_failpoint_arm("backing", 0, 0, 0));
    CHECK_EQ(reserved_by(s, s->me), 0);
    CHECK_EQ(stats_of(s).reserved, 0);
    CHECK_EQ(try_put(s, 20000, 1, &id, &e), PRS_OK);
    CHECK_EQ(verify(s, &id, 20000, 1), PRS_OK);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    close_store(s);
}

/* A spilled object has no bytes in the data area, so it must have no extent after a rebuild. */
TEST(spilled_objects_have_no_extent_after_a_rebuild)
{
    SEVERAL_PROCESSES();
    char disk[] = "/var/tmp/prs-recovery-XXXXXX";
    CHECK(mkdtemp(disk));
    prs_store *s = store_with((prs_options){.capacity = 8 * MIB, .spill_dir = disk});
    prs_error e;
    prs_oid id = put(s, MIB, 1);
    CHECK_EQ(prs_spill_for(s, MIB, &e), PRS_OK);
    CHECK_EQ(stats_of(s).spilled, 1);
    uint64_t used = s->super->arena.used;
    steal(s);
    CHECK_EQ(s->super->arena.used, used);
    CHECK_STORE(s);
    CHECK_EQ(verify(s, &id, MIB, 1), PRS_OK);
    prs_reap_dead(s, 0);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    close_store(s);
    CHECK_EQ(rmdir(disk), 0);
}

TEST_MAIN()
