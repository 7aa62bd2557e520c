/* The opcode loop.
 *
 * The stream is a program for a stack machine; one loop without recursion executes the program in one pass. The input
 * position and the stack pointer are in registers. We write both back to the machine (SAVE) before any code that may
 * read it, and reload both (RELOAD) after any code that may have changed the machine. We execute each of these common
 * sequences in one step if all its bytes are available:
 *
 *     EMPTY_LIST / EMPTY_DICT [memo] MARK      the container is created when its size is known (pending.c)
 *     NEWOBJ [memo] EMPTY_DICT [memo] MARK     ... and its contents go into the instance (state.c)
 *     name name STACK_GLOBAL                   looked up by bytes (globals.c)
 *     callable MARK ... TUPLE REDUCE           numpy's arrays as a whole (whole_arrays.c)
 *     TUPLE REDUCE, TUPLE NEWOBJ               arguments stay on the stack (calls.c)
 *
 * Such a step has the same result as its opcodes and is only faster: if a stream ends early or continues differently,
 * the loop executes the opcodes one by one.
 */
#include "unpickler.h"
#include "ascii.h"
#include "opcodes.h"

#define HIGHEST_PROTOCOL 5
#define SMALL_STREAM 1024 /* in bytes; a smaller stream creates too few containers to trigger a collection */

static inline uint32_t le16(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8;
}

static inline uint32_t le32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap32(v);
#endif
    return v;
}

static inline uint64_t le64(const uint8_t *p)
{
    return le32(p) | (uint64_t)le32(p + 4) << 32;
}

static inline double be_double(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    double d;
    memcpy(&d, &v, 8);
    return d;
}

/* Return the length of the MEMOIZE or BINPUT opcode at `p`, or 0 for any other opcode. Set *index to its memo index, or
 * -1. */
static inline int peek_memo(prp_loader *L, const uint8_t *p, const uint8_t *end, Py_ssize_t used, Py_ssize_t *index)
{
    *index = -1;
    if (p < end && *p == OP_MEMOIZE) {
        *index = used;
        return 1;
    }
    if (end - p >= 2 && *p == OP_BINPUT) {
        *index = p[1];
        return 2;
    }
    if (end - p >= 5 && *p == OP_LONG_BINPUT) {
        *index = le32(p + 1);
        return 5;
    }
    return 0;
}

/* If a MARK follows EMPTY_LIST or EMPTY_DICT, push the pending container and the mark, and return the length consumed.
 * Return 0 if the caller must create the container now, -1 on failure. `p` points after the opcode. */
static inline int push_pending(prp_loader *L, const uint8_t *p, const uint8_t *end, prp_mark_kind kind,
                               const prp_class_plan *plan)
{
    Py_ssize_t memo;
    int taken = peek_memo(L, p, end, L->memo.used, &memo);
    if (p + taken >= end || p[taken] != OP_MARK)
        return 0;
    prp_load_memo *m = &L->memo;
    bool next = memo == m->top && memo == m->used && memo < m->capacity && !m->sparse;
    /* If the memo index is in use already, the loop must execute the opcodes one by one, because setting the entry
     * releases an object, which may run foreign code. */
    if (memo >= 0 && PRP_UNLIKELY(!next) && !prp_load_memo_reserve(m, (size_t)memo))
        return 0;
    if (PRP_UNLIKELY(L->sp == L->limit) && prp_load_grow_stack(L) < 0)
        return -1;
    *L->sp++ = NULL;
    if (prp_load_push_mark(L, kind, memo, plan) < 0) {
        L->sp--;
        return -1;
    }
    if (memo >= 0) {
        m->entries[memo] = (PyObject *)((uintptr_t)(L->mark_count - 1) << 2 | PRP_MEMO_TAG_PENDING);
        m->top += next;
        m->used++;
    }
    return taken + 1;
}

/* Call this after creating and pushing an instance: if its state follows, make the state pending and read as many
 * fields as possible. Return the length consumed, or -1. */
static inline Py_ssize_t push_state(prp_loader *L, const uint8_t *p, const uint8_t *end, PyObject *obj)
{
    Py_ssize_t memo;
    int taken = peek_memo(L, p, end, L->memo.used, &memo);
    const uint8_t *q = p + taken;
    if (end - q < 3 || (*q != OP_EMPTY_DICT && (*q != OP_NONE || q[1] != OP_EMPTY_DICT)))
        return 0;
    const prp_class_plan *plan = prp_plan_for(L, Py_TYPE(obj));
    if (!plan)
        return -1;
    bool slots = *q == OP_NONE;
    if (plan->learned != (slots ? PRP_LEARNED_SLOTS : PRP_LEARNED_DICT))
        return 0;
    if (memo >= 0) {
        if (!prp_load_memo_reserve(&L->memo, (size_t)memo))
            return 0;
        L->memo.entries[memo] = Py_NewRef(obj);
        L->memo.used++;
    }
    if (slots) {
        if (PRP_UNLIKELY(L->sp == L->limit) && prp_load_grow_stack(L) < 0)
            return -1;
        *L->sp++ = Py_NewRef(Py_None);
    }
    q += 1 + slots;
    int more = push_pending(L, q, end, slots ? PRP_MARK_SLOTS : PRP_MARK_STATE, plan);
    if (more < 0)
        return -1;
    if (more == 0) {
        /* No MARK follows: nothing is pending, and EMPTY_DICT creates the dict. */
        if (slots) {
            L->sp--;
            Py_DECREF(Py_None);
        }
        return taken;
    }
#if PRP_INTERNALS
    q += more;
    Py_ssize_t fields = prp_load_fields(L, q, end);
    return fields < 0 ? -1 : (q - p) + fields;
#else
    return (q - p) + more;
#endif
}

