/* format.h - the stored form of an object.
 *
 *   header   32 bytes
 *   table    32 bytes per buffer
 *   stream   the pickle stream (protocol 5, standard)
 *   buffers  each aligned to 64 bytes; to a page from PRS_PAGE_ALIGN_FROM bytes on
 *
 * put stores these bytes in an extent, serialize in one bytes object, and dumps_frames as a list of
 * frames (header and table, stream, buffers).  All fields little endian.  A reader copies header
 * and table to private memory first, checks them there, and uses the copy, because the shared bytes
 * may change meanwhile.
 *
 * The functions below are the only code that reads or writes headers and tables. A checking function returns NULL, or a
 * sentence that describes the error.
 */
#ifndef PRS_FORMAT_H
#define PRS_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#include "prs.h"

#define PRS_FORMAT_MAGIC 0x4F535250u /* "PRSO" */
#define PRS_FORMAT_VERSION 1
#define PRS_BUFFER_ALIGN 64u
#define PRS_PAGE_ALIGN 4096u
#define PRS_PAGE_ALIGN_FROM (256u * 1024u)
#define PRS_NO_SLOT UINT32_MAX

/* Invariant: total >= 32 + 32 * nbuffers + stream_len. */
typedef struct prs_header {
    uint32_t magic;
    uint16_t version;
    uint16_t flags;      /* no flag is defined: a reader refuses any set bit            */
    uint64_t total;      /* bytes of the whole form, including its own buffers         */
    uint64_t stream_len; /* bytes of the pickle stream, which follows the table   */
    uint32_t nbuffers;
    uint32_t reserved; /* 0 */
} prs_header;

/* A buffer of this object: slot == PRS_NO_SLOT, off + len <= total.
 * A buffer of another object of the same store: its slot, generation and serial;
 * off and len then lie within that object. */
typedef struct prs_buffer_entry {
    uint64_t off;
    uint64_t len;
    uint64_t serial;
    uint32_t slot;
    uint32_t generation;
} prs_buffer_entry;

_Static_assert(sizeof(prs_header) == 32, "header is 32 bytes");
_Static_assert(sizeof(prs_buffer_entry) == 32, "entry is 32 bytes");

#define PRS_HEADER_SIZE ((uint64_t)sizeof(prs_header))
#define PRS_ENTRY_SIZE ((uint64_t)sizeof(prs_buffer_entry))

/* ---- reading ----------------------------------------------------------------- */

/* Copy the header from the `have` bytes at `data`, check it, and check that table and stream fit into its
 * `total`. The caller compares `total` with the number of bytes it has. */
const char *prs_format_check_header(const void *data, uint64_t have, prs_header *header);
/* Copy entry `index` < nbuffers out of `table` and check it.  If the entry refers to another object,
 * check only that it is consistent; the caller compares its range with that object's size. */
const char *prs_format_check_entry(const prs_header *header, const void *table, uint32_t index,
                                   prs_buffer_entry *entry);
/* Fast path for the most common form: `size` bytes in total, with one buffer that belongs to this object.
 * Return true if `header` and `entry` are checked copies, as after the two functions above; return false for
 * other or damaged forms. */
bool prs_format_one_buffer(const void *data, uint64_t size, prs_header *header, prs_buffer_entry *entry);
/* Return the offset of the first byte after the stream of a checked header. */
uint64_t prs_format_body(const prs_header *header);

/* ---- writing ------------------------------------------------------------------ */

/* Place a buffer of `len` bytes after `*end`: set `*off` to its aligned offset and advance `*end`
 * past it.  Return false on overflow.  Empty buffers take no space. */
bool prs_format_place(uint64_t *end, uint64_t len, uint64_t *off);
void prs_format_write_header(void *dst, uint64_t total, uint64_t stream_len, uint32_t nbuffers);
/* `dst` is the start of the header; `other` is NULL for a buffer of this object. */
void prs_format_write_entry(void *dst, uint32_t index, uint64_t off, uint64_t len, const prs_oid *other);

#endif
