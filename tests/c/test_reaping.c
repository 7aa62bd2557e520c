/*
 * Tests with constructed clients, reapers, abandoned locks and forks. They check which clients count as dead, and what
 * a reaper takes over.
 */
#include "corpses.h"
#include <sys/syscall.h>

/* ---- reaping ----------------------------------------------------------------------------------------------------- */

static void put_and_die(prs_store *s, struct told *told)
{
    told->id[0] = put(s, 100, 1);
    prs_oid dropped = put(s, 100, 2);
    prs_unref(s, &dropped);
    kill(getpid(), SIGKILL);
}

TEST(reserves_of_the_dead_are_found_by_a_look)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    dies(s, told, put_and_die);
    CHECK(reserved_by(s, told->client) > 0);
    prs_reap_dead(s, 0);
    CHECK_EQ(reserved_by(s, told->client), 0);
    CHECK(prs_state(s, &told->id[0]) < 0);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

TEST(client_slots_come_back_all_in_one_look)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    pid_t pid[3];
    for (int i = 0; i < 3; i++)
        pid[i] = child_of(s, told, put_and_die);
    for (int i = 0; i < 3; i++) {
        int status = reap_child(pid[i]);
        CHECK_KILLED(status, SIGKILL);
    }
    prs_reap_dead(s, 0);
    for (uint32_t i = 2; i < 6; i++)
        CHECK_EQ(state_of_client(s, i), PRS_CLIENT_FREE);
    prs_store *t = client_of(s);
    CHECK_EQ(t->me, 2);
    CHECK(prs_load_relaxed(&s->super->client_high) > t->me);
    close_store(t);
    CHECK_EQ(state_of_client(s, 2), PRS_CLIENT_FREE);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

/* Use more clients than one holder word has bits. */
TEST(clients_beyond_the_first_word_are_reaped_like_others)
{
    SEVERAL_PROCESSES();
    enum { N = 65 };
    prs_store *s = store_of(4 * MIB), *t[N];
    struct told *told = new_told();
    for (int i = 0; i < N; i++)
        t[i] = client_of(s);
    CHECK(t[N - 1]->me >= 64);
    prs_oid mine = put(s, 100, 7);
    CHECK_EQ(prs_ref(t[N - 1], &mine), PRS_OK);
    dies(t[N - 1], told, put_and_die);
    prs_reap_dead(s, 0);
    CHECK(prs_state(s, &told->id[0]) < 0);
    prs_unref(s, &mine);
    CHECK_EQ(prs_state(s, &mine), PRS_OK); /* t[N - 1] still holds the object */
    prs_unref(t[N - 1], &mine);
    CHECK(prs_state(s, &mine) < 0);
    for (int i = 0; i < N; i++)
        close_store(t[i]);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

static void stop_reaping(prs_store *s, struct told *told)
{
    say(&told->ready);
    await(&told->go);
    prs_failpoint_arm("reap_slot", PRS_FAIL_STOP, 1, 0);
    prs_reap_dead(s, 0);
}

/* A stopped reaper keeps its task; another client takes it over only if the reaper is dead. */
TEST(a_stopped_reaper_keeps_its_work_and_a_dead_one_is_replaced)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told(), *victim = new_told();
    pid_t reaper = child_of(s, told, stop_reaping);
    await(&told->ready);
    dies(s, victim, put_and_die);
    say(&told->go);
    int status;
    CHECK_EQ(waitpid(reaper, &status, WUNTRACED), reaper);
    CHECK(WIFSTOPPED(status));
    uint64_t word = prs_load_acquire(&s->clients[victim->client].state);
    CHECK_EQ(word & 0xFF, PRS_CLIENT_REAPING);
    CHECK_EQ(word >> 8 & 0xFFFF, told->client);
    prs_reap_dead(s, 0);
    CHECK_EQ(prs_load_acquire(&s->clients[victim->client].state), word);
    is_killed(reaper);
    prs_reap_dead(s, 0);
    CHECK_EQ(state_of_client(s, victim->client), PRS_CLIENT_FREE);
    CHECK(prs_state(s, &victim->id[0]) < 0);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
    munmap(victim, sizeof *victim);
}

