/* Implements the walk over an object. The walk writes atoms and built-in containers, and uses an explicit stack.
 *
 * prp_save() jumps to `save` with the current object. `save` writes an atom and continues at `done`, or pushes a frame
 * for a container. `done` resumes the topmost frame where that frame stopped; when the stack is as deep as at entry,
 * the object is complete. Loops over containers write atoms in place and return to `save` only for objects that may
 * push a frame.
 *
 * `p` is the output pointer, a copy of s->p; SYNC and LOAD surround calls of functions that write to s->p.
 */
#include "pickler.h"
#include "class_plan.h"
#include "atoms.h"

#include <stdlib.h>

#define BATCH 1000
/* In fast mode we do not check for cycles up to depth FAST_NESTING, and raise an error at FAST_NESTING_MAX. */
#define FAST_NESTING 50
#define FAST_NESTING_MAX 10000

uint64_t prp_epoch = 1;

int prp_before_foreign_code(prp_saver *s)
{
    if (s->elide) {
        if (s->elided) {
            s->restart = true;
            return -1;
        }
        s->elide = false; /* no object was left out of the memo, so no restart is needed */
    }
    prp_memo_own_all(s);
    prp_epoch++;
    return 0;
}

prp_frame *prp_push(prp_saver *s, prp_frame_kind kind, PyObject *obj)
{
    if (PRP_UNLIKELY(s->depth == s->room)) {
        size_t room = s->room ? s->room * 2 : 64;
        prp_frame *stack = realloc(s->stack, room * sizeof *stack);
        if (!stack) {
            PyErr_NoMemory();
            return NULL;
        }
        s->stack = stack;
        s->room = room;
    }
    prp_frame *frame = &s->stack[s->depth++];
    frame->obj = Py_NewRef(obj);
    frame->held = NULL;
    frame->i = 0;
    frame->n = 0;
    frame->batch = 0;
    frame->kind = (uint8_t)kind;
    frame->flags = 0;
    return frame;
}

static inline void pop(prp_saver *s)
{
    prp_frame *frame = &s->stack[--s->depth];
    PyObject *obj = frame->obj, *held = frame->held;
    Py_XDECREF(held);
    Py_DECREF(obj);
}

int prp_write_memoized(prp_saver *s, PyObject *obj)
{
    int64_t index = prp_memo_get(&s->memo, obj);
    if (index < 0)
        return 0;
    return prp_write_get(s, (uint32_t)index) < 0 ? -1 : 1;
}

int prp_memoize(prp_saver *s, PyObject *obj)
{
    if (s->fast)
        return 0;
    uint32_t index = s->memo.count;
    int64_t known = prp_memo_add(&s->memo, obj);
    if (known == PRP_MEMO_ERROR)
        return -1;
    return known == PRP_MEMO_ABSENT ? prp_write_put(s, index) : 0;
}

/* ---- strings ---- */

static size_t utf8_len(PyObject *str)
{
    Py_ssize_t n = PyUnicode_GET_LENGTH(str);
    size_t total = 0;
    switch (PyUnicode_KIND(str)) {
    case PyUnicode_1BYTE_KIND: {
        const Py_UCS1 *c = PyUnicode_1BYTE_DATA(str);
        for (Py_ssize_t i = 0; i < n; i++)
            total += 1 + (c[i] >> 7);
        break;
    }
    case PyUnicode_2BYTE_KIND: {
        const Py_UCS2 *c = PyUnicode_2BYTE_DATA(str);
        for (Py_ssize_t i = 0; i < n; i++)
            total += 1 + (c[i] >= 0x80) + (c[i] >= 0x800);
        break;
    }
    default: {
        const Py_UCS4 *c = PyUnicode_4BYTE_DATA(str);
        for (Py_ssize_t i = 0; i < n; i++)
            total += 1 + (c[i] >= 0x80) + (c[i] >= 0x800) + (c[i] >= 0x10000);
        break;
    }
    }
    return total;
}

