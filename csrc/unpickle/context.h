/* What the unpickler keeps from one load to the next.
 *
 * A context belongs to one call at a time: prp_loader_acquire() takes an idle one or makes one, prp_loader_release() puts it back. So
 * its tables change only by the load that owns it. Python code that runs in the middle of the load cannot change them: if it loads
 * something, it uses another context.
 *
 * What the tables say about the rest of the process (versions of classes and dicts, borrowed pointers) can be out of date after any
 * such code, and is checked each time it is used.
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

/* strings.c: a str met as a key. */
typedef struct {
    uint32_t hash;
    uint32_t len;
    PyObject *text; /* owned, compact ASCII */
} prp_key_slot;

/* globals.c: the two strings of a global name, by their bytes. */
typedef struct {
    uint32_t hash;
    bool settled;            /* found once, and interned since: names that lead nowhere are not made immortal */
    PyObject *module, *name; /* owned */
    /* What quick() found in these versions of sys.modules and the module's dict, which keeps it alive. */
    PyObject *found, *dict; /* borrowed */
    uint64_t modules_version, dict_version;
    uint32_t allowed[PRP_KEPT_SETS]; /* number of the kept set that allowed the name, one per place of a set */
} prp_name_slot;

/* globals.c: "module:name". */
typedef struct {
    PyObject *module, *name, *full; /* owned */
} prp_full_slot;

/* globals.c: the frozensets last used for `allow`. Each gets a number from 1 up when it comes, and numbers are not used twice. What a
 * name has been allowed by is 0 until it has been; PRP_NO_SET, the number of any other `allow`, equals neither. */
typedef struct {
    PyObject *set; /* owned, NULL: none yet */
    uint32_t number;
} prp_kept_set;

/* dicts.c: a sequence of keys. */
typedef struct {
    PyObject *dict;           /* owned, NULL until the sequence was met twice */
    const void *first, *last; /* addresses of keys, only ever compared */
    Py_ssize_t n;
    unsigned strikes; /* how often it was kept and then did not fit: not worth keeping again for a while */
} prp_dict_pattern;

struct prp_context {
    prp_loader machine; /* of the module functions; an Unpickler has its own */

    prp_kept_set sets[PRP_KEPT_SETS];
    uint32_t last_set; /* the place of the one last used */
    uint32_t next_set, set_numbers;
    prp_class_plan unknown; /* the plan that knows nothing */
    prp_name_slot no_name;  /* of names that have no slot */

    prp_key_slot keys[PRP_KEY_SLOTS];
    prp_name_slot names[PRP_NAME_SLOTS];
    prp_full_slot full_names[PRP_FULL_SLOTS];
    prp_class_plan plans[PRP_PLAN_SETS][2];
    prp_dict_pattern patterns[PRP_PATTERNS];
};

void prp_plan_forget(prp_class_plan *plan); /* runs destructors */

#endif