/* The reaper died, and its client slot belongs to another client, which does not continue the reaping. */
TEST(a_reaper_that_dies_and_is_succeeded_is_replaced)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told(), *victim = new_told();
    pid_t reaper = child_of(s, told, stop_reaping);
    await(&told->ready);
    dies(s, victim, put_and_die);
    say(&told->go);
    int status;
    CHECK_EQ(waitpid(reaper, &status, WUNTRACED), reaper);
    is_killed(reaper);
    uint64_t state;
    CHECK(prs_client_proven_dead(s, told->client, &state));
    CHECK_EQ(prs_reap(s, told->client, state), PRS_OK);
    prs_store *successor = client_of(s);
    CHECK_EQ(successor->me, told->client);
    CHECK_EQ(state_of_client(s, victim->client), PRS_CLIENT_REAPING);
    prs_reap_dead(s, 0);
    CHECK_EQ(state_of_client(s, victim->client), PRS_CLIENT_FREE);
    close_store(successor);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
    munmap(victim, sizeof *victim);
}

TEST(the_creator_is_a_client_like_others)
{
    SEVERAL_PROCESSES();
    char path[64];
    prs_error e;
    struct told *told = new_told();
    snprintf(path, sizeof path, "/dev/shm/prs-reaping-%d", (int)getpid());
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(30);
        prs_store *mine = store_with((prs_options){.path = path, .capacity = 16 * MIB});
        told->client = mine->me;
        say(&told->ready);
        await(&told->go);
        put_and_die(mine, told);
    }
    prs_store *s;
    await(&told->ready);
    CHECK_EQ(prs_attach_path(&s, path, NULL, &e), PRS_OK);
    CHECK_EQ(unlink(path), 0);
    say(&told->go);
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
    CHECK_EQ(told->client, 1);
    prs_reap_dead(s, 0);
    CHECK_EQ(state_of_client(s, 1), PRS_CLIENT_FREE);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

static void draft_and_die(prs_store *s, struct told *told)
{
    prs_draft d;
    prs_error e;
    CHECK_EQ(prs_alloc(s, 100, 0, &d, &e), PRS_OK);
    told->id[0] = d.id;
    say(&told->ready);
    await(&told->go);
    kill(getpid(), SIGKILL);
}

/* A client holds the object and waits for the seal, but the creator died before sealing the object, so the object is
 * lost. */
TEST(drafts_of_the_dead_become_nothing)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    pid_t pid = child_of(s, told, draft_and_die);
    prs_view v;
    await(&told->ready);
    CHECK_EQ(prs_ref(s, &told->id[0]), PRS_OK);
    CHECK_EQ(prs_state(s, &told->id[0]), PRS_E_AGAIN);
    say(&told->go);
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
    prs_reap_dead(s, 0);
    CHECK(prs_state(s, &told->id[0]) < 0 && prs_state(s, &told->id[0]) != PRS_E_AGAIN);
    CHECK(prs_pin(s, &told->id[0], &v) < 0);
    prs_unref(s, &told->id[0]);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

static void attach_and_die(prs_store *s, struct told *told)
{
    CHECK(prs_is_orphan(s)); /* there is no slot for a forked child */
    prs_failpoint_arm("retired", PRS_FAIL_KILL, 1, 0);
    (void)client_of(s);
    (void)told;
}

/* If all client slots are taken, an attaching process cleans up as the janitor. Whether this process dies or not, no
 * resource of the janitor may be left afterwards. */