static inline uint8_t *put_utf8(uint8_t *p, Py_UCS4 c)
{
    if (c < 0x80) {
        *p++ = (uint8_t)c;
    } else if (c < 0x800) {
        *p++ = (uint8_t)(0xc0 | c >> 6);
        *p++ = (uint8_t)(0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
        /* A lone surrogate becomes three bytes, as with the error handler "surrogatepass". */
        *p++ = (uint8_t)(0xe0 | c >> 12);
        *p++ = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        *p++ = (uint8_t)(0x80 | (c & 0x3f));
    } else {
        *p++ = (uint8_t)(0xf0 | c >> 18);
        *p++ = (uint8_t)(0x80 | (c >> 12 & 0x3f));
        *p++ = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        *p++ = (uint8_t)(0x80 | (c & 0x3f));
    }
    return p;
}

static void encode_utf8(uint8_t *p, PyObject *str)
{
    Py_ssize_t n = PyUnicode_GET_LENGTH(str);
    switch (PyUnicode_KIND(str)) {
    case PyUnicode_1BYTE_KIND: {
        const Py_UCS1 *c = PyUnicode_1BYTE_DATA(str);
        for (Py_ssize_t i = 0; i < n; i++)
            p = put_utf8(p, c[i]);
        break;
    }
    case PyUnicode_2BYTE_KIND: {
        const Py_UCS2 *c = PyUnicode_2BYTE_DATA(str);
        for (Py_ssize_t i = 0; i < n; i++)
            p = put_utf8(p, c[i]);
        break;
    }
    default: {
        const Py_UCS4 *c = PyUnicode_4BYTE_DATA(str);
        for (Py_ssize_t i = 0; i < n; i++)
            p = put_utf8(p, c[i]);
        break;
    }
    }
}

static int write_str_header(prp_saver *s, size_t n, uint8_t *header, size_t *header_len)
{
    uint8_t *h = header;
    if (n <= 0xff && s->proto >= 4) {
        *h++ = OP_SHORT_BINUNICODE;
        *h++ = (uint8_t)n;
    } else if (n <= 0xffffffff) {
        *h++ = OP_BINUNICODE;
        h = prp_put_u32(h, (uint32_t)n);
    } else if (s->proto >= 4) {
        *h++ = OP_BINUNICODE8;
        h = prp_put_u64(h, n);
    } else {
        PyErr_SetString(PyExc_OverflowError,
                        "serializing a string larger than 4 GiB requires pickle protocol 4 or higher");
        return -1;
    }
    *header_len = (size_t)(h - header);
    return 0;
}

/* This is for protocol 1 and up. Never request the str's cached UTF-8 form, because the request would store a copy of
 * the text in the str. */
int prp_write_str(prp_saver *s, PyObject *str)
{
#if PY_VERSION_HEX < 0x030C0000
    if (PyUnicode_READY(str) < 0)
        return -1;
#endif
    bool ascii = PyUnicode_IS_ASCII(str);
    size_t n = ascii ? (size_t)PyUnicode_GET_LENGTH(str) : utf8_len(str), header_len;
    uint8_t header[9];
    if (write_str_header(s, n, header, &header_len) < 0)
        return -1;
    if (ascii)
        return prp_out_large(s, header, header_len, PyUnicode_DATA(str), n, str);
    if (n < PRP_FRAME_SIZE || (s->write && !s->elide) || !s->framing) {
        /* Encode directly into the scratch buffer. */
        if (n < PRP_FRAME_SIZE || !s->framing) {
            if (prp_room(s, header_len + n) < 0)
                return -1;
            memcpy(s->p, header, header_len);
            encode_utf8(s->p + header_len, str);
            s->p += header_len + n;
            return 0;
        }
    }
    PyObject *encoded = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n);
    if (!encoded)
        return -1;
    encode_utf8((uint8_t *)PyBytes_AS_STRING(encoded), str);
    int status = prp_out_large(s, header, header_len, PyBytes_AS_STRING(encoded), n, encoded);
    Py_DECREF(encoded);
    return status;
}

int prp_write_int(prp_saver *s, long value)
{
    if (prp_room(s, PRP_ROOM) < 0)
        return -1;
    s->p = prp_append_int64(s->p, value);
    return 0;
}

/* Write an int that prp_long_small does not accept. */
static PRP_COLD int write_wide_int(prp_saver *s, PyObject *obj)
{
    int overflow;
    long value = PyLong_AsLongAndOverflow(obj, &overflow);
    if (!overflow) {
        if (value == -1 && PyErr_Occurred())
            return -1;
        return prp_write_int(s, value);
    }
    return prp_write_long(s, obj);
}

/* ---- errors ---- */

PRP_COLD void prp_note(prp_saver *s, const char *kind, PyObject *holder, PyObject *key, PyObject *child)
{
    if (s->restart || !holder)
        return;
    if (s->step_count == s->step_room) {
        size_t room = s->step_room ? s->step_room * 2 : 16;
        prp_step *steps = room <= 4096 ? realloc(s->steps, room * sizeof *steps) : NULL;
        if (!steps) /* too deep to read; the innermost steps matter most */
            return;
        s->steps = steps;
        s->step_room = room;
    }
    s->steps[s->step_count++] = (prp_step){kind, Py_NewRef(holder), Py_XNewRef(key), Py_XNewRef(child)};
}

PRP_COLD void prp_note_index(prp_saver *s, const char *kind, PyObject *holder, Py_ssize_t index, PyObject *child)
{
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyObject *key = PyLong_FromSsize_t(index);
    prp_note(s, kind, holder, key, child);
    Py_XDECREF(key);
    PyErr_Restore(type, error, trace);
}

/* Record which item the frame was saving when it failed. The container may have changed since the failure, so assume
 * nothing about its content. */
static PRP_COLD void note_step(prp_saver *s, const prp_frame *f)
{
    PyObject *key = NULL, *value = NULL, *dict;
    Py_ssize_t at = f->i - 1;
    prp_attrs view;
    switch ((prp_frame_kind)f->kind) {
    case FRAME_LIST:
    case FRAME_LIST_EACH:
    case FRAME_LIST_ONE:
        if (at >= 0 && at < PyList_GET_SIZE(f->obj))
            prp_note_index(s, "item", f->obj, at, PyList_GET_ITEM(f->obj, at));
        break;
    case FRAME_TUPLE:
        if (at >= 0 && at < PyTuple_GET_SIZE(f->obj))
            prp_note_index(s, "item", f->obj, at, PyTuple_GET_ITEM(f->obj, at));
        if (f->flags & FRAME_NEWOBJ)
            prp_note(s, "args", f->obj, NULL, f->obj);
        break;
    case FRAME_DICT:
    case FRAME_DICT_ONE:
    case FRAME_DICT_EACH:
        if (at >= 0 && PyDict_Next(f->obj, &at, &key, &value))
            prp_note(s, f->flags & FRAME_IN_KEY ? "key" : "value", f->obj, key, f->flags & FRAME_IN_KEY ? key : value);
        break;
    case FRAME_SET:
    case FRAME_FROZENSET:
        if (at >= 0)
            prp_note(s, "element", f->obj, NULL, prp_set_next(f->obj, &at));
        break;
    case FRAME_ATTRS:
        if (prp_attrs_view(f->obj, Py_TYPE(f->obj), &view, &dict) == PRP_ATTRS_INLINE && at >= 0 && at < view.count)
            prp_note(s, "attribute", f->obj, prp_attrs_name(&view, at), NULL);
        break;
    case FRAME_SLOTS:
    case FRAME_FIELDS:
        if (at >= 0 && at < f->numbers->plan->nslots)
            prp_note(s, "attribute", f->obj, f->numbers->plan->slots[at].name, NULL);
        break;
    case FRAME_BUILD:
    case FRAME_SLOTS_NEXT:
        prp_note(s, "state", f->obj, NULL, f->held);
        break;
    case FRAME_CALL:
        prp_note_index(s, "item", f->obj, f->n - 1, f->held);
        prp_note(s, "args", f->obj, NULL, f->obj);
        break;
    }
}

