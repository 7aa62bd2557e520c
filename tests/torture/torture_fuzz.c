/*
 * Tests that damaged bytes in shared memory, a message or a locator cause an error or a result, but never a crash.
 *
 * Each of three targets gets mutations of valid bytes. Build this program with the address sanitizer.
 *   form     the stored form of an object (header, table of buffers), read while another thread flips its bytes
 *   ids      object ids, tokens and locators that a message may carry, against a healthy store
 *   tables   a whole segment with damaged tables: a client refuses to attach, or can list, check, read and free
 *            objects; some runs damage the tables while a client is already attached
 *
 * PRS_TORTURE=1 makes 10 million runs. PRS_FUZZ_SEED=N repeats run N of `tables`; a run that fails prints its N.
 */
#include "engine.h"
#include "format.h"

static uint64_t runs_wanted(uint64_t few, uint64_t many)
{
    const char *text = getenv("PRS_TORTURE");
    return text && *text ? many : few;
}

/* Return a value that exposes faulty comparisons and sums more often than a random value does. */
static uint64_t nasty(uint64_t *rng)
{
    static const uint64_t edges[] = {0, 1, 31, 32, 63, 64, 4095, 4096, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX};
    uint64_t r = test_random(rng);
    switch (r % 4) {
    case 0:
        return edges[(r >> 8) % (sizeof edges / sizeof *edges)];
    case 1:
        return edges[(r >> 8) % (sizeof edges / sizeof *edges)] - 1 - (r >> 16) % 3;
    case 2:
        return r >> 40;
    default:
        return r;
    }
}

static void damage(uint8_t *at, size_t n, uint64_t *rng)
{
    for (uint64_t k = 1 + test_random(rng) % 4; k > 0; k--) {
        uint64_t r = test_random(rng), value = nasty(rng);
        size_t width = (size_t)1 << r % 4, off = (r >> 8) % n;
        if ((r >> 60) & 1)
            off &= ~(width - 1);
        if (off + width <= n)
            memcpy(at + off, &value, width);
    }
}

/* ---- the stored form ------------------------------------------------------------------------------------------- */

enum { BUFFERS = 4, FORM_SIZE = 1024 };

struct flipping {
    uint8_t *bytes;
    prs_atomic_u32 stop;
};

static void *flip(void *arg)
{
    struct flipping *f = arg;
    uint64_t rng = 7;
    while (!prs_load_relaxed(&f->stop)) {
        uint64_t r = test_random(&rng);
        __atomic_fetch_xor(&f->bytes[r % (PRS_HEADER_SIZE + BUFFERS * PRS_ENTRY_SIZE)], (uint8_t)(1u << (r >> 32) % 8),
                           __ATOMIC_RELAXED);
    }
    return NULL;
}

static void make_form(uint8_t *to)
{
    uint64_t end = PRS_HEADER_SIZE + BUFFERS * PRS_ENTRY_SIZE + 100, off;
    prs_oid other = {1, 2, 3, 4};
    for (uint32_t i = 0; i < BUFFERS; i++) {
        CHECK(prs_format_place(&end, i * 70, &off));
        prs_format_write_entry(to, i, off, i * 70, i == 3 ? &other : NULL);
    }
    CHECK(end <= FORM_SIZE);
    prs_format_write_header(to, FORM_SIZE, 100, BUFFERS);
}

/* Read the form as `get` does: if it passes the checks, touch every byte. */
static uint64_t read_form(const uint8_t *bytes, uint64_t have)
{
    prs_header h;
    uint64_t sum = 0;
    if (prs_format_check_header(bytes, have, &h) || h.total > have)
        return 0;
    uint64_t body = prs_format_body(&h);
    for (uint64_t i = body - h.stream_len; i < body; i++)
        sum += bytes[i];
    for (uint32_t i = 0; i < h.nbuffers; i++) {
        prs_buffer_entry e;
        if (prs_format_check_entry(&h, bytes + PRS_HEADER_SIZE, i, &e))
            return sum;
        if (e.slot == PRS_NO_SLOT)
            for (uint64_t k = 0; k < e.len; k++)
                sum += bytes[e.off + k];
    }
    return sum + 1;
}

