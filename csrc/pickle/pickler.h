/* The pickler: each `prp_saver` is the state of one pickler.
 *
 * How the pickler writes an object: prp_save() is a loop over an explicit stack of frames on the heap, one per
 * container in progress. The pickler uses the C stack only for foreign code (a recursive call saves a __reduce__
 * result). So containers nested to any depth need constant C stack, and a check of the C stack limits the recursive
 * calls.
 *
 * The three modes differ in how closely the opcodes follow the standard library's pickler. Streams of all modes load as
 * the same objects:
 *     exact    protocols below 5, and a Pickler with hooks or `fast`: every opcode as _pickle writes it, MEMOIZE included
 *     full     other Pickler objects, and module functions once foreign code has run: every object that can occur again
 *              is memoized
 *     elide    module functions at protocol 5, before foreign code has run: objects with one reference are not memoized
 *
 * Why `elide` is correct: an object with one reference can be reached only through its single holder. The pickler
 * reaches a holder twice only if the holder itself has two references; it is then memoized, so its content is not
 * visited again. Only foreign code (a hook, a __reduce__, a callback) can pass such an object to the pickler a second
 * time. So we call prp_before_foreign_code() before any foreign code: the first such call in a dump restarts the dump
 * without elision. No foreign code has run before that, so nothing can observe the restart.
 *
 * References: a frame owns a reference to its container. Objects taken from a container are borrowed; a function that
 * runs foreign code takes references to the objects that it needs afterwards. Memo entries are borrowed until
 * prp_memo_own_all().
 */
#ifndef PRP_SAVE_H
#define PRP_SAVE_H

#include "interp.h"
#include "memo.h"
#include "opcodes.h"
#include "put.h"

typedef struct prp_plan prp_plan;
typedef struct prp_numbers prp_numbers;
typedef struct prp_numbers_chunk prp_numbers_chunk;

/* The memo indices that this dump has assigned for the classes of its objects; see class_plan.h. */
enum { PRP_RECENT_NUMBERS = 16 };
typedef struct {
    prp_numbers *recent[PRP_RECENT_NUMBERS]; /* indexed by the plan's id */
    prp_numbers **slots;                     /* open addressing by plan; NULL while there are few */
    size_t mask, count;
    prp_numbers *first; /* first of all entries */
    prp_numbers_chunk *chunks;
} prp_numbers_table;

/* The next step of a frame; see resume in walk.c. */
typedef enum {
    FRAME_LIST,
    FRAME_LIST_ONE,  /* a list with a single item, written with APPEND */
    FRAME_LIST_EACH, /* protocol 0: write APPEND after each item */
    FRAME_TUPLE,
    FRAME_DICT,
    FRAME_DICT_ONE,
    FRAME_DICT_EACH,
    FRAME_SET,
    FRAME_FROZENSET,
    FRAME_ATTRS,      /* attributes that are stored in the instance's value array */
    FRAME_SLOTS,      /* values of __slots__ */
    FRAME_SLOTS_NEXT, /* between the dict and the slots of one instance */
    FRAME_FIELDS,     /* field list of a frozen dataclass with slots */
    FRAME_BUILD,      /* the state of `obj` has been written */
    FRAME_CALL,       /* the last of `n` arguments has been written: tuple, REDUCE, memo of `obj` */
} prp_frame_kind;

enum {
    FRAME_ELIDED = 1, /* the object gets no memo entry */
    FRAME_IN_KEY = 2, /* dict: the key is being saved, `held` is the value */
    FRAME_NEWOBJ = 4, /* tuple: the arguments of a namedtuple; NEWOBJ follows, `obj` is the namedtuple */
};

typedef struct {
    PyObject *obj;        /* owned */
    PyObject *held;       /* owned or NULL */
    prp_numbers *numbers; /* memo indices of the class, if the kind needs them; valid until the end of the dump */
    Py_ssize_t i;         /* next item, or position in a dict or set */
    Py_ssize_t n;         /* list: end of the batch; dict, set: size at the start */
    int32_t batch;
    uint8_t kind;
    uint8_t flags;
} prp_frame;

/* A large piece that is not copied into the scratch buffer; in the output it follows the first `at` bytes of that
 * buffer. */