static PRP_COLD int deep_recursion(prp_saver *s)
{
    PyErr_SetString(prp_g.deep_recursion_error,
                    "deep recursion: objects nested through __reduce__ and the like have used up the C stack");
    return -1;
}

static PRP_COLD int changed_size(const char *what)
{
    PyErr_Format(PyExc_RuntimeError, "%s changed size during iteration", what);
    return -1;
}

/* Fast mode memoizes nothing, so a cycle would never end. */
static PRP_COLD int check_cycle(prp_saver *s, PyObject *obj)
{
    if (s->depth <= FAST_NESTING)
        return 0;
    if (s->depth > FAST_NESTING_MAX)
        return deep_recursion(s);
    for (size_t i = s->depth; i-- > 0;)
        if (s->stack[i].obj == obj) {
            PyErr_Format(PyExc_ValueError, "fast mode: can't pickle cyclic objects including object type %.200s at %p",
                         Py_TYPE(obj)->tp_name, obj);
            return -1;
        }
    return 0;
}

/* Return 1 if a persistent id was written. */
static PRP_COLD int save_persistent(prp_saver *s, PyObject *obj)
{
    if (prp_before_foreign_code(s) < 0)
        return -1;
    PyObject *pid = PRP_FOREIGN(PyObject_CallOneArg(s->persistent_id, obj));
    if (!pid)
        return -1;
    int status = 0;
    if (pid != Py_None) {
        status = -1;
        if (s->bin) {
            if (prp_save_pid(s, pid) == 0 && prp_op(s, OP_BINPERSID) == 0)
                status = 1;
        } else {
            PyObject *text = PRP_FOREIGN(PyObject_Str(pid));
            if (text && !PyUnicode_IS_ASCII(text))
                PyErr_SetString(prp_g.pickling_error, "persistent IDs in protocol 0 must be ASCII strings");
            else if (text && prp_op(s, OP_PERSID) == 0 &&
                     prp_out(s, PyUnicode_DATA(text), (size_t)PyUnicode_GET_LENGTH(text)) == 0 && prp_op(s, '\n') == 0)
                status = 1;
            Py_XDECREF(text);
        }
    }
    Py_DECREF(pid);
    return status;
}

/* ---- the loop ---- */

#define SYNC() (s->p = p)
#define LOAD() (p = s->p)
#define TRY(call)       \
    do {                \
        SYNC();         \
        if ((call) < 0) \
            goto error; \
        LOAD();         \
    } while (0)
#define BOUNDARY()                       \
    do {                                 \
        if (PRP_UNLIKELY(p >= s->limit)) \
            TRY(prp_out_boundary(s));    \
    } while (0)
#define ROOM(n)                             \
    do {                                    \
        if (PRP_UNLIKELY(s->end - p < (n))) \
            TRY(prp_out_grow(s, n));        \
    } while (0)
/* Write GET and jump to `done` if obj has been written already. Otherwise continue; if `noted` is then true, MEMOIZE
 * (or PUT) must follow once the object exists. */
#define RECALL(obj)                                                                                            \
    do {                                                                                                       \
        noted = false;                                                                                         \
        if (!prp_elidable(s, obj)) {                                                                           \
            int64_t index = PRP_UNLIKELY(s->fast) ? prp_memo_get(&s->memo, obj) : prp_memo_add(&s->memo, obj); \
            if (index >= 0) {                                                                                  \
                if (PRP_LIKELY(s->bin))                                                                        \
                    p = prp_put_get(p, (uint32_t)index);                                                       \
                else                                                                                           \
                    TRY(prp_write_get(s, (uint32_t)index));                                                    \
                goto done;                                                                                     \
            }                                                                                                  \
            if (PRP_UNLIKELY(index == PRP_MEMO_ERROR))                                                         \
                goto error;                                                                                    \
            noted = !s->fast;                                                                                  \
        }                                                                                                      \
    } while (0)
#define MEMOIZE()                                         \
    do {                                                  \
        if (noted) {                                      \
            if (PRP_LIKELY(s->proto >= 4))                \
                *p++ = OP_MEMOIZE;                        \
            else                                          \
                TRY(prp_write_put(s, s->memo.count - 1)); \
        }                                                 \
    } while (0)

/* Test for a short ASCII string. Only this case is worth inlining everywhere. */
#define SHORT_ASCII(obj) (PyUnicode_IS_COMPACT_ASCII(obj) && PyUnicode_GET_LENGTH(obj) < 256)

