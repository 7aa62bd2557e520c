/*
 * threads.c - helper threads for the duration of one call; see threads.h for the guarantees.
 *
 * Purpose    Large copies, and first accesses to many pages, are faster on two cores.
 * Algorithm  We call pthread_create before and pthread_join after the caller's own share of the work. A
 *            thread pool would save some 50 us per call, but fork and exit would have to handle its
 *            threads.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "descriptor.h"
#include "threads.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "atomic.h"

/* This is large enough for the static TLS of a process with many libraries: glibc allocates static TLS on the stack. */
#define CREW_STACK ((size_t)256 << 10)

/* The default maximum: in our measurements more threads never made a copy faster. */
#define CREW_DEFAULT 4u

void prs_crew_start(prs_crew *crew, unsigned helpers, void *(*work)(void *), void *arg)
{
    crew->count = 0;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &crew->cancel_state);
    /* unreached by tests (impossible): prs_crew_size() gives no more */
    if (helpers > PRS_COPY_MAX_THREADS - 1)
        helpers = PRS_COPY_MAX_THREADS - 1;
    if (helpers == 0)
        return;
    pthread_attr_t attr;
    /* unreached by tests (no injected fault): pthread_attr_init */
    if (pthread_attr_init(&attr) != 0)
        return;
    sigset_t all, old;
    sigfillset(&all);
    /* unreached by tests (no injected fault, 2 branches): pthread_attr_setstacksize, pthread_sigmask */
    if (pthread_attr_setstacksize(&attr, CREW_STACK) == 0 && pthread_sigmask(SIG_SETMASK, &all, &old) == 0) {
        /* unreached by tests (uncounted): test_copy reaches it in a process of another user */
        while (crew->count < helpers && pthread_create(&crew->thread[crew->count], &attr, work, arg) == 0)
            crew->count++;
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    }
    pthread_attr_destroy(&attr);
}

void prs_crew_join(prs_crew *crew)
{
    for (unsigned i = 0; i < crew->count; i++)
        pthread_join(crew->thread[i], NULL);
    crew->count = 0;
    pthread_setcancelstate(crew->cancel_state, NULL);
}

unsigned prs_cpu_count(void)
{
    cpu_set_t set[8]; /* a set for 8192 CPUs, because the kernel refuses a set that is too small */
    CPU_ZERO_S(sizeof set, set);
    /* unreached by tests (no injected fault): sched_getaffinity */
    if (sched_getaffinity(0, sizeof set, set) != 0)
        return 1;
    int count = CPU_COUNT_S(sizeof set, set);
    /* unreached by tests (impossible): the caller itself runs on a CPU */
    return count > 0 ? (unsigned)count : 1;
}

/*
 * Return the number of idle CPUs, without the caller's. The kernel counts runnable threads in the fourth field of
 * /proc/loadavg ("1/80"). A helper without an idle CPU only wastes time, because the caller has to wait for it at the
 * end.
 */
unsigned prs_cpu_idle(void)
{
    static prs_atomic_u32 online; /* cached, because sysconf reads a file each time */
    uint32_t all = prs_load_relaxed(&online);
    if (all == 0) {
        long found = sysconf(_SC_NPROCESSORS_ONLN);
        /* unreached by tests (other kernel): a machine with a single CPU */
        all = found > 1 ? (uint32_t)found : 1;
        prs_store_relaxed(&online, all);
    }
    int saved = errno, fd = prs_above_standard(open("/proc/loadavg", O_RDONLY | O_CLOEXEC));
    char text[128];
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    errno = saved;
    if (n <= 0)
        return all - 1;
    text[n] = 0;
    const char *at = text;
    /* unreached by tests (damaged tables): /proc/loadavg in an unknown format */
    for (int field = 0; field < 3 && at; field++)
        at = strchr(at + (field > 0), ' ');
    /* unreached by tests (damaged tables): /proc/loadavg in an unknown format */
    unsigned long running = at ? strtoul(at, NULL, 10) : 1;
    /* unreached by tests (other kernel): /proc/loadavg counts no running thread, not even ours */
    /* unreached by tests (race): depends on whether a CPU is idle */
    return running >= all ? 0 : running == 0 ? all - 1 : all - (unsigned)running;
}

unsigned prs_crew_size(size_t n, size_t per_thread, unsigned max_threads)
{
    unsigned limit = max_threads ? max_threads : CREW_DEFAULT;
    if (limit > PRS_COPY_MAX_THREADS)
        limit = PRS_COPY_MAX_THREADS;
    /* unreached by tests (impossible): every caller passes the bytes per thread */
    if (per_thread != 0 && n / per_thread < limit)
        limit = (unsigned)(n / per_thread);
    if (limit <= 1)
        return 1;
    unsigned cpus = prs_cpu_count();
    limit = limit < cpus ? limit : cpus;
    if (limit <= 1 || max_threads != 0)
        return limit;
    unsigned idle = prs_cpu_idle();
    /* unreached by tests (other kernel): more idle CPUs than a copy uses */
    return limit - 1 < idle ? limit : idle + 1;
}
