/*
 * Tests that kill a process after every single instruction.
 *
 * A forked victim runs n instructions of one operation of the engine under ptrace and is then killed; the next
 * victim runs n + 1 instructions. After each kill the survivor checks that nothing of the victim is left: the store
 * is consistent, counts of links are right, all memory of the victim is free, and put and get work. A separate
 * process, the witness, holds views and pins, and compares hashes of the bytes before and after the recovery.
 *
 * The tests run in several states of the store: the magazines are filled or empty; no process has reaped an earlier
 * dead client yet; another client is stopped at a failpoint, and continues or dies afterwards.
 *
 * PRS_TORTURE=1 tests every instruction; otherwise a few points of each operation are tested.
 */
#include "operations.h"
#include "stepper.h"

#include <sched.h>

enum { SEEN = 5 };
static const uint64_t seen_size[SEEN] = {0, 64, 1000, 40000, 100000};

enum state { WARM, COLD, CORPSE, STATES };
static const char *const state_name[] = {"magazines filled", "magazines empty", "an unburied corpse"};

static char spill_dir[64];
static struct {
    uint64_t kills, steps, wrong;
    uint64_t longest; /* duration of the survivor's longest call after a death, in ns */
} total;

/* ---- the witness ---------------------------------------------------------------------------------------------- */

struct witness {
    pid_t pid;
    int ask, answer;
};

static uint64_t hash(const uint8_t *at, uint64_t n)
{
    uint64_t h = n * 0x9e3779b97f4a7c15u;
    for (; n >= 8; at += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        h = (h ^ word) * 0xbf58476d1ce4e5b9u;
        h ^= h >> 31;
    }
    for (; n; at++, n--)
        h = (h ^ *at) * 0x94d049bb133111ebu;
    return h;
}

/* The witness holds views of the survivor's objects and reports on request whether they are unchanged. */
static struct witness call_witness(prs_store *s, const prs_oid *seen)
{
    int ask[2], answer[2];
    CHECK(pipe(ask) == 0 && pipe(answer) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(ask[1]);
        prs_view view[SEEN];
        uint64_t was[SEEN];
        for (int i = 0; i < SEEN; i++) {
            CHECK_EQ(prs_pin(s, &seen[i], &view[i]), PRS_OK);
            prs_unref(s, &seen[i]); /* now only the view keeps the object alive */
            was[i] = hash(view[i].data, view[i].size);
        }
        char verdict = 'y';
        do {
            for (int i = 0; i < SEEN; i++)
                if (hash(view[i].data, view[i].size) != was[i])
                    verdict = 'n';
            CHECK_EQ(write(answer[1], &verdict, 1), 1);
        } while (read(ask[0], &(char){0}, 1) == 1);
        _exit(0);
    }
    close(ask[0]);
    close(answer[1]);
    struct witness w = {pid, ask[1], answer[0]};
    char verdict = 0;
    CHECK(read(w.answer, &verdict, 1) == 1 && verdict == 'y');
    return w;
}

static bool witness_agrees(const struct witness *w)
{
    char verdict = 0;
    return write(w->ask, "?", 1) == 1 && read(w->answer, &verdict, 1) == 1 && verdict == 'y';
}

static void dismiss_witness(const struct witness *w)
{
    close(w->ask);
    close(w->answer);
    int status = reap_child(w->pid);
    CHECK_EXITED(status);
}

/* ---- stepping --------------------------------------------------------------------------------------------------- */

/* Fork a child that stops itself before the operation. */
static pid_t make_victim(struct stage *c, const operation *op, bool warm)
{
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (warm)
            fill_magazines(c);
        op->ready(c);
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
            _exit(9);
        raise(SIGSTOP); /* the parent counts instructions from here on */
        op->act(c);
        raise(SIGSTOP);
        _exit(8);
    }
    CHECK_EQ(step_wait(pid), SIGSTOP);
    return pid;
}

/* Let the child run for `n` instructions and kill it; with `record`, run and record all instructions. Return false
 * if the operation ended before the n-th instruction. */
static bool step_and_kill(pid_t pid, trace *t, uint64_t n, bool record)
{
    bool ended = false;
    if (record)
        step_record(pid, t);
    else
        total.steps += step_to(pid, t, n, &ended);
    CHECK_EQ(kill(pid, SIGKILL), 0);
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
    return !ended;
}

