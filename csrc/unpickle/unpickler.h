/* The unpickler: what its files share, and what the extension module uses.
 *
 * One `prp_loader` is one unpickling machine: input, stack, marks, memo, options. It is made by prp_loader_new(), given its
 * input by prp_loader_memory() or prp_loader_file(), and run by prp_load().
 *
 * What is kept from one load to the next (names, classes, strings, patterns of dicts) lies in a context (context.h). A call owns
 * one context from its start to its end. A nested call and another thread's call each use another one. So nothing but this load
 * changes its caches, whatever Python code runs meanwhile.
 *
 * Ownership: the stack and the memo own what they hold. A stack slot may be NULL for a container that is still "pending"
 * (pending.c), and a memo entry may be a tagged number for the same reason; nothing outside memo.c and
 * pending.c sees either.
 *
 * Everything in a stream is untrusted. A failure is a Python exception and a return value of -1 or NULL; the machine can be
 * run again or freed after it.
 */
#ifndef PRP_LOAD_H
#define PRP_LOAD_H

#include "interp.h"
#include "interp_write.h"
#include "ndarray/api.h"

#define PRP_NO_SET UINT32_MAX

/* ---- marks, and containers whose creation waits for their number of elements ------------------------------------------ */

typedef enum {
    PRP_MARK_PLAIN, /* a MARK, no more */
    PRP_MARK_LIST,  /* the slot below is a list that is made at APPENDS */
    PRP_MARK_DICT,  /* the slot below is a dict that is made at SETITEMS */
    PRP_MARK_STATE, /* the same, and below it lies the instance that it is most likely the state of */
    PRP_MARK_SLOTS, /* the same, but the state is (None, dict); below the dict lie None and the instance */
} prp_mark_kind;

typedef struct prp_class_plan prp_class_plan;
typedef struct prp_context prp_context;

typedef struct {
    Py_ssize_t at; /* stack height at the MARK: elements begin here */
    prp_mark_kind kind;
    Py_ssize_t memo; /* the pending container's memo index, -1 if it has none */
    const prp_class_plan
        *plan; /* STATE, SLOTS: a place in the table of plans, which may hold another class by now: prp_plan_knows() */
} prp_mark;

/* ---- the memo --------------------------------------------------------------------------------------------------------- */

/* An entry is an owned object, or a tagged number: of the mark of a pending container, or of a record of a state dict that
 * was written into its instance without ever existing. */
enum { PRP_MEMO_TAG_PENDING = 1, PRP_MEMO_TAG_UNMADE = 2, PRP_MEMO_TAGS = 3 };

typedef struct {
    PyObject **entries; /* NULL, tagged, or owned */
    Py_ssize_t capacity;
    Py_ssize_t top;   /* no entry at or above it is set */
    Py_ssize_t used;  /* distinct indices set, here and in `sparse`: the index of the next MEMOIZE */
    PyObject *sparse; /* dict for indices that no honest pickler would have reached yet; NULL until needed */
} prp_load_memo;

typedef struct {
    PyObject *obj;   /* owned: the instance whose attributes the dict had */
    PyObject *names; /* owned: tuple of its slots' names, in order; NULL: all its attributes */
    Py_ssize_t memo; /* the entry that is tagged with this record, or -1 */
    Py_ssize_t pair; /* SLOTS: the entry of the tuple (None, dict), -1 if it has none */
} prp_unmade;

/* Out-of-band buffers that lie in foreign memory (the store), as an array. */
typedef struct {
    const uint8_t *ptr;
    size_t len;
} prp_buffer;

/* ---- the machine ------------------------------------------------------------------------------------------------------- */

