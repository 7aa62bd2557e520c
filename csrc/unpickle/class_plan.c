/* A plan records how to create instances of a class, where their attributes belong, and which shortcut replaces a call
 * of the class.
 *
 * A plan is valid for one version of a type. Version tags are never reused, so a change of the class or its bases makes
 * the plan invalid, and the plan needs no reference to the class. The context stores plans in a table of fixed size,
 * with two entries per hash; a class without a version gets the empty plan.
 */
#include "context.h"

#include <structmember.h>

#define MAX_NAMES 64
#define MAX_RELEARNED 64

PyObject *prp_text_setstate;
static PyObject *text_dict, *text_new, *text_members, *text_tuple_new;
static getter own_dict_getter;  /* getter of the __dict__ attribute that every class statement creates */
static PyObject *own_tuple_new; /* tuple.__new__ */

int prp_plan_init(void)
{
    if (!(prp_text_setstate = PyUnicode_InternFromString("__setstate__")) ||
        !(text_dict = PyUnicode_InternFromString("__dict__")) || !(text_new = PyUnicode_InternFromString("__new__")) ||
        !(text_members = PyUnicode_InternFromString("_value2member_map_")) ||
        !(text_tuple_new = PyUnicode_InternFromString("_tuple_new")))
        return -1;
    own_tuple_new = prp_type_lookup(&PyTuple_Type, text_new);
    if (!own_tuple_new)
        return PyErr_Occurred() ? -1 : 0;
    /* The getter of __dict__ is not exported, so read it from the descriptor of a new class. */
    PyObject *sample = PyObject_CallFunction((PyObject *)&PyType_Type, "s(){}", "sample");
    if (!sample)
        return -1;
    PyObject *descriptor = prp_type_lookup((PyTypeObject *)sample, text_dict);
    if (descriptor && Py_IS_TYPE(descriptor, &PyGetSetDescr_Type))
        own_dict_getter = ((PyGetSetDescrObject *)descriptor)->d_getset->get;
    Py_XDECREF(descriptor);
    Py_DECREF(sample);
    return 0;
}

static void forget_names(prp_class_plan *plan)
{
    PyMem_Free(plan->where);
    plan->where = NULL;
    plan->learned = PRP_LEARNED_NOTHING;
    Py_CLEAR(plan->names);
}

void prp_plan_forget(prp_class_plan *plan)
{
    prp_class_plan old = *plan;
    memset(plan, 0, sizeof(*plan));
    forget_names(&old);
    PyMem_Free(old.by_int);
    PRP_FOREIGN_VOID(Py_XDECREF(old.function));
    PRP_FOREIGN_VOID(Py_XDECREF(old.code));
    PRP_FOREIGN_VOID(Py_XDECREF(old.members));
}

/* ---- creating instances ------------------------------------------------------------------------------------------ */

static PyObject *unwrap_static(PyObject *found)
{
    if (found && Py_IS_TYPE(found, &PyStaticMethod_Type)) {
        PyObject *function = PyObject_GetAttrString(found, "__func__");
        Py_SETREF(found, function);
        if (!found)
            PyErr_Clear();
    }
    return found;
}

/* Return the code that collections.namedtuple generates for the __new__ of `n` fields: compile the same expression and
 * read the code from its constants, without running it. */
