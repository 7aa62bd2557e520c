/*
 * Tests in which each system call of the engine fails.
 *
 * Functions that fail on request replace the system calls of the engine: first the first call of a driver fails, then
 * the second, and so on, until the driver ends without a failure. Each case runs in a separate process. The engine's
 * function may then fail with a code and a message, but must not crash, hang, lose an object or leak a resource. There
 * are four scenarios: the process is alone; another process puts and frees all the time; the process recovers after a
 * client has died with the store lock; the process forks, with failures in the parent or in the child.
 *
 * With PRS_TORTURE=1 every error is injected at every call, otherwise only one error, and in two of the scenarios
 * only at every fifth call.
 */
#include "engine.h"

#include <stdarg.h>
#include <sys/syscall.h>

/* ---- replacements of system calls ------------------------------------------------------------------------------ */

static struct {
    int countdown, error, hits;
} inject;

#if !SANITIZED
static bool fails(void)
{
    if (inject.countdown == 0 || --inject.countdown)
        return false;
    inject.hits++;
    errno = inject.error;
    return true;
}

int open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(args, mode_t) : 0;
    va_end(args);
    return fails() ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int openat(int at, const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(args, mode_t) : 0;
    va_end(args);
    return fails() ? -1 : (int)syscall(SYS_openat, at, path, flags, mode);
}

void *mmap(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
    return fails() ? MAP_FAILED : (void *)syscall(SYS_mmap, at, len, prot, flags, fd, off);
}

int madvise(void *at, size_t len, int advice)
{
    return fails() ? -1 : (int)syscall(SYS_madvise, at, len, advice);
}

int ftruncate(int fd, off_t len)
{
    return fails() ? -1 : (int)syscall(SYS_ftruncate, fd, len);
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
    return fails() ? -1 : (int)syscall(SYS_fallocate, fd, mode, off, len);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t off)
{
    return fails() ? -1 : syscall(SYS_pwrite64, fd, data, n, off);
}

ssize_t pread(int fd, void *data, size_t n, off_t off)
{
    return fails() ? -1 : syscall(SYS_pread64, fd, data, n, off);
}

int memfd_create(const char *name, unsigned flags)
{
    return fails() ? -1 : (int)syscall(SYS_memfd_create, name, flags);
}

int fcntl(int fd, int command, ...)
{
    va_list args;
    va_start(args, command);
    void *arg = va_arg(args, void *);
    va_end(args);
    return fails() ? -1 : (int)syscall(SYS_fcntl, fd, command, arg);
}
#endif

static void arm(int countdown, int error)
{
    inject.countdown = countdown;
    inject.error = error;
}

static void disarm(void)
{
    inject.countdown = 0;
}

/* ---- the store and its drivers -------------------------------------------------------------------------------------- */

enum { KEPT = 4 };
static const uint64_t kept_size[KEPT] = {64, 1000, 40000, 300 * 1024};

struct scene {
    prs_store *s;
    prs_oid kept[KEPT];
    prs_view view[KEPT];
    char *spill_dir;
    int countdown, error;
};

/* Check that a failure has a code and a message. */
static void told(int rc, const prs_error *e)
{
    CHECK(rc >= PRS_E_EXISTS && rc < 0);
    CHECK_MSG(!e || e->what[0], "an error without a word: %d", rc);
}

static bool put_or_told(prs_store *s, uint64_t size, prs_oid *id)
{
    prs_error e = {0};
    uint64_t start = test_now_ns();
    int rc = try_put(s, size, 5, id, &e);
    CHECK(test_now_ns() - start < 1500000000u);
    if (rc < 0)
        told(rc, &e);
    return rc == PRS_OK;
}

static void puts_of(struct scene *c, uint64_t size, int count)
{
    prs_oid id[40];
    bool there[40];
    for (int i = 0; i < count; i++)
        there[i] = put_or_told(c->s, size, &id[i]);
    for (int i = 0; i < count; i++) {
        if (!there[i])
            continue;
        int rc = verify(c->s, &id[i], size, 5);
        CHECK(rc <= 0);
        prs_unref(c->s, &id[i]);
    }
    prs_deferred_run_all(c->s);
}

static void small(struct scene *c)
{
    puts_of(c, 100, 40);
    puts_of(c, 3000, 30);
    puts_of(c, 60000, 10);
}

static void large(struct scene *c)
{
    puts_of(c, 400000, 6);
    puts_of(c, 3 * MIB, 2);
    prs_trim(c->s, 0);
}

