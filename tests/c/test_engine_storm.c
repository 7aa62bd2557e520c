/*
 * A storm test: processes put, get, send and free objects, make objects that refer to others, fork, and verify all
 * contents, while the test kills them at random. At the end the store must be consistent and empty.
 *
 * The store is smaller than the objects that its processes put, so that some objects are spilled to files and read from
 * there. PRS_TEST_KILLS sets the number of kills. The default is 2000, or fewer if 60 seconds have passed. SIGINT or
 * SIGTERM ends a long run early, with the same checks and report as at its end.
 */
#include "engine.h"

enum { WORKERS = 32, PLACES = 48, MINE = 24, KEPT = 8, DYING = 32 };

/* A place for an object that processes pass on to each other. A process claims `state` by a CAS; while `state` is BUSY,
 * it also contains the pid of the process that works on the place. If that process dies, the killer cleans up as if the
 * message had been lost. */
enum { EMPTY, BUSY, FULL, PID_SHIFT = 8 };
struct place {
    prs_atomic_u32 state;
    prs_oid id;
    prs_token token;
    uint64_t size, seed;
};

struct shared {
    struct place place[PLACES];
    prs_atomic_u64 puts, takes, forks, verified, spilled;
    prs_atomic_u32 quit;
};

static struct shared *shared;
static prs_oid kept[KEPT];

static uint64_t kept_size(int i)
{
    return (uint64_t)i * i * i * 900;
}

struct mine {
    prs_oid id;
    uint64_t size, seed;
    bool there, pinned;
    bool shared; /* other processes may hold the object, so do not free it for all clients */
    prs_view view;
};

static void fail(const char *what, int rc, const prs_error *e)
{
    fprintf(stderr, "pid %d: %s: %d %s (errno %d)\n", (int)getpid(), what, rc, e && rc < 0 ? e->what : "", errno);
    _exit(3);
}

static void step(prs_store *s, struct mine *mine, uint64_t *rng, int depth)
{
    uint64_t r = test_random(rng);
    struct mine *m = &mine[r % MINE];
    struct place *p = &shared->place[(r >> 8) % PLACES];
    uint32_t full = FULL, empty = EMPTY, busy = BUSY | (uint32_t)getpid() << PID_SHIFT;
    prs_error e = {0};
    int rc;
    switch ((r >> 16) % 8) {
    case 0:
    case 1: /* put an object */
        if (m->there)
            return;
        m->seed = r >> 20;
        m->size = (r >> 32) % 8 ? (r >> 36) % 4000 : (r >> 36) % 900000;
        rc = try_put(s, m->size, m->seed, &m->id, &e);
        if (rc == PRS_E_FULL)
            return;
        if (rc != PRS_OK)
            fail("put", rc, &e);
        m->there = true;
        m->shared = false;
        m->pinned = (r >> 62) && prs_pin(s, &m->id, &m->view) == PRS_OK;
        prs_fetch_add_relaxed(&shared->puts, 1);
        return;
    case 2: /* verify an object, and perhaps drop it */
    case 3:
        if (!m->there)
            return;
        if (m->pinned && !content_right(m->view.data, m->size, m->seed))
            fail("bytes under a pin", 0, NULL);
        if ((rc = verify(s, &m->id, m->size, m->seed)) != PRS_OK)
            fail("an object of mine", rc, NULL);
        prs_fetch_add_relaxed(&shared->verified, 1);
        if (r >> 63)
            return;
        if (m->pinned)
            prs_unpin(s, &m->id);
        if (!m->shared && ((r >> 62) & 1) && (rc = prs_free(s, &m->id, &e)) != PRS_OK)
            fail("free", rc, &e);
        prs_unref(s, &m->id);
        m->there = m->pinned = false;
        return;
    case 4: /* hand the object over */
        if (!m->there || depth || !prs_cas_acqrel(&p->state, &empty, busy))
            return;
        if ((rc = prs_token_take(s, &m->id, PRS_TOKEN_ONCE, &p->token)) != PRS_OK)
            fail("token", rc, NULL);
        p->id = m->id;
        p->size = m->size;
        p->seed = m->seed;
        prs_store_release(&p->state, FULL);
        if (m->pinned)
            prs_unpin(s, &m->id);
        prs_unref(s, &m->id); /* from now on only the message holds it */
        m->there = m->pinned = false;
        return;
    case 5: /* receive an object */
        if (m->there || !prs_cas_acqrel(&p->state, &full, busy))
            return;
        m->id = p->id;
        m->size = p->size;
        m->seed = p->seed;
        if ((rc = prs_token_claim(s, &m->id, &p->token)) != PRS_OK)
            fail("an object in flight", rc, NULL);
        prs_store_release(&p->state, EMPTY);
        m->there = m->shared = true;
        m->pinned = false;
        prs_fetch_add_relaxed(&shared->takes, 1);
        if ((rc = verify(s, &m->id, m->size, m->seed)) != PRS_OK)
            fail("an object received", rc, NULL);
        return;
    case 6: { /* make an object that refers to another one, and drop the ref to that one */
        struct mine *to = &mine[(r >> 24) % MINE];
        prs_draft d;
        if (!m->there || to->there)
            return;
        rc = prs_alloc(s, 64, PRS_ALLOC_ORDERED, &d, &e);
        if (rc == PRS_E_FULL)
            return;
        if (rc != PRS_OK || (rc = prs_add_edge(s, &d, &m->id, &e)) != PRS_OK)
            fail("edge", rc, &e);
        content(d.dst, 64, r);
        if ((rc = prs_seal(s, &d, &e)) != PRS_OK)
            fail("seal", rc, &e);
        *to = (struct mine){.id = d.id, .size = 64, .seed = r, .there = true};
        return;
    }
    default: { /* use an object of the first process, then put a draft or abort it */
        int k = (int)((r >> 24) % KEPT);
        if ((rc = verify(s, &kept[k], kept_size(k), (uint64_t)k)) != PRS_OK)
            fail("an object of the first process", rc, NULL);
        prs_draft d;
        rc = prs_alloc(s, (r >> 28) % 20000, (r >> 60) & 1 ? PRS_ALLOC_WINDOW : 0, &d, &e);
        if (rc == PRS_OK) {
            if (d.window)
                memset(d.window, 0x5A, d.size);
            if ((r >> 61) & 1) {
                prs_abort(s, &d);
            } else {
                if ((rc = prs_seal(s, &d, &e)) != PRS_OK)
                    fail("seal", rc, &e);
                prs_window_close(s, &d);
                prs_unref(s, &d.id);
            }
        } else if (rc != PRS_E_FULL) {
            fail("alloc", rc, &e);
        }
        prs_reap_dead(s, 20 * PRS_MS);
        for (int i = 0; i < MINE; i++)
            if (mine[i].there && (prs_load_relaxed(&prs_slot_at(s, mine[i].id.slot)->word) & PRS_WORD_FILE))
                prs_fetch_add_relaxed(&shared->spilled, 1);
        return;
    }
    }
}

