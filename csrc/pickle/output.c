/* Manages the pickler's output: one scratch buffer, frames, and a list of large pieces that are not copied into the
 * buffer.
 *
 * Writers keep `p` below `end`. At the start of each object `p < limit` guarantees PRP_ROOM free bytes, so small items
 * are written without a further check; `limit` is also the position at which the current frame is full, so one
 * comparison checks both. Frames are byte for byte those of the standard pickler: we close a frame at the first object
 * boundary past 64 KiB, omit it below 4 bytes, and write data of 64 KiB and more outside of frames.
 *
 * We keep scratch memory between dumps up to PRP_KEEP_BYTES. If the result is one bytes object and has at least
 * HOLDER_MIN bytes, we write the rest directly into a bytes object. This object starts as large as the last such result
 * and shrinks at the end, so we copy only the first part of the output.
 */
#include "pickler.h"
#include "array_buffer.h"

#include <stdlib.h>
#include <string.h>

#define INITIAL_BYTES 1024
#define KEEP_PIECES 256
#define FRAME_HEADER 9
#define FRAME_MIN 4
#define HOLDER_MIN (64u << 10)
#define HOLDER_GUESS (4u << 20) /* upper limit of the initial size, which we guess from the last result */
/* We collect a stream to a file up to this size before the first flush ends elision (see prp_before_foreign_code). */
#define HOLD_BYTES (16u << 20)

static void set_limit(prp_saver *s)
{
    s->limit = s->end - PRP_ROOM;
    if (s->frame != SIZE_MAX) {
        uint8_t *full = s->base + s->frame + FRAME_HEADER + PRP_FRAME_SIZE;
        if (full < s->limit)
            s->limit = full;
    }
}

int prp_out_init(prp_saver *s)
{
    s->base = s->p = malloc(INITIAL_BYTES);
    if (!s->base) {
        PyErr_NoMemory();
        return -1;
    }
    s->end = s->base + INITIAL_BYTES;
    s->frame = SIZE_MAX;
    set_limit(s);
    return 0;
}

static void drop_pieces(prp_saver *s)
{
    s->piece_bytes = 0;
    while (s->piece_count) {
        prp_piece piece = s->pieces[--s->piece_count];
        PyBuffer_Release(&piece.view);
        Py_DECREF(piece.owner);
    }
}

void prp_out_reset(prp_saver *s)
{
    drop_pieces(s);
    if (s->piece_room > KEEP_PIECES) {
        free(s->pieces);
        s->pieces = NULL;
        s->piece_room = 0;
    }
    s->p = s->base;
    s->frame = SIZE_MAX;
    if (!s->holder && (size_t)(s->end - s->base) > PRP_KEEP_BYTES) {
        uint8_t *small = realloc(s->base, INITIAL_BYTES);
        if (small) {
            s->base = s->p = small;
            s->end = small + INITIAL_BYTES;
        }
    }
    set_limit(s);
}

void prp_out_free(prp_saver *s)
{
    prp_out_unhold(s);
    drop_pieces(s);
    free(s->pieces);
    free(s->base);
    s->base = s->p = s->end = NULL;
}

void prp_out_unhold(prp_saver *s)
{
    s->to_bytes = false;
    if (!s->small)
        return;
    s->base = s->p = s->small;
    s->end = s->small_end;
    s->small = s->small_end = NULL;
    s->frame = SIZE_MAX;
    Py_CLEAR(s->holder);
}

/* Move the first `used` bytes into a bytes object with room for `size`, or enlarge the one in use. */
static int grow_holder(prp_saver *s, size_t used, size_t size)
{
    if (!s->holder) {
        size_t guess = s->last_held < HOLDER_GUESS ? s->last_held : HOLDER_GUESS;
        if (size < guess + 2 * PRP_ROOM)
            size = guess + 2 * PRP_ROOM;
        if (!(s->holder = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size)))
            return -1;
        memcpy(PyBytes_AS_STRING(s->holder), s->base, used);
        s->small = s->base;
        s->small_end = s->end;
    } else if (_PyBytes_Resize(&s->holder, (Py_ssize_t)size) < 0) {
        prp_out_unhold(s); /* the output written so far is lost */
        return -1;
    }
    s->base = (uint8_t *)PyBytes_AS_STRING(s->holder);
    s->p = s->base + used;
    s->end = s->base + size;
    set_limit(s);
    return 0;
}

