/* Executes the calls that a stream requests: NEWOBJ, REDUCE and the old INST and OBJ.
 *
 * Arguments are on the stack, and most calls can use them from there. For a few known callables we create the result
 * without the call: members of an unmodified Enum, namedtuples that still have their generated __new__, datetime
 * objects, arrays. Each such shortcut returns exactly the result of the call, or falls back to the call.
 */
#include "context.h"

#include <datetime.h>

static PyObject *tuple_of(PyObject *const *argv, Py_ssize_t n)
{
    PyObject *tuple = PRP_FOREIGN(PyTuple_New(n));
    for (Py_ssize_t i = 0; tuple && i < n; i++)
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(argv[i]));
    return tuple;
}

/* ---- NEWOBJ ------------------------------------------------------------------------------------------------------ */

PyObject *prp_load_new(prp_loader *L, PyObject *cls, PyObject *args, PyObject *kwargs)
{
    const char *opcode = kwargs ? "NEWOBJ_EX" : "NEWOBJ";
    if (!PyType_Check(cls))
        return prp_load_malformed("%s class argument must be a type, not %.200s", opcode, Py_TYPE(cls)->tp_name);
    PyTypeObject *type = (PyTypeObject *)cls;
    if (!type->tp_new)
        return prp_load_malformed("%s class argument '%.200s' doesn't have __new__", opcode, Py_TYPE(cls)->tp_name);
    if (!PyTuple_Check(args))
        return prp_load_malformed("%s args argument must be a tuple, not %.200s", opcode, Py_TYPE(args)->tp_name);
    if (kwargs && !PyDict_Check(kwargs))
        return prp_load_malformed("%s kwargs argument must be a dict, not %.200s", opcode, Py_TYPE(kwargs)->tp_name);
    if (prp_load_foreign(L) < 0)
        return NULL;
    PyObject *value = PRP_FOREIGN(type->tp_new(type, args, kwargs));
    return prp_load_guarded(L, ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args), value);
}

/* Create a namedtuple of a class that still has its generated __new__. */
static PyObject *new_tuple(PyTypeObject *type, Py_ssize_t n, PyObject *const *argv)
{
    PyObject *tuple = PRP_FOREIGN(type->tp_alloc(type, n));
    for (Py_ssize_t i = 0; tuple && i < n; i++)
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(argv[i]));
    return tuple;
}

PyObject *prp_load_new_fused(prp_loader *L, PyObject *cls, PyObject *const *argv, Py_ssize_t n, PyObject *args)
{
    if (PRP_LIKELY(PyType_Check(cls))) {
        PyTypeObject *type = (PyTypeObject *)cls;
        const prp_class_plan *plan = prp_plan_for(L, type);
        if (!plan)
            return NULL;
        if (plan->make == PRP_MAKE_PLAIN && n == 0) {
            /* object.__new__ runs no code except the allocator's. */
            PyObject *none = PyTuple_New(0), *instance = none ? PRP_FOREIGN(type->tp_new(type, none, NULL)) : NULL;
            Py_XDECREF(none);
            return instance;
        }
        if (plan->make == PRP_MAKE_TUPLE && n == plan->fields && PyFunction_GET_CODE(plan->function) == plan->code)
            return new_tuple(type, n, argv);
    }
    PyObject *made = args ? NULL : tuple_of(argv, n);
    PyObject *instance = args || made ? prp_load_new(L, cls, args ? args : made, NULL) : NULL;
    PRP_FOREIGN_VOID(Py_XDECREF(made));
    return instance;
}

/* ---- datetime ---------------------------------------------------------------------------------------------------- */

static PyDateTime_CAPI *datetime_api(void)
{
    if (!PyDateTimeAPI) {
        PRP_FOREIGN_VOID(PyDateTime_IMPORT);
        if (!PyDateTimeAPI)
            (void)prp_forgive_refusal();
    }
    return PyDateTimeAPI;
}

/* Get the tzinfo that may follow a state; return false if the argument after the state is not a tzinfo. */
static bool zone(PyObject *const *argv, Py_ssize_t n, PyObject **tzinfo)
{
    *tzinfo = n > 1 ? argv[1] : Py_None;
    return n <= 2 && (*tzinfo == Py_None || PyTZInfo_Check(*tzinfo));
}