/* Call this after SETITEMS on a pending state: return the length of the opcodes that pass the state to BUILD, or 0 if
 * other opcodes follow. */
static inline int peek_build(prp_loader *L, const uint8_t *p, const uint8_t *end, prp_mark_kind kind, Py_ssize_t *pair)
{
    *pair = -1;
    if (kind == PRP_MARK_STATE)
        return p < end && *p == OP_BUILD ? 1 : 0;
    if (p >= end || *p != OP_TUPLE2)
        return 0;
    int taken = 1 + peek_memo(L, p + 1, end, L->memo.used, pair);
    if (*pair > L->memo.used || p + taken >= end || p[taken] != OP_BUILD)
        return 0;
    return taken + 1;
}

/* Store `made`, the container that was pending at the last mark, in its stack slot and memo entry. */
static inline void finish_pending(prp_loader *L, PyObject *made)
{
    Py_ssize_t number = L->mark_count - 1;
    prp_mark *mark = &L->marks[number];
    L->stack[mark->at - 1] = made;
    if (mark->memo >= 0 && L->memo.entries[mark->memo] == (PyObject *)((uintptr_t)number << 2 | PRP_MEMO_TAG_PENDING))
        L->memo.entries[mark->memo] = Py_NewRef(made);
    L->sp = L->stack + mark->at;
    L->mark_count = number;
    L->fence = L->stack + (number ? L->marks[number - 1].at : 0);
}

/* Execute APPENDS on an existing list. */
static int append_above_mark(prp_loader *L)
{
    Py_ssize_t at = prp_load_pop_mark(L);
    return at < 0 ? -1 : prp_load_appends(L, at);
}

static int finish_list(prp_loader *L)
{
    const prp_mark *mark = &L->marks[L->mark_count - 1];
    Py_ssize_t at = mark->at, n = L->sp - L->stack - at;
    PyObject *list = PRP_FOREIGN(PyList_New(n));
    if (!list)
        return -1;
    if (PRP_UNLIKELY(mark->kind != PRP_MARK_LIST)) {
        /* Other code read the memo entry of the container in the meantime, and so created the container before us. */
        Py_DECREF(list);
        return append_above_mark(L);
    }
    if (n)
        memcpy(((PyListObject *)list)->ob_item, L->stack + at, (size_t)n * sizeof(PyObject *));
    finish_pending(L, list);
    return 0;
}

/* Add the pairs from `at` on to the existing dict below them. */
static int fill_below(prp_loader *L, Py_ssize_t at)
{
    if (prp_load_dict_fill(L, L->stack[at - 1], L->stack + at, (L->sp - L->stack - at) / 2) < 0)
        return -1;
    return prp_load_clear_stack(L, at);
}

static int finish_dict(prp_loader *L)
{
    const prp_mark *mark = &L->marks[L->mark_count - 1];
    prp_mark_kind kind = mark->kind;
    Py_ssize_t at = mark->at;
    PyObject **first = L->stack + at;
    Py_ssize_t n = L->sp - first;
    if (n % 2) {
        prp_load_malformed("odd number of items for SETITEMS");
        return -1;
    }
    bool moved = false;
    PyObject *dict = prp_load_dict_of(L, first, n / 2, &moved);
    if (dict && PRP_LIKELY(mark->kind == kind)) {
        finish_pending(L, dict);
        /* Releasing keys runs no foreign code. Releasing a value frees it only if its key occurred twice. */
        for (Py_ssize_t i = 0; i < n; i += 2)
            Py_DECREF(first[i]);
        int failed = 0;
        for (Py_ssize_t i = moved ? n : 1; i < n; i += 2)
            failed |= prp_load_drop(L, first[i]);
        return failed;
    }
    if (dict) {
        /* Other code read the memo entry of the container in the meantime, and so created the container before us. */
        for (Py_ssize_t i = 1; moved && i < n; i += 2)
            Py_INCREF(first[i]);
        Py_DECREF(dict);
    } else if (PyErr_Occurred()) {
        return -1;
    }
    /* Create the dict first: filling the dict runs methods of the keys, and these methods may read the dict from the
     * memo. */
    return prp_load_pop_mark(L) < 0 ? -1 : fill_below(L, at);
}

static PyObject *load_long(const uint8_t *data, size_t n)
{
    return n == 0 ? PyLong_FromLong(0) : prp_long_from_bytes(data, n);
}

static PyObject *stack_tuple(PyObject **first, Py_ssize_t n)
{
    PyObject *tuple = PRP_FOREIGN(PyTuple_New(n));
    if (tuple)
        memcpy(((PyTupleObject *)tuple)->ob_item, first, (size_t)n * sizeof(PyObject *));
    return tuple;
}

/* Execute PUT, whose index is text; the opcode itself has been consumed already. */
static int text_put(prp_loader *L)
{
    Py_ssize_t index;
    if (L->sp <= L->fence) /* check this before parsing the index, to raise the same exception as pickle */
        return prp_load_underflow(L);
    if (prp_load_text_index(L, &index) < 0)
        return -1;
    if (index < 0) {
        PyErr_SetString(PyExc_ValueError, "negative PUT argument");
        return -1;
    }
    return prp_load_memo_put(L, (size_t)index, L->sp[-1]);
}

