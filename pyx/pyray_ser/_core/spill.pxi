# uses: prelude, policy
#
# Writes and reads spill files that are compressed or have a digest. `pyray_ser.store.spill_codec` defines their
# contents; the engine chooses objects and files, and recovers if a process is killed.
#
# This code holds no lock of the engine. A garbage collection between two pieces may run a finalizer that calls `get`
# for the object being written. The engine then returns the object to this thread, and the spill is cancelled.

cdef enum:
    SPILL_PIECE = 1 << 20             # number of bytes compressed at a time
    SPILL_FRAME = SPILL_PIECE + SPILL_PIECE // 64 + 4096


cdef object form_of(Store store):
    """Return the format of this store's spill files, or None if the engine writes them without this module."""
    if store.spill_form is None:
        store.check_open()
        flags = prs_spill_form(store.handle)
        if not flags:
            return None
        store.spill_form = new_form(flags)
    return store.spill_form


cdef bint make_room(Store store, uint64_t size) except -1:
    """Move objects to files until `size` bytes may fit; return whether another attempt to allocate makes sense."""
    cdef prs_oid[PRS_SPILL_VICTIMS] victims
    cdef prs_error error
    cdef int n, i, turn
    cdef bint progress = False
    cdef prs_store *handle
    if size > prs_capacity(store.handle) or not prs_spill_directory(store.handle)[0]:
        return False
    form = form_of(store)
    if form is None:
        return False
    store.check_open()  # another thread may have closed the store during the import
    handle = begin(store)
    try:
        for turn in range(PRS_SPILL_ROUNDS):
            error.code = 0
            with nogil:
                n = prs_spill_choose(handle, size, turn, victims, &error)
            if n < 0:
                fail(n, &error, store)
            for i in range(n):
                progress |= spill_one(store, handle, &victims[i], form)
            if progress:
                return True
        return False
    finally:
        end(handle)


cdef bint spill_one(Store store, prs_store *handle, const prs_oid *victim, form) except -1:
    cdef prs_spill_job job
    cdef prs_error error
    cdef uint64_t digest
    cdef int codec = form.codec, algorithm = form.algorithm
    cdef int status
    error.code = 0
    status = prs_spill_begin(handle, victim, &job, &error)
    if status == PRS_E_AGAIN:
        return False
    if status != PRS_OK:
        fail(status, &error, store)
    try:
        digest = write_pieces(store, handle, &job, form, codec)
    except BaseException:
        prs_spill_cancel(handle, &job)
        raise
    with nogil:
        status = prs_spill_finish(handle, &job, codec, algorithm, digest, &error)
    if status == PRS_E_AGAIN:
        return False
    if status != PRS_OK:
        fail(status, &error, store)
    return True


cdef uint64_t write_pieces(Store store, prs_store *handle, prs_spill_job *job, form, int codec) except? 0:
    """Write the contents of the file; return the digest of the object, or 0 if the store has no digests."""
    cdef prs_error error
    cdef uint64_t at = 0
    cdef size_t n
    cdef uint32_t length
    cdef int status = PRS_OK
    cdef const char *frame_bytes
    error.code = 0
    digest = form.digest_of(bytes_at(job.data, job.size)) if form.algorithm else 0
    if codec == PRS_SPILL_RAW:
        with nogil:
            status = prs_spill_append(handle, job, job.data, job.size, &error)
    else:
        compress = form.compressor()
        while status == PRS_OK and at < job.size:
            n = min(SPILL_PIECE, job.size - at)
            frame = compress(bytes_at(job.data + at, n))
            if not PyBytes_CheckExact(frame) or PyBytes_GET_SIZE(frame) > SPILL_FRAME:
                raise RuntimeError("the compressor returned something unexpected")
            length = <uint32_t>PyBytes_GET_SIZE(frame)
            frame_bytes = PyBytes_AS_STRING(frame)
            with nogil:
                status = prs_spill_append(handle, job, &length, sizeof(length), &error)
                if status == PRS_OK:
                    status = prs_spill_append(handle, job, frame_bytes, length, &error)
            at += n
    if status != PRS_OK:
        fail(status, &error, store)
    return digest


