/*
 * Tests of segments: which files can be attached or are refused, damaged files, lost descriptors and
 * client slots.
 */
#include "engine.h"

static char path_[64];

static const char *path_of(const char *what)
{
    snprintf(path_, sizeof path_, "/dev/shm/pyray_ser-ctest-%d-%s", (int)getpid(), what);
    unlink(path_);
    return path_;
}

static int attach_rc(const char *path, prs_error *e)
{
    prs_store *s = NULL;
    memset(e, 0, sizeof *e);
    int rc = prs_attach_path(&s, path, NULL, e);
    if (rc == PRS_OK)
        close_store(s);
    else
        CHECK(s == NULL && e->code == rc && e->what[0]);
    return rc;
}

TEST(pulls_are_counted_for_all_clients_and_outlive_them)
{
    const char *path = path_of("pulls");
    prs_store *s = store_with((prs_options){.capacity = 8 * MIB, .path = path}), *t = NULL;
    prs_error e = {0};
    CHECK_EQ(prs_attach_path(&t, path, NULL, &e), PRS_OK);
    prs_count_pull(t, 5000);
    prs_count_pull(s, (uint64_t)7 << 32);
    prs_count_failed_pull(t);
    close_store(t);
    prs_stats stats = stats_of(s);
    CHECK_EQ(stats.pulls, 2);
    CHECK_EQ(stats.pulled_bytes, ((uint64_t)7 << 32) + 5000);
    CHECK_EQ(stats.failed_pulls, 1);
    close_store(s);
    unlink(path);
}

/* ---- refusals ---------------------------------------------------------------------------------- */

TEST(named_stores_are_shared_by_path)
{
    const char *path = path_of("named");
    prs_store *s = store_with((prs_options){.capacity = 8 * MIB, .path = path}), *t = NULL;
    prs_error e = {0};
    struct stat st;
    CHECK_EQ(stat(path, &st), 0);
    CHECK_EQ(st.st_mode & 07777, 0600);
    CHECK_EQ(prs_create(&t, &(prs_options){.path = path}, &e), PRS_E_SYS); /* the file exists */
    CHECK_EQ(e.sys_errno, EEXIST);
    CHECK_EQ(prs_attach_path(&t, path, NULL, &e), PRS_OK);
    prs_oid id = put(s, 5000, 1);
    CHECK_EQ(verify(t, &id, 5000, 1), PRS_OK);
    CHECK_EQ(prs_id(s), prs_id(t));
    close_store(s); /* the creator leaves, the store stays */
    CHECK_EQ(prs_state(t, &id), PRS_E_LOST);
    CHECK_EMPTY(t);
    close_store(t);
    unlink(path);
}

TEST(what_is_no_store_is_refused)
{
    prs_error e;
    const char *path = path_of("none");
    CHECK_EQ(attach_rc(path, &e), PRS_E_NOTFOUND);
    int fd = open(path, O_CREAT | O_RDWR, 0600);
    CHECK(fd >= 0);
    CHECK_EQ(attach_rc(path, &e), PRS_E_FOREIGN); /* the file is empty */
    CHECK(write(fd, "hello", 5) == 5);
    CHECK_EQ(attach_rc(path, &e), PRS_E_FOREIGN);
    CHECK_EQ(ftruncate(fd, 64 * MIB), 0);
    CHECK_EQ(attach_rc(path, &e), PRS_E_FOREIGN); /* the file contains almost only zeros */
    close(fd);
    unlink(path);
    CHECK_EQ(mkdir(path, 0700), 0);
    CHECK(attach_rc(path, &e) < 0);
    rmdir(path);
    CHECK_EQ(mkfifo(path, 0600), 0);
    CHECK_EQ(attach_rc(path, &e), PRS_E_FOREIGN);
    unlink(path);
    CHECK_EQ(attach_rc("/dev/null", &e), PRS_E_FOREIGN);
    prs_store *s;
    CHECK_EQ(prs_create(&s, &(prs_options){.path = "/proc/store"}, &e), PRS_E_FOREIGN); /* not tmpfs */
    CHECK(prs_create(&s, &(prs_options){.path = "/dev/shm/no/such/place"}, &e) < 0);
    CHECK_EQ(prs_attach_pid(&s, getpid(), -1, 0, NULL, &e), PRS_E_NOTFOUND);
    CHECK_EQ(prs_attach_pid(&s, getpid(), 0, 12345, NULL, &e), PRS_E_NOTFOUND);
    CHECK_EQ(prs_attach_pid(&s, 0x7FFFFFF0, 3, 0, NULL, &e), PRS_E_NOTFOUND);
}

