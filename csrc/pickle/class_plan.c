/* Creates and caches plans: decides which types qualify, and when a plan is stale. See class_plan.h. */
#include "class_plan.h"

#include "interp_write.h"

#include <stddef.h>
#include <stdlib.h>
#include <structmember.h>
#include <datetime.h>

#define MAX_PLANS 4096

/* The table owns one reference to each plan in it. */
static struct {
    prp_plan **table; /* open addressing */
    size_t mask, count;
    prp_plan *last; /* borrowed from the table: the plan that was used last */
} plans;

static size_t plan_hash(const PyTypeObject *type)
{
    return (size_t)((uintptr_t)type * 0x9E3779B97F4A7C15ull >> 32);
}

void prp_plan_free(prp_plan *plan)
{
    Py_XDECREF(plan->registered);
    Py_XDECREF(plan->table);
    Py_XDECREF(plan->put_reducer);
    Py_XDECREF(plan->extra);
    for (Py_ssize_t i = 0; i < plan->nslots; i++)
        Py_DECREF(plan->slots[i].name);
    free(plan->slots);
    free(plan);
}

int prp_plans_setup(void)
{
    plans.mask = 255;
    plans.table = calloc(plans.mask + 1, sizeof *plans.table);
    if (!plans.table) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static prp_plan *find(PyTypeObject *type)
{
    for (size_t i = plan_hash(type) & plans.mask; plans.table[i]; i = (i + 1) & plans.mask)
        if (plans.table[i]->type == type)
            return plans.table[i];
    return NULL;
}

/* Clear the whole table; each plan is freed when its last user releases it. */
static void trim(void)
{
    prp_plan **old = plans.table;
    size_t slots = plans.mask + 1;
    if (prp_plans_setup() < 0) {
        PyErr_Clear();
        plans.table = old;
        plans.mask = slots - 1;
        return;
    }
    plans.count = 0;
    plans.last = NULL;
    for (size_t i = 0; i < slots; i++)
        prp_plan_drop(old[i]);
    free(old);
}

static int grow(void)
{
    size_t mask = plans.mask * 2 + 1;
    prp_plan **table = calloc(mask + 1, sizeof *table);
    if (!table) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i <= plans.mask; i++) {
        if (!plans.table[i])
            continue;
        size_t at = plan_hash(plans.table[i]->type) & mask;
        while (table[at])
            at = (at + 1) & mask;
        table[at] = plans.table[i];
    }
    free(plans.table);
    plans.table = table;
    plans.mask = mask;
    return 0;
}

/* Insert a plan into the table, where it replaces an older plan of the same type. */
static int publish(prp_plan *plan)
{
    if (plans.count >= MAX_PLANS)
        trim();
    if ((plans.count + 1) * 2 > plans.mask && grow() < 0)
        return -1;
    size_t at = plan_hash(plan->type) & plans.mask;
    while (plans.table[at] && plans.table[at]->type != plan->type)
        at = (at + 1) & plans.mask;
    prp_plan *older = plans.table[at];
    plans.table[at] = plan;
    plan->refs++;
    plans.last = NULL;
    if (!older)
        plans.count++;
    prp_plan_drop(older);
    return 0;
}

/* ---- which types qualify ---- */

static bool inherits(PyTypeObject *type, PyTypeObject *base, PyObject *name)
{
    PyObject *mine = prp_type_lookup(type, name), *theirs = prp_type_lookup(base, name);
    bool same = mine && mine == theirs;
    Py_XDECREF(mine);
    Py_XDECREF(theirs);
    return same;
}

/* Return whether the type looks up instance attributes as `object` does; the type may define __getattr__. */
static bool plain_getattribute(PyTypeObject *type)
{
    return type->tp_getattro == PyObject_GenericGetAttr || inherits(type, &PyBaseObject_Type, prp_g.str_getattribute);
}

static bool defines(PyTypeObject *type, PyObject *name)
{
    PyObject *found = prp_type_lookup(type, name);
    Py_XDECREF(found);
    return found != NULL;
}

