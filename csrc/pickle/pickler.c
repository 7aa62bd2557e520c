/* Sets up savers, runs dumps and cleans up afterwards; also sets up the objects that all savers share. */
#include "pickler.h"
#include "array_buffer.h"
#include "c_stack.h"
#include "class_plan.h"
#include "atoms.h"

#include <stdlib.h>

#define KEEP_FRAMES 4096

prp_globals prp_g;

/* ---- setup ---- */

static PyObject *import_from(const char *module, const char *name)
{
    PyObject *m = PRP_FOREIGN(PyImport_ImportModule(module)),
             *found = m ? PRP_FOREIGN(PyObject_GetAttrString(m, name)) : NULL;
    Py_XDECREF(m);
    return found;
}

int prp_setup(void)
{
    static const struct {
        PyObject **to;
        const char *text;
    } strings[] = {
        {&prp_g.str_module, "__module__"},
        {&prp_g.str_qualname, "__qualname__"},
        {&prp_g.str_name, "__name__"},
        {&prp_g.str_reduce_ex, "__reduce_ex__"},
        {&prp_g.str_reduce, "__reduce__"},
        {&prp_g.str_getstate, "__getstate__"},
        {&prp_g.str_getnewargs_ex, "__getnewargs_ex__"},
        {&prp_g.str_getnewargs, "__getnewargs__"},
        {&prp_g.str_class, "__class__"},
        {&prp_g.str_value, "_value_"},
        {&prp_g.str_getattr, "__getattr__"},
        {&prp_g.str_getattribute, "__getattribute__"},
        {&prp_g.str_iter, "__iter__"},
        {&prp_g.str_main, "__main__"},
        {&prp_g.str_latin1, "latin1"},
        {&prp_g.str_locals, "<locals>"},
        {&prp_g.str_cloudpickle, "cloudpickle"},
        {&prp_g.str_items, "items"},
        {&prp_g.str_reducer_override, "reducer_override"},
        {&prp_g.str_dispatch_table, "dispatch_table"},
        {&prp_g.str_maps, "maps"},
        {&prp_g.str_func, "__func__"},
        {&prp_g.str_cloudpickle_module, "cloudpickle.cloudpickle"},
        {&prp_g.str_by_value_modules, "_PICKLE_BY_VALUE_MODULES"},
        {&prp_g.str_list_by_value, "list_registry_pickle_by_value"},
    };
    static const struct {
        PyObject **to;
        const char *module, *name;
    } imports[] = {
        {&prp_g.pickling_error, "pickle", "PicklingError"},
        {&prp_g.copyreg_table, "copyreg", "dispatch_table"},
        {&prp_g.extensions, "copyreg", "_extension_registry"},
        {&prp_g.pickle_complex, "copyreg", "pickle_complex"},
        {&prp_g.slotnames, "copyreg", "_slotnames"},
        {&prp_g.name_mapping, "_compat_pickle", "REVERSE_NAME_MAPPING"},
        {&prp_g.import_mapping, "_compat_pickle", "REVERSE_IMPORT_MAPPING"},
        {&prp_g.getattr, "builtins", "getattr"},
        {&prp_g.partial, "functools", "partial"},
        {&prp_g.codecs_encode, "codecs", "encode"},
        {&prp_g.sys_modules, "sys", "modules"},
    };
    if (prp_check_interpreter() < 0)
        return -1;
    if (prp_context_setup() < 0)
        return -1;
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++)
        if (!(*strings[i].to = PyUnicode_InternFromString(strings[i].text)))
            return -1;
    for (size_t i = 0; i < sizeof imports / sizeof *imports; i++)
        if (!(*imports[i].to = import_from(imports[i].module, imports[i].name)))
            return -1;
    for (long i = 0; i < 6; i++)
        if (!(prp_g.int_proto[i] = PyLong_FromLong(i)))
            return -1;
    PyObject *bases = PRP_FOREIGN(PyTuple_Pack(2, prp_g.pickling_error, PyExc_RecursionError));
    prp_g.deep_recursion_error =
        bases ? PRP_FOREIGN(PyErr_NewExceptionWithDoc("pyray_ser._pickle.DeepRecursionError",
                                                      "Objects are nested too deeply to be pickled.", bases, NULL))
              : NULL;
    Py_XDECREF(bases);
    PyObject *list = PRP_FOREIGN(PyList_New(0)),
             *append = list ? PRP_FOREIGN(PyObject_GetAttrString(list, "append")) : NULL;
    if (append && PyCFunction_Check(append))
        prp_g.list_append = PyCFunction_GET_FUNCTION(append);
    Py_XDECREF(append);
    Py_XDECREF(list);
    if (!prp_g.deep_recursion_error || !append)
        return -1;
    return prp_plans_setup() < 0 ? -1 : prp_array_buffer_setup();
}