TEST(others_files_are_refused)
{
    const char *path = path_of("owner");
    prs_store *s = store_with((prs_options){.capacity = MIB, .path = path});
    prs_error e;
    const mode_t modes[] = {0644, 0660, 0606, 0700, 0400, 0640, 04600};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        CHECK_EQ(chmod(path, modes[i]), 0);
        int rc = attach_rc(path, &e);
        CHECK_MSG(rc == PRS_E_FOREIGN || rc == PRS_E_SYS, "mode %o: %d", (unsigned)modes[i], rc);
    }
    CHECK_EQ(chmod(path, 0600), 0);
    CHECK_EQ(attach_rc(path, &e), PRS_OK);
    char link[80];
    snprintf(link, sizeof link, "%s-link", path);
    CHECK_EQ(symlink(path, link), 0);
    CHECK_EQ(attach_rc(link, &e), PRS_E_FOREIGN);
    unlink(link);
    if (geteuid() == 0) {
        CHECK_EQ(chown(path, 12345, 12345), 0);
        CHECK_EQ(attach_rc(path, &e), PRS_E_FOREIGN);
        CHECK_EQ(chown(path, 0, 0), 0);
        CHECK_EQ(attach_rc(path, &e), PRS_OK);
    }
    close_store(s);
    unlink(path);
}

/* ---- damage -------------------------------------------------------------------------------------- */

enum { KEPT = 12 };
static prs_oid kept[KEPT];
static uint8_t *image; /* a store in use: its creator is alive, and objects are held, named and in flight */
static size_t image_size, image_control;

static uint64_t kept_size(int i)
{
    static const uint64_t sizes[] = {0, 1, 64, 700, 5000, 70000, 300000};
    return sizes[i % 7];
}