/* If `module` is loaded, return its `attribute` as a new reference; otherwise NULL, with or without an exception. */
static PyObject *loaded(const char *module, const char *attribute)
{
    PyObject *found;
    (void)prp_imported(prp_g.sys_modules, module, attribute, &found);
    return found;
}

/* Return whether the type is the named attribute of a loaded module; false with or without an exception. */
static bool is_loaded(PyTypeObject *type, const char *module, const char *attribute)
{
    PyObject *found = loaded(module, attribute);
    Py_XDECREF(found);
    return found == (PyObject *)type;
}

/* Collect the slots that copyreg names. Return 1 if all of them are member descriptors, 0 if not, -1 with an
 * exception. */
static int collect_slots(prp_plan *plan, PyTypeObject *type, Py_ssize_t *names_count)
{
    PyObject *names = PRP_FOREIGN(PyObject_CallOneArg(prp_g.slotnames, (PyObject *)type));
    if (!names)
        return -1;
    *names_count = 0;
    int status = 1;
    if (PyList_CheckExact(names)) {
        Py_ssize_t n = PyList_GET_SIZE(names);
        *names_count = n;
        plan->slots = n ? calloc((size_t)n, sizeof *plan->slots) : NULL;
        if (n && !plan->slots) {
            PyErr_NoMemory();
            status = -1;
        }
        for (Py_ssize_t i = 0; i < n && status > 0; i++) {
            PyObject *name = PyList_GET_ITEM(names, i);
            PyObject *member = PyUnicode_CheckExact(name) ? prp_type_lookup(type, name) : NULL;
            if (member && Py_IS_TYPE(member, &PyMemberDescr_Type) &&
                ((PyMemberDescrObject *)member)->d_member->type == T_OBJECT_EX) {
                plan->slots[plan->nslots].name = Py_NewRef(name);
                plan->slots[plan->nslots++].offset = ((PyMemberDescrObject *)member)->d_member->offset;
            } else {
                status = 0;
            }
            Py_XDECREF(member);
        }
    } else if (names != Py_None) {
        status = 0;
    }
    Py_DECREF(names);
    return status;
}

/* object.__reduce_ex__ rejects types whose instances contain C data that it cannot access. */
static bool all_visible(PyTypeObject *type, Py_ssize_t slots)
{
    Py_ssize_t size = PyBaseObject_Type.tp_basicsize + slots * (Py_ssize_t)sizeof(PyObject *);
    if (type->tp_dictoffset != 0 && !(type->tp_flags & Py_TPFLAGS_MANAGED_DICT))
        size += sizeof(PyObject *);
    if (type->tp_weaklistoffset > 0)
        size += sizeof(PyObject *);
    return type->tp_itemsize == 0 && type->tp_basicsize <= size;
}

/* Return 1 if the class uses the __getnewargs__ that collections.namedtuple generates, else 0; -1 with an exception. */
static int generated_getnewargs(PyTypeObject *type)
{
    static PyObject *code; /* code of one such function, created for comparison; all such functions share it */
    if (!code) {
        PyObject *collections = PRP_FOREIGN(PyImport_ImportModule("collections"));
        PyObject *cls = collections ? PRP_FOREIGN(PyObject_CallMethod(collections, "namedtuple", "s()", "_")) : NULL;
        PyObject *method = cls ? PRP_FOREIGN(PyObject_GetAttr(cls, prp_g.str_getnewargs)) : NULL;
        code = method ? PRP_FOREIGN(PyObject_GetAttrString(method, "__code__")) : NULL;
        Py_XDECREF(method);
        Py_XDECREF(cls);
        Py_XDECREF(collections);
        if (!code)
            return prp_forgive_refusal();
    }
    PyObject *method = prp_type_lookup(type, prp_g.str_getnewargs);
    bool same = false;
    if (method && PyFunction_Check(method) && PyFunction_GET_CODE(method) == code) {
        /* The function calls tuple(self) through a closure cell. */
        PyObject *cells = PyFunction_GET_CLOSURE(method);
        same = cells && PyTuple_GET_SIZE(cells) == 1 &&
               PyCell_GET(PyTuple_GET_ITEM(cells, 0)) == (PyObject *)&PyTuple_Type;
    }
    Py_XDECREF(method);
    return same && inherits(type, &PyTuple_Type, prp_g.str_iter);
}

