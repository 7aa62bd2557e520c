/* The unpickler: declarations shared by its files, and the interface of the extension module.
 *
 * A `prp_loader` is an unpickling machine, which consists of input, stack, marks, memo and options. prp_loader_new()
 * creates it, prp_loader_memory() or prp_loader_file() sets its input, and prp_load() runs it.
 *
 * Caches that outlive a load (names, classes, strings, template dicts) belong to a context (context.h). A call owns one
 * context from its start to its end; nested calls and calls in other threads each use a different context. So no other
 * load changes these caches, even if Python code runs meanwhile.
 *
 * Ownership: the stack and the memo own their objects. A stack slot may be NULL for a container that is still "pending"
 * (pending.c), and a memo entry may be a tagged integer for the same reason; code outside memo.c and pending.c never
 * receives such slots or entries.
 *
 * "Foreign code" is all code that is not ours: Python code, destructors, hooks.
 *
 * Everything in a stream is untrusted. A failure sets a Python exception and returns -1 or NULL; the machine can then
 * be run again or freed.
 */
#ifndef PRP_LOAD_H
#define PRP_LOAD_H

#include "interp.h"
#include "interp_write.h"
#include "ndarray/api.h"

#define PRP_NO_SET UINT32_MAX

/* ---- marks, and containers that are created when their size is known --------------------------------------------- */

typedef enum {
    PRP_MARK_PLAIN, /* only a MARK, without a pending container */
    PRP_MARK_LIST,  /* the slot below is a list that APPENDS creates */
    PRP_MARK_DICT,  /* the slot below is a dict that SETITEMS creates */
    PRP_MARK_STATE, /* as DICT, but the dict is probably the state of the instance below it */
    PRP_MARK_SLOTS, /* as STATE, but the state is (None, dict); below the dict are None and the instance */
} prp_mark_kind;

typedef struct prp_class_plan prp_class_plan;
typedef struct prp_context prp_context;

typedef struct {
    Py_ssize_t at; /* stack height at the MARK: elements begin here */
    prp_mark_kind kind;
    Py_ssize_t memo;            /* the pending container's memo index, -1 if it has none */
    const prp_class_plan *plan; /* STATE, SLOTS: entry of the table of plans; prp_plan_knows() checks the class */
} prp_mark;

/* ---- the memo ---------------------------------------------------------------------------------------------------- */

/* An entry is an owned object or a tagged integer. The integer is an index. It identifies the mark of a pending
 * container, or the record of a state dict that we did not create because its values went directly into the
 * instance. */
enum { PRP_MEMO_TAG_PENDING = 1, PRP_MEMO_TAG_UNMADE = 2, PRP_MEMO_TAGS = 3 };

typedef struct {
    PyObject **entries; /* each is NULL, tagged or owned */
    Py_ssize_t capacity;
    Py_ssize_t top;   /* no entry at or above it is set */
    Py_ssize_t used;  /* number of indices set, here and in `sparse`; also the index of the next MEMOIZE */
    PyObject *sparse; /* dict for indices that no real pickler can have reached yet; NULL until needed */
} prp_load_memo;

typedef struct {
    PyObject *obj;   /* owned: the instance that got the dict's values */
    PyObject *names; /* owned: tuple of the instance's slot names, in order; NULL: all attributes */
    Py_ssize_t memo; /* the entry that is tagged with this record, or -1 */
    Py_ssize_t pair; /* SLOTS: the entry of the tuple (None, dict), -1 if it has none */
} prp_unmade;

/* One element of an array of out-of-band buffers in foreign memory (the store). */
typedef struct {
    const uint8_t *ptr;
    size_t len;
} prp_buffer;

/* ---- the machine ------------------------------------------------------------------------------------------------- */