static prs_store *make_image(void)
{
    const char *path = path_of("image");
    prs_store *s = store_with((prs_options){.capacity = 4 * MIB, .max_objects = 1024, .max_clients = 8, .path = path});
    prs_error e = {0};
    for (int i = 0; i < KEPT; i++) {
        prs_draft d;
        CHECK_EQ(prs_alloc(s, kept_size(i), PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
        if (i > 2)
            CHECK_EQ(prs_add_edge(s, &d, &kept[i - 2], &e), PRS_OK);
        uint8_t *bytes = malloc(kept_size(i) + 1);
        content(bytes, kept_size(i), (uint64_t)i);
        CHECK_EQ(prs_write(s, &d, 0, bytes, kept_size(i), &e), PRS_OK);
        free(bytes);
        CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
        kept[i] = d.id;
    }
    prs_token token;
    CHECK_EQ(prs_token_take(s, &kept[3], PRS_TOKEN_ONCE, &token), PRS_OK);
    CHECK_EQ(prs_name_bind(s, "four", 4, &kept[4], 0, &e), PRS_OK);
    for (int i = 0; i < 40; i++) { /* leave holes between the objects */
        prs_oid id = put(s, (uint64_t)i * 3000, 1);
        if (i % 3)
            prs_unref(s, &id);
    }
    CHECK_STORE(s);
    int fd = open(path, O_RDONLY);
    struct stat st;
    CHECK(fd >= 0 && fstat(fd, &st) == 0);
    image_size = (size_t)st.st_size;
    image_control = s->control_len;
    image = malloc(image_size);
    CHECK_EQ(prs_os_pread(fd, image, image_size, 0), 0);
    close(fd);
    unlink(path);
    return s;
}

/* Use all operations of a store. They may fail, but must not crash, hang or return wrong bytes. */
static void exercise(prs_store *s)
{
    prs_error e = {0};
    prs_oid id[40];
    bool there[40];
    prs_record r[16];
    prs_stats stats;
    uint32_t cursor = 0;
    char name[PRS_NAME_MAX + 1];
    for (int i = 0; i < 40; i++) {
        there[i] = try_put(s, (uint64_t)i * i * 100, (uint64_t)i, &id[i], &e) == PRS_OK;
        if (there[i]) {
            int rc = verify(s, &id[i], (uint64_t)i * i * 100, (uint64_t)i);
            if (rc == 1)
                _exit(5);
        }
    }
    for (int i = 0; i < KEPT; i++) {
        prs_token token;
        prs_draft d;
        if (prs_ref(s, &kept[i]) != PRS_OK)
            continue;
        if (prs_token_take(s, &kept[i], PRS_TOKEN_ONCE, &token) == PRS_OK)
            prs_token_drop(s, &kept[i], &token);
        if (prs_alloc(s, 64, PRS_ALLOC_ORDERED, &d, &e) == PRS_OK) {
            (void)prs_add_edge(s, &d, &kept[i], &e);
            prs_abort(s, &d);
        }
        prs_unref(s, &kept[i]);
    }
    while (prs_list(s, &cursor, r, 16) > 0)
        ;
    prs_get_stats(s, &stats);
    cursor = 0;
    prs_oid found;
    while (prs_name_next(s, &cursor, "", 0, name, &found, NULL) > 0)
        ;
    (void)prs_name_find(s, "four", 4, &found, NULL);
    (void)prs_name_bind(s, "five", 4, &kept[5], 0, &e);
    (void)prs_wait(s, &kept[0], 0);
    int32_t pids[8];
    (void)prs_client_pids(s, pids, 8);
    for (int i = 0; i < 40; i++)
        if (there[i])
            prs_unref(s, &id[i]);
    for (int i = 0; i < KEPT; i += 2)
        (void)prs_free(s, &kept[i], &e);
    prs_reap_dead(s, 0);
    prs_trim(s, 0);
    prs_deferred_run_all(s);
    (void)prs_check(s, &e);
}

/* Return 0 if the store was refused, 1 if it works without loss, 2 if some objects are reported as lost. Other results
 * are failures. */
static int try_image(const char *path, uint8_t *bytes)
{
    int fd = open(path, O_CREAT | O_RDWR | O_TRUNC, 0600);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, (off_t)image_size), 0);
    for (size_t at = 0; at < image_size; at += 4096) { /* holes stay holes */
        size_t n = image_size - at < 4096 ? image_size - at : 4096, i = 0;
        while (i < n && bytes[at + i] == 0)
            i++;
        if (i < n)
            CHECK(pwrite(fd, bytes + at, n, (off_t)at) == (ssize_t)n);
    }
    close(fd);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(20);
        prs_store *s;
        prs_error e = {0};
        prs_options options = {.lock_timeout = 200 * PRS_MS};
        if (prs_attach_path(&s, path, &options, &e) != PRS_OK)
            _exit(0);
        if (prs_check(s, &e) != PRS_OK)
            _exit(4);
        int lost = 0;
        for (int i = 0; i < KEPT; i++) {
            prs_view v;
            int rc = prs_pin(s, &kept[i], &v);
            if (rc != PRS_OK) {
                lost++;
                continue;
            }
            if (v.size != kept_size(i))
                lost++; /* the check cannot detect a flipped bit in the size of an object */
            else if (!content_right(v.data, v.size, (uint64_t)i))
                _exit(5);
            prs_unpin(s, &kept[i]);
        }
        exercise(s);
        close_store(s);
        _exit(lost ? 2 : 1);
    }
    int status = reap_child(pid);
    unlink(path);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

TEST(an_undamaged_image_attaches)
{
    prs_store *s = make_image();
    CHECK_EQ(try_image(path_of("copy"), image), 1);
    free(image);
    close_store(s);
}

TEST(truncated_files_are_refused)
{
    prs_store *s = make_image();
    prs_error e;
    const char *path = path_of("short");
    const size_t sizes[] = {1,
                            4095,
                            4096,
                            sizeof(prs_super) - 1,
                            sizeof(prs_super),
                            image_control - 4096,
                            image_control,
                            image_size - 4096,
                            image_size - 1,
                            image_size + 4096};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int fd = open(path, O_CREAT | O_RDWR | O_TRUNC, 0600);
        size_t n = sizes[i] < image_size ? sizes[i] : image_size;
        CHECK(write(fd, image, n) == (ssize_t)n && ftruncate(fd, (off_t)sizes[i]) == 0);
        close(fd);
        int rc = attach_rc(path, &e);
        CHECK_MSG(rc == PRS_E_FOREIGN || rc == PRS_E_CORRUPT, "%zu bytes: %d", sizes[i], rc);
    }
    unlink(path);
    free(image);
    close_store(s);
}

