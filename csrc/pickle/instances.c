/* Writes instances by their plans, with the opcodes that the result of __reduce_ex__ would need, but without creating
 * that result.
 *
 * Only objects that can occur again get memo entries here. In exact mode, where every opcode must match the standard
 * pickler's, we call __reduce_ex__ for the kinds of object that would differ.
 */
#include "class_plan.h"
#include "atoms.h"

#include <datetime.h>

static int import_datetime(void)
{
    if (!PyDateTimeAPI)
        PyDateTime_IMPORT;
    return PyDateTimeAPI ? 0 : -1;
}

int prp_plan_class(prp_saver *s, prp_plan *plan)
{
    prp_numbers *numbers = NULL;
    if (PRP_LIKELY(s->elide)) {
        if (PRP_UNLIKELY(!(numbers = prp_numbers_for(s, plan))))
            return -1;
        if (PRP_LIKELY(numbers->class_index)) {
            if (prp_room(s, PRP_ROOM) < 0)
                return -1;
            s->p = prp_put_get(s->p, numbers->class_index - 1);
            return 0;
        }
    }
    if (prp_save_class(s, (PyObject *)plan->type) < 0)
        return -1;
    if (s->elide) {
        int64_t index = prp_memo_get(&s->memo, (PyObject *)plan->type);
        if (index >= 0)
            numbers->class_index = (uint32_t)index + 1;
    }
    return prp_room(s, PRP_ROOM);
}

/* The opcodes have created the object: add its memo entry, unless saving its arguments has already added one. */
static int created(prp_saver *s, PyObject *obj, bool elided, bool *again)
{
    *again = false;
    if (elided)
        return 0;
    int64_t index = prp_memo_get(&s->memo, obj);
    if (PRP_UNLIKELY(index >= 0)) {
        if (prp_restart_if_cyclic(s))
            return -1;
        *again = true;
        return prp_op(s, OP_POP) < 0 ? -1 : prp_write_get(s, (uint32_t)index);
    }
    return prp_memoize(s, obj);
}

/* Return whether this is a name that __reduce_ex__ would look up on the instance itself. */
static bool is_hook(PyObject *name)
{
    if (PRP_LIKELY(PyUnicode_CheckExact(name) && PyUnicode_IS_COMPACT_ASCII(name)) &&
        (PyUnicode_1BYTE_DATA(name)[0] != '_' || PyUnicode_GET_LENGTH(name) < 12))
        return false;
    if (!PyUnicode_Check(name))
        return false;
    return PyUnicode_CompareWithASCIIString(name, "__reduce_ex__") == 0 ||
           PyUnicode_CompareWithASCIIString(name, "__getstate__") == 0 ||
           PyUnicode_CompareWithASCIIString(name, "__getnewargs_ex__") == 0 ||
           PyUnicode_CompareWithASCIIString(name, "__getnewargs__") == 0;
}

static int dict_has_hook(PyObject *dict)
{
    if (PyDict_GET_SIZE(dict) <= 16) {
        PyObject *key, *value;
        Py_ssize_t pos = 0;
        while (prp_dict_next(dict, &pos, &key, &value))
            if (is_hook(key))
                return 1;
        return 0;
    }
    PyObject *const names[] = {prp_g.str_reduce_ex, prp_g.str_getstate, prp_g.str_getnewargs_ex, prp_g.str_getnewargs};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (PRP_FOREIGN(PyDict_GetItemWithError(dict, names[i])))
            return 1;
        if (PyErr_Occurred())
            return -1;
    }
    return 0;
}

