/* Writes the opcodes that differ in protocols below 4: numbers and strings as text, memo opcodes with an explicit
 * index, sets and bytes as calls. */
#include "pickler.h"
#include "atoms.h"

#include <stdio.h>

int prp_write_put(prp_saver *s, uint32_t index)
{
    if (prp_room(s, PRP_ROOM) < 0)
        return -1;
    if (s->proto >= 4) {
        *s->p++ = OP_MEMOIZE;
    } else if (!s->bin) {
        s->p += sprintf((char *)s->p, "%c%lu\n", OP_PUT, (unsigned long)index);
    } else if (index < 256) {
        *s->p++ = OP_BINPUT;
        *s->p++ = (uint8_t)index;
    } else {
        *s->p++ = OP_LONG_BINPUT;
        s->p = prp_put_u32(s->p, index);
    }
    return 0;
}

int prp_write_get(prp_saver *s, uint32_t index)
{
    if (prp_room(s, PRP_ROOM) < 0)
        return -1;
    if (s->bin)
        s->p = prp_put_get(s->p, index);
    else
        s->p += sprintf((char *)s->p, "%c%lu\n", OP_GET, (unsigned long)index);
    return 0;
}

int prp_write_long(prp_saver *s, PyObject *obj)
{
    size_t n = prp_long_size(obj);
    if (!n || prp_room(s, n + PRP_ROOM) < 0)
        return -1;
    /* The length comes before the bytes, but we know it only after writing them. */
    uint8_t *data = s->p + (n <= 0xff ? 2 : 5);
    if (prp_long_write(obj, data, n) < 0)
        return -1;
    if (n > 1 && data[n - 1] == 0xff && data[n - 2] & 0x80)
        n--; /* -2**(8*j-1) has its sign bit in byte j, so the last byte only repeats the sign */
    if (data == s->p + 5 && n <= 0xff) {
        memmove(s->p + 2, data, n);
        data = s->p + 2;
    }
    if (data == s->p + 2) {
        s->p[0] = OP_LONG1;
        s->p[1] = (uint8_t)n;
    } else {
        s->p[0] = OP_LONG4;
        prp_put_u32(s->p + 1, (uint32_t)n);
    }
    s->p = data + n;
    return 0;
}

/* Write repr(obj) between `op` and `end`. */
static int write_repr(prp_saver *s, uint8_t op, PyObject *obj, const char *end)
{
    PyObject *repr = PRP_FOREIGN(PyObject_Repr(obj));
    if (!repr)
        return -1;
    int status = prp_op(s, op) < 0 || prp_out(s, PyUnicode_DATA(repr), (size_t)PyUnicode_GET_LENGTH(repr)) < 0
                     ? -1
                     : prp_out(s, end, strlen(end));
    Py_DECREF(repr);
    return status;
}

/* Write the argument of UNICODE as raw-unicode-escape, in which we also escape backslash, NUL, line ends and Ctrl-Z. */
static int write_escaped(prp_saver *s, PyObject *str)
{
    static const char digits[] = "0123456789abcdef";
    Py_ssize_t n = PyUnicode_GET_LENGTH(str);
    if (prp_op(s, OP_UNICODE) < 0)
        return -1;
    for (Py_ssize_t i = 0; i < n; i++) {
        Py_UCS4 c = PyUnicode_READ_CHAR(str, i);
        if (prp_room(s, 16) < 0)
            return -1;
        if (c < 256 && c != '\\' && c != 0 && c != '\n' && c != '\r' && c != 0x1a) {
            *s->p++ = (uint8_t)c;
            continue;
        }
        int width = c >= 0x10000 ? 8 : 4;
        *s->p++ = '\\';
        *s->p++ = width == 8 ? 'U' : 'u';
        for (int shift = 4 * (width - 1); shift >= 0; shift -= 4)
            *s->p++ = (uint8_t)digits[c >> shift & 15];
    }
    return prp_op(s, '\n');
}

int prp_save_old_atom(prp_saver *s, PyObject *obj)
{
    if (obj == Py_None)
        return prp_op(s, OP_NONE);
    if (PyBool_Check(obj))
        return prp_out(s, obj == Py_True ? "I01\n" : "I00\n", 4);
    if (PyUnicode_CheckExact(obj))
        return write_escaped(s, obj);
    if (PyFloat_CheckExact(obj)) {
        if (!s->bin)
            return write_repr(s, OP_FLOAT, obj, "\n");
        if (prp_room(s, PRP_ROOM) < 0)
            return -1;
        s->p = prp_append_float(s->p, PyFloat_AS_DOUBLE(obj));
        return 0;
    }
    int overflow;
    long value = PyLong_AsLongAndOverflow(obj, &overflow);
    if (value == -1 && PyErr_Occurred())
        return -1;
    if (overflow || value != (int32_t)value)
        return write_repr(s, OP_LONG, obj, "L\n");
    if (s->bin)
        return prp_write_int(s, value);
    char text[32];
    return prp_out(s, text, (size_t)sprintf(text, "%c%ld\n", OP_INT, value));
}

static int save_call(prp_saver *s, PyObject *call, PyObject *obj)
{
    int status = call ? prp_save_reduce(s, call, obj) : -1;
    Py_XDECREF(call);
    return status;
}

int prp_save_old_set(prp_saver *s, PyObject *obj)
{
    PyObject *items = PRP_FOREIGN(PySequence_List(obj));
    return items ? save_call(s, PRP_FOREIGN(Py_BuildValue("(O(N))", Py_TYPE(obj), items)), obj) : -1;
}

/* Write bytes for protocols below 3, or a bytearray for protocols below 5. */
int prp_save_old_bytes(prp_saver *s, PyObject *obj)
{
    if (PyBytes_CheckExact(obj)) {
        if (PyBytes_GET_SIZE(obj) == 0)
            return save_call(s, PRP_FOREIGN(Py_BuildValue("(O())", (PyObject *)&PyBytes_Type)), obj);
        PyObject *text = PyUnicode_DecodeLatin1(PyBytes_AS_STRING(obj), PyBytes_GET_SIZE(obj), NULL);
        return text ? save_call(s, PRP_FOREIGN(Py_BuildValue("(O(NO))", prp_g.codecs_encode, text, prp_g.str_latin1)),
                                obj)
                    : -1;
    }
    if (PyByteArray_GET_SIZE(obj) == 0)
        return save_call(s, PRP_FOREIGN(Py_BuildValue("(O())", (PyObject *)&PyByteArray_Type)), obj);
    PyObject *bytes = PRP_FOREIGN(PyBytes_FromObject(obj));
    return bytes ? save_call(s, PRP_FOREIGN(Py_BuildValue("(O(N))", (PyObject *)&PyByteArray_Type, bytes)), obj) : -1;
}
