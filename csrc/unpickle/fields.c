/* Reads all attributes of an instance in one loop.
 *
 * Instances of one class have the same names in the same order (after the first instance, the stream has GETs of
 * these names), and most values are atoms. After the MARK of a pending state (state.c) a tight loop reads the values
 * of such fields; if all names match, the values go directly into the instance. A different field ends the loop: the
 * names and values read so far are pushed as the opcodes would have pushed them, and the opcode loop continues there.
 */
#include "unpickler.h"
#include "opcodes.h"

#if PRP_INTERNALS

#define MAX_FIELDS 64

static inline uint32_t le32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline PyObject *be_float(const uint8_t *p)
{
    uint64_t bits;
    double value;
    memcpy(&bits, p, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    bits = __builtin_bswap64(bits);
#endif
    memcpy(&value, &bits, 8);
    return PyFloat_FromDouble(value);
}

/* Read the atom at *p and advance *p. Return NULL without an exception if there is no complete atom. */
static inline PyObject *atom(prp_loader *L, const uint8_t **p, const uint8_t *end)
{
    const uint8_t *q = *p;
    if (end - q < 10)
        return NULL; /* leave the last bytes of a stream to the opcode loop */
    switch (*q) {
    case OP_BININT1:
        *p = q + 2;
        return PyLong_FromLong(q[1]);
    case OP_BININT2:
        *p = q + 3;
        return prp_int32_new(q[1] | q[2] << 8);
    case OP_BININT:
        *p = q + 5;
        return prp_int32_new((int32_t)le32(q + 1));
    case OP_BINFLOAT:
        *p = q + 9;
        return be_float(q + 1);
    case OP_NONE:
        *p = q + 1;
        return Py_NewRef(Py_None);
    case OP_NEWTRUE:
        *p = q + 1;
        return Py_NewRef(Py_True);
    case OP_NEWFALSE:
        *p = q + 1;
        return Py_NewRef(Py_False);
    case OP_SHORT_BINUNICODE: {
        size_t n = prp_load_byte(q + 1);
        const uint8_t *next = q + 2 + n;
        /* A str followed by another one or by a memo opcode may be the name of a global. */
        if ((size_t)(end - q) < n + 3 || *next == OP_SHORT_BINUNICODE || *next == OP_MEMOIZE)
            return NULL;
        *p = next;
        return prp_load_utf8(q + 2, n);
    }
    case OP_BINGET: {
        size_t index = prp_load_byte(q + 1);
        PyObject *entry = index < (size_t)L->memo.top ? L->memo.entries[index] : NULL;
        if (!entry || prp_load_tagged(entry))
            return NULL;
        *p = q + 2;
        return Py_NewRef(entry);
    }
    default:
        return NULL;
    }
}

/* Return whether the opcode at `p` is GET of this name. */
static inline bool gets_name(prp_loader *L, const uint8_t *p, const uint8_t *end, PyObject *name)
{
    if (end - p < 2 || *p != OP_BINGET)
        return false;
    size_t index = prp_load_byte(p + 1);
    PyObject *entry = index < (size_t)L->memo.top ? L->memo.entries[index] : NULL;
    if (PRP_LIKELY(entry == name))
        return true;
    return entry && !prp_load_tagged(entry) && PyUnicode_CheckExact(entry) && PyUnicode_IS_COMPACT_ASCII(entry) &&
           PyUnicode_IS_COMPACT_ASCII(name) && PyUnicode_GET_LENGTH(entry) == PyUnicode_GET_LENGTH(name) &&
           memcmp(PyUnicode_1BYTE_DATA(entry), PyUnicode_1BYTE_DATA(name), (size_t)PyUnicode_GET_LENGTH(name)) == 0;
}

/* Return the length of the opcodes that pass the state to BUILD, or 0. */
static inline int build_follows(const uint8_t *p, const uint8_t *end, prp_mark_kind kind)
{
    if (end - p < 3 || *p != OP_SETITEMS)
        return 0;
    if (kind == PRP_MARK_STATE)
        return p[1] == OP_BUILD ? 2 : 0;
    return p[1] == OP_TUPLE2 && p[2] == OP_BUILD ? 3 : 0;
}

/* Push the names and values read so far as the opcodes would have, and return 0 or -1. Consume `values` either way. */
static int push_pairs(prp_loader *L, PyObject *names, PyObject **values, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        while (L->limit - L->sp < 2)
            if (prp_load_grow_stack(L) < 0) {
                while (i < n)
                    Py_DECREF(values[i++]);
                return -1;
            }
        *L->sp++ = Py_NewRef(PyTuple_GET_ITEM(names, i));
        *L->sp++ = values[i];
    }
    return 0;
}

Py_ssize_t prp_load_fields(prp_loader *L, const uint8_t *const start, const uint8_t *end)
{
    /* No foreign code has run since we looked up the plan and pushed the mark, and none runs below. */
    Py_ssize_t number = L->mark_count - 1, below;
    const prp_mark *mark = &L->marks[number];
    const prp_class_plan *plan = mark->plan;
    PyObject *names = plan->names, *values[MAX_FIELDS];
    Py_ssize_t n = PyTuple_GET_SIZE(names), i = 0;
    const uint8_t *p = start;
    if (n > MAX_FIELDS)
        return 0;
    for (; i < n && gets_name(L, p, end, PyTuple_GET_ITEM(names, i)); i++) {
        const uint8_t *q = p + 2;
        if (!(values[i] = atom(L, &q, end)))
            break;
        p = q;
    }
    if (PyErr_Occurred()) {
        while (i > 0)
            Py_DECREF(values[--i]); /* atoms, or objects that the memo keeps alive */
        return -1;
    }
    int tail = i == n && mark->memo < 0 ? build_follows(p, end, mark->kind) : 0;
    if (!tail)
        return push_pairs(L, names, values, i) < 0 ? -1 : p - start;
    below = mark->kind == PRP_MARK_STATE ? 2 : 3;
    PyObject *obj = L->stack[mark->at - below];
    if (!prp_load_fill(plan, obj, values))
        return push_pairs(L, names, values, i) < 0 ? -1 : p - start;
    L->sp = L->stack + mark->at - below + 1; /* the instance is on top; None and the dict's empty slot are removed */
    if (below == 3)
        Py_DECREF(Py_None);
    L->mark_count = number;
    L->fence = L->stack + (number ? L->marks[number - 1].at : 0);
    return p + tail - start;
}

#endif
