# The stored form: header and table of buffers, checked before use.

cdef int check_header(const void *data, uint64_t have, uint64_t total, prs_header *header, object ref) except -1:
    """Copy and check a header of which `have` bytes are there; the whole form must have `total` bytes (0: any)."""
    cdef const char *why = prs_format_check_header(data, have, header)
    if why is NULL and total and header.total != total:
        why = b"its length is not the one its header tells"
    if why is not NULL:
        corrupt(why, ref)
    return 0


cdef int check_entry(const prs_header *header, const void *table, uint32_t index, prs_buffer_entry *entry, object ref) except -1:
    cdef const char *why = prs_format_check_entry(header, table, index, entry)
    if why is not NULL:
        corrupt(why, ref)
    return 0


cdef int place(uint64_t *end, uint64_t size, uint64_t *off) except -1:
    if not prs_format_place(end, size, off):
        raise OverflowError("the object is larger than any store")
    return 0
