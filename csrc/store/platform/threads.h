/*
 * threads.h - helper threads for the duration of one call.
 *
 * Guarantee  Every thread made by prs_crew_start is joined by prs_crew_join: no thread outlives its
 *            call, so fork and exit see our threads only during a call. Threads run with all
 *            signals blocked, so handlers of the application never run on them. The caller cannot be
 *            cancelled between start and join.
 */
#ifndef PRS_CREW_H
#define PRS_CREW_H

#include <pthread.h>

#include "copy.h"

typedef struct prs_crew {
    pthread_t thread[PRS_COPY_MAX_THREADS - 1];
    unsigned count;
    int cancel_state;
} prs_crew;

/* Start up to `helpers` threads that run `work(arg)`; crew->count is their number, possibly 0. */
void prs_crew_start(prs_crew *crew, unsigned helpers, void *(*work)(void *), void *arg);

/* Wait for all of them. */
void prs_crew_join(prs_crew *crew);

/*
 * Return the number of threads (the caller's included) for `n` bytes if each should have at least `per_thread`: at
 * most `max_threads` and the CPUs this process may use. With max_threads 0: at most a default, and no more than there
 * are idle CPUs.
 */
unsigned prs_crew_size(size_t n, size_t per_thread, unsigned max_threads);

/* Return the number of idle CPUs, not counting the caller's. */
unsigned prs_cpu_idle(void);

#endif /* PRS_CREW_H */