typedef struct {
    size_t at;
    const void *data;
    size_t len;
    PyObject *owner; /* owned */
    Py_buffer view;  /* export of a mutable owner, which keeps the bytes in place; `obj` is NULL if there is none */
} prp_piece;

/* One step of the path from the root to the object that failed; steps are stored innermost first, and
 * pyray_ser.inspection.path formats them as text. All references are owned. The child of a step without `child` is the
 * holder of the next inner step. */
typedef struct {
    const char *kind; /* a step kind of _walk.Walker, or "attribute" */
    PyObject *holder, *key, *child;
} prp_step;

/* The last key at each position of a dict, and its memo index, because the dicts of a document repeat the same keys in
 * the same order. An entry is valid until the memo is cleared. */
enum { PRP_SEEN_KEYS = 64 };
typedef struct {
    PyObject *key; /* we only compare its address */
    uint64_t lives;
    uint32_t index;
} prp_seen_key;

struct prp_saver {
    /* output: see output.c */
    uint8_t *p;     /* next byte */
    uint8_t *limit; /* if `p` is beyond it at the start of an object, the frame is full or the buffer nearly full */
    uint8_t *base, *end;
    size_t frame;               /* offset of the open frame's header, SIZE_MAX if none */
    bool to_bytes;              /* the result is one bytes object; if it is large, we write directly into it */
    PyObject *holder;           /* owned: the bytes object that contains `base`, or NULL */
    uint8_t *small, *small_end; /* the scratch buffer while there is a holder */
    prp_piece *pieces;
    size_t piece_count, piece_room, piece_bytes;
    PyObject *write; /* the file's write method (borrowed from the Pickler) or NULL */

    prp_memo memo;
    prp_seen_key seen_keys[PRP_SEEN_KEYS];
    prp_numbers_table numbers;
    prp_frame *stack;
    size_t depth, room;
    PyObject *guard;       /* owned: keeps the current object alive during a hook */
    PyObject *next;        /* set by prp_save_other together with SAVE_NEXT; borrowed */
    uintptr_t stack_limit; /* the C stack may grow down to here; 0 if unknown */

    int proto;
    bool bin;     /* protocol 1 and up */
    bool framing; /* protocol 4 and up, but not in put mode */
    bool elide;
    bool elided; /* an object has been left out of the memo */
    bool exact;  /* every opcode is that of _pickle; set by prp_dump */
    bool fast;   /* Pickler.fast: nothing is memoized */
    bool fix_imports;
    bool put; /* put mode, see put.c */
    bool put_small_root;
    bool restart; /* set together with a result of -1 that requests a restart without elision */

    /* hooks; borrowed from the caller during the dump, NULL if absent */
    PyObject *persistent_id, *reducer_override, *dispatch_table, *buffer_callback;
    PyObject *append_to; /* the exact list if buffer_callback is the append() of a list, which runs no foreign code */
    Py_ssize_t append_from;
    PyObject *by_value;      /* owned: this dump's cloudpickle.CloudPickler; NULL until needed */
    PyObject *by_value_maps; /* owned: the list of dicts in its dispatch_table; NULL if it has no such list */

    prp_put_buffer *buffers;
    size_t buffer_count, buffer_room;
    void *segments; /* owned by the result of prp_put */

    prp_step *steps;
    size_t step_count, step_room;
    int8_t by_value_wanted; /* -1: not determined yet in this dump */
    size_t last_held;       /* length of the last result written into a holder */
};

enum { SAVE_ERROR = -1, SAVE_DONE = 0, SAVE_RESUME = 1, SAVE_NEXT = 2 };

/* ---- walk.c ---- */

int prp_save(prp_saver *s, PyObject *obj);
int prp_save_pid(prp_saver *s, PyObject *pid); /* like prp_save, but does not call persistent_id for `pid` itself */
/* Call this before running foreign code. On 0, continue: a new epoch has begun and every memo entry is owned. On -1,
 * return, so that the dump restarts. */
int prp_before_foreign_code(prp_saver *s);
extern uint64_t prp_epoch; /* incremented whenever foreign code may have run, in any pickler */
/* Call this before any step that may start the garbage collector; it makes all memo entries owned. */
static inline void prp_memo_own_all(prp_saver *s)
{
#if !PRP_INTERNALS
    prp_epoch++; /* this build has no version tags of types */
#endif
    if (PRP_UNLIKELY(!s->memo.owned))
        prp_memo_own(&s->memo);
}
/* Call this if saving an object's content has already written the object, so that the stream contains its content
 * twice. The reader then creates objects without a memo entry twice and discards one copy. That is correct, but differs
 * from the standard pickler. If the result is true, return, so that the dump restarts. */