TEST(other_versions_are_told_from_damage)
{
    prs_store *s = make_image();
    prs_error e;
    const char *path = path_of("version");
    const size_t fields[] = {offsetof(prs_super, version), offsetof(prs_super, layout_hash), offsetof(prs_super, page)};
    for (int what = 0; what < 3; what++) {
        image[fields[what]] ^= 4;
        int fd = open(path, O_CREAT | O_RDWR | O_TRUNC, 0600);
        CHECK(write(fd, image, image_size) == (ssize_t)image_size);
        close(fd);
        CHECK_EQ(attach_rc(path, &e), PRS_E_VERSION);
        image[fields[what]] ^= 4;
    }
    unlink(path);
    free(image);
    close_store(s);
}

static const char *outcome(int result)
{
    static char text[64];
    snprintf(text, sizeof text,
             result == 4     ? "attached, but prs_check complains"
             : result == 5   ? "wrong bytes"
             : result > 1000 ? "died of signal %d"
                             : "exit %d",
             result % 1000);
    return text;
}

TEST(every_byte_of_the_superblock_flipped)
{
    if (SANITIZED_THREADS)
        SKIP("nothing here for this sanitizer to see");
    prs_store *s = make_image();
    const char *path = path_of("super");
    int refused = 0, taken = 0, bad = 0;
    size_t end = offsetof(prs_super, spill_dir) + 16;
    for (size_t at = 0; at < end; at++) {
        for (int bit = (int)(at % 3); bit < 8; bit += SANITIZED ? 7 : 3) {
            image[at] ^= (uint8_t)(1 << bit);
            int result = try_image(path, image);
            image[at] ^= (uint8_t)(1 << bit);
            refused += result == 0;
            taken += result == 1 || result == 2;
            if (result > 2) {
                fprintf(stderr, "     bit %d of superblock byte %zu: %s\n", bit, at, outcome(result));
                bad++;
            }
        }
    }
    printf("     %d refused, %d harmless\n", refused, taken);
    CHECK_EQ(bad, 0);
    CHECK(refused > 100);
    free(image);
    close_store(s);
}

TEST(random_bits_of_the_control_area_flipped)
{
    if (SANITIZED_THREADS)
        SKIP("nothing here for this sanitizer to see");
    prs_store *s = make_image();
    const char *path = path_of("flips");
    const char *text = getenv("PRS_TEST_FLIPS");
    int trials = text && *text ? atoi(text) : SANITIZED ? 60 : 300, count[3] = {0}, bad = 0;
    uint64_t seed = test_seed(4711), rng;
    uint8_t *bytes = malloc(image_size);
    /* Collect the offsets of the words that are not zero, because most words of the tables are zero. */
    size_t *used = malloc(image_control / 8 * sizeof *used), n = 0;
    for (size_t at = 0; at < image_control; at += 8)
        if (memcmp(image + at, "\0\0\0\0\0\0\0", 8) != 0)
            used[n++] = at;
    for (int trial = 0; trial < trials; trial++) {
        rng = seed * 1000003 + (uint64_t)trial + 1;
        memcpy(bytes, image, image_size);
        int flips = 1 + (int)(test_random(&rng) % 3) * (int)(test_random(&rng) % 5);
        size_t last = 0;
        for (int i = 0; i < flips; i++) {
            uint64_t r = test_random(&rng);
            last = r % 5 ? used[(r >> 8) % n] + (r >> 40) % 8 : (size_t)((r >> 8) % image_control);
            if (last < offsetof(prs_super, lock)) /* the constants have a separate test */
                last += offsetof(prs_super, lock);
            bytes[last] ^= (uint8_t)(1 << (r >> 3) % 8);
            if (r % 11 == 0)
                bytes[last] = 0xFF;
        }
        int result = try_image(path, bytes);
        if (result <= 2) {
            count[result]++;
        } else {
            fprintf(stderr, "     trial %d (seed %llu, %d flips, last at %zu): %s\n", trial, (unsigned long long)seed,
                    flips, last, outcome(result));
            bad++;
        }
    }
    printf("     %d refused, %d as good as new, %d with losses reported\n", count[0], count[1], count[2]);
    CHECK_EQ(bad, 0);
    CHECK(count[0] && count[1]);
    free(used);
    free(bytes);
    free(image);
    close_store(s);
}

