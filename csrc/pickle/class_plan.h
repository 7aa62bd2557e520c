/* What the pickler knows about a type, so that it can write instances without calling their methods.
 *
 * Plans are shared by all threads and do not change once they are made, except for the reducers that the tables name.
 * A type that has changed gets another plan; the old one lives as long as anything refers to it.
 *
 * prp_plan_for() is the only way to get a plan. It finds one by the type's address and trusts it after two checks.
 * First, the version tag: it changes when the type or a base is modified, and no two types ever share one, so it
 * exposes a new type at an old address. Second, the epoch: whenever foreign code may have run, the tables (registry,
 * copyreg) are read again, once per type.
 *
 * The memo indices that one dump assigns for a class (prp_numbers) belong to the saver: no other dump sees them.
 */
#ifndef PRP_PLAN_H
#define PRP_PLAN_H

#include "pickler.h"

typedef enum {
    PLAN_GENERIC,    /* __reduce_ex__ */
    PLAN_CLASS,      /* a class with a metaclass */
    PLAN_INSTANCE,   /* object's own reduction: class, attributes, slots */
    PLAN_FIELDS,     /* frozen dataclass with slots: the list of its fields is the state */
    PLAN_NAMEDTUPLE, /* with the __getnewargs__ that collections generates */
    PLAN_ENUM,       /* with enum's own __reduce_ex__ */
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

#define PRP_PLAN_NAMES 32 /* shared keys of a class never hold more than 30 */

struct prp_plan {
    PyTypeObject *type; /* not owned: only compare it until `version` has been checked */
    size_t refs;
    unsigned id; /* plans are numbered as they are made */
    unsigned version;
    uint8_t kind;
    bool trusted;  /* the type's __reduce_ex__ is C code that runs no other code */
    bool by_table; /* the type's own reduction is useless: use cloudpickle's */
    bool odd;      /* a metaclass with a __hash__ or __eq__: even a table lookup runs foreign code */
    bool has_attrs;
    uint64_t epoch;
    PyObject *registered, *table, *put_reducer; /* owned or NULL: reducers found for this type */
    long registry_version;
    uint64_t table_version; /* version of copyreg's table when `table` was looked up; 0: look up again */

    void *keys;              /* the shared keys of the class */
    Py_ssize_t keys_checked; /* how many of these keys are known not to be hooks */
    Py_ssize_t nslots;
    prp_slot *slots; /* owned */
    PyObject *extra; /* owned: numpy's scalar function and the like; set once */
};

/* Memo indices that one dump has assigned for a class, plus one; 0 if there is none yet. */
struct prp_numbers {
    prp_plan *plan; /* owned, and its type */
    prp_numbers *next;
    uint64_t lives; /* generation of the memo that the indices belong to */
    uint32_t class_index;
    void *keys; /* the shared keys that index `names` */
    uint32_t names[PRP_PLAN_NAMES];
    uint32_t slots[]; /* as plan->slots */
};

/* Return the plan for `type`, of which `sample` is an instance, valid now: a new reference. NULL with an exception.
 * May run Python code when it first meets a type (own code and imports, nothing of the instance). */
prp_plan *prp_plan_for(prp_saver *s, PyTypeObject *type, PyObject *sample);
void prp_plan_free(prp_plan *plan);
static inline void prp_plan_drop(prp_plan *plan)
{
    if (plan && --plan->refs == 0)
        prp_plan_free(plan);
}

/* ---- numbers.c ---- */

prp_numbers *prp_numbers_find(prp_saver *s, prp_plan *plan);
/* Return the numbers of this dump for a plan, which they keep alive; they do not move until the dump ends. NULL:
 * MemoryError. */
static inline prp_numbers *prp_numbers_for(prp_saver *s, prp_plan *plan)
{
    prp_numbers *recent = s->numbers.recent[plan->id % PRP_RECENT_NUMBERS];
    return PRP_LIKELY(recent && recent->plan == plan && recent->lives == s->memo.lives) ? recent
                                                                                        : prp_numbers_find(s, plan);
}

/* Write the instance `obj` by its plan; return as prp_save_other, or SAVE_GENERIC if the object must be asked after
 * all. */
enum { SAVE_GENERIC = 3 };
int prp_plan_save(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided);
int prp_plan_resume(prp_saver *s); /* continues the topmost frame, of a kind that walk.c does not handle */
/* Return whether the instance of a frame has another class now; then set a RuntimeError: offsets and names are of
 * the old one. */
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
bool prp_is_numpy(PyTypeObject *type,
                  const char *name);             /* `type` is what numpy calls `name`, looked up without importing */
PyObject *prp_numpy_attribute(const char *name); /* new reference, or NULL with or without an exception */
PyObject *prp_scalar_function(void);

#endif