/* Return whether an attribute name of `view` is a hook, and record which of the class's shared keys are not hooks. */
static bool names_have_hook(prp_plan *plan, const prp_attrs *view)
{
    if (PRP_UNLIKELY(plan->keys != view->keys)) {
        plan->keys = view->keys;
        plan->keys_checked = 0;
    }
    for (Py_ssize_t i = 0; i < view->count; i++) {
        Py_ssize_t slot = prp_attrs_slot(view, i);
        if (PRP_LIKELY(slot < plan->keys_checked))
            continue;
        /* New shared keys are only appended, so check all keys up to this one. */
        for (Py_ssize_t j = 0; j < view->count; j++)
            if (is_hook(prp_attrs_name(view, j)))
                return true;
        if (slot == plan->keys_checked)
            plan->keys_checked++;
    }
    return false;
}

static int slots_set(const prp_plan *plan, PyObject *obj)
{
    int n = 0;
    for (Py_ssize_t i = 0; i < plan->nslots; i++)
        n += *(PyObject **)((char *)obj + plan->slots[i].offset) != NULL;
    return n;
}

int prp_plan_write_name(prp_saver *s, prp_numbers *numbers, Py_ssize_t slot)
{
    PyObject *name = numbers->plan->slots[slot].name;
    int64_t index = prp_memo_add(&s->memo, name);
    if (index == PRP_MEMO_ERROR)
        return -1;
    if (index >= 0) {
        if (prp_write_get(s, (uint32_t)index) < 0)
            return -1;
    } else {
        index = s->memo.count - 1;
        if (prp_write_str(s, name) < 0 || prp_op(s, OP_MEMOIZE) < 0)
            return -1;
    }
    numbers->slots[slot] = (uint32_t)index + 1;
    return prp_room(s, PRP_ROOM);
}

/* Push a frame for `count` attributes or slots, with the class's memo indices. Return NULL with an exception on
 * failure. */
static prp_frame *push_numbered(prp_saver *s, prp_frame_kind kind, PyObject *obj, prp_plan *plan, Py_ssize_t count)
{
    prp_numbers *numbers = prp_numbers_for(s, plan);
    prp_frame *frame = numbers ? prp_push(s, kind, obj) : NULL;
    if (frame) {
        frame->numbers = numbers;
        frame->n = count;
    }
    return frame;
}

/* Begin the dict of the slots, which follows the dict of the attributes (or None) on the stack. */
static int begin_slots(prp_saver *s, prp_plan *plan, PyObject *obj, int count)
{
    if (prp_room(s, PRP_ROOM) < 0)
        return SAVE_ERROR;
    s->elided = true; /* the names and the dict of the slots get no memo entries */
    *s->p++ = OP_EMPTY_DICT;
    if (count > 1)
        *s->p++ = OP_MARK;
    return push_numbered(s, FRAME_SLOTS, obj, plan, count) ? SAVE_RESUME : SAVE_ERROR;
}

/* Return a new tuple (dict or None, {name: value of each slot that is set}). */
static PyObject *slots_state(const prp_plan *plan, PyObject *obj, PyObject *dict)
{
    PyObject *values = PRP_FOREIGN(PyDict_New());
    for (Py_ssize_t i = 0; values && i < plan->nslots; i++) {
        PyObject *value = *(PyObject **)((char *)obj + plan->slots[i].offset);
        if (value && PRP_FOREIGN(PyDict_SetItem(values, plan->slots[i].name, value)) < 0)
            Py_CLEAR(values);
    }
    PyObject *state =
        values ? PRP_FOREIGN(PyTuple_Pack(2, dict && PyDict_GET_SIZE(dict) ? dict : Py_None, values)) : NULL;
    Py_XDECREF(values);
    return state;
}

/* Write the class, NEWOBJ and, if there is one, the state: either the attributes in `view` or `dict`, or the complete
 * `state`. The caller holds references to `dict` and `state`, because writing the class may run code that releases
 * them. */
