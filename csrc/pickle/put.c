/* Implements put mode: decides which data stays out of the stream, and how the reader gets it back. See put.h for the
 * interface, array_template.h for the stream of a single array.
 *
 *     bytes, bytearray of 1 KiB and more     bytes(buffer), bytearray(buffer)
 *     PickleBuffer of 1 KiB and more         the buffer
 *     smaller PickleBuffer                   bytes in the stream, so arrays over it are read-only
 *     exact ndarray, dtype with a name       numpy.ndarray(shape, dtype, buffer, offset, strides)
 *
 * If the memory of an array is part of a buffer that we have already written for this object, the array refers to that
 * buffer. So all views of one base share one buffer.
 */
#include "class_plan.h"
#include "atoms.h"

#include <stdlib.h>

#include "ndarray/api.h"

static prp_put_buffer *add_buffer(prp_saver *s, PyObject *owner)
{
    if (s->buffer_count == s->buffer_room) {
        size_t room = s->buffer_room ? s->buffer_room * 2 : 16;
        prp_put_buffer *buffers = realloc(s->buffers, room * sizeof *buffers);
        if (!buffers) {
            PyErr_NoMemory();
            return NULL;
        }
        s->buffers = buffers;
        s->buffer_room = room;
    }
    prp_put_buffer *buffer = &s->buffers[s->buffer_count++];
    *buffer = (prp_put_buffer){.owner = Py_NewRef(owner), .memo_index = -1};
    return buffer;
}

static void drop_buffer(prp_put_buffer *buffer)
{
    if (buffer->view) {
        PyBuffer_Release(buffer->view);
        free(buffer->view);
    }
    free(buffer->source);
    Py_XDECREF(buffer->owner);
}

void prp_put_drop(prp_saver *s)
{
    while (s->buffer_count)
        drop_buffer(&s->buffers[--s->buffer_count]);
    if (s->buffer_room > 1024) {
        free(s->buffers);
        s->buffers = NULL;
        s->buffer_room = 0;
    }
    free(s->segments);
    s->segments = NULL;
}

/* Acquire the buffer that `obj` exports, contiguous in any order, as the next buffer. */
static int acquire(prp_saver *s, PyObject *obj)
{
    Py_buffer *view = malloc(sizeof *view);
    if (!view) {
        PyErr_NoMemory();
        return -1;
    }
    if (PRP_FOREIGN(PyObject_GetBuffer(obj, view, PyBUF_FULL_RO)) < 0) {
        free(view);
        return -1;
    }
    prp_put_buffer *buffer = add_buffer(s, obj);
    if (!buffer) {
        PyBuffer_Release(view);
        free(view);
        return -1;
    }
    buffer->view = view;
    buffer->data = view->buf;
    buffer->len = (size_t)view->len;
    buffer->readonly = view->readonly;
    return 0;
}

static int write_next_buffer(prp_saver *s, bool readonly)
{
    if (prp_room(s, PRP_ROOM) < 0)
        return -1;
    *s->p++ = OP_NEXT_BUFFER;
    if (readonly)
        *s->p++ = OP_READONLY_BUFFER;
    return 0;
}

/* Write bytes or bytearray as a call of the type with a buffer. */
int prp_put_bytes(prp_saver *s, PyObject *obj, bool elided)
{
    prp_memo_own_all(s);
    if (prp_save_class(s, (PyObject *)Py_TYPE(obj)) < 0 || acquire(s, obj) < 0 ||
        write_next_buffer(s, s->buffers[s->buffer_count - 1].readonly) < 0 || prp_op(s, OP_TUPLE1) < 0 ||
        prp_op(s, OP_REDUCE) < 0)
        return -1;
    return elided ? 0 : prp_memoize(s, obj);
}

static int write_bytes(prp_saver *s, const void *data, size_t len)
{
    if (prp_room(s, len + PRP_ROOM) < 0)
        return -1;
    if (len <= 0xff) {
        *s->p++ = OP_SHORT_BINBYTES;
        *s->p++ = (uint8_t)len;
    } else {
        *s->p++ = OP_BINBYTES;
        s->p = prp_put_u32(s->p, (uint32_t)len);
    }
    if (data)
        memcpy(s->p, data, len);
    s->p += len;
    return 0;
}

int prp_put_picklebuffer(prp_saver *s, PyObject *obj, const Py_buffer *view)
{
    if (view->len < PRP_PUT_THRESHOLD)
        return write_bytes(s, view->buf, (size_t)view->len);
    prp_memo_own_all(s);
    return acquire(s, obj) < 0 ? -1 : write_next_buffer(s, view->readonly);
}

/* ---- arrays ---- */

