/*
 * operations.h - operations during which a victim is killed. Each consists of one engine call and its setup.
 *
 * `arrange` runs in the survivor before it forks the victim, and creates the objects of the operation; the victim
 * inherits them. `ready` runs in the victim at full speed; during `act` the test single-steps and kills the victim.
 * `restore` runs in the survivor after it reaped the victim, and removes the objects that `arrange` created, in any
 * state.
 */
#ifndef PRS_TEST_OPERATIONS_H
#define PRS_TEST_OPERATIONS_H

#include "engine.h"

enum { FILLERS = 40 };

struct stage {
    prs_store *s;
    prs_oid id, inner; /* objects that the operation uses */
    prs_oid filler[FILLERS];
    int fillers;
    prs_draft draft;
    prs_token token;
    prs_view view;
    uint64_t size;
    bool ended; /* the operation may have freed `id` for all clients */
};

typedef struct operation {
    const char *name;
    bool spills, cold; /* the operation needs a spill directory; must be the victim's first call */
    void (*arrange)(struct stage *);
    void (*ready)(struct stage *);
    void (*act)(struct stage *);
    void (*restore)(struct stage *);
} operation;

static prs_error ignored;

/* ---- creating -------------------------------------------------------------------------------------------- */

static void make_small(struct stage *c)
{
    c->size = 200;
    c->id = put(c->s, c->size, 5);
}

static void make_large(struct stage *c)
{
    c->size = 150000;
    c->id = put(c->s, c->size, 5);
}

static void drop_id(struct stage *c)
{
    prs_unref(c->s, &c->id);
}

/* A forked process inherits no magazines. Fill them: allocate and drop objects of all sizes that the operations use. */
static void fill_magazines(struct stage *c)
{
    static const uint64_t sizes[] = {64, 200, 300, 500};
    prs_oid id;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (try_put(c->s, sizes[i], 1, &id, &ignored) == PRS_OK)
            prs_unref(c->s, &id);
    prs_deferred_run_all(c->s);
}

static void alloc_small(struct stage *c)
{
    (void)prs_alloc(c->s, 200, 0, &c->draft, &ignored);
}

static void alloc_large(struct stage *c)
{
    (void)prs_alloc(c->s, 150000, 0, &c->draft, &ignored);
}

static void alloc_window(struct stage *c)
{
    (void)prs_alloc(c->s, 20000, PRS_ALLOC_WINDOW, &c->draft, &ignored);
}

static void seal(struct stage *c)
{
    (void)prs_seal(c->s, &c->draft, &ignored);
}

static void abandon(struct stage *c)
{
    prs_abort(c->s, &c->draft);
}

static void put_small(struct stage *c)
{
    (void)try_put(c->s, 300, 9, &c->id, &ignored);
}

static void write_large(struct stage *c)
{
    static uint8_t bytes[150000];
    (void)prs_write(c->s, &c->draft, 0, bytes, sizeof bytes, &ignored);
}

/* ---- acquiring and releasing --------------------------------------------------------------------------------- */

static void let_go(struct stage *c) /* releases the reference inherited by fork() */
{
    prs_unref(c->s, &c->id);
}

static void pin(struct stage *c)
{
    (void)prs_pin(c->s, &c->id, &c->view);
}

static void pinned_only(struct stage *c)
{
    CHECK_EQ(prs_pin(c->s, &c->id, &c->view), PRS_OK);
    prs_unref(c->s, &c->id);
}

static void unpin(struct stage *c)
{
    prs_unpin(c->s, &c->id);
}

static void ref(struct stage *c)
{
    (void)prs_ref(c->s, &c->id);
}

/* Make an object that only the victim holds. */
static void own_small(struct stage *c)
{
    c->id = put(c->s, 200, 5);
}

static void own_large(struct stage *c)
{
    c->id = put(c->s, 150000, 5);
}

static void own_pinned(struct stage *c)
{
    own_small(c);
    pinned_only(c);
}

static void end_for_all(struct stage *c)
{
    (void)prs_free(c->s, &c->id, &ignored);
}

/* Create an object that will be freed before another process requests it. */
static void make_and_free(struct stage *c)
{
    make_small(c);
    end_for_all(c);
}

/* ---- messages, edges, names ------------------------------------------------------------------------------------- */

static void token_take(struct stage *c)
{
    (void)prs_token_take(c->s, &c->id, PRS_TOKEN_ONCE, &c->token);
}

/* If a stopped client held the lock when the victim sent a reference, the sticky holder keeps the object until it is
 * freed. */
static void drop_kept(struct stage *c)
{
    if (prs_load_seqcst(&prs_slot_at(c->s, c->id.slot)->holders[0]) & (1ull << PRS_STICKY_CLIENT))
        CHECK_EQ(prs_free(c->s, &c->id, &ignored), PRS_OK);
    drop_id(c);
}

