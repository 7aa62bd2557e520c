/* window.c - writable windows of unsealed objects, copy-on-write maps of sealed ones.
 *
 * Purpose    create() and empty() return writable memory; after sealing it is read-only, also
 *            through arrays and pointers that were obtained before.
 * Algorithm  Such an object occupies whole pages and has a separate writable mapping, the window.
 *            Sealing replaces the window by a read-only mapping of the file at the same address in
 *            one step (MAP_FIXED): views stay valid, and writes through them fault.  A forked child
 *            does the same with its parent's windows before it runs other code.
 * Guarantee  No object is sealed before its window is read-only.  The object is pinned from seal to
 *            prs_window_close, so its pages are not reused while a view exists.
 */
#include "store.h"
#include <errno.h>

/* Return the link to the window of a draft, or the last link, which is NULL. The caller has locked the list. */
static prs_window **link_to(prs_store *s, const prs_draft *draft)
{
    prs_window **at = &s->windows;
    while (*at && (*at)->id.serial != draft->id.serial)
        at = &(*at)->next;
    return at;
}

static prs_window *find_window(prs_store *s, const prs_draft *draft)
{
    prs_spin_lock(&s->window_lock);
    prs_window *w = *link_to(s, draft);
    prs_spin_unlock(&s->window_lock);
    return w;
}

/* Find the window and remove it from the list. */
static prs_window *take_window(prs_store *s, const prs_draft *draft)
{
    prs_spin_lock(&s->window_lock);
    prs_window **at = link_to(s, draft), *w = *at;
    if (w)
        *at = w->next;
    prs_spin_unlock(&s->window_lock);
    return w;
}

static int no_map(prs_error *error, int err, const char *what)
{
    /* unreached by tests (failing call, 2 branches) */
    return prs_fail(error, err == ENOMEM ? PRS_E_NOMEM : PRS_E_SYS, err,
                    err == ENOMEM ? "%s failed: out of address space or above vm.max_map_count" : "%s failed", what);
}

int prs_window_open(prs_store *s, prs_draft *draft, prs_error *error)
{
    int rc = prs_fds_repair(s, error);
    if (rc < 0)
        return rc;
    size_t len = prs_round_up(draft->size ? draft->size : 1, PRS_PAGE);
    uint64_t off = s->super->data_off + draft->off;
    prs_window *w = calloc(1, sizeof *w);
    /* unreached by tests (no injected fault): calloc */
    if (!w)
        return no_map(error, ENOMEM, "allocating a window");
    rc = prs_reserve(s, prs_area_missing(&s->area, draft->off, len), error);
    if (rc < 0) {
        free(w);
        return rc;
    }
    w->addr = PRS_POINT_ERRNO(window_mapped) ? (errno = ENOMEM, NULL) : prs_os_map(s->fd_rw, off, len, PRS_WRITABLE);
    if (!w->addr) {
        rc = no_map(error, errno, "mapping a window");
        free(w);
        return rc;
    }
    prs_area area = s->area; /* initialized, because prs_map_writable() ran before we allocated the extent */
    area.map = (char *)w->addr - draft->off;
    area.mapped.words = NULL; /* this bitmap describes the store's mapping, not the window */
    rc = prs_area_populate(&area, draft->off, len, 0, NULL);
    if (rc < 0) {
        (void)prs_area_punch(&s->area, draft->off, len, NULL);
        prs_os_unmap(w->addr, len);
        free(w);
        return prs_fail(error, PRS_E_BACKING, -rc, "no memory for a window of %zu bytes", len);
    }
    w->id = draft->id;
    w->len = len;
    w->off = off;
    draft->window = w->addr;
    prs_spin_lock(&s->window_lock);
    w->next = s->windows;
    s->windows = w;
    prs_fetch_add_relaxed(&s->keeps, 1);
    prs_spin_unlock(&s->window_lock);
    return PRS_OK;
}

int prs_window_seal(prs_store *s, const prs_draft *draft, prs_error *error)
{
    prs_window *w = find_window(s, draft);
    if (!w)
        return prs_fail(error, PRS_E_INVAL, 0, "this object has no window in this process");
    int rc = prs_fds_repair(s, error);
    if (rc < 0)
        return rc;
    rc = PRS_POINT_ERRNO(window_revoked) ? -ENOMEM : prs_os_map_fixed(w->addr, s->fd_ro, w->off, w->len);
    if (rc < 0)
        return no_map(error, -rc, "making the window read-only");
    w->state = PRS_WINDOW_SEALED;
    /* Pin the object for the window before other processes can see SEALED. This pin is counted like any other. */
    prs_spin *shard = prs_shard(s, draft->id.slot);
    prs_spin_lock(shard);
    prs_private *p = &s->priv[draft->id.slot];
    /* unreached by tests (impossible): no other client can pin it before */
    if (prs_count_up(&p->pins) == 0)
        prs_fetch_or_seqcst(&prs_pins(s, prs_slot_at(s, draft->id.slot))[s->my_word], s->my_bit);
    prs_spin_unlock(shard);
    return PRS_OK;
}