/* ---- one death --------------------------------------------------------------------------------------------------- */

struct scene {
    struct stage stage;
    prs_oid seen[SEEN];
    struct witness witness;
    prs_stats before;
    enum state state;
    const char *stopped_at; /* the failpoint at which another client is stopped meanwhile, or NULL */
};

static const char *wrong;

/* Measure how long a call of the survivor takes; more than a second is an error. */
#define TIMED(call)                                   \
    do {                                              \
        uint64_t start_ = test_now_ns();              \
        call;                                         \
        uint64_t took_ = test_now_ns() - start_;      \
        if (took_ > total.longest)                    \
            total.longest = took_;                    \
        if (took_ > 1000000000u)                      \
            wrong = "a call took more than a second"; \
    } while (0)

static void leave_unburied(prs_store *s)
{
    pid_t pid = fork();
    if (pid == 0) { /* if the store is full, some of these calls fail */
        prs_draft d;
        prs_oid id;
        (void)try_put(s, 100, 1, &id, &ignored);
        (void)try_put(s, 70000, 1, &id, &ignored);
        (void)prs_alloc(s, 300, 0, &d, &ignored);
        kill(getpid(), SIGKILL);
    }
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
}

/* Start a child that works until it stops itself at the failpoint; return 0 if it does not reach the failpoint. */
static pid_t stop_another(struct scene *c)
{
    prs_store *s = c->stage.s;
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prs_failpoint_arm(c->stopped_at, PRS_FAIL_STOP, 1, 0);
        for (int round = 0; round < 3; round++) {
            prs_oid a, b;
            prs_draft d;
            if (try_put(s, 100, 1, &a, &ignored) < 0 || try_put(s, 90000, 1, &b, &ignored) < 0 ||
                prs_alloc(s, 64, PRS_ALLOC_ORDERED, &d, &ignored) < 0)
                _exit(0); /* the store is full */
            (void)prs_add_edge(s, &d, &a, &ignored);
            (void)prs_seal(s, &d, &ignored);
            prs_view v;
            (void)prs_pin(s, &b, &v);
            prs_unref(s, &b);
            prs_unpin(s, &b);
            (void)prs_free(s, &a, &ignored);
            prs_unref(s, &a);
            prs_unref(s, &d.id);
            prs_magazines_flush(s);
            prs_deferred_run_all(s);
        }
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    return WIFSTOPPED(status) ? pid : 0;
}

static const char *left(const prs_stats *was, const prs_stats *is)
{
    static char text[200];
    snprintf(text, sizeof text, "left or lost: %lld objects, %lld unsealed, %lld bytes, %lld edges, %lld tokens",
             (long long)(is->objects - was->objects), (long long)(is->unsealed - was->unsealed),
             (long long)(is->used - was->used), (long long)(is->edges - was->edges),
             (long long)(is->in_flight - was->in_flight));
    return text;
}

