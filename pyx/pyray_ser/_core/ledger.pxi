# uses: prelude
#
# In debug builds only, records which bytes of an unsealed object were written, and checks them when the object is
# sealed.
#
# Every writer reports the spans that it fills. If a byte was written twice or not at all, sealing raises SystemError
# with the offset of the byte. Newly mapped bytes contain a pattern, so that a missing write is also visible in the
# values.

cdef extern from *:
    """
    #ifdef PRS_DEBUG
    enum { prx_ledger = 1 };
    #else
    enum { prx_ledger = 0 };
    #endif
    """
    const bint prx_ledger

# {(store, serial): (size, [(offset, length), ...])}
cdef dict ledgers = {}


# The callers of these functions expect no exception, so an object whose ledger finds no memory is not checked.

cdef inline void ledger_begin(Store store, const prs_draft *draft, uint64_t size) noexcept:
    if prx_ledger:
        if draft.dst is not NULL:
            memset(draft.dst, 0xa5, size)
        try:
            ledgers[store.id, draft.id.serial] = (size, [])
        except MemoryError:
            return


cdef inline void ledger_write(Store store, const prs_draft *draft, uint64_t at, uint64_t n) noexcept:
    if prx_ledger and n:
        try:
            found = ledgers.get((store.id, draft.id.serial))
            if found is not None:
                found[1].append((at, n))
        except MemoryError:
            forget_ledger(store, draft)


cdef void forget_ledger(Store store, const prs_draft *draft) noexcept:
    try:
        ledgers.pop((store.id, draft.id.serial), None)
    except MemoryError:
        return  # the entry stays; no other object gets this number


cdef inline int ledger_seal(Store store, const prs_draft *draft) except -1:
    """Raise an error unless each byte was written exactly once. Windows have no ledger, because the user fills them."""
    if prx_ledger:
        found = ledgers.pop((store.id, draft.id.serial), None)
        if found is not None:
            check_spans(found[0], found[1])
    return 0


def check_spans(size, spans):
    """
    Raise an exception unless the spans cover `size` bytes and do not overlap.

    Parameters
    ----------
    size : int
        Bytes in the object.
    spans : list of (int, int)
        Offset and length of each write, in any order.

    Raises
    ------
    SystemError
        If two spans overlap, or a byte is in none of them.
    """
    done = 0
    for at, n in sorted(spans):
        if at < done:
            raise SystemError(f"two writers filled byte {at} of a new object of {size} bytes")
        if at > done:
            raise SystemError(f"no writer filled bytes {done} to {at} of a new object of {size} bytes")
        done = at + n
    if done != size:
        raise SystemError(f"the writers filled {done} bytes of a new object of {size} bytes")
