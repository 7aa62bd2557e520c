/* name.c - the index of names.
 *
 * Purpose    A named object outlives the processes that made or read it; a process can find it without
 *            having received a ref.
 * Algorithm  The index is a small table that we search by hash under the store lock; each entry holds its
 *            object through a NAME link.  A bind first writes the link, then the entry, and the entry's
 *            serial last.  The next rebuild ends a link without an entry, and the next bind reuses an entry
 *            whose object no longer exists.  An ephemeral name has no link (PRS_NIL), so it ends with the
 *            last holder of its object.
 * Guarantee  A name leads to at most one living object.  If a process dies at any step, the name is either
 *            bound or unbound.
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
    /* unreached: untested: listing passes a cleared entry */
    return e->serial != 0 && prs_state(s, &id) == PRS_OK;
}

static uint32_t search(const prs_store *s, const char *text, size_t len)
{
    uint32_t hash = hash_of(text, len), n = entries(s);
    for (uint32_t i = 0; i < n; i++) {
        const prs_name *e = &s->names[i];
        /* unreached: untested 2: two names with the same hash */
        if (e->serial && e->hash == hash && e->len == len && memcmp(e->text, text, len) == 0)
            return i;
    }
    return PRS_NIL;
}

/* Clear an entry; return the slot to try to free after unlocking, or PRS_NIL. */
static uint32_t clear(prs_store *s, uint32_t i)
{
    prs_name *e = &s->names[i];
    uint32_t link = e->link;
    e->serial = 0;
    PRS_POINT(name_cleared);
    /* If this link belongs to another entry, leave it: a rebuild ends the link of our entry, which holds the object
     * until then. */
    /* unreached: damage 2 */
    if (link < prs_load_relaxed(&s->links_seen) && s->links[link].kind == PRS_LINK_NAME && s->links[link].owner == i)
        return prs_link_end(s, link);
    return PRS_NIL;
}

/* Return an entry to write: an unused one, or one whose object no longer exists; PRS_NIL if the table is full. */
static uint32_t vacant(prs_store *s)
{
    uint32_t n = entries(s);
    for (uint32_t i = 0; i < n; i++) {
        if (s->names[i].serial == 0)
            return i;
        if (!alive(s, &s->names[i])) {
            clear(s, i);
            return i;
        }
    }
    if (n == PRS_NAMES_MAX)
        return PRS_NIL;
    prs_store_relaxed(&s->super->names_high, n + 1);
    return n;
}

int prs_name_bind(prs_store *s, const char *name, size_t len, const prs_oid *id, prs_error *error)
{
    return prs_name_bind_as(s, name, len, id, true, error);
}

int prs_name_bind_as(prs_store *s, const char *name, size_t len, const prs_oid *id, bool keep, prs_error *error)
{
    if (len == 0 || len > PRS_NAME_MAX)
        return prs_fail(error, PRS_E_INVAL, 0, "a name has 1 to %d bytes", PRS_NAME_MAX);
    int rc = prs_state(s, id);
    if (rc < 0)
        return prs_fail(error, rc, 0, "only a living, sealed object can be named");
    /* Back the entries before taking the lock, as for every table. */
    uint32_t n = entries(s) + 1 < PRS_NAMES_MAX ? entries(s) + 1 : PRS_NAMES_MAX;
    uint64_t end = prs_round_up((uint64_t)(n + 16) * sizeof(prs_name), PRS_PAGE);
    if (end > (uint64_t)PRS_NAMES_MAX * sizeof(prs_name))
        end = (uint64_t)PRS_NAMES_MAX * sizeof(prs_name);
    rc = prs_os_populate(s->names, end, s->fd_rw, s->super->names_off);
    if (rc < 0)
        return prs_fail(error, PRS_E_BACKING, -rc, "no memory for the table of names");
    if ((rc = prs_link_lock(s, error)) < 0)
        return rc;
    uint32_t i = search(s, name, len), orphan = PRS_NIL;
    bool undone = false;
    if (i != PRS_NIL && alive(s, &s->names[i])) {
        rc = prs_fail(error, PRS_E_EXISTS, 0, "the name %.100s is taken", name);
        goto out;
    }
    if (i != PRS_NIL)
        orphan = clear(s, i);
    else
        i = vacant(s);
    if (i == PRS_NIL) {
        rc = prs_fail(error, PRS_E_OBJECTS, 0, "the store has room for %u names, all are taken", PRS_NAMES_MAX);
        goto out;
    }
    uint32_t link = keep ? prs_link_make(s, id, PRS_LINK_NAME, i, (uint32_t)id->serial, PRS_NIL, &undone) : PRS_NIL;
    /* unreached: race: prs_free ran between the check and the lock */
    if (keep && link == PRS_NIL) {
        rc = prs_fail(error, PRS_E_LOST, 0, "the object to be named no longer exists");
        goto out;
    }
    PRS_POINT(name_linked);
    prs_name *e = &s->names[i];
    e->slot = id->slot;
    e->generation = id->generation;
    e->link = link;
    e->len = (uint32_t)len;
    e->hash = hash_of(name, len);
    memcpy(e->text, name, len);
    e->text[len] = 0;
    e->serial = id->serial;
    PRS_POINT(name_written);
out:
    prs_unlock(s);
    if (orphan != PRS_NIL)
        prs_try_free(s, orphan);
    /* unreached: race: prs_free ran between the check and the lock */
    if (undone)
        prs_try_free(s, id->slot);
    if (rc == PRS_OK) { /* wake clients that wait for the name */
        prs_fetch_add_seqcst(&s->super->epoch, 1);
        /* unreached: untested: a client waits for the name */
        if (prs_load_seqcst(&s->super->epoch_waiters))
            prs_futex_wake(&s->super->epoch, INT32_MAX);
    }
    return rc;
}