/* ---- savers ---- */

int prp_saver_init(prp_saver *s)
{
    memset(s, 0, sizeof *s);
    s->frame = SIZE_MAX;
    s->by_value_wanted = -1;
    if (prp_memo_init(&s->memo) < 0)
        return -1;
    if (prp_out_init(s) < 0) {
        prp_memo_free(&s->memo);
        return -1;
    }
    return 0;
}

static void drop_steps(prp_saver *s)
{
    while (s->step_count) {
        prp_step step = s->steps[--s->step_count];
        Py_DECREF(step.holder);
        Py_XDECREF(step.key);
        Py_XDECREF(step.child);
    }
}

/* Release the data of one dump; keep the memo. */
void prp_saver_finish(prp_saver *s)
{
    if (s->numbers.first)
        prp_numbers_clear(s);
    s->by_value_wanted = -1;
    if (PRP_LIKELY(!s->guard && !s->by_value && !s->step_count && !s->buffer_count && !s->segments && !s->piece_count &&
                   s->room <= KEEP_FRAMES && (size_t)(s->end - s->base) <= PRP_KEEP_BYTES)) {
        s->p = s->base;
        s->frame = SIZE_MAX;
        return;
    }
    Py_CLEAR(s->guard);
    Py_CLEAR(s->by_value);
    Py_CLEAR(s->by_value_maps);
    drop_steps(s);
    prp_put_drop(s);
    prp_out_reset(s);
    if (s->room > KEEP_FRAMES) {
        free(s->stack);
        s->stack = NULL;
        s->room = 0;
    }
}

void prp_saver_free(prp_saver *s)
{
    if (!s->base)
        return;
    prp_saver_finish(s);
    prp_numbers_free(s);
    prp_memo_free(&s->memo);
    prp_out_free(s);
    free(s->stack);
    free(s->steps);
    free(s->buffers);
    s->stack = NULL;
    s->steps = NULL;
    s->buffers = NULL;
}

void prp_saver_protocol(prp_saver *s, int proto)
{
    s->proto = proto;
    s->bin = proto >= 1;
    s->framing = proto >= 4;
    s->elide = false;
}

/* ---- the path to what failed ---- */

/* Clear the exception that a repr or note raised, even a RecursionError, because the pending exception is more useful.
 * Do not clear an interrupt or a MemoryError. */
static int forgive_while_reporting(void)
{
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_MemoryError))
        return -1;
    return prp_forgive(PyExc_Exception);
}

/* Return the path as a str such as ".model.cache['k'][1]". Return NULL without an exception if there is no path, and
 * NULL with an exception on failure. */
static PyObject *failure_path(const prp_saver *s)
{
    size_t n = s->step_count;
    if (!n || !prp_g.path_text)
        return NULL;
    PyObject *steps = PRP_FOREIGN(PyList_New((Py_ssize_t)n)), *path = NULL;
    for (size_t i = 0; steps && i < n; i++) {
        const prp_step *step = &s->steps[n - 1 - i];
        PyObject *child = step->child ? step->child : i + 1 < n ? s->steps[n - 2 - i].holder : Py_None;
        PyObject *tuple =
            PRP_FOREIGN(Py_BuildValue("(OsOO)", step->holder, step->kind, step->key ? step->key : Py_None, child));
        if (!tuple)
            Py_CLEAR(steps);
        else
            PyList_SET_ITEM(steps, (Py_ssize_t)i, tuple);
    }
    if (steps)
        path = PRP_FOREIGN(PyObject_CallOneArg(prp_g.path_text, steps));
    if (path && (!PyUnicode_Check(path) || !PyUnicode_GET_LENGTH(path)))
        Py_CLEAR(path);
    Py_XDECREF(steps);
    return path;
}

