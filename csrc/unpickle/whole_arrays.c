/* Reads from the stream, in one step, all opcodes of a call that creates an array.
 *
 * Picklers write plain arrays with the same opcodes every time; only dtype, shape and bytes differ. These opcodes
 * follow the callable and a MARK:
 *
 *     _frombuffer   NEXT_BUFFER, the dtype (GET or its opcodes), the shape's ints and TUPLE, 'C' or 'F', TUPLE, REDUCE
 *     ndarray       the shape, the dtype's name, the bytes (in the stream, or NEXT_BUFFER), 0, None, TUPLE, REDUCE
 *
 * The pickler of this package writes this form. It memoizes only objects that several arrays can share (numpy's name,
 * the class dtype, the dtype, the letters of byte order and of memory order), and writes a GET when one of them occurs
 * again. If the opcodes match, we create the array without the intermediate objects. We consume nothing before the
 * array exists. The opcode loop handles all other opcodes and returns the result or raises the error.
 */
#include "unpickler.h"
#include "opcodes.h"

typedef struct {
    const uint8_t *p, *end;
    int nd;
    int64_t shape[PRP_ARRAY_MAX_DIMS];
    const uint8_t *name; /* the name of the dtype, or NULL */
    size_t name_len;
    const uint8_t *inband; /* the bytes, or NULL if they come from NEXT_BUFFER */
    size_t inband_len;
    PyObject *dtype; /* borrowed from the memo, or NULL */
    PyObject *cls;   /* the class dtype, borrowed from the memo; if NULL, look it up by name and memoize both */
    bool made;       /* whether the opcodes create the dtype from its name; if so, we memoize it */
    uint8_t sign;    /* the byte order, if we must memoize it; 0 if it came from the memo */
    uint8_t order;   /* the memory order, if we must memoize it; 0 if it came from the memo */
    bool fortran;
} array_call;

static inline bool literal(array_call *c, const void *bytes, size_t n)
{
    if ((size_t)(c->end - c->p) < n || memcmp(c->p, bytes, n) != 0)
        return false;
    c->p += n;
    return true;
}

static inline bool byte(array_call *c, uint8_t expected)
{
    return c->p < c->end && *c->p == expected && (c->p++, true);
}

static inline bool read_int(array_call *c, int64_t *value)
{
    const uint8_t *p = c->p;
    Py_ssize_t left = c->end - p;
    if (left >= 2 && *p == OP_BININT1) {
        *value = p[1];
        c->p += 2;
    } else if (left >= 3 && *p == OP_BININT2) {
        *value = p[1] | p[2] << 8;
        c->p += 3;
    } else if (left >= 5 && *p == OP_BININT) {
        *value = (int32_t)(p[1] | (uint32_t)p[2] << 8 | (uint32_t)p[3] << 16 | (uint32_t)p[4] << 24);
        c->p += 5;
    } else {
        return false;
    }
    return true;
}

static bool read_shape(array_call *c)
{
    c->nd = 0;
    if (byte(c, OP_EMPTY_TUPLE))
        return true;
    bool marked = byte(c, OP_MARK);
    while (c->nd < PRP_ARRAY_MAX_DIMS && read_int(c, &c->shape[c->nd]))
        c->nd++;
    if (c->p >= c->end)
        return false;
    uint8_t op = *c->p++;
    return marked ? op == OP_TUPLE : c->nd >= 1 && c->nd <= 3 && op == OP_TUPLE1 - 1 + c->nd;
}

/* Read the `n` bytes that follow an opcode and its length field of `width` bytes; return false if they are
 * incomplete. */
static bool read_run(array_call *c, size_t width, size_t n, const uint8_t **bytes, size_t *len)
{
    if ((size_t)(c->end - c->p) - 1 - width < n)
        return false;
    *bytes = c->p + 1 + width;
    *len = n;
    c->p = *bytes + n;
    return true;
}

static bool read_text(array_call *c, const uint8_t **text, size_t *len)
{
    return c->end - c->p >= 2 && *c->p == OP_SHORT_BINUNICODE && read_run(c, 1, prp_load_byte(c->p + 1), text, len);
}

/* Return the object of a GET with a one-byte index (borrowed); NULL means to leave the call to the opcode loop. */
static PyObject *read_get(const prp_loader *L, array_call *c)
{
    if (c->end - c->p < 2 || *c->p != OP_BINGET)
        return NULL;
    size_t index = prp_load_byte(c->p + 1);
    PyObject *entry = index < (size_t)L->memo.top ? L->memo.entries[index] : NULL;
    if (!entry || prp_load_tagged(entry))
        return NULL;
    c->p += 2;
    return entry;
}