/* Replace a window by private zero pages, which are writable unless the limit of private memory is reached. */
static bool forsake(prs_window *w)
{
    if (prs_os_map_zero_fixed(w->addr, w->len) < 0 && prs_os_map_nothing_fixed(w->addr, w->len) < 0)
        return false;
    w->state = PRS_WINDOW_FORSAKEN;
    return true;
}

bool prs_window_forsake(prs_store *s, const prs_draft *draft)
{
    prs_window *w = find_window(s, draft);
    if (!w)
        return true;
    bool sealed = w->state == PRS_WINDOW_SEALED;
    if (!forsake(w))
        return false;
    if (sealed)
        prs_unpin(s, &draft->id);
    return true;
}

/* Call this when the handle closes: replace unsealed windows by private zero pages. */
void prs_windows_detach(prs_store *s)
{
    prs_spin_lock(&s->window_lock);
    for (prs_window *w = s->windows; w; w = w->next)
        if (w->state == PRS_WINDOW_OPEN || w->state == PRS_WINDOW_INHERITED)
            (void)forsake(w);
    prs_spin_unlock(&s->window_lock);
}

void prs_window_close(prs_store *s, const prs_draft *draft)
{
    prs_window *w = take_window(s, draft);
    if (!w)
        return;
    bool sealed = w->state == PRS_WINDOW_SEALED;
    prs_os_unmap(w->addr, w->len);
    free(w);
    if (sealed)
        prs_unpin(s, &draft->id);
    prs_keep_end(s);
}

/* Call this in the child before other code runs: make the windows that the parent is still writing to read-only. */
void prs_windows_after_fork(prs_store *s)
{
    prs_spin_init(&s->window_lock);
    for (prs_window *w = s->windows; w; w = w->next) {
        if (w->state != PRS_WINDOW_OPEN)
            continue;
        w->state = PRS_WINDOW_INHERITED;
        /* unreached by tests (no injected fault): mmap in place of a window, in a forked child */
        if (prs_os_map_fixed(w->addr, s->fd_ro, w->off, w->len) < 0)
            (void)forsake(w);
    }
}

int prs_cow_open(prs_store *s, const prs_oid *id, const prs_view *view, void **map, size_t *map_len, uint8_t **data,
                 prs_error *error)
{
    int rc = prs_fds_repair(s, error);
    if (rc < 0)
        return rc;
    /* unreached by tests (other kernel): this kernel maps files below the store */
    if (view->data < s->ro || view->data >= s->ro + s->capacity) { /* the object is spilled: map its file */
        prs_file_map *file;
        prs_spin *shard = prs_shard(s, id->slot);
        prs_spin_lock(shard);
        /* unreached by tests (impossible): a pinned, spilled object has a mapping */
        bool restored = s->priv[id->slot].map && s->priv[id->slot].map->restored;
        prs_spin_unlock(shard);
        if (restored) { /* the file contains these bytes in another form */
            /* unreached by tests (impossible): an object without bytes is never spilled */
            /* unreached by tests (no injected fault): mmap */
            if (!(*map = prs_os_memory(view->size ? view->size : 1)))
                return no_map(error, errno, "memory for a private copy");
            prs_copy_parallel(*map, view->data, view->size, 0);
            *data = *map;
            /* unreached by tests (impossible): an object without bytes is never spilled */
            *map_len = view->size ? view->size : 1;
            return PRS_OK;
        }
        /* unreached by tests (no test): the file was removed meanwhile */
        if ((rc = prs_spill_map(s, id, view->size, PRS_SPILL_COPY_ON_WRITE, &file)) < 0)
            return prs_fail(error, rc, 0, "the spill file of the object cannot be mapped");
        *map = *data = file->at;
        *map_len = file->len;
        free(file);
        return PRS_OK;
    }
    uint64_t off = (uint64_t)(view->data - s->ro), begin = off & ~(uint64_t)(PRS_PAGE - 1);
    /* unreached by tests (no test): a private copy of an empty object */
    size_t len = prs_round_up(off - begin + (view->size ? view->size : 1), PRS_PAGE);
    uint8_t *at = prs_os_map_private(s->fd_ro, s->super->data_off + begin, len);
    /* unreached by tests (failing call) */
    if (!at)
        return no_map(error, errno, "mapping copy-on-write");
    *map = at;
    *map_len = len;
    *data = at + (off - begin);
    return PRS_OK;
}

void prs_cow_close(void *map, size_t map_len)
{
    prs_os_unmap(map, map_len);
}
