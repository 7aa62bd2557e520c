/* Containers that do not exist yet.
 *
 * Pending: `EMPTY_LIST MARK` or `EMPTY_DICT MARK`, with or without a memo opcode between, does not make the container. Its
 * stack slot stays NULL under the MARK, out of reach of every opcode, and its memo entry is a tagged number. APPENDS or
 * SETITEMS makes it with all its elements at once. A GET of it before (a container that holds itself), or any other opcode that
 * takes the MARK, makes it empty and real first.
 *
 * Unmade: the dict of an instance's state, if nobody but BUILD wants it, is never made at all: the values go from the stack into
 * the instance. If it has a memo index, the entry becomes a record of the instance and its names, and the dict is made from
 * the attributes if a GET asks for it. That is right as long as nobody changed an attribute meanwhile, so all records are made
 * real before any foreign code runs (prp_load_foreign) and before any BUILD that does not go to a fresh instance.
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
    prp_mark *mark = &L->marks[number];
    PyObject *container = mark->kind == PRP_MARK_LIST ? PyList_New(0) : PyDict_New();
    if (!container)
        return -1;
    mark = &L->marks[number]; /* an allocation may collect garbage, which may not touch this machine; but be sure */
    L->stack[mark->at - 1] = container;
    mark->kind = PRP_MARK_PLAIN;
    if (mark->memo >= 0 && mark->memo < L->memo.top && L->memo.entries[mark->memo] == pending_tag(number))
        L->memo.entries[mark->memo] = Py_NewRef(container);
    return 0;
}

/* `memo` and `pair` are indices within the memo's array, or -1. `names` is NULL if the attributes lie in the instance's dict. */
int prp_load_note_unmade(prp_loader *L, PyObject *obj, PyObject *names, Py_ssize_t memo, Py_ssize_t pair)
{
    if (L->unmade_count == L->unmade_capacity) {
        size_t larger = L->unmade_capacity ? (size_t)L->unmade_capacity * 2 : 64;
        prp_unmade *records = PyMem_Realloc(L->unmade, larger * sizeof(*records));
        if (!records) {
            PyErr_NoMemory();
            return -1;
        }
        L->unmade = records;
        L->unmade_capacity = (Py_ssize_t)larger;
    }
    Py_ssize_t number = L->unmade_count;
    if (pair >= 0 && prp_load_memo_put_tag(L, (size_t)pair, (uintptr_t)unmade_tag(number)) <= 0)
        return -1;
    if (memo >= 0)
        L->memo.entries[memo] = unmade_tag(number);
    L->unmade[L->unmade_count++] = (prp_unmade){Py_NewRef(obj), Py_XNewRef(names), memo, pair};
    return 0;
}

/* The attributes of an instance as a new dict, in order, without its __dict__ being made. */
static PyObject *instance_attributes(PyObject *obj)
{
    prp_attrs view;
    PyObject *dict = NULL;
    switch (prp_attrs_view(obj, Py_TYPE(obj), &view, &dict)) {
    case PRP_ATTRS_DICT:
        return PyDict_Copy(dict);
    case PRP_ATTRS_NONE:
        return PyDict_New();
    case PRP_ATTRS_INLINE:
        dict = PyDict_New();
        for (Py_ssize_t i = 0; dict && i < view.count; i++)
            if (PyDict_SetItem(dict, prp_attrs_name(&view, i), prp_attrs_value(&view, i)) < 0)
                Py_CLEAR(dict);
        return dict;
    default:
        dict = prp_attrs_dict(obj);
        PyObject *copy = dict ? PyDict_Copy(dict) : NULL;
        Py_XDECREF(dict);
        return copy;
    }
}

int prp_load_make_unmade(prp_loader *L, Py_ssize_t number)
{
    prp_unmade record = L->unmade[number];
    PyObject *tag = unmade_tag(number), *pair = NULL;
    PyObject *dict = record.names ? PyDict_New() : instance_attributes(record.obj);
    Py_ssize_t n = record.names ? PyTuple_GET_SIZE(record.names) : 0;
    for (Py_ssize_t i = 0; dict && i < n; i++) {
        PyObject *name = PyTuple_GET_ITEM(record.names, i), *value = PyObject_GenericGetAttr(record.obj, name);
        if (!value || PyDict_SetItem(dict, name, value) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    if (dict && record.pair >= 0 && !(pair = PyTuple_Pack(2, Py_None, dict)))
        Py_CLEAR(dict);
    if (!dict)
        return -1;
    if (record.memo >= 0 && L->memo.entries[record.memo] == tag)
        L->memo.entries[record.memo] = Py_NewRef(dict);
    if (record.pair >= 0 && L->memo.entries[record.pair] == tag)
        L->memo.entries[record.pair] = Py_NewRef(pair);
    Py_DECREF(dict);
    Py_XDECREF(pair);
    return 0;
}

int prp_load_all_unmade(prp_loader *L)
{
    for (Py_ssize_t i = 0; i < L->unmade_count; i++) {
        prp_unmade *record = &L->unmade[i];
        bool wanted = (record->memo >= 0 && L->memo.entries[record->memo] == unmade_tag(i)) ||
                      (record->pair >= 0 && L->memo.entries[record->pair] == unmade_tag(i));
        if (wanted && prp_load_make_unmade(L, i) < 0)
            return -1;
    }
    prp_load_drop_unmade(L);
    return 0;
}

/* Only when no memo entry carries the tag of a record any more, or the memo is dropped too. */
void prp_load_drop_unmade(prp_loader *L)
{
    while (L->unmade_count > 0) {
        prp_unmade record = L->unmade[--L->unmade_count];
        Py_DECREF(record.obj);
        Py_XDECREF(record.names);
    }
}
