/*
 * Tests with many threads. Each of several handles is a client with different addresses and has several threads, which
 * use the same objects at random and always check their contents. The tests are meant for ThreadSanitizer, but are also
 * useful without it.
 *
 * ThreadSanitizer identifies memory by its address. In a build for ThreadSanitizer the handles therefore share one
 * mapping of the tables (tsan/one_address.c), so that it also detects races between handles. Each handle still maps
 * the data at a separate address.
 */
#include "engine.h"

enum { HANDLES = 3, THREADS = 3, BOARD = 64 };

/* Places at which threads publish ids for others; a lock per place keeps an id and its size together. */
struct board {
    pthread_mutex_t lock;
    prs_oid id;
    prs_token token;
    uint64_t size, seed; /* size + 1, or 0 for an empty place */
    bool draft;          /* unsealed and without a token: threads can only wait for it */
};

static struct board board[BOARD];
static prs_atomic_u32 stop, done;
static prs_atomic_u64 wrong;

struct worker {
    prs_store *s;
    uint64_t rng;
    const char *why;
    int rc;
    uint64_t steps, kept;
};

#define WRONG(w, text, code)              \
    do {                                  \
        (w)->why = (text);                \
        (w)->rc = (code);                 \
        prs_fetch_add_relaxed(&wrong, 1); \
        return;                           \
    } while (0)

static bool fine(int rc)
{
    return rc == PRS_OK || rc == PRS_E_LOST || rc == PRS_E_FREED || rc == PRS_E_AGAIN;
}

/* Return the contents of a place. If `take` is true, also clear the place, so that no other thread gets the token in
 * it. */
static struct board look(struct board *b, bool take)
{
    pthread_mutex_lock(&b->lock);
    struct board got = *b;
    if (got.draft)
        got.size = 0;
    else if (take)
        b->size = 0;
    pthread_mutex_unlock(&b->lock);
    return got;
}

static void take(struct worker *w, struct board *b)
{
    struct board got = look(b, true);
    if (!got.size)
        return;
    int rc = prs_token_claim(w->s, &got.id, &got.token);
    if (rc != PRS_OK)
        WRONG(w, "an object in flight is gone", rc);
    rc = verify(w->s, &got.id, got.size - 1, got.seed);
    if (rc != PRS_OK)
        WRONG(w, "wrong bytes, or none", rc);
    prs_unref(w->s, &got.id);
}

static void hang(struct worker *w, struct board *b, const prs_oid *id, uint64_t size, uint64_t seed)
{
    prs_token token, old = {0, 0, 0};
    prs_oid old_id = {0};
    int rc = prs_token_take(w->s, id, PRS_TOKEN_ONCE, &token);
    if (rc != PRS_OK)
        WRONG(w, "prs_token_take", rc);
    pthread_mutex_lock(&b->lock);
    if (b->size && !b->draft)
        old = b->token, old_id = b->id;
    b->id = *id;
    b->token = token;
    b->size = size + 1;
    b->seed = seed;
    b->draft = false;
    pthread_mutex_unlock(&b->lock);
    if (old.index)
        prs_token_drop(w->s, &old_id, &old);
}

