/* spill_external.c - spill files that the caller writes and reads: compressed, or with a digest.
 *
 * Purpose    Compressors and hash functions come from third-party libraries, which the engine does not link.  The
 *            engine chooses the objects, owns the files and runs the protocol; the caller writes and reads their
 *            contents.
 * Algorithm  Every file ends with a trailer of 64 bytes that describes the bytes before it.  To restore an object,
 *            we check the trailer and the caller checks the bytes; then the object is served from a mapping of the
 *            file (RAW), or from private memory that the caller has filled.
 * Guarantee  We hold no lock between begin and finish, so the caller may be slow, fail or die. Meanwhile the
 *            state is SPILLING, and if the caller dies, its reaper removes the file.  A valid trailer describes
 *            no byte beyond its file, and contains the size of the object.
 */
#include "spill.h"
#include <errno.h>
#include <fcntl.h>

_Static_assert(sizeof(prs_spill_trailer) == 64, "a trailer is 64 bytes");

uint32_t prs_spill_form(const prs_store *s)
{
    return s->super->flags & PRS_OPEN_SPILL_FORM;
}

static prs_spill_trailer trailer_of(const prs_oid *id, uint64_t size, uint64_t stored, int codec, int algorithm,
                                    uint64_t digest)
{
    return (prs_spill_trailer){.magic = PRS_SPILL_MAGIC,
                               .version = PRS_SPILL_VERSION,
                               .codec = (uint8_t)codec,
                               .algorithm = (uint8_t)algorithm,
                               .store = id->store,
                               .serial = id->serial,
                               .size = size,
                               .stored = stored,
                               .digest = digest};
}

/* Return NULL, or a sentence that describes the error. */
static const char *check_trailer(const prs_store *s, const prs_oid *id, uint64_t size, uint64_t length,
                                 const prs_spill_trailer *t)
{
    uint32_t form = prs_spill_form(s);
    if (t->magic != PRS_SPILL_MAGIC)
        return "its spill file does not end with a trailer: it was cut or overwritten";
    if (t->version != PRS_SPILL_VERSION || t->unused[0] || t->unused[1])
        return "its spill file has a version that is unknown";
    if (t->store != id->store || t->serial != id->serial)
        return "its spill file is another object's";
    /* unreached by tests (damaged tables) */
    if (t->size != size || t->stored != length - sizeof *t || (t->codec == PRS_SPILL_RAW && t->stored != size))
        return "its spill file is not as long as it says";
    /* An object that was created in its file is not compressed. In a store with digests, every trailer needs a
     * digest. */
    /* unreached by tests (damaged tables): a codec the store does not use */
    /* unreached by tests (no test, 3 branches): the C tests use only one codec */
    bool known = t->codec == PRS_SPILL_RAW || (t->codec == PRS_SPILL_LZ4 && (form & PRS_OPEN_SPILL_LZ4)) ||
                 (t->codec == PRS_SPILL_ZSTD && (form & PRS_OPEN_SPILL_ZSTD));
    int promised = form & PRS_OPEN_SPILL_DIGEST ? PRS_SPILL_XXH3 : PRS_SPILL_UNDIGESTED;
    if (!known || t->algorithm != promised)
        return "its spill file is not in the form of the store";
    return NULL;
}

/* ---- writing ----------------------------------------------------------------------------------- */

int prs_spill_finish(prs_store *s, prs_spill_job *job, int codec, int algorithm, uint64_t digest, prs_error *error)
{
    if (!prs_spill_job_ours(s, job)) {
        prs_spill_cancel(s, job);
        return PRS_E_AGAIN;
    }
    prs_spill_trailer t = trailer_of(&job->id, job->size, job->stored, codec, algorithm, digest);
    int rc = prs_spill_append(s, job, &t, sizeof t, error);
    /* unreached by tests (no injected fault): the disk is full when the trailer comes */
    if (rc == PRS_OK)
        return prs_spill_commit(s, job, error);
    prs_spill_cancel(s, job);
    return rc;
}

bool prs_draft_in_file(const prs_store *s, const prs_draft *draft)
{
    /* unreached by tests (impossible): a window is never larger than the store */
    return draft->size > s->capacity && !draft->window;
}

int prs_draft_map(prs_store *s, const prs_draft *draft, const uint8_t **bytes, prs_error *error)
{
    prs_file_map *map;
    int rc = prs_spill_map(s, &draft->id, draft->size, PRS_SPILL_READ_ONLY, &map);
    if (rc < 0)
        return prs_fail(error, rc, 0, "the spill file of the object cannot be mapped");
    *bytes = map->at;
    free(map);
    return PRS_OK;
}

void prs_draft_unmap(const uint8_t *bytes, uint64_t size)
{
    prs_os_unmap((void *)(uintptr_t)bytes, size);
}