static void windows(struct scene *c)
{
    for (int i = 0; i < 3; i++) {
        prs_draft d;
        prs_error e = {0};
        int rc = prs_alloc(c->s, 300000, PRS_ALLOC_WINDOW, &d, &e);
        if (rc < 0) {
            told(rc, &e);
            continue;
        }
        memset(d.window, 3, 300000);
        rc = prs_seal(c->s, &d, &e);
        if (rc < 0) {
            told(rc, &e);
            prs_abort(c->s, &d);
            continue;
        }
        prs_view v;
        void *map;
        size_t len;
        uint8_t *data;
        if (prs_pin(c->s, &d.id, &v) == PRS_OK) {
            if ((rc = prs_cow_open(c->s, &d.id, &v, &map, &len, &data, &e)) == PRS_OK) {
                CHECK_EQ(data[299999], 3);
                data[0] = 4;
                prs_cow_close(map, len);
            } else {
                told(rc, &e);
            }
            CHECK_EQ(v.data[0], 3);
            prs_unpin(c->s, &d.id);
        }
        prs_window_close(c->s, &d);
        prs_unref(c->s, &d.id);
    }
}

static void spill(struct scene *c)
{
    puts_of(c, MIB, 30); /* the store has 12 MiB; the objects are verified while most of them are in files */
    puts_of(c, 14 * MIB, 1);
}

static void links(struct scene *c)
{
    prs_oid id;
    if (!put_or_told(c->s, 100, &id))
        return;
    prs_token token;
    prs_error e = {0};
    (void)prs_token_take(c->s, &id, PRS_TOKEN_ONCE, &token);
    prs_token_drop(c->s, &id, &token);
    int rc = prs_name_bind(c->s, "n", 1, &id, 0, &e);
    if (rc < 0)
        told(rc, &e);
    (void)prs_free(c->s, &id, &e);
    prs_unref(c->s, &id);
    prs_deferred_run_all(c->s);
}

static void come_and_go(struct scene *c)
{
    for (int i = 0; i < 2; i++) {
        prs_store *t = NULL;
        prs_error e = {0};
        int32_t pid, fd;
        uint64_t start;
        prs_locator(c->s, &pid, &start, &fd);
        int rc = prs_attach_pid(&t, pid, fd, prs_id(c->s), NULL, &e);
        if (rc < 0) {
            told(rc, &e);
            CHECK(!t);
            continue;
        }
        prs_oid id;
        if (put_or_told(t, 100, &id))
            prs_unref(t, &id);
        close_store(t);
    }
}

static void create(struct scene *c)
{
    prs_store *t = NULL;
    prs_error e = {0};
    int rc = prs_create(&t, &(prs_options){.capacity = 8 * MIB, .spill_dir = c->spill_dir}, &e);
    if (rc < 0) {
        told(rc, &e);
        CHECK(!t);
        return;
    }
    prs_oid id;
    (void)put_or_told(t, 100, &id);
    close_store(t);
}

static void look(struct scene *c)
{
    (void)prs_reap_dead(c->s, 0);
    prs_stats stats;
    (void)prs_get_stats(c->s, &stats);
    prs_error e = {0};
    int rc = prs_check(c->s, &e);
    if (rc < 0)
        told(rc, &e);
}

/* Both processes continue after a fork; a child without a client slot must report that it has none. */
static void forks(struct scene *c)
{
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(20);
        prs_oid id;
        if (prs_is_orphan(c->s)) {
            CHECK(content_right(c->view[3].data, kept_size[3], 3));
            _exit(0);
        }
        if (put_or_told(c->s, 5000, &id))
            prs_unref(c->s, &id);
        for (int i = 0; i < KEPT; i++)
            CHECK(verify(c->s, &c->kept[i], kept_size[i], (uint64_t)i) <= 0);
        prs_close(c->s);
        _exit(0);
    }
    int status = reap_child(pid);
    CHECK_EXITED(status);
    puts_of(c, 100, 3);
}

static void forks_then_fails(struct scene *c) /* the call fails in the child */
{
    disarm();
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(20);
        arm(c->countdown, c->error);
        puts_of(c, 5000, 3);
        puts_of(c, 400000, 2);
        (void)prs_reap_dead(c->s, 0);
        bool hit = inject.hits;
        disarm();
        prs_close(c->s);
        _exit(hit ? 0 : 7);
    }
    int status = reap_child(pid);
    CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 7));
    inject.hits = WEXITSTATUS(status) == 0;
}

static const struct driver {
    const char *name;
    void (*drive)(struct scene *);
    bool spills;
} drivers[] = {
    {"small", small, false},
    {"large", large, false},
    {"windows", windows, false},
    {"links", links, false},
    {"come and go", come_and_go, false},
    {"create", create, false},
    {"look", look, false},
    {"spill", spill, true},
    {"create, spilling", create, true},
    {"fork", forks, false},
    {"fork, child", forks_then_fails, false},
};
enum { DRIVERS = sizeof drivers / sizeof *drivers };

/* ---- cases ------------------------------------------------------------------------------------------------------------ */

enum scenario { ALONE, CONTENDED, CORPSE };

static char spill_dir[] = "/var/tmp/prs-errors-XXXXXX";

