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


cdef uint64_t body_offset(const prs_header *header) noexcept nogil:
    return prs_format_body(header)


cdef int place(uint64_t *end, uint64_t size, uint64_t *off) except -1:
    if not prs_format_place(end, size, off):
        raise OverflowError("the object is larger than any store")
    return 0


cdef void window_opened(prs_draft *draft) noexcept:
    end(draft.store)


cdef void window_aborted(prs_draft *draft) noexcept:
    prs_abort(draft.store, draft, True)


cdef void window_closed(prs_draft *draft) noexcept:
    prs_window_close(draft.store, draft)


cdef void write_header(void *dst, uint64_t total, uint64_t stream_size, uint32_t nbuffers) noexcept nogil:
    prs_format_write_header(dst, total, stream_size, nbuffers)


cdef void write_entry(void *dst, uint32_t index, uint64_t off, uint64_t size) noexcept nogil:
    prs_format_write_entry(dst, index, off, size, NULL)
