/* Converts plain dtypes to their names, and names to dtypes.
 *
 * A dtype is plain if its `str` describes it completely: a number, S, U, V, M8 or m8, without fields, sub-array,
 * metadata or its own scalar type (numpy.record). We compose the name from the descriptor's fields, because `dtype.str`
 * costs more than the rest of a put. numpy converts each name to a dtype once; a small direct-mapped cache then stores
 * the dtype. We check that the dtype is plain, so a stream cannot name a dtype that contains references.
 */
#include "ndarray.h"

#define CACHE_SLOTS 64

typedef struct {
    uint8_t len;
    char name[PRP_ARRAY_MAX_DTYPE];
    PyArray_Descr *descr; /* owned; kept until the process ends, like numpy's own singletons */
    prp_dtype_marks marks;
} cache_slot;

static cache_slot cache[CACHE_SLOTS];

/* The standard scalar type of each built-in number type; a dtype may have a different scalar type. */
static PyTypeObject *scalar_types[NPY_HALF + 1];

int prp_dtype_ready(void)
{
    for (int num = 0; num <= NPY_HALF; num++) {
        PyArray_Descr *descr = PyArray_DescrFromType(num);
        if (!descr)
            return -1;
        scalar_types[num] = descr->typeobj;
        Py_DECREF(descr);
    }
    return 0;
}

bool prp_dtype_is_plain(PyArray_Descr *descr)
{
    int num = descr->type_num;
    return num >= 0 && num <= NPY_HALF && num != NPY_OBJECT && descr->typeobj == scalar_types[num] &&
           PyDataType_ELSIZE(descr) > 0 && !PyDataType_HASFIELDS(descr) && !PyDataType_HASSUBARRAY(descr) &&
           !PyDataType_METADATA(descr);
}

static const PyArray_DatetimeMetaData *unit_of(PyArray_Descr *descr)
{
    if (descr->type_num != NPY_DATETIME && descr->type_num != NPY_TIMEDELTA)
        return NULL;
    const PyArray_DatetimeDTypeMetaData *c = (const void *)PyDataType_C_METADATA(descr);
    return c ? &c->meta : NULL;
}

void prp_dtype_mark(PyArray_Descr *descr, prp_dtype_marks *marks)
{
    const PyArray_DatetimeMetaData *unit = unit_of(descr);
    int type = descr->type_num;
    PyArray_Descr *own = PyTypeNum_ISNUMBER(type) || PyTypeNum_ISBOOL(type) ? PyArray_DescrFromType(type) : NULL;
    *marks = (prp_dtype_marks){.elsize = PyDataType_ELSIZE(descr),
                               .alignment = PyDataType_ALIGNMENT(descr),
                               .flags = PyDataType_FLAGS(descr),
                               .base = unit ? unit->base : NPY_FR_ERROR,
                               .num = unit ? unit->num : 0,
                               .order = descr->byteorder,
                               .singleton = own == descr};
    Py_XDECREF(own);
}

/* When code sets the state of a dtype, numpy changes the dtype in place, unless it is one of numpy's singletons. */
bool prp_dtype_unchanged(PyArray_Descr *descr, const prp_dtype_marks *marks)
{
    if (PyDataType_ELSIZE(descr) != marks->elsize || PyDataType_ALIGNMENT(descr) != marks->alignment ||
        PyDataType_FLAGS(descr) != marks->flags || descr->byteorder != marks->order || !prp_dtype_is_plain(descr))
        return false;
    if (marks->base == NPY_FR_ERROR)
        return true;
    const PyArray_DatetimeMetaData *unit = unit_of(descr);
    return unit && unit->base == marks->base && unit->num == marks->num;
}

bool prp_dtype_like_own(PyObject *descr)
{
    PyArray_Descr *own = PyArray_DescrFromType(((PyArray_Descr *)descr)->type_num);
    if (!own) {
        PyErr_Clear();
        return false;
    }
    prp_dtype_marks marks;
    prp_dtype_mark(own, &marks);
    Py_DECREF(own);
    return prp_dtype_unchanged((PyArray_Descr *)descr, &marks);
}

