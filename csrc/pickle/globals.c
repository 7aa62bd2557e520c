/* Pickles functions, classes and other objects by name, or by value where that is necessary.
 *
 * A name is valid if importing it returns the same object. We check this once per stream, because afterwards the object
 * is in the memo. In the usual case, a loaded plain module and a name without dots, the check costs two dict lookups.
 * We pickle by value functions and classes that fail the check, that are in __main__, or that are in modules registered
 * with cloudpickle, through cloudpickle's public CloudPickler.reducer_override.
 */
#include "pickler.h"

#include <string.h>

/* Return whether reading __module__ and __qualname__ of obj runs only the interpreter's own code. */
static bool quiet(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyFunction_Type || type == &PyCFunction_Type || type->tp_getattro == PyType_Type.tp_getattro)
        return true;
    if (!PyType_Check(obj))
        return false;
    /* The metaclass overrides only __getattr__, as Enum's does. Python does not call this method for the two names,
     * because every class has them. */
    PyObject *mine = prp_type_lookup(type, prp_g.str_getattribute);
    PyObject *theirs = prp_type_lookup(&PyType_Type, prp_g.str_getattribute);
    bool same = mine && mine == theirs;
    Py_XDECREF(mine);
    Py_XDECREF(theirs);
    return same;
}

static PyObject *optional_attribute(PyObject *obj, PyObject *name)
{
    PyObject *value = PRP_FOREIGN(PyObject_GetAttr(obj, name));
    if (!value && PyErr_ExceptionMatches(PyExc_AttributeError))
        PyErr_Clear();
    return value;
}

/* Return the name of obj as a new reference: `name` if the reduction returned one, else obj's own name. */
static PyObject *global_name(PyObject *obj, PyObject *name)
{
    if (name)
        return Py_NewRef(name);
    if (PyFunction_Check(obj))
        return Py_NewRef(((PyFunctionObject *)obj)->func_qualname);
    PyObject *found = optional_attribute(obj, prp_g.str_qualname);
    return found || PyErr_Occurred() ? found : PRP_FOREIGN(PyObject_GetAttr(obj, prp_g.str_name));
}

static PyObject *resolve(prp_saver *s, PyObject *module, PyObject *name, bool dotted, PyObject **parent,
                         PyObject **last);

/* Return the first loaded module that has obj under this name, else "__main__", as pickle.whichmodule does; skip
 * modules whose attributes raise. New reference. */
static PyObject *which_module(prp_saver *s, PyObject *obj, PyObject *name)
{
    PyObject *modules = PRP_FOREIGN(PyDict_Copy(prp_g.sys_modules)), *key, *module, *answer = NULL;
    Py_ssize_t at = 0, dot = PyUnicode_FindChar(name, '.', 0, PyUnicode_GET_LENGTH(name), 1);
    bool failed = !modules || dot == -2;
    while (!failed && !answer && PyDict_Next(modules, &at, &key, &module)) {
        if (module == Py_None || !PyUnicode_Check(key) || PyUnicode_CompareWithASCIIString(key, "__main__") == 0 ||
            PyUnicode_CompareWithASCIIString(key, "__mp_main__") == 0)
            continue;
        PyObject *parent = NULL, *last = NULL, *found = resolve(s, module, name, dot >= 0, &parent, &last);
        if (found == obj)
            answer = Py_NewRef(key);
        else if (prp_forgive_refusal() < 0)
            failed = true;
        Py_XDECREF(found);
        Py_XDECREF(parent);
        Py_XDECREF(last);
    }
    Py_XDECREF(modules);
    return failed || answer ? answer : Py_NewRef(prp_g.str_main);
}

/* Return obj's __module__ if it has one, else the first module in which obj has this name. New reference. */
static PyObject *module_name(prp_saver *s, PyObject *obj, PyObject *name)
{
    if (PyFunction_Check(obj) && ((PyFunctionObject *)obj)->func_module != Py_None &&
        ((PyFunctionObject *)obj)->func_module)
        return Py_NewRef(((PyFunctionObject *)obj)->func_module);
    PyObject *found = optional_attribute(obj, prp_g.str_module);
    if (!found && PyErr_Occurred())
        return NULL;
    if (found && found != Py_None)
        return found;
    Py_XDECREF(found);
    if (prp_before_foreign_code(s) < 0)
        return NULL;
    return which_module(s, obj, name);
}

