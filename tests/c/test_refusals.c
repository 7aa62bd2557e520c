/*
 * test_refusals.c - tests of calls that must fail and change nothing: calls on closed and orphaned handles, with
 * invalid arguments, without memory, without descriptors, and under resource limits.
 */
#include "corpses.h"

#include "threads.h"
#include "spill.h"
#include <limits.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* ---- handles that are no longer clients -------------------------------------------------------------------------- */

/* Check all calls that need a client. This process has a ref or a pin on `held`, but not on `other`. */
static void refuses_all(prs_store *s, const prs_oid *held, const prs_oid *other)
{
    prs_error e = {0};
    prs_draft d;
    prs_view v;
    prs_token token = {0, 0, 0}, some = {1, 0, 1};
    prs_flight flight[4];
    prs_oid id;
    uint32_t cursor = 0;
    char text[PRS_NAME_MAX + 1];
    CHECK_EQ(prs_alloc(s, 10, 0, &d, &e), PRS_E_CLOSED);
    CHECK_EQ(prs_pin(s, other, &v), PRS_E_CLOSED);
    CHECK_EQ(prs_ref(s, other), PRS_E_CLOSED);
    CHECK_EQ(prs_free(s, other, &e), PRS_E_CLOSED);
    CHECK_EQ(prs_token_take(s, held, PRS_TOKEN_ONCE, &token), PRS_E_CLOSED);
    CHECK_EQ(token.index, 0);
    CHECK_EQ(prs_token_claim(s, other, &some), PRS_E_CLOSED);
    prs_token_drop(s, other, &some);
    CHECK_EQ(prs_flights(s, &cursor, flight, 4, &e), PRS_E_CLOSED);
    CHECK_EQ(prs_flights_end(s, 0, 0, &e), PRS_E_CLOSED);
    CHECK_EQ(prs_name_find(s, "name", 4, &id, NULL), PRS_E_CLOSED);
    CHECK_EQ(prs_name_next(s, &cursor, "", 0, text, &id, NULL), 0);
    CHECK_EQ(prs_name_use(s, "name", 4, 1, &id, NULL), PRS_E_CLOSED);
    CHECK_EQ(prs_name_count(s, "name", 4, 1, 1), PRS_E_CLOSED);
    CHECK_EQ(prs_name_unbind(s, "name", 4, NULL, NULL, &e), PRS_E_CLOSED);
    CHECK_EQ(prs_name_move(s, "name", 4, "new", 3, &e), PRS_E_CLOSED);
    CHECK_EQ(prs_check(s, &e), PRS_E_CLOSED);
    CHECK_EQ(prs_trim(s, 0), 0);
    CHECK_EQ(prs_reap_dead(s, 0), PRS_OK);
}

TEST(a_closed_handle_with_views_serves_nothing_else)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    prs_oid id = put(s, 5000, 1), other = put(s, 100, 2);
    prs_token token;
    prs_draft large, d;
    prs_view v;
    prs_stats stats;
    prs_error e = {0};
    CHECK_EQ(prs_name_bind(s, "name", 4, &id, 0, &e), PRS_OK);
    CHECK_EQ(prs_token_take(s, &id, PRS_TOKEN_ONCE, &token), PRS_OK);
    CHECK_EQ(prs_pin(t, &id, &v), PRS_OK);
    CHECK_EQ(prs_alloc(t, MIB, 0, &large, &e), PRS_OK);
    CHECK_EQ(prs_alloc(t, 100, 0, &d, &e), PRS_OK);
    prs_close(t);
    refuses_all(t, &id, &other);
    CHECK_EQ(prs_get_stats(t, &stats), PRS_E_CLOSED);
    CHECK_EQ(prs_name_bind(t, "new", 3, &id, 0, &e), PRS_E_CLOSED);
    CHECK_EQ(prs_write(t, &large, 0, &id, sizeof id, &e), PRS_E_CLOSED);
    prs_token_drop(t, &id, &token); /* no effect, because this handle no longer holds the object */
    CHECK_EQ(stats_of(s).in_flight, 1);
    CHECK(content_right(v.data, 5000, 1));
    prs_unpin(t, &id);
    /* Dropping the last view removed the mappings, so later calls find that the handle is closed. */
    CHECK_EQ(prs_lock(t, 0, &e), PRS_E_CLOSED);
    CHECK(!prs_trylock(t));
    prs_count_pull(t, 100), prs_count_failed_pull(t);
    CHECK_EQ(stats_of(s).pulls + stats_of(s).failed_pulls, 0);
    prs_tear_down(t);
    prs_dispose(t);
    prs_token_drop(s, &id, &token);
    CHECK_EQ(prs_free(s, &id, &e), PRS_OK);
    prs_unref(s, &id), prs_unref(s, &other);
    CHECK_EMPTY(s);
    close_store(s);
}

static char spill_dir[] = "/var/tmp/prs-refusals-XXXXXX";

