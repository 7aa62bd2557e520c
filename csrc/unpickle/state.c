/* Implements BUILD, which sets the state of an instance.
 *
 * The rules are those of the standard library: call __setstate__ if it exists; otherwise put a dict into the instance's
 * __dict__, bypassing descriptors, and set slots with setattr. If a class overrides none of these steps, we write the
 * values directly to their final places in a fresh instance. They come from the stack if the state is still pending,
 * else from the state dict.
 */
#include "unpickler.h"

#if PRP_INTERNALS
/* Return whether the learned names are the keys of n pairs, in order. */
static inline bool keys_are(const prp_class_plan *plan, PyObject *const *pairs, Py_ssize_t n)
{
    if (PyTuple_GET_SIZE(plan->names) != n)
        return false;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *name = PyTuple_GET_ITEM(plan->names, i), *key = pairs[2 * i];
        if (key == name)
            continue;
        /* A different object counts as the same name only if it is an equal str. */
        if (!PyUnicode_CheckExact(key) || PyUnicode_GET_LENGTH(key) != PyUnicode_GET_LENGTH(name) ||
            PyUnicode_Compare(key, name) != 0)
            return false;
    }
    return true;
}

static inline PyDictValues *fresh_values(const prp_class_plan *plan, PyObject *obj, PyTypeObject *type)
{
    void *keys;
    PyDictValues *values = prp_values_fresh(obj, type, &keys);
    Py_ssize_t n = PyTuple_GET_SIZE(plan->names);
    /* The shared keys of a class only grow: as long as the keys object is the same, each index keeps its name. */
    if (!values || keys != plan->keys || prp_values_room(values) < n)
        return NULL;
    for (Py_ssize_t i = 0; i < n; i++)
        assert(prp_keys_has(keys, plan->where[i], PyTuple_GET_ITEM(plan->names, i)));
    return values;
}

static inline bool slots_free(const prp_class_plan *plan, PyObject *obj)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(plan->names); i++)
        if (*(PyObject **)((char *)obj + plan->where[i]))
            return false;
    return true;
}

bool prp_load_fill(const prp_class_plan *plan, PyObject *obj, PyObject *const *values)
{
    Py_ssize_t n = PyTuple_GET_SIZE(plan->names);
    if (plan->learned == PRP_LEARNED_DICT) {
        PyDictValues *table = fresh_values(plan, obj, Py_TYPE(obj));
        if (!table)
            return false;
        for (Py_ssize_t i = 0; i < n; i++)
            prp_values_set(table, plan->where[i], values[i]);
    } else {
        if (!slots_free(plan, obj))
            return false;
        for (Py_ssize_t i = 0; i < n; i++)
            *(PyObject **)((char *)obj + plan->where[i]) = values[i];
    }
    return true;
}
#endif

int prp_load_build_pending(prp_loader *L, Py_ssize_t pair)
{
#if PRP_INTERNALS
    Py_ssize_t number = L->mark_count - 1;
    prp_mark *mark = &L->marks[number];
    PyObject **pairs = L->stack + mark->at;
    Py_ssize_t n = (L->sp - pairs) / 2, below = mark->kind == PRP_MARK_STATE ? 2 : 3;
    PyObject *obj = pairs[-below];
    PyTypeObject *type = Py_TYPE(obj);
    const prp_class_plan *plan = mark->plan;
    prp_learned learned = mark->kind == PRP_MARK_STATE ? PRP_LEARNED_DICT : PRP_LEARNED_SLOTS;
    if ((L->sp - pairs) % 2 || !prp_plan_knows(plan, type, learned) || !keys_are(plan, pairs, n))
        return 0;
    PyDictValues *values = NULL;
    if (learned == PRP_LEARNED_DICT ? !(values = fresh_values(plan, obj, type)) : !slots_free(plan, obj))
        return 0;
    Py_ssize_t memo = mark->memo;
    if (memo >= 0 && L->memo.entries[memo] != (PyObject *)((uintptr_t)number << 2 | PRP_MEMO_TAG_PENDING))
        memo = -1;
    if (pair >= 0 && !prp_load_memo_reserve(&L->memo, (size_t)pair))
        return 0;
    if ((memo >= 0 || pair >= 0) && prp_load_reserve_unmade(L) < 0)
        return -1;
    /* From here on no foreign code runs, and nothing fails. */
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *value = pairs[2 * i + 1];
        if (values)
            prp_values_set(values, plan->where[i], value);
        else
            *(PyObject **)((char *)obj + plan->where[i]) = value;
        Py_DECREF(pairs[2 * i]); /* this is a name, so at most a str is freed */
    }
    if (memo >= 0 || pair >= 0)
        prp_load_note_unmade(L, obj, values ? NULL : plan->names, memo, pair);
    L->sp = pairs - below + 1; /* the instance is on top; None and the dict's empty slot are removed */
    if (below == 3)
        Py_DECREF(Py_None);
    L->mark_count = number;
    L->fence = L->stack + (number ? L->marks[number - 1].at : 0);
    return 1;
#else
    (void)L, (void)pair;
    return 0;
#endif
}

/* ---- the general rules ------------------------------------------------------------------------------------------- */

