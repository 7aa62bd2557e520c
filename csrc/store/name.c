/* name.c - the index of names.
 *
 * Purpose    A named object outlives the processes that made or read it; a process can find it without
 *            having received a ref.
 * Algorithm  The index is a hash table of chained entries that we use under the store lock; each entry holds its
 *            object through a NAME link.  The number of buckets doubles when there are more entries than buckets.
 *            A bind first writes the link, then the entry, and the entry's serial last.  The next rebuild ends a
 *            link without an entry, and the next bind reuses an entry whose object no longer exists.  An ephemeral
 *            name has no link (PRS_NIL), so it ends with the last holder of its object.
 *            To replace the object of a name, or to rename an object, we write a second entry, which names the first
 *            one in `replaces`, and then clear the first one.  Only the owner of the lock sees both; if it dies in
 *            between, the rebuild clears the first one.
 * Guarantee  A name leads to at most one living object.  If a process dies at any step, the name is either
 *            bound or unbound; during a replacement it is bound either to the old or to the new object.
 */
#include "store.h"

static uint32_t hash_of(const char *text, size_t len)
{
    uint32_t hash = 0x811c9dc5u; /* FNV-1a */
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (uint8_t)text[i]) * 0x01000193u;
    return hash;
}

static uint32_t entries(const prs_store *s)
{
    uint32_t n = prs_load_relaxed(&s->super->names_high);
    return n < PRS_NAMES_MAX ? n : PRS_NAMES_MAX;
}

static prs_oid object_of(const prs_store *s, const prs_name *e)
{
    return (prs_oid){s->id, e->serial, e->slot, e->generation};
}

static bool alive(prs_store *s, const prs_name *e)
{
    prs_oid id = object_of(s, e);
    /* unreached by tests (no test): listing passes a cleared entry */
    return e->serial != 0 && prs_state(s, &id) == PRS_OK;
}

/* ---- the chains; under the store lock ------------------------------------------------------------- */

/* Return the number of buckets that this process may read. */
static uint32_t buckets(const prs_store *s)
{
    uint32_t n = s->super->arena.name_buckets;
    /* unreached by tests (damaged tables): not a power of two, or too large */
    return n <= PRS_NAMES_MAX && (n & (n - 1)) == 0 ? n : 0;
}

static uint32_t *bucket(const prs_store *s, uint32_t hash)
{
    uint32_t n = buckets(s);
    return n ? &s->name_buckets[hash & (n - 1)] : NULL;
}

static void chain(prs_store *s, uint32_t i)
{
    uint32_t *head = bucket(s, s->names[i].hash);
    /* unreached by tests (damaged tables): no buckets */
    if (head) {
        s->names[i].next = *head;
        *head = i + 1;
    }
}

static void unchain(prs_store *s, uint32_t i)
{
    uint32_t *at = bucket(s, s->names[i].hash), n = entries(s);
    /* unreached by tests (damaged tables): a chain that leaves the table or has no end */
    for (uint32_t steps = 0; at && steps <= n; steps++) {
        uint32_t next = prs_load_relaxed(at);
        if (next == 0 || next > n)
            return;
        if (next == i + 1) {
            *at = s->names[i].next;
            return;
        }
        at = &s->names[next - 1].next;
    }
}

/* Rebuild all chains. */
static void rechain(prs_store *s)
{
    uint32_t n = entries(s), width = buckets(s);
    memset(s->name_buckets, 0, width * sizeof *s->name_buckets);
    for (uint32_t i = 0; i < n; i++)
        if (s->names[i].serial)
            chain(s, i);
}

