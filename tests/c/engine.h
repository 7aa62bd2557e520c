/*
 * engine.h - helpers of the store engine's tests: stores, objects of known content, children.
 *
 * The seed of an object determines its bytes, so any process can verify any object. A check of a whole
 * store calls prs_check() and also recomputes the counts of links from the records.
 */
#ifndef PRS_TEST_ENGINE_H
#define PRS_TEST_ENGINE_H

#include "harness.h"
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define MIB ((uint64_t)1 << 20)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif
/* ThreadSanitizer sees only the threads of one process, so tests of several processes are skipped. */
#if defined(__SANITIZE_THREAD__)
#define SANITIZED_THREADS 1
#else
#define SANITIZED_THREADS 0
#endif

/* Under ThreadSanitizer the handles of a store share their tables (tsan/one_address.c), unless a test wants separate
 * ones. */
#if SANITIZED_THREADS
void tables_apart(bool yes);
#else
static inline void tables_apart(bool yes)
{
    (void)yes;
}
#endif

/* ---- stores ----------------------------------------------------------------------------------- */

__attribute__((unused)) static prs_store *store_with(prs_options options)
{
    prs_store *s = NULL;
    prs_error e = {0};
    if (options.capacity == 0)
        options.capacity = 64 * MIB;
    if (options.max_objects == 0)
        options.max_objects = 16384;
    int rc = prs_create(&s, &options, &e);
    CHECK_MSG(rc == PRS_OK, "prs_create: %d %s (errno %d)", rc, e.what, e.sys_errno);
    return s;
}

__attribute__((unused)) static prs_store *store_of(uint64_t capacity)
{
    return store_with((prs_options){.capacity = capacity});
}

/* Attach a second client to the same store, in this process. */
__attribute__((unused)) static prs_store *client_of(prs_store *s)
{
    prs_store *other = NULL;
    prs_error e = {0};
    int32_t pid, fd;
    uint64_t start;
    prs_locator(s, &pid, &start, &fd);
    int rc = prs_attach_pid(&other, pid, fd, prs_id(s), NULL, &e);
    CHECK_MSG(rc == PRS_OK, "prs_attach_pid: %d %s (errno %d)", rc, e.what, e.sys_errno);
    return other;
}

__attribute__((unused)) static void close_store(prs_store *s)
{
    prs_close(s);
    prs_dispose(s);
}

/* Check the counts of links and the states of slots in an idle store. Return NULL, or a description of the error. */
__attribute__((unused)) static const char *wrong_links(prs_store *s)
{
    uint32_t slots = prs_load_acquire(&s->super->published);
    uint32_t links = prs_load_acquire(&s->super->links_published);
    const char *wrong = NULL;
    uint32_t *count = calloc(slots + 1, sizeof *count);
    for (uint32_t i = 0; i < links && i < s->super->arena.link_bump; i++) {
        const prs_link *l = &s->links[i];
        if (l->kind == PRS_LINK_FREE || l->slot >= slots)
            continue;
        uint64_t word = prs_load_seqcst(&prs_slot_at(s, l->slot)->word);
        if (prs_word_generation(word) == l->generation && prs_word_state(word) != PRS_STATE_FREE &&
            prs_word_state(word) != PRS_STATE_RESERVED)
            count[l->slot]++;
    }
    for (uint32_t i = 0; i < slots && !wrong; i++) {
        prs_slot *slot = prs_slot_at(s, i);
        uint32_t state = prs_word_state(prs_load_seqcst(&slot->word));
        if (state == PRS_STATE_SEALED && prs_links_all(prs_load_seqcst(&slot->links)) != count[i])
            wrong = "a slot's count of links is wrong";
        if (state == PRS_STATE_SEALED && !prs_held(s, slot, prs_load_seqcst(&slot->word)))
            wrong = "a sealed object is held by nobody and was not freed";
        if (state == PRS_STATE_FREEING || state == PRS_STATE_SPILLING)
            wrong = "a slot was left FREEING or SPILLING";
    }
    free(count);
    return wrong;
}

/* Check an idle store: no other process may be in the middle of a call. */
#define CHECK_STORE(s)                                              \
    do {                                                            \
        prs_error e_ = {0};                                         \
        prs_deferred_run_all(s);                                    \
        int rc_ = prs_check(s, &e_);                                \
        CHECK_MSG(rc_ == PRS_OK, "prs_check: %d %s", rc_, e_.what); \
        const char *wrong_ = wrong_links(s);                        \
        CHECK_MSG(!wrong_, "%s", wrong_);                           \
    } while (0)

__attribute__((unused)) static prs_stats stats_of(prs_store *s)
{
    prs_stats stats;
    CHECK_EQ(prs_get_stats(s, &stats), PRS_OK);
    return stats;
}