/* Read one of `letters`, either from a GET or from a string that a MEMOIZE follows; set *made to the letter of such a
 * string. Return 0 to leave the call to the opcode loop. */
static uint8_t read_letter(const prp_loader *L, array_call *c, const char *letters, uint8_t *made)
{
    uint8_t letter;
    PyObject *entry = read_get(L, c);
    *made = 0;
    if (entry) {
        if (!PyUnicode_CheckExact(entry) || PyUnicode_GET_LENGTH(entry) != 1)
            return 0;
        Py_UCS4 found = PyUnicode_READ_CHAR(entry, 0);
        letter = found < 128 ? (uint8_t)found : 0;
    } else {
        static const uint8_t head[] = {OP_SHORT_BINUNICODE, 1};
        if (!literal(c, head, sizeof head) || c->end - c->p < 2)
            return 0;
        letter = prp_load_byte(c->p);
        if (c->p[1] != OP_MEMOIZE)
            return 0;
        *made = letter;
        c->p += 2;
    }
    return letter && strchr(letters, letter) ? letter : 0;
}

/* Read a GET, or numpy.dtype(kind and size, False, True) with the state that sets its byte order. `name` has room for 8
 * bytes. */
static bool read_dtype(const prp_loader *L, array_call *c, uint8_t *name)
{
    static const uint8_t head[] = "\x8c\x05numpy\x94\x8c\x05"
                                  "dtype\x93\x94";
    static const uint8_t middle[] = "\x89\x88\x87R\x94(K\x03";
    static const uint8_t tail[] = "NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb";
    static const uint8_t two[] = {OP_SHORT_BINUNICODE, 2};
    PyObject *entry = read_get(L, c);
    if (entry && (c->p >= c->end || *c->p != OP_SHORT_BINUNICODE)) {
        c->dtype = entry;
        return true;
    }
    c->cls = entry;
    if ((!entry && !literal(c, head, sizeof head - 1)) || !literal(c, two, sizeof two) || c->end - c->p < 2)
        return false;
    memcpy(name + 1, c->p, 2);
    c->p += 2;
    if (!name[1] || !strchr("biufc", name[1]) || !literal(c, middle, sizeof middle - 1))
        return false;
    name[0] = read_letter(L, c, "<>|", &c->sign);
    c->name = name;
    c->name_len = 3;
    c->made = true;
    return name[0] && literal(c, tail, sizeof tail - 1);
}

static bool read_bytes(array_call *c)
{
    if (byte(c, OP_NEXT_BUFFER))
        return true;
    if (c->end - c->p >= 2 && *c->p == OP_SHORT_BINBYTES)
        return read_run(c, 1, prp_load_byte(c->p + 1), &c->inband, &c->inband_len);
    if (c->end - c->p < 5 || *c->p != OP_BINBYTES)
        return false;
    uint32_t n = 0;
    for (int i = 0; i < 4; i++)
        n |= (uint32_t)prp_load_byte(c->p + 1 + i) << 8 * i;
    return read_run(c, 4, n, &c->inband, &c->inband_len);
}

static bool read_call(prp_loader *L, array_call *c, bool frombuffer, uint8_t *name)
{
    static const uint8_t no_strides[] = "K\0NtR";
    if (!frombuffer)
        return read_shape(c) && read_text(c, &c->name, &c->name_len) && read_bytes(c) &&
               literal(c, no_strides, sizeof no_strides - 1);
    if (!byte(c, OP_NEXT_BUFFER) || !read_dtype(L, c, name) || !read_shape(c))
        return false;
    uint8_t order = read_letter(L, c, "CF", &c->order);
    c->fortran = order == 'F';
    return order && literal(c, "tR", 2);
}

/* Get the memory that the call uses, without consuming an out-of-band buffer. Return 1, 0 to leave the call to the
 * opcode loop, or -1. */