static void make_sent(struct stage *c)
{
    make_small(c);
    CHECK_EQ(prs_token_take(c->s, &c->id, PRS_TOKEN_ONCE, &c->token), PRS_OK);
    prs_unref(c->s, &c->id);
}

static void token_claim(struct stage *c)
{
    (void)prs_token_claim(c->s, &c->id, &c->token);
}

static void drop_sent(struct stage *c)
{
    prs_token_drop(c->s, &c->id, &c->token);
}

static void draft_ordered(struct stage *c)
{
    CHECK_EQ(prs_alloc(c->s, 64, PRS_ALLOC_ORDERED, &c->draft, &ignored), PRS_OK);
}

static void add_edge(struct stage *c)
{
    (void)prs_add_edge(c->s, &c->draft, &c->id, &ignored);
}

/* Make a chain of three objects that ends in the survivor's object; a single unref frees the chain. */
static void own_chain(struct stage *c)
{
    prs_oid last = c->id;
    for (int i = 0; i < 3; i++) {
        prs_draft d;
        CHECK_EQ(prs_alloc(c->s, 64, PRS_ALLOC_ORDERED, &d, &ignored), PRS_OK);
        CHECK_EQ(prs_add_edge(c->s, &d, &last, &ignored), PRS_OK);
        CHECK_EQ(prs_seal(c->s, &d, &ignored), PRS_OK);
        if (i)
            prs_unref(c->s, &last);
        last = d.id;
    }
    c->inner = last;
}

static void drop_chain(struct stage *c)
{
    prs_unref(c->s, &c->inner);
    prs_deferred_run_all(c->s);
}

static void bind(struct stage *c)
{
    (void)prs_name_bind(c->s, "name", 4, &c->id, 0, &ignored);
}

static void find(struct stage *c)
{
    (void)prs_name_find(c->s, "name", 4, &c->inner, NULL);
}

static void make_named(struct stage *c)
{
    make_small(c);
    CHECK_EQ(prs_name_bind(c->s, "name", 4, &c->id, 0, &ignored), PRS_OK);
}

static void drop_named(struct stage *c)
{
    CHECK_EQ(prs_free(c->s, &c->id, &ignored), PRS_OK);
    prs_unref(c->s, &c->id);
}

static void own_other(struct stage *c)
{
    c->inner = put(c->s, 300, 6);
}

static void replace(struct stage *c)
{
    (void)prs_name_bind(c->s, "name", 4, &c->inner, PRS_NAME_REPLACE, &ignored);
}

static void move_name(struct stage *c)
{
    (void)prs_name_move(c->s, "name", 4, "moved", 5, &ignored);
}

static void unbind(struct stage *c)
{
    (void)prs_name_unbind(c->s, "name", 4, NULL, NULL, &ignored);
}

/* The name denotes the old or the new object. */
static void drop_replaced(struct stage *c)
{
    prs_oid found;
    CHECK_EQ(prs_name_find(c->s, "name", 4, &found, NULL), PRS_OK);
    prs_unref(c->s, &found);
    CHECK_EQ(prs_name_unbind(c->s, "name", 4, NULL, NULL, &ignored), PRS_OK);
    drop_id(c);
}

/* The object has the old or the new name. */
static void drop_moved(struct stage *c)
{
    int names = prs_name_unbind(c->s, "name", 4, &c->id, NULL, &ignored) == PRS_OK;
    names += prs_name_unbind(c->s, "moved", 5, &c->id, NULL, &ignored) == PRS_OK;
    CHECK_EQ(names, 1);
    drop_id(c);
}

static void drop_unbound(struct stage *c)
{
    unbind(c);
    drop_id(c);
}

/* ---- a full store ------------------------------------------------------------------------------------------------ */

static void fill(struct stage *c)
{
    c->fillers = 0;
    while (c->fillers < FILLERS &&
           try_put(c->s, 100000, (uint64_t)c->fillers, &c->filler[c->fillers], &ignored) == PRS_OK)
        c->fillers++;
    CHECK(c->fillers > 5);
}

static void empty(struct stage *c)
{
    for (int i = 0; i < c->fillers; i++) {
        int rc = verify(c->s, &c->filler[i], 100000, (uint64_t)i); /* the object is in memory or in a file */
        CHECK(rc == PRS_OK || (rc == PRS_E_FREED && c->ended && c->filler[i].serial == c->id.serial));
        prs_unref(c->s, &c->filler[i]);
    }
    prs_deferred_run_all(c->s);
}

/* Allocate too much: this reclaims the magazines of other clients, and then fails. */
static void alloc_too_much(struct stage *c)
{
    (void)prs_alloc(c->s, prs_capacity(c->s), 0, &c->draft, &ignored);
}

static void overflow(struct stage *c) /* moves objects of each kind to files */
{
    (void)prs_alloc(c->s, 250000, 0, &c->draft, &ignored);
}