typedef struct prp_loader {
    prp_context *context; /* owned while a load runs */

    /* input: [p, end) is what has been read and not consumed */
    const uint8_t *p, *end;
    const uint8_t *chunk; /* start of the present chunk */
    const uint8_t
        *beyond; /* NULL, or `end` is that of a frame, which no opcode may cross, and this is that of the chunk */
    bool peeked; /* the chunk was peeked: what is consumed of it must still be read from the file */
    PyObject *chunk_owner; /* keeps the chunk; NULL when the caller does */
    Py_buffer chunk_view;  /* held if chunk_owner is a buffer other than bytes; .obj is NULL otherwise */
    PyObject *read, *readline, *readinto, *peek; /* NULL for memory input */

    /* stack */
    PyObject **stack, **sp, **limit;
    PyObject **fence; /* at or below it nothing may be popped */
    prp_mark *marks;
    Py_ssize_t mark_count, mark_capacity;

    prp_load_memo memo;
    prp_unmade *unmade;
    Py_ssize_t unmade_count, unmade_capacity;

    /* options */
    int proto;
    bool fix_imports;
    bool raw_strings;       /* encoding="bytes" */
    bool custom_find_class; /* `self` is of a subclass: look up find_class for each global */
    bool running;
    const char *encoding, *errors; /* NULL: "ASCII", "strict"; else owned by the strings below */
    PyObject *encoding_text, *errors_text;
    PyObject *buffers;      /* exact list or tuple, or an iterator; NULL if none were given */
    Py_ssize_t buffer_next; /* list or tuple: the next one; -1 once it has been at its end, as its iterator would be */
    PyObject *allow;        /* NULL, a frozenset of "module:qualname", or a callable */
    uint32_t allow_number, allow_place; /* of `allow` among the sets whose verdicts are kept; or PRP_NO_SET */
    PyObject *shared; /* safe mode: dict from address to object, of what this load did not make; NULL until needed */
    PyObject *self;   /* borrowed: the Unpickler, or NULL in the module functions */

    /* the store */
    PyObject *owner; /* borrowed; not NULL: out-of-band buffers come from `table` and arrays are read-only */
    const prp_buffer *table;
    size_t table_len, table_next;
    int array_flags;

    unsigned key_hits, key_misses;
    bool may_pause, collector_paused;
} prp_loader;

/* ---- loop.c, machine.c: interface of the extension module --------------------------------------------------------- */

int prp_load_init(PyObject *unpickling_error, PyObject *unpickler_type);
prp_loader *prp_loader_new(void);
void prp_loader_free(prp_loader *L);
/* The machine of an idle context, with default options and its context; prp_loader_release() puts both back. NULL with an exception. */
prp_loader *prp_loader_acquire(void);
void prp_loader_release(prp_loader *L);
int prp_loader_set_strings(prp_loader *L, PyObject *encoding, PyObject *errors);
int prp_loader_set_buffers(prp_loader *L, PyObject *buffers);
int prp_loader_set_allow(prp_loader *L, PyObject *allow);
void prp_loader_memory(prp_loader *L, const uint8_t *data, size_t len);
int prp_loader_file(prp_loader *L, PyObject *file);
/* Runs the machine up to STOP: new reference, or NULL with an exception. */
PyObject *prp_load(prp_loader *L);
PyObject *prp_loads_function(PyObject *module_name); /* loads.c: loads(), once */
/* loads.c: prp_loader_memory() of any buffer, and prp_load(). */
PyObject *prp_load_data(prp_loader *L, PyObject *data);
int prp_loader_traverse(prp_loader *L, visitproc visit, void *arg);
void prp_loader_clear(prp_loader *L);

/* Drops what may be the last reference to an object that no stack or memo of the machine has. */
static inline void prp_load_clear(PyObject **slot)
{
    PyObject *old = *slot;
    *slot = NULL;
    PRP_FOREIGN_VOID(Py_XDECREF(old));
}

/* ---- errors ------------------------------------------------------------------------------------------------------------ */

extern PyObject *prp_unpickling_error;
PyObject *prp_load_malformed(const char *format, ...); /* always NULL */
int prp_load_underflow(prp_loader *L);                 /* always -1 */
int prp_load_truncated(void);                          /* always -1 */

/* ---- input.c ------------------------------------------------------------------------------------------------------- */

