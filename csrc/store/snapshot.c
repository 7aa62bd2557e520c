/* snapshot.c - inspecting a store without becoming its client.
 *
 * Purpose    Tools can show the contents of a store without changing it, even if all its processes have crashed.
 * Algorithm  We copy the tables (everything before the data area), except holes, to a private file; the caller
 *            becomes a client of the copy.  In the copy, the spill directory is empty and the last check for
 *            dead clients is set to the current time, so the caller reaps, frees and removes nothing.  The copy has
 *            the size of the original, but no data: pinned objects contain zeros.
 * Guarantee  We open the original read-only.  The copy is validated like any store on attach; if other processes
 *            change the tables during the copy, it may be refused as corrupt.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "platform/descriptor.h"
#include "store.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define PIECE (256u * 1024u)

static int copy_piece(int to, int from, uint64_t at, size_t n, void *buffer)
{
    int rc = prs_os_pread(from, buffer, n, at);
    /* unreached by tests (no injected fault): pread of the tables */
    for (size_t done = 0; rc == 0 && done < n;) {
        ssize_t written = pwrite(to, (const char *)buffer + done, n - done, (off_t)(at + done));
        /* unreached by tests (no injected fault, 3 branches): pwrite to the copy */
        if (written < 0 && errno != EINTR)
            rc = -errno;
        /* unreached by tests (no injected fault): pwrite to the copy */
        else if (written > 0)
            done += (size_t)written;
    }
    return rc;
}

/* Copy [0, end) except holes. */
static int copy_tables(int to, int from, uint64_t end)
{
    void *buffer = malloc(PIECE);
    /* unreached by tests (no injected fault): malloc */
    int rc = buffer ? 0 : -ENOMEM;
    /* unreached by tests (no injected fault): the copy fails */
    /* unreached by tests (no test): tables that do not end with a hole */
    for (uint64_t at = 0; rc == 0 && at < end;) {
        off_t data = lseek(from, (off_t)at, SEEK_DATA);
        if (data < 0)
            /* unreached by tests (no injected fault): lseek */
            rc = errno == ENXIO ? 0 : -errno;
        /* unreached by tests (no test): tables that end with a hole, with data after them */
        if (data < 0 || (uint64_t)data >= end)
            break;
        off_t hole = lseek(from, data, SEEK_HOLE);
        /* unreached by tests (no injected fault): lseek */
        if (hole < 0) {
            rc = -errno;
            break;
        }
        uint64_t stop = (uint64_t)hole < end ? (uint64_t)hole : end;
        /* unreached by tests (no injected fault): the copy fails */
        for (at = (uint64_t)data; rc == 0 && at < stop;) {
            size_t n = stop - at < PIECE ? (size_t)(stop - at) : PIECE;
            rc = copy_piece(to, from, at, n, buffer);
            at += n;
        }
    }
    free(buffer);
    return rc;
}

/* Read and check the fields that give the length of the tables; attaching checks the rest. */
static int read_head(int fd, prs_super *head, prs_error *error)
{
    prs_file file;
    uint64_t size;
    int rc = prs_os_inspect(fd, &file, &size, error);
    if (rc < 0)
        return rc;
    /* unreached by tests (no injected fault): pread of the superblock */
    if (size < sizeof *head || prs_os_pread(fd, head, sizeof *head, 0) < 0)
        return prs_fail(error, PRS_E_FOREIGN, 0, "the file is too short for a store");
    if (prs_load_relaxed(&head->ready) != PRS_MAGIC)
        return prs_fail(error, PRS_E_FOREIGN, 0, "the file is not a store of this library");
    if (head->version != PRS_LAYOUT_VERSION)
        return prs_fail(error, PRS_E_VERSION, 0, "the store has layout %u, this library knows layout %u", head->version,
                        PRS_LAYOUT_VERSION);
    /* unreached by tests (damaged tables, 2 branches) */
    if (head->data_off > size || head->data_off < sizeof *head || memchr(head->spill_dir, 0, PRS_SPILL_DIR) == NULL)
        return prs_fail(error, PRS_E_CORRUPT, 0, "the superblock of the store is damaged");
    head->file_size = size;
    return PRS_OK;
}

static int make_copy(int fd, prs_super *head, prs_error *error)
{
    int copy = prs_os_memfd(head->store_id, error);
    /* unreached by tests (no injected fault): memfd_create for the copy */
    if (copy < 0)
        return copy;
    char none[PRS_SPILL_DIR] = {0};
    uint64_t now = (uint64_t)prs_now();
    int rc = prs_os_size(copy, head->file_size);
    /* unreached by tests (no injected fault): ftruncate of the copy */
    if (rc == 0)
        rc = copy_tables(copy, fd, head->data_off);
    /* unreached by tests (no injected fault, 3 branches): pwrite to the copy */
    if (rc == 0 && (pwrite(copy, none, sizeof none, offsetof(prs_super, spill_dir)) != (ssize_t)sizeof none ||
                    pwrite(copy, &now, sizeof now, offsetof(prs_super, last_look)) != (ssize_t)sizeof now))
        rc = -errno;
    /* unreached by tests (no injected fault): the copy fails */
    if (rc == 0)
        return copy;
    prs_os_close(copy);
    return prs_fail(error, PRS_E_SYS, -rc, "copying the tables of the store failed");
}

int prs_snapshot(prs_store **out, const char *path, char spill_dir[PRS_SPILL_DIR_MAX], prs_error *error)
{
    _Static_assert(PRS_SPILL_DIR_MAX >= PRS_SPILL_DIR, "the caller has room for any spill directory");
    *out = NULL;
    int fd = prs_above_standard(open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK)), copy = -1;
    if (fd < 0)
        return prs_fail(error,
                        errno == ENOENT  ? PRS_E_NOTFOUND
                        : errno == ELOOP ? PRS_E_FOREIGN
                                         : PRS_E_SYS,
                        errno, "cannot open %.150s", path);
    prs_super *head = prs_os_reserve(sizeof *head);
    /* unreached by tests (no injected fault): mmap */
    int rc =
        head ? read_head(fd, head, error) : prs_fail(error, PRS_E_NOMEM, ENOMEM, "no memory to read the superblock");
    if (rc == PRS_OK) {
        memcpy(spill_dir, head->spill_dir, PRS_SPILL_DIR);
        rc = copy = make_copy(fd, head, error);
    }
    if (copy >= 0)
        rc = prs_attach_pid(out, (int32_t)getpid(), copy, head->store_id, NULL, error);
    prs_os_close(copy);
    prs_os_close(fd);
    prs_os_unmap(head, sizeof *head);
    return rc;
}

const char *prs_spill_directory(const prs_store *s)
{
    return s->super->spill_dir;
}