/* Return an earlier buffer that contains all `len` bytes at `data` and can be referenced again, or NULL. */
static const prp_put_buffer *sent_before(const prp_saver *s, const void *data, size_t len)
{
    uintptr_t start = (uintptr_t)data;
    for (size_t i = s->buffer_count; i-- > 0 && s->buffer_count - i < 64;) {
        const prp_put_buffer *buffer = &s->buffers[i];
        uintptr_t from = (uintptr_t)buffer->data;
        if (buffer->memo_index >= 0 && start >= from && start - from <= buffer->len &&
            len <= buffer->len - (start - from))
            return buffer;
    }
    return NULL;
}

static int add_array(prp_saver *s, PyObject *obj, const prp_array_source *source)
{
    prp_put_buffer *buffer = add_buffer(s, obj);
    if (!buffer)
        return -1;
    buffer->len = source->nbytes;
    buffer->readonly = source->layout.readonly;
    if (source->kind == PRP_ARRAY_DIRECT) {
        buffer->data = source->data;
        return 0;
    }
    prp_array_source *kept = malloc(sizeof *kept);
    if (!kept) {
        PyErr_NoMemory();
        return -1;
    }
    *kept = *source;
    kept->layout.dtype = kept->dtype;
    buffer->source = kept;
    return 0;
}

/* Return whether another array may share this array's memory, because it is a view or other code refers to it. */
static bool may_be_shared(PyObject *obj)
{
    return Py_REFCNT(obj) > 2 || prp_array_has_base(obj);
}

int prp_put_array(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided)
{
    prp_memo_own_all(s);
    const prp_ndarray_api *api = prp_ndarray();
    if (!api)
        return SAVE_ERROR;
    prp_array_source source;
    int described = api->describe(obj, &source);
    if (described <= 0)
        return described < 0 ? SAVE_ERROR : SAVE_GENERIC;
    if (source.nbytes > (size_t)PY_SSIZE_T_MAX)
        return SAVE_GENERIC;
    if (prp_plan_class(s, plan) < 0 || prp_room(s, PRP_ARRAY_STREAM_MAX) < 0)
        return SAVE_ERROR;
    /* Code that ran while we wrote the class may have changed the array. No other code runs from here until we have
     * recorded the array's bytes. */
    if (api->describe(obj, &source) <= 0 || source.nbytes > (size_t)PY_SSIZE_T_MAX) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "an array changed while it was pickled");
        return SAVE_ERROR;
    }
    source.layout.dtype = source.dtype;
    const prp_array_template *layout = &source.layout;
    *s->p++ = OP_MARK;
    s->p = prp_array_put_ints(s->p, layout->shape, layout->nd);
    s->p = prp_put_str_header(s->p, layout->dtype_len);
    memcpy(s->p, layout->dtype, layout->dtype_len);
    s->p += layout->dtype_len;

    int64_t offset = 0;
    const prp_put_buffer *earlier;
    if (source.nbytes < PRP_PUT_THRESHOLD) {
        bool direct = source.kind == PRP_ARRAY_DIRECT;
        if (write_bytes(s, direct ? source.data : NULL, source.nbytes) < 0 ||
            (!direct && api->gather(obj, &source, s->p - source.nbytes, source.nbytes) < 0))
            return SAVE_ERROR;
    } else if (source.kind == PRP_ARRAY_DIRECT && (earlier = sent_before(s, source.data, source.nbytes))) {
        offset = (const char *)source.data - (const char *)earlier->data;
        s->p = prp_put_get(s->p, (uint32_t)earlier->memo_index);
    } else {
        if (add_array(s, obj, &source) < 0 || write_next_buffer(s, layout->readonly) < 0)
            return SAVE_ERROR;
        if (source.kind == PRP_ARRAY_DIRECT && may_be_shared(obj)) {
            /* Assign a memo index to the buffer. A new object represents the buffer in the memo, and the memo keeps
             * that object alive. */
            PyObject *stand_in = PRP_FOREIGN(PyList_New(0));
            uint32_t index = s->memo.count;
            if (!stand_in || prp_memo_add(&s->memo, stand_in) != PRP_MEMO_ABSENT) {
                Py_XDECREF(stand_in);
                return SAVE_ERROR;
            }
            Py_DECREF(stand_in); /* the memo now owns the object */
            s->buffers[s->buffer_count - 1].memo_index = index;
            *s->p++ = OP_MEMOIZE;
        }
    }
    if (prp_room(s, PRP_ARRAY_STREAM_MAX) < 0)
        return SAVE_ERROR;
    s->p = prp_array_put_int(s->p, offset);
    if (layout->has_strides)
        s->p = prp_array_put_ints(s->p, layout->strides, layout->nd);
    else
        *s->p++ = OP_NONE;
    *s->p++ = OP_TUPLE;
    *s->p++ = OP_REDUCE;
    return elided || prp_memoize(s, obj) == 0 ? SAVE_DONE : SAVE_ERROR;
}