/* Return 1 if the enum uses the enum module's reduction, which returns (class, (value,)), else 0; -1 with an
 * exception. */
static int plain_enum(PyTypeObject *type, PyObject *sample)
{
    PyObject *base = loaded("enum", "Enum");
    bool good = base && PyType_Check(base) && PyType_IsSubtype(type, (PyTypeObject *)base) &&
                inherits(type, (PyTypeObject *)base, prp_g.str_reduce_ex) &&
                inherits(type, &PyBaseObject_Type, prp_g.str_class) && plain_getattribute(type) &&
                !defines(type, prp_g.str_getattr) && !defines(type, prp_g.str_value);
    Py_XDECREF(base);
    if (!good)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *method = prp_type_lookup(type, prp_g.str_reduce_ex);
    PyObject *name =
        method && PyFunction_Check(method) ? PRP_FOREIGN(PyObject_GetAttr(method, prp_g.str_qualname)) : NULL;
    PyObject *home = name ? PRP_FOREIGN(PyObject_GetAttr(method, prp_g.str_module)) : NULL;
    good = home && PyUnicode_Check(home) && PyUnicode_Check(name) &&
           PyUnicode_CompareWithASCIIString(home, "enum") == 0 &&
           PyUnicode_CompareWithASCIIString(name, "Enum.__reduce_ex__") == 0;
    PyObject *value = NULL, *reduced = NULL;
    if (good) {
        value = PRP_FOREIGN(PyObject_GetAttr(sample, prp_g.str_value));
        reduced = value ? PRP_FOREIGN(PyObject_CallFunctionObjArgs(method, sample, prp_g.int_proto[5], NULL)) : NULL;
        PyObject *args = reduced && PyTuple_CheckExact(reduced) && PyTuple_GET_SIZE(reduced) == 2
                             ? PyTuple_GET_ITEM(reduced, 1)
                             : NULL;
        good = args && PyTuple_GET_ITEM(reduced, 0) == (PyObject *)type && PyTuple_CheckExact(args) &&
               PyTuple_GET_SIZE(args) == 1 && PyTuple_GET_ITEM(args, 0) == value;
    }
    Py_XDECREF(value);
    Py_XDECREF(reduced);
    Py_XDECREF(home);
    Py_XDECREF(name);
    Py_XDECREF(method);
    return prp_forgive_refusal() < 0 ? -1 : good;
}

/* Return whether the interpreter itself defines every method that object.__reduce_ex__ would call on an instance. (An
 * attribute of the instance may still override a method; we check this for each instance.) */
static bool only_c_code(PyTypeObject *type)
{
    PyTypeObject *base = &PyBaseObject_Type;
    if (!inherits(type, base, prp_g.str_reduce) || !inherits(type, base, prp_g.str_getstate) ||
        !inherits(type, base, prp_g.str_class) || type->tp_getattro != PyObject_GenericGetAttr ||
        defines(type, prp_g.str_getnewargs_ex))
        return false;
    PyObject *args = prp_type_lookup(type, prp_g.str_getnewargs);
    bool good = !args || Py_IS_TYPE(args, &PyMethodDescr_Type);
    Py_XDECREF(args);
    if (PyType_IsSubtype(type, &PyList_Type))
        good = good && inherits(type, &PyList_Type, prp_g.str_iter);
    if (PyType_IsSubtype(type, &PyDict_Type))
        good = good && inherits(type, &PyDict_Type, prp_g.str_items);
    return good;
}

/* Returns -1 with an exception only for errors that must end the dump (MemoryError in copyreg, KeyboardInterrupt and
 * similar). */