static void work(prs_store *s, uint64_t seed, int depth)
{
    static struct mine mine[MINE];
    uint64_t rng = seed;
    for (uint64_t n = 0; !prs_load_relaxed(&shared->quit) && (depth == 0 || n < 200); n++) {
        step(s, mine, &rng, depth);
        if (depth < 2 && test_random(&rng) % 100 == 0) {
            for (int i = 0; i < MINE; i++)
                mine[i].shared = true;
            pid_t pid = fork();
            if (pid == 0) { /* the child continues with all objects that its parent holds */
                alarm(600 * (SANITIZED ? 6 : 1));
                rng ^= 0xABCDEF;
                depth++;
                n = 0;
                continue;
            }
            prs_fetch_add_relaxed(&shared->forks, 1);
            if (pid > 0 && test_random(&rng) % 2)
                waitpid(pid, NULL, 0);
            while (waitpid(-1, NULL, WNOHANG) > 0)
                ;
        }
    }
    for (int i = 0, rc; i < MINE; i++)
        if (mine[i].there && (rc = verify(s, &mine[i].id, mine[i].size, mine[i].seed)) != PRS_OK)
            fail("an object of mine, at the end", rc, NULL);
    if (rng & 1)
        prs_close(s);
    _exit(0);
}

static volatile sig_atomic_t stopped;

static void stop(int sig)
{
    (void)sig;
    stopped = 1;
}

static void tell(prs_store *s, int kills, uint64_t begun)
{
    prs_stats t = {0};
    (void)prs_get_stats(s, &t);
    printf("     %d killed in %.0f s, %llu puts, %llu handed over, %llu verified, %llu met in files, %llu forks, %llu "
           "reaped, "
           "%llu locks stolen\n",
           kills, (double)(test_now_ns() - begun) / 1e9, (unsigned long long)shared->puts,
           (unsigned long long)shared->takes, (unsigned long long)shared->verified, (unsigned long long)shared->spilled,
           (unsigned long long)shared->forks, (unsigned long long)t.reaped, (unsigned long long)t.stolen);
}

/* The processes that got SIGKILL and were not reaped yet. A process needs CPU time to die, but we do not wait for it,
 * because that would slow the storm down on a busy machine. */
static pid_t dying[DYING];
static int dying_count;

static void clear_up_after(prs_store *s, pid_t pid)
{
    for (int i = 0; i < PLACES; i++) {
        struct place *p = &shared->place[i];
        uint32_t busy = BUSY | (uint32_t)pid << PID_SHIFT;
        if (prs_load_acquire(&p->state) == busy) {
            prs_token_drop(s, &p->id, &p->token); /* no effect if the token was claimed or not taken */
            p->token = (prs_token){0, 0, 0};
            prs_cas_acqrel(&p->state, &busy, EMPTY);
        }
    }
}