/* Add the path to the current exception, either as a note or, in put mode, in the message. */
static PRP_COLD void report(prp_saver *s)
{
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace)
        PyException_SetTraceback(error, trace);
    PyObject *path = failure_path(s);
    if (path && s->put) {
        prp_put_error(error, path);
    } else if (path) {
        PyObject *note = PyUnicode_FromFormat("at %U of the object being pickled", path);
        PyObject *done = note ? PRP_FOREIGN(PyObject_CallMethod(error, "add_note", "O", note)) : NULL;
        Py_XDECREF(done);
        Py_XDECREF(note);
    }
    Py_XDECREF(path);
    if (forgive_while_reporting() == 0) {
        PyErr_Restore(type, error, trace);
        return;
    }
    /* An interrupt arrived: raise it, and make the original exception its context. */
    PyObject *new_type, *new_error, *new_trace;
    PyErr_Fetch(&new_type, &new_error, &new_trace);
    PyErr_NormalizeException(&new_type, &new_error, &new_trace);
    if (new_error != error)
        PyException_SetContext(new_error, Py_XNewRef(error));
    PyErr_Restore(new_type, new_error, new_trace);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
}

/* ---- dumping ---- */

static bool is_append(PyObject *callback)
{
    return PyCFunction_CheckExact(callback) && PyCFunction_GET_FUNCTION(callback) == prp_g.list_append &&
           PyCFunction_GET_SELF(callback) && PyList_CheckExact(PyCFunction_GET_SELF(callback));
}

int prp_dump(prp_saver *s, PyObject *root)
{
    s->append_to = NULL;
    if (s->buffer_callback && is_append(s->buffer_callback)) {
        s->append_to = PyCFunction_GET_SELF(s->buffer_callback);
        s->append_from = PyList_GET_SIZE(s->append_to);
    }
    prp_epoch++;
    s->stack_limit = prp_stack_limit(PRP_STACK_RESERVE);
    s->exact = s->proto < 5 || s->fast || s->persistent_id || s->reducer_override || s->dispatch_table;
    if (!s->elide)
        prp_memo_own_all(s);
    for (;;) {
        s->restart = s->elided = false;
        if (prp_out_begin(s) == 0 && (s->put ? prp_put_root(s, root) : prp_save(s, root)) == 0 &&
            prp_out_finish(s) == 0)
            return 0;
        if (!s->restart)
            break;
        /* Foreign code is about to run for the first time: start the dump again, without elision. */
        s->restart = false;
        s->elide = false;
        prp_saver_finish(s);
        prp_memo_clear(&s->memo, SIZE_MAX);
        prp_memo_own_all(s);
        if (s->append_to &&
            PRP_FOREIGN(PyList_SetSlice(s->append_to, s->append_from, PyList_GET_SIZE(s->append_to), NULL)) < 0)
            break;
    }
    report(s);
    return -1;
}

/* Pickle a single atom at protocol 5 without a saver; return NULL without an exception if obj is not an atom. */
static PyObject *dumps_atom(PyObject *obj)
{
    uint8_t out[PRP_ROOM], *p = out;
    PyTypeObject *type = Py_TYPE(obj);
    int64_t value;
    *p++ = OP_PROTO;
    *p++ = 5;
    if (obj == Py_None) {
        *p++ = OP_NONE;
    } else if (type == &PyLong_Type && prp_long_small(obj, &value) && value == (int32_t)value) {
        p = prp_put_int32(p, (long)value);
    } else if (type == &PyBool_Type) {
        *p++ = obj == Py_True ? OP_NEWTRUE : OP_NEWFALSE;
    } else {
        return NULL;
    }
    if (p - out > 4) {
        /* FRAME, 8 bytes of length */
        size_t len = (size_t)(p - out) - 2 + 1;
        memmove(out + 11, out + 2, len - 1);
        out[2] = OP_FRAME;
        prp_put_u64(out + 3, len);
        p = out + 11 + len - 1;
    }
    *p++ = OP_STOP;
    return PyBytes_FromStringAndSize((char *)out, p - out);
}

PyObject *prp_dumps(PyObject *obj, int proto, bool fix_imports, PyObject *buffer_callback)
{
    if (proto == 5) {
        PyObject *atom = dumps_atom(obj);
        if (atom || PyErr_Occurred())
            return atom;
    }
    prp_saver *s = prp_acquire();
    if (!s)
        return NULL;
    prp_saver_protocol(s, proto);
    s->fix_imports = fix_imports && proto < 3;
    s->buffer_callback = buffer_callback;
    s->elide = proto >= 5;
    s->to_bytes = true;
    PyObject *bytes = prp_dump(s, obj) == 0 ? prp_out_bytes(s) : NULL;
    prp_out_unhold(s);
    prp_release(s);
    return bytes;
}