static int write_instance(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided, const prp_attrs *view,
                          PyObject *dict, int slots, PyObject *state)
{
    bool again;
    if (prp_plan_class(s, plan) < 0)
        return SAVE_ERROR;
    *s->p++ = OP_EMPTY_TUPLE;
    *s->p++ = OP_NEWOBJ;
    if (created(s, obj, elided, &again) < 0 || prp_room(s, PRP_ROOM) < 0)
        return SAVE_ERROR;
    if (again)
        return SAVE_DONE;

    if (view) {
        /* The instance has no dict object to which other objects could refer, so the dict needs no memo entry. */
        s->elided = true;
        if (view->count == 0)
            return SAVE_DONE;
        *s->p++ = OP_EMPTY_DICT;
        if (view->count > 1)
            *s->p++ = OP_MARK;
        prp_frame *frame = push_numbered(s, FRAME_ATTRS, obj, plan, view->count);
        if (!frame)
            return SAVE_ERROR;
        if (frame->numbers->keys != view->keys) {
            frame->numbers->keys = view->keys;
            memset(frame->numbers->names, 0, sizeof frame->numbers->names);
        }
        return SAVE_RESUME;
    }
    bool attrs = dict && PyDict_GET_SIZE(dict) > 0;
    if (!state && !slots && !attrs)
        return SAVE_DONE;
    if (!state && slots && !attrs) {
        *s->p++ = OP_NONE;
        return begin_slots(s, plan, obj, slots);
    }
    prp_frame *frame =
        !state && slots ? push_numbered(s, FRAME_SLOTS_NEXT, obj, plan, 0) : prp_push(s, FRAME_BUILD, obj);
    if (!frame)
        return SAVE_ERROR;
    s->next = state ? state : dict;
    /* While eliding, the instance's reference to the dict is enough; a second one would make the dict look shared. */
    if (!s->elide)
        frame->held = Py_NewRef(s->next);
    return SAVE_NEXT;
}

/* Return whether the instance still has the dict to which we hold a reference; false with an exception. */
static bool still_held(PyObject *dict)
{
    if (Py_REFCNT(dict) > 1)
        return true;
    PyErr_SetString(PyExc_RuntimeError, "the attributes of an object were replaced while it was pickled");
    return false;
}

static int save_instance(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided)
{
    prp_attrs view;
    PyObject *dict = NULL;
    int where = plan->has_attrs ? prp_attrs_view(obj, plan->type, &view, &dict) : PRP_ATTRS_NONE;
    int slots = plan->nslots ? slots_set(plan, obj) : 0;
    if (where == PRP_ATTRS_INLINE) { /* the attributes are in an array, which a dict may wrap */
        if (names_have_hook(plan, &view))
            return SAVE_GENERIC;
        if (!s->elide || slots || (dict && Py_REFCNT(dict) != 1)) {
            /* Use the dict if code that changes the instance may run, or if other code refers to the dict. */
            where = dict ? PRP_ATTRS_DICT : PRP_ATTRS_UNKNOWN;
        }
    }
    if (where == PRP_ATTRS_UNKNOWN) {
        prp_memo_own_all(s);
        dict = prp_attrs_dict(obj);
        if (!dict)
            return SAVE_ERROR;
        Py_DECREF(dict); /* the instance holds a reference to the dict */
        where = PRP_ATTRS_DICT;
    }
    if (where == PRP_ATTRS_DICT) {
        if (!PyDict_CheckExact(dict))
            return SAVE_GENERIC;
        int hook = dict_has_hook(dict);
        if (hook)
            return hook < 0 ? SAVE_ERROR : SAVE_GENERIC;
    }
    /* If foreign code may change the instance or its class meanwhile, or in exact mode, we write the slots from the
     * objects that object.__reduce_ex__ would create. */
    PyObject *state = !s->elide && slots ? slots_state(plan, obj, where == PRP_ATTRS_DICT ? dict : NULL) : NULL;
    if (!s->elide && slots && !state)
        return SAVE_ERROR;
    dict = where == PRP_ATTRS_DICT ? Py_NewRef(dict) : NULL;
    int status = write_instance(s, plan, obj, elided, where == PRP_ATTRS_INLINE ? &view : NULL, dict, slots, state);
    if (dict && status == SAVE_NEXT && s->next == dict && !still_held(dict))
        status = SAVE_ERROR;
    Py_XDECREF(dict);
    Py_XDECREF(state);
    return status;
}