/* Reap one process; return false if there is none. `bad` counts the processes that ended with an error. */
static bool collect(prs_store *s, int flags, int *bad)
{
    int status;
    pid_t pid = waitpid(-1, &status, flags);
    if (pid <= 0)
        return false;
    clear_up_after(s, pid);
    bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, told = false;
    for (int k = 0; k < dying_count; k++)
        if (dying[k] == pid) {
            dying[k] = dying[--dying_count];
            told = true;
            break;
        }
    if (told ? !killed : !killed && status != 0) {
        fprintf(stderr, "a %s ended with status %x\n", told ? "worker" : "descendant", (unsigned)status);
        ++*bad;
    }
    return true;
}

TEST(killed_at_random)
{
    if (SANITIZED_THREADS)
        SKIP("nothing here for this sanitizer to see");
    const char *text = getenv("PRS_TEST_KILLS");
    int kills = text && *text ? atoi(text) : 2000, bad = 0, n = 0;
    uint64_t begun = test_now_ns(), limit = begun + (text && *text ? 12 * 3600 : 60) * 1000000000ull, said = begun;
    char disk[] = "/var/tmp/prs-storm-XXXXXX";
    CHECK(mkdtemp(disk));
    uint64_t rng = test_seed((uint64_t)time(NULL));
    printf("     seed %llu\n", (unsigned long long)rng);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    prs_store *s = store_with((prs_options){.capacity = 24 * MIB, .lock_timeout = 30 * PRS_SECOND, .spill_dir = disk});
    for (int i = 0; i < KEPT; i++)
        kept[i] = put(s, kept_size(i), (uint64_t)i);
    signal(SIGINT, stop);
    signal(SIGTERM, stop);
    pid_t worker[WORKERS] = {0};
    while (n < kills && !stopped && !bad && test_now_ns() < limit) {
        int i = (int)(test_random(&rng) % WORKERS);
        if (worker[i]) {
            while (dying_count == DYING && !bad)
                collect(s, 0, &bad);
            kill(worker[i], SIGKILL);
            dying[dying_count++] = worker[i];
            n++;
        }
        uint64_t seed = test_random(&rng);
        worker[i] = fork();
        if (worker[i] == 0) {
            child_setup(600);
            signal(SIGINT, SIG_IGN); /* the killer handles Ctrl-C of a terminal */
            signal(SIGTERM, SIG_DFL);
            (void)!nice(10); /* run at a lower priority, so that the killer gets the CPU first */
            work(s, seed, 0);
        }
        prs_os_sleep((int64_t)(test_random(&rng) % 3000) * 1000);
        if (n % 50 == 0) { /* check the store in the middle of the storm */
            prs_error e = {0};
            int rc = prs_check(s, &e);
            if (rc != PRS_OK) {
                fprintf(stderr, "prs_check after %d kills: %s\n", n, e.what);
                bad++;
                break;
            }
        }
        while (collect(s, WNOHANG, &bad)) /* orphaned grandchildren are our children, too */
            ;
        if (test_now_ns() - said > 60000000000ull) {
            tell(s, n, begun);
            said = test_now_ns();
        }
    }
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    if (n < kills && text)
        printf("     ended early: %d of %d kills\n", n, kills);
    for (int i = 0; i < WORKERS; i++)
        if (worker[i])
            kill(worker[i], SIGKILL);
    prs_store_release(&shared->quit, 1);
    while (collect(s, 0, &bad))
        ;
    prs_reap_dead(s, 0);
    tell(s, n, begun);
    CHECK_EQ(bad, 0);
    CHECK_STORE(s);
    CHECK_CLIENTS(s, 1);
    for (int i = 0; i < KEPT; i++) {
        CHECK_EQ(verify(s, &kept[i], kept_size(i), (uint64_t)i), PRS_OK);
        prs_unref(s, &kept[i]);
    }
    /* Only the objects of lost messages, and objects that these refer to, are left now. */
    for (int again = 1; again;) {
        prs_record r[64];
        uint32_t cursor = 0;
        int some;
        again = 0;
        prs_deferred_run_all(s);
        while ((some = prs_list(s, &cursor, r, 64)) > 0)
            for (int i = 0; i < some; i++) {
                CHECK_EQ(r[i].ref_holders + r[i].pin_holders, 0);
                CHECK(r[i].tokens_and_edges > 0 && r[i].state == PRS_STATE_SEALED);
                prs_error e;
                CHECK_EQ(prs_free(s, &r[i].id, &e), PRS_OK);
                again = 1;
            }
    }
    CHECK_EMPTY(s);
    CHECK(n >= 50 && shared->puts > (uint64_t)n && shared->takes > 0 && shared->spilled > 0);
    close_store(s);
    CHECK_EQ(rmdir(disk), 0); /* no spill file is left */
    munmap(shared, sizeof *shared);
}

TEST_MAIN()