/* ---- several stores ----------------------------------------------------------------------------------- */

/* The slot of a visitor is not marked for the client that gets it next. */
TEST(visitors_are_clients_that_statistics_do_not_count)
{
    const char *path = path_of("visitor");
    prs_store *s = store_with((prs_options){.capacity = MIB, .path = path}), *t;
    prs_error e;
    int32_t pids[4];
    for (int visitor = 1; visitor >= 0; visitor--) {
        prs_options options = {.path = path, .flags = visitor ? PRS_OPEN_VISITOR : 0};
        CHECK_EQ(prs_attach_path(&t, path, &options, &e), PRS_OK);
        CHECK_EQ(t->me, 2);
        CHECK_EQ(stats_of(s).clients, visitor ? 1 : 2);
        CHECK_EQ(stats_of(t).clients, visitor ? 1 : 2);
        CHECK_EQ(prs_client_pids(s, pids, 4), 2);
        prs_oid id = put(t, 100, 1); /* it is a client in all other respects */
        CHECK_EQ(verify(s, &id, 100, 1), PRS_OK);
        prs_unref(t, &id);
        close_store(t);
    }
    CHECK_EMPTY(s);
    close_store(s);
    unlink(path);
}

TEST(several_stores_in_one_process)
{
    enum { N = 8 };
    prs_store *s[N];
    prs_oid id[N];
    for (int i = 0; i < N; i++) {
        s[i] = store_of(4 * MIB);
        id[i] = put(s[i], 3000, (uint64_t)i);
    }
    uint64_t ids[16];
    int fds[16];
    CHECK(prs_list_pid(getpid(), ids, fds, 16) >= N);
    for (int i = 0; i < N; i++)
        for (int k = 0; k < N; k++) {
            CHECK(i == k || prs_id(s[i]) != prs_id(s[k]));
            prs_view v;
            CHECK_EQ(verify(s[i], &id[k], 3000, (uint64_t)k), i == k ? PRS_OK : PRS_E_FOREIGN);
            CHECK_EQ(prs_pin(s[i], &id[k], &v), i == k ? PRS_OK : PRS_E_FOREIGN);
            if (i == k)
                prs_unpin(s[i], &id[k]);
        }
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(10);
        for (int i = 0; i < N; i++) {
            CHECK_EQ(verify(s[i], &id[i], 3000, (uint64_t)i), PRS_OK);
            put(s[i], 100, 1);
            if (i % 2)
                close_store(s[i]);
        }
        _exit(0);
    }
    int status = reap_child(pid);
    CHECK_EXITED(status);
    for (int i = 0; i < N; i++) { /* find each store by its id, in any order */
        prs_store *t;
        prs_error e = {0};
        CHECK_EQ(prs_attach_pid(&t, getpid(), -1, prs_id(s[i]), NULL, &e), PRS_OK);
        CHECK_EQ(verify(t, &id[i], 3000, (uint64_t)i), PRS_OK);
        close_store(t);
        prs_reap_dead(s[i], 0);
        prs_unref(s[i], &id[i]);
        CHECK_EMPTY(s[i]);
        close_store(s[i]);
    }
    CHECK_EQ(prs_list_pid(getpid(), ids, fds, 16), 0);
}

/* ---- descriptors gone ------------------------------------------------------------------------------------ */

static void close_all(void)
{
    CHECK_EQ(syscall(SYS_close_range, 3u, ~0u, 0u), 0);
}

