/* errors.h - status codes of the engine, and its error record. */
#ifndef PRS_ERRORS_H
#define PRS_ERRORS_H

#include <stdint.h>

enum prs_status {
    PRS_OK = 0,
    PRS_E_SYS = -1,     /* a system call failed: error->sys_errno                     */
    PRS_E_NOMEM = -2,   /* no private memory or address space (vm.max_map_count) left */
    PRS_E_FULL = -3,    /* no room in the store; see error->want, ->capacity and ->used       */
    PRS_E_BACKING = -4, /* no pages are left (tmpfs, cgroup or machine)                 */
    PRS_E_CLIENTS = -5, /* every client slot is taken by a living process               */
    PRS_E_OBJECTS = -6, /* the object table is full                                     */
    PRS_E_LOST = -7,    /* the object is lost: it was never sealed, or its last holder left */
    PRS_E_FREED = -8,   /* the object was freed by prs_free                             */
    PRS_E_AGAIN = -9,   /* the object is not sealed yet: wait with prs_wait */
    PRS_E_TIMEOUT = -10,
    PRS_E_BUSY = -11,    /* a stopped process holds the store lock: error->pid           */
    PRS_E_CORRUPT = -12, /* shared data is invalid: error->what describes it             */
    PRS_E_VERSION = -13, /* made by another layout version                               */
    PRS_E_FOREIGN = -14, /* wrong owner, mode, type of file, or another store's id       */
    PRS_E_CLOSED = -15,  /* this handle was closed                                        */
    PRS_E_INTR = -16,    /* a signal arrived during a wait                               */
    PRS_E_INVAL = -17,   /* an argument is invalid                                       */
    PRS_E_NOTFOUND = -18,
    PRS_E_EXISTS = -19, /* the name is taken                                           */
    PRS_E_SPILLED = -20 /* the caller must read the object's file, see prs_restore_begin */
};

typedef struct prs_error {
    int code;          /* the status returned                                  */
    int sys_errno;     /* 0 or the errno of the system call                    */
    int32_t pid;       /* the process concerned, or 0                          */
    uint64_t want;     /* bytes (or entries) requested                         */
    uint64_t capacity; /* bytes (or entries) in total                          */
    uint64_t used;     /* bytes (or entries) in use                            */
    char what[232];    /* one sentence without trailing period, never empty    */
} prs_error;

/* Fill `error` (if it is not NULL) and return `code`. */
int prs_fail(prs_error *error, int code, int sys_errno, const char *format, ...) __attribute__((format(printf, 4, 5)));

#endif