#if PRP_INTERNALS
/* Write the whole dict state into a fresh instance. Return 1, or 0 if that is not possible. */
static int fill_fresh(const prp_class_plan *plan, PyObject *obj, PyObject *state)
{
    Py_ssize_t n = PyDict_GET_SIZE(state), i = 0;
    PyObject *key, *value;
    if (!prp_plan_knows(plan, Py_TYPE(obj), PRP_LEARNED_DICT) || PyTuple_GET_SIZE(plan->names) != n)
        return 0;
    PyDictValues *values = fresh_values(plan, obj, Py_TYPE(obj));
    for (Py_ssize_t pos = 0; PyDict_Next(state, &pos, &key, &value); i++)
        if (!values || (key != PyTuple_GET_ITEM(plan->names, i) &&
                        (!PyUnicode_CheckExact(key) || PyUnicode_Compare(key, PyTuple_GET_ITEM(plan->names, i)) != 0)))
            return 0;
    i = 0;
    for (Py_ssize_t pos = 0; PyDict_Next(state, &pos, &key, &value); i++)
        prp_values_set(values, plan->where[i], Py_NewRef(value));
    return 1;
}
#endif

/* Put a dict state into the instance's dict with `mapping[name] = value`, and intern the names. */
static int fill(PyObject *mapping, PyObject *state)
{
    PyObject *key, *value;
    int failed = 0;
    for (Py_ssize_t pos = 0; !failed && PyDict_Next(state, &pos, &key, &value);) {
        Py_INCREF(key);
        Py_INCREF(value);
        if (PyUnicode_CheckExact(key))
            PyUnicode_InternInPlace(&key);
        failed = PRP_FOREIGN(PyObject_SetItem(mapping, key, value));
        PRP_FOREIGN_VOID(Py_DECREF(key));
        PRP_FOREIGN_VOID(Py_DECREF(value));
    }
    return failed;
}

static int set_slots(PyObject *obj, PyObject *state)
{
    PyObject *key, *value;
    int failed = 0;
    for (Py_ssize_t pos = 0; !failed && PyDict_Next(state, &pos, &key, &value);) {
        Py_INCREF(key);
        Py_INCREF(value);
        failed = PRP_FOREIGN(PyObject_SetAttr(obj, key, value));
        PRP_FOREIGN_VOID(Py_DECREF(key));
        PRP_FOREIGN_VOID(Py_DECREF(value));
    }
    return failed;
}

static int call_setstate(PyObject *setstate, PyObject *state)
{
    PyObject *result = PRP_FOREIGN(PyObject_CallOneArg(setstate, state));
    PRP_FOREIGN_VOID(Py_XDECREF(result));
    return result ? 0 : -1;
}

/* The caller owns references to `state` and `obj`. Each step may run foreign code, so plans are looked up each time. */
static int build_by_rules(prp_loader *L, PyObject *obj, PyObject *state)
{
    PyObject *slots = NULL;
    if (PyTuple_Check(state) && PyTuple_GET_SIZE(state) == 2) {
        slots = PyTuple_GET_ITEM(state, 1);
        state = PyTuple_GET_ITEM(state, 0);
    }
    const prp_class_plan *plan = prp_plan_for(L, Py_TYPE(obj));
    if (!plan)
        return -1;
    if (state != Py_None) {
        if (!PyDict_Check(state)) {
            prp_load_malformed("state is not a dictionary");
            return -1;
        }
        bool usual = plan->dict_state && PyDict_CheckExact(state);
#if PRP_INTERNALS
        if (usual && !slots && fill_fresh(plan, obj, state))
            return 0;
#endif
        PyObject *dict =
            usual ? PRP_FOREIGN(prp_attrs_dict(obj)) : PRP_FOREIGN(PyObject_GetAttrString(obj, "__dict__"));
        int failed = dict ? fill(dict, state) : -1;
        PRP_FOREIGN_VOID(Py_XDECREF(dict));
        if (failed)
            return -1;
        if (usual && !slots && prp_plan_learn(L, obj, state, PRP_LEARNED_DICT) < 0)
            return -1;
    }
    if (slots && slots != Py_None) {
        if (!PyDict_Check(slots)) {
            prp_load_malformed("slot state is not a dictionary");
            return -1;
        }
        if (set_slots(obj, slots) < 0)
            return -1;
        if (state == Py_None && PyDict_CheckExact(slots))
            return prp_plan_learn(L, obj, slots, PRP_LEARNED_SLOTS);
    }
    return 0;
}

int prp_load_build(prp_loader *L)
{
    if (L->sp - 2 < L->fence)
        return prp_load_underflow(L);
    /* Hold references to both from here on, because the calls below may run any code. */
    PyObject *state = *--L->sp, *obj = Py_NewRef(L->sp[-1]), *setstate = NULL;
    int failed = -1;
    if (prp_load_may_change(L, obj) < 0)
        goto done; /* the stream may use the object that an allowed name refers to, but not change it */
    if (prp_load_foreign(L) < 0 || prp_load_check_state(L, obj, state) < 0)
        goto done;
    int found = PRP_FOREIGN(prp_optional_attr(obj, prp_text_setstate, &setstate));
    if (found > 0) {
        failed = call_setstate(setstate, state);
        if (!failed && L->owner)
            failed = prp_load_array_seal(L, obj);
    } else if (found == 0) {
        failed = build_by_rules(L, obj, state);
    }
done:
    PRP_FOREIGN_VOID(Py_XDECREF(setstate));
    PRP_FOREIGN_VOID(Py_DECREF(state));
    PRP_FOREIGN_VOID(Py_DECREF(obj));
    return failed;
}
