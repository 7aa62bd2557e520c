/*
 * test_damage.c - each kind of damage that prs_check() can detect.
 *
 * Each case damages one table in one place, as a stray write or a bug of the engine could. The check must report this
 * damage, no process may be able to attach to such a store, and the check must pass after the bytes have been restored.
 */
#include "corpses.h"

static struct scene {
    prs_store *s;
    prs_super *p;
    prs_arena *a;
    prs_oid inner, outer;
    prs_slot *slot, *held; /* slots of the outer and of the inner object */
    prs_extent *used;      /* the outer's */
    uint32_t free_extent;
    uint32_t fl, sl; /* the bin that contains only free_extent */
    uint32_t edge, free_link, token;
    prs_name *name;
    uint8_t *before; /* all tables but the constants */
} at;

static void bin_with_one(struct scene *c)
{
    for (c->fl = 0; c->fl < PRS_FL_COUNT; c->fl++)
        for (c->sl = 0; c->sl < PRS_SL_COUNT; c->sl++) {
            c->free_extent = c->a->bins[c->fl][c->sl];
            if (c->free_extent != PRS_NIL && c->s->extents[c->free_extent].bin_next == PRS_NIL &&
                c->s->extents[c->free_extent].size > 4096)
                return;
        }
    CHECK_MSG(false, "no bin holds a single extent");
}

/* Put `crowd` more objects than the scene needs, so that an attach checks the tables in slices. */
#define CROWD 5000