static void step(struct worker *w)
{
    uint64_t r = test_random(&w->rng);
    struct board *b = &board[r % BOARD];
    uint64_t seed = r >> 32, size = (r >> 8) % 100 < 90 ? (r >> 16) % 3000 : (r >> 16) % 600000;
    prs_error e = {0};
    prs_draft d;
    prs_oid id;
    int rc;
    switch ((r >> 6) % 10) {
    case 0:
    case 1:
    case 2: /* put an object and publish it */
        rc = try_put(w->s, size, seed, &id, &e);
        if (rc == PRS_E_FULL)
            return;
        if (rc != PRS_OK)
            WRONG(w, "put", rc);
        hang(w, b, &id, size, seed);
        prs_unref(w->s, &id);
        return;
    case 3:
    case 4:
        take(w, b);
        return;
    case 5: { /* use the object without a token: other threads may free the object at any time */
        struct board seen = look(b, false);
        prs_view v;
        if (!seen.size)
            return;
        rc = prs_pin(w->s, &seen.id, &v);
        if (!fine(rc))
            WRONG(w, "pin", rc);
        if (rc != PRS_OK)
            return;
        if (v.size != seen.size - 1 || !content_right(v.data, v.size, seen.seed))
            WRONG(w, "wrong bytes under a pin", 0);
        rc = prs_ref(w->s, &seen.id);
        if (rc != PRS_OK && rc != PRS_E_FREED)
            WRONG(w, "ref of what is pinned", rc);
        if (rc == PRS_OK) { /* replace the pin by the ref and back */
            prs_unpin(w->s, &seen.id);
            int again = prs_pin(w->s, &seen.id, &v);
            /* LOST is right only if later objects were made and freed in the slot, which then no longer records this one. */
            uint32_t ended = prs_load_relaxed(&prs_slot_at(w->s, seen.id.slot)->ended) >> 2;
            bool reused = ended != (seen.id.generation & 0x3FFFFFFFu);
            if (again != PRS_OK && again != PRS_E_FREED && !(again == PRS_E_LOST && reused))
                WRONG(w, "pin of what is held", again);
            prs_unref(w->s, &seen.id);
            if (again != PRS_OK)
                return;
            if (!content_right(v.data, v.size, seen.seed))
                WRONG(w, "wrong bytes after a trade", 0);
        }
        prs_unpin(w->s, &seen.id);
        return;
    }
    case 6: { /* free the object for all clients */
        struct board got = look(b, true);
        if (!got.size)
            return;
        if ((rc = prs_free(w->s, &got.id, &e)) != PRS_OK)
            WRONG(w, "free", rc);
        prs_token_drop(w->s, &got.id, &got.token);
        return;
    }
    case 7: { /* make an object that refers to the one at this place */
        struct board seen = look(b, false);
        if (!seen.size || prs_ref(w->s, &seen.id) != PRS_OK)
            return;
        rc = prs_alloc(w->s, 64, PRS_ALLOC_ORDERED, &d, &e);
        if (rc == PRS_OK) {
            rc = prs_add_edge(w->s, &d, &seen.id, &e);
            prs_unref(w->s, &seen.id);
            if (rc == PRS_E_LOST) { /* another thread freed the object meanwhile */
                prs_abort(w->s, &d);
                return;
            }
            if (rc != PRS_OK)
                WRONG(w, "add_edge", rc);
            content(d.dst, 64, seed);
            if ((rc = prs_seal(w->s, &d, &e)) != PRS_OK)
                WRONG(w, "seal", rc);
            hang(w, &board[(r >> 44) % BOARD], &d.id, 64, seed);
            prs_unref(w->s, &d.id);
        } else {
            prs_unref(w->s, &seen.id);
            if (rc != PRS_E_FULL)
                WRONG(w, "alloc", rc);
        }
        return;
    }
    case 8: /* fill a draft slowly while other threads wait for the object; sometimes abort it */
        rc = prs_alloc(w->s, size % 5000, 0, &d, &e);
        if (rc == PRS_E_FULL)
            return;
        if (rc != PRS_OK)
            WRONG(w, "alloc", rc);
        id = d.id;
        pthread_mutex_lock(&b->lock);
        bool hung = b->size == 0;
        if (hung)
            b->id = id, b->size = 1, b->draft = true;
        pthread_mutex_unlock(&b->lock);
        content(d.dst, size % 5000, seed);
        if (hung) {
            pthread_mutex_lock(&b->lock);
            if (b->draft && b->id.serial == id.serial)
                b->size = 0, b->draft = false;
            pthread_mutex_unlock(&b->lock);
        }
        if (r >> 63) {
            prs_abort(w->s, &d);
        } else {
            if ((rc = prs_seal(w->s, &d, &e)) != PRS_OK)
                WRONG(w, "seal", rc);
            prs_unref(w->s, &id);
        }
        return;
    default: { /* wait for the object, whatever its state */
        pthread_mutex_lock(&b->lock);
        id = b->id;
        bool some = b->size != 0;
        pthread_mutex_unlock(&b->lock);
        uint64_t at;
        prs_oid found;
        if (some && !fine(rc = prs_wait(w->s, &id, 100000)) && rc != PRS_E_TIMEOUT)
            WRONG(w, "wait", rc);
        (void)prs_find(w->s, w->s->ro + (r >> 20) % w->s->capacity, 1, &found, &at);
        return;
    }
    }
}