static uint32_t search(const prs_store *s, const char *text, size_t len)
{
    uint32_t hash = hash_of(text, len), n = entries(s);
    const uint32_t *head = bucket(s, hash);
    uint32_t at = head ? *head : 0;
    /* unreached by tests (damaged tables, 2 branches): a chain that leaves the table or has no end */
    for (uint32_t steps = 0; at && at <= n && steps < n; steps++) {
        const prs_name *e = &s->names[at - 1];
        /* unreached by tests (no test, 2 branches): two names with the same hash */
        if (e->serial && e->hash == hash && e->len == len && memcmp(e->text, text, len) == 0)
            return at - 1;
        at = prs_load_relaxed(&e->next);
    }
    return PRS_NIL;
}

/* Clear an entry; return the slot to try to free after unlocking, or PRS_NIL. */
static uint32_t clear(prs_store *s, uint32_t i)
{
    prs_name *e = &s->names[i];
    uint32_t link = prs_load_relaxed(&e->link);
    unchain(s, i);
    e->serial = 0;
    PRS_POINT(name_cleared);
    /* If this link belongs to another entry, leave it: a rebuild ends the link of our entry, which holds the object
     * until then. */
    /* unreached by tests (damaged tables, 2 branches) */
    if (link < prs_load_relaxed(&s->links_seen) && s->links[link].kind == PRS_LINK_NAME &&
        s->links[link].owner.name.entry == i)
        return prs_link_end(s, link);
    return PRS_NIL;
}

/* Return whether entry `i` is unused; clear it first if its object no longer exists. */
static bool usable_again(prs_store *s, uint32_t i)
{
    if (s->names[i].serial == 0)
        return true;
    if (alive(s, &s->names[i]))
        return false;
    clear(s, i);
    return true;
}

#define NAMES_PER_LOCK 1024u /* entries that prs_name_next examines before other processes may take the lock */
#define EXAMINED 16u         /* used entries that a bind examines before it uses a new one */

/* Return an entry to write: an unused one, or one whose object no longer exists; PRS_NIL if the table is full. */
static uint32_t vacant(prs_store *s)
{
    prs_arena *a = &s->super->arena;
    uint32_t n = entries(s), limit = n < PRS_NAMES_MAX && n > EXAMINED ? EXAMINED : n;
    for (uint32_t step = 0; step < limit; step++) {
        uint32_t i = a->name_hand = a->name_hand < n ? a->name_hand : 0;
        a->name_hand++;
        if (usable_again(s, i))
            return i;
    }
    if (n == PRS_NAMES_MAX)
        return PRS_NIL;
    prs_store_relaxed(&s->super->names_high, n + 1);
    uint32_t width = buckets(s);
    if (width < n + 1 || width == 0) {
        a->name_buckets = width ? 2 * width : PRS_NAME_BUCKETS;
        rechain(s);
    }
    return n;
}

/* Return an error if this process is not a client of the store. */
static int refuse(const prs_store *s, prs_error *error)
{
    if (prs_load_relaxed(&s->closed) || s->orphan)
        return prs_fail(error, PRS_E_CLOSED, 0, "the store is closed, or this process is not a client of it");
    return PRS_OK;
}

/* Back the pages from index `from` to index `to` of a table whose elements have `size` bytes. */
static int back(prs_store *s, void *table, uint64_t offset, uint64_t from, uint64_t to, uint64_t size)
{
    uint64_t first = from * size / PRS_PAGE * PRS_PAGE, last = prs_round_up(to * size, PRS_PAGE);
    return prs_os_populate((char *)table + first, last - first, s->fd_rw, offset + first);
}

/* Back the entries that a bind may use for the first time, before taking the lock, as for every table; then take the
 * lock, with a free link. */
static int lock_for_bind(prs_store *s, prs_error *error)
{
    int rc = refuse(s, error);
    if (rc < 0)
        return rc;
    uint32_t n = entries(s), width = buckets(s), margin = 16;
    uint32_t end = n + margin < PRS_NAMES_MAX ? n + margin : PRS_NAMES_MAX;
    rc = n < end ? back(s, s->names, s->super->names_off, n, end, sizeof(prs_name)) : 0;
    if (rc >= 0 && n + margin > width && width < PRS_NAMES_MAX)
        rc = back(s, s->name_buckets, s->super->buckets_off, width, width ? 2 * width : PRS_NAME_BUCKETS,
                  sizeof(uint32_t));
    if (rc < 0)
        return prs_fail(error, PRS_E_BACKING, -rc, "no memory for the table of names");
    return prs_link_lock(s, error);
}

