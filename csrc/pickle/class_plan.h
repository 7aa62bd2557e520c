/* A plan stores facts about a type, so that the pickler can write instances without calling their methods.
 *
 * All threads share the plans. A plan does not change after its creation, except for the reducers that come from the
 * tables. A type that has changed gets a new plan; the old plan is freed when nothing refers to it.
 *
 * prp_plan_for() is the only way to get a plan. It finds a plan by the type's address and uses it after two checks. The
 * first check is the version tag: the tag changes when the type or a base is modified, and no two types ever share a
 * tag, so the check detects a new type at an old address. The second check is the epoch: whenever foreign code may have
 * run, we query the tables (registry, copyreg) again, once per type.
 *
 * The memo indices that one dump assigns for a class (prp_numbers) belong to the saver, so no other dump uses them.
 */
#ifndef PRP_PLAN_H
#define PRP_PLAN_H

#include "pickler.h"

typedef enum {
    PLAN_GENERIC,    /* __reduce_ex__ */
    PLAN_CLASS,      /* a class with a metaclass */
    PLAN_INSTANCE,   /* reduced by object itself: class, attributes, slots */
    PLAN_FIELDS,     /* frozen dataclass with slots, whose state is the list of its fields */
    PLAN_NAMEDTUPLE, /* namedtuple with the __getnewargs__ that collections generates */
    PLAN_ENUM,       /* enum with the enum module's __reduce_ex__ */
    PLAN_DATETIME,
    PLAN_DATE,
    PLAN_TIME,
    PLAN_TIMEDELTA,
    PLAN_DECIMAL,
    PLAN_COMPLEX,
    PLAN_NDARRAY,
    PLAN_SCALAR, /* numpy scalar */
} prp_plan_kind;

typedef struct {
    PyObject *name; /* owned */
    Py_ssize_t offset;
} prp_slot;

#define PRP_PLAN_NAMES 32 /* the shared keys of a class have at most 30 entries */

struct prp_plan {
    PyTypeObject *type; /* borrowed: do not dereference it before checking `version` */
    size_t refs;
    unsigned id; /* serial number of the plan, in order of creation */
    unsigned version;
    uint8_t kind;
    bool trusted;  /* the type's __reduce_ex__ is C code that runs no other code */
    bool by_table; /* the type's own reduction cannot be loaded, so use cloudpickle's */
    bool odd;      /* the metaclass has a __hash__ or __eq__, so even a table lookup runs foreign code */
    bool has_attrs;
    uint64_t epoch;
    PyObject *registered, *table, *put_reducer; /* owned or NULL: the reducers that we found for this type */
    long registry_version;
    uint64_t table_version; /* version of copyreg's table when `table` was looked up; 0: look up again */

    void *keys;              /* the shared keys of the class */
    Py_ssize_t keys_checked; /* number of leading keys that are known not to be hooks */
    Py_ssize_t nslots;
    prp_slot *slots; /* owned */
    PyObject *extra; /* owned, set once: for example numpy's scalar function */
};

/* The memo indices that one dump has assigned for a class, each plus one; 0 for no index yet. */
struct prp_numbers {
    prp_plan *plan; /* we own the plan and its type */
    prp_numbers *next;
    uint64_t lives; /* generation of the memo that the indices belong to */
    uint32_t class_index;
    void *keys; /* the shared keys that index `names` */
    uint32_t names[PRP_PLAN_NAMES];
    uint32_t slots[]; /* in the order of plan->slots */
};

/* Return a plan for `type` that is valid now, as a new reference, or NULL with an exception. `sample` is an instance of
 * `type`. The first call for a type may run Python code (ours, and imports, but no code of the instance). */
prp_plan *prp_plan_for(prp_saver *s, PyTypeObject *type, PyObject *sample);
void prp_plan_free(prp_plan *plan);
static inline void prp_plan_drop(prp_plan *plan)
{
    if (plan && --plan->refs == 0)
        prp_plan_free(plan);
}

/* ---- numbers.c ---- */

prp_numbers *prp_numbers_find(prp_saver *s, prp_plan *plan);
/* Return this dump's memo indices for a plan. They keep the plan alive, and stay at this address until the dump ends.
 * Return NULL with MemoryError on failure. */
static inline prp_numbers *prp_numbers_for(prp_saver *s, prp_plan *plan)
{
    prp_numbers *recent = s->numbers.recent[plan->id % PRP_RECENT_NUMBERS];
    return PRP_LIKELY(recent && recent->plan == plan && recent->lives == s->memo.lives) ? recent
                                                                                        : prp_numbers_find(s, plan);
}

/* Write the instance `obj` by its plan. Return the same values as prp_save_other(), or SAVE_GENERIC if we must call the
 * object's own __reduce_ex__ after all. */
enum { SAVE_GENERIC = 3 };
int prp_plan_save(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided);
int prp_plan_resume(prp_saver *s); /* continues the topmost frame, whose kind walk.c does not handle */
/* Return whether the instance of a frame now has a different class. If so, set a RuntimeError, because the offsets and
 * names belong to the old class. */
static inline bool prp_instance_changed(const prp_frame *frame)
{
    if (PRP_LIKELY(Py_TYPE(frame->obj) == frame->numbers->plan->type))
        return false;
    PyErr_SetString(PyExc_RuntimeError, "the class of an object was replaced while it was pickled");
    return true;
}
int prp_plan_finish_tuple(prp_saver *s);
int prp_plan_write_name(prp_saver *s, prp_numbers *numbers, Py_ssize_t slot);
int prp_plan_class(prp_saver *s, prp_plan *plan); /* writes the class */
int prp_plans_setup(void);

/* ---- arrays.c ---- */
int prp_save_array(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided);
int prp_save_scalar(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided);
bool prp_array_has_base(PyObject *array);
bool prp_is_numpy(PyTypeObject *type, const char *name); /* whether `type` is numpy's `name`; imports nothing */
PyObject *prp_numpy_attribute(const char *name);         /* new reference, or NULL with or without an exception */
PyObject *prp_scalar_function(void);

#endif