TEST(an_orphan_only_lets_go)
{
    SEVERAL_PROCESSES();
    CHECK(mkdtemp(strcpy(spill_dir, "/var/tmp/prs-refusals-XXXXXX")));
    prs_store *s = store_with((prs_options){.capacity = 16 * MIB, .max_clients = 4, .spill_dir = spill_dir});
    prs_store *t = client_of(s); /* the second and last pin */
    prs_oid id = put(s, 5000, 1), unpinned = put(s, 300, 3), other = put(t, 100, 2);
    prs_view v;
    prs_error e = {0};
    prs_draft mine, window;
    prs_token token;
    CHECK_EQ(prs_name_bind(s, "name", 4, &id, 0, &e), PRS_OK);
    CHECK_EQ(prs_token_take(s, &id, PRS_TOKEN_ONCE, &token), PRS_OK);
    CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
    CHECK_EQ(prs_alloc(s, 200, 0, &mine, &e), PRS_OK);
    CHECK_EQ(prs_alloc(s, 8192, PRS_ALLOC_WINDOW, &window, &e), PRS_OK);
    uint32_t forks = prs_fork_count();
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(20);
        CHECK(prs_is_orphan(s) && !prs_leave(s));
        CHECK_EQ(prs_fork_count(), forks + 1);
        refuses_all(s, &id, &other);
        prs_token_drop(s, &id, &token);
        CHECK_EQ(prs_client_dead(s, s->me), false); /* the sticky holder never dies */
        CHECK_EQ(prs_ref(s, &unpinned), PRS_OK);    /* this only adds a hold to an object that is held already */
        prs_unref(s, &unpinned), prs_unref(s, &unpinned);
        CHECK_EQ(stats_of(s).largest_free, 0); /* the value is not available without the lock */
        CHECK_EQ(prs_seal(s, &mine, &e), PRS_E_INVAL);
        prs_abort(s, &mine);
        close(s->fd_rw), close(s->fd_ro), close(s->fd_lock); /* reopened, without becoming a client */
        void *map;
        size_t len;
        uint8_t *data;
        CHECK_EQ(prs_cow_open(s, &id, &v, &map, &len, &data, &e), PRS_OK);
        CHECK(content_right(data, 5000, 1));
        prs_cow_close(map, len);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            child_setup(20);
            CHECK(prs_is_orphan(s) && content_right(v.data, 5000, 1));
            prs_unpin(s, &id);
            close_store(s);
            _exit(0);
        }
        int status = reap_child(grandchild);
        CHECK_EXITED(status);
        prs_unpin(s, &id);
        close_store(s);
        _exit(0);
    }
    int status = reap_child(pid);
    CHECK_EXITED(status);
    CHECK_EQ(stats_of(s).in_flight, 1);
    CHECK_EQ(stats_of(s).unsealed, 2);
    memset(window.window, 7, 8192); /* the child's window is read-only */
    CHECK_EQ(prs_seal(s, &window, &e), PRS_OK);
    CHECK_EQ(prs_seal(s, &mine, &e), PRS_OK);
    prs_window_close(s, &window);
    CHECK_EQ(verify(t, &id, 5000, 1), PRS_OK);
    CHECK_STORE(s);
    prs_unpin(s, &id);
    close_store(t);
    close_store(s);
    CHECK_EQ(rmdir(spill_dir), 0);
}

/* ---- arguments -------------------------------------------------------------------------------------------------------- */

/* The search for a run of extents to spill must stop when it reaches the end of the data area for the second time. */
TEST(no_window_is_large_enough)
{
    SEVERAL_PROCESSES();
    CHECK(mkdtemp(strcpy(spill_dir, "/var/tmp/prs-refusals-XXXXXX")));
    prs_store *s = store_with((prs_options){.capacity = 8 * MIB, .spill_dir = spill_dir});
    prs_error e;
    prs_view v;
    prs_oid id[3];
    for (int i = 0; i < 3; i++)
        id[i] = put(s, 2 * MIB, (uint64_t)i);
    CHECK_EQ(prs_pin(s, &id[1], &v), PRS_OK);
    CHECK_EQ(prs_spill_for(s, 16 * MIB, &e), PRS_E_FULL);
    CHECK_EQ(stats_of(s).spilled, 0);
    prs_unpin(s, &id[1]);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(verify(s, &id[i], 2 * MIB, (uint64_t)i), PRS_OK);
        prs_unref(s, &id[i]);
    }
    CHECK_EMPTY(s);
    close_store(s);
    CHECK_EQ(rmdir(spill_dir), 0);
}