/* Return the current value of `module`.`name` as a new reference, or NULL with or without an exception. Set *last to
 * the last part of the name (new reference), and *parent to the object that has this part as an attribute (new
 * reference), or NULL for a name without dots. */
static PyObject *resolve(prp_saver *s, PyObject *module, PyObject *name, bool dotted, PyObject **parent,
                         PyObject **last)
{
    if (!dotted) {
        *last = Py_NewRef(name);
        if (PyModule_CheckExact(module)) {
            PyObject *found = PRP_FOREIGN(PyDict_GetItemWithError(PyModule_GetDict(module), name));
            if (found || PyErr_Occurred())
                return Py_XNewRef(found);
        }
        return prp_before_foreign_code(s) < 0 ? NULL : PRP_FOREIGN(PyObject_GetAttr(module, name));
    }
    if (prp_before_foreign_code(s) < 0)
        return NULL;
    PyObject *separator = PyUnicode_FromString("."),
             *parts = separator ? PRP_FOREIGN(PyUnicode_Split(name, separator, -1)) : NULL;
    Py_XDECREF(separator);
    if (!parts)
        return NULL;
    PyObject *here = Py_NewRef(module);
    for (Py_ssize_t i = 0; here && i < PyList_GET_SIZE(parts); i++) {
        PyObject *part = PyList_GET_ITEM(parts, i), *next = NULL;
        if (PyUnicode_CompareWithASCIIString(part, "<locals>") == 0)
            PyErr_SetString(PyExc_AttributeError, "local"); /* the caller replaces this message */
        else
            next = PRP_FOREIGN(PyObject_GetAttr(here, part));
        Py_XSETREF(*parent, here);
        Py_XSETREF(*last, Py_NewRef(part));
        here = next;
    }
    Py_DECREF(parts);
    return here;
}

/* Write the copyreg extension code. Return 1, 0 if there is none, or -1. */
static int save_extension(prp_saver *s, PyObject *obj, PyObject *module, PyObject *name)
{
    if (s->proto < 2 || PyDict_GET_SIZE(prp_g.extensions) == 0)
        return 0;
    PyObject *key = PRP_FOREIGN(PyTuple_Pack(2, module, name));
    if (!key)
        return -1;
    PyObject *value = PRP_FOREIGN(PyDict_GetItemWithError(prp_g.extensions, key));
    Py_DECREF(key);
    if (!value)
        return PyErr_Occurred() ? -1 : 0;
    /* copyreg.add_extension() accepts nothing else. */
    long code = PyLong_AsLong(value);
    if (code <= 0 || code > 0x7fffffffL) {
        PyObject *shown = PyErr_Occurred() ? NULL : prp_repr(obj);
        if (shown)
            PyErr_Format(PyExc_RuntimeError, "Can't pickle %U: extension code %ld is out of range", shown, code);
        Py_XDECREF(shown);
        return -1;
    }
    uint8_t out[5] = {code <= 0xff     ? OP_EXT1
                      : code <= 0xffff ? OP_EXT2
                                       : OP_EXT4,
                      (uint8_t)code, (uint8_t)(code >> 8), (uint8_t)(code >> 16), (uint8_t)(code >> 24)};
    return prp_out(s, out, code <= 0xff ? 2 : code <= 0xffff ? 3 : 5) < 0 ? -1 : 1;
}