/* Release the lock, and free the objects in these slots if they have no holder.  If a name was bound or unbound, wake
 * the clients that wait for a name. */
static void unlock_and_wake(prs_store *s, bool changed, uint32_t first, uint32_t second)
{
    prs_unlock(s);
    if (first != PRS_NIL)
        prs_try_free(s, first);
    if (second != PRS_NIL)
        prs_try_free(s, second);
    if (changed) {
        prs_fetch_add_seqcst(&s->super->epoch, 1);
        /* unreached by tests (no test): a client waits for the name */
        if (prs_load_seqcst(&s->super->epoch_waiters))
            prs_futex_wake(&s->super->epoch, INT32_MAX);
    }
}

/* Make the link by which entry `i` holds the object. */
static uint32_t link_name(prs_store *s, const prs_oid *id, uint32_t i, bool *undone)
{
    prs_link_owner entry = {.name = {i, (uint32_t)id->serial}};
    return prs_link_make(s, id, PRS_LINK_NAME, entry, PRS_NIL, undone);
}

/* Write entry `i`; if `old` is not PRS_NIL, entry `i` replaces it.  Return the slot to try to free after unlocking. */
static uint32_t publish(prs_store *s, uint32_t i, const char *name, size_t len, const prs_oid *id, uint32_t link,
                        uint32_t old)
{
    uint32_t orphan = PRS_NIL;
    prs_name *e = &s->names[i];
    PRS_POINT(name_linked);
    e->slot = id->slot;
    e->generation = id->generation;
    e->link = link;
    e->len = (uint32_t)len;
    e->hash = hash_of(name, len);
    memcpy(e->text, name, len);
    e->text[len] = 0;
    e->version = ++s->super->arena.name_version;
    e->used = ++s->super->arena.name_uses;
    e->uses = 0;
    e->note = 0;
    e->replaces = old == PRS_NIL ? 0 : old + 1;
    e->serial = id->serial;
    chain(s, i);
    PRS_POINT(name_written);
    if (old != PRS_NIL) {
        orphan = clear(s, old);
        PRS_POINT(name_replaced);
        e->replaces = 0;
    }
    return orphan;
}

int prs_name_bind(prs_store *s, const char *name, size_t len, const prs_oid *id, uint32_t flags, prs_error *error)
{
    if (len == 0 || len > PRS_NAME_MAX)
        return prs_fail(error, PRS_E_INVAL, 0, "a name has 1 to %d bytes", PRS_NAME_MAX);
    int rc = prs_state(s, id);
    if (rc < 0)
        return prs_fail(error, rc, 0, "only a living, sealed object can be named");
    if ((rc = lock_for_bind(s, error)) < 0)
        return rc;
    uint32_t i = search(s, name, len), old = PRS_NIL, orphan = PRS_NIL, link = PRS_NIL;
    bool undone = false, keep = !(flags & PRS_NAME_EPHEMERAL);
    if (i != PRS_NIL && alive(s, &s->names[i])) {
        if (!(flags & PRS_NAME_REPLACE)) {
            rc = prs_fail(error, PRS_E_EXISTS, 0, "the name %.100s is taken", name);
            goto out;
        }
        old = i;
        i = vacant(s);
    } else if (i != PRS_NIL) {
        orphan = clear(s, i);
    } else {
        i = vacant(s);
    }
    if (i == PRS_NIL) {
        rc = prs_fail(error, PRS_E_OBJECTS, 0, "the store has room for %u names, all are taken", PRS_NAMES_MAX);
        goto out;
    }
    if (keep)
        link = link_name(s, id, i, &undone);
    /* unreached by tests (race): prs_free ran between the check and the lock */
    if (keep && link == PRS_NIL) {
        rc = prs_fail(error, PRS_E_LOST, 0, "the object to be named no longer exists");
        goto out;
    }
    uint32_t before = publish(s, i, name, len, id, link, old);
    orphan = old == PRS_NIL ? orphan : before;
out:
    /* unreached by tests (race): prs_free ran between the check and the lock */
    unlock_and_wake(s, rc == PRS_OK, orphan, undone ? id->slot : PRS_NIL);
    return rc;
}