TEST(a_janitor_leaves_nothing_in_its_name)
{
    SEVERAL_PROCESSES();
    for (int dead_before = 0; dead_before < 2; dead_before++) {
        prs_store *s = store_with((prs_options){.capacity = 16 * MIB, .max_clients = 4});
        struct told *told = new_told(), *none = new_told();
        const uint32_t janitor = 3;
        dies(s, told, put_and_die);
        CHECK_EQ(told->client, 2);
        if (dead_before) {
            dies(s, none, attach_and_die);
            CHECK(reserved_by(s, janitor) > 0);
        }
        prs_store *t = client_of(s);
        CHECK_EQ(t->me, 2);
        CHECK_EQ(reserved_by(s, janitor) + reserved_by(s, 2), 0);
        CHECK_EQ(state_of_client(s, janitor), PRS_CLIENT_FREE);
        CHECK(prs_state(s, &told->id[0]) < 0);
        close_store(t);
        CHECK_EMPTY(s);
        close_store(s);
        munmap(told, sizeof *told);
        munmap(none, sizeof *none);
    }
}

/* ---- proof of death -------------------------------------------------------------------------------------------------- */

static void live_on(prs_store *s, struct told *told)
{
    say(&told->ready);
    await(&told->go);
    (void)s;
}

/* If a client's pid namespace differs from ours or is unknown, its pid has no meaning here, and only its lock byte
 * shows whether it is dead. */
TEST(pids_of_other_namespaces_prove_nothing)
{
    SEVERAL_PROCESSES();
    for (int unknown = 0; unknown < 3; unknown++) {
        prs_store *s = store_of(16 * MIB);
        struct told *told = new_told();
        pid_t pid = child_of(s, told, live_on);
        await(&told->ready);
        prs_client *c = &s->clients[told->client];
        prs_store_relaxed(&c->pid_ns, unknown ? 0 : s->pid_ns + 1);
        if (unknown == 2)
            s->pid_ns = 0;                               /* two unknown namespaces do not count as equal */
        prs_store_relaxed(&c->pid, (uint32_t)INT32_MAX); /* no process here has this pid */
        CHECK(!prs_client_dead(s, told->client));
        is_killed(pid);
        CHECK(prs_client_dead(s, told->client));
        prs_reap_dead(s, 0);
        CHECK_EQ(state_of_client(s, told->client), PRS_CLIENT_FREE);
        CHECK_EMPTY(s);
        close_store(s);
        munmap(told, sizeof *told);
    }
}

/* The pid is damaged. kill() would interpret such numbers as process groups or as all processes. */
TEST(numbers_that_no_process_has_prove_nothing)
{
    SEVERAL_PROCESSES();
    static const int32_t none[] = {0, -1, INT32_MIN};
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    pid_t pid = child_of(s, told, live_on);
    await(&told->ready);
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        prs_store_relaxed(&s->clients[told->client].pid, (uint32_t)none[i]);
        CHECK(!prs_client_dead(s, told->client));
    }
    is_killed(pid);
    CHECK(prs_client_dead(s, told->client));
    prs_reap_dead(s, 0);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

/* Another process has the dead client's pid by now. The client must still count as dead. */
TEST(a_pid_that_is_used_again_is_no_life)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    dies(s, told, put_and_die);
    prs_store_relaxed(&s->clients[told->client].pid, (uint32_t)getpid());
    CHECK(prs_client_dead(s, told->client));
    prs_reap_dead(s, 0);
    CHECK(prs_state(s, &told->id[0]) < 0);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

/* Without a descriptor we cannot test the lock bytes, so only a missing pid proves a death. */
TEST(an_observer_without_descriptors_knows_nothing_of_bytes)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB), *t = client_of(s);
    struct told *told = new_told();
    dies(s, told, put_and_die);
    uint32_t ended = (uint32_t)prs_load_relaxed(&s->clients[told->client].pid);
    prs_store_relaxed(&s->clients[told->client].pid, (uint32_t)getppid());
    int fd = t->fd_ro;
    t->fd_ro = -1;
    CHECK(!prs_client_dead(t, told->client));
    prs_store_relaxed(&s->clients[told->client].pid, ended);
    CHECK(prs_client_dead(t, told->client));
    t->fd_ro = fd;
    prs_reap_dead(s, 0);
    close_store(t);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