/* Makes [p, p + need) available, or -1. */
int prp_load_refill(prp_loader *L, size_t need);
/* A frame of `length` bytes begins at p: makes sure of them, and where frames are strict, of its end. */
int prp_load_frame(prp_loader *L, uint64_t length);
extern bool prp_load_strict_frames; /* no opcode may cross the end of its frame, as in recent releases of CPython */
extern int prp_load_int_base;       /* of INT and LONG: 10, or 0 for what int(text, 0) reads */
/* A line with its newline, consumed: its length, or -1. The pointer is valid until the next read. */
Py_ssize_t prp_load_line(prp_loader *L, const char **line);
/* bytes or bytearray of `n` bytes, from what is left of the chunk and then from the file. */
PyObject *prp_load_bytes(prp_loader *L, size_t n, bool mutable_);
/* At the end of a load: the file is left behind the last byte consumed. */
int prp_load_settle(prp_loader *L);
void prp_load_drop_chunk(prp_loader *L);

/* ---- stack.c -------------------------------------------------------------------------------------------------------- */

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
/* Removes the last mark, after making a container that waits for it: stack height at the mark, or -1. */
Py_ssize_t prp_load_pop_mark(prp_loader *L);
/* Drops what lies above `height`: 0, or -1 with an exception. */
int prp_load_clear_stack(prp_loader *L, Py_ssize_t height);
/* The same at the end of a load, whatever happened: keeps the exception that is set. */
void prp_load_discard_stack(prp_loader *L);

/* ---- memo.c ---------------------------------------------------------------------------------------------------------- */

/* A length or an index that is checked and then used is read once: the stream may lie in shared memory, where it can change after the
 * check. */
static inline uint8_t prp_load_byte(const uint8_t *p)
{
    return *(const volatile uint8_t *)p;
}

int prp_load_memo_put(prp_loader *L, size_t index, PyObject *value); /* borrows `value` */
/* Makes room for an entry that was never set, without running any code: the caller sets it and counts it in `used`. False: it has
 * been set, belongs to the dict, or memory is out; no exception is set. */
bool prp_load_memo_reserve(prp_load_memo *memo, size_t index);
/* MEMOIZE: under the next index. */
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
void prp_load_memo_clear(prp_loader *L, bool keep_memory);
PyObject *prp_load_memo_copy(prp_loader *L);
int prp_load_memo_replace(prp_loader *L, PyObject *dict);

static inline bool prp_load_tagged(PyObject *entry)
{
    return ((uintptr_t)entry & PRP_MEMO_TAGS) != 0;
}

/* ---- pending.c --------------------------------------------------------------------------------------------------------- */

/* Makes the container of a mark. 0: the mark is plain now, or the machine has gone on meanwhile; -1. */
int prp_load_make_pending(prp_loader *L, Py_ssize_t mark);
int prp_load_make_unmade(prp_loader *L, Py_ssize_t record); /* as above */
int prp_load_all_unmade(prp_loader *L);
/* Room for one more record: 0 or -1. Runs no code. */
int prp_load_reserve_unmade(prp_loader *L);
/* Enters a record, for which there is room, and its tags in the memo, whose entries are reserved. */
void prp_load_note_unmade(prp_loader *L, PyObject *obj, PyObject *names, Py_ssize_t memo, Py_ssize_t pair);
void prp_load_drop_unmade(prp_loader *L);

/* ---- pause.c ------------------------------------------------------------------------------------------------------------ */

/* While only our own code runs, the collector rests: see there. */
void prp_load_pause_collector(prp_loader *L);
void prp_load_resume_collector(prp_loader *L);

/* To be called before any code that is not ours may run: it may look at objects of this stream and change them, and must find
 * the collector as the process set it. */
static inline int prp_load_foreign(prp_loader *L)
{
    int failed = PRP_UNLIKELY(L->unmade_count > 0) ? prp_load_all_unmade(L) : 0;
    if (L->collector_paused)
        prp_load_resume_collector(L);
    return failed;
}

/* After it. */
static inline void prp_load_own(prp_loader *L)
{
    if (PRP_UNLIKELY(L->may_pause && !L->collector_paused))
        prp_load_pause_collector(L);
}

/* Drops the machine's reference to an object. If it is the last one, its destructor is code that is not ours. 0, or -1 with an
 * exception; the reference is gone either way. */