static PyObject *reference_code(Py_ssize_t n)
{
    PyObject *names = PRP_FOREIGN(PyList_New(0)), *comma = PyUnicode_FromString(", "), *source = NULL;
    for (Py_ssize_t i = 0; names && i < n; i++) {
        PyObject *name = PyUnicode_FromFormat("f%zd", i);
        if (!name || PyList_Append(names, name) < 0)
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    PyObject *arguments = names && comma ? PyUnicode_Join(comma, names) : NULL;
    if (arguments)
        source = PyUnicode_FromFormat("lambda _cls, %U%s: _tuple_new(_cls, (%U%s))", arguments, n == 1 ? "," : "",
                                      arguments, n == 1 ? "," : "");
    const char *text = source ? PyUnicode_AsUTF8(source) : NULL;
    PyObject *made = text ? PRP_FOREIGN(Py_CompileString(text, "<namedtuple>", Py_eval_input)) : NULL, *code = NULL;
    PyObject *constants = made ? PyObject_GetAttrString(made, "co_consts") : NULL;
    for (Py_ssize_t i = 0; !code && constants && i < PyTuple_GET_SIZE(constants); i++)
        if (PyCode_Check(PyTuple_GET_ITEM(constants, i)))
            code = Py_NewRef(PyTuple_GET_ITEM(constants, i));
    Py_XDECREF(constants);
    Py_XDECREF(made);
    Py_XDECREF(names);
    Py_XDECREF(comma);
    Py_XDECREF(arguments);
    Py_XDECREF(source);
    return code;
}

static bool same_attribute(PyObject *a, PyObject *b, const char *name)
{
    PyObject *x = PyObject_GetAttrString(a, name), *y = PyObject_GetAttrString(b, name);
    bool same = x && y && Py_TYPE(x) == Py_TYPE(y);
    if (same && PyTuple_CheckExact(x)) {
        /* Compare constants and names. Accept only identical objects and equal str, because the __eq__ of other objects
         * may be foreign code. */
        same = PyTuple_GET_SIZE(x) == PyTuple_GET_SIZE(y);
        for (Py_ssize_t i = 0; same && i < PyTuple_GET_SIZE(x); i++) {
            PyObject *one = PyTuple_GET_ITEM(x, i), *other = PyTuple_GET_ITEM(y, i);
            same = one == other ||
                   (PyUnicode_CheckExact(one) && PyUnicode_CheckExact(other) && PyUnicode_Compare(one, other) == 0);
        }
    } else if (same) {
        same = PyObject_RichCompareBool(x, y, Py_EQ) == 1;
    }
    Py_XDECREF(x);
    Py_XDECREF(y);
    return same;
}

/* Return whether `new` is the __new__ that namedtuple generates for any number of fields. */
static bool is_generated_new(PyObject *new, Py_ssize_t *fields)
{
    if (!PyFunction_Check(new))
        return false;
    PyCodeObject *code = (PyCodeObject *)PyFunction_GetCode(new);
    Py_ssize_t n = code->co_argcount - 1;
    PyObject *globals = PyFunction_GetGlobals(new), *closure = PyFunction_GetClosure(new);
    if (n < 1 || n > 255 || code->co_kwonlyargcount || closure || !PyDict_CheckExact(globals) ||
        PyDict_GetItemWithError(globals, text_tuple_new) != own_tuple_new)
        return false;
    PyObject *reference = reference_code(n);
    bool same = reference && same_attribute(reference, (PyObject *)code, "co_code") &&
                same_attribute(reference, (PyObject *)code, "co_names") &&
                same_attribute(reference, (PyObject *)code, "co_consts") &&
                same_attribute(reference, (PyObject *)code, "co_flags");
    Py_XDECREF(reference);
    *fields = n;
    return same;
}

static void plan_making(prp_class_plan *plan, PyTypeObject *type)
{
    if (type->tp_alloc != PyType_GenericAlloc)
        return;
    if (type->tp_new == PyBaseObject_Type.tp_new) {
        /* For an abstract class, object.__new__ runs Python code to compose the error. */
        plan->make = type->tp_flags & Py_TPFLAGS_IS_ABSTRACT ? PRP_MAKE_CALL : PRP_MAKE_PLAIN;
    } else if (PyType_FastSubclass(type, Py_TPFLAGS_TUPLE_SUBCLASS) && (type->tp_flags & Py_TPFLAGS_HEAPTYPE)) {
        PyObject *new = unwrap_static(prp_type_lookup(type, text_new));
        if (new && is_generated_new(new, &plan->fields)) {
            plan->make = PRP_MAKE_TUPLE;
            plan->function = Py_NewRef(new);
            plan->code = Py_NewRef(PyFunction_GetCode(new));
        }
        Py_XDECREF(new);
    }
}

/* ---- setting the state ------------------------------------------------------------------------------------------- */

static void plan_state(prp_class_plan *plan, PyTypeObject *type)
{
    if (type->tp_getattro != PyObject_GenericGetAttr)
        return; /* __setstate__ and __dict__ may have any value */
    PyObject *setstate = prp_type_lookup(type, prp_text_setstate);
    if (setstate) {
        Py_DECREF(setstate);
        return;
    }
    PyObject *dict = prp_type_lookup(type, text_dict);
    plan->dict_state = dict && Py_IS_TYPE(dict, &PyGetSetDescr_Type) && own_dict_getter &&
                       ((PyGetSetDescrObject *)dict)->d_getset->get == own_dict_getter;
    Py_XDECREF(dict);
    plan->slot_state = type->tp_setattro == PyObject_GenericSetAttr;
}

/* ---- shortcuts for the call -------------------------------------------------------------------------------------- */

static PyObject *imported_attribute(const char *module, const char *name)
{
    PyObject *value;
    (void)prp_imported(PyImport_GetModuleDict(), module, name, &value);
    return value;
}

static bool text_is(PyObject *obj, const char *attribute, const char *expected)
{
    PyObject *text = PyObject_GetAttrString(obj, attribute);
    bool same = text && PyUnicode_Check(text) && PyUnicode_CompareWithASCIIString(text, expected) == 0;
    Py_XDECREF(text);
    return same;
}

/* Fill the plan of an Enum if its lookup by value is that of the standard library. */
static void plan_enum(prp_class_plan *plan, PyTypeObject *type, PyTypeObject *meta)
{
    PyObject *enum_type = imported_attribute("enum", "EnumType"), *base = imported_attribute("enum", "Enum");
    PyObject *call = NULL, *new = NULL, *own_new = NULL;
    if ((PyObject *)meta == enum_type && base && PyType_Check(base)) {
        PyObject *name = PyUnicode_InternFromString("__call__");
        call = name ? prp_type_lookup(meta, name) : NULL;
        Py_XDECREF(name);
        new = unwrap_static(prp_type_lookup(type, text_new));
        own_new = unwrap_static(prp_type_lookup((PyTypeObject *)base, text_new));
    }
    PyObject *members = NULL;
    if (call && PyFunction_Check(call) && text_is(call, "__module__", "enum") &&
        (text_is(call, "__qualname__", "EnumType.__call__") || text_is(call, "__qualname__", "EnumMeta.__call__")) &&
        new && new == own_new && PyFunction_Check(new) && text_is(new, "__module__", "enum"))
        members = prp_type_lookup(type, text_members);
    if (members && PyDict_CheckExact(members)) {
        plan->meta_version = prp_type_version(meta);
        if (plan->meta_version) {
            plan->call = PRP_CALL_ENUM;
            plan->members = Py_NewRef(members);
        }
    }
    Py_XDECREF(members);
    Py_XDECREF(call);
    Py_XDECREF(new);
    Py_XDECREF(own_new);
    Py_XDECREF(enum_type);
    Py_XDECREF(base);
}

static void plan_call(prp_class_plan *plan, PyTypeObject *type)
{
    PyTypeObject *meta = Py_TYPE(type);
    if (strcmp(meta->tp_name, "EnumType") == 0 || strcmp(meta->tp_name, "EnumMeta") == 0) {
        plan_enum(plan, type, meta);
        return;
    }
    static const struct {
        const char *name;
        prp_call call;
    } known[] = {
        {"datetime.datetime", PRP_CALL_DATETIME}, {"datetime.date", PRP_CALL_DATE},
        {"datetime.time", PRP_CALL_TIME},         {"datetime.timedelta", PRP_CALL_TIMEDELTA},
        {"numpy.ndarray", PRP_CALL_NDARRAY},      {"numpy.dtype", PRP_CALL_DTYPE},
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
        if (!(type->tp_flags & Py_TPFLAGS_HEAPTYPE) && strcmp(type->tp_name, known[i].name) == 0) {
            plan->call = known[i].call;
            return;
        }
    /* object.__init__ ignores arguments if __new__ is overridden, so calling the type only calls __new__. */
    if (meta == &PyType_Type && type->tp_init == PyBaseObject_Type.tp_init && type->tp_new &&
        type->tp_new != PyBaseObject_Type.tp_new && type != &PyType_Type)
        plan->call = PRP_CALL_NEW_ONLY;
}

/* Create the plan of a type that has none; return NULL with an exception on failure. This runs foreign code (through
 * allocations and destructors). */
static PRP_COLD const prp_class_plan *make_plan(prp_loader *L, PyTypeObject *type, prp_class_plan *set)
{
    prp_class_plan *unknown = &L->context->unknown;
    unsigned version = prp_type_version(type);
    if (!version)
        return unknown;
    bool paused = L->collector_paused;
    if (prp_load_foreign(L) < 0)
        return NULL;
    Py_INCREF(type);
    prp_class_plan made = {.type = type, .version = version};
    /* Call each function only if no exception is set, because it might clear that exception. */
    plan_making(&made, type);
    if (!PyErr_Occurred())
        plan_state(&made, type);
    if (!PyErr_Occurred())
        plan_call(&made, type);
    /* Ignore errors of these lookups, but not an interruption. */
    int failed = prp_forgive_refusal();
    if (!failed)
        prp_plan_forget(
            &set[1]); /* replace the older plan; its type may be freed already, so only compare the type's address */
    bool kept = !failed && prp_type_version_now(type) == version;
    if (kept) {
        set[1] = set[0];
        set[0] = made;
    } else {
        prp_plan_forget(&made);
    }
    Py_DECREF(type); /* this is not the last reference: an object of the stream holds another one */
    if (paused)
        prp_load_own(L);
    return failed ? NULL : kept ? &set[0] : unknown;
}

const prp_class_plan *prp_plan_for(prp_loader *L, PyTypeObject *type)
{
    uintptr_t address = (uintptr_t)type;
    prp_class_plan *set = L->context->plans[(address >> 4 ^ address >> 12) % PRP_PLAN_SETS];
    if (PRP_LIKELY(prp_plan_holds(&set[0], type)))
        return &set[0];
    if (prp_plan_holds(&set[1], type))
        return &set[1];
    return make_plan(L, type, set);
}

/* ---- learning ---------------------------------------------------------------------------------------------------- */

#if PRP_INTERNALS
/* Find where the names of a state belong; return false if they are not usable. This runs no foreign code, so the plan
 * stays valid. */
static bool find_places(PyTypeObject *type, PyObject *state, prp_learned kind, void *keys, PyObject *names,
                        Py_ssize_t *where)
{
    PyObject *key, *value;
    Py_ssize_t n = PyTuple_GET_SIZE(names), i = 0;
    for (Py_ssize_t pos = 0; PyDict_Next(state, &pos, &key, &value); i++) {
        if (i == n || !PyUnicode_CheckExact(key))
            return false;
        PyObject *name = Py_NewRef(key);
        PyUnicode_InternInPlace(&name);
        PyTuple_SET_ITEM(names, i, name);
        if (kind == PRP_LEARNED_DICT) {
            where[i] = prp_keys_index(keys, name);
            if (where[i] < 0)
                return false;
            continue;
        }
        PyObject *slot = prp_type_lookup(type, name);
        PyMemberDef *member =
            slot && Py_IS_TYPE(slot, &PyMemberDescr_Type) ? ((PyMemberDescrObject *)slot)->d_member : NULL;
        bool usable = member && member->type == T_OBJECT_EX && member->flags == 0 && member->offset > 0 &&
                      member->offset + (Py_ssize_t)sizeof(PyObject *) <= type->tp_basicsize &&
                      PyType_IsSubtype(type, ((PyDescrObject *)slot)->d_type);
        where[i] = member ? member->offset : 0;
        Py_XDECREF(slot);
        if (!usable)
            return false;
    }
    return i == n;
}
#endif

int prp_plan_learn(prp_loader *L, PyObject *obj, PyObject *state, prp_learned kind)
{
#if PRP_INTERNALS
    Py_ssize_t n = PyDict_GET_SIZE(state);
    if (n == 0 || n > MAX_NAMES)
        return 0;
    PyObject *names = PRP_FOREIGN(PyTuple_New(n));
    if (!names)
        return -1;
    Py_ssize_t *where = PyMem_Calloc((size_t)n, sizeof(*where));
    PyTypeObject *type = Py_TYPE(obj);
    prp_class_plan *plan = where ? (prp_class_plan *)prp_plan_for(L, type) : NULL;
    bool known = plan && plan != &L->context->unknown && plan->relearned < MAX_RELEARNED;
    void *keys = NULL;
    if (known && kind == PRP_LEARNED_DICT) {
        keys = type->tp_flags & Py_TPFLAGS_MANAGED_DICT ? ((PyHeapTypeObject *)type)->ht_cached_keys : NULL;
        known = keys && plan->dict_state;
    } else if (known) {
        known = plan->slot_state;
    }
    if (known) {
        plan->relearned++;
        if (find_places(type, state, kind, keys, names, where)) {
            forget_names(plan);
            plan->names = names;
            plan->where = where;
            plan->keys = keys;
            plan->learned = kind;
            return 0;
        }
    }
    Py_DECREF(names);
    PyMem_Free(where);
    if (!where)
        PyErr_NoMemory();
    return PyErr_Occurred() ? -1 : 0;
#else
    (void)L, (void)obj, (void)state, (void)kind;
    return 0;
#endif
}
