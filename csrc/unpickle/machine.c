/* Manages the life cycle of machines and contexts: creates them, sets options and input, clears, caches and frees them.
 *
 * We keep a few idle contexts, the most recently used first, so that loading a small object allocates only that object.
 * A released machine keeps its stack and memo memory if they are small, but no reference from the last load.
 */
#include "context.h"

#include <stdarg.h>

#define IDLE_CONTEXTS 8
#define STACK_SLOTS 256
#define KEEP_STACK_SLOTS 16384
#define MARKS 32
#define KEEP_MARKS 4096

PyObject *prp_unpickling_error;

static prp_context *idle[IDLE_CONTEXTS];
static int idle_count;

bool prp_load_strict_frames;
int prp_load_int_base;

/* CPython releases differ in two cases that no pickler writes: opcodes that cross the end of their frame, and decimal
 * integers with leading zeros. Find out how this interpreter handles them, so that we do the same. */
static int ask_the_interpreter(void)
{
    static const char crossing[] = "\x80\x04\x95\x02\0\0\0\0\0\0\0J\1\0\0\0.", padded[] = "I010\n.";
    PyObject *module = PyImport_ImportModule("_pickle");
    PyObject *loads = module ? PyObject_GetAttrString(module, "loads") : NULL;
    Py_XDECREF(module);
    if (!loads)
        return -1;
    PyObject *value = PyObject_CallFunction(loads, "y#", crossing, (Py_ssize_t)sizeof(crossing) - 1);
    prp_load_strict_frames = !value;
    Py_XDECREF(value);
    if (prp_forgive_refusal() < 0) {
        Py_DECREF(loads);
        return -1;
    }
    value = PyObject_CallFunction(loads, "y#", padded, (Py_ssize_t)sizeof(padded) - 1);
    prp_load_int_base = value && PyLong_AsLong(value) == 10 ? 10 : 0;
    Py_XDECREF(value);
    Py_DECREF(loads);
    return PyErr_Occurred() ? -1 : 0;
}

int prp_load_init(PyObject *unpickling_error, PyObject *unpickler_type)
{
    if (prp_check_interpreter() < 0)
        return -1;
    prp_unpickling_error = Py_NewRef(unpickling_error);
    if (prp_load_string_init() < 0 || prp_load_items_init() < 0 || prp_plan_init() < 0 || prp_load_buffer_init() < 0 ||
        prp_load_global_init(unpickler_type) < 0 || ask_the_interpreter() < 0)
        return -1;
    return 0;
}

PyObject *prp_load_malformed(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    PyErr_FormatV(prp_unpickling_error, format, args);
    va_end(args);
    return NULL;
}

int prp_load_truncated(void)
{
    PyErr_SetString(prp_unpickling_error, "pickle data was truncated");
    return -1;
}

int prp_load_underflow(prp_loader *L)
{
    PyErr_SetString(prp_unpickling_error, L->mark_count ? "unexpected MARK found" : "unpickling stack underflow");
    return -1;
}

static void set_defaults(prp_loader *L)
{
    L->proto = 0;
    L->fix_imports = true;
    L->raw_strings = false;
    L->custom_find_class = false;
    L->encoding = L->errors = NULL;
    L->self = NULL;
    L->owner = NULL;
    L->table = NULL;
    L->table_len = L->table_next = 0;
    L->array_flags = 0;
}

/* Allocate the scratch memory of a zeroed machine. Return 0, or -1 with an exception. */
static int make_machine(prp_loader *L)
{
    L->stack = PyMem_Malloc(STACK_SLOTS * sizeof(PyObject *));
    L->marks = PyMem_Malloc(MARKS * sizeof(prp_mark));
    if (!L->stack || !L->marks) {
        PyMem_Free(L->stack);
        PyMem_Free(L->marks);
        PyErr_NoMemory();
        return -1;
    }
    L->sp = L->fence = L->stack;
    L->limit = L->stack + STACK_SLOTS;
    L->mark_capacity = MARKS;
    L->allow_number = PRP_NO_SET;
    set_defaults(L);
    return 0;
}

static void free_machine(prp_loader *L)
{
    prp_loader_clear(L);
    PyMem_Free(L->stack);
    PyMem_Free(L->marks);
    PyMem_Free(L->memo.entries);
    PyMem_Free(L->unmade);
}

prp_loader *prp_loader_new(void)
{
    prp_loader *L = PyMem_Calloc(1, sizeof(*L));
    if (!L) {
        PyErr_NoMemory();
        return NULL;
    }
    if (make_machine(L) < 0) {
        PyMem_Free(L);
        return NULL;
    }
    return L;
}

