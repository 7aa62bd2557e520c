/* Creates arrays from the streams that `put` writes (array_template.h).
 *
 * A program typically loads many arrays of a few kinds. So a small direct-mapped table caches streams and their
 * parsed form: if a new stream has the same bytes as a cached one, we do not parse it. The table contains only values
 * that depend on the bytes alone: dtype, shape, strides, and the required buffer size. Buffer, owner and array are
 * new in each call.
 *
 * The bytes may be in shared memory and change while we read them. A successful comparison has read exactly the bytes
 * of the table's copy, and afterwards we use only that copy. If we must parse a stream, we copy it first.
 */
#include "ndarray.h"

#define READINGS 64
#define KEY_MIN 32 /* the shortest stream has 33 bytes */
#define KEY_MAX 64
#define FEW_DIMS 4

/* Invariant: if descr != NULL, then descr is owned and the other fields are the parsed form of the stream in key[0 ..
 * len). */
typedef struct {
    PyArray_Descr *descr;
    prp_dtype_marks marks;
    size_t end;     /* minimum size of the buffer in bytes        */
    uint64_t stamp; /* changes each time the entry is written */
    uint8_t len, nd;
    bool has_strides;
    npy_intp shape[FEW_DIMS], strides[FEW_DIMS];
    uint8_t key[KEY_MAX];
} reading;

static reading readings[READINGS];
static uint64_t stamps;

static inline uint64_t word_at(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof(word));
    return word;
}

/* Hash only shape and dtype, because most streams differ only in these. */
static inline reading *place(const uint8_t *stream, size_t len)
{
    uint64_t mixed = word_at(stream + PRP_ARRAY_PREFIX_LEN) ^ word_at(stream + len - 14) * 0x9E3779B97F4A7C15u;
    return &readings[mixed * 0x9E3779B97F4A7C15u >> 58];
}

_Static_assert(READINGS == 64, "place() makes six bits");
_Static_assert(PRP_ARRAY_PREFIX_LEN + 8 <= KEY_MIN, "place() reads no byte past the shortest key");

static inline bool same(const reading *r, const uint8_t *stream, size_t len)
{
    return r->len == len && memcmp(r->key, stream, KEY_MIN) == 0 &&
           memcmp(r->key + len - KEY_MIN, stream + len - KEY_MIN, KEY_MIN) == 0;
}

/* Insert a stream into the table. `read` is the parsed form of the private copy `key`. */
static void keep(const uint8_t *key, size_t len, const prp_array_template *read, PyArray_Descr *descr)
{
    const npy_intp *shape = (const npy_intp *)read->shape;
    const npy_intp *strides = read->has_strides ? (const npy_intp *)read->strides : NULL;
    size_t end;
    if (read->nd > FEW_DIMS || !prp_array_end(shape, strides, read->nd, (size_t)PyDataType_ELSIZE(descr), 0, &end))
        return;
    reading *r = place(key, len);
    PyArray_Descr *before = r->descr;
    r->descr = (PyArray_Descr *)Py_NewRef(descr);
    prp_dtype_mark(descr, &r->marks);
    r->end = end;
    r->stamp = ++stamps;
    r->len = (uint8_t)len;
    r->nd = (uint8_t)read->nd;
    r->has_strides = read->has_strides;
    for (int i = 0; i < read->nd; i++) {
        r->shape[i] = shape[i];
        r->strides[i] = strides ? strides[i] : 0;
    }
    memcpy(r->key, key, len);
    PRP_FOREIGN_VOID(Py_XDECREF(before));
}

_Static_assert(sizeof(npy_intp) == sizeof(int64_t), "the template's ints are used as numpy's");

/* Fire the audit event that the general unpickler fires for the only name in the stream. Hooks may run any code. */
static inline int audit(void)
{
    return PRP_FOREIGN(PySys_Audit("pickle.find_class", "ss", "numpy", "ndarray"));
}

typedef enum { UNAUDITED, AUDITED } audit_state; /* whether the audit event has been fired */

/* Read a stream that is not in the table. */
static __attribute__((noinline)) PyObject *read_stream(const uint8_t *stream, size_t len, audit_state state,
                                                       const uint8_t *data, size_t data_len, PyObject *owner, int flags)
{
    prp_array_template t;
    uint8_t key[PRP_ARRAY_STREAM_MAX];
    if (len == 0 || len > sizeof(key))
        return NULL;
    memcpy(key, stream, len);
    __asm__("" : "+m"(key));
    if (!prp_array_template_read(key, len, &t))
        return NULL;
    PyArray_Descr *descr = prp_dtype_find(t.dtype, t.dtype_len);
    if (!descr)
        return NULL;
    PyObject *array = NULL;
    if (state == AUDITED || audit() == 0) {
        if (len >= KEY_MIN && len <= KEY_MAX)
            keep(key, len, &t, descr);
        array = prp_array_build(descr, t.nd, (const npy_intp *)t.shape,
                                t.has_strides ? (const npy_intp *)t.strides : NULL, 0, data, data_len, owner, flags);
    }
    Py_DECREF(descr);
    return array;
}

PyObject *prp_array_from_stream(const uint8_t *stream, size_t len, const uint8_t *data, size_t data_len,
                                PyObject *owner, int flags)
{
    if (len < KEY_MIN || len > KEY_MAX)
        return read_stream(stream, len, UNAUDITED, data, data_len, owner, flags);
    reading *r = place(stream, len);
    if (!r->descr || !same(r, stream, len))
        return read_stream(stream, len, UNAUDITED, data, data_len, owner, flags);
    uint64_t stamp = r->stamp;
    if (audit() < 0)
        return NULL;
    /* Either the hook has read other arrays, or other code has set the state of the dtype of an earlier array. */
    if (r->stamp != stamp || !prp_dtype_intact(r->descr, &r->marks))
        return read_stream(stream, len, AUDITED, data, data_len, owner, flags);
    if (r->end > data_len)
        return NULL;
    /* Until numpy has its own reference to the dtype and its own copy of the shape, only numpy's code runs. */
    return prp_array_over(r->descr, r->nd, r->shape, r->has_strides ? r->strides : NULL, data, owner, flags);
}