TEST(what_makes_no_sense_is_refused)
{
    prs_store *s = store_of(8 * MIB), *t = store_of(8 * MIB);
    prs_oid id = put(s, 1000, 1), foreign = put(t, 1000, 2), beyond = {prs_id(s), 1, 1u << 20, 1};
    prs_error e = {0};
    prs_draft d, gone;
    prs_token token;
    char name[PRS_NAME_MAX + 1];
    memset(name, 'n', sizeof name);
    CHECK_EQ(prs_name_bind(s, name, 0, &id, 0, &e), PRS_E_INVAL);
    CHECK_EQ(prs_name_bind(s, name, sizeof name, &id, 0, &e), PRS_E_INVAL);
    CHECK_EQ(prs_name_bind(s, name, PRS_NAME_MAX, &id, 0, &e), PRS_OK);
    CHECK_EQ(prs_name_bind(s, name, 5, &beyond, 0, &e), PRS_E_LOST);
    CHECK_EQ(prs_name_bind(s, name, 5, &foreign, 0, &e), PRS_E_FOREIGN);

    CHECK_EQ(prs_token_take(s, &beyond, PRS_TOKEN_ONCE, &token), PRS_E_LOST);
    CHECK_EQ(prs_token_take(s, &foreign, PRS_TOKEN_ONCE, &token), PRS_E_LOST);
    CHECK_EQ(prs_token_claim(s, &foreign, &token), PRS_E_FOREIGN);
    token = (prs_token){1u << 20, 0, 1};
    prs_token_drop(s, &id, &token);

    CHECK_EQ(prs_alloc(s, 100000, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
    prs_oid early = beyond, younger = id;
    younger.serial = d.id.serial;
    CHECK_EQ(prs_add_edge(s, &d, &early, &e), PRS_E_INVAL);
    CHECK_EQ(prs_add_edge(s, &d, &younger, &e), PRS_E_INVAL);
    CHECK_EQ(prs_add_edge(s, &d, &foreign, &e), PRS_E_INVAL);

    static const uint8_t bytes[64];
    CHECK_EQ(prs_write(s, &d, 100001, bytes, 0, &e), PRS_E_INVAL);
    CHECK_EQ(prs_write(s, &d, 99999, bytes, 2, &e), PRS_E_INVAL);
    static const struct {
        uint64_t at;
        ptrdiff_t shape[2];
        size_t item;
    } strided[] = {
        {0, {-1, 1}, 1}, {0, {PTRDIFF_MAX, 3}, 1}, {0, {2, PTRDIFF_MAX}, 8}, {100001, {1, 0}, 1}, {99999, {2, 1}, 1}};
    const ptrdiff_t strides[2] = {1, 1};
    for (size_t i = 0; i < sizeof strided / sizeof *strided; i++)
        CHECK_EQ(prs_write_strided(s, &d, strided[i].at, bytes, 2, strided[i].shape, strides, strided[i].item, &e),
                 PRS_E_INVAL);

    CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
    CHECK_EQ(prs_seal(s, &d, &e), PRS_E_INVAL);
    gone = d;
    gone.id.generation++;
    CHECK_EQ(prs_seal(s, &gone, &e), PRS_E_INVAL);
    prs_abort(s, &d); /* no effect, because the object is sealed */
    prs_abort(s, &gone);
    CHECK_EQ(prs_state(s, &d.id), PRS_OK);

    prs_spill_job job;
    prs_oid stale = d.id;
    stale.generation++;
    CHECK_EQ(prs_spill_begin(s, &beyond, &job, &e), PRS_E_AGAIN);
    CHECK_EQ(prs_spill_begin(s, &stale, &job, &e), PRS_E_AGAIN);

    CHECK(!prs_failpoint_arm("no_such_point", PRS_FAIL_KILL, 1, 0));
    CHECK_EQ(prs_client_dead(s, PRS_STICKY_CLIENT), false);
    CHECK_EQ(prs_client_dead(s, 1u << 20), false);
    CHECK_EQ(prs_client_dead(s, s->me), false);
    CHECK_EQ(prs_free(s, &id, &e), PRS_OK); /* ends the hold of the name */
    prs_unref(s, &id), prs_unref(s, &d.id), prs_unref(t, &foreign);
    CHECK_EMPTY(s);
    close_store(s);
    close_store(t);
}

/* The object is freed before it is sealed. A later seal succeeds and frees the object completely. */
TEST(what_was_freed_while_it_was_made_goes_with_its_seal)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    prs_error e = {0};
    prs_draft d;
    static const uint64_t sizes[] = {100, 300000};
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(prs_alloc(s, sizes[i], 0, &d, &e), PRS_OK);
        CHECK_EQ(prs_free(t, &d.id, &e), PRS_OK);
        CHECK_EQ(prs_free(t, &d.id, &e), PRS_OK);
        CHECK_EQ(prs_state(s, &d.id), PRS_E_FREED);
        CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
        CHECK_EQ(prs_state(s, &d.id), PRS_E_FREED);
        CHECK_EQ(stats_of(s).objects, 0);
        prs_unref(s, &d.id);
    }
    close_store(t);
    CHECK_EMPTY(s);
    close_store(s);
}

/* If this process has pinned a slot, only the id of the slot's current object is valid, and a freed object gets no new
 * views. */