int prp_load_drop_last(prp_loader *L, PyObject *value);
static inline int prp_load_drop(prp_loader *L, PyObject *value)
{
    if (PRP_UNLIKELY(Py_REFCNT(value) == 1))
        return prp_load_drop_last(L, value);
    Py_DECREF(value);
    return 0;
}

/* ---- class_plan.c, state.c, calls.c ------------------------------------------------------------------------------- */

typedef enum { PRP_MAKE_CALL, PRP_MAKE_PLAIN, PRP_MAKE_TUPLE } prp_make;
typedef enum { PRP_LEARNED_NOTHING, PRP_LEARNED_DICT, PRP_LEARNED_SLOTS } prp_learned;
typedef enum {
    PRP_CALL_ANY,
    PRP_CALL_ENUM,
    PRP_CALL_DATETIME,
    PRP_CALL_DATE,
    PRP_CALL_TIME,
    PRP_CALL_TIMEDELTA,
    PRP_CALL_NEW_ONLY, /* tp_new alone gives the object: tp_init is object's */
    PRP_CALL_NDARRAY,
    PRP_CALL_DTYPE,
} prp_call;

/* What is known about a class in its present state; dropped when its version tag changes. */
struct prp_class_plan {
    PyTypeObject *type; /* borrowed; the same class if and only if `version` is that of the type at this address */
    unsigned version;   /* 0: nothing is known */
    prp_make make;
    prp_call call;
    bool dict_state;       /* BUILD with a dict only fills the instance's own dict */
    bool slot_state;       /* setting a slot runs no code but the slot's descriptor */
    prp_learned learned;   /* which kind of state `names` and `where` are for */
    Py_ssize_t fields;     /* MAKE_TUPLE: length of the namedtuple */
    PyObject *function;    /* MAKE_TUPLE: owned, its generated __new__ ... */
    PyObject *code;        /* ... and owned, the code that was checked */
    PyObject *members;     /* CALL_ENUM: owned, _value2member_map_ */
    unsigned meta_version; /* CALL_ENUM: of the metaclass */
    PyObject **
        by_int; /* CALL_ENUM: the members whose value is their index here, NULL for none; borrowed from `members`, ... */
    uint32_t by_int_count;
    bool inert_members;      /* their values are compared by no code of others ... */
    uint64_t by_int_version; /* ... as long as it has this version */
    PyObject *names;         /* owned tuple of interned names in the order last seen, or NULL */
    Py_ssize_t *where;       /* one per name: index into the instance's values, or offset of the slot */
    void *keys;              /* LEARNED_DICT: the shared keys the indices are for */
    unsigned relearned;      /* a class whose instances all look different is not worth learning */
};

/* The plan for a class. NULL with an exception. The first one runs code that is not ours; the result is good until the next call that
 * may run such code. */
const prp_class_plan *prp_plan_for(prp_loader *L, PyTypeObject *type);
static inline bool prp_plan_holds(const prp_class_plan *plan, PyTypeObject *type)
{
    return plan->type == type && plan->version != 0 && prp_type_version_now(type) == plan->version;
}
/* Whether this place of the table has what was learned about the state of a class: the one way to use a plan that was looked up before
 * code ran that is not ours. */
static inline bool prp_plan_knows(const prp_class_plan *plan, PyTypeObject *type, prp_learned kind)
{
    return plan && prp_plan_holds(plan, type) && plan->learned == kind;
}
int prp_plan_init(void);
extern PyObject *prp_text_setstate; /* "__setstate__", interned */
/* Remembers where the names of a state go, after `obj` has got it the slow way: 0 or -1. */
int prp_plan_learn(prp_loader *L, PyObject *obj, PyObject *state, prp_learned kind);

int prp_load_build(prp_loader *L);
/* The elements above the last mark, which is of kind STATE or SLOTS, go into the instance below it, and they and what stands
 * for the state leave the stack. `pair` is the memo index of the tuple (None, dict), or -1. 1: done, the mark is gone;
 * 0: not possible, nothing was changed; -1. */
int prp_load_build_pending(prp_loader *L, Py_ssize_t pair);
#if PRP_INTERNALS
/* Writes the values of all names the plan has learned into an instance that has none yet, and takes them over; false: not possible.
 * The plan holds for the instance's class, and its `learned` says what state it is. */
