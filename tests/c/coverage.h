/*
 * coverage.h - included before everything else in the build that counts lines and branches.
 *
 * Counters are written when a process exits. Those of the tests leave by _exit() or are killed, most of them at a place that
 * matters: they write before that. gcov's own fork() empties the counters of the child when it returns, and with them those of
 * what ran in the child until then, the handlers of pthread_atfork: the plain one is called, so that a child counts twice what
 * its parent had counted. How often something was reached is not asked.
 */
#ifndef PRS_TEST_COVERAGE_H
#define PRS_TEST_COVERAGE_H

#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

void __gcov_dump(void);

static inline int coverage_kill(pid_t pid, int sig)
{
    if (sig == SIGKILL && pid == getpid())
        __gcov_dump();
    return kill(pid, sig);
}

__attribute__((noreturn)) static inline void coverage_exit(int status)
{
    __gcov_dump();
    _exit(status);
}

static inline pid_t coverage_fork(void)
{
    pid_t (*volatile plain)(void) = fork; /* a call by this name would become gcov's */
    return plain();
}

#define fork coverage_fork
#define kill coverage_kill
#define _exit coverage_exit

#endif /* PRS_TEST_COVERAGE_H */