TEST(old_ids_of_a_pinned_slot)
{
    prs_store *s = store_of(8 * MIB);
    prs_error e = {0};
    prs_oid old = put(s, 100, 1);
    prs_unref(s, &old);
    prs_oid id = put_in_slot(s, old.slot, 100, 2);
    prs_view v, again;
    CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
    CHECK_EQ(prs_pin(s, &old, &again), PRS_E_LOST);
    prs_unpin(s, &old);
    CHECK_EQ(prs_free(s, &id, &e), PRS_OK);
    CHECK_EQ(prs_pin(s, &id, &again), PRS_E_FREED);
    CHECK(content_right(v.data, 100, 2));
    prs_unpin(s, &id);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(windows_that_are_not_there)
{
    prs_store *s = store_of(8 * MIB);
    prs_error e = {0};
    prs_draft d[3], copy;
    for (int i = 0; i < 3; i++)
        CHECK_EQ(prs_alloc(s, i * 18000u, PRS_ALLOC_WINDOW, &d[i], &e), PRS_OK);
    uint8_t *bytes = malloc(36000);
    content(bytes, 36000, 5);
    CHECK_EQ(prs_write(s, &d[2], 0, bytes, 36000, &e), PRS_OK); /* the write goes through the window */
    CHECK_EQ(prs_seal(s, &d[0], &e), PRS_OK);                   /* the last window of the list */
    copy = d[1];
    prs_window_close(s, &copy); /* the window was unmapped before it was sealed */
    CHECK_EQ(prs_seal(s, &d[1], &e), PRS_E_INVAL);
    prs_window_close(s, &copy);
    prs_abort(s, &d[1]);
    CHECK_EQ(prs_seal(s, &d[2], &e), PRS_OK);
    CHECK_EQ(verify(s, &d[2].id, 36000, 5), PRS_OK);
    prs_window_close(s, &d[0]), prs_window_close(s, &d[2]);
    prs_unref(s, &d[0].id), prs_unref(s, &d[2].id);
    free(bytes);
    CHECK_EMPTY(s);
    close_store(s);
}

/* ---- options ------------------------------------------------------------------------------------------------------------ */

TEST(options_are_brought_into_range)
{
    prs_error e = {0};
    prs_store *s;
    char long_dir[PRS_SPILL_DIR + 10], long_path[5000];
    memset(long_dir, 'd', sizeof long_dir), memset(long_path, 'p', sizeof long_path);
    long_dir[0] = long_path[0] = '/';
    long_dir[sizeof long_dir - 1] = long_path[sizeof long_path - 1] = 0;
    strcpy(long_path + sizeof long_path - 3, "/x");
    static const struct {
        uint32_t given, clients;
    } clients[] = {
        {1, 4}, {4, 4}, {0, PRS_CLIENTS_DEFAULT}, {PRS_CLIENTS_MAX, PRS_CLIENTS_MAX}, {1u << 20, PRS_CLIENTS_MAX}};
    for (size_t i = 0; i < sizeof clients / sizeof *clients; i++) {
        s = store_with((prs_options){.max_clients = clients[i].given});
        CHECK_EQ(stats_of(s).max_clients, clients[i].clients);
        CHECK_EQ(prs_shrunk_from(s), 0);
        close_store(s);
    }
    s = store_with((prs_options){.max_objects = 1u << 30});
    CHECK_EQ(s->max_slots, 1u << 24);
    prs_oid id = put(s, 100, 1);
    CHECK_EQ(verify(s, &id, 100, 1), PRS_OK);
    close_store(s);
    const struct {
        prs_options options;
        int code;
    } refused[] = {
        {{.capacity = MIB, .spill_dir = "tmp"}, PRS_E_INVAL},
        {{.capacity = MIB, .spill_dir = long_dir}, PRS_E_INVAL},
        {{.capacity = MIB, .spill_dir = "/no-such-directory"}, PRS_E_SYS},
        {{.capacity = MIB, .path = long_path}, PRS_E_INVAL},
        {{.capacity = MIB, .path = "/no-such-directory/x"}, PRS_E_SYS},
        {{.capacity = MIB, .path = "/proc/x"}, PRS_E_FOREIGN},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        e.what[0] = 0;
        int rc = prs_create(&s, &refused[i].options, &e);
        CHECK_MSG(rc == refused[i].code && s == NULL && e.what[0], "options %zu: %d \"%s\"", i, rc, e.what);
        CHECK_EQ(prs_create(&s, &refused[i].options, NULL), rc);
    }
    if (chdir("/proc/self") == 0) { /* paths without a directory, in /proc/self and in the root */
        CHECK_EQ(prs_create(&s, &(prs_options){.capacity = MIB, .path = "x"}, &e), PRS_E_FOREIGN);
        CHECK(strstr(e.what, ". is not"));
        CHECK_EQ(chdir("/"), 0);
    }
}

/* A pid from another pid namespace proves nothing. So a process that decides liveness by pids cannot attach to a store
 * that has a client in another namespace. */
TEST(liveness_by_pid_refuses_other_namespaces)
{
    prs_store *s = store_of(8 * MIB), *t;
    prs_error e = {0};
    const prs_options by_pid = {.flags = PRS_OPEN_PID_LIVENESS};
    prs_atomic_u64 *ns = &s->clients[s->me].pid_ns;
    uint64_t own = prs_load_relaxed(ns);
    prs_store_relaxed(ns, own + 1);
    CHECK_EQ(prs_attach_pid(&t, getpid(), -1, prs_id(s), &by_pid, &e), PRS_E_FOREIGN);
    prs_store_relaxed(ns, own);
    CHECK_EQ(prs_attach_pid(&t, getpid(), -1, prs_id(s), &by_pid, &e), PRS_OK);
    close_store(t);
    close_store(s);
}

/* ---- memory ----------------------------------------------------------------------------------------------------------- */

static void say_available(const char *root, unsigned kib)
{
    char path[128];
    snprintf(path, sizeof path, "%s/proc", root);
    CHECK(mkdir(path, 0700) == 0 || errno == EEXIST);
    strcat(path, "/meminfo");
    FILE *f = fopen(path, "w");
    CHECK(f);
    fprintf(f, "MemTotal: %u kB\nMemAvailable: %u kB\n", 8u << 20, kib);
    fclose(f);
}

/* Simulates a machine without free memory: each call that needs memory must fail, report the limit and keep no
 * memory. */
TEST(without_memory_every_put_is_an_error)
{
    char root[] = "/tmp/prs-refusals-XXXXXX", path[64];
    CHECK(mkdtemp(root));
    prs_store *s = store_with((prs_options){.capacity = 32 * MIB, .max_objects = 4096, .warm_reserve = 16 * MIB});
    prs_error e = {0};
    prs_draft d;
    prs_oid id, kept = put(s, 200, 1), warm = put(s, 3 * MIB, 2);
    prs_unref(s, &warm);
    say_available(root, 1024);
    (void)prs_headroom_open_at(&s->headroom, root);
    static const struct {
        uint64_t size;
        unsigned flags;
    } asked[] = {{60000, 0}, {8 * MIB, 0}, {4 * MIB, PRS_ALLOC_WINDOW}};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        e = (prs_error){0};
        prs_oid fits[8];
        int rc, n = 0;
        if (asked[i].flags)
            rc = prs_alloc(s, asked[i].size, asked[i].flags, &d, &e);
        else /* small objects may get pages that are already backed */
            while ((rc = try_put(s, asked[i].size, 3, &fits[n], &e)) == PRS_OK && n < 7)
                n++;
        while (n > 0)
            prs_unref(s, &fits[--n]);
        CHECK_MSG(rc == PRS_E_BACKING && strstr(e.what, "/proc/meminfo"), "put %zu: %d \"%s\"", i, rc, e.what);
        CHECK(e.want > 0 && e.capacity == (uint64_t)8 << 30 && e.used > 0);
        if (asked[i].flags)
            CHECK_EQ(prs_alloc(s, asked[i].size, asked[i].flags, &d, NULL), PRS_E_BACKING);
    }
    CHECK_EQ(prs_alloc(s, 8 * MIB, 0, &d, &e), PRS_OK); /* an extent at the other end, larger than the warm memory */
    static const ptrdiff_t shape = 131072, stride = 8;
    uint8_t *bytes = calloc(8, 131072);
    CHECK_EQ(prs_write_strided(s, &d, 0, bytes, 1, &shape, &stride, 8, &e), PRS_E_BACKING);
    prs_abort(s, &d);
    prs_token token; /* the table of links cannot be backed, so the sticky holder holds `kept` */
    CHECK_EQ(prs_token_take(s, &kept, PRS_TOKEN_ONCE, &token), PRS_OK);
    CHECK(token.index == 0 && prs_load_seqcst(&prs_slot_at(s, kept.slot)->holders[0]) & 1);
    CHECK_EQ(prs_name_bind(s, "n", 1, &kept, 0, &e), PRS_E_BACKING);
    CHECK_EQ(prs_alloc(s, 10, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
    CHECK_EQ(prs_add_edge(s, &d, &kept, &e), PRS_E_BACKING);
    prs_abort(s, &d);
    prs_store *t = store_with((prs_options){.capacity = MIB});
    (void)prs_headroom_open_at(&t->headroom, root);
    CHECK_EQ(try_put(t, 10, 1, &id, &e), PRS_E_BACKING); /* there is no memory even for slots */
    say_available(root, 7u << 20);
    (void)prs_headroom_open_at(&t->headroom, root);
    (void)prs_headroom_open_at(&s->headroom, root);
    id = put(t, 10, 1);
    CHECK_EQ(verify(t, &id, 10, 1), PRS_OK);
    CHECK_EQ(try_put(s, 8 * MIB, 3, &id, &e), PRS_OK);
    CHECK_EQ(verify(s, &kept, 200, 1), PRS_OK);
    CHECK_STORE(s);
    CHECK_EQ(stats_of(s).objects, 2);
    CHECK_EQ(stats_of(s).unsealed, 0);
    free(bytes);
    close_store(t);
    close_store(s);
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    CHECK_EQ(unlink(path), 0);
    *strrchr(path, '/') = 0;
    CHECK_EQ(rmdir(path), 0);
    CHECK_EQ(rmdir(root), 0);
}

/* ---- calls that need the store lock or the tables ---------------------------------------------------------------- */

static bool no_pages; /* if this is set, no page of a table can be backed */

int madvise(void *at, size_t len, int advice)
{
    if (no_pages && advice == 23 /* MADV_POPULATE_WRITE */) {
        errno = ENOMEM;
        return -1;
    }
    return (int)syscall(SYS_madvise, at, len, advice);
}

struct asked {
    prs_store *s;
    prs_oid id, inner;
    prs_token token;
    prs_draft outer;
    prs_spill_job job;
};

/* Make call number `which`; return false if there are no more calls. Calls without an error record only report that
 * they had no effect. */
static bool ask(struct asked *a, int which, int *rc, bool *silent)
{
    prs_store *s = a->s;
    prs_error e = {0};
    prs_draft d;
    prs_oid id;
    prs_token token = {0};
    prs_flight flight[2];
    prs_oid victims[PRS_SPILL_VICTIMS];
    uint32_t cursor = 0;
    char text[PRS_NAME_MAX + 1];
    *silent = false;
    switch (which) {
    case 0:
        return *rc = prs_check(s, &e), true;
    case 1:
        return *rc = prs_alloc(s, 40000, 0, &d, &e), true;
    case 2:
        return *rc = prs_alloc(s, MIB, 0, &d, &e), true;
    case 3:
        return *rc = prs_alloc(s, 64 * MIB, 0, &d, &e), true; /* this object is created in its file */
    case 4:
        return *rc = prs_add_edge(s, &a->outer, &a->inner, &e), true;
    case 5:
        return *rc = prs_name_bind(s, "new", 3, &a->id, 0, &e), true;
    case 6:
        return *rc = prs_name_find(s, "name", 4, &id, NULL), true;
    case 7:
        return *rc = prs_flights(s, &cursor, flight, 2, &e), true;
    case 8:
        return *rc = prs_flights_end(s, 0, 0, &e), true;
    case 9:
        return *rc = prs_spill_choose(s, MIB, 0, victims, &e), true;
    case 10:
        return *rc = prs_spill_for(s, MIB, &e), true;
    case 11:
        CHECK_EQ(prs_spill_begin(s, &a->inner, &a->job, &e), PRS_OK);
        CHECK_EQ(prs_spill_append(s, &a->job, a->job.data, a->job.size, &e), PRS_OK);
        *rc = prs_spill_commit(s, &a->job, &e);
        CHECK_EQ(prs_state(s, &a->inner), PRS_OK); /* the object must still be in memory */
        return true;
    case 12:
        *silent = true;
        return *rc = prs_name_next(s, &cursor, "", 0, text, &id, NULL), true;
    case 13:
        *silent = true;
        prs_token_drop(s, &a->id, &a->token);
        return *rc = PRS_OK, true;
    case 14:
        *silent = true;
        return *rc = (int)prs_magazines_reclaim(s), true;
    case 15:
        *silent = true;
        return *rc = (int)prs_trim(s, 0), true;
    case 16:
        *silent = true;
        return *rc = (int)stats_of(s).largest_free, true;
    case 17: /* in that case the sticky holder keeps the object */
        *silent = true;
        return *rc = prs_token_take(s, &a->inner, PRS_TOKEN_ONCE, &token), true;
    default:
        return false;
    }
}

/* While another process holds the lock, no call may wait longer than the timeout, and no call may touch a page that is
 * not mapped in this process. */
TEST(without_the_lock_or_the_tables_nothing_changes)
{
    CHECK(mkdtemp(strcpy(spill_dir, "/var/tmp/prs-refusals-XXXXXX")));
    for (int unmapped = 0; unmapped < 2; unmapped++) {
        struct asked a;
        prs_error e = {0};
        prs_store *s = a.s = store_with((prs_options){
            .capacity = 16 * MIB, .warm_reserve = 4096, .lock_timeout = 10 * PRS_MS, .spill_dir = spill_dir});
        prs_store *t = client_of(s);
        a.inner = put(s, 70000, 1);
        a.id = put(s, 70000, 2);
        prs_oid warm = put(s, 2 * MIB, 3);
        CHECK_EQ(prs_name_bind(s, "name", 4, &a.id, 0, &e), PRS_OK);
        CHECK_EQ(prs_token_take(s, &a.id, PRS_TOKEN_ONCE, &a.token), PRS_OK);
        CHECK_EQ(prs_alloc(s, 100, PRS_ALLOC_ORDERED, &a.outer, &e), PRS_OK);
        prs_unref(s, &warm);
        prs_deferred_run_all(s);
        if (!unmapped)
            CHECK_EQ(prs_lock(t, PRS_SECOND, &e), PRS_OK);
        no_pages = unmapped;
        int rc;
        bool silent;
        for (int which = 0; prs_store_relaxed(&s->slots_seen, unmapped ? 0 : prs_load_relaxed(&s->super->published)),
                 ask(&a, which, &rc, &silent);
             which++)
            CHECK_MSG(rc == (silent ? PRS_OK : unmapped ? PRS_E_BACKING : PRS_E_BUSY), "call %d: %d", which, rc);
        if (unmapped)
            CHECK(!prs_edges_release(s, PRS_WAIT) && !prs_links_reap(s, 1, 1));
        no_pages = false;
        if (!unmapped)
            prs_unlock(t);
        CHECK_STORE(s);
        CHECK_EQ(stats_of(s).objects, 2);
        CHECK_EQ(stats_of(s).in_flight, 1);
        CHECK_EQ(stats_of(s).unsealed, 1);
        prs_abort(s, &a.outer);
        CHECK_EQ(verify(t, &a.id, 70000, 2), PRS_OK);
        CHECK_EQ(verify(t, &a.inner, 70000, 1), PRS_OK);
        close_store(t);
        close_store(s);
    }
    CHECK_EQ(rmdir(spill_dir), 0);
}

/* ---- limits of the process --------------------------------------------------------------------------------------------- */

static void limit(int what, rlim_t to)
{
    struct rlimit r;
    CHECK_EQ(getrlimit(what, &r), 0);
    r.rlim_cur = to < r.rlim_max ? to : r.rlim_max;
    CHECK_EQ(setrlimit(what, &r), 0);
}

/* Run this in a child, so that the limits apply only to the child. */
static void in_child(void work(void))
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(30);
        work();
        _exit(0);
    }
    int status = reap_child(pid);
    CHECK_EXITED(status);
}