bool prp_load_fill(const prp_class_plan *plan, PyObject *obj, PyObject *const *values);
/* fields.c: behind the MARK of a state whose plan holds, which has just been pushed: reads fields as long as they are the expected
 * ones. The bytes taken: either the state is complete, the instance on top of the stack and the mark gone, or the pairs read are on
 * the stack. -1: failed. */
Py_ssize_t prp_load_fields(prp_loader *L, const uint8_t *start, const uint8_t *end);
#endif
PyObject *prp_load_new(prp_loader *L, PyObject *cls, PyObject *args, PyObject *kwargs, bool ex);
/* cls.__new__(cls, *argv): steals nothing. `args` is the tuple of the same, if there is one already, else NULL. */
PyObject *prp_load_new_fused(prp_loader *L, PyObject *cls, PyObject *const *argv, Py_ssize_t n, PyObject *args);
/* The member of an unmodified Enum with this int for its value: new reference, or NULL without an exception if a plan does not know it
 * yet. */
PyObject *prp_load_enum_member(prp_loader *L, PyTypeObject *type, uint32_t value);
/* callable(*argv) for REDUCE. */
PyObject *prp_load_call(prp_loader *L, PyObject *callable, PyObject *const *argv, Py_ssize_t n);
PyObject *prp_load_reduce(prp_loader *L, PyObject *callable, PyObject *args);
PyObject *prp_load_instantiate(prp_loader *L, PyObject *cls, PyObject *args);

/* ---- containers.c: elements into containers ---------------------------------------------------------------------------------- */

/* A list of n items, which it takes over; NULL with an exception. */
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

/* A new dict of n pairs, which stay where they are; *moved: the dict has taken over their values, else it has its own references. NULL
 * without an exception: their keys are not inert, nothing was done. */
PyObject *prp_load_dict_of(prp_loader *L, PyObject *const *pairs, Py_ssize_t n, bool *moved);

/* ---- protocol_0_1.c: numbers and strings in text, and strings of Python 2 -------------------------------------------------------- */

PyObject *prp_load_text_int(prp_loader *L);
PyObject *prp_load_text_long(prp_loader *L);
PyObject *prp_load_text_float(prp_loader *L);
PyObject *prp_load_text_string(prp_loader *L);
PyObject *prp_load_text_unicode(prp_loader *L);
PyObject *prp_load_old_string(prp_loader *L, const char *data, size_t n);
PyObject *prp_load_text_name(prp_loader *L, bool ascii);
int prp_load_text_index(prp_loader *L, Py_ssize_t *index);

/* ---- strings.c --------------------------------------------------------------------------------------------------------------- */

int prp_load_string_init(void);
extern PyObject *prp_load_characters[128]; /* the str of each ASCII character: those the interpreter keeps */
PyObject *prp_load_utf8(const uint8_t *data, size_t n);
/* The same for a dict key or attribute name: repeated ones come from a cache. */
PyObject *prp_load_key(prp_loader *L, const uint8_t *data, size_t n);
/* The same, where the name is most likely the one that the last instance of the class had in its place. */
PyObject *prp_load_name(prp_loader *L, const prp_mark *mark, Py_ssize_t height, const uint8_t *data, size_t n);

/* ---- globals.c ------------------------------------------------------------------------------------------------------------------ */

int prp_load_global_init(PyObject *unpickler_type);
/* Gives L the number under which verdicts of `set` are kept in its context, or PRP_NO_SET. */
void prp_load_know_set(prp_loader *L, PyObject *set);
/* By two names that lie in the stream; NULL with an exception. */
PyObject *prp_load_global_bytes(prp_loader *L, const uint8_t *module, size_t module_len, const uint8_t *name,
                                size_t name_len, PyObject **module_text, PyObject **name_text);
PyObject *prp_load_global(prp_loader *L, PyObject *module, PyObject *name);
/* The same for names that lie elsewhere than in the stream, and are not those of an overridden find_class. */
PyObject *prp_load_known_global(prp_loader *L, const char *module, const char *name);
PyObject *prp_load_extension(prp_loader *L, long code);
/* What Unpickler.find_class itself does. */
PyObject *prp_load_find_class(prp_loader *L, PyObject *module, PyObject *name);
PyObject *prp_load_persistent(prp_loader *L, PyObject *pid);