static PyObject *call_datetime(prp_loader *L, prp_call call, PyTypeObject *type, PyObject *const *argv, Py_ssize_t n)
{
    if (!PyDateTimeAPI && prp_load_foreign(L) < 0)
        return NULL;
    PyDateTime_CAPI *api = datetime_api();
    PyObject *tzinfo, *value = NULL;
    if (!api)
        return NULL;
    switch (call) {
    case PRP_CALL_DATETIME:
        if (type == api->DateTimeType && n >= 1 && PyBytes_CheckExact(argv[0]) && PyBytes_GET_SIZE(argv[0]) == 10 &&
            zone(argv, n, &tzinfo)) {
            const uint8_t *s = (const uint8_t *)PyBytes_AS_STRING(argv[0]);
            value = api->DateTime_FromDateAndTimeAndFold(s[0] << 8 | s[1], s[2] & 0x7f, s[3], s[4], s[5], s[6],
                                                         s[7] << 16 | s[8] << 8 | s[9], tzinfo, s[2] >> 7, type);
        }
        break;
    case PRP_CALL_DATE:
        if (type == api->DateType && n == 1 && PyBytes_CheckExact(argv[0]) && PyBytes_GET_SIZE(argv[0]) == 4) {
            const uint8_t *s = (const uint8_t *)PyBytes_AS_STRING(argv[0]);
            value = api->Date_FromDate(s[0] << 8 | s[1], s[2], s[3], type);
        }
        break;
    case PRP_CALL_TIME:
        if (type == api->TimeType && n >= 1 && PyBytes_CheckExact(argv[0]) && PyBytes_GET_SIZE(argv[0]) == 6 &&
            zone(argv, n, &tzinfo)) {
            const uint8_t *s = (const uint8_t *)PyBytes_AS_STRING(argv[0]);
            value = api->Time_FromTimeAndFold(s[0] & 0x7f, s[1], s[2], s[3] << 16 | s[4] << 8 | s[5], tzinfo, s[0] >> 7,
                                              type);
        }
        break;
    default:
        if (type == api->DeltaType && n == 3 && PyLong_CheckExact(argv[0]) && PyLong_CheckExact(argv[1]) &&
            PyLong_CheckExact(argv[2])) {
            long part[3];
            bool fits = true;
            for (int i = 0; i < 3; i++) {
                int overflow;
                part[i] = PyLong_AsLongAndOverflow(argv[i], &overflow);
                fits = fits && !overflow;
            }
            /* Accept only normalised values, which every timedelta pickles; the constructor handles all others. */
            if (fits && part[0] >= -999999999 && part[0] <= 999999999 && part[1] >= 0 && part[1] < 86400 &&
                part[2] >= 0 && part[2] < 1000000)
                value = api->Delta_FromDelta((int)part[0], (int)part[1], (int)part[2], 0, type);
        }
        break;
    }
    if (!value)
        (void)prp_forgive_refusal(); /* the values are out of range, so let the normal call raise the right exception */
    return value;
}

/* ---- REDUCE ------------------------------------------------------------------------------------------------------ */

/* Build an array that maps int values to members, if the values are small compared to the number of members. */
static void index_members(prp_class_plan *plan, uint64_t version)
{
    PyMem_Free(plan->by_int);
    plan->by_int = NULL;
    plan->by_int_count = 0;
    plan->by_int_version = version;
    plan->inert_members = true;
    size_t room = 4 * (size_t)PyDict_GET_SIZE(plan->members) + 16;
    PyObject **table = room <= 1u << 18 ? PyMem_Calloc(room, sizeof(*table)) : NULL;
    PyObject *value, *member;
    for (Py_ssize_t pos = 0; PyDict_Next(plan->members, &pos, &value, &member);) {
        int overflow;
        plan->inert_members = plan->inert_members && prp_load_inert_keys(&value, 1);
        if (!table || !PyLong_CheckExact(value))
            continue;
        long number = PyLong_AsLongAndOverflow(value, &overflow);
        if (overflow || number < 0 || (size_t)number >= room)
            continue;
        table[number] = member;
        if ((uint32_t)number >= plan->by_int_count)
            plan->by_int_count = (uint32_t)number + 1;
    }
    plan->by_int = table;
}

/* Update the plan's table of members; return false if this interpreter has no dict versions. */
static bool members_known(const prp_class_plan *plan)
{
    uint64_t version = prp_dict_version(plan->members);
    if (PRP_UNLIKELY(version && plan->by_int_version != version))
        index_members((prp_class_plan *)plan, version);
    return version != 0;
}

PyObject *prp_load_enum_member(prp_loader *L, PyTypeObject *type, uint32_t value)
{
    const prp_class_plan *plan = prp_plan_for(L, type);
    if (!plan)
        return NULL;
    if (plan->call != PRP_CALL_ENUM || prp_type_version_now(Py_TYPE(type)) != plan->meta_version ||
        !members_known(plan))
        return NULL;
    return value < plan->by_int_count ? Py_XNewRef(plan->by_int[value]) : NULL;
}

/* Return the member of an unmodified Enum for an int or str as a new reference, or NULL. An exception is set only if a
 * comparison with a value of the Enum raised it. */
static PyObject *enum_member(prp_loader *L, const prp_class_plan *plan, PyTypeObject *type, PyObject *const *argv,
                             Py_ssize_t n)
{
    if (n != 1 || (!PyLong_CheckExact(argv[0]) && !PyUnicode_CheckExact(argv[0])) ||
        prp_type_version_now(Py_TYPE(type)) != plan->meta_version)
        return NULL;
    PyObject *members = Py_NewRef(plan->members);
    /* Comparing with a value of another type may run foreign code. */
    PyObject *member = NULL;
    if ((members_known(plan) && plan->inert_members) || prp_load_foreign(L) == 0)
        member = Py_XNewRef(PRP_FOREIGN(PyDict_GetItemWithError(members, argv[0])));
    PRP_FOREIGN_VOID(Py_DECREF(members));
    /* Enum treats these errors as "not found": leave the search for the member to the normal call. */
    if (!member && prp_forgive(PyExc_KeyError) < 0)
        (void)prp_forgive(PyExc_TypeError);
    return member;
}