/* The fast check of a form with one buffer must not accept forms that the two full checks refuse. */
TEST(one_buffer)
{
    uint8_t valid[256] = {0}, *bytes = malloc(sizeof valid);
    const uint64_t stream = 45, before = PRS_HEADER_SIZE + PRS_ENTRY_SIZE;
    uint64_t end = before + stream, off, rng = test_seed(12), wanted = runs_wanted(300000, 9000000), yes = 0;
    CHECK(prs_format_place(&end, 80, &off));
    prs_format_write_header(valid, end, stream, 1);
    prs_format_write_entry(valid, 0, off, 80, NULL);
    for (uint64_t n = 0; n < wanted; n++) {
        uint64_t have = n % 8 != 1 ? end : test_random(&rng) % (end + 1);
        memcpy(bytes, valid, sizeof valid);
        if (n)
            damage(bytes, before, &rng);
        prs_header h, h2;
        prs_buffer_entry e, e2;
        bool quick = prs_format_one_buffer(bytes, have, &h, &e);
        bool slow = !prs_format_check_header(bytes, have, &h2) && h2.total == have && h2.nbuffers == 1 &&
                    !prs_format_check_entry(&h2, bytes + PRS_HEADER_SIZE, 0, &e2) && e2.slot == PRS_NO_SLOT;
        /* Only the full checks accept any offset of an empty buffer. */
        CHECK(quick == (slow && e2.off <= have));
        if (quick)
            CHECK(memcmp(&h, &h2, sizeof h) == 0 && memcmp(&e, &e2, sizeof e) == 0);
        CHECK(n || quick);
        yes += quick;
    }
    free(bytes);
    CHECK(yes > 0 && yes < wanted);
}

TEST(damaged_forms)
{
    if (SANITIZED_THREADS)
        SKIP("the race is the subject");
    uint8_t valid[FORM_SIZE] = {0}, *bytes = malloc(FORM_SIZE); /* on the heap, where the sanitizer guards both ends */
    make_form(valid);
    CHECK(read_form(valid, FORM_SIZE) == 1);
    memcpy(bytes, valid, FORM_SIZE);
    uint64_t rng = test_seed(11), wanted = runs_wanted(300000, 9000000), readable = 0;
    struct flipping f = {bytes, 0};
    pthread_t thread;
    for (int live = 0; live < 2; live++) {
        if (live)
            pthread_create(&thread, NULL, flip, &f);
        for (uint64_t n = 0; n < wanted / 2; n++) {
            memcpy(bytes, valid, FORM_SIZE);
            if (!live || n % 4 == 0)
                damage(bytes, PRS_HEADER_SIZE + BUFFERS * PRS_ENTRY_SIZE, &rng);
            readable += read_form(bytes, n % 16 ? FORM_SIZE : test_random(&rng) % (FORM_SIZE + 1)) != 0;
        }
    }
    prs_store_relaxed(&f.stop, 1);
    pthread_join(thread, NULL);
    free(bytes);
    printf("     %llu forms, %llu of them still readable\n", (unsigned long long)wanted, (unsigned long long)readable);
    CHECK(readable > 0 && readable < wanted);
}

/* ---- ids, tokens, locators --------------------------------------------------------------------------------------- */