static void set_up(struct scene *c, int crowd)
{
    prs_error e;
    prs_draft d;
    prs_token token, ended;
    c->s = store_with((prs_options){.capacity = 8 * MIB, .max_objects = 8192});
    for (int i = 0; i < crowd; i++)
        (void)put(c->s, 64, (uint64_t)i);
    c->p = c->s->super, c->a = &c->p->arena;
    c->inner = put(c->s, 3000, 1);
    CHECK_EQ(prs_alloc(c->s, 100000, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
    CHECK_EQ(prs_add_edge(c->s, &d, &c->inner, &e), PRS_OK);
    uint8_t *bytes = calloc(1, 100000);
    CHECK_EQ(prs_write(c->s, &d, 0, bytes, 100000, &e), PRS_OK);
    free(bytes);
    CHECK_EQ(prs_seal(c->s, &d, &e), PRS_OK);
    c->outer = d.id;
    prs_oid hole = put(c->s, 200000, 2), last = put(c->s, MIB, 3);
    prs_unref(c->s, &hole); /* leaves free extents on both sides of the used ones */
    (void)last;
    CHECK_EQ(prs_token_take(c->s, &c->inner, PRS_TOKEN_ONCE, &token), PRS_OK);
    CHECK_EQ(prs_name_bind(c->s, "name", 4, &c->outer, 0, &e), PRS_OK);
    CHECK_EQ(prs_token_take(c->s, &c->inner, PRS_TOKEN_ONCE, &ended), PRS_OK);
    prs_token_drop(c->s, &c->inner, &ended); /* leaves a free record */
    prs_magazines_flush(c->s);
    prs_deferred_run_all(c->s);
    c->slot = prs_slot_at(c->s, c->outer.slot), c->held = prs_slot_at(c->s, c->inner.slot);
    c->used = &c->s->extents[prs_load_relaxed(&c->slot->extent)];
    bin_with_one(c);
    c->name = &c->s->names[0];
    c->edge = prs_load_relaxed(&c->slot->edges);
    c->token = token.index - 1;
    c->free_link = c->a->link_free;
    CHECK(c->free_link != PRS_NIL && c->a->slot_free != PRS_NIL && c->name->serial == c->outer.serial);
    c->before = malloc(c->s->control_len - 4096);
    memcpy(c->before, (uint8_t *)c->p + 4096, c->s->control_len - 4096);
}

static void flags_of_bin(prs_arena *a, uint32_t fl, uint32_t sl, uint32_t head)
{
    a->bins[fl][sl] = head;
    if (head == PRS_NIL)
        a->sl_bitmap[fl] &= ~(1u << sl);
    else
        a->sl_bitmap[fl] |= 1u << sl;
    a->fl_bitmap = a->sl_bitmap[fl] ? a->fl_bitmap | 1ull << fl : a->fl_bitmap & ~(1ull << fl);
}

/* Turn an unused descriptor, which is in no chain, into a free extent of 64 bytes. */
static uint32_t stray(struct scene *c)
{
    uint32_t i = c->a->extent_bump;
    c->s->extents[i] =
        (prs_extent){.size = 64, .prev = PRS_NIL, .next = PRS_NIL, .bin_next = PRS_NIL, .bin_prev = PRS_NIL};
    return i;
}

#define WORD(slot_, set, clear) \
    prs_store_relaxed(&(slot_)->word, (prs_load_relaxed(&(slot_)->word) & ~(uint64_t)(clear)) | (set))
#define SAYS(text, ...) \
    do {                \
        __VA_ARGS__;    \
        return (text);  \
    } while (0)

static const char *damage_slot(struct scene *c, int which)
{
    prs_slot *slot = c->slot;
    uint32_t published = prs_load_relaxed(&c->p->published);
    switch (which) {
    case 0:
        SAYS("is in no known state", WORD(slot, 15, 0));
    case 1:
        SAYS("belongs to no client", WORD(slot, 0xFFFFull << 16, 0));
    case 2:
        SAYS("is spilled and has an extent", WORD(slot, PRS_WORD_FILE, 0));
    case 3:
        SAYS("outside the data area", prs_store_relaxed(&slot->off, (1ull << 60)));
    case 4:
        SAYS("outside the data area", prs_store_relaxed(&slot->cap, c->s->capacity));
    case 5:
        SAYS("outside the data area", prs_store_relaxed(&slot->off, prs_load_relaxed(&slot->off) + 1));
    case 6:
        SAYS("and its extent disagree", prs_store_relaxed(&slot->extent, 1u << 30));
    case 7:
        SAYS("and its extent disagree", prs_store_relaxed(&slot->extent, c->free_extent));
    case 8:
        SAYS("and its extent disagree", prs_store_relaxed(&slot->extent, prs_load_relaxed(&c->held->extent)));
    case 9:
        SAYS("size or serial", prs_store_relaxed(&slot->size, prs_load_relaxed(&slot->cap) + 1));
    case 10:
        SAYS("size or serial", prs_store_relaxed(&slot->serial, 0));
    case 11:
        SAYS("size or serial", prs_store_relaxed(&slot->serial, prs_load_relaxed(&c->p->serial)));
    case 12:
        SAYS("a client that never existed", prs_store_relaxed(&slot->holders[0], 1ull << 40));
    case 13:
        SAYS("longer than its room", prs_store_relaxed(&c->p->published, c->s->max_slots + 1));
    case 14:
        SAYS("longer than its room", prs_store_relaxed(&c->p->links_published, c->p->max_links + 1));
    case 15:
        SAYS("longer than its room", prs_store_relaxed(&c->p->client_high, c->p->max_clients + 1));
    case 16:
        SAYS("damage was found in the tables earlier", prs_store_relaxed(&c->p->corrupt, 1));
    case 17:
        SAYS("the table of extents is longer", c->a->extent_bump = 2 * published + 9);
    case 18:
        SAYS("stack of free slots", c->a->slot_free = published);
    case 19:
        SAYS("stack of free slots", c->a->slot_free = c->outer.slot);
    case 20: /* a ring */
        SAYS("stack of free slots", prs_store_relaxed(&prs_slot_at(c->s, c->a->slot_free)->next_free, c->a->slot_free));
    case 21:
        SAYS("on the stack", c->a->slot_free_count++);
    case 22:
        SAYS("on the stack", c->a->slot_free = prs_load_relaxed(&prs_slot_at(c->s, c->a->slot_free)->next_free));
    default:
        return NULL;
    }
}

static const char *damage_extent(struct scene *c, int which)
{
    prs_extent *used = c->used, *gap = &c->s->extents[c->free_extent];
    uint32_t limit = 2 * prs_load_relaxed(&c->p->published) + 8, i;
    switch (which) {
    case 0:
        SAYS("leaves its table", c->a->extent_first = limit);
    case 1:
        SAYS("does not follow its neighbour", used->off += 64);
    case 2:
        SAYS("does not follow its neighbour", used->size = 0);
    case 3:
        SAYS("does not follow its neighbour", used->size++);
    case 4:
        SAYS("does not follow its neighbour", used->prev = PRS_NIL - 7);
    case 5:
        SAYS("belongs to no slot", gap->bin_next = PRS_USED, gap->slot = 1u << 30);
    case 6:
        SAYS("disagree", gap->bin_next = PRS_USED, gap->slot = c->outer.slot);
    case 7:
        SAYS("disagree", prs_store_relaxed(&c->slot->off, prs_load_relaxed(&c->slot->off) - 64));
    case 8:
        SAYS("disagree", prs_store_relaxed(&c->slot->cap, prs_load_relaxed(&c->slot->cap) + 64));
    case 9: /* split one gap into two free extents */
        i = stray(c);
        c->s->extents[i].off = gap->off + gap->size - 64;
        c->s->extents[i].prev = c->free_extent;
        c->s->extents[i].next = gap->next;
        if (gap->next != PRS_NIL)
            c->s->extents[gap->next].prev = i;
        SAYS("are free neighbours", gap->next = i, gap->size -= 64);
    case 10: /* the chain ends too early */
        i = c->a->extent_first;
        SAYS("extents cover", c->s->extents[i].next = PRS_NIL);
    case 11:
        SAYS("used bytes are", prs_store_relaxed(&c->a->used, prs_load_relaxed(&c->a->used) + 64));
    case 12:
        SAYS("bitmap of power", c->a->fl_bitmap ^= 1ull << 39);
    case 13:
        SAYS("bitmap of bin",
             c->a->sl_bitmap[c->fl] ^= c->a->bins[c->fl][c->sl ^ 1] == PRS_NIL ? 1u << (c->sl ^ 1) : 0);
    case 14:
        SAYS("contains an extent that is not free", c->a->bins[c->fl][c->sl] = prs_load_relaxed(&c->slot->extent));
    case 15:
        SAYS("contains an extent that is not free", c->a->bins[c->fl][c->sl] = limit);
    case 16:
        SAYS("contains an extent that is not free", gap->bin_prev = c->free_extent);
    case 17: /* the count is one too high */
        SAYS("contains an extent that is not free", flags_of_bin(c->a, 0, 1, stray(c)));
    case 18:
        flags_of_bin(c->a, c->fl, c->sl, PRS_NIL);
        SAYS("is in the wrong bin", flags_of_bin(c->a, c->fl, c->sl ^ 1, c->free_extent));
    case 19:
        flags_of_bin(c->a, c->fl, c->sl, PRS_NIL);
        SAYS("is in the wrong bin", flags_of_bin(c->a, 39, c->sl, c->free_extent));
    case 20:
        SAYS("are in no bin", flags_of_bin(c->a, c->fl, c->sl, PRS_NIL));
    case 21: /* the number of free extents is right, but their number of bytes is wrong */
        flags_of_bin(c->a, c->fl, c->sl, PRS_NIL);
        SAYS("are in no bin", flags_of_bin(c->a, 0, 1, stray(c)));
    default:
        return NULL;
    }
}

static const char *damage_link(struct scene *c, int which)
{
    prs_link *edge = &c->s->links[c->edge], *named = &c->s->links[c->name->link];
    uint32_t published = prs_load_relaxed(&c->p->published);
    switch (which) {
    case 0:
        SAYS("of no known kind", edge->kind = PRS_LINK_LAST + 1);
    case 1:
        SAYS("holds no slot", edge->slot = published);
    case 2:
        SAYS("belongs to no object", edge->owner.outer.slot = published);
    case 3:
        SAYS("names a younger object", edge->inner = c->outer.serial);
    case 4:
        SAYS("are counted as", c->a->tokens++);
    case 5:
        SAYS("are counted as", c->a->edges++);
    case 6:
        SAYS("stack of free links", c->a->link_free = c->a->link_bump);
    case 7:
        SAYS("stack of free links", c->a->link_free = c->edge);
    case 8: /* a ring */
        SAYS("stack of free links", c->s->links[c->free_link].next_free = c->free_link);
    case 9:
        SAYS("are not on the stack", c->a->link_free = PRS_NIL);
    case 10:
        SAYS("and counts none", prs_store_relaxed(&c->held->links, 0));
    case 11:
        SAYS("does not hold its object", c->name->len = PRS_NAME_MAX + 1);
    case 12:
        SAYS("does not hold its object", c->name->link = prs_load_relaxed(&c->p->links_published));
    case 13:
        SAYS("does not hold its object", c->name->link = c->token);
    case 14:
        SAYS("does not hold its object", named->owner.name.entry = 1);
    case 15:
        SAYS("does not hold its object", named->inner++);
    case 16:
        SAYS("is damaged", c->name->hash ^= 1);
    default:
        return NULL;
    }
}

static int live_clients(struct scene *c)
{
    int n = 0;
    for (uint32_t i = 0; i < c->p->max_clients; i++)
        n += (prs_load_relaxed(&c->s->clients[i].state) & 0xFF) == PRS_CLIENT_LIVE;
    return n;
}

static void heal(struct scene *c)
{
    memcpy((uint8_t *)c->p + 4096, c->before, c->s->control_len - 4096);
    prs_store_relaxed(&c->s->slots_seen, prs_load_relaxed(&c->p->published));
    prs_store_relaxed(&c->s->links_seen, prs_load_relaxed(&c->p->links_published));
}

/* Return whether only a check of a whole chain or table finds the damage. An attach to a large store does not make such
 * a check. */
static bool is_sum(const char *says)
{
    return strstr(says, "on the stack") || strstr(says, "used bytes are") || strstr(says, "are counted as");
}

static void try_with(const char *damage(struct scene *, int), int crowd)
{
    struct scene *c = &at;
    set_up(c, crowd);
    prs_error e = {0};
    CHECK_EQ(prs_check(c->s, &e), PRS_OK);
    const char *says;
    for (int which = 0; (says = damage(c, which)) != NULL; which++) {
        e.what[0] = 0;
        int rc = prs_check(c->s, &e);
        CHECK_MSG(rc == PRS_E_CORRUPT && strstr(e.what, says), "damage %d should say \"%s\": %d \"%s\"", which, says,
                  rc, e.what);
        prs_store *t = NULL;
        rc = crowd && is_sum(says) ? PRS_E_CORRUPT : prs_attach_pid(&t, getpid(), -1, prs_id(c->s), NULL, &e);
        CHECK_MSG(rc == PRS_E_CORRUPT && t == NULL, "damage %d: attached to all the same: %d", which, rc);
        CHECK_EQ(live_clients(c), 1); /* the process that was refused must not stay a client */
        heal(c);
        rc = prs_check(c->s, &e);
        CHECK_MSG(rc == PRS_OK, "damage %d was to be undone: %s", which, e.what);
    }
    prs_store *t = client_of(c->s); /* refused processes must leave nothing behind */
    CHECK_CLIENTS(t, 2);
    close_store(t);
    CHECK_STORE(c->s);
    close_store(c->s);
    free(c->before);
}

static void try_all(const char *damage(struct scene *, int))
{
    try_with(damage, 0);
    try_with(damage, CROWD);
}

TEST(slots)
{
    try_all(damage_slot);
}

TEST(extents)
{
    try_all(damage_extent);
}

TEST(links_and_names)
{
    try_all(damage_link);
}

/* An attaching process that is stopped between two slices of its check does not hold the lock. When it continues, it
 * accepts the tables, although they have changed meanwhile. */
TEST(others_put_and_free_while_a_large_store_is_checked)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_with((prs_options){.capacity = 64 * MIB, .max_objects = 32768});
    static prs_oid id[2 * CROWD];
    for (int i = 0; i < 2 * CROWD; i++)
        id[i] = put(s, 64, (uint64_t)i);
    pid_t parent = getpid();
    for (int slice = 2; slice < 7; slice++) {
        pid_t pid = fork();
        if (pid == 0) {
            prs_store *t;
            prs_error e = {0};
            prs_failpoint_arm("tables_looked", PRS_FAIL_STOP, slice, 0);
            int rc = prs_attach_pid(&t, parent, -1, prs_id(s), NULL, &e);
            if (rc < 0)
                fprintf(stderr, "%s\n", e.what);
            _exit(rc == PRS_OK ? 0 : 1);
        }
        int status;
        CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
        CHECK_MSG(WIFSTOPPED(status), "slice %d: the check was over at once", slice);
        CHECK(prs_trylock(s));
        prs_unlock(s);
        for (int i = slice; i < 2 * CROWD; i += 7) /* slots before and after this slice */
            prs_unref(s, &id[i]);
        prs_magazines_flush(s);
        prs_oid large = put(s, MIB, 1);
        for (int i = slice; i < 2 * CROWD; i += 7)
            id[i] = put(s, 64u + 64u * (uint64_t)(i % 5), (uint64_t)i);
        CHECK_EQ(kill(pid, SIGCONT), 0);
        CHECK_EQ(waitpid(pid, &status, 0), pid);
        CHECK_MSG(WIFEXITED(status) && WEXITSTATUS(status) == 0, "slice %d: the attach failed", slice);
        prs_unref(s, &large);
    }
    for (int i = 0; i < 2 * CROWD; i++)
        prs_unref(s, &id[i]);
    prs_reap_dead(s, 0);
    CHECK_EMPTY(s);
    close_store(s);
}

/* The engine checks the offset in a slot, so that no view can be outside of the data area. */
TEST(a_slot_that_points_elsewhere_is_not_read)
{
    prs_store *s = store_of(8 * MIB);
    prs_oid id = put(s, 3000, 1);
    prs_slot *slot = prs_slot_at(s, id.slot);
    uint64_t off = prs_load_relaxed(&slot->off), size = prs_load_relaxed(&slot->size);
    const struct {
        uint64_t off, size;
    } wild[] = {{1ull << 60, size},
                {s->capacity + 64, size},
                {s->capacity - 64, size},
                {off, s->capacity - off + 1},
                {off, 70000}};
    prs_view v, again;
    for (int pinned = 0; pinned < 2; pinned++) {
        if (pinned)
            CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
        for (size_t i = 0; i < sizeof wild / sizeof *wild; i++) {
            prs_store_relaxed(&slot->off, wild[i].off), prs_store_relaxed(&slot->size, wild[i].size);
            CHECK_EQ(prs_pin(s, &id, &again), PRS_E_CORRUPT);
            prs_store_relaxed(&slot->off, off), prs_store_relaxed(&slot->size, size);
        }
    }
    prs_unpin(s, &id);
    CHECK_EQ(verify(s, &id, 3000, 1), PRS_OK);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    close_store(s);
}

/* ---- memory that stays allocated after damage --------------------------------------------------- */

static uint32_t state_of(prs_store *s, uint32_t i)
{
    return prs_word_state(prs_load_seqcst(&prs_slot_at(s, i)->word));
}

/* Check that a rebuild, as a thief makes it, frees everything that stayed allocated. */
static void rebuild_and_expect_empty(prs_store *s)
{
    prs_error e = {0};
    prs_deferred_run_all(s);
    CHECK_EQ(prs_check(s, &e), PRS_E_CORRUPT);
    prs_store_relaxed(&s->super->corrupt, 0);
    CHECK_EQ(prs_lock_tables(s, &e), PRS_OK);
    CHECK_EQ(prs_rebuild(s, &e), PRS_OK);
    prs_unlock(s);
    CHECK_EMPTY(s);
}

TEST(a_put_gives_back_a_slot_that_points_elsewhere)
{
    const uint64_t sizes[] = {3000, 100000};
    for (size_t k = 0; k < 2; k++) {
        prs_store *s = store_of(8 * MIB);
        prs_error e = {0};
        prs_oid id = put(s, 3000, 1), next;
        prs_slot *slot = prs_slot_at(s, id.slot);
        prs_unref(s, &id); /* the slot goes into a magazine */
        CHECK_EQ(state_of(s, id.slot), PRS_STATE_RESERVED);
        if (k == 0)
            prs_store_relaxed(&slot->off, 1ull << 60);
        else
            prs_store_relaxed(&slot->cap, 64);
        CHECK_EQ(try_put(s, 3000, 2, &next, &e), PRS_E_CORRUPT);
        prs_deferred_run_all(s);
        CHECK_EQ(state_of(s, id.slot), PRS_STATE_FREE);
        CHECK_EQ(try_put(s, sizes[k], 3, &next, &e), PRS_OK);
        CHECK_EQ(verify(s, &next, sizes[k], 3), PRS_OK);
        prs_unref(s, &next);
        CHECK_EQ(prs_check(s, &e), PRS_E_CORRUPT);
        prs_store_relaxed(&s->super->corrupt, 0);
        CHECK_EMPTY(s); /* nothing else is wrong */
        close_store(s);
    }
}

TEST(an_extent_that_lies_elsewhere_is_never_free_again)
{
    prs_store *s = store_of(8 * MIB);
    prs_error e = {0};
    prs_oid first = put(s, 100000, 1), id;
    uint32_t used = prs_load_relaxed(&prs_slot_at(s, first.slot)->extent);
    uint32_t gap = s->extents[used].prev != PRS_NIL ? s->extents[used].prev : s->extents[used].next;
    s->extents[gap].off = 1ull << 50;
    CHECK_EQ(try_put(s, 100000, 2, &id, &e), PRS_E_CORRUPT);
    prs_deferred_run_all(s);
    CHECK_EQ(stats_of(s).unsealed, 0);            /* the slot is free */
    CHECK_EQ(s->extents[gap].bin_next, PRS_USED); /* the extent is not free */
    prs_unref(s, &first);
    rebuild_and_expect_empty(s);
    close_store(s);
}

TEST(an_extent_of_another_slot_is_not_freed)
{
    prs_store *s = store_of(8 * MIB);
    prs_oid a = put(s, 100000, 1), b = put(s, 100000, 2);
    uint32_t own = prs_load_relaxed(&prs_slot_at(s, a.slot)->extent);
    prs_store_relaxed(&prs_slot_at(s, a.slot)->extent, prs_load_relaxed(&prs_slot_at(s, b.slot)->extent));
    prs_unref(s, &a);
    prs_deferred_run_all(s);
    CHECK_EQ(state_of(s, a.slot), PRS_STATE_FREE);
    CHECK_EQ(s->extents[own].bin_next, PRS_USED);
    prs_oid c = put(s, 100000, 3);
    CHECK_EQ(verify(s, &b, 100000, 2), PRS_OK);
    CHECK_EQ(verify(s, &c, 100000, 3), PRS_OK);
    prs_unref(s, &b), prs_unref(s, &c);
    rebuild_and_expect_empty(s);
    close_store(s);
}

TEST(indices_outside_of_the_table_of_extents_lose_nothing_more)
{
    prs_store *s = store_of(8 * MIB);
    prs_error e = {0};
    prs_oid a = put(s, 100000, 1), b;
    s->super->arena.extent_free = 1u << 30; /* the stack of unused descriptors */
    uint64_t before = prs_load_relaxed(&s->super->arena.used);
    CHECK_EQ(try_put(s, 100000, 2, &b, &e), PRS_OK);
    uint32_t used = prs_load_relaxed(&prs_slot_at(s, b.slot)->extent);
    CHECK_MSG(used < prs_extents_max(s) && s->extents[used].size == prs_load_relaxed(&s->super->arena.used) - before,
              "the put got extent %u", used);
    s->extents[used].prev = s->extents[used].next = 1u << 30; /* the links to the neighbours */
    prs_unref(s, &b);
    prs_deferred_run_all(s);
    CHECK(s->super->arena.extent_free == PRS_NIL || s->super->arena.extent_free < prs_extents_max(s));
    CHECK_EQ(verify(s, &a, 100000, 1), PRS_OK);
    prs_unref(s, &a);
    rebuild_and_expect_empty(s);
    close_store(s);
}

TEST_MAIN()
