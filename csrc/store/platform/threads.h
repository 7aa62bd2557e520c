/*
 * threads.h - helper threads for the duration of one call.
 *
 * Guarantee  Every thread made by prs_crew_start is joined by prs_crew_join: no thread outlives its
 *            call, so our threads exist during fork or exit only if a call is in progress. Threads
 *            run with all signals blocked, so handlers of the application never run on them. The
 *            caller cannot be cancelled between start and join.
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
 * Return the number of threads, including the caller's, for `n` bytes if each thread should get at least `per_thread`.
 * It is at most `max_threads` and the number of CPUs that this process may use. If max_threads is 0, it is at most the
 * default maximum and the number of idle CPUs.
 */
unsigned prs_crew_size(size_t n, size_t per_thread, unsigned max_threads);

/* Return the number of idle CPUs, without the caller's. */
unsigned prs_cpu_idle(void);

#endif /* PRS_CREW_H */