/* Drop every reference. Releasing a reference may run code that uses the machine again. */
void prp_loader_clear(prp_loader *L)
{
    prp_load_discard_stack(L);
    prp_load_memo_clear(L); /* clear the memo first, then the records that its tags refer to */
    prp_load_drop_unmade(L);
    prp_load_drop_chunk(L);
    Py_CLEAR(L->read);
    Py_CLEAR(L->readline);
    Py_CLEAR(L->readinto);
    Py_CLEAR(L->peek);
    Py_CLEAR(L->encoding_text);
    Py_CLEAR(L->errors_text);
    Py_CLEAR(L->buffers);
    Py_CLEAR(L->allow);
    Py_CLEAR(L->shared);
    set_defaults(L);
}

void prp_loader_free(prp_loader *L)
{
    if (!L)
        return;
    free_machine(L);
    PyMem_Free(L);
}

static prp_context *new_context(void)
{
    prp_context *context = PyMem_Calloc(1, sizeof(*context));
    if (!context) {
        PyErr_NoMemory();
        return NULL;
    }
    if (make_machine(&context->machine) < 0) {
        PyMem_Free(context);
        return NULL;
    }
    context->machine.context = context;
    return context;
}

/* No other code can reach the context, so destructors that run here may use the unpickler. */
static void free_context(prp_context *context)
{
    free_machine(&context->machine);
    for (int i = 0; i < PRP_KEY_SLOTS; i++)
        Py_XDECREF(context->keys[i].text);
    for (int i = 0; i < PRP_NAME_SLOTS; i++) {
        Py_XDECREF(context->names[i].module);
        Py_XDECREF(context->names[i].name);
    }
    Py_XDECREF(context->no_name.module);
    Py_XDECREF(context->no_name.name);
    for (int i = 0; i < PRP_FULL_SLOTS; i++) {
        Py_XDECREF(context->full_names[i].module);
        Py_XDECREF(context->full_names[i].name);
        Py_XDECREF(context->full_names[i].full);
    }
    for (int i = 0; i < PRP_KEPT_SETS; i++)
        Py_XDECREF(context->sets[i].set);
    for (int i = 0; i < PRP_PLAN_SETS; i++)
        for (int j = 0; j < 2; j++)
            prp_plan_forget(&context->plans[i][j]);
    for (int i = 0; i < PRP_PATTERNS; i++)
        Py_XDECREF(context->patterns[i].dict);
    PyMem_Free(context);
}

prp_loader *prp_loader_acquire(void)
{
    if (PRP_LIKELY(idle_count > 0))
        return &idle[--idle_count]->machine;
    prp_context *context = new_context();
    return context ? &context->machine : NULL;
}

/* Shrink the scratch memory of an empty machine after a large load. */
static PRP_COLD void shrink_machine(prp_loader *L)
{
    PyObject **stack = PyMem_Realloc(L->stack, STACK_SLOTS * sizeof(PyObject *));
    if (stack) {
        L->stack = L->sp = L->fence = stack;
        L->limit = stack + STACK_SLOTS;
    }
    prp_mark *marks = PyMem_Realloc(L->marks, MARKS * sizeof(prp_mark));
    if (marks) {
        L->marks = marks;
        L->mark_capacity = MARKS;
    }
    PyMem_Free(L->unmade);
    L->unmade = NULL;
    L->unmade_capacity = 0;
}

void prp_loader_release(prp_loader *L)
{
    prp_context *context = L->context;
    /* After most loads the stack and the memo are already empty. */
    if (L->sp != L->stack || L->mark_count)
        prp_load_discard_stack(L);
    if (L->memo.top || L->memo.sparse)
        prp_load_memo_empty(L);
    if (L->unmade_count)
        prp_load_drop_unmade(L);
    if (L->chunk_owner)
        prp_load_drop_chunk(L);
    if (L->buffers)
        Py_CLEAR(L->buffers);
    if (L->allow)
        Py_CLEAR(L->allow);
    if (L->shared)
        Py_CLEAR(L->shared);
    if (L->read) {
        Py_CLEAR(L->read);
        Py_CLEAR(L->readline);
        Py_CLEAR(L->readinto);
        Py_CLEAR(L->peek);
    }
    if (L->encoding_text || L->errors_text) {
        Py_CLEAR(L->encoding_text);
        Py_CLEAR(L->errors_text);
    }
    L->p = L->end = L->chunk = L->beyond = NULL;
    set_defaults(L);
    if (L->limit - L->stack > KEEP_STACK_SLOTS || L->mark_capacity > KEEP_MARKS || L->unmade_capacity > KEEP_MARKS)
        shrink_machine(L);
    if (PRP_LIKELY(idle_count < IDLE_CONTEXTS))
        idle[idle_count++] = context;
    else
        free_context(context);
}