static int classify_heap(prp_plan *plan, PyTypeObject *type, PyObject *sample)
{
    PyTypeObject *base = &PyBaseObject_Type;
    /* A WeakSet contains weak references, which cannot be pickled; a sentinel of dataclasses is compared by
     * identity. */
    if ((strcmp(type->tp_name, "WeakSet") == 0 && is_loaded(type, "_weakrefset", "WeakSet")) ||
        (strcmp(type->tp_name, "_FIELD_BASE") == 0 && is_loaded(type, "dataclasses", "_FIELD_BASE"))) {
        plan->by_table = true;
        return 0;
    }
    if (!inherits(type, base, prp_g.str_reduce_ex)) {
        int plain = plain_enum(type, sample);
        if (plain > 0)
            plan->kind = PLAN_ENUM;
        return plain < 0 ? -1 : 0;
    }
    plan->trusted = only_c_code(type);
    if (!inherits(type, base, prp_g.str_reduce) || !inherits(type, base, prp_g.str_class) ||
        !plain_getattribute(type) || defines(type, prp_g.str_getnewargs_ex))
        return 0;
    bool own_state = !inherits(type, base, prp_g.str_getstate);
    if (PyType_IsSubtype(type, &PyTuple_Type)) {
        bool small = type->tp_basicsize <= PyTuple_Type.tp_basicsize + (Py_ssize_t)sizeof(PyObject *);
        int generated = !own_state && small ? generated_getnewargs(type) : 0;
        if (generated <= 0)
            return generated;
        Py_ssize_t names;
        if (collect_slots(plan, type, &names) < 0)
            return -1;
        if (names == 0)
            plan->kind = PLAN_NAMEDTUPLE;
        return 0;
    }
    if (defines(type, prp_g.str_getnewargs) || PyType_IsSubtype(type, &PyList_Type) ||
        PyType_IsSubtype(type, &PyDict_Type))
        return 0;
    Py_ssize_t names;
    int good = collect_slots(plan, type, &names);
    if (good < 0)
        return -1;
    if (!good || !all_visible(type, names) || (plan->nslots && defines(type, prp_g.str_getattr)))
        return 0;
    if (!own_state) {
        plan->kind = PLAN_INSTANCE;
        return 0;
    }
    /* For a frozen dataclass with slots, the __getstate__ that dataclasses provides returns a list of the fields. */
    PyObject *method = prp_type_lookup(type, prp_g.str_getstate),
             *theirs = loaded("dataclasses", "_dataclass_getstate");
    if (method && method == theirs && !plan->has_attrs) {
        PyObject *fields = loaded("dataclasses", "fields");
        PyObject *list = fields ? PRP_FOREIGN(PyObject_CallOneArg(fields, (PyObject *)type)) : NULL;
        bool same = list && PyTuple_CheckExact(list) && PyTuple_GET_SIZE(list) == plan->nslots;
        for (Py_ssize_t i = 0; same && i < plan->nslots; i++) {
            PyObject *name = PRP_FOREIGN(PyObject_GetAttrString(PyTuple_GET_ITEM(list, i), "name"));
            same = false;
            for (Py_ssize_t j = i; name && PyUnicode_CheckExact(name) && j < plan->nslots; j++)
                if (PyUnicode_Compare(name, plan->slots[j].name) == 0) {
                    prp_slot slot = plan->slots[j];
                    plan->slots[j] = plan->slots[i];
                    plan->slots[i] = slot;
                    same = true;
                    break;
                }
            Py_XDECREF(name);
        }
        if (same)
            plan->kind = PLAN_FIELDS;
        Py_XDECREF(list);
        Py_XDECREF(fields);
    }
    Py_XDECREF(method);
    Py_XDECREF(theirs);
    return prp_forgive_refusal();
}