typedef struct prp_loader {
    prp_context *context; /* owned while a load runs */

    /* input: [p, end) has been read but not consumed */
    const uint8_t *p, *end;
    const uint8_t *chunk;  /* start of the current chunk */
    const uint8_t *beyond; /* the chunk's end while `end` is the end of a frame (no opcode may cross it); else NULL */
    bool peeked;           /* the chunk was peeked: the consumed bytes must still be read from the file */
    PyObject *chunk_owner; /* keeps the chunk alive; NULL if the caller does */
    Py_buffer chunk_view;  /* held if chunk_owner is a buffer other than bytes; .obj is NULL otherwise */
    PyObject *read, *readline, *readinto, *peek; /* all NULL for memory input */

    /* stack */
    PyObject **stack, **sp, **limit;
    PyObject **fence; /* opcodes may pop only values above it */
    prp_mark *marks;
    Py_ssize_t mark_count, mark_capacity;

    prp_load_memo memo;
    prp_unmade *unmade;
    Py_ssize_t unmade_count, unmade_capacity;

    /* options */
    int proto;
    bool fix_imports;
    bool raw_strings;       /* true for encoding="bytes" */
    bool custom_find_class; /* `self` is an instance of a subclass: look up find_class for each global */
    bool running;
    const char *encoding, *errors; /* NULL means "ASCII" or "strict"; otherwise the strings below own them */
    PyObject *encoding_text, *errors_text;
    PyObject *buffers;      /* exact list or tuple, or an iterator; NULL if none were given */
    Py_ssize_t buffer_next; /* list or tuple: the next index; -1 after the last one, even if the list grows later */
    PyObject *allow;        /* NULL, a frozenset of "module:qualname", or a callable */
    uint32_t allow_number, allow_place; /* number of the set `allow` in the context, or PRP_NO_SET */
    PyObject *shared; /* safe mode: objects that this load did not create, by address; NULL until needed */
    PyObject *self;   /* borrowed: the Unpickler, or NULL in the module functions */

    /* the store */
    PyObject *owner; /* borrowed; if not NULL, out-of-band buffers come from `table` and arrays are read-only */
    const prp_buffer *table;
    size_t table_len, table_next;
    int array_flags;

    unsigned key_hits, key_misses;
    bool may_pause, collector_paused;
} prp_loader;

/* ---- loop.c, machine.c: interface of the extension module -------------------------------------------------------- */

int prp_load_init(PyObject *unpickling_error, PyObject *unpickler_type);
prp_loader *prp_loader_new(void);
void prp_loader_free(prp_loader *L);
/* Return the machine of an idle context, with default options, or NULL with an exception. Give the machine and its
 * context back with prp_loader_release(). */
prp_loader *prp_loader_acquire(void);
void prp_loader_release(prp_loader *L);
int prp_loader_set_strings(prp_loader *L, PyObject *encoding, PyObject *errors);
int prp_loader_set_buffers(prp_loader *L, PyObject *buffers);
int prp_loader_set_allow(prp_loader *L, PyObject *allow);
void prp_loader_memory(prp_loader *L, const uint8_t *data, size_t len);
int prp_loader_file(prp_loader *L, PyObject *file);
/* Run the machine up to STOP. Return a new reference, or NULL with an exception. */
PyObject *prp_load(prp_loader *L);
PyObject *prp_loads_function(PyObject *module_name); /* loads.c: create loads(); call it once */
/* loads.c: load from any buffer object. */
PyObject *prp_load_data(prp_loader *L, PyObject *data);
int prp_loader_traverse(prp_loader *L, visitproc visit, void *arg);
void prp_loader_clear(prp_loader *L);

