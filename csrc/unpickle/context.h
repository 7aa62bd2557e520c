/* The context: caches of the unpickler that outlive a load.
 *
 * A context belongs to one call at a time: prp_loader_acquire() returns an idle context or a new one, and
 * prp_loader_release() makes it idle again. So only the load that owns a context changes its tables. If Python code
 * that runs in the middle of this load starts another load, that load uses a different context.
 *
 * The tables also contain facts about the rest of the process (versions of classes and dicts, borrowed pointers).
 * Python code that runs in the middle of a load can make these facts stale, so we check them at each use.
 */
#ifndef PRP_CONTEXT_H
#define PRP_CONTEXT_H

#include "unpickler.h"

#define PRP_KEY_SLOTS 1024
#define PRP_NAME_SLOTS 512
#define PRP_FULL_SLOTS 128
#define PRP_KEPT_SETS 4
#define PRP_PLAN_SETS 256
#define PRP_PATTERNS 256

/* strings.c: a str that was used as a key. */
typedef struct {
    uint32_t hash;
    uint32_t len;
    PyObject *text; /* owned, compact ASCII */
} prp_key_slot;

/* globals.c: the two strings of a global name, by their bytes. */
typedef struct {
    uint32_t hash;
    bool settled;            /* whether the name was found; only then the two strings are interned */
    PyObject *module, *name; /* owned */
    /* The result of quick() for these versions of sys.modules and of the module's dict. That dict keeps the result
     * alive. */
    PyObject *found, *dict; /* borrowed */
    uint64_t modules_version, dict_version;
    uint32_t allowed[PRP_KEPT_SETS]; /* for each kept set: the number of the set if that set allowed the name */
} prp_name_slot;

/* globals.c: a cached str of the form "module:name". */
typedef struct {
    PyObject *module, *name, *full; /* owned */
} prp_full_slot;

/* globals.c: the frozensets last used for `allow`. Each new set gets the next number, starting at 1, and no number is
 * reused. A name's `allowed` is 0 until a set has allowed it. PRP_NO_SET is the number of any other `allow`, and equals
 * neither 0 nor a set's number. */
typedef struct {
    PyObject *set; /* owned; NULL if there is none yet */
    uint32_t number;
} prp_kept_set;

/* dicts.c: a sequence of keys. */
typedef struct {
    PyObject *dict;           /* owned; NULL until the sequence has occurred twice */
    const void *first, *last; /* addresses of keys, which we only compare */
    Py_ssize_t n;
    unsigned strikes; /* how often the pattern did not fit; after too many times, loads ignore it for a while */
} prp_dict_pattern;

struct prp_context {
    prp_loader machine; /* used by the module functions; an Unpickler has a separate machine */

    prp_kept_set sets[PRP_KEPT_SETS];
    uint32_t last_set; /* index of the set that was used last */
    uint32_t next_set, set_numbers;
    prp_class_plan unknown; /* the empty plan */
    prp_name_slot no_name;  /* used for names that have no slot */

    prp_key_slot keys[PRP_KEY_SLOTS];
    prp_name_slot names[PRP_NAME_SLOTS];
    prp_full_slot full_names[PRP_FULL_SLOTS];
    prp_class_plan plans[PRP_PLAN_SETS][2];
    prp_dict_pattern patterns[PRP_PATTERNS];
};

void prp_plan_forget(prp_class_plan *plan); /* may run destructors */

#endif