static char *put_decimal(char *p, uint64_t value)
{
    char digits[20];
    int n = 0;
    do {
        digits[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (n)
        *p++ = digits[--n];
    return p;
}

static const char *unit_name(NPY_DATETIMEUNIT unit)
{
    switch (unit) {
    case NPY_FR_Y:
        return "Y";
    case NPY_FR_M:
        return "M";
    case NPY_FR_W:
        return "W";
    case NPY_FR_D:
        return "D";
    case NPY_FR_h:
        return "h";
    case NPY_FR_m:
        return "m";
    case NPY_FR_s:
        return "s";
    case NPY_FR_ms:
        return "ms";
    case NPY_FR_us:
        return "us";
    case NPY_FR_ns:
        return "ns";
    case NPY_FR_ps:
        return "ps";
    case NPY_FR_fs:
        return "fs";
    case NPY_FR_as:
        return "as";
    default:
        return NULL;
    }
}

/* Write `dtype.str` of a plain dtype to `out` (PRP_ARRAY_MAX_DTYPE bytes of room); return its length, or 0 if the dtype
 * is not plain. */
size_t prp_dtype_name(PyArray_Descr *descr, char *out)
{
    char *p = out;
    char order = descr->byteorder;
    *p++ = order == '=' ? NPY_NATBYTE : order;
    *p++ = descr->kind;
    uint64_t size = (uint64_t)PyDataType_ELSIZE(descr);
    p = put_decimal(p, descr->type_num == NPY_UNICODE ? size / 4 : size);
    if (descr->type_num == NPY_DATETIME || descr->type_num == NPY_TIMEDELTA) {
        const PyArray_DatetimeMetaData *meta = unit_of(descr);
        if (!meta)
            return 0;
        if (meta->base != NPY_FR_GENERIC) {
            const char *unit = unit_name(meta->base);
            if (!unit || meta->num < 1)
                return 0;
            *p++ = '[';
            if (meta->num != 1)
                p = put_decimal(p, (uint64_t)meta->num);
            while (*unit)
                *p++ = *unit++;
            *p++ = ']';
        }
    }
    return (size_t)(p - out);
}

/* Return the plain dtype with this name as a new reference, or NULL without an exception if there is no such dtype. */
PyArray_Descr *prp_dtype_find(const char *given, size_t len)
{
    char name[PRP_ARRAY_MAX_DTYPE];
    if (len < 2 || len > sizeof(name))
        return NULL;
    memcpy(name, given, len); /* `given` may be in shared memory, so we validate our private copy */
    __asm__("" : "+m"(name));
    /* Accept only names of byte order, kind, and size or unit. numpy may parse other names as an expression ("f8,f8")
     * or emit a warning, and both run Python code. */
    if (!memchr("<>|", name[0], 3) || !memchr("biufcmMSUV", name[1], 10))
        return NULL;
    for (size_t i = 2; i < len; i++)
        if (!((name[i] >= '0' && name[i] <= '9') || (name[i] >= 'a' && name[i] <= 'z') || memchr("YMWD[]", name[i], 6)))
            return NULL;
    uint32_t hash = 0;
    for (size_t i = 0; i < len; i++)
        hash = hash * 31 + (uint8_t)name[i];
    cache_slot *slot = &cache[(hash ^ hash >> 7) % CACHE_SLOTS];
    if (slot->descr && slot->len == len && memcmp(slot->name, name, len) == 0 &&
        prp_dtype_intact(slot->descr, &slot->marks))
        return (PyArray_Descr *)Py_NewRef(slot->descr);

    /* Accept only names that `prp_dtype_name` writes: numpy must not parse expressions like "f8,f8" or "(3,)f8"
     * here. */
    PyObject *text = PyUnicode_DecodeASCII(name, (Py_ssize_t)len, "strict");
    PyArray_Descr *descr = NULL;
    if (text && PRP_FOREIGN(PyArray_DescrConverter(text, &descr)) == NPY_SUCCEED && prp_dtype_is_plain(descr) &&
        !PyDataType_REFCHK(descr)) {
        char canonical[PRP_ARRAY_MAX_DTYPE + 32];
        if (prp_dtype_name(descr, canonical) != len || memcmp(canonical, name, len) != 0)
            Py_CLEAR(descr);
    } else {
        Py_CLEAR(descr);
    }
    Py_XDECREF(text);
    /* If numpy rejects the name, leave the error to the general unpickler. */
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception) && !PyErr_ExceptionMatches(PyExc_MemoryError) &&
        !PyErr_ExceptionMatches(PyExc_RecursionError))
        PyErr_Clear();
    if (!descr)
        return NULL;
    PyArray_Descr *evicted = slot->descr;
    slot->descr = (PyArray_Descr *)Py_NewRef(descr);
    slot->len = (uint8_t)len;
    memcpy(slot->name, name, len);
    prp_dtype_mark(descr, &slot->marks);
    PRP_FOREIGN_VOID(Py_XDECREF(evicted)); /* a stream may have added metadata to this dtype */
    return descr;
}

/* Return a separate object, as numpy.dtype(name, False, True) does, because a stream can set the state of any dtype
 * that it can access. */
PyObject *prp_plain_dtype(const char *name, size_t len)
{
    PyArray_Descr *descr = prp_dtype_find(name, len);
    PyObject *own = descr ? (PyObject *)PyArray_DescrNew(descr) : NULL;
    Py_XDECREF(descr);
    return own;
}

PyObject *prp_shared_dtype(const char *name, size_t len)
{
    return (PyObject *)prp_dtype_find(name, len);
}

PyObject *prp_dtype_from_name(const char *name, size_t len)
{
    PyArray_Descr *descr = prp_dtype_find(name, len);
    if (descr || PyErr_Occurred())
        return (PyObject *)descr;
    PyObject *text = PyUnicode_DecodeUTF8(name, (Py_ssize_t)len, "strict");
    if (!text || PyArray_DescrConverter(text, &descr) != NPY_SUCCEED)
        descr = NULL;
    Py_XDECREF(text);
    return (PyObject *)descr;
}
