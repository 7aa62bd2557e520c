/* Reads input from memory or from a file object.
 *
 * We never read a file beyond the last byte of the pickle, because the rest belongs to the caller. Without peek() we
 * read exactly what the next opcode needs (whole frames, since protocol 4); with peek() we get a large piece and then
 * read only the bytes consumed. We read large objects in pieces of doubling size, so a wrong length makes us allocate
 * at most twice as many bytes as exist.
 */
#include "unpickler.h"

#define PEEK_SIZE (128 * 1024)
#define FIRST_PIECE (1024 * 1024)

void prp_load_drop_chunk(prp_loader *L)
{
    PyObject *owner = L->chunk_owner;
    L->chunk_owner = NULL;
    Py_buffer view = L->chunk_view;
    L->chunk_view.obj = NULL;
    L->p = L->end = L->chunk = L->beyond = NULL;
    L->peeked = false;
    if (view.obj)
        PRP_FOREIGN_VOID(PyBuffer_Release(&view));
    PRP_FOREIGN_VOID(Py_XDECREF(owner));
}

/* Use `data`, which a method of the file returned, as the chunk, and steal the reference. */
static int take_chunk(prp_loader *L, PyObject *data)
{
    Py_buffer view;
    prp_load_drop_chunk(L);
    if (PRP_FOREIGN(PyObject_GetBuffer(data, &view, PyBUF_CONTIG_RO)) < 0) {
        PRP_FOREIGN_VOID(Py_DECREF(data));
        return -1;
    }
    L->chunk_view = view;
    L->chunk_owner = data;
    L->p = L->chunk = L->chunk_view.buf;
    L->end = L->p + L->chunk_view.len;
    L->peeked = false;
    return 0;
}

/* Do the same with bytes that the file will return again. */
static int take_peeked_chunk(prp_loader *L, PyObject *data)
{
    if (take_chunk(L, data) < 0)
        return -1;
    L->peeked = true;
    return 0;
}

static PyObject *call_read(prp_loader *L, size_t n)
{
    if (prp_load_foreign(L) < 0)
        return NULL;
    PyObject *size = PyLong_FromSize_t(n);
    PyObject *data = size ? PRP_FOREIGN(PyObject_CallOneArg(L->read, size)) : NULL;
    Py_XDECREF(size);
    return data;
}

/* Read the consumed bytes of a peeked chunk from the file, and drop the chunk. */
static int skip_consumed(prp_loader *L)
{
    if (!L->peeked)
        return 0;
    size_t consumed = (size_t)(L->p - L->chunk);
    prp_load_drop_chunk(L);
    if (consumed == 0)
        return 0;
    PyObject *data = call_read(L, consumed);
    PRP_FOREIGN_VOID(Py_XDECREF(data));
    return data ? 0 : -1;
}

int prp_load_settle(prp_loader *L)
{
    return L->read ? skip_consumed(L) : 0;
}

/* Read `n` bytes in pieces into a new object; it has fewer bytes only if the file ends. */
static PyObject *read_in_pieces(prp_loader *L, size_t n)
{
    PyObject *parts = PRP_FOREIGN(PyList_New(0));
    size_t got = 0, piece = FIRST_PIECE;
    while (parts && got < n) {
        size_t want = n - got < piece ? n - got : piece;
        PyObject *data = call_read(L, want);
        PyObject *bytes = data ? PRP_FOREIGN(PyBytes_FromObject(data)) : NULL;
        PRP_FOREIGN_VOID(Py_XDECREF(data));
        if (!bytes || PyList_Append(parts, bytes) < 0) {
            Py_XDECREF(bytes);
            Py_CLEAR(parts);
            break;
        }
        size_t length = (size_t)PyBytes_GET_SIZE(bytes);
        Py_DECREF(bytes);
        got += length;
        if (length < want)
            break;
        piece *= 2;
    }
    if (!parts)
        return NULL;
    PyObject *empty = PyBytes_FromStringAndSize(NULL, 0);
    PyObject *joined = empty ? PyObject_CallMethod(empty, "join", "O", parts) : NULL;
    Py_XDECREF(empty);
    Py_DECREF(parts);
    return joined;
}

static PyObject *read_exactly(prp_loader *L, size_t n)
{
    return n <= FIRST_PIECE ? call_read(L, n) : read_in_pieces(L, n);
}

/* The frame has too few bytes left for this opcode. That is valid only if the opcode begins exactly at the frame's
 * end. */