static int save_fields(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided)
{
    bool again;
    if (!s->elide || slots_set(plan, obj) != plan->nslots)
        return SAVE_GENERIC; /* a field is unset: the class's __getstate__ raises the right error */
    if (prp_plan_class(s, plan) < 0)
        return SAVE_ERROR;
    *s->p++ = OP_EMPTY_TUPLE;
    *s->p++ = OP_NEWOBJ;
    if (created(s, obj, elided, &again) < 0 || prp_room(s, PRP_ROOM) < 0)
        return SAVE_ERROR;
    if (again)
        return SAVE_DONE;
    *s->p++ = OP_EMPTY_LIST;
    if (plan->nslots == 0) {
        *s->p++ = OP_BUILD;
        return SAVE_DONE;
    }
    if (plan->nslots > 1)
        *s->p++ = OP_MARK;
    return push_numbered(s, FRAME_FIELDS, obj, plan, plan->nslots) ? SAVE_RESUME : SAVE_ERROR;
}

static int save_namedtuple(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided)
{
    if (plan->has_attrs) {
        prp_attrs view;
        PyObject *dict = NULL;
        int where = prp_attrs_view(obj, plan->type, &view, &dict);
        if (where == PRP_ATTRS_UNKNOWN || (where == PRP_ATTRS_INLINE && view.count > 0) ||
            (where == PRP_ATTRS_DICT && PyDict_GET_SIZE(dict) > 0))
            return SAVE_GENERIC; /* the subclass has attributes */
    }
    if (prp_plan_class(s, plan) < 0)
        return SAVE_ERROR;
    if (PyTuple_GET_SIZE(obj) == 0) {
        bool again;
        *s->p++ = OP_EMPTY_TUPLE;
        *s->p++ = OP_NEWOBJ;
        return created(s, obj, elided, &again) < 0 ? SAVE_ERROR : SAVE_DONE;
    }
    if (PyTuple_GET_SIZE(obj) > 3)
        *s->p++ = OP_MARK;
    prp_frame *frame = prp_push(s, FRAME_TUPLE, obj);
    if (!frame)
        return SAVE_ERROR;
    frame->flags = FRAME_NEWOBJ | (elided ? FRAME_ELIDED : 0);
    return SAVE_RESUME;
}

static void drop_frame(prp_saver *s)
{
    PyObject *obj = s->stack[--s->depth].obj, *held = s->stack[s->depth].held;
    Py_XDECREF(held);
    Py_DECREF(obj);
}

int prp_plan_finish_tuple(prp_saver *s)
{
    prp_frame *frame = &s->stack[s->depth - 1];
    Py_ssize_t n = PyTuple_GET_SIZE(frame->obj);
    bool again;
    *s->p++ = n > 3 ? OP_TUPLE : (uint8_t)(OP_TUPLE1 - 1 + n);
    *s->p++ = OP_NEWOBJ;
    if (created(s, frame->obj, frame->flags & FRAME_ELIDED, &again) < 0)
        return -1;
    drop_frame(s);
    return 0;
}

/* Write opcodes for a tuple of the last `n` values on the stack, REDUCE, and the memo entry of obj. */
static int finish_call(prp_saver *s, PyObject *obj, Py_ssize_t n, bool elided)
{
    bool again;
    if (prp_room(s, PRP_ROOM) < 0)
        return SAVE_ERROR;
    *s->p++ = (uint8_t)(OP_TUPLE1 - 1 + n);
    *s->p++ = OP_REDUCE;
    return created(s, obj, elided, &again) < 0 ? SAVE_ERROR : SAVE_DONE;
}