/* Describe the name in entry `i`. */
static void describe(const prs_store *s, uint32_t i, prs_name_info *info)
{
    const prs_name *e = &s->names[i];
    uint32_t now = prs_age(s), since = now, link = prs_load_relaxed(&e->link), slot = prs_load_relaxed(&e->slot);
    info->version = e->version;
    info->uses = e->uses;
    info->used = e->used;
    info->note = e->note;
    info->keeps = link != PRS_NIL;
    /* unreached by tests (damaged tables): an index beyond the table */
    if (info->keeps && link < prs_load_relaxed(&s->links_seen))
        since = s->links[link].created;
    else if (slot < prs_load_relaxed(&s->slots_seen))
        since = prs_load_relaxed(&prs_slot_at(s, slot)->created);
    info->age = now > since ? now - since : 0;
}

int prs_name_unbind(prs_store *s, const char *name, size_t len, const prs_oid *id, prs_name_info *info,
                    prs_error *error)
{
    int rc = refuse(s, error);
    if (rc < 0 || (rc = prs_lock_tables(s, error)) < 0)
        return rc;
    uint32_t i = search(s, name, len), orphan = PRS_NIL;
    bool found = i != PRS_NIL && alive(s, &s->names[i]) && (!id || s->names[i].serial == id->serial);
    if (found && info)
        describe(s, i, info);
    if (found)
        orphan = clear(s, i);
    unlock_and_wake(s, found, orphan, PRS_NIL);
    return found ? PRS_OK : prs_fail(error, PRS_E_NOTFOUND, 0, "no object has the name %.100s", name);
}

int prs_name_move(prs_store *s, const char *name, size_t len, const char *to, size_t to_len, prs_error *error)
{
    if (to_len == 0 || to_len > PRS_NAME_MAX)
        return prs_fail(error, PRS_E_INVAL, 0, "a name has 1 to %d bytes", PRS_NAME_MAX);
    int rc = lock_for_bind(s, error);
    if (rc < 0)
        return rc;
    uint32_t old = search(s, name, len), i = search(s, to, to_len), orphan = PRS_NIL, link = PRS_NIL, gone = PRS_NIL;
    bool undone = false;
    prs_oid id = {0};
    if (old == PRS_NIL || !alive(s, &s->names[old])) {
        rc = prs_fail(error, PRS_E_NOTFOUND, 0, "no object has the name %.100s", name);
        goto out;
    }
    if (i == old || (i != PRS_NIL && alive(s, &s->names[i]))) {
        rc = prs_fail(error, PRS_E_EXISTS, 0, "the name %.100s is taken", to);
        goto out;
    }
    if (i != PRS_NIL)
        gone = clear(s, i);
    else
        i = vacant(s);
    if (i == PRS_NIL) {
        rc = prs_fail(error, PRS_E_OBJECTS, 0, "the store has room for %u names, all are taken", PRS_NAMES_MAX);
        goto out;
    }
    id = object_of(s, &s->names[old]);
    bool keep = s->names[old].link != PRS_NIL;
    if (keep)
        link = link_name(s, &id, i, &undone);
    /* unreached by tests (race): prs_free ran between the check and the lock */
    if (keep && link == PRS_NIL) {
        rc = prs_fail(error, PRS_E_NOTFOUND, 0, "no object has the name %.100s", name);
        goto out;
    }
    orphan = publish(s, i, to, to_len, &id, link, old);
out:
    /* unreached by tests (race): prs_free ran between the check and the lock */
    unlock_and_wake(s, rc == PRS_OK, undone ? id.slot : orphan, gone);
    return rc;
}