static void small_files(void)
{
    prs_store *s = store_of(16 * MIB), *t;
    prs_error e = {0};
    prs_oid id;
    limit(RLIMIT_FSIZE, 4 * MIB);
    CHECK_EQ(try_put(s, 8 * MIB, 1, &id, &e), PRS_E_BACKING);
    CHECK(e.sys_errno == EFBIG && strstr(e.what, "file size limit"));
    CHECK_STORE(s);
    CHECK_EQ(prs_create(&t, &(prs_options){.capacity = 16 * MIB}, &e), PRS_E_SYS);
    CHECK_EQ(e.sys_errno, EFBIG);
    CHECK_EQ(prs_create(&t, NULL, &e), PRS_E_SYS); /* even the smallest default is too large */
    CHECK(t == NULL && e.sys_errno == EFBIG);
    limit(RLIMIT_FSIZE, 640 * MIB);
    CHECK_EQ(prs_create(&t, NULL, &e), PRS_OK);
    CHECK(prs_capacity(t) < 640 * MIB);
    CHECK(prs_shrunk_from(t) == 0 || prs_shrunk_from(t) > prs_capacity(t));
    close_store(t);
    limit(RLIMIT_FSIZE, 100 * MIB); /* this is less than the tables usually take */
    const prs_options given = {.capacity = 16 * MIB};
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(prs_create(&t, i ? &given : NULL, &e), PRS_OK);
        id = put(t, MIB, 1);
        CHECK_EQ(verify(t, &id, MIB, 1), PRS_OK);
        prs_unref(t, &id);
        CHECK_EMPTY(t);
        close_store(t);
    }
    CHECK_EQ(prs_create(&t, &(prs_options){.capacity = 16 * MIB, .max_objects = 1 << 20}, &e), PRS_E_SYS);
    CHECK(strstr(e.what, "ulimit -f"));
    close_store(s);
    limit(RLIMIT_FSIZE, RLIM_INFINITY);
}