static void survive(struct scene *c, const operation *op, pid_t stopped)
{
    prs_store *s = c->stage.s;
    prs_error e = {0};
    int rc;
    if (!witness_agrees(&c->witness))
        wrong = "bytes under a view changed";
    if (stopped) { /* a call that waits for the stopped client must report it */
        prs_oid id;
        TIMED(rc = try_put(s, 500, 3, &id, &e));
        if (rc == PRS_OK && (verify(s, &id, 500, 3) != PRS_OK))
            wrong = "put and get beside a stopped client";
        if (rc == PRS_OK)
            prs_unref(s, &id);
        else if (rc != PRS_E_BUSY || e.pid != stopped)
            wrong = "put beside a stopped client";
        kill(stopped, total.kills % 2 ? SIGKILL : SIGCONT); /* kill it or let it continue */
        int status = reap_child(stopped);
        if (!(WIFEXITED(status) && WEXITSTATUS(status) == 0) && !WIFSIGNALED(status))
            wrong = "the stopped client failed when it went on";
    }
    TIMED(prs_reap_dead(s, 0));
    TIMED(prs_reap_dead(s, 0));
    TIMED(rc = prs_check(s, &e));
    if (rc != PRS_OK)
        wrong = e.what[0] ? strdup(e.what) : "prs_check failed";
    TIMED(rc = prs_flights_end(s, 0, 0, &e)); /* no process can receive the victim's messages any more */
    if (rc < 0)
        wrong = "prs_flights_end failed";
    prs_oid id, large;
    TIMED(rc = try_put(s, 500, 3, &id, &e));
    if (rc != PRS_OK || verify(s, &id, 500, 3) != PRS_OK)
        wrong = "put and get failed";
    else
        prs_unref(s, &id);
    op->restore(&c->stage);
    TIMED(rc = try_put(s, 80000, 4, &large, &e));
    if (rc != PRS_OK || verify(s, &large, 80000, 4) != PRS_OK)
        wrong = "put and get of a large object failed";
    else
        prs_unref(s, &large);
    prs_deferred_run_all(s);
    rc = prs_check(s, &e);
    if (rc != PRS_OK)
        wrong = e.what[0] ? strdup(e.what) : "prs_check failed";
    const char *links = wrong_links(s);
    if (links)
        wrong = links;
    prs_stats now = stats_of(s);
    if (now.objects != c->before.objects || now.unsealed != c->before.unsealed || now.used != c->before.used ||
        now.edges != c->before.edges || now.in_flight != c->before.in_flight)
        wrong = left(&c->before, &now);
    if (now.clients != c->before.clients) {
        static char text[1100];
        snprintf(text, sizeof text, "clients: %u before, %u now: %s", c->before.clients, now.clients, clients_of(s));
        wrong = text;
    }
    if (!witness_agrees(&c->witness))
        wrong = "bytes under a view changed by the recovery";
}

static void die_at(struct scene *c, const operation *op, trace *t, uint64_t n, bool record)
{
    prs_store *s = c->stage.s;
    wrong = NULL;
    c->stage.ended = false;
    c->stage.fillers = 0;
    if (c->state == CORPSE)
        leave_unburied(s);
    op->arrange(&c->stage);
    pid_t victim = make_victim(&c->stage, op, c->state == WARM);
    pid_t stopped = c->stopped_at ? stop_another(c) : 0;
    bool there = step_and_kill(victim, t, n, record);
    survive(c, op, stopped);
    total.kills += there && !record;
    if (wrong) {
        total.wrong++;
        fprintf(stderr, "     %s, %s%s%s, killed after %llu instructions: %s\n", op->name, state_name[c->state],
                stopped ? ", another stopped at " : "", stopped ? c->stopped_at : "", (unsigned long long)n, wrong);
        if (!record && n && getenv("PRS_TORTURE_VERBOSE")) /* print a relative address, for addr2line */
            fprintf(stderr, "     at +0x%llx\n",
                    (unsigned long long)(t->where[n - 1] - (uintptr_t)&__executable_start));
    }
}

/* ---- all deaths of one operation ------------------------------------------------------------------------------------ */

static bool torture(void)
{
    const char *text = getenv("PRS_TORTURE");
    return text && *text;
}

static void open_scene(struct scene *c, const operation *op, enum state state, const char *stopped_at)
{
    *c = (struct scene){.state = state, .stopped_at = stopped_at};
    c->stage.s = store_with((prs_options){.capacity = 2 * MIB,
                                          .max_objects = 128,
                                          .max_clients = 32,
                                          .warm_reserve = 4096,
                                          .lock_timeout = stopped_at ? 40 * PRS_MS : 5 * PRS_SECOND,
                                          .spill_dir = op->spills ? spill_dir : NULL});
    for (int i = 0; i < SEEN; i++)
        c->seen[i] = put(c->stage.s, seen_size[i], (uint64_t)i);
    c->witness = call_witness(c->stage.s, c->seen);
    prs_oid warm = put(c->stage.s, 200, 1);
    prs_token token;
    CHECK_EQ(prs_token_take(c->stage.s, &warm, PRS_TOKEN_ONCE, &token), PRS_OK); /* publishes the first links */
    prs_token_drop(c->stage.s, &warm, &token);
    prs_unref(c->stage.s, &warm);
    prs_deferred_run_all(c->stage.s);
    CHECK_STORE(c->stage.s);
    c->before = stats_of(c->stage.s);
}

