/* Selects the saver that a call uses; each thread caches one. */
#include "pickler.h"

#include <pthread.h>
#include <stdlib.h>

#define KEEP_SLOTS (64 * 1024)

/* The saver that this thread keeps between calls. A call acquires it and releases it at the end. A nested call creates
 * a new saver, so two calls never share a saver. */
static _Thread_local struct {
    prp_saver *idle;
    bool watched; /* the saver is freed when the thread ends */
} context;
static pthread_key_t thread_end;

static void free_idle(void *unused)
{
    /* This runs without the GIL, which is safe because an idle saver refers to no object. */
    prp_saver *s = context.idle;
    context.idle = NULL;
    if (s) {
        prp_saver_free(s);
        free(s);
    }
}

prp_saver *prp_acquire(void)
{
    prp_saver *s = context.idle;
    if (PRP_LIKELY(s)) {
        context.idle = NULL;
        return s;
    }
    s = malloc(sizeof *s);
    if (!s) {
        PyErr_NoMemory();
        return NULL;
    }
    if (prp_saver_init(s) < 0) {
        free(s);
        return NULL;
    }
    return s;
}

void prp_release(prp_saver *s)
{
    s->persistent_id = s->reducer_override = s->dispatch_table = s->buffer_callback = s->append_to = s->write = NULL;
    s->put = s->fast = s->fix_imports = false;
    prp_saver_finish(s);
    if (s->memo.count || s->memo.owned || s->memo.mask >= KEEP_SLOTS)
        prp_memo_clear(&s->memo, KEEP_SLOTS);
    if (PRP_UNLIKELY(!context.watched))
        context.watched = pthread_setspecific(thread_end, &context) == 0;
    if (!context.idle && context.watched) {
        context.idle = s;
    } else {
        prp_saver_free(s);
        free(s);
    }
}

int prp_context_setup(void)
{
    if (pthread_key_create(&thread_end, free_idle) == 0)
        return 0;
    PyErr_SetString(PyExc_ImportError, "the process has used up its thread-specific keys");
    return -1;
}
