/* What the pickler knows about a type, so that instances can be written without asking them how.
 *
 * A plan is found by the type's address and trusted only after two checks. First, the version tag: it changes when the type or a
 * base is modified, and no two types ever share one, so a new type at an old address is noticed. Second, the epoch: whenever
 * code that is not ours may have run, the tables (registry, copyreg) are looked at again, once per type. Within an epoch a plan
 * costs one comparison.
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
    uint32_t index; /* its memo index in this stream, plus one */
} prp_slot;

#define PRP_PLAN_NAMES 32 /* shared keys of a class never hold more than 30 */

struct prp_plan {
    PyTypeObject *type; /* not owned, only compared, until `version` has been checked */
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

    /* kept for one stream while it elides */
    uint64_t stream;
    uint32_t class_index; /* plus one */
    uint32_t names[PRP_PLAN_NAMES];

    void *keys;              /* the shared keys the names belong to */
    Py_ssize_t keys_checked; /* how many of them are known not to be hooks */
    Py_ssize_t nslots;
    prp_slot *slots; /* owned */
    PyObject *extra; /* owned: numpy's scalar function and the like */
};

/* The plan for `type`, of which `sample` is an instance, valid now. NULL with an exception. May run Python code the first time a
 * type is met (own code and imports, nothing of the instance). */
prp_plan *prp_plan_for(prp_saver *s, PyTypeObject *type, PyObject *sample);
/* Writes the instance `obj` as its plan says, on the terms of prp_save_other; SAVE_GENERIC if it has to be asked after all. */
enum { SAVE_GENERIC = 3 };
int prp_plan_save(prp_saver *s, prp_plan *plan, PyObject *obj, bool elided);
int prp_plan_resume(prp_saver *s); /* the topmost frame, of a kind save.c does not know */
int prp_plan_finish_tuple(prp_saver *s);
int prp_plan_write_name(prp_saver *s, prp_slot *slot);
int prp_plan_class(prp_saver *s, prp_plan *plan); /* writes the class */
void prp_plans_trim(void);                        /* between dumps: forgets plans if there are very many */
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