static inline bool prp_restart_if_cyclic(prp_saver *s)
{
    s->restart = s->elide && s->elided;
    return s->restart;
}
prp_frame *prp_push(prp_saver *s, prp_frame_kind kind, PyObject *obj); /* returns NULL with MemoryError */
int prp_write_str(prp_saver *s, PyObject *str);                        /* writes only the opcodes, no memo entry */
int prp_write_int(prp_saver *s, long value);                           /* protocol 1 and up */
/* Write GET and return 1 if obj is in the memo; return 0 if it is not, or -1. */
int prp_write_memoized(prp_saver *s, PyObject *obj);
/* Add obj to the memo and write MEMOIZE or PUT; do nothing in fast mode. */
int prp_memoize(prp_saver *s, PyObject *obj);
/* Record a step of the path while returning from an error; do nothing while the dump restarts. `holder`, `key` and
 * `child` may be NULL. */
void prp_note(prp_saver *s, const char *kind, PyObject *holder, PyObject *key, PyObject *child);
void prp_note_index(prp_saver *s, const char *kind, PyObject *holder, Py_ssize_t index, PyObject *child);
/* Return whether nothing else can reach obj, so that it needs no memo entry while eliding. */
static inline bool prp_elidable(prp_saver *s, PyObject *obj)
{
    if (!s->elide || Py_REFCNT(obj) != 1)
        return false;
    s->elided = true;
    return true;
}

/* ---- numbers.c ---- */

void prp_numbers_clear(prp_saver *s); /* call it at the end of a dump; it may run finalizers */
void prp_numbers_free(prp_saver *s);

/* ---- output.c ---- */

#define PRP_ROOM 64 /* number of free bytes at the start of every object */
#define PRP_FRAME_SIZE (64 * 1024)
#define PRP_KEEP_BYTES (1u << 20) /* maximum scratch memory kept between dumps */

int prp_out_init(prp_saver *s);
void prp_out_free(prp_saver *s);
void prp_out_reset(prp_saver *s); /* discards the content, but keeps scratch memory up to a limit */
int prp_out_begin(prp_saver *s);  /* writes PROTO and begins the first frame */
int prp_out_boundary(prp_saver *s);
int prp_out_grow(prp_saver *s, size_t room);
int prp_out_large(prp_saver *s, const uint8_t *header, size_t header_len, const void *data, size_t len,
                  PyObject *owner);
int prp_out_finish(prp_saver *s); /* writes STOP and closes the frame */
PyObject *prp_out_bytes(prp_saver *s);
void prp_out_unhold(prp_saver *s); /* after a dump with to_bytes: writes to the scratch buffer again */
int prp_out_flush(prp_saver *s);   /* passes the output to s->write */
size_t prp_out_len(const prp_saver *s);

static inline int prp_room(prp_saver *s, size_t n)
{
    return PRP_UNLIKELY((size_t)(s->end - s->p) < n) ? prp_out_grow(s, n) : 0;
}
static inline int prp_op(prp_saver *s, uint8_t op)
{
    if (prp_room(s, 1) < 0)
        return -1;
    *s->p++ = op;
    return 0;
}
static inline int prp_out(prp_saver *s, const void *data, size_t len)
{
    if (prp_room(s, len) < 0)
        return -1;
    memcpy(s->p, data, len);
    s->p += len;
    return 0;
}

/* ---- dispatch.c: all objects except atoms and built-in containers ---- */

int prp_save_other(prp_saver *s, PyObject *obj, PyTypeObject *type);
int prp_save_bytes(prp_saver *s, PyObject *obj);
int prp_save_picklebuffer(prp_saver *s, PyObject *obj, bool elided);

/* ---- reduce.c ---- */

int prp_save_reduce(prp_saver *s, PyObject *value, PyObject *obj);
int prp_save_reduce_value(prp_saver *s, PyObject *value, PyObject *obj); /* a str names a global; steals nothing */

/* ---- globals.c ---- */