TEST(a_limit_of_the_size_of_files_is_an_error_or_a_smaller_default)
{
    SEVERAL_PROCESSES();
    in_child(small_files);
}

static void little_address_space(void)
{
    prs_store *s = store_of(16 * MIB), *t;
    prs_error e = {0};
    limit(RLIMIT_AS, 1536 * MIB);
    CHECK_EQ(prs_create(&t, &(prs_options){.capacity = 4096 * MIB, .max_objects = 4096}, &e), PRS_E_NOMEM);
    CHECK_EQ(prs_create(&t, &(prs_options){.max_objects = 4096}, &e), PRS_OK);
    CHECK(prs_capacity(t) < 1024 * MIB);
    prs_oid id = put(t, MIB, 1);
    CHECK_EQ(verify(t, &id, MIB, 1), PRS_OK);
    close_store(t);
    limit(RLIMIT_AS, 128 * MIB);
    CHECK_EQ(prs_create(&t, &(prs_options){.capacity = 200 * MIB, .max_objects = 4096}, &e), PRS_E_NOMEM);
    limit(RLIMIT_AS, RLIM_INFINITY);
    close_store(s);
}

TEST(a_limit_of_address_space_is_an_error_or_a_smaller_default)
{
    if (SANITIZED)
        SKIP("the sanitizer needs the address space itself");
    in_child(little_address_space);
}

static int lowest_free(void)
{
    int fd = dup(0);
    CHECK(fd >= 0);
    close(fd);
    return fd;
}

/* Repeat the work with k free descriptors, for every k from 0 until it succeeds. Each failure must return an error and
 * leak no descriptor. */
static void few_descriptors_for(int attempt(prs_store *, prs_error *), prs_store *s)
{
    int base = lowest_free(), rc = -1;
    prs_error e;
    for (int k = 0; rc < 0; k++) {
        CHECK_MSG(k < 16, "never enough: %d %s", rc, e.what);
        e = (prs_error){0};
        limit(RLIMIT_NOFILE, (rlim_t)(base + k));
        rc = attempt(s, &e);
        limit(RLIMIT_NOFILE, RLIM_INFINITY);
        CHECK_MSG(rc >= 0 || e.what[0], "an error without a sentence: %d", rc);
        CHECK_EQ(lowest_free(), base);
        CHECK_MSG(k > 0 || rc < 0, "it needs none at all");
    }
}

static const char *new_path;

static int then_close(prs_store *t, int rc)
{
    if (rc == PRS_OK)
        close_store(t);
    if (rc == PRS_OK && new_path)
        unlink(new_path);
    return rc;
}

