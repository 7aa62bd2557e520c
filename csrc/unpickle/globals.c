/* Resolves names (find_class, extension codes, persistent ids) and checks them in safe mode.
 *
 * Most names are attributes of a module that is already imported, so that two dict lookups find the object. We cache
 * the strings by their bytes in the stream, because creating and hashing them costs more than the lookups. We also
 * cache the results of the lookups, and use them while the versions of both dicts are unchanged. Versions are never
 * reused, so no result can be stale. If the interpreter has no dict versions, every opcode repeats the lookups. The
 * import system resolves all other names. These include names in a module that another thread is still importing,
 * because the import system waits for that thread.
 *
 * The audit event pickle.find_class fires for every name, before any lookup. Safe mode compares the whole name,
 * "module:qualname", after renaming Python 2 names; a name that is not allowed is neither imported nor looked up. The
 * cache also records that an exact frozenset allowed a name. Such a set never changes, and we keep the last few sets
 * alive, so that a new set cannot reuse the address of a recorded one.
 */
#include "context.h"

#define NAME_BYTES 120

static PyObject *text_find_class, *text_persistent_load, *text_spec, *text_initializing;
static PyObject *module_spec; /* importlib.machinery.ModuleSpec */
static PyCFunction own_find_class;
static PyObject *name_mapping, *import_mapping;       /* the mappings of _compat_pickle */
static PyObject *extension_cache, *inverted_registry; /* the tables of copyreg */

static PyObject *attribute(const char *module, const char *name)
{
    PyObject *m = PyImport_ImportModule(module), *value = m ? PyObject_GetAttrString(m, name) : NULL;
    Py_XDECREF(m);
    return value;
}

int prp_load_global_init(PyObject *unpickler_type)
{
    if (!(text_find_class = PyUnicode_InternFromString("find_class")) ||
        !(text_persistent_load = PyUnicode_InternFromString("persistent_load")) ||
        !(text_spec = PyUnicode_InternFromString("__spec__")) ||
        !(text_initializing = PyUnicode_InternFromString("_initializing")) ||
        !(module_spec = attribute("importlib.machinery", "ModuleSpec")) ||
        !(name_mapping = attribute("_compat_pickle", "NAME_MAPPING")) ||
        !(import_mapping = attribute("_compat_pickle", "IMPORT_MAPPING")) ||
        !(extension_cache = attribute("copyreg", "_extension_cache")) ||
        !(inverted_registry = attribute("copyreg", "_inverted_registry")))
        return -1;
    if (!PyDict_CheckExact(name_mapping) || !PyDict_CheckExact(import_mapping) || !PyDict_CheckExact(extension_cache) ||
        !PyDict_CheckExact(inverted_registry)) {
        PyErr_SetString(PyExc_RuntimeError, "the tables of copyreg and _compat_pickle must be dicts");
        return -1;
    }
    PyObject *method = PyDict_GetItemWithError(((PyTypeObject *)unpickler_type)->tp_dict, text_find_class);
    if (method && Py_IS_TYPE(method, &PyMethodDescr_Type))
        own_find_class = ((PyMethodDescrObject *)method)->d_method->ml_meth;
    return PyErr_Occurred() ? -1 : 0;
}

/* ---- safe mode --------------------------------------------------------------------------------------------------- */

/* Return "module:name" as a new reference, cached by the identity of both names. Return NULL with an exception on
 * failure. */
static PyObject *full_name(prp_context *context, PyObject *module, PyObject *name)
{
    uintptr_t mixed = (uintptr_t)module / 16 * 31 + (uintptr_t)name / 16;
    prp_full_slot *slot = context ? &context->full_names[(mixed ^ mixed >> 7) % PRP_FULL_SLOTS] : NULL;
    if (slot && slot->module == module && slot->name == name)
        return Py_NewRef(slot->full);
    PyObject *full = PyUnicode_FromFormat("%U:%U", module, name);
    if (full && slot && PyUnicode_CheckExact(module) && PyUnicode_CheckExact(name) &&
        PyUnicode_GET_LENGTH(full) < 2 * NAME_BYTES) {
        prp_full_slot old = *slot;
        *slot = (prp_full_slot){Py_NewRef(module), Py_NewRef(name), Py_NewRef(full)};
        Py_XDECREF(old.module);
        Py_XDECREF(old.name);
        Py_XDECREF(old.full);
    }
    return full;
}

