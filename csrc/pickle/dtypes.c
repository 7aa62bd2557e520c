/* Writes numpy's dtypes of plain numbers in the standard form.
 *
 * A dtype has the same bytes in every stream. We create these bytes once per number type, by pickling numpy's built-in
 * dtype without memoization. We split these bytes at the objects that the rest of the stream may share: the module's
 * name, the class, the dtype itself and the byte-order character. So the stream equals that of the standard pickler,
 * except for unused memo entries.
 */
#include "dtypes.h"
#include "atoms.h"

#include "ndarray/api.h"

#ifndef NPY_NO_DEPRECATED_API
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#endif
#include <numpy/ndarraytypes.h>

#include <stdlib.h>

#define DTYPES 32

typedef struct {
    PyObject *own;                  /* owned: numpy's dtype; NULL before the first array of that type */
    PyObject *module, *cls, *order; /* owned: numpy's name, the class dtype, '<' or '|' */
    size_t name, called, made, sign,
        rest; /* offsets of the class's name, the arguments, the state, the byte order, and the end of the byte order */
    uint8_t *bytes;
    size_t len;
} kept_dtype;

static kept_dtype dtypes[DTYPES];

/* Pickle `obj` without memoizing anything; return the opcodes without PROTO and STOP. The caller frees the result. */
static uint8_t *pickled(PyObject *obj, size_t *len)
{
    prp_saver *other = prp_acquire();
    if (!other)
        return NULL;
    prp_saver_protocol(other, 5);
    other->framing = false;
    other->fast = true;
    uint8_t *bytes = NULL;
    if (prp_dump(other, obj) == 0) {
        *len = prp_out_len(other) - 3;
        if ((bytes = malloc(*len)))
            memcpy(bytes, other->base + 2, *len);
        else
            PyErr_NoMemory();
    }
    prp_release(other);
    return bytes;
}

/* Return the end of the SHORT_BINUNICODE at `at`; 0 if there is none. */
static size_t behind_string(const uint8_t *bytes, size_t len, size_t at)
{
    if (at + 2 > len || bytes[at] != OP_SHORT_BINUNICODE || bytes[at + 1] > len - at - 2)
        return 0;
    return at + 2 + bytes[at + 1];
}

/* Find the split positions in the opcodes `numpy` `dtype` STACK_GLOBAL, `f8` False True TUPLE3 REDUCE, MARK 3 `<`
 * ... */
static bool cut(kept_dtype *kept)
{
    const uint8_t *bytes = kept->bytes;
    size_t len = kept->len;
    kept->name = behind_string(bytes, len, 0);
    size_t global = kept->name ? behind_string(bytes, len, kept->name) : 0;
    if (!global || global + 1 > len || bytes[global] != OP_STACK_GLOBAL)
        return false;
    kept->called = global + 1;
    size_t arguments = behind_string(bytes, len, kept->called);
    const uint8_t call[] = {OP_NEWFALSE, OP_NEWTRUE, OP_TUPLE3, OP_REDUCE, OP_MARK, OP_BININT1, 3};
    if (!arguments || arguments + sizeof call > len || memcmp(bytes + arguments, call, sizeof call) != 0)
        return false;
    kept->made = arguments + 4;
    kept->sign = arguments + sizeof call;
    kept->rest = behind_string(bytes, len, kept->sign);
    if (kept->rest != kept->sign + 3)
        return false;
    kept->module = PyUnicode_DecodeUTF8((const char *)bytes + 2, bytes[1], NULL);
    if (kept->module)
        PyUnicode_InternInPlace(&kept->module);
    kept->cls = prp_numpy_attribute("dtype");
    kept->order =
        PyUnicode_FromStringAndSize((const char *)bytes + kept->sign + 2, 1); /* the shared str of that letter */
    return kept->module && kept->cls && kept->order;
}

static void drop(kept_dtype *kept)
{
    Py_CLEAR(kept->own);
    Py_CLEAR(kept->module);
    Py_CLEAR(kept->cls);
    Py_CLEAR(kept->order);
    free(kept->bytes);
    kept->bytes = NULL;
}

/* Return the cached form of numpy's built-in dtype of that number type. It has no bytes if numpy writes the dtype in a
 * form that this code does not know. Return NULL with an exception on failure. */