static int creates(prs_store *s, prs_error *e)
{
    (void)s;
    prs_store *t;
    return then_close(t, prs_create(&t, &(prs_options){.capacity = MIB, .max_objects = 1024, .path = new_path}, e));
}

static int creates_spilling(prs_store *s, prs_error *e)
{
    (void)s;
    prs_store *t;
    return then_close(t,
                      prs_create(&t, &(prs_options){.capacity = MIB, .max_objects = 1024, .spill_dir = spill_dir}, e));
}

static int attaches(prs_store *s, prs_error *e)
{
    prs_store *t;
    return then_close(t, prs_attach_pid(&t, getpid(), s->fd_rw, prs_id(s), NULL, e));
}

static void few_descriptors(void)
{
    prs_store *s = store_with((prs_options){.capacity = 16 * MIB, .spill_dir = spill_dir});
    prs_oid id = put(s, 5000, 1);
    char path[64];
    snprintf(path, sizeof path, "/dev/shm/pyray_ser-ctest-%d-few", (int)getpid());
    few_descriptors_for(creates, s);
    new_path = path;
    few_descriptors_for(creates, s);
    new_path = NULL;
    few_descriptors_for(creates_spilling, s);
    few_descriptors_for(attaches, s);

    /* If there was no descriptor for a child, the child is an orphan. The proof of its death needs no descriptor. */
    struct told *told = new_told();
    limit(RLIMIT_NOFILE, (rlim_t)lowest_free());
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(20);
        CHECK(prs_is_orphan(s));
        limit(RLIMIT_NOFILE, RLIM_INFINITY);
        prs_close(s);
        _exit(0);
    }
    limit(RLIMIT_NOFILE, RLIM_INFINITY);
    int status = reap_child(pid);
    CHECK_EXITED(status);
    dies(s, told, die_locked);
    limit(RLIMIT_NOFILE, (rlim_t)lowest_free());
    prs_error e = {0};
    CHECK_EQ(prs_lock(s, 20 * PRS_SECOND, &e), PRS_OK);
    prs_unlock(s);
    CHECK_EQ(prs_reap_dead(s, 0), PRS_OK);
    CHECK(prs_cpu_idle() < 1u << 16);
    limit(RLIMIT_NOFILE, RLIM_INFINITY);
    munmap(told, sizeof *told);
    prs_reap_dead(s, 0);
    CHECK_STORE(s);
    CHECK_CLIENTS(s, 1);
    CHECK_EQ(verify(s, &id, 5000, 1), PRS_OK);
    close_store(s);
}

TEST(without_descriptors_nothing_is_made_and_nothing_kept)
{
    SEVERAL_PROCESSES();
    CHECK(mkdtemp(strcpy(spill_dir, "/var/tmp/prs-refusals-XXXXXX")));
    in_child(few_descriptors);
    prs_spill_clean(spill_dir); /* the next creation would remove the files of a failed one */
    CHECK_EQ(rmdir(spill_dir), 0);
}

static char named[64];

/* If other code has closed some or all descriptors, the next call reopens them by name, unless the name belongs to
 * another file by now. */
static void closed_by_others(void)
{
    snprintf(named, sizeof named, "/dev/shm/pyray_ser-ctest-%d-closed", (int)getpid());
    for (int which = 0; which < 8; which++) {
        prs_store *s = store_with((prs_options){.capacity = 16 * MIB, .path = named});
        prs_oid id = put(s, 100, 1);
        int *fds[] = {&s->fd_rw, &s->fd_ro, &s->fd_lock};
        for (int i = 0; i < 3; i++)
            if (which >> i & 1)
                close(*fds[i]);
        prs_oid large = put(s, MIB, 2);
        CHECK_EQ(verify(s, &large, MIB, 2), PRS_OK);
        CHECK_EQ(verify(s, &id, 100, 1), PRS_OK);
        CHECK(prs_os_same(s->fd_rw, &s->file) && prs_os_same(s->fd_ro, &s->file));
        prs_unref(s, &id), prs_unref(s, &large);
        CHECK_EMPTY(s);
        unlink(named);
        close_store(s);
    }
    /* If no descriptor is free, each call fails; when some are free again, the next call reopens the store's
     * descriptors. */
    prs_store *s = store_with((prs_options){.capacity = 16 * MIB, .path = named, .warm_reserve = 4096});
    prs_error e = {0};
    prs_draft window, d;
    prs_oid id = put(s, 70000, 1), large = put(s, 2 * MIB, 2), none;
    prs_view v;
    void *map;
    size_t len;
    uint8_t *data;
    CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
    CHECK_EQ(prs_alloc(s, 5000, PRS_ALLOC_WINDOW, &window, &e), PRS_OK);
    close(s->fd_rw), close(s->fd_ro), close(s->fd_lock);
    int base = lowest_free();
    limit(RLIMIT_NOFILE, (rlim_t)base);
    CHECK_EQ(try_put(s, MIB, 3, &none, &e), PRS_E_SYS);
    CHECK_EQ(e.sys_errno, EBADF);
    CHECK_EQ(prs_alloc(s, 5000, PRS_ALLOC_WINDOW, &d, &e), PRS_E_SYS);
    CHECK_EQ(prs_seal(s, &window, &e), PRS_E_SYS);
    CHECK_EQ(prs_cow_open(s, &id, &v, &map, &len, &data, &e), PRS_E_SYS);
    int rc = PRS_OK;
    for (int n = 0; rc == PRS_OK && n < 100; n++)
        rc = try_put(s, 60000, 4, &none, &e); /* repeat until a put needs pages that are not backed */
    CHECK_EQ(rc, PRS_E_SYS);
    prs_unref(s, &large); /* now its pages cannot be returned to the kernel */
    CHECK_EQ(prs_trim(s, 0), 0);
    limit(RLIMIT_NOFILE, (rlim_t)base + 1); /* enough for one of two descriptors */
    CHECK_EQ(try_put(s, MIB, 3, &none, &e), PRS_E_SYS);
    limit(RLIMIT_NOFILE, RLIM_INFINITY);
    CHECK_EQ(prs_seal(s, &window, &e), PRS_OK);
    prs_window_close(s, &window);
    large = put(s, MIB, 5);
    CHECK_EQ(verify(s, &large, MIB, 5), PRS_OK);
    CHECK_STORE(s);
    unlink(named);
    prs_unpin(s, &id);
    close_store(s);
    CHECK_EQ(lowest_free(), base);
}

