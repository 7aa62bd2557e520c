/* backing.c - pages of the data area: mapping, filling, punching.
 *
 * Purpose    If the machine has no memory for a put, the put returns an error, and no process gets SIGBUS or is
 *            killed by the OOM killer.  Freed memory is reused while it is warm, but eventually returned to the
 *            kernel.
 * Algorithm  Before we ask the kernel for pages, we check the headroom of cgroups and machine (headroom.h); then
 *            fill.h chooses how to fill them.  Freed extents stay backed up to a reserve.  The reserve is the largest
 *            of warm_reserve, a quarter of the bytes in use, and the largest extent freed within the last seconds.
 *            So a loop that puts and drops objects of any size reuses warm pages.
 * Guarantee  We punch pages only while this client owns their extent (FREEING), so no other process
 *            can be writing there.
 */
#include "huge.h"
#include "store.h"
#include <errno.h>

#define WARM_SECONDS 10
#define SPILL_ROUNDS 16 /* attempts to free space in a full file system */
#define BACK_GRAIN (128u * 1024u)
#define ROOM (16u * BACK_GRAIN)
#define TRIM_PAGES (PRS_HUGE / PRS_PAGE) /* trim whole blocks, to avoid splitting huge pages */

/* Other code may have closed all descriptors of the process, including ours. Reopen the store through another process,
 * or through /proc/self where the kernel allows it, before we use a descriptor number that now belongs to another
 * file. */
static int reopen(prs_store *s, prs_access access)
{
    int fds[] = {s->fd_rw, s->fd_ro, s->fd_lock}, fd;
    for (int i = 0; i < 3; i++)
        if (prs_os_same(fds[i], &s->file) && (fd = prs_os_reopen(fds[i], access)) >= 0)
            return fd;
    if (s->path) {
        prs_error ignored;
        if (prs_os_open_file(s->path, &fd, &ignored) == PRS_OK) {
            /* unreached by tests (no test): the name belongs to another file by now */
            if (prs_os_same(fd, &s->file)) {
                /* unreached by tests (other kernel): without /proc the read-only descriptor is found by name, too */
                int out = access == PRS_WRITABLE ? fd : prs_os_reopen(fd, access);
                /* unreached by tests (other kernel): without /proc the read-only descriptor is found by name, too */
                if (access != PRS_WRITABLE)
                    prs_os_close(fd);
                return out;
            }
            prs_os_close(fd);
        }
    }
    int32_t pids[64];
    int n = prs_client_pids(s, pids, 64);
    for (int i = 0; i < n; i++) {
        uint64_t ids[16];
        int numbers[16], found = prs_list_pid(pids[i], ids, numbers, 16);
        /* unreached by tests (impossible): prs_list_pid finds 16 at most */
        for (int k = 0; k < found && k < 16; k++) {
            /* unreached by tests (no test): the peer has other stores open as well */
            if (ids[k] != s->id)
                continue;
            fd = prs_os_reopen_of(pids[i], numbers[k], access);
            /* unreached by tests (race, 2 branches): the peer closed it between the check and the open */
            if (fd >= 0 && prs_os_same(fd, &s->file))
                return fd;
            prs_os_close(fd);
        }
    }
    return prs_os_reopen_mapping(s->super, access, &s->file);
}

int prs_fds_repair(prs_store *s, prs_error *error)
{
    bool rw = prs_os_same(s->fd_rw, &s->file), ro = prs_os_same(s->fd_ro, &s->file);
    if (PRS_LIKELY(rw && ro))
        return PRS_OK;
    int fd;
    if (!rw) {
        if ((fd = reopen(s, PRS_WRITABLE)) < 0)
            goto lost;
        s->fd_rw = fd;
        s->area.fd = fd;
        if (!s->orphan)
            prs_store_relaxed(&s->clients[s->me].fd, (uint32_t)fd);
    }
    if (!ro) {
        if ((fd = reopen(s, PRS_READ_ONLY)) < 0)
            goto lost;
        s->fd_ro = fd;
    }
    return PRS_OK;
lost:
    return prs_fail(error, PRS_E_SYS, EBADF, "the descriptors of the store were closed by other code of this process");
}

