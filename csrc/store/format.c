/* format.c - headers and buffer tables of stored objects.
 *
 * Purpose    Validate headers and entries in shared memory before any use; write new ones.
 * Algorithm  Copy each struct to private memory by one memcpy and check the copy, with
 *            overflow-checked sums.  If another process changes the bytes meanwhile, one copy may
 *            differ from the next, but every copy is checked before it is used.
 * Guarantee  A valid header describes no byte beyond its own `total`; the buffer of a valid entry
 *            lies between the stream and `total`, or belongs to another object.
 */
#include "format.h"

#include <string.h>

const char *prs_format_check_header(const void *data, uint64_t have, prs_header *header)
{
    if (have < PRS_HEADER_SIZE)
        return "it is shorter than a header";
    memcpy(header, data, sizeof(*header));
    if (header->magic != PRS_FORMAT_MAGIC)
        return "its first four bytes are not the magic number";
    if (header->version != PRS_FORMAT_VERSION)
        return "its format version is unknown";
    if (header->flags != 0 || header->reserved != 0)
        return "flags are set that this version does not know";
    /* The product of a 32-bit count and 32 cannot overflow 64 bits. */
    uint64_t table_end = PRS_HEADER_SIZE + PRS_ENTRY_SIZE * header->nbuffers;
    if (table_end > header->total)
        return "its table of buffers is longer than the object";
    if (header->stream_len > header->total - table_end)
        return "its stream is longer than the object";
    return NULL;
}

bool prs_format_one_buffer(const void *data, uint64_t size, prs_header *header, prs_buffer_entry *entry)
{
    const uint64_t before = PRS_HEADER_SIZE + PRS_ENTRY_SIZE;
    const struct {
        uint32_t magic;
        uint16_t version, flags;
    } begins = {PRS_FORMAT_MAGIC, PRS_FORMAT_VERSION, 0};
    const uint64_t ends = 1; /* nbuffers is 1, reserved is 0 */
    if (size < before)
        return false;
    memcpy(header, data, sizeof(*header));
    memcpy(entry, (const char *)data + PRS_HEADER_SIZE, sizeof(*entry));
    if (memcmp(header, &begins, 8) != 0 || memcmp(&header->nbuffers, &ends, 8) != 0 || header->total != size ||
        header->stream_len > size - before)
        return false;
    if (entry->slot != PRS_NO_SLOT || entry->generation != 0 || entry->serial != 0)
        return false;
    return entry->off <= size && entry->len <= size - entry->off &&
           (entry->len == 0 || entry->off >= before + header->stream_len);
}

uint64_t prs_format_body(const prs_header *header)
{
    return PRS_HEADER_SIZE + PRS_ENTRY_SIZE * header->nbuffers + header->stream_len;
}

const char *prs_format_check_entry(const prs_header *header, const void *table, uint32_t index, prs_buffer_entry *entry)
{
    memcpy(entry, (const char *)table + (uint64_t)index * PRS_ENTRY_SIZE, sizeof(*entry));
    uint64_t end;
    if (__builtin_add_overflow(entry->off, entry->len, &end))
        return "the range of a buffer overflows";
    if (entry->slot != PRS_NO_SLOT)
        return NULL;
    if (entry->serial != 0 || entry->generation != 0)
        return "a buffer of its own names another object";
    if (entry->len == 0)
        return NULL;
    if (entry->off < prs_format_body(header) || end > header->total)
        return "a buffer lies outside of the object's buffer area";
    return NULL;
}

bool prs_format_place(uint64_t *end, uint64_t len, uint64_t *off)
{
    if (len == 0) {
        *off = *end;
        return true;
    }
    uint64_t align = len >= PRS_PAGE_ALIGN_FROM ? PRS_PAGE_ALIGN : PRS_BUFFER_ALIGN;
    uint64_t start;
    if (__builtin_add_overflow(*end, align - 1, &start))
        return false;
    start &= ~(align - 1);
    *off = start;
    return !__builtin_add_overflow(start, len, end);
}

void prs_format_write_header(void *dst, uint64_t total, uint64_t stream_len, uint32_t nbuffers)
{
    prs_header header = {
        .magic = PRS_FORMAT_MAGIC,
        .version = PRS_FORMAT_VERSION,
        .total = total,
        .stream_len = stream_len,
        .nbuffers = nbuffers,
    };
    memcpy(dst, &header, sizeof(header));
}

void prs_format_write_entry(void *dst, uint32_t index, uint64_t off, uint64_t len, const prs_oid *other)
{
    prs_buffer_entry entry = {.off = off, .len = len, .slot = PRS_NO_SLOT};
    if (other) {
        entry.serial = other->serial;
        entry.slot = other->slot;
        entry.generation = other->generation;
    }
    memcpy((char *)dst + PRS_HEADER_SIZE + (uint64_t)index * PRS_ENTRY_SIZE, &entry, sizeof(entry));
}
