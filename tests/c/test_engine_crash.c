/*
 * Tests that kill a process at every failpoint.
 *
 * Each case runs in a separate process, the survivor. The survivor makes a store with objects of known content and
 * forks a victim, which arms one failpoint and runs a driver that crosses this failpoint. The victim must die there: if
 * the driver reaches its end, the case fails. Then the survivor checks that the victim has left nothing behind: the
 * store is consistent, the survivor's objects and views are intact, and every byte of the victim's memory is free
 * again. There are four scenarios: the victim is alone; another client puts and frees all the time; an earlier client
 * died while it held the lock and was not reaped; a forked child of the victim survives it. In each scenario the victim
 * may also stop at the failpoint and be killed only after the others have worked for a while.
 */
#include "engine.h"

enum { KEPT = 6 };
static const uint64_t kept_size[KEPT] = {0, 64, 1000, 40000, 300 * 1024, 2 * MIB};

struct scene {
    prs_store *s;
    prs_oid kept[KEPT];  /* the survivor holds a ref on each */
    prs_view view[KEPT]; /* the survivor has pinned every second one */
    prs_oid loose;       /* held only by a token that no process claims */
    prs_draft draft;     /* unsealed */
    prs_token token;
    char *spill_dir;
    const char *point;
    int action, after;
    int value;
};

static void arm(const struct scene *c)
{
    if (!prs_failpoint_arm(c->point, c->action, c->after, c->value))
        _exit(9);
}

/* ---- drivers: each arms the point and crosses it if it can ----------------------------------------- */

static void small(struct scene *c)
{
    enum { N = 2500 };
    static prs_oid id[N];
    prs_error e;
    arm(c);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++)
            CHECK_EQ(try_put(c->s, 40u + (uint64_t)i % 9 * 100, (uint64_t)i, &id[i], &e), PRS_OK);
        for (int i = 0; i < N; i++)
            CHECK_EQ(verify(c->s, &id[i], 40u + (uint64_t)i % 9 * 100, (uint64_t)i), PRS_OK);
        for (int i = 0; i < N; i++)
            prs_unref(c->s, &id[(i * 7) % N]);
        prs_deferred_run_all(c->s);
    }
}

static void large(struct scene *c)
{
    prs_oid id[8];
    arm(c);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 8; i++)
            id[i] = put(c->s, (uint64_t)(i + 1) * 100000, (uint64_t)i);
        for (int i = 0; i < 8; i += 2)
            prs_unref(c->s, &id[i]);
        for (int i = 1; i < 8; i += 2)
            prs_unref(c->s, &id[i]);
        prs_deferred_run_all(c->s);
    }
}

static void trim(struct scene *c)
{
    arm(c);
    for (int round = 0; round < 4; round++) {
        prs_oid id[4];
        for (int i = 0; i < 4; i++)
            id[i] = put(c->s, 2 * MIB, (uint64_t)i);
        for (int i = 0; i < 4; i++)
            prs_unref(c->s, &id[i]);
        prs_trim(c->s, 0);
    }
}

static void give_up(struct scene *c)
{
    arm(c);
    for (int i = 0; i < 20; i++) {
        prs_draft d;
        prs_error e;
        CHECK_EQ(prs_alloc(c->s, i % 2 ? 100 : 400 * 1024, 0, &d, &e), PRS_OK);
        prs_abort(c->s, &d);
    }
}

static void hold(struct scene *c)
{
    prs_oid gone = put(c->s, 64, 1);
    prs_unref(c->s, &gone);
    prs_unref(c->s, &c->kept[1]); /* drops the ref inherited by the fork, so that the next call sets the bit */
    arm(c);
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(prs_ref(c->s, &c->kept[1]), PRS_OK);
        prs_view v;
        CHECK_EQ(prs_pin(c->s, &c->kept[1], &v), PRS_OK);
        CHECK(prs_ref(c->s, &gone) < 0);
        prs_unpin(c->s, &c->kept[1]);
        prs_unref(c->s, &c->kept[1]);
    }
}

static void end(struct scene *c)
{
    arm(c);
    for (int i = 0; i < 20; i++) {
        prs_oid id = put(c->s, i % 2 ? 100 : 400 * 1024, 1);
        prs_view v;
        prs_error e;
        CHECK_EQ(prs_pin(c->s, &id, &v), PRS_OK);
        CHECK_EQ(prs_free(c->s, &id, &e), PRS_OK);
        prs_unpin(c->s, &id);
        prs_unref(c->s, &id);
    }
}