static int leave_frame(prp_loader *L)
{
    if (!L->beyond)
        return 0;
    if (L->p != L->end)
        return prp_load_malformed("pickle exhausted before end of frame"), -1;
    L->end = L->beyond;
    L->beyond = NULL;
    return 0;
}

int prp_load_frame(prp_loader *L, uint64_t length)
{
    if (leave_frame(L) < 0)
        return -1;
    if (length > PY_SSIZE_T_MAX) {
        PyErr_Format(PyExc_OverflowError, "FRAME length exceeds system's maximum of %zd bytes", PY_SSIZE_T_MAX);
        return -1;
    }
    if (prp_load_refill(L, (size_t)length) < 0)
        return -1;
    if (prp_load_strict_frames) {
        L->beyond = L->end;
        L->end = L->p + length;
    }
    return 0;
}

int prp_load_refill(prp_loader *L, size_t need)
{
    if ((size_t)(L->end - L->p) < need && leave_frame(L) < 0)
        return -1;
    size_t left = (size_t)(L->end - L->p);
    if (left >= need)
        return 0;
    if (!L->read || need > PY_SSIZE_T_MAX)
        return prp_load_truncated();
    if (L->peeked) {
        left = 0; /* these bytes were only peeked, so the next read returns them again */
        if (skip_consumed(L) < 0)
            return -1;
    }
    if (left) {
        /* The opcode crosses the end of its frame. */
        PyObject *rest = PyBytes_FromStringAndSize((const char *)L->p, (Py_ssize_t)left);
        PyObject *data = rest ? read_exactly(L, need - left) : NULL;
        if (data)
            PyBytes_Concat(&rest, data);
        else
            Py_CLEAR(rest);
        Py_XDECREF(data);
        if (!rest || take_chunk(L, rest) < 0)
            return -1;
    } else {
        if (L->peek && need < PEEK_SIZE) {
            PyObject *data =
                prp_load_foreign(L) < 0 ? NULL : PRP_FOREIGN(PyObject_CallFunction(L->peek, "i", PEEK_SIZE));
            if (data) {
                if (take_peeked_chunk(L, data) < 0)
                    return -1;
                if ((size_t)(L->end - L->p) >= need)
                    return 0;
                prp_load_drop_chunk(L);
            } else {
                if (!PyErr_ExceptionMatches(PyExc_NotImplementedError))
                    return -1;
                PyErr_Clear();
                prp_load_clear(&L->peek);
            }
        }
        PyObject *data = read_exactly(L, need);
        if (!data || take_chunk(L, data) < 0)
            return -1;
    }
    return (size_t)(L->end - L->p) >= need ? 0 : prp_load_truncated();
}

Py_ssize_t prp_load_line(prp_loader *L, const char **line)
{
    const uint8_t *newline = L->p < L->end ? memchr(L->p, '\n', (size_t)(L->end - L->p)) : NULL;
    if (!newline && L->beyond) {
        if (leave_frame(L) < 0)
            return -1;
        newline = memchr(L->p, '\n', (size_t)(L->end - L->p));
    }
    if (!newline) {
        if (!L->read)
            return prp_load_truncated();
        PyObject *rest = NULL;
        if (!L->peeked && L->p < L->end && !(rest = PyBytes_FromStringAndSize((const char *)L->p, L->end - L->p)))
            return -1;
        PyObject *data = NULL;
        if (prp_load_foreign(L) == 0 && skip_consumed(L) == 0)
            data = PRP_FOREIGN(PyObject_CallNoArgs(L->readline));
        if (data && rest) {
            PyBytes_Concat(&rest, data);
            Py_SETREF(data, rest);
        } else {
            Py_XDECREF(rest);
        }
        if (!data || take_chunk(L, data) < 0)
            return -1;
        if (L->end == L->p || L->end[-1] != '\n')
            return prp_load_truncated();
        newline = L->end - 1;
    }
    *line = (const char *)L->p;
    Py_ssize_t length = newline + 1 - L->p;
    L->p = newline + 1;
    return length;
}

static char *writable_data(PyObject *obj)
{
    return PyBytes_Check(obj) ? PyBytes_AS_STRING(obj) : PyByteArray_AS_STRING(obj);
}