int prp_loader_set_strings(prp_loader *L, PyObject *encoding, PyObject *errors)
{
    const char *e = NULL, *r = NULL;
    if (encoding && !(e = PyUnicode_AsUTF8(encoding)))
        return -1;
    if (errors && !(r = PyUnicode_AsUTF8(errors)))
        return -1;
    if (e) {
        Py_XSETREF(L->encoding_text, Py_NewRef(encoding));
        L->encoding = e;
        L->raw_strings = strcmp(e, "bytes") == 0;
    }
    if (r) {
        Py_XSETREF(L->errors_text, Py_NewRef(errors));
        L->errors = r;
    }
    return 0;
}

int prp_loader_set_buffers(prp_loader *L, PyObject *buffers)
{
    PyObject *kept = NULL;
    if (!buffers || buffers == Py_None)
        kept = NULL;
    else if (PyList_CheckExact(buffers) || PyTuple_CheckExact(buffers))
        kept = Py_NewRef(buffers); /* for these types we use an index, not an iterator */
    else if (!(kept = PRP_FOREIGN(PyObject_GetIter(buffers))))
        return -1;
    L->buffer_next = 0;
    Py_XSETREF(L->buffers, kept);
    return 0;
}

int prp_loader_set_allow(prp_loader *L, PyObject *allow)
{
    PyObject *kept = NULL;
    L->allow_number = PRP_NO_SET;
    if (!allow || allow == Py_None) {
        kept = NULL;
    } else if (PRP_LIKELY(PyFrozenSet_CheckExact(allow))) {
        kept = Py_NewRef(allow);
    } else if (PyCallable_Check(allow)) {
        kept = Py_NewRef(allow);
    } else if (PyUnicode_Check(allow) || PyBytes_Check(allow)) {
        PyErr_SetString(PyExc_TypeError,
                        "allow must be a collection of \"module:qualname\" names or a predicate, not one string");
        return -1;
    } else {
        kept = PRP_FOREIGN(PyFrozenSet_New(allow));
        if (!kept)
            return -1;
    }
    if (kept && PyFrozenSet_CheckExact(kept) && L->context)
        prp_load_know_set(L, kept);
    Py_XSETREF(L->allow, kept);
    return 0;
}

void prp_loader_memory(prp_loader *L, const uint8_t *data, size_t len)
{
    L->p = L->chunk = data;
    L->end = data + len;
    L->beyond = NULL;
    L->peeked = false;
}

int prp_loader_file(prp_loader *L, PyObject *file)
{
    PyObject *found[4] = {NULL, NULL, NULL, NULL};
    static const char *const names[4] = {"peek", "readinto", "read", "readline"};
    for (int i = 0; i < 4; i++) {
        found[i] = PRP_FOREIGN(PyObject_GetAttrString(file, names[i]));
        if (!found[i]) {
            if (!PyErr_ExceptionMatches(PyExc_AttributeError))
                goto failed;
            PyErr_Clear();
        }
    }
    if (!found[2] || !found[3]) {
        PyErr_SetString(PyExc_TypeError, "file must have 'read' and 'readline' attributes");
        goto failed;
    }
    Py_XSETREF(L->peek, found[0]);
    Py_XSETREF(L->readinto, found[1]);
    Py_XSETREF(L->read, found[2]);
    Py_XSETREF(L->readline, found[3]);
    return 0;
failed:
    for (int i = 0; i < 4; i++)
        Py_XDECREF(found[i]);
    return -1;
}

int prp_loader_traverse(prp_loader *L, visitproc visit, void *arg)
{
    /* L->sp can be stale during a load, so skip a running machine: the machine is reachable, and so is everything on
     * its stack. */
    for (PyObject **slot = L->stack; !L->running && slot < L->sp; slot++)
        Py_VISIT(*slot);
    for (Py_ssize_t i = 0; i < L->memo.top; i++)
        if (!prp_load_tagged(L->memo.entries[i]))
            Py_VISIT(L->memo.entries[i]);
    Py_VISIT(L->memo.sparse);
    for (Py_ssize_t i = 0; i < L->unmade_count; i++)
        Py_VISIT(L->unmade[i].obj);
    Py_VISIT(L->read);
    Py_VISIT(L->readline);
    Py_VISIT(L->readinto);
    Py_VISIT(L->peek);
    Py_VISIT(L->buffers);
    Py_VISIT(L->allow);
    Py_VISIT(L->shared);
    return 0;
}