PRP_COLD int prp_out_grow(prp_saver *s, size_t room)
{
    size_t used = (size_t)(s->p - s->base), size = (size_t)(s->end - s->base), wanted;
    if (__builtin_add_overflow(used, room, &wanted) || wanted > (size_t)PY_SSIZE_T_MAX / 2) {
        PyErr_NoMemory();
        return -1;
    }
    wanted += PRP_ROOM;
    size_t grown = size * 2 > wanted ? size * 2 : wanted;
    if (s->to_bytes && grown > HOLDER_MIN)
        return grow_holder(s, used, grown);
    uint8_t *base = realloc(s->base, grown);
    if (!base) {
        PyErr_NoMemory();
        return -1;
    }
    s->base = base;
    s->p = base + used;
    s->end = base + grown;
    set_limit(s);
    return 0;
}

static int open_frame(prp_saver *s)
{
    if (!s->framing)
        return 0;
    if ((size_t)(s->end - s->p) < FRAME_HEADER + PRP_ROOM && prp_out_grow(s, FRAME_HEADER + PRP_ROOM) < 0)
        return -1;
    s->frame = (size_t)(s->p - s->base);
    s->p += FRAME_HEADER;
    set_limit(s);
    return 0;
}

static void close_frame(prp_saver *s)
{
    if (s->frame == SIZE_MAX)
        return;
    uint8_t *header = s->base + s->frame;
    size_t len = (size_t)(s->p - header) - FRAME_HEADER;
    if (len >= FRAME_MIN) {
        uint64_t wide = len;
        header[0] = OP_FRAME;
        for (int i = 0; i < 8; i++)
            header[1 + i] = (uint8_t)(wide >> (8 * i));
    } else {
        memmove(header, header + FRAME_HEADER, len);
        s->p -= FRAME_HEADER;
    }
    s->frame = SIZE_MAX;
    set_limit(s);
}

int prp_out_begin(prp_saver *s)
{
    set_limit(s);
    if (s->proto >= 2) {
        *s->p++ = OP_PROTO;
        *s->p++ = (uint8_t)s->proto;
    }
    return open_frame(s);
}

/* Check that the bytes of all pieces have not moved. Only an array can reallocate its memory while it exports a
 * buffer. */
static int check_pieces(prp_saver *s)
{
    for (size_t i = 0; i < s->piece_count; i++)
        if (s->pieces[i].view.obj && prp_array_buffer_moved(s->pieces[i].view.obj)) {
            PyErr_SetString(PyExc_RuntimeError, "an array was resized while it was pickled");
            return -1;
        }
    return 0;
}

static int call_write(prp_saver *s, PyObject *bytes)
{
    PyObject *result = PRP_FOREIGN(PyObject_CallOneArg(s->write, bytes));
    Py_XDECREF(result);
    return result ? 0 : -1;
}

static int write_part(prp_saver *s, const void *data, size_t len)
{
    if (!len)
        return 0;
    PyObject *bytes = PyBytes_FromStringAndSize(data, (Py_ssize_t)len);
    int status = bytes ? call_write(s, bytes) : -1;
    Py_XDECREF(bytes);
    return status;
}

/* Write the output so far to the file; pass each large piece in a separate call, and bytes objects without a copy. */
int prp_out_flush(prp_saver *s)
{
    size_t from = 0;
    for (size_t i = 0; i < s->piece_count; i++) {
        const prp_piece piece = s->pieces[i];
        if (check_pieces(s) < 0)
            return -1;
        if (write_part(s, s->base + from, piece.at - from) < 0)
            return -1;
        from = piece.at;
        bool whole = PyBytes_CheckExact(piece.owner) && PyBytes_AS_STRING(piece.owner) == piece.data &&
                     (size_t)PyBytes_GET_SIZE(piece.owner) == piece.len;
        if ((whole ? call_write(s, piece.owner) : write_part(s, piece.data, piece.len)) < 0)
            return -1;
    }
    size_t rest = (size_t)(s->p - s->base) - from;
    PyObject *last = rest ? PyBytes_FromStringAndSize((char *)s->base + from, (Py_ssize_t)rest) : NULL;
    if (rest && !last)
        return -1;
    prp_out_reset(s);
    int status = last ? call_write(s, last) : 0;
    Py_XDECREF(last);
    return status;
}

