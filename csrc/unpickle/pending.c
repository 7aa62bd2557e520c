/* Handles containers that the stream has announced but that we have not created yet.
 *
 * `EMPTY_LIST MARK` or `EMPTY_DICT MARK`, with or without a memo opcode in between, does not create the container: it
 * is "pending". Its stack slot stays NULL below the MARK, where no opcode can reach it, and its memo entry is a tagged
 * integer. APPENDS or SETITEMS creates the container with all its elements. If a GET reads the entry earlier (in a
 * container that contains itself), or another opcode uses the MARK, we first create the container empty.
 *
 * If only BUILD uses the dict of an instance's state, we never create it: its values go from the stack into the
 * instance. If the dict has a memo index, its memo entry refers to a record of the instance and its names, and a GET
 * creates the dict from the attributes. This dict is correct only while the attributes are unchanged, so we create
 * the dicts of all records before foreign code runs (prp_load_foreign) and before any BUILD on an instance that is
 * not fresh.
 */
#include "unpickler.h"

static PyObject *pending_tag(Py_ssize_t mark)
{
    return (PyObject *)((uintptr_t)mark << 2 | PRP_MEMO_TAG_PENDING);
}
static PyObject *unmade_tag(Py_ssize_t record)
{
    return (PyObject *)((uintptr_t)record << 2 | PRP_MEMO_TAG_UNMADE);
}

int prp_load_make_pending(prp_loader *L, Py_ssize_t number)
{
    prp_mark_kind kind = L->marks[number].kind;
    PyObject *container = kind == PRP_MARK_LIST ? PRP_FOREIGN(PyList_New(0)) : PRP_FOREIGN(PyDict_New());
    if (!container)
        return -1;
    /* Code that ran during the allocation may have created the container already, or another thread may have continued
     * the load. */
    prp_mark *mark = &L->marks[number];
    if (number >= L->mark_count || mark->kind != kind || L->stack[mark->at - 1]) {
        Py_DECREF(container);
        return 0;
    }
    L->stack[mark->at - 1] = container;
    mark->kind = PRP_MARK_PLAIN;
    if (mark->memo >= 0 && mark->memo < L->memo.top && L->memo.entries[mark->memo] == pending_tag(number))
        L->memo.entries[mark->memo] = Py_NewRef(container);
    return 0;
}

int prp_load_reserve_unmade(prp_loader *L)
{
    if (PRP_LIKELY(L->unmade_count < L->unmade_capacity))
        return 0;
    size_t larger = L->unmade_capacity ? (size_t)L->unmade_capacity * 2 : 64;
    prp_unmade *records = PyMem_Realloc(L->unmade, larger * sizeof(*records));
    if (!records) {
        PyErr_NoMemory();
        return -1;
    }
    L->unmade = records;
    L->unmade_capacity = (Py_ssize_t)larger;
    return 0;
}

/* `memo` and `pair` are indices within the memo's array, or -1. `names` is NULL if the attributes are in the instance's
 * dict. */
void prp_load_note_unmade(prp_loader *L, PyObject *obj, PyObject *names, Py_ssize_t memo, Py_ssize_t pair)
{
    /* The attributes equal the dict only until foreign code runs, so disable the collector even for a small stream. */
    L->may_pause = true;
    prp_load_own(L);
    Py_ssize_t number = L->unmade_count;
    if (memo >= 0)
        L->memo.entries[memo] = unmade_tag(number);
    if (pair >= 0) {
        L->memo.entries[pair] = unmade_tag(number);
        L->memo.used++;
    }
    L->unmade[L->unmade_count++] = (prp_unmade){Py_NewRef(obj), Py_XNewRef(names), memo, pair};
}