static void spill_first(struct stage *c)
{
    fill(c);
    int spilled = 0;
    for (int tries = 0; tries < 6 && !spilled; tries++) {
        prs_draft d;
        if (prs_alloc(c->s, 250000, 0, &d, &ignored) == PRS_OK)
            prs_abort(c->s, &d);
        for (int i = 0; i < c->fillers && !spilled; i++) {
            c->id = c->filler[i];
            spilled = (prs_load_relaxed(&prs_slot_at(c->s, c->id.slot)->word) & PRS_WORD_FILE) != 0;
        }
    }
    CHECK(spilled);
}

static void spill_one_to_end(struct stage *c)
{
    spill_first(c);
    c->ended = true;
}

static void nothing(struct stage *c)
{
    (void)c;
}

/* ---- recovery ---------------------------------------------------------------------------------------------------- */

/* Leave a dead client whose death no client has detected yet. It had drafts, objects, pins and an empty magazine. */
static void leave_corpse(struct stage *c)
{
    make_small(c);
    pid_t pid = fork();
    if (pid == 0) {
        prs_draft d;
        own_small(c);
        pin(c);
        (void)prs_alloc(c->s, 500, 0, &d, &ignored);
        (void)prs_alloc(c->s, 70000, 0, &d, &ignored);
        put(c->s, 70000, 1);
        kill(getpid(), SIGKILL);
    }
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
}

/* Leave a dead client that held the store lock and was splitting an extent. */
static void leave_thiefs_prey(struct stage *c)
{
    make_small(c);
    pid_t pid = fork();
    if (pid == 0) {
        own_chain(c);
        prs_failpoint_arm("extent_split", PRS_FAIL_KILL, 1, 0);
        prs_draft d;
        (void)prs_alloc(c->s, 70000, 0, &d, &ignored);
        _exit(1);
    }
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
}

static void look(struct stage *c)
{
    prs_reap_dead(c->s, 0);
}

static const operation operations[] = {
    {"allocate small", false, false, nothing, nothing, alloc_small, nothing},
    {"allocate large", false, false, nothing, nothing, alloc_large, nothing},
    {"allocate window", false, false, nothing, nothing, alloc_window, nothing},
    {"allocate, all taken", false, false, fill, nothing, alloc_too_much, empty},
    {"write large", false, false, nothing, alloc_large, write_large, nothing},
    {"seal small", false, false, nothing, alloc_small, seal, nothing},
    {"seal window", false, false, nothing, alloc_window, seal, nothing},
    {"abort", false, false, nothing, alloc_small, abandon, nothing},
    {"abort large", false, false, nothing, alloc_large, abandon, nothing},
    {"put", false, false, nothing, nothing, put_small, nothing},
    {"pin", false, false, make_small, nothing, pin, drop_id},
    {"pin without ref", false, false, make_small, let_go, pin, drop_id},
    {"pin what is freed", false, false, make_and_free, let_go, pin, drop_id},
    {"unpin", false, false, make_small, pinned_only, unpin, drop_id},
    {"unpin the last", false, false, nothing, own_pinned, unpin, nothing},
    {"ref", false, false, make_small, let_go, ref, drop_id},
    {"ref what is freed", false, false, make_and_free, let_go, ref, drop_id},
    {"unref", false, false, make_small, nothing, let_go, drop_id},
    {"unref the last", false, false, nothing, own_small, let_go, nothing},
    {"unref the last, large", false, false, nothing, own_large, let_go, nothing},
    {"free", false, false, make_small, nothing, end_for_all, drop_id},
    {"free, own, large", false, false, nothing, own_large, end_for_all, nothing},
    {"free, large, held elsewhere", false, false, make_large, nothing, end_for_all, drop_id},
    {"send", false, false, make_small, nothing, token_take, drop_kept},
    {"receive", false, false, make_sent, nothing, token_claim, drop_sent},
    {"drop a message", false, false, make_sent, nothing, drop_sent, drop_sent},
    {"name an object inside", false, false, make_small, draft_ordered, add_edge, drop_id},
    {"end a chain", false, false, make_small, own_chain, drop_chain, drop_id},
    {"bind a name", false, false, make_small, nothing, bind, drop_named},
    {"find a name", false, false, make_named, nothing, find, drop_named},
    {"free what is named", false, false, make_named, nothing, end_for_all, drop_named},
    {"replace what is named", false, false, make_named, own_other, replace, drop_replaced},
    {"move a name", false, false, make_named, nothing, move_name, drop_moved},
    {"unbind a name", false, false, make_named, nothing, unbind, drop_unbound},
    {"steal", false, true, leave_thiefs_prey, nothing, alloc_large, drop_id},
    {"reap", false, false, leave_corpse, nothing, look, drop_id},
    {"spill", true, false, fill, nothing, overflow, empty},
    {"pin what is spilled", true, false, spill_first, nothing, pin, empty},
    {"free what is spilled", true, false, spill_one_to_end, nothing, end_for_all, empty},
};

enum { OPERATIONS = sizeof operations / sizeof *operations };

#endif /* PRS_TEST_OPERATIONS_H */