static const kept_dtype *kept_for(const PyArray_Descr *descr)
{
    kept_dtype *kept = &dtypes[descr->type_num], made = {0};
    if (kept->own)
        return kept;
    PyObject *cls = prp_numpy_attribute("dtype");
    made.own = cls ? PRP_FOREIGN(PyObject_CallFunction(cls, "C", descr->type)) : NULL;
    Py_XDECREF(cls);
    if (made.own && Py_IS_TYPE(made.own, Py_TYPE((PyObject *)descr))) /* each number type has its own class */
        made.bytes = pickled(made.own, &made.len);
    if (made.bytes && !PyErr_Occurred() && !cut(&made)) {
        free(made.bytes);
        made.bytes = NULL;
    }
    if (prp_forgive_refusal() < 0) {
        drop(&made);
        return NULL;
    }
    if (kept->own || !made.own) /* another thread has created it in the meantime */
        drop(&made);
    else
        *kept = made;
    return kept;
}

/* Return whether the bytes of numpy's built-in dtype describe `descr` completely. Other code may have set the state of
 * any dtype except the built-in one. */
static int like_own(const kept_dtype *kept, PyObject *descr)
{
    if (kept->own == descr)
        return kept->bytes != NULL;
    const prp_ndarray_api *numpy = kept->bytes ? prp_ndarray() : NULL;
    if (kept->bytes && !numpy)
        return -1;
    return numpy && numpy->dtype_like_own(descr);
}

/* Write a string or class that the stream may share: its opcodes the first time, then a GET. The caller has reserved
 * the room. */
int prp_put_shared(prp_saver *s, PyObject *obj, const uint8_t *bytes, size_t len)
{
    int64_t index = prp_memo_add(&s->memo, obj);
    if (index >= 0) {
        s->p = prp_put_get(s->p, (uint32_t)index);
        return 0;
    }
    if (index == PRP_MEMO_ERROR)
        return -1;
    memcpy(s->p, bytes, len);
    s->p += len;
    *s->p++ = OP_MEMOIZE;
    return 0;
}

static void put(prp_saver *s, const uint8_t *bytes, size_t len)
{
    memcpy(s->p, bytes, len);
    s->p += len;
}

static int write_kept(prp_saver *s, const kept_dtype *kept, PyObject *descr)
{
    const uint8_t *bytes = kept->bytes;
    if (prp_room(s, kept->len + PRP_ROOM) < 0)
        return -1;
    int64_t index = prp_memo_get(&s->memo, kept->cls);
    if (index >= 0)
        s->p = prp_put_get(s->p, (uint32_t)index);
    else if (prp_put_shared(s, kept->module, bytes, kept->name) < 0 ||
             prp_put_shared(s, kept->cls, bytes + kept->name, kept->called - kept->name) < 0)
        return -1;
    if (prp_put_shared(s, descr, bytes + kept->called, kept->made - kept->called) < 0)
        return -1;
    put(s, bytes + kept->made, kept->sign - kept->made);
    if (prp_put_shared(s, kept->order, bytes + kept->sign, kept->rest - kept->sign) < 0)
        return -1;
    put(s, bytes + kept->rest, kept->len - kept->rest);
    return 0;
}

int prp_save_dtype(prp_saver *s, PyObject *descr)
{
    int64_t index = prp_memo_get(&s->memo, descr);
    if (index >= 0)
        return prp_write_get(s, (uint32_t)index);
    int number = ((PyArray_Descr *)descr)->type_num;
    char order = ((PyArray_Descr *)descr)->byteorder;
    if (!s->exact && !s->persistent_id && !s->reducer_override && !s->dispatch_table && number >= 0 &&
        number < DTYPES && PyTypeNum_ISNUMBER(number) && (order == '=' || order == '|')) {
        prp_plan *plan = prp_plan_for(s, Py_TYPE(descr), descr);
        if (!plan)
            return -1;
        bool plain = !plan->registered && !plan->table && plan->kind == PLAN_GENERIC;
        prp_plan_drop(plan);
        if (plain) {
            const kept_dtype *kept = kept_for((PyArray_Descr *)descr);
            int like = kept ? like_own(kept, descr) : -1;
            if (like != 0)
                return like < 0 ? -1 : write_kept(s, kept, descr);
        }
    }
    return prp_save(s, descr);
}