int prs_name_find(prs_store *s, const char *name, size_t len, prs_oid *id)
{
    if (prs_load_relaxed(&s->closed) || s->orphan)
        return PRS_E_CLOSED;
    int rc = prs_lock_tables(s, NULL);
    if (rc < 0)
        return rc;
    uint32_t i = search(s, name, len);
    if (i != PRS_NIL)
        *id = object_of(s, &s->names[i]);
    prs_unlock(s);
    if (i == PRS_NIL)
        return PRS_E_NOTFOUND;
    rc = prs_ref(s, id);
    if (rc == PRS_OK && (rc = prs_state(s, id)) != PRS_OK) /* the object was freed: drop our new ref */
        prs_unref(s, id);
    return rc == PRS_E_LOST || rc == PRS_E_FREED ? PRS_E_NOTFOUND : rc;
}

int prs_name_next(prs_store *s, uint32_t *cursor, char text[PRS_NAME_MAX + 1], prs_oid *id)
{
    if (prs_load_relaxed(&s->closed) || s->orphan || prs_lock_tables(s, NULL) < 0)
        return 0;
    int found = 0;
    for (uint32_t n = entries(s); *cursor < n && !found; ++*cursor) {
        const prs_name *e = &s->names[*cursor];
        /* unreached: damage */
        if (e->len > PRS_NAME_MAX || !alive(s, e))
            continue;
        memcpy(text, e->text, e->len);
        text[e->len] = 0;
        *id = object_of(s, e);
        found = 1;
    }
    prs_unlock(s);
    return found;
}

/* ---- recovery and checking ------------------------------------------------------------------------ */

bool prs_name_has(const prs_store *s, uint32_t i, uint32_t link)
{
    /* unreached: damage: an entry that is not in the table */
    /* unreached: death: the entry has another link by now */
    return i < entries(s) && s->names[i].serial != 0 && s->names[i].link == link;
}

void prs_names_rebuild(prs_store *s)
{
    uint32_t n = entries(s), links = prs_links_published(s);
    for (uint32_t i = 0; i < n; i++) {
        prs_name *e = &s->names[i];
        /* unreached: damage 2 */
        if (e->serial && e->link != PRS_NIL &&
            (e->link >= links || s->links[e->link].kind != PRS_LINK_NAME || s->links[e->link].owner != i))
            e->serial = 0;
    }
}

int prs_names_check(prs_store *s, prs_error *error)
{
    uint32_t n = entries(s), links = prs_links_published(s);
    for (uint32_t i = 0; i < n; i++) {
        const prs_name *e = &s->names[i];
        if (e->serial == 0 || !alive(s, e))
            continue;
        if (e->len > PRS_NAME_MAX ||
            (e->link != PRS_NIL && (e->link >= links || s->links[e->link].kind != PRS_LINK_NAME ||
                                    s->links[e->link].owner != i || s->links[e->link].inner != e->serial)))
            return prs_fail(error, PRS_E_CORRUPT, 0, "name %u does not hold its object", i);
        if (e->hash != hash_of(e->text, e->len))
            return prs_fail(error, PRS_E_CORRUPT, 0, "name %u is damaged", i);
    }
    return PRS_OK;
}