static void close_all(prs_store *s, struct told *told)
{
    told->id[0] = put(s, 100, 1);
    for (int fd = 3; fd < 1024; fd++)
        close(fd);
    say(&told->ready);
    await(&told->go);
    CHECK_EQ(verify(s, &told->id[0], 100, 1), PRS_OK);
    kill(getpid(), SIGKILL);
}

/* A starting daemon closes all descriptors, but keeps its mappings, and a mapping keeps the lock. */
TEST(closed_descriptors_are_no_death)
{
    SEVERAL_PROCESSES();
    for (int elsewhere = 0; elsewhere < 2; elsewhere++) {
        prs_store *s = store_of(16 * MIB);
        struct told *told = new_told();
        pid_t pid = child_of(s, told, close_all);
        await(&told->ready);
        if (elsewhere)
            prs_store_relaxed(&s->clients[told->client].pid_ns, s->pid_ns + 1);
        CHECK_EQ(prs_os_byte_held(s->fd_ro, PRS_CLIENT_BYTE + told->client), 1);
        prs_reap_dead(s, 0);
        prs_reap_dead(s, 0);
        CHECK_EQ(prs_state(s, &told->id[0]), PRS_OK);
        say(&told->go);
        int status = reap_child(pid);
        CHECK_KILLED(status, SIGKILL);
        prs_reap_dead(s, 0);
        CHECK(prs_state(s, &told->id[0]) < 0);
        CHECK_EMPTY(s);
        close_store(s);
        munmap(told, sizeof *told);
    }
}

/* A child created by a raw system call, without the fork handlers, has neither a lock nor a client slot. */
static void bear_unheard(prs_store *s, struct told *told)
{
    told->id[0] = put(s, 100, 1);
    if (syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) == 0) {
        close(s->fd_lock);
        say(&told->ready);
        await(&told->go);
        _exit(0);
    }
    await(&told->ready);
    kill(getpid(), SIGKILL);
}

TEST(a_child_made_by_a_raw_system_call_keeps_nobody_alive)
{
    SEVERAL_PROCESSES();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    dies(s, told, bear_unheard);
    CHECK_EQ(prs_os_byte_held(s->fd_ro, PRS_CLIENT_BYTE + told->client), 0);
    CHECK(prs_client_dead(s, told->client));
    prs_reap_dead(s, 0);
    say(&told->go);
    int status = reap_child(-1);
    CHECK_EXITED(status);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
    prctl(PR_SET_CHILD_SUBREAPER, 0);
}

/* ---- children that share an open file description ----------------------------------------------------------------------- */

static void bear_and_live(prs_store *s, struct told *told)
{
    say(&told->ready);
    await(&told->go);
    put(s, 100, 1);
}

/* After setuid the file cannot be opened again; an injected fault simulates that. The child is a client until it
 * dies, even if no process waits for it. */