static void edges(struct scene *c)
{
    arm(c);
    for (int round = 0; round < 5; round++) {
        prs_oid last = c->kept[2];
        for (int i = 0; i < 40; i++) {
            prs_draft d;
            prs_error e;
            CHECK_EQ(prs_alloc(c->s, 64, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
            CHECK_EQ(prs_add_edge(c->s, &d, &last, &e), PRS_OK);
            CHECK_EQ(prs_add_bytes_edge(c->s, &d, &c->kept[4], &e), PRS_OK);
            CHECK_EQ(prs_seal(c->s, &d, &e), PRS_OK);
            if (i)
                prs_unref(c->s, &last);
            last = d.id;
        }
        prs_unref(c->s, &last);
        prs_deferred_run_all(c->s);
    }
}

static void tokens(struct scene *c)
{
    prs_oid id = put(c->s, 100, 1);
    arm(c);
    for (int i = 0; i < 20; i++) {
        prs_token token;
        CHECK_EQ(prs_token_take(c->s, &id, PRS_TOKEN_ONCE, &token), PRS_OK);
        CHECK_EQ(prs_token_claim(c->s, &id, &token), PRS_OK);
        prs_unref(c->s, &id);
        CHECK_EQ(prs_token_take(c->s, &id, PRS_TOKEN_STICKY, &token), PRS_OK);
        prs_token_drop(c->s, &id, &token);
    }
}

/* The victim ends the tokens that three dead senders left. */
static void flights(struct scene *c)
{
    for (int i = 0; i < 3; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            child_setup(10);
            for (int k = 0; k < 10; k++) {
                prs_token token;
                prs_oid id = put(c->s, (uint64_t)k * 100, 1);
                CHECK_EQ(prs_token_take(c->s, &id, PRS_TOKEN_ONCE, &token), PRS_OK);
            }
            kill(getpid(), SIGKILL);
        }
        int status = reap_child(pid);
        CHECK_KILLED(status, SIGKILL);
    }
    arm(c);
    prs_error e;
    CHECK_EQ(prs_flights_end(c->s, 0, 0, &e), 30);
}

static void names(struct scene *c)
{
    arm(c);
    for (int i = 0; i < 20; i++) {
        prs_oid id = put(c->s, 100, 1);
        prs_error e;
        CHECK_EQ(prs_name_bind(c->s, "answer", 6, &id, 0, &e), PRS_OK);
        prs_unref(c->s, &id);
        CHECK_EQ(prs_free(c->s, &id, &e), PRS_OK);
    }
    for (int i = 0; i < 20; i++) {
        prs_oid id = put(c->s, 100, 1);
        prs_error e;
        CHECK_EQ(prs_name_bind(c->s, "newest", 6, &id, PRS_NAME_REPLACE, &e), PRS_OK);
        prs_unref(c->s, &id);
        if (i % 5 == 4) {
            CHECK_EQ(prs_name_move(c->s, "newest", 6, "moved", 5, &e), PRS_OK);
            CHECK_EQ(prs_name_unbind(c->s, "moved", 5, NULL, NULL, &e), PRS_OK);
        }
    }
}

static void windows(struct scene *c)
{
    arm(c);
    for (int i = 0; i < 20; i++) {
        prs_draft d;
        prs_error e;
        CHECK_EQ(prs_alloc(c->s, 100000, PRS_ALLOC_WINDOW, &d, &e), PRS_OK);
        memset(d.window, 3, 100000);
        CHECK_EQ(prs_seal(c->s, &d, &e), PRS_OK);
        prs_window_close(c->s, &d);
        prs_unref(c->s, &d.id);
    }
}

static void full(struct scene *c)
{
    arm(c);
    prs_draft d;
    prs_error e;
    for (int i = 0; i < 3; i++)
        CHECK(prs_alloc(c->s, prs_capacity(c->s), 0, &d, &e) < 0);
}

static void die_holding_the_lock(prs_store *s)
{
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(10);
        prs_draft d;
        prs_error e;
        prs_oid last = put(s, 64, 1);
        for (int i = 0; i < 5; i++) {
            CHECK_EQ(prs_alloc(s, 64, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
            CHECK_EQ(prs_add_edge(s, &d, &last, &e), PRS_OK);
            CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
            last = d.id;
        }
        prs_failpoint_arm("extent_split", PRS_FAIL_KILL, 1, 0);
        prs_alloc(s, 3 * MIB, 0, &d, &e);
        _exit(1);
    }
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
}

static void rebuild(struct scene *c)
{
    /* Try repeatedly, because the busy client may steal the lock first. If that client is faster, it nearly always
     * does. */
    for (int i = 0; i < 30; i++) {
        die_holding_the_lock(c->s);
        if (i == 0)
            arm(c);
        prs_oid id = put(c->s, 200000, 2);
        prs_unref(c->s, &id);
    }
}

static void reap(struct scene *c)
{
    for (int i = 0; i < 3; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            child_setup(10);
            prs_draft d[4];
            prs_error e;
            prs_view v;
            for (int k = 0; k < 40; k++)
                put(c->s, (uint64_t)k * 900, 1);
            for (int k = 0; k < 4; k++)
                CHECK_EQ(prs_alloc(c->s, 5000u << 3 * k, k % 2 ? PRS_ALLOC_WINDOW : 0, &d[k], &e), PRS_OK);
            CHECK_EQ(prs_pin(c->s, &c->kept[3], &v), PRS_OK);
            kill(getpid(), SIGKILL);
        }
        int status = reap_child(pid);
        CHECK_KILLED(status, SIGKILL);
        if (i == 0)
            arm(c);
        prs_reap_dead(c->s, 0);
    }
}

static void forks(struct scene *c)
{
    arm(c);
    for (int i = 0; i < 5; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        reap_child(pid);
        prs_reap_dead(c->s, 0);
    }
}

/* As after setuid, the child cannot get a separate open file description. */
static void forks_sharing(struct scene *c)
{
    prs_failpoint_arm("fork_reopened", PRS_FAIL_ERRNO_ON, 1, EACCES);
    forks(c);
}

/* First the new child dies, then its parent. */
static void birth(struct scene *c)
{
    arm(c);
    for (int i = 0; i < 3; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        int status = reap_child(pid);
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
            kill(getpid(), SIGKILL);
    }
}

static void wait_long(struct scene *c)
{
    arm(c);
    for (int i = 0; i < 20; i++)
        CHECK_EQ(prs_wait(c->s, &c->draft.id, PRS_MS), PRS_E_TIMEOUT);
}

static void come_and_go(struct scene *c)
{
    arm(c);
    for (int i = 0; i < 5; i++) {
        prs_store *t = client_of(c->s);
        put(t, 100, 1);
        put(t, MIB, 1);
        close_store(t);
    }
}

static void create(struct scene *c)
{
    arm(c);
    for (int i = 0; i < 3; i++) {
        prs_store *t = store_of(8 * MIB);
        put(t, 100, 1);
        close_store(t);
    }
}

struct race {
    prs_store *s;
    prs_oid id;
};

static void *unref_it(void *arg)
{
    struct race *r = arg;
    prs_unref(r->s, &r->id);
    return NULL;
}

static void *pin_it(void *arg)
{
    struct race *r = arg;
    prs_view v;
    (void)prs_pin(r->s, &r->id, &v);
    return NULL;
}

static void race(struct scene *c, const char *at, void *(*one)(void *), void (*other)(prs_store *, prs_oid *))
{
    prs_store *t = client_of(c->s);
    struct race r = {c->s, put(c->s, 100, 1)};
    pthread_t thread;
    prs_failpoint_arm(at, PRS_FAIL_HOLD, 1, 60);
    arm(c);
    pthread_create(&thread, NULL, one, &r);
    prs_os_sleep(20 * PRS_MS);
    other(t, &r.id);
    pthread_join(thread, NULL);
}

static void pin_other(prs_store *t, prs_oid *id)
{
    prs_view v;
    CHECK_EQ(prs_pin(t, id, &v), PRS_OK); /* this never waits, even while another process is freeing the object */
    CHECK(content_right(v.data, 100, 1));
}

static void free_other(prs_store *t, prs_oid *id)
{
    prs_error e;
    CHECK_EQ(prs_free(t, id, &e), PRS_OK);
}

static void roll_back(struct scene *c)
{
    race(c, "freeing", unref_it, pin_other);
}

static void undo(struct scene *c)
{
    race(c, "pin_set", pin_it, free_other);
}

static void spill(struct scene *c)
{
    enum { N = 40 };
    static prs_oid id[N];
    if (strcmp(c->point, "spill_rolled_back") == 0 || strcmp(c->point, "spill_adopted") == 0)
        prs_failpoint_arm("spill_created", PRS_FAIL_ERRNO, 1, ENOSPC);
    arm(c);
    prs_error e;
    bool there[N];
    for (int i = 0; i < N; i++) {
        there[i] = try_put(c->s, MIB, (uint64_t)i, &id[i], &e) == PRS_OK;
        CHECK(there[i] || e.sys_errno == ENOSPC); /* the injected error */
    }
    for (int i = 0; i < N; i++)
        CHECK(!there[i] || verify(c->s, &id[i], MIB, (uint64_t)i) == PRS_OK);
    for (int i = 0; i < N; i++)
        if (there[i])
            prs_unref(c->s, &id[i]);
}

static const struct {
    const char *points; /* separated by spaces */
    void (*drive)(struct scene *);
    bool spills;
} drivers[] = {
    {"segment_created segment_sized segment_ready", create, false},
    {"page_size client_anchored client_locked client_claimed client_live client_releasing", come_and_go, false},
    {"tables_looked lock_taken lock_released extent_unlinked extent_split extent_used slots_backed slots_published "
     "slot_taken slot_reserved refill_unlocked refill_backed backing alloc_creating alloc_referenced seal_ready "
     "seal_done "
     "unpin_cleared unref_cleared held_pins freeing freeing_scanned retire_cleared retired give_slot_free give_edges "
     "give_extent give_slot_pushed give_unlocked",
     small, false},
    {"extent_merged extent_freed fill_begun fill_done", large, false},
    {"punch_marked punched retire_decided", trim, false},
    {"abort_marked", give_up, false},
    {"pin_set ref_set ref_undo", hold, false},
    {"free_marked", end, false},
    {"link_filled link_counted edge_chained bury_uncounted bury_freed", edges, false},
    {"link_claimed link_dropped", tokens, false},
    {"flight_ended", flights, false},
    {"name_linked name_written name_cleared name_replaced", names, false},
    {"window_mapped window_revoked", windows, false},
    {"take_back_taken", full, false},
    {"lock_stolen rebuild_begun rebuild_extents rebuild_counting rebuild_links rebuild_done", rebuild, false},
    {"reap_begun reap_bits reap_slot reap_links reap_done", reap, false},
    {"fork_reopened fork_claimed fork_copied", forks, false},
    {"fork_awaited", forks_sharing, false},
    {"fork_born", birth, false},
    {"wait_marked", wait_long, false},
    {"freeing_rolled_back", roll_back, false},
    {"pin_undo", undo, false},
    {"spill_marked spill_created spill_written spill_committed spill_extent spill_rolled_back spill_removed "
     "spill_adopted",
     spill, true},
};

static int driver_of(const char *point)
{
    size_t n = strlen(point);
    for (size_t i = 0; i < sizeof drivers / sizeof *drivers; i++)
        for (const char *at = drivers[i].points; (at = strstr(at, point)); at += n)
            if ((at == drivers[i].points || at[-1] == ' ') && (at[n] == ' ' || at[n] == 0))
                return (int)i;
    return -1;
}

/* ---- the other processes ---------------------------------------------------------------------------- */

static int contend(struct scene *c, prs_atomic_u32 *stop)
{
    uint64_t rng = (uint64_t)getpid();
    prs_oid mine[16];
    uint64_t size[16] = {0};
    while (!prs_load_acquire(stop)) {
        uint32_t k = (uint32_t)test_random(&rng) % 16;
        if (size[k]) {
            int rc = verify(c->s, &mine[k], size[k] - 1, k);
            if (rc != PRS_OK)
                return fprintf(stderr, "contender: verify: %d\n", rc), 20;
            prs_unref(c->s, &mine[k]);
            size[k] = 0;
        } else {
            prs_error e;
            uint64_t n = test_random(&rng) % (k < 3 ? 400000 : 3000);
            int rc = try_put(c->s, n, k, &mine[k], &e);
            if (rc == PRS_OK)
                size[k] = n + 1;
            else if (rc != PRS_E_BUSY && rc != PRS_E_FULL)
                return fprintf(stderr, "contender: put: %d %s\n", rc, e.what), 21;
        }
        uint32_t own = (uint32_t)test_random(&rng) % KEPT;
        if (verify(c->s, &c->kept[own], kept_size[own], own + 100) != PRS_OK)
            return 22;
    }
    for (int k = 0; k < 16; k++)
        if (size[k])
            prs_unref(c->s, &mine[k]);
    prs_close(c->s);
    return 0;
}

/* The victim's child inherits its views and outlives it. */
static int inherit(struct scene *c, int go)
{
    char byte;
    if (read(go, &byte, 1) != 1)
        return 30;
    for (int i = 0; i < KEPT; i++)
        if (i % 2 && !content_right(c->view[i].data, kept_size[i], (uint64_t)i + 100))
            return 31;
    for (int i = 0; i < KEPT; i++)
        if (verify(c->s, &c->kept[i], kept_size[i], (uint64_t)i + 100) != PRS_OK)
            return 32;
    prs_error e = {0};
    prs_oid id;
    int rc = try_put(c->s, 5000, 3, &id, &e);
    if (rc != PRS_OK)
        return fprintf(stderr, "heir: put: %d %s\n", rc, e.what), 33;
    if (verify(c->s, &id, 5000, 3) != PRS_OK)
        return 34;
    prs_close(c->s);
    return 0;
}

/* ---- one case --------------------------------------------------------------------------------------- */

enum scenario { ALONE, CONTENDED, CORPSE, HEIR };

static void verify_kept(struct scene *c)
{
    for (int i = 0; i < KEPT; i++) {
        if (i % 2)
            CHECK(content_right(c->view[i].data, kept_size[i], (uint64_t)i + 100));
        CHECK_EQ(verify(c->s, &c->kept[i], kept_size[i], (uint64_t)i + 100), PRS_OK);
    }
}

/* While the victim is stopped at any point, reads must succeed, and puts must succeed or report the stopped process. */
static void live_beside_the_stopped(struct scene *c, pid_t victim)
{
    verify_kept(c);
    const uint64_t sizes[] = {50, 5000, 500000};
    for (int i = 0; i < 3; i++) {
        prs_oid id;
        prs_error e = {0};
        uint64_t start = test_now_ns();
        int rc = try_put(c->s, sizes[i], 1, &id, &e);
        uint64_t took = test_now_ns() - start;
        CHECK_MSG(took < 60000000000u, "a put waited for %.2f s", (double)took / 1e9);
        CHECK_MSG(rc == PRS_OK || rc == PRS_E_BUSY, "put beside a stopped process: %d %s", rc, e.what);
        if (rc == PRS_E_BUSY)
            CHECK_EQ(e.pid, victim);
        if (rc == PRS_OK) {
            CHECK_EQ(verify(c->s, &id, sizes[i], 1), PRS_OK);
            prs_unref(c->s, &id);
        }
    }
    prs_reap_dead(c->s, 0); /* the victim has not died */
    verify_kept(c);
}

/* Remove all other objects. Each of them must be held by a message, a name or another object. */
static void dismiss_strangers(struct scene *c)
{
    for (int again = 1; again;) {
        again = 0;
        prs_record r[64];
        uint32_t cursor = 0;
        int n;
        prs_deferred_run_all(c->s);
        while ((n = prs_list(c->s, &cursor, r, 64)) > 0)
            for (int i = 0; i < n; i++) {
                bool own = r[i].id.serial == c->draft.id.serial || r[i].id.serial == c->loose.serial;
                for (int k = 0; k < KEPT; k++)
                    own |= r[i].id.serial == c->kept[k].serial;
                if (own)
                    continue;
                CHECK_MSG(r[i].tokens_and_edges, "object %llu (state %u, %llu bytes, %u refs, %u pins) was left behind",
                          (unsigned long long)r[i].id.serial, r[i].state, (unsigned long long)r[i].size,
                          r[i].ref_holders, r[i].pin_holders);
                CHECK_EQ(r[i].ref_holders + r[i].pin_holders, 0);
                prs_error e;
                CHECK_EQ(prs_free(c->s, &r[i].id, &e), PRS_OK);
                again = 1;
            }
    }
}

/* Return whether the failpoint was crossed `after` times. */
static bool play(struct scene *c, enum scenario scenario)
{
    int d = driver_of(c->point);
    prs_error e = {0};
    c->s = store_with((prs_options){.capacity = 24 * MIB,
                                    .warm_reserve = 4096,
                                    .lock_timeout = c->action == PRS_FAIL_STOP ? 60 * PRS_MS : 5 * PRS_SECOND,
                                    .spill_dir = drivers[d].spills ? c->spill_dir : NULL});
    for (int i = 0; i < KEPT; i++) {
        c->kept[i] = put(c->s, kept_size[i], (uint64_t)i + 100);
        if (i % 2)
            CHECK_EQ(prs_pin(c->s, &c->kept[i], &c->view[i]), PRS_OK);
    }
    c->loose = put(c->s, 700, 99);
    CHECK_EQ(prs_token_take(c->s, &c->loose, PRS_TOKEN_ONCE, &c->token), PRS_OK);
    prs_unref(c->s, &c->loose);
    CHECK_EQ(prs_alloc(c->s, 100, 0, &c->draft, &e), PRS_OK);
    CHECK_STORE(c->s);
    prs_stats before = stats_of(c->s);
    CHECK_EQ(before.clients, 1);

    prs_atomic_u32 *stop = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* some init processes do not reap orphans */
    pid_t contender = -1, heir = -1;
    int go[2], born[2];
    CHECK(pipe(go) == 0 && pipe(born) == 0);
    if (scenario == CONTENDED) {
        contender = fork();
        if (contender == 0) {
            child_setup(60);
            _exit(contend(c, stop));
        }
    }
    if (scenario == CORPSE)
        die_holding_the_lock(c->s);

    pid_t victim = fork();
    if (victim == 0) {
        child_setup(30);
        c->s->lock_timeout = 20 * PRS_SECOND; /* only this process stops, so it may wait for a busy one */
        if (scenario == HEIR) {
            pid_t pid = fork();
            if (pid == 0) {
                alarm(400);
                _exit(inherit(c, go[0]));
            }
            CHECK(write(born[1], &pid, sizeof pid) == sizeof pid);
        }
        drivers[d].drive(c);
        _exit(7);
    }
    if (scenario == HEIR)
        CHECK(read(born[0], &heir, sizeof heir) == sizeof heir);
    int status;
    bool hit = false;
    CHECK_EQ(waitpid(victim, &status, WUNTRACED), victim);
    if (WIFSTOPPED(status)) {
        hit = true;
        CHECK_EQ(WSTOPSIG(status), SIGSTOP);
        live_beside_the_stopped(c, victim);
        kill(victim, SIGKILL);
        status = reap_child(victim);
    }
    if (hit || !(WIFEXITED(status) && WEXITSTATUS(status) == 7)) {
        hit = true;
        CHECK_KILLED(status, SIGKILL);
    }

    verify_kept(c); /* the views are valid even before a process cleans up */
    prs_reap_dead(c->s, 0);
    int rc = prs_check(c->s, &e);
    CHECK_MSG(rc == PRS_OK, "prs_check: %s", e.what);
    if (heir > 0) {
        CHECK(write(go[1], "x", 1) == 1);
        status = reap_child(heir);
        CHECK_EXITED(status);
    }
    if (contender > 0) {
        prs_os_sleep(2 * PRS_MS);
        rc = prs_check(c->s, &e);
        CHECK_MSG(rc == PRS_OK, "prs_check: %s", e.what);
        prs_store_release(stop, 1);
        status = reap_child(contender);
        CHECK_EXITED(status);
    }
    /* If a parent was killed right after the fork, its child is our child now and may still be exiting. */
    while (waitpid(-1, NULL, 0) > 0)
        ;
    prs_reap_dead(c->s, 0);
    CHECK_STORE(c->s);
    verify_kept(c);
    CHECK_EQ(prs_state(c->s, &c->loose), PRS_OK);
    CHECK_EQ(prs_state(c->s, &c->draft.id), PRS_E_AGAIN);
    dismiss_strangers(c);
    prs_stats now = stats_of(c->s);
    CHECK_CLIENTS(c->s, 1);
    CHECK_EQ(now.objects, before.objects);
    CHECK_EQ(now.unsealed, 1);
    CHECK(now.in_flight >= 1 &&
          now.in_flight <= (drivers[d].drive == flights ? 31 : 3)); /* our token and those of the victim */
    CHECK_EQ(now.orphaned, 0);
    if (!drivers[d].spills) /* a driver that spills may have moved some of our objects to files */
        CHECK_EQ(now.used, before.used);

    content(c->draft.dst, 100, 5); /* the survivor continues with its draft */
    CHECK_EQ(prs_seal(c->s, &c->draft, &e), PRS_OK);
    CHECK_EQ(verify(c->s, &c->draft.id, 100, 5), PRS_OK);
    CHECK_EQ(prs_token_claim(c->s, &c->loose, &c->token), PRS_OK);
    CHECK_EQ(verify(c->s, &c->loose, 700, 99), PRS_OK);
    prs_oid mine[KEPT];
    for (int i = 0; i < KEPT; i++) {
        mine[i] = put(c->s, kept_size[i], 7);
        CHECK_EQ(verify(c->s, &mine[i], kept_size[i], 7), PRS_OK);
    }
    verify_kept(c);
    for (int i = 0; i < KEPT; i++) {
        if (i % 2)
            prs_unpin(c->s, &c->kept[i]);
        prs_unref(c->s, &c->kept[i]);
        prs_unref(c->s, &mine[i]);
    }
    prs_unref(c->s, &c->loose);
    prs_unref(c->s, &c->draft.id);
    CHECK_EMPTY(c->s);
    close_store(c->s);
    return hit;
}

/* ---- all failpoints ------------------------------------------------------------------------------------ */

static char spill_dir[64];

static void make_spill_dir(void)
{
    const char *const roots[] = {"/var/tmp", "/tmp", "."};
    for (int i = 0; i < 3 && !spill_dir[0]; i++) {
        char path[64];
        snprintf(path, sizeof path, "%s/prs-crash-XXXXXX", roots[i]);
        if (!mkdtemp(path))
            continue;
        prs_store *s;
        prs_error e;
        char *full = realpath(path, NULL);
        if (prs_create(&s, &(prs_options){.capacity = MIB, .spill_dir = full}, &e) == PRS_OK) {
            close_store(s);
            snprintf(spill_dir, sizeof spill_dir, "%s", full);
        } else {
            rmdir(path);
        }
        free(full);
    }
}

static void run(enum scenario scenario, int action, int after, int value)
{
    int failed = 0, cases = 0, crossed = 0;
    if (SANITIZED_THREADS)
        SKIP("nothing here for this sanitizer to see");
    make_spill_dir();
    for (const char *const *point = prs_failpoint_names(); *point; point++) {
        const char *filter = getenv("PRS_TEST_POINT");
        if (filter && *filter && strcmp(filter, *point) != 0)
            continue;
        CHECK_MSG(driver_of(*point) >= 0, "failpoint %s has no driver here", *point);
        if (action == PRS_FAIL_STOP && strcmp(*point, "fork_born") == 0)
            continue; /* this failpoint stops a process other than the one that we wait for */
        if (drivers[driver_of(*point)].spills && !spill_dir[0])
            continue; /* skip this failpoint, because there is no file system other than tmpfs */
        int status = 0;
        bool hit = false, miss = true;
        /* With a busy client or on a busy machine some failpoints depend on a race and need several
         * attempts. */
        for (int go = 0; miss && go < (after == 1 ? 8 : 1); go++) {
            fflush(NULL);
            pid_t pid = fork();
            if (pid == 0) {
                prctl(PR_SET_CHILD_SUBREAPER, 1);
                child_setup(60);
                struct scene scene = {
                    .point = *point, .action = action, .after = after, .value = value, .spill_dir = spill_dir};
                _exit(play(&scene, scenario) ? 0 : 7);
            }
            status = reap_child(pid);
            hit = WIFEXITED(status) && WEXITSTATUS(status) == 0;
            miss = WIFEXITED(status) && WEXITSTATUS(status) == 7;
        }
        cases++;
        crossed += hit;
        if ((!hit && !miss) || (miss && after == 1)) {
            failed++;
            fprintf(stderr, "     at %s, crossing %d: %s (status %x)\n", *point, after,
                    miss ? "the driver did not cross it" : "failed", (unsigned)status);
        }
    }
    printf("     %d cases, %d died at the point\n", cases, crossed);
    if (spill_dir[0]) {
        CHECK_EQ(rmdir(spill_dir), 0); /* succeeds only if the directory is empty */
        spill_dir[0] = 0;
    }
    CHECK_EQ(failed, 0);
    CHECK(getenv("PRS_TEST_POINT") || cases > 60);
}

TEST(killed_alone)
{
    run(ALONE, PRS_FAIL_KILL, 1, 0);
}

TEST(killed_later)
{
    static const int after[] = {2, 3, 7, 40};
    for (size_t i = 0; i < (SANITIZED ? 1 : sizeof after / sizeof *after); i++)
        run(ALONE, PRS_FAIL_KILL, after[i], 0);
}

TEST(killed_beside_a_busy_client)
{
    run(CONTENDED, PRS_FAIL_KILL, 1, 0);
    if (!SANITIZED)
        run(CONTENDED, PRS_FAIL_KILL, 3, 0);
}

TEST(killed_beside_an_earlier_corpse)
{
    run(CORPSE, PRS_FAIL_KILL, 1, 0);
}

TEST(killed_with_an_heir)
{
    run(HEIR, PRS_FAIL_KILL, 1, 0);
}

TEST(stopped_then_killed)
{
    run(ALONE, PRS_FAIL_STOP, 1, 0);
}

TEST(stopped_beside_an_earlier_corpse)
{
    if (SANITIZED)
        SKIP("the plain build does it; here it takes too long");
    run(CORPSE, PRS_FAIL_STOP, 1, 0);
}

TEST(stopped_beside_an_heir)
{
    run(HEIR, PRS_FAIL_STOP, 1, 0);
}

TEST(stopped_beside_a_busy_client)
{
    if (SANITIZED)
        SKIP("the plain build does it; here it takes too long");
    run(CONTENDED, PRS_FAIL_STOP, 1, 0);
}

/* ---- injected errors: the call fails, the store does not ------------------------------------------------- */

TEST(errors_are_reported_and_leave_nothing)
{
    prs_store *s = store_of(32 * MIB);
    prs_error e = {0};
    prs_oid id;
    prs_draft d;
    CHECK(prs_failpoint_arm("backing", PRS_FAIL_ERRNO, 1, ENOSPC));
    CHECK_EQ(try_put(s, 100, 1, &id, &e), PRS_E_BACKING); /* this grows the table of slots */
    CHECK(e.sys_errno == ENOMEM && e.what[0]);
    prs_oid small_one = put(s, 100, 1);
    CHECK(prs_failpoint_arm("backing", PRS_FAIL_ERRNO, 1, ENOSPC));
    for (int i = 0; i < 20 && e.sys_errno != ENOSPC; i++) /* a refill that gets no pages takes fewer slots */
        CHECK_EQ(try_put(s, 50000, 1, &id, &e), PRS_OK);
    CHECK_EQ(e.sys_errno, ENOSPC);
    CHECK(prs_failpoint_arm("backing", PRS_FAIL_ERRNO, 1, ENOSPC));
    CHECK_EQ(try_put(s, 3 * MIB, 1, &id, &e), PRS_E_BACKING); /* filling the pages fails */
    CHECK(prs_failpoint_arm("window_mapped", PRS_FAIL_ERRNO, 1, ENOMEM));
    CHECK_EQ(prs_alloc(s, MIB, PRS_ALLOC_WINDOW, &d, &e), PRS_E_NOMEM);
    CHECK_EQ(prs_alloc(s, MIB, PRS_ALLOC_WINDOW, &d, &e), PRS_OK);
    content(d.window, MIB, 4);
    CHECK(prs_failpoint_arm("window_revoked", PRS_FAIL_ERRNO, 1, ENOMEM));
    CHECK_EQ(prs_seal(s, &d, &e), PRS_E_NOMEM); /* this error occurs before the object is sealed, */
    CHECK_EQ(prs_state(s, &d.id), PRS_E_AGAIN);
    CHECK_EQ(prs_seal(s, &d, &e), PRS_OK); /* so the caller can seal it again */
    CHECK_EQ(verify(s, &d.id, MIB, 4), PRS_OK);
    prs_window_close(s, &d);
    CHECK_EQ(verify(s, &small_one, 100, 1), PRS_OK);
    CHECK_STORE(s);
    CHECK_EQ(stats_of(s).unsealed, 0);
    close_store(s);
}

TEST_MAIN()
