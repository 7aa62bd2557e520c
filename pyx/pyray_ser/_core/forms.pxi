# uses: prelude, policy, views
#
# Checks the stored form before use, and writes and reads values that need no pickler.

cdef int check_header(const void *data, uint64_t have, uint64_t total, prs_header *header, object ref) except -1:
    """Copy and check a header with `have` bytes available; the form must have `total` bytes (0: any number)."""
    cdef const char *why = prs_format_check_header(data, have, header)
    if why is NULL and total and header.total != total:
        why = b"its length does not match its header"
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


cdef Py_ssize_t scalar_stream(object value, uint8_t *out) except -1:
    """Write the stream of None, a bool, int, float or short ASCII str to `out` (280 bytes); return its length or 0."""
    cdef long long number
    cdef int overflow, n
    cdef Py_ssize_t length
    out[0] = 0x80
    out[1] = 5
    if PyLong_CheckExact(value):
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            return 0
        if 0 <= number <= 0xff:
            out[2] = c'K'
            n = 1
        elif 0 <= number <= 0xffff:
            out[2] = c'M'
            n = 2
        elif -0x80000000LL <= number <= 0x7fffffffLL:
            out[2] = c'J'
            n = 4
        else:
            n = 8
            # Remove bytes that only repeat the sign.
            while (number >> (8 * (n - 1) - 1)) == (-1 if number < 0 else 0):
                n -= 1
            out[2] = 0x8a
            out[3] = n
            memcpy(out + 4, &number, n)
            out[4 + n] = c'.'
            return 5 + n
        memcpy(out + 3, &number, n)
        out[3 + n] = c'.'
        return 4 + n
    if PyFloat_CheckExact(value):
        out[2] = c'G'
        PyFloat_Pack8(PyFloat_AS_DOUBLE(value), <char *>out + 3, 0)
        out[11] = c'.'
        return 12
    if value is None:
        out[2] = c'N'
        out[3] = c'.'
        return 4
    if value is True or value is False:
        out[2] = 0x88 if value is True else 0x89
        out[3] = c'.'
        return 4
    if PyUnicode_CheckExact(value) and prx_is_ascii(value):
        length = prx_ascii_len(value)
        if length > 255:
            return 0
        out[2] = 0x8c
        out[3] = <uint8_t>length
        memcpy(out + 4, prx_ascii(value), length)
        out[4 + length] = c'.'
        return 5 + length
    return 0


# Streams of values that consist of one buffer: the stream requests the buffer and calls the type.
#   PROTO 5, 'builtins', name, STACK_GLOBAL, NEXT_BUFFER, TUPLE1, REDUCE, STOP
cdef bytes BYTES_STREAM = b"\x80\x05\x8c\x08builtins\x8c\x05bytes\x93\x97\x85R."
cdef bytes BYTEARRAY_STREAM = b"\x80\x05\x8c\x08builtins\x8c\x09bytearray\x93\x97\x85R."
cdef bytes MEMORYVIEW_STREAM = b"\x80\x05\x8c\x08builtins\x8c\x0amemoryview\x93\x97\x85R."
#   array.array(typecode, bytes(<buffer>))
cdef bytes ARRAY_STREAM = b"\x80\x05\x8c\x05array\x8c\x05array\x93\x8c\x01?\x8c\x08builtins\x8c\x05bytes\x93\x97\x85R\x86R."
cdef bytes MEMORYVIEW_CALL = MEMORYVIEW_STREAM[2:len(MEMORYVIEW_STREAM) - 1]
cdef Py_ssize_t ARRAY_TYPECODE = ARRAY_STREAM.index(b"?")


cdef object load_scalar(const uint8_t *stream, uint64_t n, bint *done):
    """Return the value of a stream that `scalar_stream` wrote. Shared bytes may change, so read each byte only once."""
    cdef uint8_t op
    cdef uint64_t length
    cdef long long number
    cdef uint8_t[8] raw
    cdef uint8_t[256] text
    done[0] = False
    if n < 4 or stream[0] != 0x80 or stream[1] != 5 or stream[n - 1] != c'.':
        return None
    op = stream[2]
    done[0] = True
    if op == c'K' and n == 5:
        return PyLong_FromLongLong(stream[3])
    if op == c'M' and n == 6:
        return PyLong_FromLongLong(stream[3] | <uint32_t>stream[4] << 8)
    if op == c'J' and n == 8:
        memcpy(raw, stream + 3, 4)
        return PyLong_FromLongLong((<int32_t *>raw)[0])
    if op == c'G' and n == 12:
        memcpy(raw, stream + 3, 8)
        return PyFloat_FromDouble(PyFloat_Unpack8(<const char *>raw, 0))
    if op == c'N' and n == 4:
        return None
    if op == 0x88 and n == 4:
        return True
    if op == 0x89 and n == 4:
        return False
    # We compute the length from the size of the stream. The length byte must be equal to it, but is not used otherwise.
    length = n - 5
    if op == 0x8c:
        if stream[3] == length:
            memcpy(text, stream + 4, length)  # the decoder reads its input twice
            return PyUnicode_DecodeUTF8(<const char *>text, length, "surrogatepass")
    if op == 0x8a:
        if 0 < length <= 8 and stream[3] == length:
            memcpy(raw, stream + 4, length)
            memset(raw + length, 0xff if raw[length - 1] & 0x80 else 0, 8 - length)
            memcpy(&number, raw, 8)
            return PyLong_FromLongLong(number)
    done[0] = False
    return None


cdef object load_memory(const uint8_t *stream, uint64_t n, object owner, const uint8_t *data, uint64_t size, bint writable):
    """Return the value of a stream that `put_memory` wrote, or None."""
    cdef object array
    if n == <uint64_t>PyBytes_GET_SIZE(BYTES_STREAM) and memcmp(stream, PyBytes_AS_STRING(BYTES_STREAM), n) == 0:
        return copied_bytes(data, size)
    if n == <uint64_t>PyBytes_GET_SIZE(BYTEARRAY_STREAM) and memcmp(stream, PyBytes_AS_STRING(BYTEARRAY_STREAM), n) == 0:
        return bytearray(block(owner, data, size, True))
    if n == <uint64_t>PyBytes_GET_SIZE(MEMORYVIEW_STREAM) and memcmp(stream, PyBytes_AS_STRING(MEMORYVIEW_STREAM), n) == 0:
        return PyMemoryView_FromObject(block(owner, data, size, not writable))
    if (n == <uint64_t>PyBytes_GET_SIZE(ARRAY_STREAM)
            and memcmp(stream, PyBytes_AS_STRING(ARRAY_STREAM), ARRAY_TYPECODE) == 0
            and memcmp(stream + ARRAY_TYPECODE + 1, PyBytes_AS_STRING(ARRAY_STREAM) + ARRAY_TYPECODE + 1,
                       n - ARRAY_TYPECODE - 1) == 0):
        from array import array as array_of

        array = array_of(chr(stream[ARRAY_TYPECODE]))
        array.frombytes(block(owner, data, size, True))
        return array
    return None


cdef object copied_bytes(const uint8_t *data, uint64_t size):
    cdef bytes made
    cdef char *dst
    if size < LONG_COPY:
        return PyBytes_FromStringAndSize(<const char *>data, size)
    made = PyBytes_FromStringAndSize(NULL, size)
    dst = PyBytes_AS_STRING(made)
    with nogil:
        memcpy(dst, data, size)
    return made