static int resize(PyObject **obj, size_t n)
{
    if (PyBytes_Check(*obj))
        return _PyBytes_Resize(obj, (Py_ssize_t)n);
    if (PyByteArray_Resize(*obj, (Py_ssize_t)n) < 0) {
        Py_CLEAR(*obj);
        return -1;
    }
    return 0;
}

/* Read up to `n` bytes of the file into `to`, which is part of the memory of `owner`. Return the number of bytes, or
 * -1. */
static Py_ssize_t read_into(prp_loader *L, PyObject *owner, char *to, size_t n)
{
    if (L->readinto) {
        if (prp_load_foreign(L) < 0)
            return -1;
        PyObject *view = PyMemoryView_FromMemory(to, (Py_ssize_t)n, PyBUF_WRITE);
        PyObject *count = view ? PRP_FOREIGN(PyObject_CallOneArg(L->readinto, view)) : NULL;
        if (!count && view && PyErr_ExceptionMatches(PyExc_NotImplementedError)) {
            PyErr_Clear();
            prp_load_clear(&L->readinto);
        } else {
            Py_ssize_t got = count ? PRP_FOREIGN(PyNumber_AsSsize_t(count, PyExc_ValueError)) : -1;
            /* A view must not outlive its memory, so if the file kept the view, we leak the memory. */
            if (view && ((PyMemoryViewObject *)view)->mbuf->exports > 1) {
                Py_INCREF(owner);
                if (!PyErr_Occurred())
                    PyErr_SetString(PyExc_BufferError,
                                    "readinto() of the file kept a view of the memory that it was given");
                got = -1;
            } else if (view) {
                PyObject *type, *value, *traceback;
                PyErr_Fetch(&type, &value, &traceback);
                PyObject *released = PyObject_CallMethod(view, "release", NULL);
                if (!released) {
                    Py_INCREF(owner);
                    got = -1;
                }
                if (released || type) {
                    PyErr_Clear();
                    PyErr_Restore(type, value, traceback);
                }
                Py_XDECREF(released);
            }
            PRP_FOREIGN_VOID(Py_XDECREF(view));
            PRP_FOREIGN_VOID(Py_XDECREF(count));
            if (got < 0 && !PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "readinto() returned negative size");
            if (got > (Py_ssize_t)n) {
                PyErr_SetString(PyExc_ValueError, "readinto() returned more bytes than the buffer holds");
                return -1;
            }
            return got;
        }
        Py_XDECREF(view);
    }
    PyObject *data = call_read(L, n);
    if (!data)
        return -1;
    Py_buffer view;
    Py_ssize_t got = -1;
    if (PRP_FOREIGN(PyObject_GetBuffer(data, &view, PyBUF_CONTIG_RO)) == 0) {
        got = view.len < (Py_ssize_t)n ? view.len : (Py_ssize_t)n;
        memcpy(to, view.buf, (size_t)got);
        PRP_FOREIGN_VOID(PyBuffer_Release(&view));
    }
    PRP_FOREIGN_VOID(Py_DECREF(data));
    return got;
}

PyObject *prp_load_bytes(prp_loader *L, size_t n, prp_bytes_kind kind)
{
    if ((size_t)(L->end - L->p) < n && leave_frame(L) < 0)
        return NULL;
    size_t left = (size_t)(L->end - L->p);
    if (left >= n) {
        PyObject *result = kind == PRP_BYTEARRAY ? PyByteArray_FromStringAndSize((const char *)L->p, (Py_ssize_t)n)
                                                 : PyBytes_FromStringAndSize((const char *)L->p, (Py_ssize_t)n);
        L->p += n;
        return result;
    }
    if (!L->read) {
        prp_load_truncated();
        return NULL;
    }
    size_t room = n < left + FIRST_PIECE ? n : left + FIRST_PIECE, got = left;
    PyObject *result = kind == PRP_BYTEARRAY ? PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)room)
                                             : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room);
    if (!result)
        return NULL;
    memcpy(writable_data(result), L->p, left);
    L->p = L->end;
    if (skip_consumed(L) < 0) {
        Py_DECREF(result);
        return NULL;
    }
    for (;;) {
        Py_ssize_t more = read_into(L, result, writable_data(result) + got, room - got);
        if (more < 0 || (size_t)more < room - got) {
            if (more >= 0)
                prp_load_truncated();
            Py_DECREF(result);
            return NULL;
        }
        got = room;
        if (got == n)
            return result;
        room = n - got < got ? n : 2 * got;
        if (resize(&result, room) < 0)
            return NULL;
    }
}
