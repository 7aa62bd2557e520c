/*
 * Tests of a store's memory. They compare extents with a model, and check that warm extents are reused
 * first, that a full store makes space, and that pages are returned to the kernel.
 */
#include "engine.h"

#include <sys/vfs.h>

/* ---- the allocator alone, against a model -------------------------------------------------------- */

enum { LIVE = 300 };

struct piece {
    uint64_t off, size;
    uint32_t extent, slot;
};

static void check_extents(prs_store *s)
{
    prs_error e = {0};
    int rc = prs_extent_check(s, &e);
    CHECK_MSG(rc == PRS_OK, "prs_extent_check: %s", e.what);
}

/* Each extent gets a slot, with which prs_extent_check compares it. */
static uint32_t bare_slot(prs_store *s)
{
    uint32_t i = prs_slot_take(s);
    if (i != PRS_NIL)
        return i;
    uint32_t published = s->super->published;
    prs_error e;
    prs_unlock(s);
    CHECK_EQ(prs_slots_grow(s, published, &e), PRS_OK);
    CHECK_EQ(prs_tables_prefault(s), 0);
    CHECK_EQ(prs_lock(s, PRS_SECOND, &e), PRS_OK);
    return prs_slot_take(s);
}

static bool piece_alloc(prs_store *s, uint64_t size, prs_packing packing, struct piece *p)
{
    uint32_t i = bare_slot(s);
    CHECK(i != PRS_NIL);
    uint32_t e = prs_extent_alloc(s, size, packing, i);
    if (e == PRS_NIL) {
        prs_slot_give(s, i);
        return false;
    }
    prs_slot *slot = prs_slot_at(s, i);
    *p = (struct piece){s->extents[e].off, s->extents[e].size, e, i};
    prs_store_relaxed(&slot->extent, e);
    prs_store_relaxed(&slot->off, p->off);
    prs_store_relaxed(&slot->cap, p->size);
    prs_store_seqcst(&slot->word, prs_word(prs_word_generation(slot->word) + 1, s->me, PRS_STATE_RESERVED));
    return true;
}

static void piece_free(prs_store *s, struct piece *p)
{
    prs_slot *slot = prs_slot_at(s, p->slot);
    uint32_t e = prs_load_relaxed(&slot->extent); /* a rebuild may have given the extent another descriptor */
    prs_store_seqcst(&slot->word, prs_word(prs_word_generation(slot->word), 0, PRS_STATE_FREE));
    prs_extent_free(s, e, p->slot);
    prs_store_relaxed(&slot->extent, PRS_NIL);
    prs_slot_give(s, p->slot);
    p->size = 0;
}