void prp_load_know_set(prp_loader *L, PyObject *set)
{
    prp_context *context = L->context;
    prp_kept_set *sets = context->sets;
    uint32_t place = 0;
    L->allow_number = PRP_NO_SET;
    if (!PyFrozenSet_CheckExact(set))
        return;
    while (place < PRP_KEPT_SETS && sets[place].set != set)
        place++;
    if (PRP_UNLIKELY(place == PRP_KEPT_SETS)) {
        if (context->set_numbers == PRP_NO_SET - 1)
            return;
        place = context->next_set++ % PRP_KEPT_SETS;
        PyObject *old = sets[place].set;
        sets[place] = (prp_kept_set){Py_NewRef(set), ++context->set_numbers};
        PRP_FOREIGN_VOID(Py_XDECREF(old));
    }
    context->last_set = L->allow_place = place;
    L->allow_number = sets[place].number;
}

/* Names that run code or commands, by top-level module. `names` limits a row to some names, separated by spaces. */
static const struct {
    const char *module, *names;
} dangerous[] = {
    {"builtins", " eval exec compile open getattr setattr delattr breakpoint input __import__ "},
    {"types", " CodeType FunctionType "},
    {"code", NULL},
    {"ctypes", NULL},
    {"importlib", NULL},
    {"marshal", NULL},
    {"nt", NULL},
    {"os", NULL},
    {"pdb", NULL},
    {"pickle", NULL},
    {"_pickle", NULL},
    {"posix", NULL},
    {"pty", NULL},
    {"runpy", NULL},
    {"shutil", NULL},
    {"socket", NULL},
    {"subprocess", NULL},
    {"sys", NULL},
    {"timeit", NULL},
    {"webbrowser", NULL},
};

static bool is_in_module(const char *module, const char *top)
{
    size_t n = strlen(top);
    return strncmp(module, top, n) == 0 && (module[n] == 0 || module[n] == '.');
}

static bool is_dangerous(const char *module, const char *name)
{
    for (size_t i = 0; i < sizeof dangerous / sizeof *dangerous; i++) {
        if (!is_in_module(module, dangerous[i].module))
            continue;
        size_t n = strcspn(name, ". ");
        for (const char *at = dangerous[i].names; at; at = strchr(at + 1, ' ')) {
            if (n && strncmp(at + 1, name, n) == 0 && at[n + 1] == ' ')
                return true;
        }
        return dangerous[i].names == NULL;
    }
    return false;
}

static void refuse(PyObject *module, PyObject *name)
{
    const char *hint = "if it is safe with any arguments, add it to allow=";
    const char *m = PyUnicode_AsUTF8(module), *n = m ? PyUnicode_AsUTF8(name) : NULL;
    if (!n)
        PyErr_Clear(); /* a lone surrogate: no module of the table has such a name */
    else if (is_in_module(m, "cloudpickle"))
        hint = "the pickle contains a function or class by value; move it into a module that the reader can import";
    else if (is_dangerous(m, n))
        hint = "never allow it, because a pickle can run code or commands with it";
    prp_load_malformed("global '%U:%U' is not allowed; hint: %s", module, name, hint);
}

/* `context` is the context of the calling load, or NULL. */
static int check_allowed(prp_loader *L, prp_context *context, PyObject *module, PyObject *name)
{
    int allowed;
    if (context && prp_load_foreign(L) < 0)
        return -1;
    if (PyFrozenSet_CheckExact(L->allow)) {
        /* Reject a colon in the module's name, because two different pairs could then have the same string. */
        Py_ssize_t colon = PyUnicode_FindChar(module, ':', 0, PyUnicode_GET_LENGTH(module), 1);
        PyObject *full = colon == -1 ? full_name(context, module, name) : NULL;
        allowed = full ? PRP_FOREIGN(PySet_Contains(L->allow, full)) : colon == -1 ? -1 : 0;
        Py_XDECREF(full);
    } else {
        PyObject *answer = PRP_FOREIGN(PyObject_CallFunctionObjArgs(L->allow, module, name, NULL));
        allowed = answer ? PRP_FOREIGN(PyObject_IsTrue(answer)) : -1;
        PRP_FOREIGN_VOID(Py_XDECREF(answer));
    }
    if (allowed == 0)
        refuse(module, name);
    return allowed > 0 ? 0 : -1;
}