static void go_on(prs_store *s, const prs_oid *id, prs_view *view)
{
    prs_error e = {0};
    CHECK(content_right(view->data, 5000, 1));
    CHECK_EQ(verify(s, id, 5000, 1), PRS_OK);
    const uint64_t sizes[] = {100, 50000, 400000, 3 * MIB};
    for (int i = 0; i < 4; i++) {
        prs_oid mine = put(s, sizes[i], (uint64_t)i);
        CHECK_EQ(verify(s, &mine, sizes[i], (uint64_t)i), PRS_OK);
        prs_unref(s, &mine);
    }
    prs_draft d;
    int rc = prs_alloc(s, MIB, PRS_ALLOC_WINDOW, &d, &e);
    CHECK_MSG(rc == PRS_OK, "window: %d %s", rc, e.what);
    content(d.window, MIB, 6);
    CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
    CHECK_EQ(verify(s, &d.id, MIB, 6), PRS_OK);
    prs_window_close(s, &d);
    prs_unref(s, &d.id);
    prs_reap_dead(s, 0);
    prs_trim(s, 0);
}

TEST(descriptors_closed_by_other_code)
{
    prs_store *s = store_of(32 * MIB);
    prs_oid id = put(s, 5000, 1);
    prs_view v;
    CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
    int ready[2], go[2];
    for (int first = 0; first < 2; first++) { /* without and with an earlier put in the child */
        CHECK(pipe(ready) == 0 && pipe(go) == 0);
        pid_t pid = fork();
        if (pid == 0) {
            child_setup(20);
            if (first)
                put(s, MIB, 3);
            CHECK(dup2(ready[1], 1) == 1 && dup2(go[0], 0) == 0); /* these two descriptors stay open */
            close_all();
            char mine[] = "/tmp/prs-ctest-XXXXXX";
            int fd[24];
            fd[0] = mkstemp(mine); /* now the descriptor numbers belong to other files */
            CHECK(fd[0] >= 0);
            unlink(mine);
            for (int i = 1; i < 24; i++)
                CHECK((fd[i] = dup(fd[0])) >= 0);
            CHECK(write(fd[0], "precious", 8) == 8);
            go_on(s, &id, &v);
            char c;
            CHECK(write(1, "x", 1) == 1 && read(0, &c, 1) == 1);
            CHECK_EQ(prs_state(s, &id), PRS_OK);
            pid_t grandchild = fork();
            if (grandchild == 0) {
                child_setup(20);
                go_on(s, &id, &v);
                _exit(0);
            }
            int status = reap_child(grandchild);
            CHECK_EXITED(status);
            prs_close(s);
            prs_unpin(s, &id);
            char text[9] = {0};
            for (int i = 0; i < 24; i++)
                CHECK(pread(fd[i], text, 8, 0) == 8 && memcmp(text, "precious", 8) == 0);
            struct stat st;
            CHECK(fstat(fd[0], &st) == 0 && st.st_size == 8);
            _exit(0);
        }
        char c;
        CHECK(read(ready[0], &c, 1) == 1);
        prs_reap_dead(s, 0); /* the child is alive, although it had lost its lock */
        CHECK_CLIENTS(s, 2);
        CHECK_EQ(stats_of(s).reaped, (unsigned)first); /* the grandchild of the previous round was reaped */
        CHECK(write(go[1], "x", 1) == 1);
        int status = reap_child(pid);
        CHECK_EXITED(status);
        close(ready[0]), close(ready[1]), close(go[0]), close(go[1]);
        prs_reap_dead(s, 0);
        CHECK_CLIENTS(s, 1);
        CHECK_STORE(s);
    }
    prs_unpin(s, &id);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(descriptors_closed_in_the_only_process)
{
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(20);
        prs_store *s = store_of(32 * MIB);
        prs_oid id = put(s, 5000, 1);
        prs_view v;
        prs_error e = {0};
        CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
        close_all();
        CHECK(content_right(v.data, 5000, 1));
        CHECK_EQ(verify(s, &id, 5000, 1), PRS_OK);
        prs_oid mine;
        int rc = try_put(s, MIB, 1, &mine, &e); /* the kernel may allow a reopen through /proc/self/map_files */
        CHECK_MSG(rc == PRS_OK || (rc == PRS_E_SYS && geteuid() != 0), "put: %d %s", rc, e.what);
        if (rc == PRS_OK)
            go_on(s, &id, &v);
        prs_unpin(s, &id);
        CHECK_STORE(s);
        close_store(s);
        _exit(0);
    }
    int status = reap_child(pid);
    CHECK_EXITED(status);
}