/* Call this at the start of an object: if the frame is full, close it and pass it to the file; then make room. */
PRP_COLD int prp_out_boundary(prp_saver *s)
{
    if (s->frame != SIZE_MAX && (size_t)(s->p - s->base) - s->frame - FRAME_HEADER >= PRP_FRAME_SIZE) {
        /* Writing to the file runs foreign code, so while eliding we postpone it up to HOLD_BYTES. */
        bool flush = s->write && (!s->elide || prp_out_len(s) > HOLD_BYTES);
        if (flush && prp_before_foreign_code(s) < 0)
            return -1;
        close_frame(s);
        if ((flush && prp_out_flush(s) < 0) || open_frame(s) < 0)
            return -1;
    }
    if (s->end - s->p <= PRP_ROOM)
        return prp_out_grow(s, PRP_ROOM);
    return 0;
}

/* Add a piece without copying its bytes; if the owner is mutable, it exports the bytes until they are written. */
static int add_piece(prp_saver *s, const void *data, size_t len, PyObject *owner)
{
    prp_piece piece = {(size_t)(s->p - s->base), data, len, owner, {0}};
    if (!PyBytes_CheckExact(owner) && !PyUnicode_CheckExact(owner)) {
        if (PRP_FOREIGN(PyObject_GetBuffer(owner, &piece.view, PyBUF_FULL_RO)) < 0)
            return -1;
        if (piece.view.buf != data || (size_t)piece.view.len != len) {
            PyBuffer_Release(&piece.view);
            PyErr_SetString(PyExc_RuntimeError, "a buffer changed while it was pickled");
            return -1;
        }
    }
    if (s->piece_count == s->piece_room) {
        size_t more = s->piece_room ? s->piece_room * 2 : 16;
        prp_piece *pieces = realloc(s->pieces, more * sizeof *pieces);
        if (!pieces) {
            PyBuffer_Release(&piece.view);
            PyErr_NoMemory();
            return -1;
        }
        s->pieces = pieces;
        s->piece_room = more;
    }
    Py_INCREF(owner);
    s->pieces[s->piece_count++] = piece;
    s->piece_bytes += len;
    return 0;
}

/* Write a header and `len` bytes of data that belong to `owner` (or, if it is NULL, are copied). */
int prp_out_large(prp_saver *s, const uint8_t *header, size_t header_len, const void *data, size_t len, PyObject *owner)
{
    bool framing = s->framing;
    if (len < PRP_FRAME_SIZE)
        return prp_out(s, header, header_len) < 0 ? -1 : prp_out(s, data, len);
    close_frame(s);
    if (prp_out(s, header, header_len) < 0)
        return -1;
    if (!owner) {
        if (prp_out(s, data, len) < 0)
            return -1;
    } else if (s->write && !s->elide) {
        PyObject *payload = PyBytes_CheckExact(owner) && PyBytes_AS_STRING(owner) == data
                                ? Py_NewRef(owner)
                                : PyBytes_FromStringAndSize(data, (Py_ssize_t)len);
        int status = payload && prp_before_foreign_code(s) == 0 && prp_out_flush(s) == 0 ? call_write(s, payload) : -1;
        Py_XDECREF(payload);
        if (status < 0)
            return -1;
    } else {
        if (add_piece(s, data, len, owner) < 0)
            return -1;
    }
    s->framing = framing;
    return open_frame(s);
}

int prp_out_finish(prp_saver *s)
{
    if (prp_op(s, OP_STOP) < 0)
        return -1;
    close_frame(s);
    return 0;
}

size_t prp_out_len(const prp_saver *s)
{
    return (size_t)(s->p - s->base) + s->piece_bytes;
}

PyObject *prp_out_bytes(prp_saver *s)
{
    size_t total = prp_out_len(s);
    if (total > (size_t)PY_SSIZE_T_MAX)
        return PyErr_NoMemory();
    if (s->holder && !s->piece_count) {
        s->last_held = total;
        PyObject *held = s->holder;
        s->holder = NULL;
        return _PyBytes_Resize(&held, (Py_ssize_t)total) < 0 ? NULL : held;
    }
    if (!s->piece_count)
        return PyBytes_FromStringAndSize((char *)s->base, (Py_ssize_t)total);
    PyObject *bytes = check_pieces(s) < 0 ? NULL : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)total);
    if (!bytes)
        return NULL;
    uint8_t *to = (uint8_t *)PyBytes_AS_STRING(bytes);
    size_t from = 0;
    for (size_t i = 0; i < s->piece_count; i++) {
        const prp_piece *piece = &s->pieces[i];
        memcpy(to, s->base + from, piece->at - from);
        to += piece->at - from;
        from = piece->at;
        memcpy(to, piece->data, piece->len);
        to += piece->len;
    }
    memcpy(to, s->base + from, (size_t)(s->p - s->base) - from);
    return bytes;
}