TEST(children_without_an_own_description_are_clients)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB), *t = client_of(s);
    enum { LEAVES, KILLED, ZOMBIE, ENDS };
    for (int end = 0; end < ENDS; end++) {
        struct told *told = new_told();
        prs_oid id = put(s, 100, 7);
        prs_failpoint_arm("fork_reopened", PRS_FAIL_ERRNO_ON, 1, EACCES); /* reopening fails for both handles */
        pid_t pid = child_of(s, told, bear_and_live);
        prs_failpoint_arm("fork_reopened", 0, 1, 0);
        await(&told->ready);
        CHECK(told->client != PRS_STICKY_CLIENT);
        CHECK_EQ(stats_of(s).orphaned, 0);
        CHECK(!prs_client_dead(s, told->client) && !prs_client_dead(t, told->client));
        prs_unref(s, &id);
        CHECK_EQ(prs_state(s, &id), PRS_OK); /* the child still holds the object */
        if (end != LEAVES) {
            siginfo_t info;
            if (end == KILLED)
                is_killed(pid);
            else
                CHECK(kill(pid, SIGKILL) == 0 && waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) == 0);
            CHECK_EQ(prs_os_byte_held(s->fd_ro, PRS_CLIENT_BYTE + told->client),
                     1); /* the shared open file description holds the lock */
            CHECK(prs_client_dead(s, told->client) && prs_client_dead(t, told->client));
            prs_reap_dead(s, 0);
        } else {
            say(&told->go);
        }
        if (end != KILLED) {
            int status = reap_child(pid);
            CHECK(end == ZOMBIE || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
        }
        CHECK_EQ(prs_os_byte_held(s->fd_ro, PRS_CLIENT_BYTE + told->client), 0); /* other clients can claim the slot */
        CHECK_EQ(state_of_client(s, told->client), PRS_CLIENT_FREE);
        CHECK(prs_state(s, &id) < 0);
        munmap(told, sizeof *told);
    }
    close_store(t);
    CHECK_EMPTY(s);
    close_store(s);
}

/* The parent exits first, so only the child still has the open file description. */
static void bear_without_description(prs_store *s, struct told *told)
{
    prs_failpoint_arm("fork_reopened", PRS_FAIL_ERRNO, 1, EACCES);
    if (fork() == 0) {
        alarm(300);
        told->id[0] = put(s, 100, 1);
        told->serial[0] = s->me;
        say(&told->ready);
        await(&told->go);
        CHECK_EQ(verify(s, &told->id[0], 100, 1), PRS_OK);
        kill(getpid(), SIGKILL);
    }
    await(&told->ready);
    kill(getpid(), SIGKILL);
}

TEST(a_child_without_an_own_description_outlives_its_parent)
{
    SEVERAL_PROCESSES();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    dies(s, told, bear_without_description);
    CHECK(prs_client_dead(s, told->client));
    CHECK(!prs_client_dead(s, (uint32_t)told->serial[0]));
    prs_reap_dead(s, 0);
    CHECK_EQ(prs_state(s, &told->id[0]), PRS_OK);
    say(&told->go);
    int status = reap_child(-1);
    CHECK_KILLED(status, SIGKILL);
    prs_reap_dead(s, 0);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
    prctl(PR_SET_CHILD_SUBREAPER, 0);
}

static void *sleep_on(void *arg)
{
    struct told *told = arg;
    say(&told->ready);
    for (;;)
        pause();
    return NULL;
}

static void leave_a_thread(prs_store *s, struct told *told)
{
    pthread_t thread;
    told->id[0] = put(s, 100, 1);
    CHECK_EQ(pthread_create(&thread, NULL, sleep_on, told), 0);
    pthread_exit(NULL);
}

static char state_of_process(pid_t pid)
{
    char path[48], text[256] = {0};
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
    close(fd);
    char *at = strrchr(text, ')');
    CHECK(at);
    return at[2];
}

TEST(a_main_thread_that_left_is_no_death)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    pid_t pid = child_of(s, told, leave_a_thread);
    await(&told->ready);
    while (state_of_process(pid) != 'Z')
        prs_os_sleep(PRS_MS);
    prs_reap_dead(s, 0);
    CHECK_EQ(prs_state(s, &told->id[0]), PRS_OK);
    is_killed(pid);
    prs_reap_dead(s, 0);
    CHECK(prs_state(s, &told->id[0]) < 0);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

static void bear_and_die(prs_store *s, struct told *told)
{
    told->id[0] = put(s, 100, 1);
    if (fork() == 0) { /* this child outlives its parent, with copies of the descriptors */
        alarm(300);
        prs_unref(s, &told->id[0]);
        say(&told->ready);
        await(&told->go);
        prs_close(s);
        _exit(0);
    }
    await(&told->ready);
    kill(getpid(), SIGKILL);
}