int prp_save_global(prp_saver *s, PyObject *obj, PyObject *name);
int prp_save_type(prp_saver *s, PyObject *obj); /* for classes whose type is exactly `type` */
/* Return whether a bound method can be pickled by name, that is, whether its object has this method under this name: 1,
 * 0 or -1. */
int prp_method_has_name(prp_saver *s, PyObject *method);
/* Save a function or a class with a metaclass, by reference if possible, otherwise by value. */
int prp_save_named(prp_saver *s, PyObject *obj);
int prp_save_class(prp_saver *s, PyObject *cls); /* saves any class, as a GET if it is in the memo */
/* Return whether cloudpickle pickles this file by its name in `sys`. */
bool prp_is_standard_stream(PyObject *obj);
/* Get cloudpickle's reduction of obj. Return 1, 0 if there is none, or -1 with an exception. */
int prp_by_value(prp_saver *s, PyObject *obj, PyObject **value);

/* ---- protocol_0_3.c: atoms of protocols 0 and 1, and other things below protocol 4 ---- */

int prp_save_old_atom(prp_saver *s, PyObject *obj); /* None, bool, int, float, str at protocols 0 and 1 */
int prp_write_put(prp_saver *s, uint32_t index);
int prp_write_get(prp_saver *s, uint32_t index);
int prp_save_old_set(prp_saver *s, PyObject *obj);
int prp_save_old_bytes(prp_saver *s, PyObject *obj);
int prp_write_long(prp_saver *s, PyObject *obj); /* beyond 32 bits, protocol 2 and up */

/* ---- put.c ---- */

#define PRP_PUT_THRESHOLD 1024

int prp_put_root(prp_saver *s, PyObject *root);
int prp_put_bytes(prp_saver *s, PyObject *obj, bool elided);
int prp_put_picklebuffer(prp_saver *s, PyObject *obj, const Py_buffer *view);
int prp_put_array(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided);
void prp_put_drop(prp_saver *s);
void prp_put_error(PyObject *error, PyObject *path); /* puts the path into the exception */

/* ---- pickler.c: life cycle and entry points ---- */

typedef struct {
    PyObject *pickling_error, *deep_recursion_error;
    PyObject *copyreg_table, *extensions;       /* dicts of copyreg */
    PyObject *name_mapping, *import_mapping;    /* mappings of _compat_pickle from Python 3 names to Python 2 names */
    PyObject *registry_version, *registry_find; /* set by pyray_ser.registry, or NULL */
    PyObject *put_reducers;                     /* {type: reducer} for put mode, or NULL */
    PyObject *path_text;                        /* formats the steps of a path as text, or NULL */
    PyObject *new_by_value;                     /* () -> the cloudpickle.CloudPickler of one dump */
    PyObject *getattr, *partial, *codecs_encode, *pickle_complex, *slotnames, *sys_modules;
    PyCFunction list_append;
    PyObject *int_proto[6];
    PyObject *str_module, *str_qualname, *str_name, *str_reduce_ex, *str_reduce, *str_getstate, *str_getnewargs_ex,
        *str_getnewargs, *str_class, *str_value, *str_getattr, *str_getattribute, *str_iter, *str_main, *str_latin1,
        *str_locals, *str_cloudpickle, *str_items, *str_reducer_override, *str_list_by_value, *str_cloudpickle_module,
        *str_by_value_modules, *str_dispatch_table, *str_maps, *str_func;
} prp_globals;

extern prp_globals prp_g;
int prp_setup(void); /* once, at import */

int prp_saver_init(prp_saver *s);
void prp_saver_free(prp_saver *s);
void prp_saver_protocol(prp_saver *s, int proto);
void prp_saver_finish(prp_saver *s); /* releases the data of one dump; keeps the memo */
/* Write one complete pickle to the saver's output. The caller has set hooks and flags. Return 0, or -1 with an
 * exception that contains the path. */
int prp_dump(prp_saver *s, PyObject *root);
PyObject *prp_dumps(PyObject *obj, int proto, bool fix_imports, PyObject *buffer_callback);

/* ---- context.c ---- */

int prp_context_setup(void); /* once, at import */
/* Return a saver for one call: the thread's cached saver, or a new saver if an outer call is using the cached one. */
prp_saver *prp_acquire(void);
void prp_release(prp_saver *s); /* empties the saver, which may run finalizers */

#endif
