/*
 * Tests that set one word in the tables of a store to an impossible value and then use the store: calls may fail,
 * but must neither crash nor hang.  PRS_TORTURE=1 tests all words; otherwise the words at which searches begin and a
 * sample of the others are tested.
 */
#include "corpses.h"

#define LIMIT_SECONDS 60

static prs_store *s;
static prs_oid kept[12];

static void fill(void)
{
    prs_error e;
    prs_draft d;
    for (int i = 0; i < 12; i++)
        kept[i] = put(s, i % 3 == 2 ? 40000 : (uint64_t)i * 300, (uint64_t)i);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(prs_alloc(s, 64, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
        CHECK_EQ(prs_add_edge(s, &d, &kept[i], &e), PRS_OK);
        CHECK_EQ(prs_add_bytes_edge(s, &d, &kept[i + 1], &e), PRS_OK);
        CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
        if (i % 2)
            prs_unref(s, &d.id);
    }
    prs_token token;
    CHECK_EQ(prs_token_take(s, &kept[5], PRS_TOKEN_ONCE, &token), PRS_OK);
    CHECK_EQ(prs_name_bind(s, "word", 4, &kept[6], 0, &e), PRS_OK);
    for (int i = 0; i < 6; i++) { /* leave holes between extents */
        prs_oid id = put(s, 30000, 1), other = put(s, 20000, 1);
        prs_unref(s, &id);
        if (i % 2)
            prs_unref(s, &other);
    }
    prs_deferred_run_all(s);
}

static void use(void)
{
    prs_error e;
    prs_view v;
    prs_oid id;
    prs_draft d;
    prs_token token;
    prs_record records[16];
    prs_flight flights[16];
    prs_stats stats;
    uint32_t cursor = 0;
    s->lock_timeout = 20 * PRS_MS;
    (void)prs_check(s, &e);
    for (int i = 0; i < 12; i++)
        if (prs_pin(s, &kept[i], &v) == PRS_OK)
            prs_unpin(s, &kept[i]);
    const uint64_t sizes[] = {10, 1000, 20000, 100000, 3 * MIB};
    for (int i = 0; i < 5; i++) {
        if (try_put(s, sizes[i], 7, &id, &e) == PRS_OK) {
            if (prs_token_take(s, &id, PRS_TOKEN_ONCE, &token) == PRS_OK)
                (void)prs_token_claim(s, &id, &token);
            prs_unref(s, &id);
        }
        if (prs_alloc(s, sizes[i], PRS_ALLOC_ORDERED, &d, &e) == PRS_OK) {
            (void)prs_add_edge(s, &d, &kept[i], &e);
            prs_abort(s, &d);
        }
    }
    if (prs_alloc(s, 50000, PRS_ALLOC_WINDOW, &d, &e) == PRS_OK) {
        memset(d.window, 1, 50000);
        if (prs_seal(s, &d, &e) == PRS_OK) {
            prs_window_close(s, &d);
            prs_unref(s, &d.id);
        }
    }
    if (prs_name_find(s, "word", 4, &id, NULL) == PRS_OK)
        prs_unref(s, &id);
    (void)prs_name_bind(s, "other", 5, &kept[7], 0, &e);
    while (prs_list(s, &cursor, records, 16) == 16)
        ;
    cursor = 0;
    while (prs_flights(s, &cursor, flights, 16, &e) == 16)
        ;
    (void)prs_get_stats(s, &stats);
    (void)prs_free(s, &kept[8], &e);
    for (int i = 0; i < 12; i++)
        prs_unref(s, &kept[i]);
    prs_deferred_run_all(s);
    (void)prs_trim(s, 0);
    (void)prs_reap_dead(s, 0);
    prs_store *other = NULL;
    int32_t pid, fd;
    uint64_t start;
    prs_locator(s, &pid, &start, &fd);
    if (prs_attach_pid(&other, pid, fd, prs_id(s), NULL, &e) == PRS_OK) {
        (void)try_put(other, 1000, 1, &id, &e);
        prs_dispose(other);
    }
    prs_close(s);
}

static uint64_t tried, wrong, tables;
static uint8_t *saved;
static const uint32_t values[] = {0, 1, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 0x01020304};

enum { VALUES = sizeof values / sizeof *values };

static void try_value(const char *what, uint8_t *base, uint64_t at, uint32_t value)
{
    *(volatile uint32_t *)(base + at) = value;
    pid_t pid = fork();
    if (pid == 0) {
        alarm(LIMIT_SECONDS);
        use();
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    memcpy((uint8_t *)s->super + PRS_PAGE, saved, tables);
    tried++;
    if (status) {
        fprintf(stderr, "%s + %llu = %x: status %x\n", what, (unsigned long long)at, value, (unsigned)status);
        wrong++;
    }
}

/* Change every `step`th word; use the values in turn. */
static void damage(const char *what, void *base, uint64_t len, uint64_t step)
{
    static uint32_t turn;
    for (uint64_t at = 0; at + 4 <= len; at += 4 * step)
        try_value(what, base, at, values[turn++ % VALUES]);
}

/* Change every word at which searches begin; try all values for each. */
static void damage_fully(const char *what, void *base, uint64_t len)
{
    for (uint64_t at = 0; at + 4 <= len; at += 4)
        for (int i = 0; i < VALUES; i++)
            try_value(what, base, at, values[i]);
}

TEST(every_word_of_the_tables)
{
    SEVERAL_PROCESSES();
    uint64_t step = getenv("PRS_TORTURE") ? 1 : SANITIZED ? 97 : 23;
    s = store_with((prs_options){.capacity = 4 * MIB, .max_objects = 1024, .max_clients = 8});
    fill();
    tables = s->super->data_off - PRS_PAGE;
    saved = malloc(tables);
    CHECK(saved);
    memcpy(saved, (uint8_t *)s->super + PRS_PAGE, tables);
    damage_fully("lengths", &s->super->published, offsetof(prs_super, epoch) - offsetof(prs_super, published));
    damage_fully("arena", &s->super->arena, offsetof(prs_arena, sl_bitmap));
    damage("super", (uint8_t *)s->super + PRS_PAGE, sizeof(prs_super) - PRS_PAGE, step);
    damage("clients", s->clients, 4 * sizeof(prs_client), step);
    damage("names", s->names, 2 * sizeof(prs_name), step);
    damage("slots", s->slots, 48 * (uint64_t)s->slot_stride, step);
    damage("extents", s->extents, 64 * sizeof(prs_extent), step);
    damage("links", s->links, 24 * sizeof(prs_link), step);
    fprintf(stderr, "     %llu words\n", (unsigned long long)tried);
    CHECK_EQ(wrong, 0);
    free(saved);
    close_store(s);
}

TEST_MAIN()