static void against_the_model(uint64_t capacity, bool paged_too, uint64_t seed, int steps)
{
    prs_store *s = store_of(capacity);
    prs_error e = {0};
    static struct piece live[LIVE];
    uint64_t rng = seed, used = 0;
    int failed = 0;
    memset(live, 0, sizeof live);
    CHECK_EQ(prs_lock(s, PRS_SECOND, &e), PRS_OK);
    for (int step = 0; step < steps; step++) {
        uint64_t r = test_random(&rng);
        struct piece *p = &live[r % LIVE];
        if (p->size) {
            used -= p->size;
            piece_free(s, p);
        } else {
            uint64_t size = (r >> 20) % 7 < 5 ? (r >> 24) % 3000 : (r >> 24) % (capacity / 20);
            bool paged = paged_too && (r >> 60) % 3 == 0;
            if (piece_alloc(s, size, paged ? PRS_PAGED : PRS_PACKED, p)) {
                CHECK(p->size >= size && p->size < size + (paged ? PRS_PAGE : PRS_UNIT) + (size == 0) * PRS_PAGE);
                CHECK(p->off % (paged ? PRS_PAGE : PRS_UNIT) == 0 && p->off + p->size <= capacity);
                for (int i = 0; i < LIVE; i++)
                    CHECK(&live[i] == p || !live[i].size || live[i].off + live[i].size <= p->off ||
                          p->off + p->size <= live[i].off);
                used += p->size;
            } else { /* allowed only if no free extent is large enough */
                uint64_t need = prs_round_up(size ? size : 1, paged ? PRS_PAGE : PRS_UNIT);
                CHECK_MSG(prs_extent_largest(s) < need + (paged ? PRS_PAGE : 0),
                          "%llu bytes refused, %llu are free in one piece", (unsigned long long)need,
                          (unsigned long long)prs_extent_largest(s));
                failed++;
            }
        }
        CHECK_EQ(used, s->super->arena.used);
        if (step % 7 == 0 || step > steps - 50)
            check_extents(s);
        if (step % 1500 == 1499) { /* a rebuild from the slots yields the same extents */
            prs_unlock(s);
            CHECK_EQ(prs_lock(s, PRS_SECOND, &e), PRS_OK);
            CHECK_EQ(prs_rebuild(s, &e), PRS_OK);
            CHECK_EQ(used, s->super->arena.used);
            check_extents(s);
        }
    }
    for (int i = 0; i < LIVE; i++)
        if (live[i].size)
            piece_free(s, &live[i]);
    check_extents(s);
    CHECK_EQ(s->super->arena.used, 0);
    CHECK_EQ(prs_extent_largest(s), capacity);
    prs_unlock(s);
    CHECK(failed > 0); /* the store was full at times */
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(small_extents_against_a_model)
{
    against_the_model(MIB, false, test_seed(1), SANITIZED ? 3000 : 12000);
}

TEST(mixed_extents_against_a_model)
{
    for (uint64_t seed = 1; seed <= 3; seed++)
        against_the_model(2 * MIB, true, test_seed(seed), SANITIZED ? 2000 : 8000);
}

/* Fill a store with small objects. After freeing every second one, no extent of twice the size is free; after freeing
 * all, the space is one free extent again. */
TEST(fragments_are_merged)
{
    prs_store *s = store_of(4 * MIB);
    enum { N = 4 * 1024 / 100 };
    prs_oid id[N + 1];
    prs_error e = {0};
    int n = 0;
    while (n < N && try_put(s, 100 * 1024, (uint64_t)n, &id[n], &e) == PRS_OK)
        n++;
    CHECK(n > 30);
    for (int i = 0; i < n; i += 2)
        prs_unref(s, &id[i]);
    prs_oid big;
    CHECK_EQ(try_put(s, 300 * 1024, 1, &big, &e), PRS_E_FULL);
    CHECK(e.want >= 300 * 1024 && e.capacity == 4 * MIB && e.used >= (uint64_t)n / 2 * 100 * 1024);
    for (int i = 1; i < n; i += 2)
        CHECK_EQ(verify(s, &id[i], 100 * 1024, (uint64_t)i), PRS_OK);
    for (int i = 0; i < n; i += 2) /* all freed memory can be allocated again */
        id[i] = put(s, 100 * 1024, (uint64_t)i + 500);
    for (int i = 0; i < n; i++)
        prs_unref(s, &id[i]);
    big = put(s, 4 * MIB, 3);
    CHECK_EQ(verify(s, &big, 4 * MIB, 3), PRS_OK);
    prs_unref(s, &big);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(small_grow_from_the_low_end_large_from_the_high)
{
    prs_store *s = store_of(64 * MIB);
    prs_draft d;
    prs_error e = {0};
    uint64_t low = 0, high = 64 * MIB;
    for (int i = 0; i < 10; i++) {
        CHECK_EQ(prs_alloc(s, 200, 0, &d, &e), PRS_OK);
        CHECK(d.off < MIB);
        CHECK_EQ(prs_alloc(s, MIB, i % 2 ? PRS_ALLOC_WINDOW : 0, &d, &e), PRS_OK);
        CHECK_EQ(d.off % PRS_PAGE, 0);
        CHECK_EQ(d.off, high - MIB);
        high = d.off;
        (void)low;
    }
    close_store(s);
}

TEST(what_was_freed_last_comes_back_first)
{
    prs_store *s = store_of(64 * MIB);
    prs_error e = {0};
    const uint64_t sizes[] = {200, 5000, 100000, MIB, 3 * MIB + 5};
    for (int k = 0; k < 5; k++) {
        prs_draft a, b, c;
        prs_oid keep = put(s, sizes[k], 1);
        CHECK_EQ(prs_alloc(s, sizes[k], 0, &a, &e), PRS_OK);
        prs_oid between = put(s, sizes[k], 1); /* put another object between, so that the freed extents do not merge */
        CHECK_EQ(prs_alloc(s, sizes[k], 0, &b, &e), PRS_OK);
        prs_oid behind = put(s, sizes[k], 1);
        uint64_t first = a.off, last = b.off;
        prs_abort(s, &a);
        prs_abort(s, &b);
        CHECK_EQ(prs_alloc(s, sizes[k], 0, &c, &e), PRS_OK);
        CHECK_EQ(c.off, last);
        CHECK_EQ(prs_alloc(s, sizes[k], 0, &a, &e), PRS_OK);
        CHECK_EQ(a.off, first);
        prs_abort(s, &a);
        prs_abort(s, &c);
        prs_unref(s, &keep);
        prs_unref(s, &between);
        prs_unref(s, &behind);
    }
    CHECK_EMPTY(s);
    close_store(s);
}

/* A loop that puts and drops objects of one size reuses the same pages. */
TEST(put_drop_put_stays_warm)
{
    prs_store *s = store_of(256 * MIB);
    uint64_t off = 0;
    for (int i = 0; i < 6; i++) {
        prs_oid id = put(s, 20 * MIB, (uint64_t)i);
        uint64_t at = prs_load_relaxed(&prs_slot_at(s, id.slot)->off);
        CHECK(i == 0 || at == off);
        off = at;
        prs_unref(s, &id);
    }
    CHECK(stats_of(s).backed < 30 * MIB);
    CHECK_EMPTY(s);
    close_store(s);
}

/* ---- full ----------------------------------------------------------------------------------------------- */

TEST(reserves_of_others_are_taken_back_when_full)
{
    prs_store *s = store_of(2 * MIB), *t[4];
    prs_error e = {0};
    prs_oid big;
    for (int i = 0; i < 4; i++) {
        t[i] = client_of(s);
        for (uint32_t cls = 0; cls < PRS_CLASSES; cls++) { /* fills the magazines of every class */
            prs_oid id;
            if (try_put(t[i], prs_class_size(cls), 1, &id, &e) == PRS_OK)
                prs_unref(t[i], &id);
        }
    }
    prs_deferred_run_all(s);
    CHECK(stats_of(s).reserved > 0);
    CHECK_EQ(stats_of(s).used, 0);
    big = put(s, 2 * MIB, 1); /* takes all memory that is left */
    CHECK_EQ(stats_of(s).reserved, 0);
    prs_oid one;
    for (int i = 0; i < 4; i++) /* the slots in the magazines belong to other clients now */
        CHECK_EQ(try_put(t[i], 64, 2, &one, &e), PRS_E_FULL);
    CHECK_EQ(verify(t[0], &big, 2 * MIB, 1), PRS_OK);
    prs_unref(s, &big);
    prs_oid id[4];
    for (int i = 0; i < 4; i++)
        id[i] = put(t[i], 64, (uint64_t)i);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(verify(s, &id[i], 64, (uint64_t)i), PRS_OK);
    for (int i = 0; i < 4; i++)
        close_store(t[i]);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(the_table_of_objects_full)
{
    prs_store *s = store_with((prs_options){.capacity = 8 * MIB, .max_objects = 1024});
    prs_error e = {0};
    static prs_oid id[1100];
    int n = 0, rc;
    while ((rc = try_put(s, 64, (uint64_t)n, &id[n], &e)) == PRS_OK)
        n++;
    CHECK_EQ(rc, PRS_E_OBJECTS);
    CHECK_EQ(n, 1024);
    CHECK(e.capacity == 1024 && e.what[0]);
    for (int i = 0; i < n; i++)
        CHECK_EQ(verify(s, &id[i], 64, (uint64_t)i), PRS_OK);
    prs_unref(s, &id[500]);
    id[500] = put(s, 64, 500);
    prs_unref(s, &id[501]);
    id[501] = put(s, 300000, 501); /* a large object instead of a small one */
    CHECK_EQ(verify(s, &id[501], 300000, 501), PRS_OK);
    for (int i = 0; i < n; i++)
        prs_unref(s, &id[i]);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(a_corpses_memory_is_found_when_needed)
{
    prs_store *s = store_of(8 * MIB);
    int ready[2];
    CHECK(pipe(ready) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(10);
        for (int i = 0; i < 6; i++)
            put(s, MIB, 1);
        put(s, 100, 1);
        CHECK(write(ready[1], "x", 1) == 1);
        for (;;)
            pause();
    }
    char c;
    CHECK(read(ready[0], &c, 1) == 1);
    prs_oid id;
    prs_error e = {0};
    CHECK_EQ(try_put(s, 5 * MIB, 1, &id, &e), PRS_E_FULL);
    kill(pid, SIGKILL);
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGKILL);
    id = put(s, 8 * MIB, 2); /* no call has checked for dead clients */
    CHECK_EQ(verify(s, &id, 8 * MIB, 2), PRS_OK);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    close(ready[0]), close(ready[1]);
    close_store(s);
}

/* ---- pages back to the kernel ------------------------------------------------------------------------------ */

TEST(trim_gives_back_what_is_free_wherever_it_lies)
{
    prs_store *s = store_of(512 * MIB);
    prs_oid id[8];
    for (int i = 0; i < 8; i++)
        id[i] = put(s, 4 * MIB, (uint64_t)i);
    uint64_t all = stats_of(s).backed;
    CHECK(all >= 32 * MIB);
    for (int i = 0; i < 8; i += 2) /* holes between live extents; the largest free extent was never used */
        prs_unref(s, &id[i]);
    CHECK(stats_of(s).backed > all - MIB); /* the freed extent stays warm */
    uint64_t given = prs_trim(s, 0);
    CHECK_MSG(given >= 15 * MIB, "%llu bytes given back", (unsigned long long)given);
    CHECK(stats_of(s).backed <= all - 15 * MIB);
    for (int i = 1; i < 8; i += 2)
        CHECK_EQ(verify(s, &id[i], 4 * MIB, (uint64_t)i), PRS_OK);
    for (int i = 0; i < 8; i += 2)
        id[i] = put(s, 4 * MIB, (uint64_t)i + 50);
    for (int i = 0; i < 8; i++) {
        CHECK_EQ(verify(s, &id[i], 4 * MIB, i % 2 ? (uint64_t)i : (uint64_t)i + 50), PRS_OK);
        prs_unref(s, &id[i]);
    }
    prs_trim(s, 0);
    CHECK(stats_of(s).backed < 4 * MIB);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(beyond_the_warm_reserve_pages_go_at_once)
{
    prs_store *s = store_with((prs_options){.capacity = 256 * MIB, .warm_reserve = MIB});
    prs_oid id[10];
    for (int i = 0; i < 10; i++)
        id[i] = put(s, 8 * MIB, 1);
    for (int i = 0; i < 10; i++)
        prs_unref(s, &id[i]);
    CHECK(stats_of(s).backed < 40 * MIB); /* an extent that was recently freed in one piece stays warm */
    CHECK_EMPTY(s);
    close_store(s);
}

/* Return how many more bytes the file occupies, including tables, than the store counts. */
static uint64_t unmarked(prs_store *s)
{
    struct stat st;
    CHECK_EQ(fstat(s->fd_rw, &st), 0);
    return (uint64_t)st.st_blocks * 512 - stats_of(s).backed;
}

/* Fill the file system until 80 KiB are left, so that a put backs only the pages that it needs, and no neighbouring
 * ones. */
static void leave_little(prs_store *s, const char *dir)
{
    char path[64];
    struct statfs fs;
    prs_error e = {0};
    snprintf(path, sizeof path, "%s/ballast", dir);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && fstatfs(fd, &fs) == 0);
    CHECK_EQ(fallocate(fd, 0, 0, (off_t)(fs.f_bavail * (uint64_t)fs.f_bsize - 80 * 1024)), 0);
    for (uint64_t i = 1; i <= 16; i++)
        CHECK_EQ(prs_back(s, i * MIB, 4096, &e), PRS_OK);
    CHECK_EQ(prs_area_punch(&s->area, MIB, 16 * MIB, NULL), 0);
    close(fd);
    unlink(path);
}

TEST(a_tiny_tmpfs_is_an_error_not_a_signal)
{
    char dir[] = "/tmp/prs-ctest-XXXXXX", path[64], command[160];
    CHECK(mkdtemp(dir));
    snprintf(command, sizeof command, "mount -t tmpfs -o size=6m none %s 2>/dev/null", dir);
    if (geteuid() != 0 || system(command) != 0) {
        rmdir(dir);
        SKIP("no right to mount a tmpfs here");
    }
    snprintf(path, sizeof path, "%s/store", dir);
    int rc;
    prs_store *s;
    prs_error e = {0};
    rc = prs_create(&s, &(prs_options){.capacity = 64 * MIB, .max_objects = 1024, .path = path}, &e);
    if (rc == PRS_OK) {
        prs_oid id, ids[64];
        int n = 0;
        prs_draft d;
        CHECK_EQ(try_put(s, 300, 0, &ids[n++], &e), PRS_OK);
        leave_little(s, dir);
        uint64_t tables = unmarked(s); /* compared below, to check that a failed attempt frees its memory */
        CHECK_EQ(prs_alloc(s, 8 * MIB, PRS_ALLOC_WINDOW, &d, &e), PRS_E_BACKING);
        const uint64_t sizes[] = {MIB, 50000, 300};
        for (int k = 0; k < 3; k++) {
            int before = n;
            while (n < 60 && (rc = try_put(s, sizes[k], (uint64_t)n, &ids[n], &e)) == PRS_OK)
                n++;
            if (n < 60 && k < 2)
                CHECK_MSG(rc == PRS_E_BACKING && e.what[0], "put: %d %s", rc, e.what);
            if (k == 0)
                CHECK(n > before);
            CHECK_MSG(unmarked(s) <= tables + 16 * 1024, "%d: %llu bytes, %llu of tables", k,
                      (unsigned long long)unmarked(s), (unsigned long long)tables);
        }
        CHECK_EQ(prs_alloc(s, 8 * MIB, PRS_ALLOC_WINDOW, &d, &e), PRS_E_BACKING);
        for (int i = 0; i < n; i++)
            CHECK_EQ(verify(s, &ids[i], prs_load_relaxed(&prs_slot_at(s, ids[i].slot)->size), (uint64_t)i), PRS_OK);
        for (int i = 0; i < n; i++)
            prs_unref(s, &ids[i]);
        CHECK_EQ(try_put(s, 2 * MIB, 5, &id, &e), PRS_OK); /* this fits after other pages were returned */
        CHECK_EQ(verify(s, &id, 2 * MIB, 5), PRS_OK);
        prs_unref(s, &id);
        CHECK_EMPTY(s);
        close_store(s);
    }
    snprintf(command, sizeof command, "umount %s", dir);
    int unmounted = system(command);
    rmdir(dir);
    CHECK_EQ(unmounted, 0);
    CHECK_MSG(rc == PRS_OK || rc == PRS_E_BACKING, "store on a tiny tmpfs: %d %s", rc, e.what);
}

TEST_MAIN()