static int no_room(prs_error *error, uint64_t want, const prs_headroom_limit *limit)
{
    prs_fail(error, PRS_E_BACKING, ENOMEM, "the memory limit of %.120s leaves no room for %llu bytes", limit->path,
             (unsigned long long)want);
    if (error) {
        error->want = want;
        error->capacity = limit->limit;
        error->used = limit->usage;
    }
    return PRS_E_BACKING;
}

static int no_pages(prs_error *error, int rc, uint64_t want)
{
    /* unreached by tests (failing call, 2 branches) */
    int code = rc == -ENOSPC || rc == -ENOMEM || rc == -EFBIG ? PRS_E_BACKING : PRS_E_SYS;
    /* unreached by tests (failing call) */
    prs_fail(error, code, -rc,
             rc == -ENOSPC  ? "the file system of the store is full"
             : rc == -EFBIG ? "the file size limit of this process (RLIMIT_FSIZE, ulimit -f) ends before the store does"
                            : "the system gave no memory");
    /* unreached by tests (no test): the caller passes no error record */
    if (error)
        error->want = want;
    return code;
}

int prs_reserve(prs_store *s, uint64_t bytes, prs_error *error)
{
    prs_headroom_limit limit;
    if (bytes && prs_headroom_reserve(&s->headroom, bytes, &limit) < 0)
        return no_room(error, bytes, &limit);
    return PRS_OK;
}

/* Reserve memory for growth that takes a while; the caller must settle the same number of bytes afterwards. */
static int hold(prs_store *s, uint64_t bytes, prs_error *error)
{
    prs_headroom_limit limit;
    if (bytes && prs_headroom_hold(&s->headroom, bytes, &limit) < 0)
        return no_room(error, bytes, &limit);
    return PRS_OK;
}

int prs_map_writable(prs_store *s, prs_error *error)
{
    if (PRS_LIKELY(prs_load_acquire(&s->wr)))
        return PRS_OK;
    int rc = prs_fds_repair(s, error);
    /* unreached by tests (no test): other code closed the descriptor before the first put, and reopening fails */
    if (rc < 0)
        return rc;
    (void)prs_mutex_lock(&s->mutex, -1);
    /* unreached by tests (race): two threads make their first put */
    if (!prs_load_acquire(&s->wr)) {
        uint8_t *wr = prs_os_map(s->fd_rw, s->super->data_off, s->capacity, PRS_WRITABLE);
        size_t len = prs_pages_bytes(s->capacity / PRS_PAGE);
        /* unreached by tests (failing call) */
        void *mapped = wr ? prs_os_reserve(len) : NULL;
        /* unreached by tests (failing call) */
        if (mapped) {
            s->area.fd = s->fd_rw;
            s->area.map = (char *)wr;
            s->area.mapped = prs_pages_at(mapped, s->capacity / PRS_PAGE);
            s->mapped_len = len;
            prs_store_release(&s->wr, wr);
        } else {
            rc = prs_fail(error, PRS_E_NOMEM, errno, "no address space to map the store for writing");
            prs_os_unmap(wr, s->capacity);
        }
    }
    prs_mutex_unlock(&s->mutex);
    return rc;
}

/* Back the pages of a small object and some neighbouring pages, so that the pages of most small objects are already
 * backed when they are put. */