/* The client is a zombie that no process has waited for, and its child is alive. */
TEST(a_zombie_is_dead_whoever_was_forked_from_it)
{
    SEVERAL_PROCESSES();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    pid_t pid = child_of(s, told, bear_and_die);
    siginfo_t info;
    CHECK_EQ(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    CHECK(prs_client_dead(s, told->client));
    /* The lock alone proves it, too, as in a namespace that cannot see the process. */
    uint64_t namespace = s->pid_ns;
    s->pid_ns = 0;
    CHECK(prs_client_dead(s, told->client));
    s->pid_ns = namespace;
    prs_reap_dead(s, 0);
    CHECK_EQ(state_of_client(s, told->client), PRS_CLIENT_FREE);
    CHECK(prs_state(s, &told->id[0]) < 0);
    say(&told->go);
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
    status = reap_child(-1);
    CHECK_EXITED(status);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
    prctl(PR_SET_CHILD_SUBREAPER, 0);
}

/* ---- forked children that are not clients yet -------------------------------------------------------------------- */

static bool die_unborn;

static void before_birth(void)
{
    if (die_unborn)
        kill(getpid(), SIGKILL);
}

/* Fork handlers run in the child in the order of their registration, so this handler runs before the engine's
 * handler. */
__attribute__((constructor)) static void first_of_all(void)
{
    pthread_atfork(NULL, NULL, before_birth);
}

static void stop_forking(prs_store *s, struct told *told)
{
    prs_failpoint_arm("fork_copied", PRS_FAIL_STOP, 1, 0);
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    reap_child(pid);
    (void)s, (void)told;
}

static int clients_that_are(prs_store *s, uint32_t what)
{
    int n = 0;
    for (uint32_t i = 1; i < prs_load_relaxed(&s->super->client_high); i++)
        n += state_of_client(s, i) == what;
    return n;
}

TEST(unborn_clients_live_while_their_byte_is_held)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    pid_t pid = stops(s, told, stop_forking);
    CHECK_EQ(clients_that_are(s, PRS_CLIENT_UNBORN), 1);
    prs_reap_dead(s, 0);
    CHECK_EQ(clients_that_are(s, PRS_CLIENT_UNBORN), 1);
    is_killed(pid);
    prs_reap_dead(s, 0);
    CHECK_EQ(clients_that_are(s, PRS_CLIENT_UNBORN), 0);
    CHECK_EQ(clients_that_are(s, PRS_CLIENT_LIVE), 1);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

TEST(unborn_clients_whose_process_died_before_birth_are_corpses)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    prs_oid id = put(s, 100, 1);
    die_unborn = true;
    fflush(NULL);
    pid_t pid = fork();
    die_unborn = false;
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
    CHECK_EQ(clients_that_are(s, PRS_CLIENT_UNBORN), 1);
    prs_reap_dead(s, 0);
    CHECK_EQ(clients_that_are(s, PRS_CLIENT_UNBORN), 0);
    prs_unref(s, &id);
    CHECK(prs_state(s, &id) < 0);
    CHECK_EMPTY(s);
    close_store(s);
}

/* The same test for a child that shares its parent's open file description: the parent reports that the slot has no
 * process. */
TEST(the_unborn_without_an_own_description_are_corpses_when_they_die)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    prs_oid id = put(s, 100, 1);
    prs_failpoint_arm("fork_reopened", PRS_FAIL_ERRNO, 1, EACCES);
    die_unborn = true;
    fflush(NULL);
    pid_t pid = fork();
    die_unborn = false;
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
    CHECK_EQ(clients_that_are(s, PRS_CLIENT_UNBORN), 1);
    prs_reap_dead(s, 0);
    CHECK_EQ(clients_that_are(s, PRS_CLIENT_UNBORN), 0);
    prs_unref(s, &id);
    CHECK(prs_state(s, &id) < 0);
    CHECK_EMPTY(s);
    close_store(s);
}