int prs_draft_finish(prs_store *s, const prs_draft *draft, int algorithm, uint64_t digest, prs_error *error)
{
    prs_spill_trailer t = trailer_of(&draft->id, draft->size, draft->size, PRS_SPILL_RAW, algorithm, digest);
    int fd = prs_spill_open_file(s, draft->id.slot, draft->id.serial, O_RDWR);
    int rc = fd < 0 ? fd : prs_copy_to_file(fd, draft->size, &t, sizeof t, NULL);
    prs_os_close(fd);
    return rc < 0 ? prs_spill_disk(s, rc, draft->size, error) : PRS_OK;
}

/* ---- reading ----------------------------------------------------------------------------------- */

/* Check the trailer of the file, then map the file or allocate memory.  If this fails, the caller must call
 * prs_restore_cancel(). */
static int open_restore(prs_store *s, prs_restore *r, uint64_t size, prs_error *error)
{
    int fd = prs_spill_open_file(s, r->id.slot, r->id.serial, O_RDONLY);
    if (fd < 0)
        /* unreached by tests (no injected fault): the file exists and cannot be opened */
        return fd == -ENOENT ? prs_fail(error, PRS_E_LOST, 0, "it was spilled, and its file was removed")
                             : prs_fail(error, PRS_E_SYS, -fd, "cannot open the spill file of the object");
    uint64_t length = prs_os_length(fd);
    const char *why = NULL;
    int rc = PRS_OK;
    if (length < sizeof r->trailer) {
        why = "its spill file is shorter than a trailer";
    } else {
        rc = prs_os_pread(fd, &r->trailer, sizeof r->trailer, length - sizeof r->trailer);
        /* unreached by tests (no injected fault): pread of a trailer */
        why = rc == 0 ? check_trailer(s, &r->id, size, length, &r->trailer) : NULL;
    }
    /* unreached by tests (no injected fault): pread of a trailer */
    if (rc < 0)
        rc = prs_fail(error, PRS_E_SYS, -rc, "cannot read the spill file of the object");
    else if (why)
        rc = prs_fail(error, PRS_E_CORRUPT, 0, "%s", why);
    if (rc == PRS_OK) {
        bool raw = r->trailer.codec == PRS_SPILL_RAW;
        /* unreached by tests (impossible): an object without bytes is never spilled */
        r->len = raw ? length : size ? size : 1;
        r->at = raw ? prs_os_map(fd, 0, r->len, PRS_READ_ONLY) : prs_os_memory(r->len);
        /* unreached by tests (no injected fault): mmap of a spilled object */
        if (!r->at)
            rc = prs_fail(error, PRS_E_NOMEM, errno, "no memory to restore an object of %llu bytes",
                          (unsigned long long)size);
        else if (!raw)
            r->fd = fd; /* the caller reads the file, because a truncated mapping raises SIGBUS */
    }
    if (r->fd < 0)
        prs_os_close(fd);
    return rc;
}

int prs_restore_begin(prs_store *s, const prs_oid *id, prs_pin_kind kind, prs_restore *r, prs_error *error)
{
    prs_view view;
    memset(r, 0, sizeof *r);
    r->id = *id;
    r->fd = -1;
    int rc = prs_pin_bare(s, id, kind, &view);
    /* unreached by tests (race): freed between the two checks */
    if (rc < 0)
        return prs_fail(error, rc, 0, "the object no longer exists");
    if (view.data) {
        prs_unpin(s, id);
        return PRS_E_EXISTS;
    }
    rc = open_restore(s, r, view.size, error);
    if (rc < 0)
        prs_restore_cancel(s, r);
    return rc;
}

int prs_restore_read(const prs_restore *r, uint64_t at, void *to, size_t n)
{
    /* unreached by tests (no test): the read begins after the end */
    if (at > r->trailer.stored || n > r->trailer.stored - at)
        return PRS_E_CORRUPT;
    int rc = prs_os_pread(r->fd, to, n, at);
    /* unreached by tests (no test): the file was truncated */
    /* unreached by tests (no injected fault, 2 branches): pread */
    return rc == 0 ? PRS_OK : rc == -ENODATA ? PRS_E_CORRUPT : PRS_E_SYS;
}

void prs_restore_cancel(prs_store *s, prs_restore *r)
{
    prs_os_close(r->fd);
    prs_os_unmap(r->at, r->len);
    prs_unpin(s, &r->id);
}

int prs_restore_end(prs_store *s, prs_restore *r, prs_view *view)
{
    prs_file_map *map = malloc(sizeof *map);
    /* unreached by tests (no injected fault): malloc */
    if (!map) {
        prs_restore_cancel(s, r);
        return PRS_E_NOMEM;
    }
    *map = (prs_file_map){.at = r->at, .len = r->len, .restored = r->trailer.codec != PRS_SPILL_RAW};
    prs_os_close(r->fd);
    view->size = r->trailer.size;
    prs_pin_file(s, &r->id, map, view);
    return PRS_OK;
}