int prs_back(prs_store *s, uint64_t off, uint64_t len, prs_error *error)
{
    /* unreached by tests (damaged tables) */
    if (PRS_UNLIKELY(!prs_in_data(s, off, len)))
        return prs_fail(error, PRS_E_CORRUPT, 0, "an extent lies outside of the store");
    uint64_t first = off / PRS_PAGE, n = prs_pages_end(off, len) - first;
    if (PRS_LIKELY(prs_pages_all(s->area.backed, first, n) && prs_pages_all(s->area.mapped, first, n)))
        return PRS_OK;
    int rc = prs_fds_repair(s, error);
    if (rc < 0)
        return rc;
    uint64_t begin = off & ~(uint64_t)(BACK_GRAIN - 1), end = prs_round_up(off + len, BACK_GRAIN);
    /* unreached by tests (impossible): the capacity is a multiple of the grain */
    if (end > s->capacity)
        end = s->capacity;
    bool plenty = prs_os_has_room(s->fd_rw, ROOM); /* if that fails, do not back the neighbouring pages */
    for (int attempt = !plenty;; attempt++) {
        if (attempt) { /* little space is left: back only the pages needed */
            begin = off & ~(uint64_t)(PRS_PAGE - 1);
            end = prs_round_up(off + len, PRS_PAGE);
        }
        rc = prs_reserve(s, prs_area_missing(&s->area, begin, end - begin), error);
        if (rc == PRS_OK) {
            int err = PRS_POINT_ERRNO(backing) ? -ENOSPC : prs_area_populate(&s->area, begin, end - begin, 1, NULL);
            if (err == 0)
                return PRS_OK;
            rc = no_pages(error, err, end - begin);
        }
        if (attempt || end - begin == n * PRS_PAGE)
            return rc;
    }
}

/* Free pages because the file system is full, perhaps with other files: first punch warm pages, then spill objects and
 * punch their pages. */
static bool free_pages(prs_store *s, uint64_t n, int round)
{
    if (round == 0 && prs_trim(s, 0))
        return true;
    if (prs_spill_for(s, n, NULL) != PRS_OK)
        return false;
    prs_trim(s, 0);
    return true;
}

static int fill(prs_store *s, uint64_t off, const void *src, size_t n, prs_error *error)
{
    int rc = prs_fds_repair(s, error);
    if (rc < 0)
        return rc;
    uint64_t missing = prs_area_missing(&s->area, off, n);
    rc = hold(s, missing, error);
    /* unreached by tests (no test): punching warm memory elsewhere was enough */
    if (rc < 0 && prs_trim(s, 0)) /* we can free warm pages elsewhere */
        rc = hold(s, missing, error);
    if (rc < 0)
        return rc;
    int err = PRS_POINT_ERRNO(backing) ? -ENOSPC : prs_area_fill(&s->area, off, src, n, 0, NULL);
    for (int round = 0; err == -ENOSPC && round < SPILL_ROUNDS && free_pages(s, n, round); round++)
        err = prs_area_fill(&s->area, off, src, n, 0, NULL);
    if (missing)
        prs_headroom_settle(&s->headroom, missing);
    return err < 0 ? no_pages(error, err, n) : PRS_OK;
}

int prs_fill_range(prs_store *s, uint64_t off, const void *src, size_t n, prs_error *error)
{
    prs_fetch_add_seqcst(&s->filling, 1); /* prs_close() waits until this is 0, so the descriptor stays open */
    int rc = prs_load_seqcst(&s->closed) ? PRS_E_CLOSED : fill(s, off, src, n, error);
    prs_fetch_sub_seqcst(&s->filling, 1);
    return rc;
}

/* ---- punching ----------------------------------------------------------------------------------- */

static uint64_t reserve_bytes(prs_store *s)
{
    uint64_t keep = s->super->warm_reserve, quarter = prs_load_relaxed(&s->super->arena.used) / 4;
    if (quarter > keep)
        keep = quarter;
    if ((uint64_t)prs_now() < prs_load_relaxed(&s->super->warm_until)) {
        uint64_t floor = prs_load_relaxed(&s->super->warm_floor);
        if (floor > keep)
            keep = floor;
    }
    return keep;
}