TEST(damaged_ids)
{
    prs_store *s = store_with((prs_options){.capacity = 4 * MIB, .max_objects = 2048});
    prs_oid kept = put(s, 1000, 1);
    prs_token token;
    CHECK_EQ(prs_token_take(s, &kept, PRS_TOKEN_ONCE, &token), PRS_OK);
    uint64_t rng = test_seed(12), wanted = runs_wanted(200000, 1000000), found = 0;
    for (uint64_t n = 0; n < wanted; n++) {
        prs_oid id = kept;
        prs_token t = token;
        damage((uint8_t *)&id, sizeof id, &rng);
        damage((uint8_t *)&t, sizeof t, &rng);
        if (t.serial == token.serial && t.index == token.index)
            t.serial++;
        if (memcmp(&id, &kept, sizeof id) == 0)
            continue;
        prs_view v;
        prs_error e;
        switch (n % 8) {
        case 0:
            if (prs_pin(s, &id, &v) == PRS_OK) {
                found++;
                prs_unpin(s, &id);
            }
            break;
        case 1:
            if (prs_ref(s, &id) == PRS_OK) { /* only the right serial may find the object in a slot */
                found += id.serial != kept.serial || id.slot != kept.slot || id.store != kept.store;
                prs_unref(s, &id);
            }
            break;
        case 2:
            CHECK(prs_state(s, &id) <= 0);
            break;
        case 3:
            (void)prs_wait(s, &id, 0);
            break;
        case 4:
            (void)prs_free(s, &id, &e);
            break;
        case 5:
            prs_token_drop(s, &id, &t);
            break;
        case 6:
            if (prs_token_claim(s, &id, &t) == PRS_OK)
                prs_unref(s, &id);
            break;
        default: {
            uint32_t cursor = (uint32_t)nasty(&rng);
            prs_flight flight[2];
            prs_record record[2];
            CHECK(prs_flights(s, &cursor, flight, 2, &e) <= 1);
            cursor = (uint32_t)nasty(&rng);
            CHECK(prs_list(s, &cursor, record, 2) <= 1);
            if (n % 1024 == 7) { /* a pid may belong to no process, a descriptor to another file */
                prs_store *none = NULL;
                int rc = prs_attach_pid(&none, (int32_t)nasty(&rng), (int)nasty(&rng), nasty(&rng), NULL, &e);
                CHECK(rc < 0 && !none);
            }
        }
        }
    }
    printf("     %llu ids, %llu of them named something\n", (unsigned long long)wanted, (unsigned long long)found);
    CHECK_EQ(found, 0);
    CHECK_EQ(verify(s, &kept, 1000, 1), PRS_OK);
    CHECK_EQ(prs_token_claim(s, &kept, &token), PRS_OK);
    prs_unref(s, &kept);
    prs_unref(s, &kept);
    CHECK_EMPTY(s);
    close_store(s);
}

/* ---- whole segments ------------------------------------------------------------------------------------------------- */

/* Seeds of runs that found errors earlier. */
static const uint64_t regressions[] = {1072, 1132, 1144};

static void use(prs_store *s, uint64_t *rng)
{
    prs_error e;
    prs_stats stats;
    prs_record record[16];
    prs_flight flight[16];
    char text[PRS_NAME_MAX + 1];
    prs_oid id;
    uint32_t cursor = 0;
    for (int n, rounds = 0; (n = prs_list(s, &cursor, record, 16)) > 0 && rounds < 1000; rounds++)
        for (int i = 0; i < n; i++) {
            prs_view v;
            if (prs_pin(s, &record[i].id, &v) == PRS_OK) {
                volatile uint8_t sum = 0;
                for (uint64_t k = 0; k < v.size; k += 1 + v.size / 64)
                    sum = (uint8_t)(sum + v.data[k]);
                prs_unpin(s, &record[i].id);
            }
            if (prs_ref(s, &record[i].id) == PRS_OK)
                prs_unref(s, &record[i].id);
        }
    cursor = 0;
    for (int rounds = 0; prs_name_next(s, &cursor, "", 0, text, &id, NULL) > 0 && rounds < 10000; rounds++)
        (void)prs_state(s, &id);
    (void)prs_name_find(s, "weights", 7, &id, NULL);
    prs_name_info info;
    if (prs_name_use(s, "weights", 7, 1000, &id, &info) == PRS_OK) {
        (void)prs_name_bind(s, "weights", 7, &id, PRS_NAME_REPLACE, &e);
        (void)prs_name_bind(s, "other", 5, &id, PRS_NAME_EPHEMERAL, &e);
        prs_unref(s, &id);
    }
    (void)prs_name_count(s, "other", 5, 1, 1);
    (void)prs_name_move(s, "weights", 7, "moved", 5, &e);
    (void)prs_name_unbind(s, "moved", 5, NULL, &info, &e);
    cursor = 0;
    for (int rounds = 0; prs_flights(s, &cursor, flight, 16, &e) > 0 && rounds < 1000; rounds++)
        ;
    (void)prs_get_stats(s, &stats);
    (void)prs_check(s, &e);
    (void)rng;
}