static void die_with_the_lock(prs_store *s)
{
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(10);
        prs_draft d;
        prs_error e;
        put(s, 500, 1);
        prs_failpoint_arm("extent_split", PRS_FAIL_KILL, 1, 0);
        (void)prs_alloc(s, 2 * MIB, 0, &d, &e);
        _exit(1);
    }
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
}

static int contend(prs_store *s, const prs_atomic_u32 *stop)
{
    for (uint64_t n = 0; !prs_load_acquire(stop); n++) {
        prs_oid id;
        prs_error e = {0};
        uint64_t size = n % 4 ? 200 : 200000;
        if (try_put(s, size, n, &id, &e) != PRS_OK)
            continue;
        if (verify(s, &id, size, n) > 0)
            return 20;
        prs_unref(s, &id);
    }
    prs_close(s);
    return 0;
}

/* Return whether a call failed. */
static bool play(const struct driver *d, enum scenario scenario, int countdown, int error)
{
    struct scene c = {.spill_dir = d->spills ? spill_dir : NULL, .countdown = countdown, .error = error};
    c.s = store_with(
        (prs_options){.capacity = 12 * MIB, .max_objects = 4096, .warm_reserve = 4096, .spill_dir = c.spill_dir});
    for (int i = 0; i < KEPT; i++) {
        c.kept[i] = put(c.s, kept_size[i], (uint64_t)i);
        CHECK_EQ(prs_pin(c.s, &c.kept[i], &c.view[i]), PRS_OK);
    }
    prs_atomic_u32 *stop = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t other = -1;
    if (scenario == CONTENDED && (other = fork()) == 0) {
        child_setup(60);
        _exit(contend(c.s, stop));
    }
    if (scenario == CORPSE)
        die_with_the_lock(c.s);
    arm(countdown, error);
    d->drive(&c);
    bool hit = inject.hits;
    disarm();
    if (other > 0) {
        prs_store_release(stop, 1);
        int status = reap_child(other);
        CHECK_EXITED(status);
    }
    for (int i = 0; i < KEPT; i++) {
        CHECK(content_right(c.view[i].data, kept_size[i], (uint64_t)i));
        CHECK_EQ(verify(c.s, &c.kept[i], kept_size[i], (uint64_t)i), PRS_OK);
    }
    prs_reap_dead(c.s, 0);
    CHECK_STORE(c.s);
    puts_of(&c, 2000, 3);
    puts_of(&c, 500000, 2);
    CHECK_EQ(stats_of(c.s).objects, KEPT);
    /* If a fork could not give the child a client slot, the sticky holder keeps the objects until the end of the
     * store. */
    bool orphaned = stats_of(c.s).orphaned != 0;
    CHECK(!orphaned || d->drive == forks || d->drive == links);
    for (int i = 0; i < KEPT; i++) {
        prs_unpin(c.s, &c.kept[i]);
        prs_unref(c.s, &c.kept[i]);
    }
    if (orphaned)
        CHECK_STORE(c.s);
    else
        CHECK_EMPTY(c.s);
    close_store(c.s);
    return hit;
}

static void run(enum scenario scenario)
{
    static const int errors[] = {ENOMEM, ENOSPC, EMFILE, EIO};
    int cases = 0, failed = 0;
    const char *torture = getenv("PRS_TORTURE"); /* inject all errors at all calls, or one error at some calls */
    bool all = torture && *torture;
    int stride = all || scenario == ALONE ? 1 : 5;
    if (SANITIZED)
        SKIP("the sanitizer makes these calls itself");
    char *made = mkdtemp(strcpy(spill_dir, "/var/tmp/prs-errors-XXXXXX"));
    CHECK(made);
    for (int d = 0; d < DRIVERS; d++)
        for (size_t e = 0; e < (all ? sizeof errors / sizeof *errors : 1); e++) {
            bool hit = true;
            for (int n = 1 + d % stride; hit && n <= 60; n += stride) {
                fflush(NULL);
                pid_t pid = fork();
                if (pid == 0) {
                    child_setup(30);
                    _exit(play(&drivers[d], scenario, n, errors[e]) ? 0 : 7);
                }
                int status = reap_child(pid);
                hit = WIFEXITED(status) && WEXITSTATUS(status) == 0;
                cases += hit;
                if (!hit && !(WIFEXITED(status) && WEXITSTATUS(status) == 7)) {
                    fprintf(stderr, "     %s, call %d, %s: status %x\n", drivers[d].name, n, strerror(errors[e]),
                            status);
                    failed++;
                    hit = true;
                    if (failed > 20)
                        break;
                }
            }
        }
    printf("     %d calls failed\n", cases);
    CHECK_EQ(rmdir(spill_dir), 0);
    CHECK_EQ(failed, 0);
    CHECK(cases > 40);
}

TEST(failing_alone)
{
    run(ALONE);
}

TEST(failing_during_recovery)
{
    run(CORPSE);
}

TEST(failing_beside_a_busy_client)
{
    run(CONTENDED);
}

TEST_MAIN()