static uint64_t data_backed(prs_store *s)
{
    return prs_pages_count(s->area.backed, 0, s->capacity / PRS_PAGE) * PRS_PAGE;
}

/* Return whether, after freeing an extent of `size` bytes, there would be more warm memory than the reserve. */
bool prs_beyond_reserve(prs_store *s, uint64_t size)
{
    uint64_t now = (uint64_t)prs_now(), until = prs_load_relaxed(&s->super->warm_until);
    /* unreached by tests (no test): ten seconds after the last large free; only longer runs last that long */
    if (size >= prs_load_relaxed(&s->super->warm_floor) || now >= until) {
        prs_store_relaxed(&s->super->warm_floor, size);
        prs_store_relaxed(&s->super->warm_until, now + WARM_SECONDS * (uint64_t)PRS_SECOND);
    }
    if (size <= s->super->warm_reserve / 16 && now < until)
        return false; /* for many small extents, the periodic trim returns the memory */
    uint64_t used = prs_load_relaxed(&s->super->arena.used), backed = data_backed(s);
    uint64_t live = used > size ? used - size : 0;
    return backed > live && backed - live > reserve_bytes(s) + size;
}

void prs_pages_punch(prs_store *s, uint64_t off, uint64_t len)
{
    /* unreached by tests (damaged tables) */
    if (!prs_in_data(s, off, len) || prs_fds_repair(s, NULL) < 0)
        return;
    PRS_POINT(punch_marked);
    (void)prs_area_punch(&s->area, off, len, NULL);
    PRS_POINT(punched);
}

/* Punch warm pages beyond the reserve; prs_reap_dead() calls this at most once a second. */
void prs_trim_excess(prs_store *s)
{
    uint64_t keep = reserve_bytes(s);
    /* unreached by tests (no test): a check more than a second after the reserve was exceeded */
    if (prs_load_acquire(&s->wr) && data_backed(s) > prs_load_relaxed(&s->super->arena.used) + keep)
        prs_trim(s, keep);
}

uint64_t prs_trim(prs_store *s, uint64_t keep)
{
    uint64_t given = 0;
    /* unreached by tests (no injected fault): no address space for the first writable mapping */
    if (prs_load_relaxed(&s->closed) || s->orphan || prs_map_writable(s, NULL) < 0)
        return 0;
    prs_magazines_flush(s);
    /* Allocate free extents as a put does, and punch them from the high end while we own them. */
    for (;;) {
        uint64_t before = data_backed(s), wanted = prs_load_relaxed(&s->super->arena.used) + keep;
        uint32_t i;
        uint64_t word;
        if (before <= wanted || prs_slot_alloc_warm(s, &i, &word) < 0)
            break;
        const prs_slot *slot = prs_slot_at(s, i);
        uint64_t off = prs_load_relaxed(&slot->off), cap = prs_load_relaxed(&slot->cap), warm = 0;
        /* unreached by tests (damaged tables) */
        if (!prs_in_data(s, off, cap)) {
            prs_slot_return(s, i, word);
            break;
        }
        uint64_t first = prs_round_up(off, PRS_PAGE) / PRS_PAGE, end = (off + cap) / PRS_PAGE, from = end;
        while (from > first && warm * PRS_PAGE < before - wanted) {
            uint64_t step = from % TRIM_PAGES ? from % TRIM_PAGES : TRIM_PAGES;
            step = from - first < step ? from - first : step;
            from -= step;
            warm += prs_pages_count(s->area.backed, from, step);
        }
        prs_pages_punch(s, from * PRS_PAGE, (end - from) * PRS_PAGE);
        prs_slot_adopt(s, i, word);
        uint64_t after = data_backed(s);
        /* unreached by tests (race): others fill as fast, or the file system frees nothing */
        if (after >= before)
            break; /* the file system freed nothing, or other processes fill it equally fast */
        given += before - after;
    }
    return given;
}