/* Try the shortcuts; return NULL without an exception if none applies. */
static PyObject *known_call(prp_loader *L, PyObject *callable, PyObject *const *argv, Py_ssize_t n)
{
    if (!PyType_Check(callable))
        return prp_load_array_known(callable) ? prp_load_array_call(L, callable, argv, n) : NULL;
    PyTypeObject *type = (PyTypeObject *)callable;
    const prp_class_plan *plan = prp_plan_for(L, type);
    if (!plan)
        return NULL;
    switch (plan->call) {
    case PRP_CALL_ENUM:
        return enum_member(L, plan, type, argv, n);
    case PRP_CALL_DATETIME:
    case PRP_CALL_DATE:
    case PRP_CALL_TIME:
    case PRP_CALL_TIMEDELTA:
        return call_datetime(L, plan->call, type, argv, n);
    case PRP_CALL_NDARRAY:
        return prp_load_array_new(L, callable, argv, n);
    case PRP_CALL_DTYPE:
        return prp_load_array_dtype(L, argv, n);
    default:
        return NULL;
    }
}

/* Return whether a call of this object only calls its tp_new; -1 with an exception. */
static int is_new_only(prp_loader *L, PyObject *callable)
{
    if (!PyType_Check(callable))
        return 0;
    const prp_class_plan *plan = prp_plan_for(L, (PyTypeObject *)callable);
    return plan ? plan->call == PRP_CALL_NEW_ONLY : -1;
}

static PyObject *call_tuple(prp_loader *L, PyObject *callable, PyObject *args)
{
    int new_only = is_new_only(L, callable);
    if (new_only < 0 || prp_load_foreign(L) < 0)
        return NULL;
    if (new_only)
        return PRP_FOREIGN(((PyTypeObject *)callable)->tp_new((PyTypeObject *)callable, args, NULL));
    return PRP_FOREIGN(PyObject_Call(callable, args, NULL));
}

/* Check the object that foreign code returned for these arguments before the stream can use it. */
static PyObject *checked(prp_loader *L, PyObject *const *argv, Py_ssize_t n, PyObject *value)
{
    value = prp_load_guarded(L, argv, n, value);
    if (value && L->owner && prp_load_array_seal(L, value) < 0)
        Py_CLEAR(value);
    return value;
}

PyObject *prp_load_call(prp_loader *L, PyObject *callable, PyObject *const *argv, Py_ssize_t n)
{
    PyObject *value = known_call(L, callable, argv, n);
    if (value || PyErr_Occurred())
        return prp_load_guarded(L, argv, n, value);
    if (PyType_Check(callable)) {
        PyObject *args = tuple_of(argv, n);
        value = args ? call_tuple(L, callable, args) : NULL;
        PRP_FOREIGN_VOID(Py_XDECREF(args));
    } else if (prp_load_foreign(L) == 0) {
        value = PRP_FOREIGN(PyObject_Vectorcall(callable, argv, (size_t)n, NULL));
    }
    return checked(L, argv, n, value);
}

PyObject *prp_load_reduce(prp_loader *L, PyObject *callable, PyObject *args)
{
    if (!PyTuple_Check(args)) {
        PyErr_SetString(PyExc_TypeError, "argument list must be a tuple");
        return NULL;
    }
    PyObject *const *argv = ((PyTupleObject *)args)->ob_item;
    Py_ssize_t n = PyTuple_GET_SIZE(args);
    PyObject *value = known_call(L, callable, argv, n);
    if (value || PyErr_Occurred())
        return prp_load_guarded(L, argv, n, value);
    return checked(L, argv, n, call_tuple(L, callable, args));
}

/* ---- INST and OBJ ------------------------------------------------------------------------------------------------ */

PyObject *prp_load_instantiate(prp_loader *L, PyObject *cls, PyObject *args)
{
    if (prp_load_foreign(L) < 0)
        return NULL;
    if (PyTuple_GET_SIZE(args) == 0 && PyType_Check(cls)) {
        /* Python 2's pickle did not call __init__ for old-style classes without __getinitargs__. */
        PyObject *method = PRP_FOREIGN(PyObject_GetAttrString(cls, "__getinitargs__"));
        if (!method) {
            if (!PyErr_ExceptionMatches(PyExc_AttributeError))
                return NULL;
            PyErr_Clear();
            return checked(L, NULL, 0, PRP_FOREIGN(PyObject_CallMethod(cls, "__new__", "O", cls)));
        }
        PRP_FOREIGN_VOID(Py_DECREF(method));
    }
    PyObject *value = PRP_FOREIGN(PyObject_CallObject(cls, args));
    return checked(L, ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args), value);
}