/* ---- client slots ------------------------------------------------------------------------------------------ */

static prs_store *few_clients(prs_oid *id)
{
    prs_store *s = store_with((prs_options){.capacity = 16 * MIB, .max_clients = 6}); /* four of them for processes */
    *id = put(s, 5000, 1);
    return s;
}

static void fill_with_corpses(prs_store *s, int n)
{
    pid_t pids[8];
    int ready[2];
    CHECK(pipe(ready) == 0);
    for (int i = 0; i < n; i++) {
        if ((pids[i] = fork()) == 0) {
            child_setup(20);
            CHECK(!prs_is_orphan(s));
            prs_draft d;
            prs_error e;
            for (int k = 0; k < 20; k++)
                put(s, (uint64_t)k * 1000, 1);
            CHECK_EQ(prs_alloc(s, 100000, 0, &d, &e), PRS_OK);
            CHECK(write(ready[1], "x", 1) == 1);
            for (;;)
                pause();
        }
        char c;
        CHECK(read(ready[0], &c, 1) == 1);
    }
    for (int i = 0; i < n; i++) {
        kill(pids[i], SIGKILL);
        int status = reap_child(pids[i]);
        CHECK_KILLED(status, SIGKILL);
    }
    close(ready[0]), close(ready[1]);
}

TEST(a_newcomer_gets_in_past_corpses)
{
    prs_oid id;
    prs_store *s = few_clients(&id);
    for (int round = 0; round < 3; round++) {
        fill_with_corpses(s, 3);
        prs_store *t = client_of(s); /* this process becomes the janitor, and so frees a slot for itself */
        CHECK_EQ(verify(t, &id, 5000, 1), PRS_OK);
        CHECK_CLIENTS(t, 2);
        CHECK_EQ(stats_of(t).objects, 1);
        CHECK_STORE(t);
        prs_oid mine = put(t, 3000, 2); /* t uses its own magazines */
        CHECK_EQ(verify(s, &mine, 3000, 2), PRS_OK);
        close_store(t);
        CHECK_STORE(s);
    }
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(a_janitor_that_dies_is_replaced)
{
    prs_oid id;
    prs_store *s = few_clients(&id);
    static const char *const points[] = {"client_claimed", "client_live",      "reap_begun",  "reap_slot",
                                         "reap_links",     "client_releasing", "give_extent", "retired"};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        fill_with_corpses(s, 3);
        pid_t pid = fork(); /* no slot is free, so the child is an orphan and attaches again */
        if (pid == 0) {
            child_setup(20);
            CHECK(prs_is_orphan(s));
            prs_store *t;
            prs_error e;
            CHECK(prs_failpoint_arm(points[i], PRS_FAIL_KILL, 1, 0));
            prs_attach_pid(&t, getppid(), -1, prs_id(s), NULL, &e);
            _exit(1);
        }
        int status = reap_child(pid);
        CHECK_KILLED(status, SIGKILL);
        prs_store *t = client_of(s);
        CHECK_EQ(verify(t, &id, 5000, 1), PRS_OK);
        close_store(t);
        prs_reap_dead(s, 0);
        CHECK_STORE(s);
        CHECK_CLIENTS(s, 1);
        CHECK_EQ(stats_of(s).objects, 1);
        CHECK_EQ(stats_of(s).unsealed, 0);
    }
    close_store(s);
}

TEST(many_newcomers_at_once_past_corpses)
{
    prs_oid id;
    prs_store *s = few_clients(&id);
    for (int round = 0; round < 5; round++) {
        fill_with_corpses(s, 3);
        int go[2], in[2];
        CHECK(pipe(go) == 0 && pipe(in) == 0);
        pid_t pids[3];
        for (int i = 0; i < 3; i++)
            if ((pids[i] = fork()) == 0) {
                child_setup(20);
                CHECK(prs_is_orphan(s));
                char c;
                close(go[1]);
                CHECK(read(go[0], &c, 1) == 0); /* all start together */
                prs_store *t;
                prs_error e = {0};
                int rc = prs_attach_pid(&t, getppid(), -1, prs_id(s), NULL, &e);
                CHECK_MSG(rc == PRS_OK, "attach: %d %s", rc, e.what);
                CHECK_EQ(verify(t, &id, 5000, 1), PRS_OK);
                CHECK(write(in[1], "x", 1) == 1);
                for (;;)
                    pause();
            }
        close(go[1]);
        int in_now = 0;
        char c;
        close(in[1]);
        while (in_now < 3 && read(in[0], &c, 1) == 1)
            in_now++;
        for (int i = 0; i < 3; i++) {
            kill(pids[i], SIGKILL);
            reap_child(pids[i]);
        }
        close(go[0]), close(in[0]);
        CHECK_EQ(in_now, 3);
        prs_reap_dead(s, 0);
        CHECK_STORE(s);
    }
    close_store(s);
}