/* Describe every client slot that is not free, with the evidence that decides whether its process is dead. */
__attribute__((unused)) static const char *clients_of(prs_store *s)
{
    static char text[1000];
    int at = 0;
    uint32_t high = prs_load_acquire(&s->super->client_high);
    text[0] = 0;
    for (uint32_t i = 1; i < high && i < s->super->max_clients && at < 900; i++) {
        prs_client *c = &s->clients[i];
        uint64_t state = prs_load_acquire(&c->state);
        int32_t pid = (int32_t)prs_load_acquire(&c->pid);
        if (state != PRS_CLIENT_FREE)
            at += snprintf(text + at, sizeof text - (size_t)at,
                           "%s%u%s: state %#llx, pid %d%s, namespace %s, lock byte %d", at ? "; " : "", i,
                           i == s->me ? " (this process)" : "", (unsigned long long)state, pid,
                           prs_os_process_gone(pid) ? " (gone)" : "",
                           prs_load_relaxed(&c->pid_ns) == s->pid_ns ? "equal" : "different",
                           prs_os_byte_held(s->fd_ro, PRS_CLIENT_BYTE + i));
    }
    return text;
}

#define CHECK_CLIENTS(s, expected) CHECK_MSG(stats_of(s).clients == (expected), "clients: %s", clients_of(s))

/* Check that only magazines still contain memory, and that every byte of it can be reclaimed. */
#define CHECK_EMPTY(s)                                       \
    do {                                                     \
        CHECK_STORE(s);                                      \
        prs_stats t_ = stats_of(s);                          \
        CHECK_EQ(t_.objects, 0);                             \
        CHECK_EQ(t_.unsealed, 0);                            \
        CHECK_EQ(t_.used, 0);                                \
        CHECK_EQ(t_.edges, 0);                               \
        prs_magazines_flush(s);                              \
        prs_magazines_reclaim(s);                            \
        CHECK_STORE(s);                                      \
        CHECK_EQ((s)->super->arena.used, 0);                 \
        CHECK_EQ(stats_of(s).largest_free, prs_capacity(s)); \
    } while (0)

/* ---- objects ------------------------------------------------------------------------------------- */

static inline uint8_t content_at(uint64_t seed, uint64_t i)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u + (i >> 3) * 0xbf58476d1ce4e5b9u;
    x ^= x >> 29;
    x *= 0x94d049bb133111ebu;
    return (uint8_t)(x >> (8 * (i & 7)) >> 3);
}

__attribute__((unused)) static void content(uint8_t *to, uint64_t n, uint64_t seed)
{
    for (uint64_t i = 0; i < n; i++)
        to[i] = content_at(seed, i);
}

/* Compare every byte of a small object, but only both ends and every 61st byte of a large one. */
__attribute__((unused)) static bool content_right(const uint8_t *data, uint64_t n, uint64_t seed)
{
    uint64_t step = n > 65536 ? 61 : 1;
    for (uint64_t i = 0; i < n; i += step)
        if (data[i] != content_at(seed, i))
            return false;
    return n == 0 || data[n - 1] == content_at(seed, n - 1);
}

__attribute__((unused)) static int try_put(prs_store *s, uint64_t size, uint64_t seed, prs_oid *id, prs_error *e)
{
    prs_draft d;
    int rc = prs_alloc(s, size, 0, &d, e);
    if (rc < 0)
        return rc;
    if (d.dst) {
        content(d.dst, size, seed);
    } else {
        uint8_t *bytes = malloc(size ? size : 1);
        content(bytes, size, seed);
        rc = prs_write(s, &d, 0, bytes, size, e);
        free(bytes);
        if (rc < 0) {
            prs_abort(s, &d);
            return rc;
        }
    }
    *id = d.id;
    return prs_seal(s, &d, e);
}

__attribute__((unused)) static prs_oid put(prs_store *s, uint64_t size, uint64_t seed)
{
    prs_oid id;
    prs_error e = {0};
    int rc = try_put(s, size, seed, &id, &e);
    CHECK_MSG(rc == PRS_OK, "put of %llu bytes: %d %s", (unsigned long long)size, rc, e.what);
    return id;
}

/* Pin an object, compare its bytes and unpin it. Return PRS_OK, an error of prs_pin, or 1 if the bytes are wrong. */
__attribute__((unused)) static int verify(prs_store *s, const prs_oid *id, uint64_t size, uint64_t seed)
{
    prs_view v;
    int rc = prs_pin(s, id, &v);
    for (int i = 0; i < 50 && rc == PRS_E_AGAIN; i++) { /* a process, perhaps a dead one, is spilling the object */
        prs_wait(s, id, -1);
        rc = prs_pin(s, id, &v);
    }
    if (rc < 0)
        return rc;
    rc = v.size == size && ((uintptr_t)v.data & 63) == 0 && content_right(v.data, size, seed) ? PRS_OK : 1;
    prs_unpin(s, id);
    return rc;
}

/* ---- children --------------------------------------------------------------------------------------- */

/* Make the kernel kill the child when its parent dies. SIGALRM, which no test handles, kills a child that hangs. */
__attribute__((unused)) static void child_setup(unsigned seconds)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(seconds * 10); /* `seconds` is the limit for an idle machine */
}

__attribute__((unused)) static int reap_child(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        CHECK_MSG(errno == EINTR, "waitpid: %s", strerror(errno));
    return status;
}

#define CHECK_KILLED(status, sig)                                                                                      \
    CHECK_MSG(WIFSIGNALED(status) && WTERMSIG(status) == (sig), "the child should die of signal %d: status %x", (sig), \
              (unsigned)(status))
#define CHECK_EXITED(status)                                                                            \
    CHECK_MSG(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child should exit with 0: status %x", \
              (unsigned)(status))

#endif /* PRS_TEST_ENGINE_H */