/* Return the attributes of an instance as a new dict, in order, without creating its __dict__. */
static PyObject *instance_attributes(PyObject *obj)
{
    PyObject *made = PRP_FOREIGN(PyDict_New()), *dict = NULL;
    if (!made)
        return NULL;
    prp_attrs view;
    int failed = 0;
    switch (prp_attrs_view(obj, Py_TYPE(obj), &view, &dict)) {
    case PRP_ATTRS_NONE:
        break;
    case PRP_ATTRS_INLINE:
        for (Py_ssize_t i = 0; !failed && i < view.count; i++)
            failed = PyDict_SetItem(made, prp_attrs_name(&view, i), prp_attrs_value(&view, i));
        break;
    case PRP_ATTRS_DICT:
        Py_INCREF(dict);
        failed = PyDict_Update(made, dict);
        Py_DECREF(dict);
        break;
    default:
        dict = PRP_FOREIGN(prp_attrs_dict(obj));
        failed = dict ? PyDict_Update(made, dict) : -1;
        Py_XDECREF(dict);
    }
    if (failed)
        Py_CLEAR(made);
    return made;
}

/* Create the dict of a record and, if `pair` is not NULL, the tuple (None, dict). Return 0 or -1. */
static int state_of(const prp_unmade *record, PyObject **dict, PyObject **pair)
{
    *dict = record->names ? PRP_FOREIGN(PyDict_New()) : instance_attributes(record->obj);
    Py_ssize_t n = record->names ? PyTuple_GET_SIZE(record->names) : 0;
    for (Py_ssize_t i = 0; *dict && i < n; i++) {
        PyObject *name = PyTuple_GET_ITEM(record->names, i), *value = PyObject_GenericGetAttr(record->obj, name);
        if (!value || PyDict_SetItem(*dict, name, value) < 0)
            Py_CLEAR(*dict);
        Py_XDECREF(value);
    }
    if (*dict && pair && !(*pair = PyTuple_Pack(2, Py_None, *dict)))
        Py_CLEAR(*dict);
    return *dict ? 0 : -1;
}

static bool has_tag(const prp_loader *L, Py_ssize_t memo, Py_ssize_t number)
{
    return memo >= 0 && memo < L->memo.top && L->memo.entries[memo] == unmade_tag(number);
}

int prp_load_make_unmade(prp_loader *L, Py_ssize_t number)
{
    prp_unmade record = L->unmade[number];
    PyObject *dict, *pair = NULL;
    Py_INCREF(record.obj);
    Py_XINCREF(record.names);
    int failed = state_of(&record, &dict, record.pair >= 0 ? &pair : NULL);
    /* The record may have been removed, and its index reused. */
    if (!failed && number < L->unmade_count && L->unmade[number].obj == record.obj) {
        if (has_tag(L, record.memo, number))
            L->memo.entries[record.memo] = Py_NewRef(dict);
        if (has_tag(L, record.pair, number))
            L->memo.entries[record.pair] = Py_NewRef(pair);
    }
    Py_XDECREF(dict);
    Py_XDECREF(pair);
    Py_DECREF(record.obj);
    Py_XDECREF(record.names);
    return failed;
}

int prp_load_all_unmade(prp_loader *L)
{
    for (Py_ssize_t i = 0; i < L->unmade_count; i++) {
        const prp_unmade *record = &L->unmade[i];
        if ((has_tag(L, record->memo, i) || has_tag(L, record->pair, i)) && prp_load_make_unmade(L, i) < 0)
            return -1;
    }
    prp_load_drop_unmade(L);
    return 0;
}

/* Call this only if no memo entry is tagged with a record any more, or if the memo is cleared too. */
void prp_load_drop_unmade(prp_loader *L)
{
    while (L->unmade_count > 0) {
        prp_unmade record = L->unmade[--L->unmade_count];
        if (Py_REFCNT(record.obj) == 1 && L->collector_paused)
            prp_load_resume_collector(L);
        PRP_FOREIGN_VOID(Py_DECREF(record.obj));
        Py_XDECREF(record.names);
    }
}