/* The last argument may be any object, so push a frame that continues after it has been written. Steal the reference to
 * `argument`. */
static int call_after(prp_saver *s, PyObject *obj, Py_ssize_t n, bool elided, PyObject *argument)
{
    prp_frame *frame = prp_push(s, FRAME_CALL, obj);
    if (!frame) {
        Py_DECREF(argument);
        return SAVE_ERROR;
    }
    frame->n = n;
    frame->flags = elided ? FRAME_ELIDED : 0;
    frame->held = argument;
    s->next = argument;
    return SAVE_NEXT;
}

static int save_enum(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided)
{
    PyObject *value = PRP_FOREIGN(PyObject_GetAttr(obj, prp_g.str_value));
    if (!value)
        return SAVE_ERROR;
    if (prp_plan_class(s, plan) < 0) {
        Py_DECREF(value);
        return SAVE_ERROR;
    }
    return call_after(s, obj, 1, elided, value);
}

static int save_datetime(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided)
{
    uint8_t fields[10];
    size_t len;
    PyObject *zone = NULL;
    if (import_datetime() < 0)
        return SAVE_ERROR;
    if (plan->kind == PLAN_TIMEDELTA) {
        if (prp_plan_class(s, plan) < 0)
            return SAVE_ERROR;
        s->p = prp_append_int64(s->p, PyDateTime_DELTA_GET_DAYS(obj));
        s->p = prp_append_int64(s->p, PyDateTime_DELTA_GET_SECONDS(obj));
        s->p = prp_append_int64(s->p, PyDateTime_DELTA_GET_MICROSECONDS(obj));
        return finish_call(s, obj, 3, elided);
    }
    if (plan->kind == PLAN_DATETIME) {
        int year = PyDateTime_GET_YEAR(obj), us = PyDateTime_DATE_GET_MICROSECOND(obj);
        const uint8_t packed[10] = {
            (uint8_t)(year >> 8),
            (uint8_t)year,
            /* at protocol 4 and up, the top bit of the month contains `fold` */
            (uint8_t)(PyDateTime_GET_MONTH(obj) | (PyDateTime_DATE_GET_FOLD(obj) && s->proto > 3 ? 0x80 : 0)),
            (uint8_t)PyDateTime_GET_DAY(obj),
            (uint8_t)PyDateTime_DATE_GET_HOUR(obj),
            (uint8_t)PyDateTime_DATE_GET_MINUTE(obj),
            (uint8_t)PyDateTime_DATE_GET_SECOND(obj),
            (uint8_t)(us >> 16),
            (uint8_t)(us >> 8),
            (uint8_t)us,
        };
        memcpy(fields, packed, len = 10);
        zone = PyDateTime_DATE_GET_TZINFO(obj);
    } else if (plan->kind == PLAN_DATE) {
        int year = PyDateTime_GET_YEAR(obj);
        const uint8_t packed[4] = {(uint8_t)(year >> 8), (uint8_t)year, (uint8_t)PyDateTime_GET_MONTH(obj),
                                   (uint8_t)PyDateTime_GET_DAY(obj)};
        memcpy(fields, packed, len = 4);
    } else {
        int us = PyDateTime_TIME_GET_MICROSECOND(obj);
        const uint8_t packed[6] = {
            (uint8_t)(PyDateTime_TIME_GET_HOUR(obj) | (PyDateTime_TIME_GET_FOLD(obj) && s->proto > 3 ? 0x80 : 0)),
            (uint8_t)PyDateTime_TIME_GET_MINUTE(obj),
            (uint8_t)PyDateTime_TIME_GET_SECOND(obj),
            (uint8_t)(us >> 16),
            (uint8_t)(us >> 8),
            (uint8_t)us,
        };
        memcpy(fields, packed, len = 6);
        zone = PyDateTime_TIME_GET_TZINFO(obj);
    }
    if (prp_plan_class(s, plan) < 0)
        return SAVE_ERROR;
    *s->p++ = OP_SHORT_BINBYTES;
    *s->p++ = (uint8_t)len;
    memcpy(s->p, fields, len);
    s->p += len;
    if (!zone || zone == Py_None)
        return finish_call(s, obj, 1, elided);
    return call_after(s, obj, 2, elided, Py_NewRef(zone));
}