static void close_scene(struct scene *c)
{
    prs_store *s = c->stage.s;
    dismiss_witness(&c->witness);
    prs_reap_dead(s, 0);
    for (int i = 0; i < SEEN; i++) {
        CHECK_EQ(verify(s, &c->seen[i], seen_size[i], (uint64_t)i), PRS_OK);
        prs_unref(s, &c->seen[i]);
    }
    CHECK_EMPTY(s);
    close_store(s);
}

/* Return whether the single steps from the landmark to this step take little time. */
static bool cheap(const trace *t, uint64_t n)
{
    return t->length <= 1500 || (n && t->landmark[n - 1] && n - t->landmark[n - 1] < 200);
}

/* Kill the victim at `points` steps, distributed over the operation, or at every step if it has fewer. */
static void walk(const operation *op, enum state state, const char *stopped_at, uint64_t points)
{
    struct scene c;
    trace t = {.limit = torture() ? UINT64_MAX : 3000};
    open_scene(&c, op, state, stopped_at);
    die_at(&c, op, &t, 0, true);
    uint64_t kills = total.kills, candidates = 0, k = 0;
    for (uint64_t n = 0; n < t.length; n++)
        candidates += cheap(&t, n);
    uint64_t stride = candidates > points ? candidates / points : 1;
    for (uint64_t n = 0; n < t.length && !total.wrong; n++)
        if (cheap(&t, n) && k++ % stride == stride / 2)
            die_at(&c, op, &t, n, false);
    if (getenv("PRS_TORTURE_VERBOSE"))
        printf("     %-28s %-20s %-16s %6llu instructions, %5llu kills\n", op->name, state_name[state],
               stopped_at ? stopped_at : "", (unsigned long long)t.length, (unsigned long long)(total.kills - kills));
    step_forget(&t);
    close_scene(&c);
}

static void prepare(void)
{
    if (SANITIZED)
        SKIP("a sanitizer's instructions are not the engine's");
    /* Survivor and victim take turns; on the same CPU, a change of turns is ten times as fast. */
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    (void)sched_setaffinity(0, sizeof one, &one);
    memset(&total, 0, sizeof total);
    char path[] = "/var/tmp/prs-step-XXXXXX";
    CHECK(mkdtemp(path));
    snprintf(spill_dir, sizeof spill_dir, "%s", path);
}

static void finish(uint64_t least)
{
    printf("     %llu kills, %llu instructions, longest call after a death %.1f ms\n", (unsigned long long)total.kills,
           (unsigned long long)total.steps, (double)total.longest / 1e6);
    CHECK_EQ(rmdir(spill_dir), 0);
    CHECK_EQ(total.wrong, 0);
    CHECK(total.kills >= least);
}

TEST(killed_after_every_instruction)
{
    prepare();
    const char *filter = getenv("PRS_TORTURE_ONLY");
    for (int i = 0; i < OPERATIONS && !total.wrong; i++)
        for (int state = 0; state < STATES && !total.wrong; state++)
            if (!(state == WARM && operations[i].cold) && (!filter || strstr(operations[i].name, filter)))
                walk(&operations[i], (enum state)state, NULL, torture() ? 1500 : 6);
    finish(filter ? 0 : torture() ? 15000 : 300);
}

TEST(killed_while_another_is_stopped)
{
    static const char *const points[] = {
        "lock_taken",  "extent_split", "slot_reserved",  "alloc_creating", "alloc_referenced", "seal_ready",
        "pin_set",     "freeing",      "held_pins",      "retire_cleared", "retired",          "give_slot_free",
        "link_filled", "edge_chained", "bury_uncounted", "free_marked",    "unref_cleared",    "unpin_cleared",
    };
    prepare();
    const char *filter = getenv("PRS_TORTURE_ONLY");
    for (size_t p = 0; p < sizeof points / sizeof *points && !total.wrong; p++)
        for (int i = (int)p % 3; i < OPERATIONS && !total.wrong; i += torture() ? 1 : 9)
            if (!operations[i].spills && !operations[i].cold && (!filter || strstr(operations[i].name, filter)))
                walk(&operations[i], WARM, points[p], torture() ? 20 : 2);
    finish(filter ? 0 : torture() ? 5000 : 50);
}

TEST_MAIN()