static int classify_static(prp_plan *plan, PyTypeObject *type)
{
    static const struct {
        const char *name, *module, *attribute;
        prp_plan_kind kind;
    } known[] = {
        {"datetime.datetime", "datetime", "datetime", PLAN_DATETIME},
        {"datetime.date", "datetime", "date", PLAN_DATE},
        {"datetime.time", "datetime", "time", PLAN_TIME},
        {"datetime.timedelta", "datetime", "timedelta", PLAN_TIMEDELTA},
        {"datetime.timezone", "datetime", "timezone", PLAN_GENERIC},
        {"decimal.Decimal", "decimal", "Decimal", PLAN_DECIMAL},
        {"numpy.ndarray", "numpy", "ndarray", PLAN_NDARRAY},
        {"collections.deque", "collections", "deque", PLAN_GENERIC},
        {"collections.OrderedDict", "collections", "OrderedDict", PLAN_GENERIC},
        {"collections.defaultdict", "collections", "defaultdict", PLAN_GENERIC},
        {"array.array", "array", "array", PLAN_GENERIC},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(type->tp_name, known[i].name) == 0 && is_loaded(type, known[i].module, known[i].attribute)) {
            plan->kind = (uint8_t)known[i].kind;
            plan->trusted = true;
            if (plan->kind >= PLAN_DATETIME && plan->kind <= PLAN_TIMEDELTA && !PyDateTimeAPI) {
                PyDateTime_IMPORT;
                if (!PyDateTimeAPI) {
                    plan->kind = PLAN_GENERIC;
                    return prp_forgive_refusal();
                }
            }
            return 0;
        }
    if (PyErr_Occurred())
        return -1;
    if (type == &PyComplex_Type)
        plan->kind = PLAN_COMPLEX;
    plan->trusted = type == &PyRange_Type || type == &PySlice_Type || type == &PyCFunction_Type ||
                    type == &PyMethodDescr_Type || type == &PyWrapperDescr_Type || type == &PyClassMethodDescr_Type ||
                    type == &PyMemberDescr_Type || type == Py_TYPE(Py_Ellipsis) || type == Py_TYPE(Py_NotImplemented) ||
                    PyType_IsSubtype(type, (PyTypeObject *)PyExc_BaseException);
    if (strncmp(type->tp_name, "numpy.", 6) == 0) {
        if (strncmp(type->tp_name, "numpy.dtype", 11) == 0) {
            plan->trusted = true;
        } else if (prp_is_numpy(type, type->tp_name + 6)) {
            static const char *const scalars[] = {
                "bool",     "bool_",      "int8",       "int16",       "int32",      "int64",      "uint8",
                "uint16",   "uint32",     "uint64",     "intp",        "uintp",      "longlong",   "ulonglong",
                "float16",  "float32",    "float64",    "complex64",   "complex128", "longdouble", "clongdouble",
                "float128", "complex256", "datetime64", "timedelta64",
            };
            for (size_t i = 0; i < sizeof scalars / sizeof *scalars; i++)
                if (strcmp(type->tp_name + 6, scalars[i]) == 0) {
                    plan->trusted = true;
                    plan->extra = prp_scalar_function();
                    plan->kind = plan->extra ? PLAN_SCALAR : PLAN_GENERIC;
                    break;
                }
        }
    }
    return PyErr_Occurred() ? -1 : 0;
}

/* Fill a zeroed plan. */
static int classify(prp_plan *plan, PyTypeObject *type, PyObject *sample)
{
    plan->kind = PLAN_GENERIC;
    plan->registry_version = -1;
    plan->odd =
        Py_TYPE(type)->tp_hash != PyType_Type.tp_hash || Py_TYPE(type)->tp_richcompare != PyType_Type.tp_richcompare;
    plan->has_attrs = type->tp_dictoffset != 0 || type->tp_flags & Py_TPFLAGS_MANAGED_DICT;
    if (PyType_IsSubtype(type, &PyType_Type)) {
        plan->kind = PLAN_CLASS;
        if (strcmp(type->tp_name, "numpy._DTypeMeta") == 0)
            plan->extra = prp_numpy_attribute("dtype");
        if (PyErr_Occurred())
            return -1;
        plan->version = prp_type_version(type);
        return 0;
    }
    if (type->tp_flags & Py_TPFLAGS_HEAPTYPE && !(type->tp_flags & Py_TPFLAGS_IMMUTABLETYPE)) {
        if (classify_heap(plan, type, sample) < 0)
            return -1;
    } else if (classify_static(plan, type) < 0) {
        return -1;
    }
    /* A plan whose version is unknown (0) is valid until foreign code runs. Read the version last, because copyreg may
     * have added __slotnames__ to the class. */
    plan->version = prp_type_version(type);
    return 0;
}