static int memory_of(prp_loader *L, const array_call *c, prp_array_memory *memory)
{
    PyObject *buffer;
    if (c->inband) {
        buffer = PyBytes_FromStringAndSize((const char *)c->inband, (Py_ssize_t)c->inband_len);
    } else if (L->owner) {
        if (L->table_next >= L->table_len)
            return 0;
        const prp_buffer *source = &L->table[L->table_next];
        *memory =
            (prp_array_memory){source->ptr, source->len, Py_NewRef(L->owner), L->array_flags & PRP_ARRAY_WRITABLE};
        return 1;
    } else {
        PyObject *all = L->buffers;
        bool list = all && PyList_CheckExact(all);
        if (!list && !(all && PyTuple_CheckExact(all)))
            return 0;
        if (L->buffer_next < 0 || L->buffer_next >= Py_SIZE(all))
            return 0;
        buffer = Py_NewRef(list ? PyList_GET_ITEM(all, L->buffer_next) : PyTuple_GET_ITEM(all, L->buffer_next));
        if (!PyPickleBuffer_Check(buffer) && !PyBytes_CheckExact(buffer)) {
            Py_DECREF(buffer); /* exporting such a buffer may run foreign code */
            return 0;
        }
    }
    int status = buffer ? prp_load_array_memory(L, buffer, memory) : -1;
    Py_XDECREF(buffer);
    return status;
}

/* Return the dtype as a new reference. NULL without an exception means to leave the call to the opcode loop. */
static PyObject *dtype_of(prp_loader *L, const prp_ndarray_api *numpy, const array_call *c)
{
    if (c->dtype)
        return Py_NewRef(c->dtype);
    if (c->made) {
        /* Look the name up as the opcodes would: fire an audit event, and raise an error if the name is not allowed. */
        PyObject *type = c->cls ? Py_NewRef(c->cls) : prp_load_known_global(L, "numpy", "dtype");
        Py_XDECREF(type);
        if (type != numpy->dtype_type)
            return NULL;
    }
    if (c->made)
        return numpy->plain_dtype((const char *)c->name, c->name_len); /* the caller memoizes this dtype */
    return numpy->shared_dtype((const char *)c->name, c->name_len);
}

/* Memoize the objects that the opcodes would have memoized, in the same order. */
static int memoize(prp_loader *L, const prp_ndarray_api *numpy, const array_call *c, PyObject *dtype)
{
    static PyObject *module;
    if (!module && !(module = PyUnicode_InternFromString("numpy")))
        return -1;
    if (c->made && !c->cls && (prp_load_memoize(L, module) < 0 || prp_load_memoize(L, numpy->dtype_type) < 0))
        return -1;
    if (c->made && prp_load_memoize(L, dtype) < 0)
        return -1;
    if (c->sign && prp_load_memoize(L, prp_load_characters[c->sign]) < 0)
        return -1;
    return c->order ? prp_load_memoize(L, prp_load_characters[c->order]) : 0;
}

int prp_load_array_whole(prp_loader *L)
{
    uint8_t name[8];
    array_call c;
    c.p = L->p;
    c.end = L->end;
    c.name = c.inband = NULL;
    c.dtype = c.cls = NULL;
    c.sign = c.order = 0;
    c.made = c.fortran = false;
    bool frombuffer = L->sp[-1] == prp_load_array_callables[0];
    if (!read_call(L, &c, frombuffer, name) || (c.made && L->custom_find_class))
        return 0;
    /* Objects that GET returned are borrowed from the memo, which only this load changes. */
    const prp_ndarray_api *numpy = PRP_FOREIGN(prp_ndarray());
    prp_array_memory memory;
    if (!numpy)
        return -1;
    int status = memory_of(L, &c, &memory);
    if (status <= 0)
        return status;
    PyObject *array = NULL, *dtype = dtype_of(L, numpy, &c);
    if (dtype)
        array = PRP_FOREIGN(numpy->from_ints(c.nd, c.shape, dtype, c.fortran, memory.data, memory.len, memory.base,
                                             memory.flags | (frombuffer ? PRP_ARRAY_EXACT : 0)));
    if (array && memoize(L, numpy, &c, dtype) < 0)
        Py_CLEAR(array);
    PRP_FOREIGN_VOID(Py_DECREF(memory.base));
    PRP_FOREIGN_VOID(Py_XDECREF(dtype));
    if (!array)
        return PyErr_Occurred() ? -1 : 0;
    if (!c.inband && L->owner)
        L->table_next++;
    else if (!c.inband)
        L->buffer_next++;
    L->p = c.p;
    PyObject *callable = L->sp[-1];
    L->sp[-1] = array;
    Py_DECREF(callable);
    return 1;
}