static void *work(void *arg)
{
    struct worker *w = arg;
    while (!prs_load_acquire(&stop) && !w->why) {
        step(w);
        w->steps++;
        if (w->steps % 512 == 0)
            prs_reap_dead(w->s, 100 * PRS_MS);
    }
    prs_fetch_add_relaxed(&done, 1);
    return NULL;
}

static void run(uint64_t capacity, int handles, double seconds, bool forks)
{
    prs_store *s[HANDLES];
    struct worker w[HANDLES * THREADS];
    pthread_t thread[HANDLES * THREADS];
    s[0] = store_with((prs_options){.capacity = capacity, .max_objects = 4096, .lock_timeout = 20 * PRS_SECOND});
    for (int i = 1; i < handles; i++) {
        s[i] = client_of(s[0]);
        s[i]->lock_timeout = 20 * PRS_SECOND;
    }
    memset(board, 0, sizeof board);
    for (int i = 0; i < BOARD; i++)
        pthread_mutex_init(&board[i].lock, NULL);
    prs_store_relaxed(&stop, 0);
    prs_store_relaxed(&wrong, 0);
    int n = handles * THREADS;
    for (int i = 0; i < n; i++) {
        w[i] = (struct worker){.s = s[i % handles], .rng = test_seed(77) * 1000 + (uint64_t)i + 1};
        pthread_create(&thread[i], NULL, work, &w[i]);
    }
    uint64_t until = test_now_ns() + (uint64_t)(seconds * 1e9);
    int children = 0, bad = 0;
    while (test_now_ns() < until && !prs_load_relaxed(&wrong)) {
        prs_error e = {0};
        int rc = prs_check(s[0], &e);
        if (rc != PRS_OK) {
            fprintf(stderr, "prs_check while all work: %d %s\n", rc, e.what);
            bad++;
            break;
        }
        prs_stats t;
        prs_record r[16];
        uint32_t cursor = 0;
        prs_get_stats(s[0], &t);
        while (prs_list(s[0], &cursor, r, 16) > 0)
            ;
        if (!forks) {
            prs_os_sleep(2 * PRS_MS);
            continue;
        }
        pid_t pid = fork(); /* fork while other threads are in calls */
        if (pid == 0) {
            child_setup(30);
            prs_oid id;
            for (int i = 0; i < handles; i++)
                for (int k = 0; k < 20; k++) {
                    rc = try_put(s[i], (uint64_t)k * 400, 9, &id, &e);
                    if (rc == PRS_E_FULL)
                        continue;
                    if (rc != PRS_OK || verify(s[i], &id, (uint64_t)k * 400, 9) != PRS_OK)
                        _exit(3);
                    prs_unref(s[i], &id);
                }
            for (int i = 0; i < handles && children % 2; i++)
                prs_close(s[i]); /* every other child exits without closing */
            _exit(0);
        }
        children++;
        int status;
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
            fprintf(stderr, "child %d: status %x\n", children, (unsigned)status);
            bad++;
            break;
        }
    }
    prs_store_release(&stop, 1);
    uint64_t steps = 0;
    for (int i = 0; i < n; i++) {
        pthread_join(thread[i], NULL);
        steps += w[i].steps;
        if (w[i].why) {
            fprintf(stderr, "thread %d: %s: %d\n", i, w[i].why, w[i].rc);
            bad++;
        }
    }
    printf("     %llu steps, %d forks\n", (unsigned long long)steps, children);
    CHECK_EQ(bad, 0);
    CHECK(steps > 100);
    prs_reap_dead(s[0], 0);
    for (int i = 0; i < BOARD; i++)
        if (board[i].size && !board[i].draft)
            prs_token_drop(s[0], &board[i].id, &board[i].token);
    for (int i = 0; i < handles; i++)
        prs_deferred_run_all(s[i]);
    for (int i = handles - 1; i > 0; i--)
        close_store(s[i]);
    prs_reap_dead(s[0], 0);
    CHECK_EMPTY(s[0]);
    prs_stats t = stats_of(s[0]);
    CHECK_EQ(t.clients, 1);
    CHECK_EQ(t.orphaned, 0);
    close_store(s[0]);
}