/* ---- up to date ---- */

static int look_up(PyObject *table, PyObject *type, PyObject **kept)
{
    PyObject *found = table && PyDict_GET_SIZE(table) ? PRP_FOREIGN(PyDict_GetItemWithError(table, type)) : NULL;
    if (!found && PyErr_Occurred())
        return -1;
    if (found != *kept)
        Py_XSETREF(*kept, Py_XNewRef(found));
    return 0;
}

static int check_tables(prp_saver *s, prp_plan *plan)
{
    PyObject *type = (PyObject *)plan->type;
    /* Query the registry first, because the query imports the reducers for the package that defines the class. */
    if (prp_g.registry_find) {
        long version = PyLong_AsLong(PyList_GET_ITEM(prp_g.registry_version, 0));
        if (version != plan->registry_version) {
            prp_memo_own_all(s);
            PyObject *found = PRP_FOREIGN(PyObject_CallOneArg(prp_g.registry_find, type));
            if (!found)
                return -1;
            plan->registry_version = version; /* the version before the call, so that we notice a change by the call */
            PyObject *older = plan->registered;
            plan->registered = found == Py_None ? NULL : Py_NewRef(found);
            Py_DECREF(found);
            Py_XDECREF(older);
        }
    }
    uint64_t table_version = prp_dict_version(prp_g.copyreg_table);
    if (!table_version || table_version != plan->table_version) {
        if (look_up(prp_g.copyreg_table, type, &plan->table) < 0)
            return -1;
        plan->table_version = table_version;
    }
    if (s->put && look_up(prp_g.put_reducers, type, &plan->put_reducer) < 0)
        return -1;
    return PyErr_Occurred() ? -1 : 0;
}

/* Create a plan and insert it into the table. */
static prp_plan *make_plan(prp_saver *s, PyTypeObject *type, PyObject *sample)
{
    prp_plan *plan = calloc(1, sizeof *plan);
    if (!plan) {
        PyErr_NoMemory();
        return NULL;
    }
    static unsigned made;
    plan->type = type;
    plan->refs = 1;
    plan->id = made++;
    prp_memo_own_all(s);
    Py_INCREF(sample);
    Py_INCREF(type); /* code that runs in the meantime may replace the sample's class */
    int status = classify(plan, type, sample) < 0 || publish(plan) < 0 ? -1 : 0;
    Py_DECREF(type);
    Py_DECREF(sample);
    if (status == 0)
        return plan;
    prp_plan_drop(plan);
    return NULL;
}

static PRP_COLD prp_plan *plan_anew(prp_saver *s, prp_plan *plan, PyTypeObject *type, PyObject *sample)
{
    if (plan && plan->version && plan->version == prp_type_version(type))
        plan->refs++;
    else if (!(plan = make_plan(s, type, sample)))
        return NULL;
    /* Read the epoch before querying the tables, because a query may run code that changes them. */
    uint64_t epoch = 0;
    int status = plan->odd ? prp_before_foreign_code(s) : 0;
    if (status == 0) {
        epoch = prp_epoch;
        status = check_tables(s, plan);
    }
    if (status < 0) {
        prp_plan_drop(plan);
        return NULL;
    }
    plan->epoch = plan->odd ? 0 : epoch;
    return plan;
}

/* Return whether the plan was created for `type` in its current state. The answer is valid within one epoch. */
static inline bool is_current(const prp_plan *plan, PyTypeObject *type)
{
#if PRP_INTERNALS
    return plan->version && plan->version == prp_type_version_now(type);
#else
    (void)plan, (void)type; /* prp_memo_own_all() starts a new epoch */
    return true;
#endif
}

prp_plan *prp_plan_for(prp_saver *s, PyTypeObject *type, PyObject *sample)
{
    prp_plan *plan = plans.last;
    if (!plan || plan->type != type)
        plan = find(type);
    if (PRP_UNLIKELY(!plan || plan->epoch != prp_epoch || !is_current(plan, type)))
        return plan_anew(s, plan, type, sample);
    plans.last = plan;
    plan->refs++;
    return plan;
}