TEST(descriptors_that_others_closed)
{
    SEVERAL_PROCESSES();
    in_child(closed_by_others);
}

/* ---- the store lock ------------------------------------------------------------------------------------------------------- */

TEST(a_lock_in_nobodys_name_is_taken_and_a_busy_one_named)
{
    prs_store *s = store_of(8 * MIB);
    prs_oid id = put(s, 100, 1);
    prs_error e = {0};
    static const uint32_t nobody[] = {0, 600, 4095}; /* damage: no client has these indices */
    for (size_t i = 0; i < sizeof nobody / sizeof *nobody; i++) {
        uint32_t word = nobody[i] << 20 | 2;
        prs_store_relaxed(&s->super->lock, word);
        /* While another thread of this process holds the mutex, prs_lock does not read the lock word, so its error must
         * contain no pid. */
        CHECK(prs_mutex_lock(&s->mutex, -1));
        CHECK_EQ(prs_lock(s, 5 * PRS_MS, &e), PRS_E_BUSY);
        CHECK_EQ(e.pid, 0);
        prs_mutex_unlock(&s->mutex);
        CHECK_EQ(prs_lock(s, -1, &e), PRS_OK); /* this call has no timeout, but returns soon */
        prs_unlock(s);
        CHECK_EQ(prs_load_relaxed(&s->super->stolen), i + 1);
    }
    CHECK_STORE(s);
    CHECK_EQ(verify(s, &id, 100, 1), PRS_OK);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    close_store(s);
}

/* ---- waiting ---------------------------------------------------------------------------------------------------------------- */

TEST(a_wait_is_as_long_as_asked_and_a_slice_at_most)
{
    prs_store *s = store_of(8 * MIB);
    prs_draft d;
    prs_error e;
    CHECK_EQ(prs_alloc(s, 100, 0, &d, &e), PRS_OK);
    static const int64_t asked[] = {0, 10 * PRS_MS, 10 * PRS_SECOND, -1};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        int64_t start = prs_now();
        CHECK_EQ(prs_wait(s, &d.id, asked[i]), PRS_E_TIMEOUT);
        int64_t took = prs_now() - start, least = i < 2 ? asked[i] : 100 * PRS_MS;
        CHECK_MSG(took >= least && took < 5 * PRS_SECOND, "wait %zu took %lld ns", i, (long long)took);
        CHECK_EQ(prs_wait_epoch(s, prs_epoch(s), asked[i]), PRS_E_TIMEOUT);
    }
    prs_abort(s, &d);
    CHECK_EQ(prs_wait(s, &d.id, -1), PRS_E_LOST);
    CHECK_EMPTY(s);
    close_store(s);
}

/* Without this check the first put would crash, because mappings and the bitmap of pages assume pages of 4 KiB. */
TEST(a_kernel_with_other_pages_is_refused_before_anything_is_made)
{
    prs_store *s = store_of(16 * MIB), *t = s;
    prs_error e = {0};
    int free_before = lowest_free();
    prs_failpoint_arm("page_size", PRS_FAIL_ERRNO_ON, 1, EINVAL);
    CHECK_EQ(prs_create(&t, NULL, &e), PRS_E_INVAL);
    CHECK(t == NULL && strstr(e.what, "pages of 4096 bytes"));
    t = s;
    CHECK_EQ(prs_attach_pid(&t, getpid(), s->fd_rw, prs_id(s), NULL, &e), PRS_E_INVAL);
    CHECK(t == NULL && strstr(e.what, "pages of 4096 bytes"));
    prs_failpoint_arm("page_size", 0, 1, 0);
    CHECK_EQ(lowest_free(), free_before);
    CHECK_EMPTY(s);
    close_store(s);
}

/* An ordinary user cannot open a file whose permissions the umask has removed, but root can, so the test switches to
 * an ordinary user. */
static void with_a_closing_umask(void)
{
    char path[64];
    prs_store *s, *t;
    prs_error e = {0};
    prs_oid id;
    prs_view v;
    if (geteuid() == 0)
        CHECK(setgid(65534) == 0 && setuid(65534) == 0);
    umask(0777);
    snprintf(path, sizeof path, "/dev/shm/pyray_ser-ctest-%d-umask", (int)getpid());
    prs_options options = {.capacity = 8 * MIB, .max_objects = 1024, .path = path, .spill_dir = spill_dir};
    CHECK_MSG(prs_create(&s, &options, &e) == PRS_OK, "%s", e.what);
    CHECK_MSG(prs_attach_path(&t, path, NULL, &e) == PRS_OK, "%s", e.what);
    CHECK_EQ(unlink(path), 0);
    prs_oid kept = put(s, 6 * MIB, 1);
    id = put(s, 6 * MIB, 2); /* the other object is in a file now */
    CHECK_EQ(prs_pin(t, &kept, &v), PRS_OK);
    CHECK(content_right(v.data, 6 * MIB, 1));
    prs_unpin(t, &kept);
    prs_unref(s, &kept), prs_unref(s, &id);
    close_store(t);
    close_store(s);
}

TEST(a_umask_takes_nothing_from_the_files_of_a_store)
{
    SEVERAL_PROCESSES();
    CHECK(mkdtemp(strcpy(spill_dir, "/var/tmp/prs-refusals-XXXXXX")));
    CHECK_EQ(chmod(spill_dir, 0777), 0);
    in_child(with_a_closing_umask);
    CHECK_EQ(rmdir(spill_dir), 0);
}

TEST_MAIN()