static double seconds(double normal)
{
    const char *text = getenv("PRS_TEST_SECONDS");
    return text && *text ? atof(text) : normal;
}

TEST(threads_of_one_handle)
{
    run(64 * MIB, 1, seconds(2), false);
}

TEST(threads_of_several_handles)
{
    run(64 * MIB, HANDLES, seconds(3), false);
}

TEST(threads_in_a_store_that_is_full)
{
    run(2 * MIB, HANDLES, seconds(2), false);
}

TEST(threads_while_one_forks)
{
    run(64 * MIB, HANDLES, seconds(3), true);
}

/* One thread frees memory through one handle, and another thread allocates this memory through a second handle, with a
 * slot and a size class that the first thread has not used. Only a slot's word and the store lock, through two
 * mappings, order the two threads. */
static void await(uint32_t turn)
{
    while (prs_load_relaxed(&done) != turn)
        prs_pause();
}

static uint64_t given_up, taken; /* offsets in the data area */

static void *give_up(void *arg)
{
    prs_draft d;
    prs_error e;
    await(1);
    CHECK_EQ(prs_alloc(arg, 30000, 0, &d, &e), PRS_OK);
    memset(d.dst, 1, 30000); /* only one access, because ThreadSanitizer has a short history */
    given_up = d.off;
    prs_abort(arg, &d); /* puts the slot into the magazine, without a lock */
    prs_store_relaxed(&done, 2);
    return NULL;
}

static void *take_anew(void *arg)
{
    prs_draft d;
    prs_error e;
    await(3);
    CHECK_EQ(prs_alloc(arg, 20000, 0, &d, &e), PRS_OK);
    memset(d.dst, 2, 20000);
    taken = d.off;
    prs_abort(arg, &d);
    return NULL;
}