typedef enum { FIND, USE } purpose;

/* Find the object of a name. To use it, only accept a name younger than `max_age` seconds, and count the use. */
static int find_living(prs_store *s, const char *name, size_t len, prs_oid *id, prs_name_info *info, purpose why,
                       uint32_t max_age)
{
    if (prs_load_relaxed(&s->closed) || s->orphan)
        return PRS_E_CLOSED;
    for (uint64_t gone = 0;; gone = id->serial) {
        int rc = prs_lock_tables(s, NULL);
        if (rc < 0)
            return rc;
        prs_name_info found;
        uint32_t i = search(s, name, len);
        if (i != PRS_NIL) {
            *id = object_of(s, &s->names[i]);
            describe(s, i, &found);
            if (why == USE && found.age >= max_age) {
                i = PRS_NIL;
            } else if (why == USE) {
                found.used = s->names[i].used = ++s->super->arena.name_uses;
                found.uses = ++s->names[i].uses;
            }
            if (info)
                *info = found;
        }
        prs_unlock(s);
        if (i == PRS_NIL || id->serial == gone)
            return PRS_E_NOTFOUND;
        rc = prs_ref(s, id);
        if (rc == PRS_OK && (rc = prs_state(s, id)) != PRS_OK) /* the object was freed: drop our new ref */
            prs_unref(s, id);
        /* If the object was replaced after the lookup, the name denotes another one now. */
        if (rc != PRS_E_LOST && rc != PRS_E_FREED)
            return rc;
    }
}

int prs_name_find(prs_store *s, const char *name, size_t len, prs_oid *id, prs_name_info *info)
{
    return find_living(s, name, len, id, info, FIND, 0);
}

int prs_name_use(prs_store *s, const char *name, size_t len, uint32_t max_age, prs_oid *id, prs_name_info *info)
{
    return find_living(s, name, len, id, info, USE, max_age);
}

int prs_name_count(prs_store *s, const char *name, size_t len, uint32_t uses, uint64_t note)
{
    if (prs_load_relaxed(&s->closed) || s->orphan)
        return PRS_E_CLOSED;
    int rc = prs_lock_tables(s, NULL);
    if (rc < 0)
        return rc;
    uint32_t i = search(s, name, len);
    bool found = i != PRS_NIL && alive(s, &s->names[i]);
    if (found) {
        s->names[i].uses += uses;
        s->names[i].note += note;
    }
    prs_unlock(s);
    return found ? PRS_OK : PRS_E_NOTFOUND;
}

int prs_name_next(prs_store *s, uint32_t *cursor, const char *prefix, size_t prefix_len, char text[PRS_NAME_MAX + 1],
                  prs_oid *id, prs_name_info *info)
{
    bool found = false, ended = false;
    while (!found && !ended) {
        if (prs_load_relaxed(&s->closed) || s->orphan || prs_lock_tables(s, NULL) < 0)
            return 0;
        uint32_t n = entries(s);
        for (uint32_t scanned = 0; *cursor < n && !found && scanned < NAMES_PER_LOCK; ++*cursor, scanned++) {
            const prs_name *e = &s->names[*cursor];
            uint32_t len = prs_load_relaxed(&e->len); /* read it once: another process may damage it after the check */
            /* unreached by tests (damaged tables) */
            if (len > PRS_NAME_MAX || len < prefix_len || memcmp(e->text, prefix, prefix_len) != 0 || !alive(s, e))
                continue;
            memcpy(text, e->text, len);
            text[len] = 0;
            *id = object_of(s, e);
            if (info)
                describe(s, *cursor, info);
            found = true;
        }
        ended = *cursor >= n;
        prs_unlock(s);
    }
    return found;
}

