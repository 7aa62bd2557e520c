/*
 * coverage.h - the coverage build includes this before everything else.
 *
 * gcov writes counters when a process exits. Processes of the tests call _exit() or are killed, often right at the code
 * that a test covers, so they write the counters before that. When gcov's own fork() returns in the child, it clears
 * the child's counters, including those of the pthread_atfork handlers that ran in the child. So we call the plain
 * fork(); the child then also reports the executions that its parent had counted. That is harmless, because we do not
 * use the number of executions of a line.
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
    pid_t (*volatile plain)(void) = fork; /* the compiler would replace a direct call by gcov's fork() */
    return plain();
}

#define fork coverage_fork
#define kill coverage_kill
#define _exit coverage_exit

#endif /* PRS_TEST_COVERAGE_H */