int prp_put_root(prp_saver *s, PyObject *root)
{
    if (prp_ndarray_looks(root)) {
        prp_plan *plan = prp_plan_for(s, Py_TYPE(root), root);
        if (!plan)
            return -1;
        bool plain = plan->kind == PLAN_NDARRAY && !plan->registered && !plan->table;
        prp_plan_drop(plan);
        const prp_ndarray_api *api = plain ? prp_ndarray() : NULL;
        if (!api && PyErr_Occurred())
            return -1;
        if (api) {
            prp_array_source source;
            if (prp_room(s, PRP_ARRAY_STREAM_MAX) < 0)
                return -1;
            Py_ssize_t len = api->template_put(root, s->base, &source);
            if (len < 0)
                return -1;
            if (len > 0 && (source.nbytes >= PRP_PUT_THRESHOLD || s->put_small_root)) {
                source.layout.dtype = source.dtype;
                s->p = s->base + len - 1; /* the caller writes STOP */
                return add_array(s, root, &source);
            }
        }
    }
    return prp_save(s, root);
}

/* ---- the interface ---- */

int prp_put(PyObject *obj, unsigned flags, prp_put_result *result)
{
    memset(result, 0, sizeof *result);
    prp_saver *s = prp_acquire();
    if (!s)
        return -1;
    prp_saver_protocol(s, 5);
    s->elide = true;
    s->framing = false;
    s->put = true;
    s->put_small_root = flags & PRP_PUT_SMALL_ROOT;
    if (prp_dump(s, obj) < 0)
        goto fail;
    result->saver = s;
    result->stream_len = prp_out_len(s);
    result->buffers = s->buffers;
    result->buffer_count = s->buffer_count;
    if (!s->piece_count) {
        result->one = (prp_put_segment){s->base, (size_t)(s->p - s->base)};
        result->segments = &result->one;
        result->segment_count = 1;
        return 0;
    }
    prp_put_segment *segments = malloc((2 * s->piece_count + 1) * sizeof *segments);
    if (!segments) {
        PyErr_NoMemory();
        goto fail;
    }
    size_t n = 0, from = 0;
    for (size_t i = 0; i < s->piece_count; i++) {
        segments[n++] = (prp_put_segment){s->base + from, s->pieces[i].at - from};
        segments[n++] = (prp_put_segment){s->pieces[i].data, s->pieces[i].len};
        from = s->pieces[i].at;
    }
    segments[n++] = (prp_put_segment){s->base + from, (size_t)(s->p - s->base) - from};
    s->segments = segments;
    result->segments = segments;
    result->segment_count = n;
    return 0;
fail:
    prp_release(s);
    memset(result, 0, sizeof *result);
    return -1;
}

int prp_put_gather(const prp_put_buffer *buffer, void *to)
{
    const prp_ndarray_api *api = prp_ndarray();
    return api ? api->gather(buffer->owner, buffer->source, to, buffer->len) : -1;
}

int prp_put_check(const prp_put_result *result)
{
    const prp_ndarray_api *api = NULL;
    for (size_t i = 0; i < result->buffer_count; i++) {
        const prp_put_buffer *buffer = &result->buffers[i];
        if (buffer->view || buffer->source)
            continue;
        if (!api && !(api = prp_ndarray()))
            return -1;
        if (!api->lies_at(buffer->owner, buffer->data, buffer->len)) {
            PyErr_SetString(PyExc_RuntimeError, "an array was resized while it was stored");
            return -1;
        }
    }
    return 0;
}

void prp_put_release(prp_put_result *result)
{
    if (result->saver)
        prp_release(result->saver);
    memset(result, 0, sizeof *result);
}

/* Add the path to the message of a TypeError or PicklingError, or add it as a note to other exceptions; the exception
 * stays the same object. If this function itself fails, its exception is set on return. */
void prp_put_error(PyObject *error, PyObject *path)
{
    PyObject *args = NULL;
    if (PyErr_GivenExceptionMatches(error, PyExc_TypeError) || PyErr_GivenExceptionMatches(error, prp_g.pickling_error))
        args = PRP_FOREIGN(PyObject_GetAttrString(error, "args"));
    if (args && PyTuple_CheckExact(args) && PyTuple_GET_SIZE(args) == 1 && PyUnicode_Check(PyTuple_GET_ITEM(args, 0))) {
        PyObject *longer = PyUnicode_FromFormat("%U (at %U)", PyTuple_GET_ITEM(args, 0), path);
        PyObject *replaced = longer ? PRP_FOREIGN(PyTuple_Pack(1, longer)) : NULL;
        if (replaced)
            (void)PRP_FOREIGN(PyObject_SetAttrString(error, "args", replaced));
        Py_XDECREF(longer);
        Py_XDECREF(replaced);
    } else if (prp_forgive_refusal() == 0) { /* add a note even if reading `args` raised */
        PyObject *note = PyUnicode_FromFormat("at %U of the object being put", path);
        PyObject *done = note ? PRP_FOREIGN(PyObject_CallMethod(error, "add_note", "O", note)) : NULL;
        Py_XDECREF(done);
        Py_XDECREF(note);
    }
    Py_XDECREF(args);
}