/* ---- locks of the dead ------------------------------------------------------------------------------------------------------ */

TEST(a_lock_left_by_a_predecessor_in_the_slot_is_stolen)
{
    SEVERAL_PROCESSES();
    prs_error e = {0};
    for (int how = 0; how < 3; how++) {
        prs_store *s = store_of(16 * MIB);
        struct told *told = new_told(), *other = new_told();
        dies(s, told, die_locked);
        uint32_t word = prs_load_relaxed(&s->super->lock);
        CHECK_EQ(word >> 20, told->client);
        /* Free the client slot directly, because a reaper would take the store lock and so steal it from its dead
         * owner. */
        prs_store_seqcst(&s->clients[told->client].state, PRS_CLIENT_FREE);
        pid_t pid = 0;
        prs_store *t = s;
        if (how == 1) { /* the slot has a living successor that is not involved */
            pid = child_of(s, other, live_on);
            await(&other->ready);
            CHECK_EQ(other->client, told->client);
        } else if (how == 2) { /* the successor itself */
            t = client_of(s);
            CHECK_EQ(t->me, told->client);
        }
        int rc = prs_lock(t, PRS_SECOND, &e);
        CHECK_MSG(rc == PRS_OK, "successor %d: %d %s", how, rc, e.what);
        prs_unlock(t);
        CHECK_EQ(prs_load_relaxed(&s->super->stolen), 1);
        if (pid) {
            say(&other->go);
            int status = reap_child(pid);
            CHECK_EXITED(status);
        }
        if (t != s)
            close_store(t);
        CHECK_EMPTY(s);
        close_store(s);
        munmap(told, sizeof *told);
        munmap(other, sizeof *other);
    }
}

TEST(a_dead_owner_is_found_in_no_time)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    prs_error e;
    dies(s, told, die_locked);
    CHECK_EQ(prs_lock(s, 0, &e), PRS_OK);
    prs_unlock(s);
    prs_reap_dead(s, 0);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

static void stop_locked(prs_store *s, struct told *told)
{
    (void)told;
    CHECK_EQ(prs_lock(s, PRS_SECOND, NULL), PRS_OK);
    raise(SIGSTOP);
    prs_unlock(s);
}

TEST(a_stopped_owner_is_not_robbed)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    prs_error e;
    pid_t pid = stops(s, told, stop_locked);
    CHECK_EQ(prs_lock(s, 60 * PRS_MS, &e), PRS_E_BUSY);
    CHECK_EQ(e.pid, pid);
    goes_on(pid);
    CHECK_EQ(prs_load_relaxed(&s->super->stolen), 0);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

/* ---- forks ----------------------------------------------------------------------------------------------------------------------- */

static void keep_all(prs_store *s, struct told *told)
{
    say(&told->ready);
    await(&told->go);
    CHECK_EQ(verify(s, &told->id[0], 100, 1), PRS_OK);
    CHECK_EQ(verify(s, &told->id[1], 100, 2), PRS_OK);
    prs_unref(s, &told->id[0]);
    prs_unpin(s, &told->id[1]);
}

/* One object is held only by a ref, the other only by a pin. */
TEST(a_child_holds_what_its_parent_held)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    prs_view v;
    told->id[0] = put(s, 100, 1);
    told->id[1] = put(s, 100, 2);
    CHECK_EQ(prs_pin(s, &told->id[1], &v), PRS_OK);
    prs_unref(s, &told->id[1]);
    pid_t pid = child_of(s, told, keep_all);
    await(&told->ready);
    CHECK(told->client != s->me);
    prs_unref(s, &told->id[0]);
    prs_unpin(s, &told->id[1]);
    prs_deferred_run_all(s);
    CHECK_EQ(prs_state(s, &told->id[0]), PRS_OK);
    CHECK_EQ(prs_state(s, &told->id[1]), PRS_OK);
    say(&told->go);
    int status = reap_child(pid);
    CHECK_EXITED(status);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