static int save_decimal(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided)
{
    prp_memo_own_all(s); /* the first use in a thread creates a context */
    PyObject *text = PRP_FOREIGN(PyObject_Str(obj));
    if (!text)
        return SAVE_ERROR;
    int status = prp_plan_class(s, plan) < 0 || prp_write_str(s, text) < 0 ? SAVE_ERROR : SAVE_DONE;
    Py_DECREF(text);
    return status < 0 ? status : finish_call(s, obj, 1, elided);
}

static int save_complex(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided)
{
    if (prp_plan_class(s, plan) < 0)
        return SAVE_ERROR;
    Py_complex value = PyComplex_AsCComplex(obj);
    s->p = prp_append_float(s->p, value.real);
    s->p = prp_append_float(s->p, value.imag);
    return finish_call(s, obj, 2, elided);
}

int prp_plan_save(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided)
{
    switch ((prp_plan_kind)plan->kind) {
    case PLAN_INSTANCE:
        return save_instance(s, plan, obj, elided);
    case PLAN_FIELDS:
        return save_fields(s, plan, obj, elided);
    case PLAN_NAMEDTUPLE:
        return s->exact ? SAVE_GENERIC : save_namedtuple(s, plan, obj, elided);
    case PLAN_ENUM:
        return s->exact ? SAVE_GENERIC : save_enum(s, plan, obj, elided);
    case PLAN_DATETIME:
    case PLAN_DATE:
    case PLAN_TIME:
    case PLAN_TIMEDELTA:
        return s->exact ? SAVE_GENERIC : save_datetime(s, plan, obj, elided);
    case PLAN_DECIMAL:
        return s->exact ? SAVE_GENERIC : save_decimal(s, plan, obj, elided);
    case PLAN_COMPLEX:
        return s->exact ? SAVE_GENERIC : save_complex(s, plan, obj, elided);
    case PLAN_NDARRAY:
        return s->exact ? SAVE_GENERIC : prp_save_array(s, plan, obj, elided);
    case PLAN_SCALAR:
        return s->exact ? SAVE_GENERIC : prp_save_scalar(s, plan, obj, elided);
    case PLAN_GENERIC:
    case PLAN_CLASS:
        break;
    }
    return SAVE_GENERIC;
}

int prp_plan_resume(prp_saver *s)
{
    prp_frame *frame = &s->stack[s->depth - 1];
    if (prp_room(s, PRP_ROOM) < 0)
        return SAVE_ERROR;
    switch ((prp_frame_kind)frame->kind) {
    case FRAME_BUILD:
        *s->p++ = OP_BUILD;
        drop_frame(s);
        return SAVE_DONE;
    case FRAME_CALL: {
        int status = finish_call(s, frame->obj, frame->n, frame->flags & FRAME_ELIDED);
        if (status == SAVE_DONE)
            drop_frame(s);
        return status;
    }
    case FRAME_SLOTS_NEXT: {
        const prp_plan *plan = frame->numbers->plan;
        if (prp_instance_changed(frame))
            return SAVE_ERROR;
        frame->kind = FRAME_SLOTS;
        frame->n = slots_set(plan, frame->obj);
        frame->i = 0;
        *s->p++ = OP_EMPTY_DICT;
        if (frame->n > 1)
            *s->p++ = OP_MARK;
        return SAVE_RESUME;
    }
    default:
        PyErr_SetString(PyExc_SystemError, "pickler: unknown frame");
        return SAVE_ERROR;
    }
}
