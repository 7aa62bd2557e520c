/* What the pickler knows about a type, so that instances can be written without asking them how.
 *
 * Plans are shared by all threads and are not changed once they are made, but for the reducers that the tables name. A type that has
 * changed gets another plan; the old one lasts as long as somebody has a reference to it.
 *
 * prp_plan_for() is the only way to a plan. It finds one by the type's address and trusts it after two checks. First, the version
 * tag: it changes when the type or a base is modified, and no two types ever share one, so a new type at an old address is noticed.
 * Second, the epoch: whenever code that is not ours may have run, the tables (registry, copyreg) are looked at again, once per type.
 *
 * What one dump numbers of a class (prp_numbers) belongs to the saver: no other dump sees it.
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
    PyTypeObject *type; /* not owned, only compared, until `version` has been checked */
    size_t refs;
    unsigned id; /* plans are counted as they are made */
    unsigned version;
    uint8_t kind;
    bool trusted;  /* its __reduce_ex__ is C code that runs nothing else */
    bool by_table; /* its own reduction makes nothing of use: cloudpickle's is taken */
    bool odd;      /* a metaclass with a __hash__ or __eq__: even a table lookup is foreign */
    bool has_attrs;
    uint64_t epoch;
    PyObject *registered, *table, *put_reducer; /* owned or NULL: reducers found for this type */
    long registry_version;
    uint64_t table_version; /* of copyreg's table when `table` was looked up; 0: look again */

    void *keys;              /* the shared keys of the class */
    Py_ssize_t keys_checked; /* how many of them are known not to be hooks */
    Py_ssize_t nslots;
    prp_slot *slots; /* owned */
    PyObject *extra; /* owned: numpy's scalar function and the like; set once */
};

/* What one dump has numbered of a class: memo indices plus one, 0 if there is none yet. */
struct prp_numbers {
    prp_plan *plan; /* owned, and its type */
    prp_numbers *next;
    uint64_t lives; /* of the memo that the indices belong to */
    uint32_t class_index;
    void *keys; /* the shared keys that `names` goes by */
    uint32_t names[PRP_PLAN_NAMES];
    uint32_t slots[]; /* as plan->slots */
};

/* The plan for `type`, of which `sample` is an instance, valid now: a new reference. NULL with an exception. May run Python code the
 * first time a type is met (own code and imports, nothing of the instance). */
prp_plan *prp_plan_for(prp_saver *s, PyTypeObject *type, PyObject *sample);
void prp_plan_free(prp_plan *plan);
static inline void prp_plan_drop(prp_plan *plan)
{
    if (plan && --plan->refs == 0)
        prp_plan_free(plan);
}

/* ---- numbers.c ---- */

prp_numbers *prp_numbers_find(prp_saver *s, prp_plan *plan);
/* The numbers of this dump for a plan, which they keep; they stay where they are until the dump ends. NULL: MemoryError. */
static inline prp_numbers *prp_numbers_for(prp_saver *s, prp_plan *plan)
{
    prp_numbers *recent = s->numbers.recent[plan->id % PRP_RECENT_NUMBERS];
    return PRP_LIKELY(recent && recent->plan == plan && recent->lives == s->memo.lives) ? recent
                                                                                        : prp_numbers_find(s, plan);
}

/* Writes the instance `obj` as its plan says, on the terms of prp_save_other; SAVE_GENERIC if it has to be asked after all. */
enum { SAVE_GENERIC = 3 };
int prp_plan_save(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided);
int prp_plan_resume(prp_saver *s); /* the topmost frame, of a kind walk.c does not know */
/* Has the instance of a frame got another class since? Then a RuntimeError is set: the offsets and names are those of the old one. */
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