/* Raise a PicklingError whose context is the current UnicodeEncodeError. */
static void refuse_identifier(const char *what, PyObject *name, int proto)
{
    PyObject *type, *error, *traceback, *cause;
    PyErr_Fetch(&type, &cause, &traceback);
    PyErr_NormalizeException(&type, &cause, &traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    PyErr_Format(prp_g.pickling_error, "can't pickle %s identifier '%U' using pickle protocol %i", what, name, proto);
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyException_SetContext(error, cause);
    PyErr_Restore(type, error, traceback);
}

/* For protocols below 4, write GLOBAL, module, newline, name, newline. */
static int save_text(prp_saver *s, PyObject *module, PyObject *name)
{
    PyObject *parts[2] = {Py_NewRef(module), Py_NewRef(name)};
    static const char *const what[2] = {"module", "global"};
    int status = -1;
    if (s->proto < 3 && s->fix_imports) {
        PyObject *key = PRP_FOREIGN(PyTuple_Pack(2, module, name));
        PyObject *item = key ? PRP_FOREIGN(PyDict_GetItemWithError(prp_g.name_mapping, key)) : NULL;
        Py_XDECREF(key);
        if (item) {
            if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2 || !PyUnicode_Check(PyTuple_GET_ITEM(item, 0)) ||
                !PyUnicode_Check(PyTuple_GET_ITEM(item, 1))) {
                PyErr_SetString(PyExc_RuntimeError,
                                "_compat_pickle.REVERSE_NAME_MAPPING values should be pairs of str");
                goto end;
            }
            Py_SETREF(parts[0], Py_NewRef(PyTuple_GET_ITEM(item, 0)));
            Py_SETREF(parts[1], Py_NewRef(PyTuple_GET_ITEM(item, 1)));
        } else if (!PyErr_Occurred()) {
            item = PRP_FOREIGN(PyDict_GetItemWithError(prp_g.import_mapping, module));
            if (item && !PyUnicode_Check(item)) {
                PyErr_Format(PyExc_RuntimeError,
                             "_compat_pickle.REVERSE_IMPORT_MAPPING values should be strings, not %.200s",
                             Py_TYPE(item)->tp_name);
                goto end;
            }
            if (item)
                Py_SETREF(parts[0], Py_NewRef(item));
        }
        if (PyErr_Occurred())
            goto end;
    }
    if (prp_op(s, OP_GLOBAL) < 0)
        goto end;
    for (int i = 0; i < 2; i++) {
        PyObject *encoded = s->proto == 3 ? PyUnicode_AsUTF8String(parts[i]) : PyUnicode_AsASCIIString(parts[i]);
        if (!encoded) {
            if (PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
                refuse_identifier(what[i], parts[i], s->proto);
            goto end;
        }
        int written = prp_out(s, PyBytes_AS_STRING(encoded), (size_t)PyBytes_GET_SIZE(encoded));
        Py_DECREF(encoded);
        if (written < 0 || prp_op(s, '\n') < 0)
            goto end;
    }
    status = 0;
end:
    Py_DECREF(parts[0]);
    Py_DECREF(parts[1]);
    return status;
}

/* For protocols below 4, write a dotted name as getattr(getattr(global, part), part), with the same memo entries as the
 * standard pickler. */
static int save_dotted(prp_saver *s, PyObject *module, PyObject *name, PyObject *parent, PyObject *last)
{
#if PY_VERSION_HEX < 0x030D0000
    PyObject *call = PRP_FOREIGN(Py_BuildValue("(O(OO))", prp_g.getattr, parent, last));
    int status = call ? prp_save_reduce(s, call, NULL) : -1;
    Py_XDECREF(call);
    return status;
#else
    /* Do not check the intermediate objects, because one may be obj itself if a part of the name refers back to it. */
    PyObject *separator = PyUnicode_FromString("."),
             *parts = separator ? PRP_FOREIGN(PyUnicode_Split(name, separator, -1)) : NULL;
    Py_XDECREF(separator);
    if (!parts)
        return -1;
    int status = 0;
    for (Py_ssize_t i = 1; i < PyList_GET_SIZE(parts) && status == 0; i++)
        status = prp_save(s, prp_g.getattr) < 0 || (s->proto < 2 && prp_op(s, OP_MARK) < 0) ? -1 : 0;
    if (status == 0)
        status = save_text(s, module, PyList_GET_ITEM(parts, 0));
    for (Py_ssize_t i = 1; i < PyList_GET_SIZE(parts) && status == 0; i++)
        status = prp_save(s, PyList_GET_ITEM(parts, i)) < 0 || prp_op(s, s->proto < 2 ? OP_TUPLE : OP_TUPLE2) < 0 ||
                         prp_op(s, OP_REDUCE) < 0
                     ? -1
                     : 0;
    Py_DECREF(parts);
    return status;
#endif
}

/* Write the reference; the caller has checked the name. */
static int write_reference(prp_saver *s, PyObject *obj, PyObject *module, PyObject *name, PyObject *parent,
                           PyObject *last)
{
    int extension = save_extension(s, obj, module, name);
    if (extension)
        return extension < 0 ? -1 : 0; /* extension codes are not memoized */
    if (s->proto >= 4) {
        if (prp_save(s, module) < 0 || (s->exact ? prp_save(s, name) : prp_write_str(s, name)) < 0 ||
            prp_op(s, OP_STACK_GLOBAL) < 0)
            return -1;
    } else if (parent) {
        if (save_dotted(s, module, name, parent, last) < 0)
            return -1;
    } else if (save_text(s, module, name) < 0) {
        return -1;
    }
    return prp_memoize(s, obj);
}

/* Return how many modules are registered with cloudpickle.register_pickle_by_value, or -1 with an exception. */
static Py_ssize_t modules_by_value(prp_saver *s)
{
    PyObject *cloudpickle = PRP_FOREIGN(PyDict_GetItemWithError(prp_g.sys_modules, prp_g.str_cloudpickle));
    if (!cloudpickle)
        return PyErr_Occurred() ? -1 : 0;
    /* Read the registry without a call, because cloudpickle is often loaded and a call would end elision. */
    PyObject *module = PRP_FOREIGN(PyDict_GetItemWithError(prp_g.sys_modules, prp_g.str_cloudpickle_module)),
             *modules = NULL;
    if (module && PyModule_Check(module))
        modules =
            Py_XNewRef(PRP_FOREIGN(PyDict_GetItemWithError(PyModule_GetDict(module), prp_g.str_by_value_modules)));
    if (PyErr_Occurred())
        return -1;
    if (!modules || !PyAnySet_Check(modules)) {
        Py_XDECREF(modules);
        Py_INCREF(cloudpickle);
        modules = prp_before_foreign_code(s) < 0
                      ? NULL
                      : PRP_FOREIGN(PyObject_CallMethodNoArgs(cloudpickle, prp_g.str_list_by_value));
        Py_DECREF(cloudpickle);
        if (!modules) /* this cloudpickle version has no such registry, or the module is still being imported */
            return s->restart ? -1 : prp_forgive(PyExc_AttributeError);
    }
    Py_ssize_t n = PyAnySet_Check(modules) ? PySet_GET_SIZE(modules) : PRP_FOREIGN(PyObject_Size(modules));
    Py_DECREF(modules);
    return n;
}

/* Return whether any module is registered for pickling by value: 1, 0, or -1 with an exception or a restart. We
 * determine this once per dump. */
static int by_value_wanted(prp_saver *s)
{
    if (s->by_value_wanted < 0) {
        Py_ssize_t n = modules_by_value(s);
        if (n < 0)
            return -1;
        s->by_value_wanted = n > 0;
    }
    return s->by_value_wanted;
}

/* Create the CloudPickler of this dump and find the dicts of its dispatch_table. Return 0 or -1. */
static int make_by_value(prp_saver *s)
{
    s->by_value = PRP_FOREIGN(PyObject_CallNoArgs(prp_g.new_by_value));
    PyObject *table = s->by_value ? PRP_FOREIGN(PyObject_GetAttr(s->by_value, prp_g.str_dispatch_table)) : NULL;
    PyObject *maps = table ? PRP_FOREIGN(PyObject_GetAttr(table, prp_g.str_maps)) : NULL;
    Py_XDECREF(table);
    if (!s->by_value)
        return -1;
    if (prp_forgive(PyExc_AttributeError) < 0) { /* if this version has no such dicts, use cloudpickle's lookup */
        Py_CLEAR(s->by_value);                   /* a caller that continues creates the CloudPickler again */
        return -1;
    }
    if (maps && PyList_CheckExact(maps))
        s->by_value_maps = Py_NewRef(maps);
    Py_XDECREF(maps);
    return 0;
}

/* Return the reducer for `type` in CloudPickler.dispatch_table as a new reference, or NULL without an exception if
 * there is none. */
static PyObject *cloudpickle_reducer(prp_saver *s, PyTypeObject *type)
{
    PyObject *maps = s->by_value_maps, *found = NULL;
    if (!maps) {
        PyObject *table = PRP_FOREIGN(PyObject_GetAttr(s->by_value, prp_g.str_dispatch_table));
        if (table && !(found = PRP_FOREIGN(PyObject_GetItem(table, (PyObject *)type))) &&
            PyErr_ExceptionMatches(PyExc_KeyError))
            PyErr_Clear();
        Py_XDECREF(table);
        return found;
    }
    /* The table is a ChainMap of dicts. The ChainMap's own lookup would raise and catch an exception for each dict. */
    for (Py_ssize_t i = 0; !found && i < PyList_GET_SIZE(maps); i++) {
        PyObject *map = PyList_GET_ITEM(maps, i);
        found = PyDict_CheckExact(map) ? Py_XNewRef(PRP_FOREIGN(PyDict_GetItemWithError(map, (PyObject *)type)))
                                       : PRP_FOREIGN(PyObject_GetItem(map, (PyObject *)type));
        if (!found && PyErr_Occurred()) {
            if (!PyErr_ExceptionMatches(PyExc_KeyError))
                break;
            PyErr_Clear();
        }
    }
    return found;
}

static bool is_text_file(PyObject *obj)
{
    return strcmp(Py_TYPE(obj)->tp_name, "_io.TextIOWrapper") == 0;
}

bool prp_is_standard_stream(PyObject *obj)
{
    return is_text_file(obj) && (obj == PySys_GetObject("stdout") || obj == PySys_GetObject("stderr"));
}

int prp_by_value(prp_saver *s, PyObject *obj, PyObject **value)
{
    *value = NULL;
    PyTypeObject *type = Py_TYPE(obj);
    bool named = type == &PyFunction_Type || PyType_Check(obj);
    if (!s->by_value && make_by_value(s) < 0)
        return -1;
    if (named) {
        *value = PRP_FOREIGN(PyObject_CallMethodOneArg(s->by_value, prp_g.str_reducer_override, obj));
    } else {
        /* cloudpickle would read an open text file and send a copy of what it read. */
        if (is_text_file(obj) && !prp_is_standard_stream(obj))
            return 0;
        PyObject *reducer = cloudpickle_reducer(s, type);
        if (!reducer)
            return PyErr_Occurred() ? -1 : 0;
        *value = PRP_FOREIGN(PyObject_CallOneArg(reducer, obj));
        Py_DECREF(reducer);
    }
    if (!*value)
        return -1;
    if (*value == Py_NotImplemented) {
        Py_CLEAR(*value);
        return 0;
    }
    return 1;
}

#define OWN_TYPES 16

/* Caches cloudpickle's reductions of interpreter types that have no name in `builtins` (code, cell, ...). These
 * reductions never change. */
static struct {
    PyObject *type;  /* a static type, which is never freed */
    PyObject *value; /* owned */
} own_types[OWN_TYPES];
static int own_type_count;

static PyObject *own_type_value(PyObject *obj)
{
    for (int i = 0; i < own_type_count; i++)
        if (own_types[i].type == obj)
            return own_types[i].value;
    return NULL;
}

static void keep_own_type(PyObject *obj, PyObject *value)
{
    if (own_type_count < OWN_TYPES && !own_type_value(obj)) {
        own_types[own_type_count].type = obj;
        own_types[own_type_count++].value = Py_NewRef(value);
    }
}

/* Return 1 if obj was written, 0 if cloudpickle would also pickle it by reference, or -1. */
static int save_by_value(prp_saver *s, PyObject *obj)
{
    if (prp_before_foreign_code(s) < 0)
        return -1;
    PyObject *value;
    int found = prp_by_value(s, obj, &value);
    if (found <= 0)
        return found;
    if (PyType_Check(obj) && !(((PyTypeObject *)obj)->tp_flags & Py_TPFLAGS_HEAPTYPE) &&
        !(PyTuple_Check(value) && PyTuple_GET_SIZE(value) == 2)) {
        /* The interpreter's own types exist once per process, so a reduction that creates a second one would be
         * wrong. */
        Py_DECREF(value);
        return 0;
    }
    if (PyType_CheckExact(obj) && !(((PyTypeObject *)obj)->tp_flags & Py_TPFLAGS_HEAPTYPE))
        keep_own_type(obj, value);
    int status = prp_save_reduce_value(s, value, obj);
    Py_DECREF(value);
    return status < 0 ? -1 : 1;
}

static bool is_main(PyObject *module)
{
    return module == prp_g.str_main ||
           (PyUnicode_GET_LENGTH(module) == 8 && PyUnicode_Compare(module, prp_g.str_main) == 0);
}

/* A TypeVar reduces to its name, even if no object can be found under that name. */
static bool is_type_variable(PyObject *obj)
{
    const char *name = Py_TYPE(obj)->tp_name, *dot = strrchr(name, '.');
    return strcmp(dot ? dot + 1 : name, "TypeVar") == 0;
}

/* Raise PicklingError because obj cannot be pickled by name. Steal the reference to `why`, which is NULL if an
 * exception is set. */
static PRP_COLD void refuse(PyObject *obj, PyObject *why)
{
    PyObject *shown = why ? prp_repr(obj) : NULL;
    if (shown)
        PyErr_Format(prp_g.pickling_error, "Can't pickle %U: %U", shown, why);
    Py_XDECREF(shown);
    Py_XDECREF(why);
}

static int save_named(prp_saver *s, PyObject *obj, PyObject *given, bool may_go_by_value)
{
    PyObject *name = NULL, *module_str = NULL, *module = NULL, *parent = NULL, *last = NULL, *found = NULL;
    int status = -1;
    /* If cloudpickle is in use already, use the cached reduction of types that cloudpickle needs often. */
    if (s->by_value && may_go_by_value && own_type_count && PyType_CheckExact(obj)) {
        PyObject *value = own_type_value(obj);
        if (value)
            return prp_before_foreign_code(s) < 0 ? -1 : prp_save_reduce_value(s, value, obj);
    }
    if (!quiet(obj) && prp_before_foreign_code(s) < 0)
        return -1;
    name = global_name(obj, given);
    if (!name)
        goto end;
    module_str = module_name(s, obj, name);
    if (!module_str)
        goto end;
    if (!PyUnicode_Check(name) || !PyUnicode_Check(module_str)) {
        refuse(obj, PyUnicode_FromString("its module and name must be str"));
        goto end;
    }
    if (may_go_by_value) {
        int wanted = is_main(module_str) ? 1 : by_value_wanted(s);
        int written = wanted > 0 ? save_by_value(s, obj) : wanted;
        if (written) {
            status = written < 0 ? -1 : 0;
            goto end;
        }
    }
    Py_ssize_t dot = PyUnicode_FindChar(name, '.', 0, PyUnicode_GET_LENGTH(name), 1);
    if (dot == -2)
        goto end;
    if (dot >= 0 && may_go_by_value) {
        /* A local name cannot be looked up; an attempt would only raise a different error. */
        Py_ssize_t local = PyUnicode_Find(name, prp_g.str_locals, 0, PyUnicode_GET_LENGTH(name), 1);
        int written = local >= 0 ? save_by_value(s, obj) : 0;
        if (written || local == -2) {
            status = written < 0 || local == -2 ? -1 : 0;
            goto end;
        }
    }
    module = Py_XNewRef(PRP_FOREIGN(PyDict_GetItemWithError(prp_g.sys_modules, module_str)));
    if (module == Py_None)
        Py_CLEAR(module);
    if (!module && !PyErr_Occurred() && prp_before_foreign_code(s) == 0)
        module = PRP_FOREIGN(PyImport_Import(module_str));
    if (s->restart)
        goto end;
    if (module) {
        found = resolve(s, module, name, dot >= 0, &parent, &last);
        if (s->restart)
            goto end;
    }
    if (found == obj) {
        if (PY_VERSION_HEX < 0x030E0000 && parent == module) { /* a dotted name that refers back to its module */
            Py_CLEAR(parent);
            Py_SETREF(name, Py_NewRef(last));
        }
        status = write_reference(s, obj, module_str, name, parent, last);
        goto end;
    }
    if (prp_forgive_refusal() < 0) /* importing or reading a module may raise any exception */
        goto end;
    if (may_go_by_value) {
        int written = save_by_value(s, obj);
        if (written) {
            status = written < 0 ? -1 : 0;
            goto end;
        }
    }
    if (!module)
        refuse(obj, PyUnicode_FromFormat("import of module '%U' failed", module_str));
    else if (!found)
        refuse(obj, PyUnicode_FromFormat("attribute lookup %U on %U failed", name, module_str));
    else
        refuse(obj, PyUnicode_FromFormat("it's not the same object as %U.%U", module_str, name));
end:
    Py_XDECREF(name);
    Py_XDECREF(module_str);
    Py_XDECREF(module);
    Py_XDECREF(parent);
    Py_XDECREF(last);
    Py_XDECREF(found);
    return status;
}

int prp_save_global(prp_saver *s, PyObject *obj, PyObject *name)
{
    const bool may_go_by_value = name && is_type_variable(obj);
    return save_named(s, obj, name, may_go_by_value);
}

int prp_save_named(prp_saver *s, PyObject *obj)
{
    const bool may_go_by_value = true;
    return save_named(s, obj, NULL, may_go_by_value);
}

/* Return the function that a bound method calls, borrowed from the object that defines it, or NULL, perhaps with an
 * exception. */
static PyObject *behind(PyObject *found)
{
    if (!found || PyFunction_Check(found))
        return found;
    PyObject *function =
        Py_IS_TYPE(found, &PyClassMethod_Type) ? PRP_FOREIGN(PyObject_GetAttr(found, prp_g.str_func)) : NULL;
    Py_XDECREF(function); /* the classmethod keeps the function alive */
    return function;
}

int prp_method_has_name(prp_saver *s, PyObject *method)
{
    PyObject *self = PyMethod_GET_SELF(method), *function = PyMethod_GET_FUNCTION(method);
    if (PyFunction_Check(function)) {
        PyObject *name = ((PyFunctionObject *)function)->func_name;
        PyTypeObject *type = PyType_Check(self) ? (PyTypeObject *)self : Py_TYPE(self);
        PyObject *found = prp_type_lookup(type, name);
        bool same = behind(found) == function;
        Py_XDECREF(found);
        if (same)
            return 1;
        if (PyErr_Occurred())
            return -1;
    }
    if (prp_before_foreign_code(s) < 0)
        return -1;
    PyObject *name = PRP_FOREIGN(PyObject_GetAttr(function, prp_g.str_name));
    PyObject *found = name && PyUnicode_Check(name) ? PRP_FOREIGN(PyObject_GetAttr(self, name)) : NULL;
    Py_XDECREF(name);
    if (!found && prp_forgive_refusal() < 0) /* if the lookup raises any exception, the name is not usable */
        return -1;
    bool same = found && (found == method || (PyMethod_Check(found) && PyMethod_GET_SELF(found) == self &&
                                              PyMethod_GET_FUNCTION(found) == function));
    Py_XDECREF(found);
    return same;
}

int prp_save_type(prp_saver *s, PyObject *obj)
{
    PyObject *const singletons[] = {Py_None, Py_Ellipsis, Py_NotImplemented};
    for (size_t i = 0; i < sizeof singletons / sizeof *singletons; i++)
        if (obj == (PyObject *)Py_TYPE(singletons[i])) {
            PyObject *call = PRP_FOREIGN(Py_BuildValue("O(O)", &PyType_Type, singletons[i]));
            int status = call ? prp_save_reduce(s, call, obj) : -1;
            Py_XDECREF(call);
            return status;
        }
    return prp_save_named(s, obj);
}

int prp_save_class(prp_saver *s, PyObject *cls)
{
    int64_t index = prp_memo_get(&s->memo, cls);
    return index >= 0 ? prp_write_get(s, (uint32_t)index) : prp_save(s, cls);
}