/* If `item` is an atom, or has been written before, write it and execute `next` (which may be `continue`, because this
 * is a plain block); otherwise fall through. A string that was in the memo is first passed to `found` with its index.
 * This requires s->proto >= 4. */
#define NOTHING(item, index) ((void)0)
#define WRITE_ATOM(item, found, next)                             \
    {                                                             \
        PyTypeObject *t_ = Py_TYPE(item);                         \
        if (t_ == &PyUnicode_Type) {                              \
            if (PRP_LIKELY(SHORT_ASCII(item))) {                  \
                if (!prp_elidable(s, item)) {                     \
                    int64_t index = prp_memo_add(&s->memo, item); \
                    if (index >= 0) {                             \
                        found(item, (uint32_t)index);             \
                        p = prp_put_get(p, (uint32_t)index);      \
                        next;                                     \
                    }                                             \
                    if (PRP_UNLIKELY(index == PRP_MEMO_ERROR))    \
                        goto error;                               \
                    WRITE_SHORT_ASCII(item);                      \
                    *p++ = OP_MEMOIZE;                            \
                    next;                                         \
                }                                                 \
                WRITE_SHORT_ASCII(item);                          \
                next;                                             \
            }                                                     \
        } else if (t_ == &PyLong_Type) {                          \
            int64_t value_;                                       \
            if (PRP_LIKELY(prp_long_small(item, &value_)))        \
                p = prp_append_int64(p, value_);                  \
            else                                                  \
                TRY(write_wide_int(s, item));                     \
            next;                                                 \
        } else if (t_ == &PyFloat_Type) {                         \
            p = prp_append_float(p, PyFloat_AS_DOUBLE(item));     \
            next;                                                 \
        } else if (item == Py_None) {                             \
            *p++ = OP_NONE;                                       \
            next;                                                 \
        } else if (t_ == &PyBool_Type) {                          \
            *p++ = item == Py_True ? OP_NEWTRUE : OP_NEWFALSE;    \
            next;                                                 \
        } else if (!prp_elidable(s, item)) {                      \
            int64_t index = prp_memo_get(&s->memo, item);         \
            if (index >= 0) {                                     \
                p = prp_put_get(p, (uint32_t)index);              \
                next;                                             \
            }                                                     \
        }                                                         \
    }

#define WRITE_SHORT_ASCII(str)                         \
    do {                                               \
        size_t n_ = (size_t)PyUnicode_GET_LENGTH(str); \
        ROOM((Py_ssize_t)n_ + PRP_ROOM);               \
        *p++ = OP_SHORT_BINUNICODE;                    \
        *p++ = (uint8_t)n_;                            \
        prp_copy_short(p, PyUnicode_DATA(str), n_);    \
        p += n_;                                       \
    } while (0)

/* Lists and tuples often contain a single type. Each of these functions handles one type: it writes the items from `i`
 * on while they have this type and the frame has room, and returns the index of the first item that it did not
 * write. */

#define GROUP 8

/* Write GROUP ints of at most 32 bits. In most groups all ints have the same form (opcode and length); then we know the
 * position of each int without waiting for the previous one. */
static inline uint8_t *put_int_group(uint8_t *p, const uint32_t *bits)
{
    uint32_t any = 0, short_ones = 0;
    for (int k = 0; k < GROUP; k++) {
        any |= bits[k];
        short_ones |= (uint32_t)(bits[k] <= 0xffff);
    }
    if (!short_ones) {
        for (int k = 0; k < GROUP; k++)
            prp_put_u64(p + 5 * k, OP_BININT | (uint64_t)bits[k] << 8); /* only five of the eight bytes are kept */
        return p + 5 * GROUP;
    }
    if (any <= 0xff) {
        for (int k = 0; k < GROUP; k++)
            prp_append_u16(p + 2 * k, OP_BININT1 | bits[k] << 8);
        return p + 2 * GROUP;
    }
    for (int k = 0; k < GROUP; k++)
        p = prp_put_int32(p, (long)(int32_t)bits[k]);
    return p;
}

static inline Py_ssize_t run_of_ints(uint8_t **out, uint8_t *const limit, PyObject *const *items, Py_ssize_t i,
                                     Py_ssize_t stop)
{
    uint8_t *p = *out;
    int64_t value;
    /* Write whole groups while no frame can end within a group. After a group of tiny ints, assume that the ints of the
     * next group are tiny too. */
    bool tiny = true;
    while (stop - i >= GROUP && limit - p >= 5 * GROUP) {
        uint32_t bits[GROUP];
        int32_t number;
        int k = 0;
        while (tiny && k < GROUP && Py_IS_TYPE(items[i + k], &PyLong_Type) && prp_long_tiny(items[i + k], &number))
            bits[k++] = (uint32_t)number;
        if (k < GROUP) {
            for (k = 0; k < GROUP; k++) {
                PyObject *item = items[i + k];
                if (!Py_IS_TYPE(item, &PyLong_Type) || !prp_long_small(item, &value) || value != (int32_t)value)
                    goto singly;
                bits[k] = (uint32_t)value;
            }
            /* Checking half of the ints is enough. The top bit of x ^ x << 1 is set if the two highest bits of x
             * differ. */
            tiny = !(((bits[0] ^ bits[0] << 1) | (bits[2] ^ bits[2] << 1) | (bits[5] ^ bits[5] << 1) |
                      (bits[7] ^ bits[7] << 1)) >>
                     31);
        }
        p = put_int_group(p, bits);
        i += GROUP;
    }
singly:
    while (i < stop && p < limit && Py_IS_TYPE(items[i], &PyLong_Type) && prp_long_small(items[i], &value)) {
        p = prp_append_int64(p, value);
        i++;
    }
    *out = p;
    return i;
}