static void draw_serials(prs_store *s, struct told *told)
{
    for (int i = 0; i < 8; i++) {
        prs_oid id = put(s, 40, 1);
        told->serial[i] = id.serial;
        prs_unref(s, &id);
    }
}

TEST(serials_never_repeat_across_a_fork)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    prs_oid first = put(s, 40, 1);
    int status = reap_child(child_of(s, told, draw_serials));
    CHECK_EXITED(status);
    for (int i = 8; i < 16; i++) {
        prs_oid id = put(s, 40, 1);
        told->serial[i] = id.serial;
        prs_unref(s, &id);
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < i; k++)
            CHECK(told->serial[i] != told->serial[k]);
    prs_unref(s, &first);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

/* Another client freed the object, and its slot has another object. */
TEST(a_void_ref_is_not_handed_to_the_child)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB), *t = client_of(s);
    struct told *told = new_told();
    prs_error e;
    prs_oid old = put(s, 100, 1);
    CHECK_EQ(prs_free(t, &old, &e), PRS_OK);
    prs_magazines_flush(t);
    prs_oid young = put_in_slot(t, old.slot, 100, 2);
    pid_t pid = child_of(s, told, live_on); /* the child is also a client through its copy of t */
    await(&told->ready);
    uint64_t child = 1ull << told->client;
    CHECK_EQ(prs_load_seqcst(prs_refs(prs_slot_at(s, young.slot))) & child, 0);
    say(&told->go);
    int status = reap_child(pid);
    CHECK_EXITED(status);
    prs_unref(s, &old);
    CHECK_EQ(verify(t, &young, 100, 2), PRS_OK);
    prs_unref(t, &young);
    close_store(t);
    prs_reap_dead(s, 0);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

/* prs_leave decides which process removes the file of a store: two processes that exit at the same time must not
 * wait for each other to close the store. */
TEST(who_announced_its_end_stays_no_more)
{
    prs_store *s = store_of(8 * MIB);
    CHECK(prs_leave(s)); /* no other client is left */
    prs_store *t = client_of(s);
    CHECK(prs_leave(t));          /* the other client is leaving */
    prs_oid id = put(s, 1000, 1); /* a leaving client can still put */
    CHECK_EQ(verify(t, &id, 1000, 1), PRS_OK);
    prs_unref(s, &id);
    close_store(t);
    t = client_of(s); /* t takes the slot of the client that left */
    CHECK(!prs_leave(s));
    uint64_t live = prs_load_seqcst(&t->clients[t->me].state); /* simulates a child that has not run yet */
    prs_store_seqcst(&t->clients[t->me].state, (live & ~(uint64_t)0xFF) | PRS_CLIENT_UNBORN);
    CHECK(!prs_leave(s));
    prs_store_seqcst(&t->clients[t->me].state, live);
    CHECK(prs_leave(t));
    close_store(t);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(who_announced_its_end_and_died_stays_no_more)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(8 * MIB);
    for (int announced = 0; announced < 2; announced++) {
        pid_t pid = fork();
        if (pid == 0) {
            if (announced)
                (void)prs_leave(s); /* since the fork the child has its own handle */
            pause();
        }
        while (prs_client_pids(s, (int32_t[8]){0}, 8) < 2)
            sched_yield();
        if (!announced)
            CHECK(!prs_leave(s));
        kill(pid, SIGKILL);
        CHECK_EQ(waitpid(pid, NULL, 0), pid);
        CHECK(prs_leave(s));
        prs_reap_dead(s, 0);
        CHECK(prs_leave(s));
    }
    CHECK_EMPTY(s);
    close_store(s);
}

TEST_MAIN()