/* ---- buffers.c ------------------------------------------------------------------------------------------------------------------- */

int prp_load_buffer_init(void);
PyObject *prp_load_take_buffer(prp_loader *L); /* the next out-of-band buffer: new reference, NULL with an exception */
int prp_load_next_buffer(prp_loader *L);       /* pushes it */
int prp_load_readonly_buffer(prp_loader *L);
/* If `obj` is one of our buffers of foreign memory: its bytes, borrowed owner. */
bool prp_load_foreign_buffer(PyObject *obj, const uint8_t **ptr, size_t *len, PyObject **owner);

/* ---- arrays.c --------------------------------------------------------------------------------------------------------------------- */

/* Where the bytes of an array lie, and what keeps them. */
typedef struct {
    const uint8_t *data;
    size_t len;
    PyObject *base; /* owned */
    int flags;
} prp_array_memory;

/* The bytes of a buffer object. 1; 0: not for us; -1. */
int prp_load_array_memory(prp_loader *L, PyObject *buffer, prp_array_memory *memory);
/* numpy's _frombuffer and ndarray, NULL until they have been met. */
extern PyObject *prp_load_array_callables[2];
/* whole_arrays.c: the call of one of them, from behind its MARK to its REDUCE, if the bytes there are what picklers write. 1: done,
 * the array has taken the callable's place on the stack; 0: not possible, nothing was changed; -1. */
int prp_load_array_whole(prp_loader *L);
/* The call of a numpy callable with known meaning. NULL without an exception: not for us, call it. */
PyObject *prp_load_array_call(prp_loader *L, PyObject *callable, PyObject *const *argv, Py_ssize_t n);
/* True if `callable` may be one for prp_load_array_call(). */
bool prp_load_array_known(PyObject *callable);
/* numpy.dtype(*argv) and the BUILD that numpy writes behind it, which is consumed too; as above. */
PyObject *prp_load_array_dtype(prp_loader *L, PyObject *const *argv, Py_ssize_t n);
/* numpy.ndarray(*argv); as above. */
PyObject *prp_load_array_new(prp_loader *L, PyObject *callable, PyObject *const *argv, Py_ssize_t n);
/* The store promises read-only arrays: seals what foreign code built. 0 or -1. */
int prp_load_array_seal(prp_loader *L, PyObject *array);

/* ---- safe_mode.c ---------------------------------------------------------------------------------------------------------- */

/* Notes an object that the load did not make: 0 or -1. */
int prp_load_note_shared(prp_loader *L, PyObject *obj);
/* 0: an opcode may change the object; -1 with an exception. Call it in safe mode only. */
int prp_load_refuse_shared(prp_loader *L, PyObject *obj);
static inline int prp_load_may_change(prp_loader *L, PyObject *obj)
{
    return PRP_LIKELY(!L->allow) ? 0 : prp_load_refuse_shared(L, obj);
}
/* The result of a call with these arguments, if safe mode allows it; takes over the reference and gives it back. */
PyObject *prp_load_guard(prp_loader *L, PyObject *const *argv, Py_ssize_t n, PyObject *value);
static inline PyObject *prp_load_guarded(prp_loader *L, PyObject *const *argv, Py_ssize_t n, PyObject *value)
{
    return PRP_LIKELY(!L->allow) ? value : prp_load_guard(L, argv, n, value);
}
/* Whether a dtype or array of NumPy can have this state: 0 or -1. Anything else can. `obj` is on top of the stack and the caller's own
 * reference too. */
int prp_load_check_state(prp_loader *L, PyObject *obj, PyObject *state);
/* The name of what loads a stream inside a stream, and that function with the restrictions of L. */
bool prp_load_is_nested_stream(PyObject *module, PyObject *name);
PyObject *prp_load_nested_stream(prp_loader *L);
/* What stands for _codecs.encode: new reference. NULL without an exception: another name. */
PyObject *prp_load_safe_codec(PyObject *module, PyObject *name);

#endif