cdef object bytes_at(const void *data, uint64_t size):
    return PyMemoryView_FromMemory(<char *>data, size, PyBUF_READ)


cdef int finish_file(Store store, prs_draft *draft) except -1:
    """Write the trailer of an object that was created in its file, before it is sealed."""
    cdef const uint8_t *data
    cdef prs_error error
    cdef int status, algorithm
    cdef uint64_t digest = 0
    form = form_of(store)
    if form is None:
        return 0
    error.code = 0
    algorithm = form.algorithm
    if algorithm:
        status = prs_draft_map(draft.store, draft, &data, &error)
        if status != PRS_OK:
            fail(status, &error, store)
        try:
            digest = form.digest_of(bytes_at(data, draft.size))
        finally:
            prs_draft_unmap(data, draft.size)
    status = prs_draft_finish(draft.store, draft, algorithm, digest, &error)
    if status != PRS_OK:
        fail(status, &error, store)
    return 0


cdef int restore(Store store, const prs_oid *id, prs_pin_kind kind, prs_view *view, ObjectRef ref, prs_store **through) except 1:
    """Read a spilled object back. PRS_OK: it is pinned through a handle and checked; PRS_E_AGAIN: pin it again."""
    cdef prs_restore job
    cdef prs_error error
    cdef int status
    cdef prs_store *handle
    form = form_of(store)
    store.check_open()  # another thread may have closed the store during the import
    error.code = 0
    handle = begin(store)
    try:
        status = prs_restore_begin(handle, id, kind, &job, &error)
        if status == PRS_E_EXISTS or status == PRS_E_AGAIN:
            return PRS_E_AGAIN
        if status != PRS_OK:
            fail(status, &error, store, ref)
        try:
            reason = read_back(form, &job)
            if reason is not None:
                corrupt_for(reason, ref)
        except BaseException:
            prs_restore_cancel(handle, &job)
            raise
        status = prs_restore_end(handle, &job, view)
        if status != PRS_OK:
            fail(status, NULL, store, ref)
        through[0] = handle  # Python code has run, so the store may now have a different handle, or none
        return PRS_OK
    finally:
        end(handle)


cdef object read_back(form, prs_restore *job):
    """Decompress the object and compare its digest; return None, or a description of the damage."""
    cdef uint64_t at = 0, done = 0, size = job.trailer.size
    cdef uint32_t length
    cdef size_t want
    cdef int status
    cdef bytearray frame
    cdef uint8_t *room
    if job.trailer.codec != PRS_SPILL_RAW:
        expand = form.expander()
        frame = bytearray(SPILL_FRAME)
        room = frame
        while done < size:
            status = prs_restore_read(job, at, &length, sizeof(length))
            if status == PRS_OK and length > SPILL_FRAME:
                return "a piece of its spill file is longer than any can be"
            if status == PRS_OK:
                at += sizeof(length)
                with nogil:
                    status = prs_restore_read(job, at, room, length)
            if status == PRS_E_CORRUPT:
                return "its spill file ends in the middle"
            if status != PRS_OK:
                fail(status, NULL)
            at += length
            want = min(SPILL_PIECE, size - done)
            piece = expand(memoryview(frame)[:length], want)
            if piece is None or not PyBytes_CheckExact(piece) or PyBytes_GET_SIZE(piece) != <Py_ssize_t>want:
                return "a piece of its spill file cannot be decompressed"
            memcpy(job.at + done, PyBytes_AS_STRING(piece), want)
            done += want
        if at != job.trailer.stored:
            return "its spill file is longer than its contents"
    if job.trailer.algorithm and form.digest_of(bytes_at(job.at, size)) != job.trailer.digest:
        return "its bytes in the spill file are not those that were written: their digest differs"
    return None