static PyObject *text_get(prp_loader *L)
{
    Py_ssize_t index;
    if (prp_load_text_index(L, &index) < 0)
        return NULL;
    if (index < 0)
        return prp_load_malformed("Memo value not found at index %zd", index);
    return prp_load_memo_get_slow(L, (size_t)index);
}

static PyObject *text_global(prp_loader *L)
{
    PyObject *module = prp_load_text_name(L), *name = module ? prp_load_text_name(L) : NULL;
    PyObject *value = name ? prp_load_global(L, module, name) : NULL;
    Py_XDECREF(module);
    Py_XDECREF(name);
    return value;
}

static PyObject *load_inst(prp_loader *L)
{
    Py_ssize_t at = prp_load_pop_mark(L);
    if (at < 0)
        return NULL;
    PyObject *module = prp_load_text_name(L), *name = module ? prp_load_text_name(L) : NULL;
    PyObject *cls = name ? prp_load_global(L, module, name) : NULL;
    Py_XDECREF(module);
    Py_XDECREF(name);
    if (!cls)
        return NULL;
    PyObject *args = stack_tuple(L->stack + at, L->sp - L->stack - at), *obj = NULL;
    if (args) {
        L->sp = L->stack + at;
        obj = prp_load_instantiate(L, cls, args);
        PRP_FOREIGN_VOID(Py_DECREF(args));
    }
    PRP_FOREIGN_VOID(Py_DECREF(cls));
    prp_load_own(L);
    return obj;
}

static PyObject *load_obj(prp_loader *L)
{
    Py_ssize_t at = prp_load_pop_mark(L);
    if (at < 0)
        return NULL;
    if (L->sp - L->stack - at < 1) {
        prp_load_underflow(L);
        return NULL;
    }
    PyObject *args = stack_tuple(L->stack + at + 1, L->sp - L->stack - at - 1);
    if (!args)
        return NULL;
    L->sp = L->stack + at;
    PyObject *cls = *L->sp, *obj = prp_load_instantiate(L, cls, args);
    PRP_FOREIGN_VOID(Py_DECREF(cls));
    PRP_FOREIGN_VOID(Py_DECREF(args));
    prp_load_own(L);
    return obj;
}

static PyObject *load_frozenset(prp_loader *L)
{
    Py_ssize_t at = prp_load_pop_mark(L);
    if (at < 0)
        return NULL;
    if (prp_load_foreign(L) < 0)
        return NULL;
    PyObject *items = stack_tuple(L->stack + at, L->sp - L->stack - at);
    if (!items)
        return NULL;
    L->sp = L->stack + at;
    PyObject *set = PRP_FOREIGN(PyFrozenSet_New(items));
    PRP_FOREIGN_VOID(Py_DECREF(items));
    prp_load_own(L);
    return set;
}

static PyObject *load_dict(prp_loader *L)
{
    Py_ssize_t at = prp_load_pop_mark(L);
    if (at < 0)
        return NULL;
    Py_ssize_t n = L->sp - L->stack - at;
    if (n % 2)
        return prp_load_malformed("odd number of items for DICT");
    PyObject *dict = PRP_FOREIGN(PyDict_New());
    if (dict && (prp_load_dict_fill(L, dict, L->stack + at, n / 2) < 0 || prp_load_clear_stack(L, at) < 0))
        Py_CLEAR(dict);
    return dict;
}

/* Execute NEWOBJ or NEWOBJ_EX with arguments that are objects on the stack. */
static PyObject *load_newobj(prp_loader *L, bool ex)
{
    if (L->sp - L->fence < (ex ? 3 : 2)) {
        /* The cleanup after the failed load releases the rest of the stack. */
        prp_load_underflow(L);
        return NULL;
    }
    PyObject *kwargs = ex ? *--L->sp : NULL, *args = *--L->sp, *cls = *--L->sp;
    PyObject *obj = !ex && PyTuple_CheckExact(args)
                        ? prp_load_new_fused(L, cls, ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args), args)
                        : prp_load_new(L, cls, args, kwargs);
    PyObject *used[3] = {cls, args, kwargs};
    for (int i = 0; i < 2 + ex; i++)
        if (prp_load_drop(L, used[i]) < 0)
            Py_CLEAR(obj);
    return obj;
}

static PyObject *load_stack_global(prp_loader *L)
{
    if (L->sp - L->fence < 2) {
        prp_load_underflow(L);
        return NULL;
    }
    PyObject *name = *--L->sp, *module = *--L->sp, *value = NULL;
    if (PyUnicode_CheckExact(name) && PyUnicode_CheckExact(module))
        value = prp_load_global(L, module, name);
    else
        prp_load_malformed("STACK_GLOBAL requires str");
    if (prp_load_drop(L, module) < 0)
        Py_CLEAR(value);
    if (prp_load_drop(L, name) < 0)
        Py_CLEAR(value);
    return value;
}

/* If another short string and STACK_GLOBAL follow the string of `n` bytes at `p`, consume them all and return the
 * object, or NULL with an exception. If other opcodes follow, set *next to NULL. */
