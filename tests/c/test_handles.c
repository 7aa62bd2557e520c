/*
 * Tests of the lifetime of a handle: its uses, pins and windows end in every possible order, also before and after a
 * fork.
 */
#include "corpses.h"

static uint64_t status(const char *key)
{
    char line[256];
    uint64_t kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    CHECK(file);
    while (fgets(line, sizeof line, file))
        if (strncmp(line, key, strlen(key)) == 0)
            kib = strtoull(line + strlen(key) + 1, NULL, 10);
    fclose(file);
    return kib;
}

static void release(prs_store *s)
{
    CHECK(prs_end(s));
    prs_release(s);
}

TEST(a_released_handle_takes_its_addresses_along)
{
    prs_store *first = store_of(256 * MIB); /* libraries and threads allocate permanent memory at their first use */
    release(first);
    uint64_t before = status("VmSize");
    for (int i = 0; i < 50; i++) {
        prs_store *s = store_of(256 * MIB);
        put(s, 100, 1);
        put(s, 100000, 1);
        release(s);
    }
    if (!SANITIZED)
        CHECK(status("VmSize") < before + 256 * 1024); /* 50 handles map 25 GiB */
}

TEST(a_pin_keeps_a_released_handle)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    prs_oid id = put(s, MIB, 5);
    prs_view v, w;
    CHECK_EQ(prs_pin(t, &id, &v), PRS_OK);
    CHECK_EQ(prs_pin(t, &id, &w), PRS_OK);
    prs_unref(s, &id);
    release(t);
    CHECK(content_right(v.data, MIB, 5));
    prs_unpin(t, &id);
    CHECK(content_right(w.data, MIB, 5));
    prs_unpin(t, &id);
    CHECK_EQ(prs_state(s, &id), PRS_E_LOST);
    CHECK_EMPTY(s);
    release(s);
}

TEST(a_use_defers_the_release)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    prs_use(t);
    prs_use(t);
    CHECK(!prs_unuse(t));
    CHECK(!prs_end(t));
    prs_oid id = put(t, 100, 1); /* part of the call that is still in progress */
    CHECK_EQ(verify(t, &id, 100, 1), PRS_OK);
    CHECK(prs_unuse(t));
    prs_release(t);
    CHECK_CLIENTS(s, 1);
    CHECK_EMPTY(s);
    release(s);
}

static prs_draft window(prs_store *s, uint64_t size)
{
    prs_draft d;
    prs_error e = {0};
    int rc = prs_alloc(s, size, PRS_ALLOC_WINDOW, &d, &e);
    CHECK_MSG(rc == PRS_OK, "prs_alloc: %d %s", rc, e.what);
    memset(d.window, 7, size);
    return d;
}

static bool all(const prs_draft *d, uint64_t size, uint8_t value)
{
    for (uint64_t i = 0; i < size; i++)
        if (((uint8_t *)d->window)[i] != value)
            return false;
    return true;
}

TEST(windows_outlive_their_handle_in_every_state)
{
    enum { SIZE = 100000 };
    prs_error e;
    prs_store *s = store_of(16 * MIB), *t = client_of(s);
    prs_draft open = window(t, SIZE), sealed = window(t, SIZE), aborted = window(t, SIZE);
    void *at = aborted.window;
    CHECK_EQ(prs_seal(t, &sealed, &e), PRS_OK);
    prs_abort_keep_window(t, &aborted);
    aborted.window = at;
    CHECK(all(&aborted, SIZE, 0));
    memset(at, 1, SIZE); /* the memory is private now */
    release(t);
    CHECK(all(&sealed, SIZE, 7));
    prs_window_close(t, &sealed); /* the last pin: the handle is torn down */
    CHECK(all(&open, SIZE, 0));
    memset(open.window, 1, SIZE);
    prs_oid other = put(s, SIZE, 3);
    prs_window_close(t, &aborted);
    memset(open.window, 2, SIZE);
    CHECK_EQ(verify(s, &other, SIZE, 3), PRS_OK);
    prs_window_close(t, &open);
    prs_unref(s, &other);
    CHECK_EMPTY(s);
    release(s);
}

TEST(a_seal_that_fails_leaves_the_window_as_it_was)
{
    enum { SIZE = 100000 };
    prs_error e;
    prs_store *s = store_of(16 * MIB);
    prs_draft d = window(s, SIZE);
    CHECK(prs_failpoint_arm("window_revoked", PRS_FAIL_ERRNO, 1, ENOMEM));
    CHECK_EQ(prs_seal(s, &d, &e), PRS_E_NOMEM);
    CHECK(all(&d, SIZE, 7));
    memset(d.window, 8, SIZE);
    CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
    CHECK(all(&d, SIZE, 8));
    prs_window_close(s, &d);
    prs_unref(s, &d.id);
    CHECK_EMPTY(s);
    release(s);
}

/* A child inherits uses by threads that do not exist in the child, so the child closes the handle, but keeps the
 * address ranges. */
TEST(a_child_closes_what_a_thread_of_its_parent_used)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    prs_oid id = put(s, 5000, 2);
    prs_use(s);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(30);
        prs_view v;
        CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
        CHECK(prs_end(s));
        prs_release(s);
        CHECK(content_right(v.data, 5000, 2));
        prs_unpin(s, &id);
        CHECK_EQ(prs_pin(s, &id, &v), PRS_E_CLOSED);
        (void)prs_unuse(s);
        _exit(0);
    }
    int state;
    CHECK(waitpid(pid, &state, 0) == pid && state == 0);
    CHECK(!prs_unuse(s));
    CHECK_CLIENTS(s, 1);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    release(s);
}

static void *drop_pins(void *arg)
{
    prs_store *t = ((void **)arg)[0];
    const prs_oid *id = ((void **)arg)[1];
    prs_unpin(t, id);
    return NULL;
}

TEST(the_last_pin_goes_while_the_handle_is_released)
{
    prs_store *s = store_of(16 * MIB);
    prs_oid id = put(s, 5000, 2);
    for (int round = 0; round < (SANITIZED ? 20 : 200); round++) {
        prs_store *t = client_of(s);
        pthread_t thread[3];
        void *arg[2] = {t, &id};
        prs_view v;
        for (int i = 0; i < 3; i++)
            CHECK_EQ(prs_pin(t, &id, &v), PRS_OK);
        CHECK(prs_end(t));
        for (int i = 0; i < 3; i++)
            pthread_create(&thread[i], NULL, drop_pins, arg);
        prs_release(t);
        for (int i = 0; i < 3; i++)
            pthread_join(thread[i], NULL);
    }
    CHECK_CLIENTS(s, 1);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    release(s);
}

TEST_MAIN()
