/* Supplies out-of-band buffers from the caller's iterator or, for the store, from a table of foreign memory.
 *
 * A buffer of foreign memory is a lightweight object. It holds a reference to the owner (the pin of the stored object)
 * and exports the bytes, read-only unless the memory is private. Arrays do not reference this object: they use the
 * bytes directly, and their base is the owner.
 */
#include "unpickler.h"

#define FREE_BUFFERS 64

typedef struct {
    PyObject_HEAD
    PyObject *owner;
    const uint8_t *ptr;
    Py_ssize_t len;
    bool writable;
} stored_buffer;

static stored_buffer *free_buffers[FREE_BUFFERS];
static int free_count;

static void buffer_dealloc(PyObject *self)
{
    stored_buffer *buffer = (stored_buffer *)self;
    PyObject *owner = buffer->owner;
    buffer->owner = NULL;
    if (free_count < FREE_BUFFERS)
        free_buffers[free_count++] = buffer;
    else
        PyObject_Free(buffer);
    PRP_FOREIGN_VOID(Py_XDECREF(owner));
}

static int buffer_export(PyObject *self, Py_buffer *view, int flags)
{
    stored_buffer *buffer = (stored_buffer *)self;
    return PyBuffer_FillInfo(view, self, (void *)buffer->ptr, buffer->len, !buffer->writable, flags);
}

static Py_ssize_t buffer_length(PyObject *self)
{
    return ((stored_buffer *)self)->len;
}

static PyObject *buffer_repr(PyObject *self)
{
    stored_buffer *buffer = (stored_buffer *)self;
    return PyUnicode_FromFormat("<stored buffer of %zd bytes>", buffer->len);
}

static PyObject *buffer_owner(PyObject *self, void *closure)
{
    return Py_NewRef(((stored_buffer *)self)->owner);
}

static PyGetSetDef buffer_getset[] = {
    {"owner", buffer_owner, NULL, PyDoc_STR("What keeps the bytes in place."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyBufferProcs buffer_procs = {.bf_getbuffer = buffer_export};
static PySequenceMethods buffer_sequence = {.sq_length = buffer_length};

static PyTypeObject stored_buffer_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pyray_ser.StoredBuffer",
    .tp_doc = PyDoc_STR("Bytes of a stored object, in place. Use it through memoryview()."),
    .tp_basicsize = sizeof(stored_buffer),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = buffer_dealloc,
    .tp_repr = buffer_repr,
    .tp_as_buffer = &buffer_procs,
    .tp_as_sequence = &buffer_sequence,
    .tp_getset = buffer_getset,
};

int prp_load_buffer_init(void)
{
    return PyType_Ready(&stored_buffer_type);
}

bool prp_load_foreign_buffer(PyObject *obj, const uint8_t **ptr, size_t *len, PyObject **owner)
{
    if (!Py_IS_TYPE(obj, &stored_buffer_type))
        return false;
    stored_buffer *buffer = (stored_buffer *)obj;
    *ptr = buffer->ptr;
    *len = (size_t)buffer->len;
    *owner = buffer->owner;
    return true;
}

static PyObject *new_buffer(PyObject *owner, const prp_buffer *source, bool writable)
{
    stored_buffer *buffer;
    if (source->len > PY_SSIZE_T_MAX)
        return PyErr_NoMemory();
    if (free_count)
        buffer = (stored_buffer *)PyObject_Init((PyObject *)free_buffers[--free_count], &stored_buffer_type);
    else if (!(buffer = PyObject_New(stored_buffer, &stored_buffer_type)))
        return NULL;
    buffer->owner = Py_NewRef(owner);
    buffer->ptr = source->ptr;
    buffer->len = (Py_ssize_t)source->len;
    buffer->writable = writable;
    return (PyObject *)buffer;
}

/* Return the next of the caller's buffers as a new reference, or NULL with an exception. */
static PyObject *given_buffer(prp_loader *L)
{
    PyObject *all = L->buffers;
    if (PyList_CheckExact(all) || PyTuple_CheckExact(all)) {
        Py_ssize_t i = L->buffer_next;
        if (PRP_LIKELY(i >= 0 && i < Py_SIZE(all))) {
            L->buffer_next = i + 1;
            return Py_NewRef(PyList_CheckExact(all) ? PyList_GET_ITEM(all, i) : PyTuple_GET_ITEM(all, i));
        }
        L->buffer_next = -1;
    } else {
        /* Iterators of lists and tuples run no foreign code. */
        bool inert = Py_IS_TYPE(all, &PyListIter_Type) || Py_IS_TYPE(all, &PyTupleIter_Type);
        PyObject *buffer = inert || prp_load_foreign(L) == 0 ? PRP_FOREIGN(PyIter_Next(all)) : NULL;
        if (!inert)
            prp_load_own(L);
        if (buffer || PyErr_Occurred())
            return buffer;
    }
    return prp_load_malformed("not enough out-of-band buffers");
}

PyObject *prp_load_take_buffer(prp_loader *L)
{
    if (L->owner) {
        if (L->table_next == L->table_len)
            return prp_load_malformed("not enough out-of-band buffers");
        return new_buffer(L->owner, &L->table[L->table_next++], L->array_flags & PRP_ARRAY_WRITABLE);
    }
    if (!L->buffers)
        return prp_load_malformed("pickle stream refers to out-of-band data but no *buffers* argument was given");
    return given_buffer(L);
}

int prp_load_next_buffer(prp_loader *L)
{
    PyObject *buffer = prp_load_take_buffer(L);
    if (buffer && L->allow && !Py_IS_TYPE(buffer, &stored_buffer_type) && prp_load_note_shared(L, buffer) < 0)
        Py_CLEAR(buffer);
    if (!buffer || (L->sp == L->limit && prp_load_grow_stack(L) < 0)) {
        Py_XDECREF(buffer);
        return -1;
    }
    *L->sp++ = buffer;
    return 0;
}

int prp_load_readonly_buffer(prp_loader *L)
{
    if (L->sp <= L->fence)
        return prp_load_underflow(L);
    PyObject *buffer = L->sp[-1];
    /* Shared foreign memory is read-only already; a private copy is writable on purpose. */
    if (Py_IS_TYPE(buffer, &stored_buffer_type))
        return 0;
    /* An object that exports a buffer may run foreign code. */
    PyObject *view = prp_load_foreign(L) < 0 ? NULL : PRP_FOREIGN(PyMemoryView_FromObject(buffer));
    if (!view)
        return -1;
    if (PyMemoryView_GET_BUFFER(view)->readonly) {
        Py_DECREF(view);
        return 0;
    }
    PyObject *readonly = PRP_FOREIGN(PyObject_CallMethod(view, "toreadonly", NULL));
    PRP_FOREIGN_VOID(Py_DECREF(view));
    if (!readonly)
        return -1;
    L->sp[-1] = readonly;
    PRP_FOREIGN_VOID(Py_DECREF(buffer));
    prp_load_own(L);
    return 0;
}