static inline Py_ssize_t run_of_floats(uint8_t **out, uint8_t *const limit, PyObject *const *items, Py_ssize_t i,
                                       Py_ssize_t stop)
{
    uint8_t *p = *out;
    while (i < stop && p < limit && Py_IS_TYPE(items[i], &PyFloat_Type)) {
        p = prp_append_float(p, PyFloat_AS_DOUBLE(items[i]));
        i++;
    }
    *out = p;
    return i;
}

/* Write short ASCII strings that nothing else refers to. */
static inline Py_ssize_t run_of_strs(uint8_t **out, uint8_t *const limit, PyObject *const *items, Py_ssize_t i,
                                     Py_ssize_t stop)
{
    uint8_t *p = *out;
    while (i < stop) {
        PyObject *item = items[i];
        if (!Py_IS_TYPE(item, &PyUnicode_Type) || Py_REFCNT(item) != 1 || !PyUnicode_IS_COMPACT_ASCII(item))
            break;
        size_t n = (size_t)PyUnicode_GET_LENGTH(item);
        if (n > 0xff || limit - p <= (Py_ssize_t)n)
            break;
        *p++ = OP_SHORT_BINUNICODE;
        *p++ = (uint8_t)n;
        prp_copy_short(p, PyUnicode_DATA(item), n);
        p += n;
        i++;
    }
    *out = p;
    return i;
}

static inline Py_ssize_t run(prp_saver *s, uint8_t **out, PyObject *const *items, Py_ssize_t i, Py_ssize_t stop)
{
    PyTypeObject *type = Py_TYPE(items[i]);
    if (type == &PyLong_Type)
        return run_of_ints(out, s->limit, items, i, stop);
    if (type == &PyFloat_Type)
        return run_of_floats(out, s->limit, items, i, stop);
    if (type == &PyUnicode_Type && s->elide) {
        Py_ssize_t behind = run_of_strs(out, s->limit, items, i, stop);
        s->elided |= behind > i;
        return behind;
    }
    return i;
}