/* The same, but cache the result in `slot` if that is not NULL. */
static inline int check_slot(prp_loader *L, prp_context *context, PyObject *module, PyObject *name, prp_name_slot *slot)
{
    uint32_t number = L->allow_number, place = L->allow_place;
    if (PRP_LIKELY(slot && slot->allowed[place] == number))
        return 0;
    int refused = check_allowed(L, context, module, name);
    if (!refused && slot && number != PRP_NO_SET)
        slot->allowed[place] = number;
    return refused;
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

/* Replace the module and name of Python 2 by those of Python 3, as new references. */
static int rename_python2(PyObject **module, PyObject **name)
{
    PyObject *pair = PRP_FOREIGN(PyTuple_Pack(2, *module, *name));
    PyObject *found = pair ? Py_XNewRef(PRP_FOREIGN(PyDict_GetItemWithError(name_mapping, pair))) : NULL;
    Py_XDECREF(pair);
    if (!found && PyErr_Occurred())
        return -1;
    if (found) {
        if (!PyTuple_Check(found) || PyTuple_GET_SIZE(found) != 2 || !PyUnicode_Check(PyTuple_GET_ITEM(found, 0)) ||
            !PyUnicode_Check(PyTuple_GET_ITEM(found, 1))) {
            PyErr_SetString(PyExc_RuntimeError, "_compat_pickle.NAME_MAPPING values should be pairs of str");
            Py_DECREF(found);
            return -1;
        }
        *module = Py_NewRef(PyTuple_GET_ITEM(found, 0));
        *name = Py_NewRef(PyTuple_GET_ITEM(found, 1));
        Py_DECREF(found);
        return 0;
    }
    found = Py_XNewRef(PRP_FOREIGN(PyDict_GetItemWithError(import_mapping, *module)));
    if (!found && PyErr_Occurred())
        return -1;
    if (found && !PyUnicode_Check(found)) {
        PyErr_SetString(PyExc_RuntimeError, "_compat_pickle.IMPORT_MAPPING values should be strings");
        Py_DECREF(found);
        return -1;
    }
    *module = found ? found : Py_NewRef(*module);
    Py_INCREF(*name);
    return 0;
}

#if PY_VERSION_HEX >= 0x030E0000
/* Raise an AttributeError for the whole dotted name; its context is the error that one step raised. */
static void unresolved(PyObject *module, PyObject *name)
{
    PyObject *cause = PyErr_GetRaisedException();
    PyObject *module_name = PyModule_GetNameObject(module);
    if (!module_name && prp_forgive_refusal() == 0)
        module_name = Py_NewRef(module);
    PyObject *shown = module_name ? prp_repr(name) : NULL, *where = shown ? prp_repr(module_name) : NULL;
    if (where)
        PyErr_Format(PyExc_AttributeError, "Can't resolve path %U on module %U", shown, where);
    Py_XDECREF(shown);
    Py_XDECREF(where);
    Py_XDECREF(module_name);
    PyObject *error = PyErr_GetRaisedException();
    PyException_SetContext(error, cause);
    PyErr_SetRaisedException(error);
}
#endif

#if PY_VERSION_HEX < 0x030E0000
/* Raise an AttributeError whose message contains the repr of both. */
static void unreachable(const char *format, PyObject *name, PyObject *from)
{
    PyObject *shown = prp_repr(name), *whence = shown ? prp_repr(from) : NULL;
    if (whence)
        PyErr_Format(PyExc_AttributeError, format, shown, whence);
    Py_XDECREF(shown);
    Py_XDECREF(whence);
}
#endif

/* Resolve a dotted name attribute by attribute; no part may be "<locals>", the namespace of a function. */
static PyObject *walk(PyObject *from, PyObject *name)
{
    PyObject *dot = PyUnicode_FromOrdinal('.'), *path = dot ? PyUnicode_Split(name, dot, -1) : NULL;
    Py_XDECREF(dot);
    if (!path)
        return NULL;
#if PY_VERSION_HEX >= 0x030E0000
    if (PyList_GET_SIZE(path) == 1) {
        Py_DECREF(path);
        return PRP_FOREIGN(PyObject_GetAttr(from, name));
    }
#endif
    PyObject *value = Py_NewRef(from);
    for (Py_ssize_t i = 0; value && i < PyList_GET_SIZE(path); i++) {
        PyObject *part = PyList_GET_ITEM(path, i), *next = NULL;
#if PY_VERSION_HEX >= 0x030E0000
        next = PRP_FOREIGN(PyObject_GetAttr(value, part));
        if (!next && PyErr_ExceptionMatches(PyExc_AttributeError))
            unresolved(from, name);
#else
        if (PyUnicode_CompareWithASCIIString(part, "<locals>") == 0) {
            unreachable("Can't get local attribute %U on %U", name, from);
        } else {
            next = PRP_FOREIGN(PyObject_GetAttr(value, part));
            if (!next && PyErr_ExceptionMatches(PyExc_AttributeError)) {
                PyErr_Clear();
                unreachable("Can't get attribute %U on %U", name, from);
            }
        }
#endif
        PRP_FOREIGN_VOID(Py_DECREF(value));
        value = next;
    }
    Py_DECREF(path);
    return value;
}

/* Return whether this or another thread may still be importing the module with this dict. */
static bool is_initializing(PyObject *dict)
{
    PyObject *spec = PyDict_GetItemWithError(dict, text_spec);
    if (!spec || spec == Py_None)
        return PyErr_Occurred() != NULL;
    if ((PyObject *)Py_TYPE(spec) != module_spec)
        return true; /* reading its attributes may run foreign code: leave it to the import system */
    PyObject *initializing;
    Py_INCREF(spec);
    int has = prp_optional_attr(spec, text_initializing, &initializing);
    bool is = has < 0 || (has > 0 && initializing != Py_False);
    Py_XDECREF(initializing);
    Py_DECREF(spec);
    return is;
}

/* Return the value of a plain attribute of an imported module (borrowed), or NULL without an exception for anything
 * else. */
static inline PyObject *quick(PyObject *module, PyObject *name, prp_name_slot *slot)
{
    PyObject *modules = PyImport_GetModuleDict(); /* borrowed */
    if (!modules || !PyDict_CheckExact(modules) || !PyUnicode_CheckExact(module) || !PyUnicode_CheckExact(name))
        return NULL;
    uint64_t version = prp_dict_version(modules);
    if (slot && slot->found && slot->modules_version == version && prp_dict_version(slot->dict) == slot->dict_version)
        return slot->found;
    PyObject *found = PyDict_GetItemWithError(modules, module);
    if (!found || !PyModule_CheckExact(found))
        return NULL;
    PyObject *dict = PyModule_GetDict(found);
    if (is_initializing(dict))
        return NULL;
    PyObject *value = PyDict_GetItemWithError(dict, name);
    if (value && slot && version) {
        slot->found = value;
        slot->dict = dict;
        slot->modules_version = version;
        slot->dict_version = prp_dict_version(dict);
    }
    return value;
}

/* Fire the audit event for the lookup of a name. Audit hooks are foreign code. */
static int audit(prp_loader *L, prp_context *context, PyObject *module, PyObject *name)
{
    bool paused = context && L->collector_paused;
    if (context && prp_load_foreign(L) < 0)
        return -1;
    int refused = PRP_FOREIGN(PySys_Audit("pickle.find_class", "OO", module, name));
    if (paused)
        prp_load_own(L);
    return refused;
}

/* `slot` is the context's entry for exactly these names, or NULL. `context` is NULL if the caller is not a load. */
static PyObject *find_class(prp_loader *L, prp_context *context, PyObject *module, PyObject *name, prp_name_slot *slot)
{
    if (audit(L, context, module, name) < 0)
        return NULL;
    bool renamed = L->proto < 3 && L->fix_imports;
    if (renamed && rename_python2(&module, &name) < 0)
        return NULL;
    if (renamed)
        slot = NULL;
    PyObject *value = NULL;
    if (L->allow && prp_load_is_nested_stream(module, name)) {
        value = prp_load_nested_stream(L); /* the replacement has the same restrictions, so `allow` need not name it */
    } else if (!L->allow || check_slot(L, context, module, name, slot) == 0) {
        value = L->allow ? prp_load_safe_codec(module, name) : NULL;
        if (!value && !PyErr_Occurred())
            value = Py_XNewRef(quick(module, name, slot));
        if (!value && !PyErr_Occurred() && (!context || prp_load_foreign(L) == 0)) {
            PyObject *imported = PRP_FOREIGN(PyImport_Import(module));
            if (imported)
                value = L->proto >= 4 ? walk(imported, name) : PRP_FOREIGN(PyObject_GetAttr(imported, name));
            PRP_FOREIGN_VOID(Py_XDECREF(imported));
        }
    }
    if (renamed) {
        Py_DECREF(module);
        Py_DECREF(name);
    }
    return value;
}

PyObject *prp_load_find_class(prp_loader *L, PyObject *module, PyObject *name)
{
    return find_class(L, NULL, module, name, NULL);
}

/* Return the bound find_class if it is overridden; NULL without an exception if it is ours. */
static PyObject *overridden(prp_loader *L)
{
    PyObject *method = prp_load_foreign(L) < 0 ? NULL : PRP_FOREIGN(PyObject_GetAttr(L->self, text_find_class));
    if (method && own_find_class && PyCFunction_CheckExact(method) && PyCFunction_GET_SELF(method) == L->self &&
        PyCFunction_GET_FUNCTION(method) == own_find_class)
        Py_CLEAR(method);
    return method;
}

static PyObject *find_global(prp_loader *L, PyObject *module, PyObject *name, prp_name_slot *slot)
{
    if (PRP_UNLIKELY(L->custom_find_class)) {
        PyObject *method = overridden(L);
        if (method) {
            PyObject *value = NULL, *m = module, *n = name;
            bool renamed = L->allow && L->proto < 3 && L->fix_imports;
            /* Safe mode checks the name even if find_class is overridden. */
            if (!renamed || rename_python2(&m, &n) == 0) {
                if (!L->allow || check_allowed(L, L->context, m, n) == 0)
                    value = PRP_FOREIGN(PyObject_CallFunctionObjArgs(method, module, name, NULL));
                if (renamed) {
                    Py_DECREF(m);
                    Py_DECREF(n);
                }
            }
            PRP_FOREIGN_VOID(Py_DECREF(method));
            return value;
        }
        if (PyErr_Occurred())
            return NULL;
    }
    return find_class(L, L->context, module, name, slot);
}

static inline PyObject *load_global(prp_loader *L, PyObject *module, PyObject *name, prp_name_slot *slot)
{
    PyObject *value = find_global(L, module, name, slot);
    if (PRP_UNLIKELY(value && L->allow) && prp_load_note_shared(L, value) < 0)
        prp_load_clear(&value);
    return value;
}

/* Mix the bytes of a name into a hash, eight at a time; the last word may overlap the one before. */
static inline uint64_t mix(uint64_t mixed, const uint8_t *text, size_t n)
{
    uint64_t word = 0;
    for (size_t i = 0; i + 8 < n; i += 8) {
        memcpy(&word, text + i, 8);
        mixed = (mixed ^ word) * 0x9E3779B97F4A7C15ull;
        mixed ^= mixed >> 29;
    }
    if (n >= 8)
        memcpy(&word, text + n - 8, 8);
    else
        for (size_t i = 0; i < n; i++)
            word = word << 8 | text[i];
    return (mixed ^ word) * 0x9E3779B97F4A7C15ull;
}

/* Return the context's entry for the names with these bytes, or NULL with an exception. */
static prp_name_slot *names_for(prp_context *context, const uint8_t *module, size_t module_len, const uint8_t *name,
                                size_t name_len)
{
    uint64_t mixed = mix(mix(module_len, name, name_len), module, module_len);
    uint32_t hash = (uint32_t)((mixed * 0x9E3779B97F4A7C15ull) >> 32);
    prp_name_slot *slot = &context->names[hash % PRP_NAME_SLOTS];
    if (slot->module && slot->hash == hash && (size_t)PyUnicode_GET_LENGTH(slot->module) == module_len &&
        (size_t)PyUnicode_GET_LENGTH(slot->name) == name_len &&
        memcmp(PyUnicode_1BYTE_DATA(slot->module), module, module_len) == 0 &&
        memcmp(PyUnicode_1BYTE_DATA(slot->name), name, name_len) == 0)
        return slot;
    PyObject *m = prp_load_utf8(module, module_len), *n = m ? prp_load_utf8(name, name_len) : NULL;
    if (!n) {
        Py_XDECREF(m);
        return NULL;
    }
    bool kept = module_len <= NAME_BYTES && name_len <= NAME_BYTES && PyUnicode_IS_COMPACT_ASCII(m) &&
                PyUnicode_IS_COMPACT_ASCII(n);
    if (!kept)
        slot = &context->no_name;
    PyObject *old_module = slot->module, *old_name = slot->name;
    *slot = (prp_name_slot){.hash = hash, .settled = !kept, .module = m, .name = n};
    Py_XDECREF(old_module);
    Py_XDECREF(old_name);
    return slot;
}

PyObject *prp_load_global_bytes(prp_loader *L, const uint8_t *module, size_t module_len, const uint8_t *name,
                                size_t name_len, PyObject **module_text, PyObject **name_text)
{
    prp_name_slot *slot = names_for(L->context, module, module_len, name, name_len);
    if (!slot)
        return NULL;
    /* Only this load uses the context, so nothing else can replace the names in the slot. */
    PyObject *m = slot->module, *n = slot->name, *value = load_global(L, m, n, slot);
    assert(slot->module == m && slot->name == n);
    if (value && module_text)
        *module_text = Py_NewRef(m);
    if (value && name_text)
        *name_text = Py_NewRef(n);
    if (value && PRP_UNLIKELY(!slot->settled)) {
        PyUnicode_InternInPlace(&slot->module);
        PyUnicode_InternInPlace(&slot->name);
        slot->settled = true;
    }
    return value;
}

static bool has_slot(PyObject *text)
{
    return PyUnicode_CheckExact(text) && PyUnicode_IS_COMPACT_ASCII(text) && PyUnicode_GET_LENGTH(text) <= NAME_BYTES;
}

PyObject *prp_load_global(prp_loader *L, PyObject *module, PyObject *name)
{
    /* The cache is indexed by the bytes of the names, so the names may also be str objects from the stream or the
     * memo. */
    if (PRP_LIKELY(has_slot(module) && has_slot(name)))
        return prp_load_global_bytes(L, PyUnicode_1BYTE_DATA(module), (size_t)PyUnicode_GET_LENGTH(module),
                                     PyUnicode_1BYTE_DATA(name), (size_t)PyUnicode_GET_LENGTH(name), NULL, NULL);
    return load_global(L, module, name, NULL);
}

PyObject *prp_load_known_global(prp_loader *L, const char *module, const char *name)
{
    return prp_load_global_bytes(L, (const uint8_t *)module, strlen(module), (const uint8_t *)name, strlen(name), NULL,
                                 NULL);
}

PyObject *prp_load_extension(prp_loader *L, long code)
{
    if (code <= 0)
        return prp_load_malformed("EXT specifies code <= 0");
    PyObject *key = PyLong_FromLong(code);
    if (!key)
        return NULL;
    PyObject *value = NULL, *pair = NULL;
    /* This cache contains objects without their names, but safe mode and an overridden find_class must check each
     * name. */
    bool cached = !L->allow && !L->custom_find_class;
    if (cached)
        value = Py_XNewRef(PRP_FOREIGN(PyDict_GetItemWithError(extension_cache, key)));
    if (!value && PyErr_Occurred())
        goto done;
    pair = Py_XNewRef(PRP_FOREIGN(PyDict_GetItemWithError(inverted_registry, key)));
    if (!pair && PyErr_Occurred()) {
        Py_CLEAR(value);
        goto done;
    }
    if (value) {
        if (pair && PyTuple_Check(pair) && PyTuple_GET_SIZE(pair) == 2 &&
            audit(L, L->context, PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1)) < 0)
            prp_load_clear(&value);
        goto done;
    }
    if (!pair) {
        PyErr_Format(PyExc_ValueError, "unregistered extension code %ld", code);
        goto done;
    }
    if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2 || !PyUnicode_Check(PyTuple_GET_ITEM(pair, 0)) ||
        !PyUnicode_Check(PyTuple_GET_ITEM(pair, 1))) {
        PyErr_Format(PyExc_ValueError, "_inverted_registry[%ld] isn't a 2-tuple of strings", code);
        goto done;
    }
    value = prp_load_global(L, PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1));
    if (value && cached && (prp_load_foreign(L) < 0 || PRP_FOREIGN(PyDict_SetItem(extension_cache, key, value)) < 0))
        prp_load_clear(&value);
done:
    PRP_FOREIGN_VOID(Py_XDECREF(pair));
    Py_DECREF(key);
    return value;
}

PyObject *prp_load_persistent(prp_loader *L, PyObject *pid)
{
    if (prp_load_foreign(L) < 0)
        return NULL;
    PyObject *method = L->self ? PRP_FOREIGN(PyObject_GetAttr(L->self, text_persistent_load)) : NULL;
    if (!method) {
        if (L->self && !PyErr_ExceptionMatches(PyExc_AttributeError))
            return NULL;
        PyErr_Clear();
        return prp_load_malformed("A load persistent id instruction was encountered, "
                                  "but no persistent_load function was specified.");
    }
    PyObject *value = PRP_FOREIGN(PyObject_CallOneArg(method, pid));
    if (value && L->allow && prp_load_note_shared(L, value) < 0)
        prp_load_clear(&value);
    PRP_FOREIGN_VOID(Py_DECREF(method));
    return value;
}