/* ---- recovery and checking ------------------------------------------------------------------------ */

bool prs_name_has(const prs_store *s, uint32_t i, uint32_t link)
{
    /* unreached by tests (damaged tables): an entry that is not in the table */
    /* unreached by tests (death): the entry has another link by now */
    return i < entries(s) && s->names[i].serial != 0 && s->names[i].link == link;
}

/* Finish replacements during which the owner of the lock died: the new entry is complete, so clear the old one.  The
 * caller then ends the links that have no entry. */
void prs_names_settle(prs_store *s)
{
    uint32_t n = entries(s);
    for (uint32_t i = 0; i < n; i++) {
        prs_name *e = &s->names[i];
        uint32_t replaced = prs_load_relaxed(&e->replaces);
        /* unreached by tests (damaged tables): an entry that is not in the table, or the same one */
        if (e->serial && replaced && replaced <= n && replaced != i + 1)
            s->names[replaced - 1].serial = 0;
        e->replaces = 0;
        /* unreached by tests (damaged tables): a version above its counter */
        if (e->serial && e->version > s->super->arena.name_version)
            s->super->arena.name_version = e->version;
        /* unreached by tests (damaged tables): a use above its counter */
        if (e->serial && e->used > s->super->arena.name_uses)
            s->super->arena.name_uses = e->used;
    }
}

void prs_names_rebuild(prs_store *s)
{
    uint32_t n = entries(s), links = prs_links_published(s);
    for (uint32_t i = 0; i < n; i++) {
        prs_name *e = &s->names[i];
        uint32_t link = prs_load_relaxed(&e->link);
        /* unreached by tests (damaged tables, 2 branches) */
        if (e->serial && link != PRS_NIL &&
            (link >= links || s->links[link].kind != PRS_LINK_NAME || s->links[link].owner.name.entry != i))
            e->serial = 0;
    }
    rechain(s);
}

int prs_names_check(prs_store *s, prs_error *error)
{
    uint32_t n = entries(s), links = prs_links_published(s), used = 0, chained = 0;
    for (uint32_t b = 0; b < buckets(s); b++)
        for (uint32_t at = s->name_buckets[b]; at; at = s->names[at - 1].next, chained++)
            if (at > n || chained > n || s->names[at - 1].serial == 0 ||
                (s->names[at - 1].hash & (buckets(s) - 1)) != b)
                return prs_fail(error, PRS_E_CORRUPT, 0, "the chain of names in bucket %u is damaged", b);
    for (uint32_t i = 0; i < n; i++)
        used += s->names[i].serial != 0;
    if (used != chained)
        return prs_fail(error, PRS_E_CORRUPT, 0, "%u names are in chains, and %u are used", chained, used);
    for (uint32_t i = 0; i < n; i++) {
        const prs_name *e = &s->names[i];
        uint32_t link = prs_load_relaxed(&e->link), len = prs_load_relaxed(&e->len);
        if (e->serial == 0 || !alive(s, e))
            continue;
        if (len > PRS_NAME_MAX ||
            (link != PRS_NIL && (link >= links || s->links[link].kind != PRS_LINK_NAME ||
                                 s->links[link].owner.name.entry != i || s->links[link].inner != e->serial)))
            return prs_fail(error, PRS_E_CORRUPT, 0, "name %u does not hold its object", i);
        if (e->replaces || e->version == 0 || e->version > s->super->arena.name_version)
            return prs_fail(error, PRS_E_CORRUPT, 0, "name %u has a wrong version", i);
        if (e->hash != hash_of(e->text, len))
            return prs_fail(error, PRS_E_CORRUPT, 0, "name %u is damaged", i);
    }
    return PRS_OK;
}