static PyObject *fused_global(prp_loader *L, const uint8_t *p, const uint8_t *end, size_t n, const uint8_t **next)
{
    const uint8_t *q = p + n;
    *next = NULL;
    bool first_memo = q < end && *q == OP_MEMOIZE;
    q += first_memo;
    if (end - q < 3 || *q != OP_SHORT_BINUNICODE || (size_t)(end - q) < 3 + (size_t)q[1])
        return NULL;
    size_t name_len = q[1];
    const uint8_t *name = q + 2, *after = name + name_len;
    bool second_memo = *after == OP_MEMOIZE;
    after += second_memo;
    if (after >= end || *after != OP_STACK_GLOBAL)
        return NULL;
    *next = L->p = after + 1;
    PyObject *module_text = NULL, *name_text = NULL;
    PyObject *value = prp_load_global_bytes(L, p, n, name, name_len, first_memo ? &module_text : NULL,
                                            second_memo ? &name_text : NULL);
    if (value &&
        ((first_memo && prp_load_memoize(L, module_text) < 0) || (second_memo && prp_load_memoize(L, name_text) < 0)))
        Py_CLEAR(value);
    Py_XDECREF(module_text);
    Py_XDECREF(name_text);
    return value;
}

/* If the opcodes of `type(int)` follow and the plan knows that Enum member, return 1, set *member to a new reference
 * and advance *at. Return 0 if it is not known, -1 on failure. */
static inline int whole_enum(prp_loader *L, PyTypeObject *type, const uint8_t **at, const uint8_t *end,
                             PyObject **member)
{
    const uint8_t *p = *at;
    uint32_t value;
    if (end - p < 5)
        return 0;
    if (*p == OP_BININT1) {
        value = p[1];
        p += 2;
    } else if (*p == OP_BININT2) {
        value = le16(p + 1);
        p += 3;
    } else {
        return 0;
    }
    if (p[0] != OP_TUPLE1 || p[1] != OP_REDUCE)
        return 0;
    *member = prp_load_enum_member(L, type, value);
    if (!*member)
        return PyErr_Occurred() ? -1 : 0;
    *at = p + 2;
    return 1;
}

#define SAVE() (L->p = p, L->sp = sp)
#define RELOAD() (p = L->p, end = L->end, sp = L->sp)
#define KEYED() \
    (keyed = L->mark_count && L->marks[L->mark_count - 1].kind >= PRP_MARK_DICT ? L->marks[L->mark_count - 1].at : -1)
#define NEED(n)                                              \
    do {                                                     \
        if (PRP_UNLIKELY((size_t)(end - p) < (size_t)(n))) { \
            SAVE();                                          \
            if (prp_load_refill(L, (size_t)(n)) < 0)         \
                goto failed;                                 \
            RELOAD();                                        \
        }                                                    \
    } while (0)
/* Push an owned object; NULL means failure. */
#define PUSH(object)                          \
    do {                                      \
        PyObject *pushed = (object);          \
        if (PRP_UNLIKELY(!pushed))            \
            goto failed_saved;                \
        if (PRP_UNLIKELY(sp == L->limit)) {   \
            SAVE();                           \
            if (prp_load_grow_stack(L) < 0) { \
                Py_DECREF(pushed);            \
                goto failed;                  \
            }                                 \
            RELOAD();                         \
        }                                     \
        *sp++ = pushed;                       \
    } while (0)
/* Execute further complete opcodes of the same kind, each of `size` bytes, while the stack has room. */
#define RUN(opcode, size, object)                                                                        \
    do {                                                                                                 \
        Py_ssize_t room_ = L->limit - sp, there_ = (end - p) / (size);                                   \
        for (Py_ssize_t left_ = room_ < there_ ? room_ : there_; left_ > 0 && *p == (opcode); left_--) { \
            PyObject *made_ = (object);                                                                  \
            if (PRP_UNLIKELY(!made_))                                                                    \
                goto failed_saved;                                                                       \
            *sp++ = made_;                                                                               \
            p += (size);                                                                                 \
        }                                                                                                \
    } while (0)
#define PUSH_BORROWED(object) PUSH(Py_NewRef(object))
/* Call a function that returns int and may change the machine. */
#define CALL(expression)      \
    do {                      \
        SAVE();               \
        if ((expression) < 0) \
            goto failed;      \
        RELOAD();             \
    } while (0)
/* Call a function that returns an object, and push the object. */
#define CALL_PUSH(expression)            \
    do {                                 \
        SAVE();                          \
        PyObject *called = (expression); \
        if (PRP_UNLIKELY(!called))       \
            goto failed;                 \
        RELOAD();                        \
        PUSH(called);                    \
    } while (0)
#define HAVE(n)                                  \
    do {                                         \
        if (PRP_UNLIKELY(sp - L->fence < (n))) { \
            SAVE();                              \
            prp_load_underflow(L);               \
            goto failed;                         \
        }                                        \
    } while (0)

