/*
 * corpses.h - functions that make child processes die or stop at a chosen point, and check what they leave behind.
 */
#ifndef PRS_TEST_CORPSES_H
#define PRS_TEST_CORPSES_H

#include "engine.h"

/* Shared memory through which a child and its test communicate. */
struct told {
    prs_oid id[8];
    prs_token token;
    prs_atomic_u32 ready, go;
    uint64_t serial[16];
    uint32_t client;
};

__attribute__((unused)) static struct told *new_told(void)
{
    void *at = mmap(NULL, sizeof(struct told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

__attribute__((unused)) static void say(prs_atomic_u32 *flag)
{
    prs_store_release(flag, 1);
}

__attribute__((unused)) static void await(prs_atomic_u32 *flag)
{
    while (!prs_load_acquire(flag))
        prs_os_sleep(PRS_MS / 10);
}

typedef void child_work(prs_store *s, struct told *told);

/* Fork a child that runs `work`, closes the store and exits with 0. */
__attribute__((unused)) static pid_t child_of(prs_store *s, struct told *told, child_work *work)
{
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        child_setup(30);
        told->client = s->me;
        work(s, told);
        prs_close(s);
        _exit(0);
    }
    return pid;
}

/* Fork a child that kills itself during its work, and wait for it. */
__attribute__((unused)) static void dies(prs_store *s, struct told *told, child_work *work)
{
    int status = reap_child(child_of(s, told, work));
    CHECK_KILLED(status, SIGKILL);
}

/* Start a child that stops itself during its work. */
__attribute__((unused)) static pid_t stops(prs_store *s, struct told *told, child_work *work)
{
    pid_t pid = child_of(s, told, work);
    int status;
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK_MSG(WIFSTOPPED(status), "the child was to stop: status %x", (unsigned)status);
    return pid;
}

__attribute__((unused)) static void goes_on(pid_t pid)
{
    kill(pid, SIGCONT);
    int status = reap_child(pid);
    CHECK_EXITED(status);
}

__attribute__((unused)) static void is_killed(pid_t pid)
{
    kill(pid, SIGKILL);
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
}

__attribute__((unused)) static void die_locked(prs_store *s, struct told *told)
{
    (void)told;
    CHECK_EQ(prs_lock(s, PRS_SECOND, NULL), PRS_OK);
    kill(getpid(), SIGKILL);
}

/* Let a child die while it holds the store lock, then steal the lock through `s`. */
__attribute__((unused)) static int steal_with(prs_store *s, prs_error *e)
{
    struct told *told = new_told();
    dies(s, told, die_locked);
    munmap(told, sizeof *told);
    int rc = prs_lock(s, 5 * PRS_SECOND, e);
    if (rc == PRS_OK)
        prs_unlock(s);
    return rc;
}

__attribute__((unused)) static void steal(prs_store *s)
{
    prs_error e = {0};
    uint64_t before = prs_load_relaxed(&s->super->stolen);
    int rc = steal_with(s, &e);
    CHECK_MSG(rc == PRS_OK, "stealing: %d %s", rc, e.what);
    CHECK_EQ(prs_load_relaxed(&s->super->stolen), before + 1);
}

/* Put an object that refers to others. */
__attribute__((unused)) static prs_oid naming(prs_store *s, const prs_oid *inner, int n, uint64_t seed)
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

__attribute__((unused)) static void drop(prs_store *s, const prs_oid *id)
{
    prs_unref(s, id);
    prs_deferred_run_all(s);
}

/* Put an object into this slot: put others until the slot is reused, then drop the others. */
__attribute__((unused)) static prs_oid put_in_slot(prs_store *s, uint32_t slot, uint64_t size, uint64_t seed)
{
    enum { TRIES = 4096 };
    static prs_oid other[TRIES];
    int n = 0;
    prs_oid id = put(s, size, seed);
    while (id.slot != slot) {
        CHECK(n < TRIES);
        other[n++] = id;
        id = put(s, size, seed);
    }
    while (n > 0)
        prs_unref(s, &other[--n]);
    return id;
}

__attribute__((unused)) static uint32_t state_of_client(prs_store *s, uint32_t client)
{
    return (uint32_t)prs_load_acquire(&s->clients[client].state) & 0xFF;
}

/* Count the slots that are RESERVED by this client. */
__attribute__((unused)) static int reserved_by(prs_store *s, uint32_t client)
{
    int n = 0;
    for (uint32_t i = 0; i < prs_load_acquire(&s->super->published); i++) {
        uint64_t word = prs_load_seqcst(&prs_slot_at(s, i)->word);
        n += prs_word_state(word) == PRS_STATE_RESERVED && prs_word_client(word) == client;
    }
    return n;
}

/* Skip a case with several processes under ThreadSanitizer, which cannot see races between processes. */
#define SEVERAL_PROCESSES() \
    if (SANITIZED_THREADS)  \
    SKIP("nothing here for this sanitizer to see")

#endif /* PRS_TEST_CORPSES_H */