/* A forked child that runs another program is no longer a client, although its pid still exists. */
TEST(exec_ends_a_client)
{
    prs_store *s = store_of(8 * MIB);
    prs_oid id = put(s, 5000, 1);
    prs_view v;
    int ends[2];
    char c;
    CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(20);
        execlp("sleep", "sleep", "15", (char *)NULL);
        _exit(9);
    }
    close(ends[1]);
    CHECK_EQ(read(ends[0], &c, 1), 0); /* exec has closed the other end */
    prs_unpin(s, &id);
    prs_unref(s, &id);
    CHECK_EQ(prs_state(s, &id), PRS_OK); /* the dead client of the child still holds the object */
    prs_reap_dead(s, 0);
    CHECK_EQ(prs_state(s, &id), PRS_E_LOST);
    CHECK_CLIENTS(s, 1);
    CHECK_EQ(kill(pid, 0), 0);
    kill(pid, SIGKILL);
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
    close(ends[0]);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(living_clients_keep_their_slots)
{
    prs_oid id;
    prs_store *s = few_clients(&id), *t[3], *none = NULL;
    prs_error e = {0};
    for (int i = 0; i < 3; i++)
        t[i] = client_of(s);
    CHECK_EQ(prs_attach_pid(&none, getpid(), -1, prs_id(s), NULL, &e), PRS_E_CLIENTS);
    CHECK(none == NULL && e.capacity == 4 && e.used == 4);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(verify(t[i], &id, 5000, 1), PRS_OK);
    close_store(t[0]);
    t[0] = client_of(s);
    for (int i = 0; i < 3; i++)
        close_store(t[i]);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(a_fork_without_a_slot_leaves_views_valid)
{
    prs_oid id;
    prs_store *s = few_clients(&id), *t[3];
    prs_view v;
    CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
    for (int i = 0; i < 3; i++)
        t[i] = client_of(s);
    int go[2];
    CHECK(pipe(go) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(20);
        char c;
        prs_error e = {0};
        prs_draft d;
        CHECK(prs_is_orphan(s));
        CHECK(content_right(v.data, 5000, 1));
        CHECK(read(go[0], &c, 1) == 1); /* the parent has released these objects and put new ones */
        CHECK(content_right(v.data, 5000, 1));
        CHECK_EQ(prs_alloc(s, 10, 0, &d, &e), PRS_E_CLOSED);
        CHECK(e.what[0]);
        prs_unpin(s, &id);
        prs_unref(s, &id);
        close_store(s);
        _exit(0);
    }
    prs_unpin(s, &id);
    prs_unref(s, &id);
    for (int i = 0; i < 100; i++)
        put(s, 5000, 2);
    CHECK_EQ(stats_of(s).orphaned, 1);
    CHECK(write(go[1], "x", 1) == 1);
    int status = reap_child(pid);
    CHECK_EXITED(status);
    close(go[0]), close(go[1]);
    CHECK_EQ(verify(s, &id, 5000, 1), PRS_OK); /* the sticky holder keeps the object until the end of the store */
    prs_record r[8];
    uint32_t cursor = 0;
    int n = prs_list(s, &cursor, r, 8);
    bool seen = false;
    for (int i = 0; i < n; i++)
        seen |= r[i].orphaned && r[i].id.serial == id.serial;
    CHECK(seen);
    prs_error e;
    CHECK_EQ(prs_free(s, &id, &e), PRS_OK); /* the sticky holder's pin keeps the object even then */
    for (int i = 0; i < 3; i++)
        close_store(t[i]);
    CHECK_STORE(s);
    close_store(s);
}

TEST_MAIN()