static PyObject *run(prp_loader *L)
{
    const uint8_t *p = L->p, *end = L->end;
    PyObject **sp = L->sp;
    Py_ssize_t keyed = -1; /* stack index at which the pairs of the innermost pending dict begin, -1 if there is none */

    for (;;) {
        if (PRP_UNLIKELY(p == end)) {
            SAVE();
            if (prp_load_refill(L, 1) < 0) {
                if (PyErr_ExceptionMatches(prp_unpickling_error))
                    PyErr_SetString(PyExc_EOFError, "Ran out of input");
                return NULL;
            }
            RELOAD();
        }
        switch (*p++) {
        /* ---- numbers and constants ---- */
        case OP_NONE:
            PUSH_BORROWED(Py_None);
            continue;
        case OP_NEWTRUE:
            PUSH_BORROWED(Py_True);
            continue;
        case OP_NEWFALSE:
            PUSH_BORROWED(Py_False);
            continue;
        case OP_BININT1:
            NEED(1);
            PUSH(PyLong_FromLong(*p++));
            RUN(OP_BININT1, 2, PyLong_FromLong(p[1]));
            continue;
        case OP_BININT2:
            NEED(2);
            PUSH(prp_int32_new((int32_t)le16(p)));
            p += 2;
            RUN(OP_BININT2, 3, prp_int32_new((int32_t)le16(p + 1)));
            continue;
        case OP_BININT:
            NEED(4);
            PUSH(prp_int32_new((int32_t)le32(p)));
            p += 4;
            RUN(OP_BININT, 5, prp_int32_new((int32_t)le32(p + 1)));
            continue;
        case OP_BINFLOAT:
            NEED(8);
            PUSH(PyFloat_FromDouble(be_double(p)));
            p += 8;
            RUN(OP_BINFLOAT, 9, prp_float_new(be_double(p + 1)));
            continue;
        case OP_LONG1: {
            NEED(1);
            size_t n = *p++;
            NEED(n);
            PUSH(load_long(p, n));
            p += n;
            continue;
        }
        case OP_LONG4: {
            NEED(4);
            int32_t n = (int32_t)le32(p);
            p += 4;
            if (n < 0) {
                prp_load_malformed("LONG pickle has negative byte count");
                goto failed_saved;
            }
            NEED(n);
            PUSH(load_long(p, (size_t)n));
            p += n;
            continue;
        }
        case OP_INT:
            CALL_PUSH(prp_load_text_int(L));
            continue;
        case OP_LONG:
            CALL_PUSH(prp_load_text_long(L));
            continue;
        case OP_FLOAT:
            CALL_PUSH(prp_load_text_float(L));
            continue;

        /* ---- strings and bytes ---- */
        case OP_SHORT_BINUNICODE: {
            NEED(1);
            size_t n = *p++;
            NEED(n);
            if (n == 1) {
                uint8_t one = prp_load_byte(p); /* read once: the byte may change, and the table has 128 entries */
                if (one < 128) {
                    PUSH_BORROWED(prp_load_characters[one]);
                    p++;
                    continue;
                }
            }
            if (keyed >= 0 && !((sp - L->stack - keyed) & 1)) {
                PUSH(prp_load_name(L, &L->marks[L->mark_count - 1], sp - L->stack, p, n));
                p += n;
                continue;
            }
            /* Two consecutive strings may be the name of a global. */
            if ((size_t)(end - p) > n && (p[n] == OP_SHORT_BINUNICODE || p[n] == OP_MEMOIZE)) {
                const uint8_t *next;
                SAVE();
                PyObject *value = fused_global(L, p, end, n, &next);
                if (next) {
                    if (!value)
                        goto failed;
                    RELOAD();
                    PUSH(value);
                    continue;
                }
            }
            PUSH(prp_load_utf8(p, n));
            p += n;
            /* Read further strings, as in a list of strings; stop at a string that may be the first name of a
             * global. */
            while (keyed < 0 && sp < L->limit && end - p > 2 && *p == OP_SHORT_BINUNICODE) {
                n = prp_load_byte(p + 1);
                const uint8_t *next = p + 2 + n;
                if (end - p <= (Py_ssize_t)n + 2 || *next == OP_MEMOIZE)
                    break;
                if (*next == OP_SHORT_BINUNICODE) {
                    size_t m = end - next < 3 ? 0 : prp_load_byte(next + 1);
                    if ((size_t)(end - next) < 3 + m || next[2 + m] == OP_MEMOIZE || next[2 + m] == OP_STACK_GLOBAL)
                        break;
                }
                PyObject *text = prp_load_text(p + 2, n);
                if (PRP_UNLIKELY(!text))
                    goto failed_saved;
                *sp++ = text;
                p = next;
            }
            continue;
        }
        case OP_BINUNICODE:
        case OP_BINUNICODE8: {
            size_t n;
            if (p[-1] == OP_BINUNICODE) {
                NEED(4);
                n = le32(p);
                p += 4;
            } else {
                NEED(8);
                uint64_t length = le64(p);
                p += 8;
                if (length > PY_SSIZE_T_MAX) {
                    PyErr_Format(PyExc_OverflowError, "BINUNICODE exceeds system's maximum size of %zd bytes",
                                 PY_SSIZE_T_MAX);
                    goto failed_saved;
                }
                n = (size_t)length;
            }
            NEED(n);
            if (keyed >= 0 && !((sp - L->stack - keyed) & 1))
                PUSH(prp_load_name(L, &L->marks[L->mark_count - 1], sp - L->stack, p, n));
            else
                PUSH(prp_load_utf8(p, n));
            p += n;
            continue;
        }
        case OP_SHORT_BINBYTES: {
            NEED(1);
            size_t n = *p++;
            NEED(n);
            PUSH(PyBytes_FromStringAndSize((const char *)p, (Py_ssize_t)n));
            p += n;
            continue;
        }
        case OP_BINBYTES: {
            NEED(4);
            size_t n = le32(p);
            p += 4;
            CALL_PUSH(prp_load_bytes(L, n, PRP_BYTES));
            continue;
        }
        case OP_BINBYTES8:
        case OP_BYTEARRAY8: {
            prp_bytes_kind kind = p[-1] == OP_BYTEARRAY8 ? PRP_BYTEARRAY : PRP_BYTES;
            NEED(8);
            uint64_t length = le64(p);
            p += 8;
            if (length > PY_SSIZE_T_MAX) {
                PyErr_Format(PyExc_OverflowError, "%s exceeds system's maximum size of %zd bytes",
                             kind == PRP_BYTEARRAY ? "BYTEARRAY8" : "BINBYTES", PY_SSIZE_T_MAX);
                goto failed_saved;
            }
            CALL_PUSH(prp_load_bytes(L, (size_t)length, kind));
            continue;
        }
        case OP_SHORT_BINSTRING: {
            NEED(1);
            size_t n = *p++;
            NEED(n);
            p += n;
            CALL_PUSH(prp_load_old_string(L, (const char *)p - n, n));
            continue;
        }
        case OP_BINSTRING: {
            NEED(4);
            int32_t n = (int32_t)le32(p);
            p += 4;
            if (n < 0) {
                prp_load_malformed("BINSTRING pickle has negative byte count");
                goto failed_saved;
            }
            NEED(n);
            p += n;
            CALL_PUSH(prp_load_old_string(L, (const char *)p - n, (size_t)n));
            continue;
        }
        case OP_STRING:
            CALL_PUSH(prp_load_text_string(L));
            continue;
        case OP_UNICODE:
            CALL_PUSH(prp_load_text_unicode(L));
            continue;
        case OP_NEXT_BUFFER:
            CALL(prp_load_next_buffer(L));
            continue;
        case OP_READONLY_BUFFER:
            CALL(prp_load_readonly_buffer(L));
            continue;

        /* ---- marks and the stack ---- */
        case OP_MARK:
            if (sp > L->fence && sp[-1] &&
                (sp[-1] == prp_load_array_callables[0] || sp[-1] == prp_load_array_callables[1])) {
                int done;
                CALL(done = prp_load_array_whole(L));
                if (done)
                    continue;
            }
            CALL(prp_load_push_mark(L, PRP_MARK_PLAIN, -1, NULL));
            keyed = -1;
            continue;
        case OP_POP:
            if (L->mark_count && L->marks[L->mark_count - 1].at == sp - L->stack) {
                CALL(prp_load_pop_mark(L));
                KEYED();
            } else {
                HAVE(1);
                PyObject *dropped = *--sp;
                CALL(prp_load_drop(L, dropped));
            }
            continue;
        case OP_POP_MARK: {
            Py_ssize_t at;
            CALL(at = prp_load_pop_mark(L));
            CALL(prp_load_clear_stack(L, at));
            KEYED();
            continue;
        }
        case OP_DUP:
            HAVE(1);
            PUSH_BORROWED(sp[-1]);
            continue;

        /* ---- containers ---- */
        case OP_EMPTY_LIST: {
            SAVE();
            int taken = push_pending(L, p, end, PRP_MARK_LIST, NULL);
            if (taken < 0)
                goto failed;
            if (taken) {
                p += taken;
                sp = L->sp;
                keyed = -1;
            } else {
                PUSH(PRP_FOREIGN(PyList_New(0)));
            }
            continue;
        }
        case OP_EMPTY_DICT: {
            SAVE();
            int taken = push_pending(L, p, end, PRP_MARK_DICT, NULL);
            if (taken < 0)
                goto failed;
            if (taken) {
                p += taken;
                sp = L->sp;
                keyed = sp - L->stack;
            } else {
                PUSH(PRP_FOREIGN(PyDict_New()));
            }
            continue;
        }
        case OP_EMPTY_SET:
            PUSH(PRP_FOREIGN(PySet_New(NULL)));
            continue;
        case OP_EMPTY_TUPLE:
            if (p < end && *p == OP_NEWOBJ && sp > L->fence) {
                p++;
                SAVE();
                PyObject *obj = prp_load_new_fused(L, sp[-1], NULL, 0, NULL);
                if (!obj)
                    goto failed;
                RELOAD();
                PyObject *cls = sp[-1];
                sp[-1] = obj;
                CALL(prp_load_drop(L, cls));
                Py_ssize_t taken = push_state(L, p, end, obj);
                if (taken < 0)
                    goto failed;
                p += taken;
                sp = L->sp;
                KEYED();
                continue;
            }
            PUSH(PyTuple_New(0));
            continue;
        case OP_TUPLE1:
        case OP_TUPLE2:
        case OP_TUPLE3:
        case OP_TUPLE: {
            Py_ssize_t n;
            if (p[-1] == OP_TUPLE) {
                Py_ssize_t at;
                CALL(at = prp_load_pop_mark(L));
                n = sp - L->stack - at;
                KEYED();
            } else {
                n = p[-1] - OP_TUPLE1 + 1;
                HAVE(n);
            }
            if (p < end && (*p == OP_REDUCE || *p == OP_NEWOBJ) && sp - n > L->fence) {
                /* The callable is below its arguments; all of them are above the fence. */
                bool reduce = *p++ == OP_REDUCE;
                SAVE();
                PyObject **argv = sp - n;
                PyObject *obj =
                    reduce ? prp_load_call(L, argv[-1], argv, n) : prp_load_new_fused(L, argv[-1], argv, n, NULL);
                if (!obj)
                    goto failed;
                prp_load_own(L);
                RELOAD();
                PyObject *callable = sp[-n - 1];
                sp[-n - 1] = obj;
                SAVE();
                int failed = 0;
                for (; n > 0; n--)
                    failed |= prp_load_drop(L, *(L->sp = --sp));
                failed |= prp_load_drop(L, callable);
                if (PRP_UNLIKELY(failed))
                    goto failed;
                if (!reduce) {
                    Py_ssize_t taken = push_state(L, p, end, obj);
                    if (taken < 0)
                        goto failed;
                    p += taken;
                    sp = L->sp;
                    KEYED();
                }
                continue;
            }
            PyObject *tuple = stack_tuple(sp - n, n);
            if (!tuple)
                goto failed_saved;
            sp -= n;
            PUSH(tuple);
            continue;
        }
        case OP_LIST: {
            Py_ssize_t at;
            CALL(at = prp_load_pop_mark(L));
            Py_ssize_t n = sp - L->stack - at;
            PyObject *list = PRP_FOREIGN(prp_load_list_of(sp - n, n));
            if (!list)
                goto failed_saved;
            sp -= n;
            PUSH(list);
            KEYED();
            continue;
        }
        case OP_DICT:
            CALL_PUSH(load_dict(L));
            KEYED();
            continue;
        case OP_FROZENSET:
            CALL_PUSH(load_frozenset(L));
            KEYED();
            continue;
        case OP_APPEND:
            CALL(prp_load_appends(L, sp - L->stack - 1));
            continue;
        case OP_APPENDS:
            if (L->mark_count && L->marks[L->mark_count - 1].kind == PRP_MARK_LIST)
                CALL(finish_list(L));
            else
                CALL(append_above_mark(L));
            KEYED();
            continue;
        case OP_SETITEM:
            CALL(prp_load_setitems(L, sp - L->stack - 2));
            continue;
        case OP_SETITEMS: {
            prp_mark_kind kind = L->mark_count ? L->marks[L->mark_count - 1].kind : PRP_MARK_PLAIN;
            if (kind >= PRP_MARK_STATE) {
                Py_ssize_t pair;
                int taken = peek_build(L, p, end, kind, &pair);
                SAVE();
                int built = taken ? prp_load_build_pending(L, pair) : 0;
                if (built < 0)
                    goto failed;
                if (built) {
                    p += taken;
                    sp = L->sp;
                    KEYED();
                    continue;
                }
            }
            if (kind >= PRP_MARK_DICT) {
                CALL(finish_dict(L));
            } else {
                Py_ssize_t at;
                CALL(at = prp_load_pop_mark(L));
                CALL(prp_load_setitems(L, at));
            }
            KEYED();
            continue;
        }
        case OP_ADDITEMS:
            CALL(prp_load_additems(L));
            KEYED();
            continue;

        /* ---- the memo ---- */
        case OP_BINGET:
        case OP_LONG_BINGET: {
            size_t index;
            if (p[-1] == OP_BINGET) {
                NEED(1);
                index = prp_load_byte(p++);
            } else {
                NEED(4);
                index = le32(p);
                p += 4;
            }
            PyObject *value = index < (size_t)L->memo.top ? L->memo.entries[index] : NULL;
            if (PRP_UNLIKELY(!value || prp_load_tagged(value))) {
                CALL_PUSH(prp_load_memo_get_slow(L, index));
                continue;
            }
            if (PyType_Check(value)) {
                PyObject *member;
                int known = whole_enum(L, (PyTypeObject *)value, &p, end, &member);
                if (known < 0)
                    goto failed_saved;
                if (known) {
                    PUSH(member);
                    continue;
                }
            }
            PUSH_BORROWED(value);
            continue;
        }
        case OP_GET:
            CALL_PUSH(text_get(L));
            continue;
        case OP_MEMOIZE:
            HAVE(1);
            if (PRP_LIKELY(L->memo.used == L->memo.top && L->memo.top < L->memo.capacity && !L->memo.sparse)) {
                L->memo.entries[L->memo.top++] = Py_NewRef(sp[-1]);
                L->memo.used++;
            } else {
                CALL(prp_load_memo_put(L, (size_t)L->memo.used, sp[-1]));
            }
            continue;
        case OP_BINPUT:
            NEED(1);
            HAVE(1);
            p++;
            CALL(prp_load_memo_put(L, p[-1], sp[-1]));
            continue;
        case OP_LONG_BINPUT:
            NEED(4);
            HAVE(1);
            p += 4;
            CALL(prp_load_memo_put(L, le32(p - 4), sp[-1]));
            continue;
        case OP_PUT:
            CALL(text_put(L));
            continue;

        /* ---- globals, calls, instances ---- */
        case OP_GLOBAL:
            CALL_PUSH(text_global(L));
            prp_load_own(L);
            continue;
        case OP_STACK_GLOBAL:
            CALL_PUSH(load_stack_global(L));
            prp_load_own(L);
            continue;
        case OP_EXT1:
            NEED(1);
            p++;
            CALL_PUSH(prp_load_extension(L, p[-1]));
            prp_load_own(L);
            continue;
        case OP_EXT2:
            NEED(2);
            p += 2;
            CALL_PUSH(prp_load_extension(L, (long)le16(p - 2)));
            prp_load_own(L);
            continue;
        case OP_EXT4:
            NEED(4);
            p += 4;
            CALL_PUSH(prp_load_extension(L, (int32_t)le32(p - 4)));
            prp_load_own(L);
            continue;
        case OP_REDUCE: {
            HAVE(2);
            SAVE();
            PyObject *obj = prp_load_reduce(L, sp[-2], sp[-1]);
            if (!obj)
                goto failed;
            prp_load_own(L);
            RELOAD();
            PyObject *args = *--sp, *callable = sp[-1];
            sp[-1] = obj;
            SAVE();
            if (prp_load_drop(L, args) | prp_load_drop(L, callable))
                goto failed;
            continue;
        }
        case OP_NEWOBJ:
        case OP_NEWOBJ_EX: {
            SAVE();
            PyObject *obj = load_newobj(L, p[-1] == OP_NEWOBJ_EX);
            if (!obj)
                goto failed;
            prp_load_own(L);
            RELOAD();
            PUSH(obj);
            SAVE();
            Py_ssize_t taken = push_state(L, p, end, obj);
            if (taken < 0)
                goto failed;
            p += taken;
            sp = L->sp;
            KEYED();
            continue;
        }
        case OP_BUILD:
            CALL(prp_load_build(L));
            prp_load_own(L);
            continue;
        case OP_INST:
            CALL_PUSH(load_inst(L));
            KEYED();
            continue;
        case OP_OBJ:
            CALL_PUSH(load_obj(L));
            KEYED();
            continue;
        case OP_PERSID: {
            SAVE();
            PyObject *pid = prp_load_text_pid(L);
            if (!pid) {
                if (PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
                    prp_load_malformed("persistent IDs in protocol 0 must be ASCII strings");
                goto failed;
            }
            PyObject *obj = prp_load_persistent(L, pid);
            PRP_FOREIGN_VOID(Py_DECREF(pid));
            prp_load_own(L);
            RELOAD();
            PUSH(obj);
            continue;
        }
        case OP_BINPERSID: {
            HAVE(1);
            PyObject *pid = *--sp;
            SAVE();
            PyObject *obj = prp_load_persistent(L, pid);
            PRP_FOREIGN_VOID(Py_DECREF(pid));
            prp_load_own(L);
            RELOAD();
            PUSH(obj);
            continue;
        }

        /* ---- the stream ---- */
        case OP_PROTO:
            NEED(1);
            if (*p > HIGHEST_PROTOCOL) {
                PyErr_Format(PyExc_ValueError, "unsupported pickle protocol: %d", *p);
                goto failed_saved;
            }
            L->proto = *p++;
            continue;
        case OP_FRAME:
            NEED(8);
            p += 8;
            CALL(prp_load_frame(L, le64(L->p - 8)));
            prp_load_own(L);
            continue;
        case OP_STOP: {
            HAVE(1);
            PyObject *value = *--sp;
            SAVE();
            return value;
        }
        default: {
            unsigned c = p[-1];
            if (c >= 0x20 && c <= 0x7e && c != '\'' && c != '\\')
                prp_load_malformed("invalid load key, '%c'.", c);
            else
                prp_load_malformed("invalid load key, '\\x%02x'.", c);
            goto failed_saved;
        }
        }
    }

failed_saved:
    SAVE();
failed:
    return NULL;
}

/* The memo of an Unpickler outlives the load, so no entry may stay tagged. */
static int settle_memo(prp_loader *L, bool failed)
{
    for (Py_ssize_t i = 0; !failed && i < L->mark_count; i++)
        if (L->marks[i].kind != PRP_MARK_PLAIN)
            failed = prp_load_make_pending(L, i) < 0;
    failed = failed || prp_load_all_unmade(L) < 0;
    if (failed) {
        for (Py_ssize_t i = 0; i < L->memo.top; i++)
            if (prp_load_tagged(L->memo.entries[i])) {
                L->memo.entries[i] = NULL;
                L->memo.used--;
            }
        L->mark_count = 0; /* no memo entry refers to a mark any more */
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        prp_load_drop_unmade(L);
        PyErr_Restore(type, value, traceback);
    }
    return failed ? -1 : 0;
}

PyObject *prp_load(prp_loader *L)
{
    bool module_function = !L->self;
    prp_loader *lender = NULL;
    if (!module_function) {
        if (!(lender = prp_loader_acquire()))
            return NULL;
        L->context = lender->context;
        if (L->allow)
            prp_load_know_set(L, L->allow);
    }
    L->key_hits = L->key_misses = 0;
    L->running = true;
    L->may_pause = L->read || L->end - L->p > SMALL_STREAM;
    prp_load_own(L);
    PyObject *value = run(L);
    L->may_pause = false;
    if (L->collector_paused)
        prp_load_resume_collector(L);
    if (module_function) {
        if (value && L->read && prp_load_settle(L) < 0)
            Py_CLEAR(value);
    } else {
        if (settle_memo(L, !value) < 0 || (value && prp_load_settle(L) < 0))
            prp_load_clear(&value);
        prp_load_discard_stack(L);
        L->context = NULL;
        prp_loader_release(lender);
    }
    L->running = false;
    return value;
}