static void build(const char *path, uint64_t *data_off)
{
    prs_store *s = store_with((prs_options){.path = path, .capacity = MIB, .max_objects = 64, .max_clients = 16});
    prs_token token;
    prs_error e;
    prs_oid a = put(s, 100, 1), b = put(s, 60000, 2), c = put(s, 90000, 3);
    prs_draft d;
    CHECK_EQ(prs_alloc(s, 64, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
    CHECK_EQ(prs_add_edge(s, &d, &a, &e), PRS_OK);
    CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
    CHECK_EQ(prs_name_bind(s, "weights", 7, &b, 0, &e), PRS_OK);
    CHECK_EQ(prs_token_take(s, &c, PRS_TOKEN_STICKY, &token), PRS_OK);
    *data_off = s->super->data_off;
    _exit(0); /* exit like a crash, without closing the store */
}

/* Return a random offset in the used parts of the tables; large parts of the tables are unused. */
static uint64_t somewhere(const prs_super *p, uint64_t *rng)
{
    const struct {
        uint64_t at, len;
    } part[] = {
        {0, 512},
        {offsetof(prs_super, lock), sizeof *p - offsetof(prs_super, lock)},
        {p->clients_off, 4 * sizeof(prs_client)},
        {p->names_off, 2 * sizeof(prs_name)},
        {p->buckets_off, PRS_NAME_BUCKETS * sizeof(uint32_t)},
        {p->slots_off, (uint64_t)40 * p->slot_stride},
        {p->extents_off, 48 * sizeof(prs_extent)},
        {p->links_off, 8 * sizeof(prs_link)},
    };
    uint64_t k = test_random(rng) % (sizeof part / sizeof *part);
    return part[k].at + test_random(rng) % (part[k].len - 8);
}

static void one_segment(const char *path, uint8_t *map, const uint8_t *image, uint64_t tables, uint64_t seed)
{
    uint64_t rng = seed * 0x9e3779b97f4a7c15u + 1;
    memcpy(map, image, tables);
    const prs_super *p = (const prs_super *)image;
    bool behind = seed % 4 == 0; /* damage the tables after the client has attached */
    prs_store *s = NULL;
    prs_error e = {0};
    prs_options o = {.lock_timeout = 20 * PRS_MS};
    if (behind && prs_attach_path(&s, path, &o, &e) < 0)
        _exit(9);
    for (uint64_t k = 1 + test_random(&rng) % 5; k > 0; k--)
        damage(map + somewhere(p, &rng), 8, &rng);
    if (!behind && prs_attach_path(&s, path, &o, &e) < 0) {
        CHECK(e.what[0]);
        _exit(7);
    }
    use(s, &rng);
    _exit(0); /* exit without closing the store: the next client must refuse a forged list of extents */
}

TEST(damaged_tables)
{
    if (SANITIZED_THREADS)
        SKIP("nothing here for this sanitizer to see");
    char path[64];
    snprintf(path, sizeof path, "/dev/shm/prs-fuzz-%d", (int)getpid());
    uint64_t tables = 0, *told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = fork();
    if (pid == 0)
        build(path, told);
    int status = reap_child(pid);
    CHECK_EXITED(status);
    tables = *told;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    uint8_t *map = mmap(NULL, tables, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), *image = NULL;
    CHECK(map != MAP_FAILED && posix_memalign((void **)&image, 4096, tables) == 0);
    memcpy(image, map, tables);
    const char *only = getenv("PRS_FUZZ_SEED");
    uint64_t wanted = runs_wanted(150, 5000), refused = 0, bad = 0;
    size_t known = sizeof regressions / sizeof *regressions;
    for (uint64_t n = 0; n < wanted + known && bad < 10; n++) {
        uint64_t seed = only && *only ? strtoull(only, NULL, 0) : n < known ? regressions[n] : n + test_seed(1000);
        fflush(NULL);
        pid = fork();
        if (pid == 0) {
            child_setup(5);
            one_segment(path, map, image, tables, seed);
        }
        status = reap_child(pid);
        refused += WIFEXITED(status) && WEXITSTATUS(status) == 7;
        if (!WIFEXITED(status) || (WEXITSTATUS(status) != 7 && WEXITSTATUS(status) != 0)) {
            bad++;
            fprintf(stderr, "     PRS_FUZZ_SEED=%llu: status %x\n", (unsigned long long)seed, (unsigned)status);
        }
        if (only && *only)
            break;
    }
    printf("     %llu segments, %llu refused, %llu findings\n", (unsigned long long)wanted, (unsigned long long)refused,
           (unsigned long long)bad);
    munmap(map, tables);
    free(image);
    close(fd);
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(bad, 0);
}

TEST_MAIN()