TEST(memory_that_came_by_another_handle_is_in_order)
{
    prs_store *s = store_of(16 * MIB), *other = client_of(s);
    pthread_t thread[2];
    prs_store_relaxed(&done, 0);
    pthread_create(&thread[0], NULL, give_up, s);
    pthread_create(&thread[1], NULL, take_anew, s);
    prs_store_relaxed(&done, 1);
    await(2);
    CHECK(prs_magazines_reclaim(other) >= 30000);
    prs_oid id = put(other, 1, 3); /* takes the slots on top of the stack */
    prs_store_relaxed(&done, 3);
    for (int i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    CHECK(taken < given_up + 30000 && given_up < taken + 20000); /* the ranges overlap */
    prs_unref(other, &id);
    close_store(other);
    CHECK_EMPTY(s);
    close_store(s);
}

/* ---- opening and closing while others work -------------------------------------------------------------- */

static void *come_and_go(void *arg)
{
    struct worker *w = arg;
    while (!prs_load_acquire(&stop)) {
        prs_store *t = NULL;
        prs_error e = {0};
        int32_t pid, fd;
        uint64_t start;
        prs_locator(w->s, &pid, &start, &fd);
        int rc = prs_attach_pid(&t, pid, fd, prs_id(w->s), NULL, &e);
        if (rc == PRS_E_CLIENTS)
            continue;
        if (rc != PRS_OK) {
            w->why = "attach";
            w->rc = rc;
            return NULL;
        }
        prs_oid id;
        if (try_put(t, 500, 1, &id, &e) != PRS_OK || verify(w->s, &id, 500, 1) != PRS_OK) {
            w->why = "put";
            return NULL;
        }
        prs_close(t);
        /* The lock was busy at the end, so the client stays, and another client does the rest of its work. */
        w->kept += t->dying != PRS_NIL || prs_load_relaxed(&t->has_pending);
        prs_dispose(t);
        w->steps++;
    }
    return NULL;
}

TEST(clients_come_and_go)
{
    prs_store *s = store_with((prs_options){.capacity = 64 * MIB, .max_clients = 8});
    pthread_t thread[4];
    struct worker w[4];
    prs_store_relaxed(&stop, 0);
    for (int i = 0; i < 4; i++) {
        w[i] = (struct worker){.s = s};
        pthread_create(&thread[i], NULL, come_and_go, &w[i]);
    }
    uint64_t until = test_now_ns() + (uint64_t)(seconds(1.5) * 1e9);
    while (test_now_ns() < until)
        prs_reap_dead(s, 0); /* no client may be declared dead */
    prs_store_release(&stop, 1);
    uint64_t steps = 0, kept = 0;
    for (int i = 0; i < 4; i++) {
        pthread_join(thread[i], NULL);
        steps += w[i].steps;
        kept += w[i].kept;
        CHECK_MSG(!w[i].why, "%s: %d", w[i].why, w[i].rc);
    }
    CHECK(steps > 10);
    prs_reap_dead(s, 0);
    CHECK_EQ(stats_of(s).reaped, kept);
    CHECK_EMPTY(s);
    close_store(s);
}

/* Views stay valid after their handle was closed while other threads use it. */
static void *pin_till_closed(void *arg)
{
    struct worker *w = arg;
    prs_oid id = {0};
    pthread_mutex_lock(&board[0].lock);
    id = board[0].id;
    pthread_mutex_unlock(&board[0].lock);
    for (;;) {
        prs_view v;
        int rc = prs_pin(w->s, &id, &v);
        if (rc == PRS_E_CLOSED)
            return NULL;
        if (rc != PRS_OK || !content_right(v.data, 3000, 8)) {
            w->why = "pin";
            w->rc = rc;
            return NULL;
        }
        prs_oid mine;
        prs_error e;
        rc = try_put(w->s, 100, 1, &mine, &e);
        if (rc == PRS_OK)
            prs_unref(w->s, &mine);
        else if (rc != PRS_E_CLOSED && rc != PRS_E_INVAL && rc != PRS_E_LOST) {
            w->why = "put";
            w->rc = rc;
        }
        if (!content_right(v.data, 3000, 8))
            w->why = "bytes";
        prs_unpin(w->s, &id);
    }
}

TEST(closing_under_the_feet_of_others)
{
    tables_apart(true);
    prs_store *s = store_of(64 * MIB);
    board[0].id = put(s, 3000, 8);
    for (int round = 0; round < (SANITIZED ? 20 : 100); round++) {
        prs_store *t = client_of(s);
        pthread_t thread[3];
        struct worker w[3];
        for (int i = 0; i < 3; i++) {
            w[i] = (struct worker){.s = t};
            pthread_create(&thread[i], NULL, pin_till_closed, &w[i]);
        }
        prs_os_sleep(round % 5 * PRS_MS);
        prs_close(t);
        for (int i = 0; i < 3; i++) {
            pthread_join(thread[i], NULL);
            CHECK_MSG(!w[i].why, "%s: %d", w[i].why, w[i].rc);
        }
        prs_dispose(t);
        prs_error e = {0};
        int rc = prs_check(s, &e);
        CHECK_MSG(rc == PRS_OK, "prs_check: %s", e.what);
        CHECK_CLIENTS(s, 1);
    }
    prs_unref(s, &board[0].id);
    prs_reap_dead(s, 0);
    CHECK_EMPTY(s);
    close_store(s);
    tables_apart(false);
}

TEST_MAIN()