static int save(prp_saver *s, PyObject *obj, bool ask_id)
{
    const size_t floor = s->depth;
    /* The loops over containers write atoms themselves only at protocol 4 and up, without persistent_id and fast
     * mode. */
    const bool plain = !s->persistent_id && s->proto >= 4 && !s->fast;
    uint8_t *p = s->p;
    prp_frame *f;
    PyTypeObject *type;
    bool noted;

    if (PRP_UNLIKELY((uintptr_t)__builtin_frame_address(0) < s->stack_limit))
        return deep_recursion(s);

save:
    if (PRP_UNLIKELY(p >= s->limit)) {
        Py_XSETREF(s->guard,
                   Py_NewRef(obj)); /* a flush runs the file's write(), which may remove obj from its container */
        TRY(prp_out_boundary(s));
        if (s->elide)
            Py_CLEAR(s->guard); /* no other code ran, and our reference would make obj look shared */
    }
    if (PRP_UNLIKELY(s->persistent_id != NULL) && ask_id) {
        Py_XSETREF(s->guard, Py_NewRef(obj));
        SYNC();
        int written = save_persistent(s, obj);
        LOAD();
        if (written < 0)
            goto error;
        if (written)
            goto done;
    }
    ask_id = true;
    type = Py_TYPE(obj);
    if (PRP_UNLIKELY(s->proto < 2) &&
        (type == &PyLong_Type || type == &PyFloat_Type || type == &PyBool_Type || obj == Py_None)) {
        TRY(prp_save_old_atom(s, obj));
        goto done;
    }
    if (type == &PyUnicode_Type) {
        RECALL(obj);
        if (PRP_LIKELY(s->proto >= 4 && SHORT_ASCII(obj)))
            WRITE_SHORT_ASCII(obj);
        else if (s->bin)
            TRY(prp_write_str(s, obj));
        else
            TRY(prp_save_old_atom(s, obj));
        ROOM(PRP_ROOM);
        MEMOIZE();
        goto done;
    }
    if (type == &PyLong_Type) {
        int64_t value;
        if (PRP_LIKELY(prp_long_small(obj, &value)))
            p = prp_append_int64(p, value);
        else
            TRY(write_wide_int(s, obj));
        goto done;
    }
    if (type == &PyDict_Type) {
        RECALL(obj);
        if (PRP_LIKELY(s->bin)) {
            *p++ = OP_EMPTY_DICT;
        } else {
            *p++ = OP_MARK;
            *p++ = OP_DICT;
        }
        MEMOIZE();
        Py_ssize_t n = PyDict_GET_SIZE(obj);
        if (n == 0)
            goto done;
        if (PRP_UNLIKELY(s->fast) && check_cycle(s, obj) < 0)
            goto error;
        f = prp_push(s, n == 1 ? FRAME_DICT_ONE : FRAME_DICT, obj);
        if (!f)
            goto error;
        f->n = n;
        if (PRP_UNLIKELY(!s->bin)) {
            f->kind = FRAME_DICT_EACH;
        } else if (n > 1) {
            *p++ = OP_MARK;
        }
        goto dict;
    }
    if (type == &PyList_Type) {
        RECALL(obj);
        if (PRP_LIKELY(s->bin)) {
            *p++ = OP_EMPTY_LIST;
        } else {
            *p++ = OP_MARK;
            *p++ = OP_LIST;
        }
        MEMOIZE();
        Py_ssize_t n = PyList_GET_SIZE(obj);
        if (n == 0)
            goto done;
        if (PRP_UNLIKELY(s->fast) && check_cycle(s, obj) < 0)
            goto error;
        f = prp_push(s, n == 1 ? FRAME_LIST_ONE : FRAME_LIST, obj);
        if (!f)
            goto error;
        f->n = BATCH;
        if (PRP_UNLIKELY(!s->bin))
            f->kind = FRAME_LIST_EACH;
        else if (n > 1)
            *p++ = OP_MARK;
        goto list;
    }
    if (type == &PyTuple_Type) {
        Py_ssize_t n = PyTuple_GET_SIZE(obj);
        if (n == 0) {
            if (PRP_LIKELY(s->bin)) {
                *p++ = OP_EMPTY_TUPLE;
            } else {
                *p++ = OP_MARK;
                *p++ = OP_TUPLE;
            }
            goto done;
        }
        bool elided = prp_elidable(s, obj);
        if (!elided) {
            int64_t index = prp_memo_get(&s->memo, obj);
            if (index >= 0) {
                TRY(prp_write_get(s, (uint32_t)index));
                goto done;
            }
        }
        if (n > 3 || s->proto < 2)
            *p++ = OP_MARK;
        f = prp_push(s, FRAME_TUPLE, obj);
        if (!f)
            goto error;
        f->flags = elided ? FRAME_ELIDED : 0;
        goto tuple;
    }
    if (type == &PyFloat_Type) {
        p = prp_append_float(p, PyFloat_AS_DOUBLE(obj));
        goto done;
    }
    if (obj == Py_None) {
        *p++ = OP_NONE;
        goto done;
    }
    if (type == &PyBool_Type) {
        *p++ = obj == Py_True ? OP_NEWTRUE : OP_NEWFALSE;
        goto done;
    }
    if (type == &PySet_Type && s->proto >= 4) {
        RECALL(obj);
        *p++ = OP_EMPTY_SET;
        MEMOIZE();
        if (PySet_GET_SIZE(obj) == 0)
            goto done;
        f = prp_push(s, FRAME_SET, obj);
        if (!f)
            goto error;
        f->n = PySet_GET_SIZE(obj);
        *p++ = OP_MARK;
        goto set;
    }
    if (type == &PyFrozenSet_Type && s->proto >= 4) {
        bool elided = prp_elidable(s, obj);
        if (!elided) {
            int64_t index = prp_memo_get(&s->memo, obj);
            if (index >= 0) {
                p = prp_put_get(p, (uint32_t)index);
                goto done;
            }
        }
        *p++ = OP_MARK;
        f = prp_push(s, FRAME_FROZENSET, obj);
        if (!f)
            goto error;
        f->flags = elided ? FRAME_ELIDED : 0;
        goto set;
    }
    {
        SYNC();
        if (PRP_UNLIKELY(s->fast) && check_cycle(s, obj) < 0)
            goto error;
        int what = prp_save_other(s, obj, type);
        LOAD();
        if (what == SAVE_NEXT) {
            obj = s->next;
            goto save;
        }
        if (what < 0)
            goto error;
    }

done:
    if (s->depth == floor) {
        SYNC();
        return 0;
    }
    f = &s->stack[s->depth - 1];
    switch ((prp_frame_kind)f->kind) {
    case FRAME_LIST:
    case FRAME_LIST_ONE:
    case FRAME_LIST_EACH:
        goto list;
    case FRAME_TUPLE:
        goto tuple;
    case FRAME_DICT:
    case FRAME_DICT_ONE:
    case FRAME_DICT_EACH:
        goto dict;
    case FRAME_SET:
    case FRAME_FROZENSET:
        goto set;
    case FRAME_ATTRS:
        goto attrs;
    case FRAME_SLOTS:
    case FRAME_FIELDS:
        goto slots;
    default:
        break;
    }
    {
        /* prp_plan_resume() resumes the rarer kinds of frame, and returns the same values as prp_save_other(). */
        SYNC();
        int what = prp_plan_resume(s);
        LOAD();
        if (what == SAVE_NEXT) {
            obj = s->next;
            goto save;
        }
        if (what < 0)
            goto error;
        goto done;
    }

list: {
    PyObject *list = f->obj;
    Py_ssize_t i = f->i;
    if (PRP_UNLIKELY(f->kind != FRAME_LIST)) {
        /* Write APPEND after a single item, and after each item in protocol 0. */
        if (i > 0) {
            ROOM(PRP_ROOM);
            *p++ = OP_APPEND;
        }
        if (i >= PyList_GET_SIZE(list) || (f->kind == FRAME_LIST_ONE && i > 0)) {
            pop(s);
            goto done;
        }
        f->i = i + 1;
        obj = PyList_GET_ITEM(list, i);
        goto save;
    }
    for (;;) {
        Py_ssize_t size = PyList_GET_SIZE(list), stop = size < f->n ? size : f->n;
        PyObject **items = ((PyListObject *)list)->ob_item;
        if (PRP_UNLIKELY(!plain)) {
            if (i < stop) {
                f->i = i + 1;
                obj = items[i];
                goto save;
            }
        } else {
            while (i < stop) {
                i = run(s, &p, items, i, stop);
                if (i >= stop)
                    break;
                PyObject *item = items[i++];
                if (PRP_LIKELY(p < s->limit))
                    WRITE_ATOM(item, NOTHING, continue);
                f->i = i;
                obj = item;
                goto save;
            }
        }
        f->i = i; /* needed for the path if the next step fails */
        ROOM(PRP_ROOM);
        *p++ = OP_APPENDS;
        if (i >= size)
            break;
        *p++ = OP_MARK;
        f->n += BATCH;
    }
    pop(s);
    goto done;
}

tuple: {
    PyObject *tuple = f->obj;
    Py_ssize_t i = f->i, n = PyTuple_GET_SIZE(tuple);
    if (PRP_LIKELY(plain)) {
        PyObject *const *items = ((PyTupleObject *)tuple)->ob_item;
        while (i < n) {
            i = run(s, &p, items, i, n);
            if (i >= n)
                break;
            PyObject *item = items[i++];
            if (PRP_LIKELY(p < s->limit))
                WRITE_ATOM(item, NOTHING, continue);
            f->i = i;
            obj = item;
            goto save;
        }
    } else if (i < n) {
        f->i = i + 1;
        obj = PyTuple_GET_ITEM(tuple, i);
        goto save;
    }
    ROOM(PRP_ROOM);
    if (PRP_UNLIKELY(f->flags & FRAME_NEWOBJ)) {
        TRY(prp_plan_finish_tuple(s));
        goto done;
    }
    if (!(f->flags & FRAME_ELIDED)) {
        int64_t index = s->fast ? prp_memo_get(&s->memo, tuple) : prp_memo_add(&s->memo, tuple);
        if (PRP_UNLIKELY(index == PRP_MEMO_ERROR))
            goto error;
        if (PRP_UNLIKELY(index >= 0)) {
            /* The tuple contains itself, so saving its items has already written the tuple: discard this copy. */
            if (prp_restart_if_cyclic(s))
                goto error;
            if (n <= 3 && s->proto >= 2) {
                for (i = 0; i < n; i++)
                    *p++ = OP_POP;
            } else if (s->bin) {
                *p++ = OP_POP_MARK;
            } else {
                ROOM(n + PRP_ROOM);
                for (i = 0; i <= n; i++)
                    *p++ = OP_POP;
            }
            TRY(prp_write_get(s, (uint32_t)index));
            pop(s);
            goto done;
        }
        noted = !s->fast;
    } else {
        noted = false;
    }
    *p++ = n > 3 || s->proto < 2 ? OP_TUPLE : (uint8_t)(OP_TUPLE1 - 1 + n);
    MEMOIZE();
    pop(s);
    goto done;
}

dict: {
    PyObject *dict = f->obj, *key, *value;
    if (PRP_UNLIKELY(f->held != NULL)) {
        if (f->flags & FRAME_IN_KEY) {
            f->flags &= (uint8_t)~FRAME_IN_KEY;
            obj = f->held;
            if (s->elide && Py_REFCNT(obj) > 1) { /* the dict holds `obj`; our reference would make it look shared */
                f->held = NULL;
                Py_DECREF(obj);
            }
            goto save;
        }
        Py_CLEAR(f->held);
        f = &s->stack[s->depth - 1];
    }
    if (PRP_UNLIKELY(f->kind != FRAME_DICT)) {
        if (f->i > 0) {
            ROOM(PRP_ROOM);
            *p++ = OP_SETITEM;
            if (f->kind == FRAME_DICT_ONE) {
                pop(s);
                goto done;
            }
            if (PyDict_GET_SIZE(dict) != f->n) {
                changed_size("dictionary");
                goto error;
            }
        }
        if (!prp_dict_next(dict, &f->i, &key, &value)) {
            pop(s);
            goto done;
        }
        f->held = Py_NewRef(value);
        f->flags |= FRAME_IN_KEY;
        obj = key;
        goto save;
    }
    for (;;) {
        while (f->batch < BATCH && prp_dict_next(dict, &f->i, &key, &value)) {
            prp_seen_key *seen = &s->seen_keys[(size_t)(f->batch + 8 * f->n) % PRP_SEEN_KEYS];
            f->batch++;
            if (PRP_LIKELY(plain && p < s->limit)) {
                if (seen->key == key && seen->lives == s->memo.lives) {
                    p = prp_put_get(p, seen->index);
                    goto key_written;
                }
#define SEEN(key_, index_) (*seen = (prp_seen_key){key_, s->memo.lives, index_})
                WRITE_ATOM(key, SEEN, goto key_written);
#undef SEEN
            }
            f->held = Py_NewRef(value);
            f->flags |= FRAME_IN_KEY;
            obj = key;
            goto save;
        key_written:
            if (PRP_LIKELY(p < s->limit))
                WRITE_ATOM(value, NOTHING, continue);
            obj = value;
            goto save;
        }
        ROOM(PRP_ROOM);
        *p++ = OP_SETITEMS;
        if (PyDict_GET_SIZE(dict) != f->n) {
            changed_size("dictionary");
            goto error;
        }
        /* As in the standard pickler, a full batch is followed by another one, which may be empty. */
        if (f->batch < BATCH)
            break;
        f->batch = 0;
        *p++ = OP_MARK;
    }
    pop(s);
    goto done;
}

attrs: {
    prp_attrs view;
    PyObject *dict;
    if (PRP_UNLIKELY(prp_attrs_view(f->obj, Py_TYPE(f->obj), &view, &dict) != PRP_ATTRS_INLINE || f->n != view.count ||
                     view.keys != f->numbers->keys)) {
        changed_size("dictionary");
        goto error;
    }
    prp_numbers *numbers = f->numbers;
    Py_ssize_t i = f->i;
    while (i < view.count) {
        Py_ssize_t slot = prp_attrs_slot(&view, i);
        PyObject *value = view.values[slot];
        BOUNDARY();
        uint32_t numbered = numbers->names[slot];
        if (PRP_LIKELY(numbered)) {
            p = prp_put_get(p, numbered - 1);
        } else {
            PyObject *name = prp_attrs_name(&view, i);
            int64_t known = prp_memo_add(&s->memo, name);
            if (known == PRP_MEMO_ERROR)
                goto error;
            if (known >= 0) {
                p = prp_put_get(p, (uint32_t)known);
            } else {
                known = s->memo.count - 1;
                TRY(prp_write_str(s, name));
                ROOM(PRP_ROOM);
                *p++ = OP_MEMOIZE;
            }
            numbers->names[slot] = (uint32_t)known + 1;
            BOUNDARY();
        }
        i++;
        WRITE_ATOM(value, NOTHING, continue);
        f->i = i;
        obj = value;
        goto save;
    }
    ROOM(PRP_ROOM);
    *p++ = view.count == 1 ? OP_SETITEM : OP_SETITEMS;
    *p++ = OP_BUILD;
    pop(s);
    goto done;
}

    slots:
    { /* we reach this only while eliding */
        prp_numbers *numbers = f->numbers;
        const prp_plan *plan = numbers->plan;
        PyObject *owner = f->obj;
        Py_ssize_t i = f->i;
        const bool named = f->kind == FRAME_SLOTS;
        if (PRP_UNLIKELY(prp_instance_changed(f)))
            goto error;
        while (i < plan->nslots) {
            PyObject *value = *(PyObject **)((char *)owner + plan->slots[i++].offset);
            if (!value)
                continue;
            f->i = i;
            f->batch++;
            ROOM(2 * PRP_ROOM);
            if (named) {
                uint32_t index = numbers->slots[i - 1];
                if (PRP_LIKELY(index))
                    p = prp_put_get(p, index - 1);
                else
                    TRY(prp_plan_write_name(s, numbers, i - 1));
            }
            if (PRP_LIKELY(plain))
                WRITE_ATOM(value, NOTHING, continue);
            obj = value;
            goto save;
        }
        ROOM(PRP_ROOM);
        if (PRP_UNLIKELY(f->batch != f->n)) {
            changed_size("object with __slots__");
            goto error;
        }
        if (named) {
            *p++ = f->n == 1 ? OP_SETITEM : OP_SETITEMS;
            *p++ = OP_TUPLE2;
        } else {
            *p++ = f->n == 1 ? OP_APPEND : OP_APPENDS;
        }
        *p++ = OP_BUILD;
        pop(s);
        goto done;
    }

set: {
    PyObject *set = f->obj;
    if (f->held) {
        Py_CLEAR(f->held);
        f = &s->stack[s->depth - 1];
    }
    for (;;) {
        PyObject *item = NULL;
        while ((f->kind == FRAME_FROZENSET || f->batch < BATCH) && (item = prp_set_next(set, &f->i))) {
            f->batch++;
            if (PRP_LIKELY(plain && p < s->limit))
                WRITE_ATOM(item, NOTHING, continue);
            if (!s->elide)
                f->held = Py_NewRef(item); /* foreign code may remove the item from the set */
            obj = item;
            goto save;
        }
        ROOM(PRP_ROOM);
        if (f->kind == FRAME_FROZENSET)
            break;
        *p++ = OP_ADDITEMS;
        if (PySet_GET_SIZE(set) != f->n) {
            changed_size("set");
            goto error;
        }
        if (f->batch < BATCH)
            break;
        f->batch = 0;
        *p++ = OP_MARK;
    }
    if (f->kind == FRAME_FROZENSET) {
        if (!(f->flags & FRAME_ELIDED)) {
            int64_t index = s->fast ? prp_memo_get(&s->memo, set) : prp_memo_add(&s->memo, set);
            if (PRP_UNLIKELY(index == PRP_MEMO_ERROR))
                goto error;
            if (PRP_UNLIKELY(index >= 0)) {
                if (prp_restart_if_cyclic(s))
                    goto error;
                *p++ = OP_POP_MARK;
                p = prp_put_get(p, (uint32_t)index);
                pop(s);
                goto done;
            }
            *p++ = OP_FROZENSET;
            if (!s->fast)
                *p++ = OP_MEMOIZE;
        } else {
            *p++ = OP_FROZENSET;
        }
    }
    pop(s);
    goto done;
}

error:
    while (s->depth > floor) {
        note_step(s, &s->stack[s->depth - 1]);
        pop(s);
    }
    return -1;
}

int prp_save(prp_saver *s, PyObject *obj)
{
    if (!s->persistent_id && s->bin && s->p < s->limit && !prp_elidable(s, obj)) {
        int64_t index = prp_memo_get(&s->memo, obj);
        if (index >= 0) {
            s->p = prp_put_get(s->p, (uint32_t)index);
            return 0;
        }
    }
    const bool ask_id = true;
    return save(s, obj, ask_id);
}

int prp_save_pid(prp_saver *s, PyObject *pid)
{
    const bool ask_id = false; /* a persistent id has none itself */
    return save(s, pid, ask_id);
}