/* Drop a reference, perhaps the last, to an object that is not on the machine's stack or in its memo. */
static inline void prp_load_clear(PyObject **slot)
{
    PyObject *old = *slot;
    *slot = NULL;
    PRP_FOREIGN_VOID(Py_XDECREF(old));
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

extern PyObject *prp_unpickling_error;
PyObject *prp_load_malformed(const char *format, ...); /* always returns NULL */
int prp_load_underflow(prp_loader *L);                 /* always -1 */
int prp_load_truncated(void);                          /* always -1 */

/* ---- input.c ----------------------------------------------------------------------------------------------------- */

/* Make [p, p + need) available, or return -1. */
int prp_load_refill(prp_loader *L, size_t need);
/* Make the frame of `length` bytes that begins at p available and, if frames are strict, set `end` to its end. */
int prp_load_frame(prp_loader *L, uint64_t length);
extern bool prp_load_strict_frames; /* opcodes may not cross the end of a frame, as in recent releases of CPython */
extern int prp_load_int_base;       /* base for INT and LONG: 10, or 0 to read them as int(text, 0) would */
/* Consume a line with its newline, and return its length, or -1. The pointer is valid until the next read. */
Py_ssize_t prp_load_line(prp_loader *L, const char **line);
typedef enum { PRP_BYTES, PRP_BYTEARRAY } prp_bytes_kind;
/* Read an object of `n` bytes, from the rest of the chunk and then from the file. */
PyObject *prp_load_bytes(prp_loader *L, size_t n, prp_bytes_kind kind);
/* At the end of a load, advance the file to just after the last byte consumed. */
int prp_load_settle(prp_loader *L);
void prp_load_drop_chunk(prp_loader *L);

/* ---- stack.c ----------------------------------------------------------------------------------------------------- */

int prp_load_grow_stack(prp_loader *L);
int prp_load_grow_marks(prp_loader *L);
static inline int prp_load_push_mark(prp_loader *L, prp_mark_kind kind, Py_ssize_t memo, const prp_class_plan *plan)
{
    if (PRP_UNLIKELY(L->mark_count == L->mark_capacity) && prp_load_grow_marks(L) < 0)
        return -1;
    L->marks[L->mark_count++] = (prp_mark){.at = L->sp - L->stack, .kind = kind, .memo = memo, .plan = plan};
    L->fence = L->sp;
    return 0;
}
/* Remove the last mark; if its container is pending, create that first. Return the stack height at the mark, or -1. */
Py_ssize_t prp_load_pop_mark(prp_loader *L);
/* Drop everything above `height`. Return 0, or -1 with an exception. */
int prp_load_clear_stack(prp_loader *L, Py_ssize_t height);
/* Empty the stack at the end of a load, and keep the exception that is set. */
void prp_load_discard_stack(prp_loader *L);

/* ---- memo.c ------------------------------------------------------------------------------------------------------ */

/* Read a length or index only once, then check and use this copy: a stream in shared memory can change after the
 * check. */
static inline uint8_t prp_load_byte(const uint8_t *p)
{
    return *(const volatile uint8_t *)p;
}

int prp_load_memo_put(prp_loader *L, size_t index, PyObject *value); /* borrows `value` */
/* Make room for an entry that was never set, without running foreign code: the caller sets the entry and counts it in
 * `used`. Return false without an exception if the entry is already set, belongs to the dict, or memory ran out. */
bool prp_load_memo_reserve(prp_load_memo *memo, size_t index);
/* Execute MEMOIZE: store the value under the next index. */
static inline int prp_load_memoize(prp_loader *L, PyObject *value)
{
    prp_load_memo *memo = &L->memo;
    if (PRP_LIKELY(memo->used == memo->top && memo->top < memo->capacity && !memo->sparse)) {
        memo->entries[memo->top++] = Py_NewRef(value);
        memo->used++;
        return 0;
    }
    return prp_load_memo_put(L, (size_t)memo->used, value);
}
PyObject *prp_load_memo_get_slow(prp_loader *L, size_t index); /* new reference, NULL with an exception */
/* Release the entries and the memory of the table. */
void prp_load_memo_clear(prp_loader *L);
/* Do the same, but keep the memory of a small table for the next load. */
void prp_load_memo_empty(prp_loader *L);
PyObject *prp_load_memo_copy(prp_loader *L);
int prp_load_memo_replace(prp_loader *L, PyObject *dict);

static inline bool prp_load_tagged(PyObject *entry)
{
    return ((uintptr_t)entry & PRP_MEMO_TAGS) != 0;
}

/* ---- pending.c --------------------------------------------------------------------------------------------------- */

/* Create the container of a mark. Return 0 if the mark is plain now or another thread has continued the load, -1 on
 * failure. */
int prp_load_make_pending(prp_loader *L, Py_ssize_t mark);
int prp_load_make_unmade(prp_loader *L, Py_ssize_t record); /* has the same return values */
int prp_load_all_unmade(prp_loader *L);
/* Make room for one more record of an unmade state dict, and return 0 or -1. This runs no foreign code. */
int prp_load_reserve_unmade(prp_loader *L);
/* Record that `obj` is unmade, and add the record's tags to the memo; the caller reserved the room for both. */
void prp_load_note_unmade(prp_loader *L, PyObject *obj, PyObject *names, Py_ssize_t memo, Py_ssize_t pair);
void prp_load_drop_unmade(prp_loader *L);

/* ---- pause.c ----------------------------------------------------------------------------------------------------- */

/* The garbage collector is off while only our own code runs: see pause.c. */
void prp_load_pause_collector(prp_loader *L);
void prp_load_resume_collector(prp_loader *L);

/* Call this before foreign code may run. That code may read and change objects of this stream, and must find the
 * collector in the state that the process chose. */
static inline int prp_load_foreign(prp_loader *L)
{
    int failed = PRP_UNLIKELY(L->unmade_count > 0) ? prp_load_all_unmade(L) : 0;
    if (L->collector_paused)
        prp_load_resume_collector(L);
    return failed;
}

/* Call this after foreign code has run. */
static inline void prp_load_own(prp_loader *L)
{
    if (PRP_UNLIKELY(L->may_pause && !L->collector_paused))
        prp_load_pause_collector(L);
}

/* Drop the machine's reference to an object. If it is the last one, the destructor is foreign code. Return 0, or -1
 * with an exception; the reference is dropped either way. */
int prp_load_drop_last(prp_loader *L, PyObject *value);
static inline int prp_load_drop(prp_loader *L, PyObject *value)
{
    if (PRP_UNLIKELY(Py_REFCNT(value) == 1))
        return prp_load_drop_last(L, value);
    Py_DECREF(value);
    return 0;
}

/* ---- class_plan.c, state.c, calls.c ------------------------------------------------------------------------------ */

typedef enum { PRP_MAKE_CALL, PRP_MAKE_PLAIN, PRP_MAKE_TUPLE } prp_make;
typedef enum { PRP_LEARNED_NOTHING, PRP_LEARNED_DICT, PRP_LEARNED_SLOTS } prp_learned;
typedef enum {
    PRP_CALL_ANY,
    PRP_CALL_ENUM,
    PRP_CALL_DATETIME,
    PRP_CALL_DATE,
    PRP_CALL_TIME,
    PRP_CALL_TIMEDELTA,
    PRP_CALL_NEW_ONLY, /* a call of the type only calls tp_new, because tp_init is that of object */
    PRP_CALL_NDARRAY,
    PRP_CALL_DTYPE,
} prp_call;

/* Facts about a class, which are valid while the class has one version tag. */
struct prp_class_plan {
    PyTypeObject *type; /* borrowed; valid only if the type at this address has the version tag `version` */
    unsigned version;   /* 0 if nothing is known */
    prp_make make;
    prp_call call;
    bool dict_state;       /* BUILD with a dict only fills the instance's __dict__ */
    bool slot_state;       /* setting a slot runs only the slot's descriptor */
    prp_learned learned;   /* the kind of state that `names` and `where` describe */
    Py_ssize_t fields;     /* MAKE_TUPLE: length of the namedtuple */
    PyObject *function;    /* MAKE_TUPLE: owned, its generated __new__ */
    PyObject *code;        /* MAKE_TUPLE: owned, the code object of `function`, which was checked */
    PyObject *members;     /* CALL_ENUM: owned, the Enum's _value2member_map_ */
    unsigned meta_version; /* CALL_ENUM: version tag of the metaclass */
    PyObject **by_int;     /* CALL_ENUM: the members, indexed by their int value, or NULL; borrowed from `members` */
    uint32_t by_int_count;
    bool inert_members;      /* CALL_ENUM: comparing the members' values runs no foreign code */
    uint64_t by_int_version; /* CALL_ENUM: the version of `members` for which these fields are valid */
    PyObject *names;         /* owned: tuple of interned names in the order of the last state, or NULL */
    Py_ssize_t *where;       /* one entry per name: its index in the instance's values, or the offset of its slot */
    void *keys;              /* LEARNED_DICT: the shared keys that the indices refer to */
    unsigned relearned;      /* how often we learned names; we stop if each instance has different names */
};

/* Return the plan for a class, or NULL with an exception. The first call for a class runs foreign code; the result is
 * valid until the next call that may run foreign code. */
const prp_class_plan *prp_plan_for(prp_loader *L, PyTypeObject *type);
static inline bool prp_plan_holds(const prp_class_plan *plan, PyTypeObject *type)
{
    return plan->type == type && plan->version != 0 && prp_type_version_now(type) == plan->version;
}
/* Return whether this table entry still has the learned names of the state of this class. Call this for every plan that
 * was looked up before foreign code ran. */
static inline bool prp_plan_knows(const prp_class_plan *plan, PyTypeObject *type, prp_learned kind)
{
    return plan && prp_plan_holds(plan, type) && plan->learned == kind;
}
int prp_plan_init(void);
extern PyObject *prp_text_setstate; /* the interned str "__setstate__" */
/* Record where the names of a state belong, after the general rules have set the state of `obj`. Return 0 or -1. */
int prp_plan_learn(prp_loader *L, PyObject *obj, PyObject *state, prp_learned kind);

int prp_load_build(prp_loader *L);
/* The last mark has kind STATE or SLOTS. Move the elements above this mark into the instance below it, and remove the
 * elements and the placeholder of the state from the stack. `pair` is the memo index of the tuple (None, dict), or -1.
 * Return 1 if done (the mark is removed), 0 if this is not possible (nothing has changed), -1 on failure. */
int prp_load_build_pending(prp_loader *L, Py_ssize_t pair);
#if PRP_INTERNALS
/* Write the values of all names the plan has learned into an instance that has none yet, and steal the references.
 * Return false if this is not possible. The plan must be valid for the instance's class, and its `learned` must match
 * the state. */
bool prp_load_fill(const prp_class_plan *plan, PyObject *obj, PyObject *const *values);
/* fields.c: after pushing the MARK of a state whose plan is valid, read fields as long as their names are the expected
 * ones. Return the number of bytes consumed, or -1. Afterwards either the state is complete, the instance is on top of
 * the stack and the mark is removed, or the pairs read so far are on the stack. */
Py_ssize_t prp_load_fields(prp_loader *L, const uint8_t *start, const uint8_t *end);
#endif
/* Execute NEWOBJ_EX or, if `kwargs` is NULL, NEWOBJ. */
PyObject *prp_load_new(prp_loader *L, PyObject *cls, PyObject *args, PyObject *kwargs);
/* Call cls.__new__(cls, *argv) without stealing references. `args` is argv as a tuple if one exists already, else
 * NULL. */
PyObject *prp_load_new_fused(prp_loader *L, PyObject *cls, PyObject *const *argv, Py_ssize_t n, PyObject *args);
/* Return the member of an unmodified Enum that has this int as its value, as a new reference. Return NULL without an
 * exception if the plan does not know it yet. */
PyObject *prp_load_enum_member(prp_loader *L, PyTypeObject *type, uint32_t value);
/* Call callable(*argv) for REDUCE. */
PyObject *prp_load_call(prp_loader *L, PyObject *callable, PyObject *const *argv, Py_ssize_t n);
PyObject *prp_load_reduce(prp_loader *L, PyObject *callable, PyObject *args);
PyObject *prp_load_instantiate(prp_loader *L, PyObject *cls, PyObject *args);

/* ---- containers.c: adding elements to containers ----------------------------------------------------------------- */

/* Return a list of n items, and steal their references; NULL with an exception. */
static inline PyObject *prp_load_list_of(PyObject **items, Py_ssize_t n)
{
    PyObject *list = PyList_New(n);
    if (list && n)
        memcpy(((PyListObject *)list)->ob_item, items, (size_t)n * sizeof(PyObject *));
    return list;
}

int prp_load_items_init(void);
int prp_load_appends(prp_loader *L, Py_ssize_t at);
int prp_load_setitems(prp_loader *L, Py_ssize_t at);
int prp_load_additems(prp_loader *L);
int prp_load_dict_fill(prp_loader *L, PyObject *dict, PyObject **pairs, Py_ssize_t n);
bool prp_load_inert_keys(PyObject *const *pairs, Py_ssize_t n);

/* ---- dicts.c ---- */

/* Create a dict of n pairs without removing them from the stack. *moved tells whether the dict stole the references to
 * the values or took new ones. If a key may run foreign code, do nothing and return NULL without an exception. */
PyObject *prp_load_dict_of(prp_loader *L, PyObject *const *pairs, Py_ssize_t n, bool *moved);

/* ---- protocol_0_1.c: numbers and strings in text, and strings of Python 2 ---------------------------------------- */

PyObject *prp_load_text_int(prp_loader *L);
PyObject *prp_load_text_long(prp_loader *L);
PyObject *prp_load_text_float(prp_loader *L);
PyObject *prp_load_text_string(prp_loader *L);
PyObject *prp_load_text_unicode(prp_loader *L);
PyObject *prp_load_old_string(prp_loader *L, const char *data, size_t n);
PyObject *prp_load_text_name(prp_loader *L);
PyObject *prp_load_text_pid(prp_loader *L);
int prp_load_text_index(prp_loader *L, Py_ssize_t *index);

/* ---- strings.c --------------------------------------------------------------------------------------------------- */

int prp_load_string_init(void);
extern PyObject *prp_load_characters[128]; /* the interpreter's own str of each ASCII character */
PyObject *prp_load_utf8(const uint8_t *data, size_t n);
/* The same as prp_load_utf8(), for a dict key or attribute name; repeated strings come from a cache. */
PyObject *prp_load_key(prp_loader *L, const uint8_t *data, size_t n);
/* The same as prp_load_key(), for an attribute name: first try the name that the last instance of the class had at this
 * position. */
PyObject *prp_load_name(prp_loader *L, const prp_mark *mark, Py_ssize_t height, const uint8_t *data, size_t n);

/* ---- globals.c --------------------------------------------------------------------------------------------------- */

int prp_load_global_init(PyObject *unpickler_type);
/* Set the number of `set` in L, or PRP_NO_SET. The context uses this number to cache which names the set allows. */
void prp_load_know_set(prp_loader *L, PyObject *set);
/* Look up a global by the bytes of its two names; return NULL with an exception on failure. */
PyObject *prp_load_global_bytes(prp_loader *L, const uint8_t *module, size_t module_len, const uint8_t *name,
                                size_t name_len, PyObject **module_text, PyObject **name_text);
PyObject *prp_load_global(prp_loader *L, PyObject *module, PyObject *name);
/* The same as prp_load_global(), for names that do not come from the stream. Do not call it if find_class is
 * overridden. */
PyObject *prp_load_known_global(prp_loader *L, const char *module, const char *name);
PyObject *prp_load_extension(prp_loader *L, long code);
/* Implements Unpickler.find_class. */
PyObject *prp_load_find_class(prp_loader *L, PyObject *module, PyObject *name);
PyObject *prp_load_persistent(prp_loader *L, PyObject *pid);

/* ---- buffers.c --------------------------------------------------------------------------------------------------- */

int prp_load_buffer_init(void);
PyObject *prp_load_take_buffer(prp_loader *L); /* the next out-of-band buffer: new reference, NULL with an exception */
int prp_load_next_buffer(prp_loader *L);       /* push the next buffer */
int prp_load_readonly_buffer(prp_loader *L);
/* Return whether `obj` is one of our buffers of foreign memory; if so, set its bytes and the borrowed owner. */
bool prp_load_foreign_buffer(PyObject *obj, const uint8_t **ptr, size_t *len, PyObject **owner);

/* ---- arrays.c ---------------------------------------------------------------------------------------------------- */

/* The bytes of an array, and the object that keeps them alive. */
typedef struct {
    const uint8_t *data;
    size_t len;
    PyObject *base; /* owned */
    int flags;
} prp_array_memory;

/* Get the bytes of a buffer object. Return 1, 0 if it is not usable, or -1. */
int prp_load_array_memory(prp_loader *L, PyObject *buffer, prp_array_memory *memory);
/* numpy's _frombuffer and ndarray; each is NULL until a stream uses it. */
extern PyObject *prp_load_array_callables[2];
/* whole_arrays.c: execute a call of either function, from after its MARK to its REDUCE, if the opcodes are the usual
 * ones. Return 1 if done (the array has replaced the callable on the stack), 0 if not possible (nothing has changed),
 * or -1. */
int prp_load_array_whole(prp_loader *L);
/* Do the work of a known numpy callable without running Python code. If this is not possible, return NULL without an
 * exception; the caller then calls it normally. */
PyObject *prp_load_array_call(prp_loader *L, PyObject *callable, PyObject *const *argv, Py_ssize_t n);
/* Return whether prp_load_array_call() may support `callable`. */
bool prp_load_array_known(PyObject *callable);
/* Execute numpy.dtype(*argv), and consume and execute the BUILD that numpy writes after it. Return as
 * prp_load_array_call() does. */
PyObject *prp_load_array_dtype(prp_loader *L, PyObject *const *argv, Py_ssize_t n);
/* Execute numpy.ndarray(*argv). Return as prp_load_array_call() does. */
PyObject *prp_load_array_new(prp_loader *L, PyObject *callable, PyObject *const *argv, Py_ssize_t n);
/* Make an array that foreign code created read-only, because arrays from the store must be. Return 0 or -1. */
int prp_load_array_seal(prp_loader *L, PyObject *array);

/* ---- safe_mode.c ------------------------------------------------------------------------------------------------- */

/* Record an object that this load did not create. Return 0 or -1. */
int prp_load_note_shared(prp_loader *L, PyObject *obj);
/* Return 0 if an opcode may change the object, else -1 with an exception. Call it in safe mode only. */
int prp_load_refuse_shared(prp_loader *L, PyObject *obj);
static inline int prp_load_may_change(prp_loader *L, PyObject *obj)
{
    return PRP_LIKELY(!L->allow) ? 0 : prp_load_refuse_shared(L, obj);
}
/* Return `value`, the result of a call with these arguments, if safe mode allows it. Steals the reference to it. */
PyObject *prp_load_guard(prp_loader *L, PyObject *const *argv, Py_ssize_t n, PyObject *value);
static inline PyObject *prp_load_guarded(prp_loader *L, PyObject *const *argv, Py_ssize_t n, PyObject *value)
{
    return PRP_LIKELY(!L->allow) ? value : prp_load_guard(L, argv, n, value);
}
/* Check that a NumPy dtype or array can have this state, and return 0 or -1. Other objects always pass. The stack and
 * the caller each hold a reference to `obj`. */
int prp_load_check_state(prp_loader *L, PyObject *obj, PyObject *state);
/* Return whether this is the name of the function that loads nested streams. prp_load_nested_stream() returns this
 * function with the restrictions of L. */
bool prp_load_is_nested_stream(PyObject *module, PyObject *name);
PyObject *prp_load_nested_stream(prp_loader *L);
/* Return the replacement for _codecs.encode as a new reference, or NULL without an exception for any other name. */
PyObject *prp_load_safe_codec(PyObject *module, PyObject *name);

#endif
