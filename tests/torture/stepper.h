/*
 * stepper.h - runs a child for exactly n instructions.
 *
 * Purpose    Kill a process after an arbitrary instruction of an operation, thousands of times.
 * Algorithm  A single step takes about 20 us.  So a first run over the whole operation records the address of each
 *            step.  A landmark is an instruction that the operation executes for the first time.  A later run to step
 *            n sets a breakpoint at the last landmark before n, lets the child run to it, and then steps.
 *            Other architectures have no landmarks; there, every instruction is a single step.
 * Guarantee  If the child takes the same path each time, it has executed n instructions of the operation. A child
 *            that does not reach its landmark runs to the end of the operation.
 */
#ifndef PRS_TEST_STEPPER_H
#define PRS_TEST_STEPPER_H

#include "engine.h"

#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/user.h>

typedef struct trace {
    uint64_t length;    /* steps of the whole operation */
    uint32_t *landmark; /* for each step, the step of the nearest landmark before it */
    uintptr_t *where;   /* for each step, the address of the next instruction */
    uint64_t capacity, limit;
} trace;

extern char __executable_start, etext;

static int step_wait(pid_t pid)
{
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_MSG(WIFSTOPPED(status), "the victim ended by itself: status %x", (unsigned)status);
    return WSTOPSIG(status);
}

/* Execute one instruction; return false if the operation has ended. */
static bool step_once(pid_t pid)
{
    CHECK_EQ(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), 0);
    int sig = step_wait(pid);
    CHECK(sig == SIGTRAP || sig == SIGSTOP);
    return sig == SIGTRAP;
}

#if defined(__x86_64__)
static uintptr_t step_where(pid_t pid)
{
    return (uintptr_t)ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user_regs_struct, rip), NULL);
}

/* Let the child run until the next instruction is `at`; return false if the operation ended before. */
static bool step_run_to(pid_t pid, uintptr_t at)
{
    long text = ptrace(PTRACE_PEEKTEXT, pid, at, NULL);
    CHECK_EQ(ptrace(PTRACE_POKETEXT, pid, at, (text & ~0xFFl) | 0xCC), 0);
    CHECK_EQ(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
    int sig = step_wait(pid);
    if (sig == SIGSTOP)
        return false;
    CHECK_EQ(sig, SIGTRAP);
    CHECK_EQ(step_where(pid), at + 1);
    CHECK_EQ(ptrace(PTRACE_POKETEXT, pid, at, text), 0);
    CHECK_EQ(ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, rip), at), 0);
    return true;
}
#else
static uintptr_t step_where(pid_t pid)
{
    (void)pid;
    return 0;
}

static bool step_run_to(pid_t pid, uintptr_t at)
{
    (void)pid, (void)at;
    return false;
}
#endif

/* Step through the whole operation, or through its first `limit` instructions, and record the addresses. */
static void step_record(pid_t pid, trace *t)
{
    t->length = 0;
    while (t->length < t->limit && step_once(pid)) {
        if (t->length == t->capacity) {
            t->capacity = t->capacity ? 2 * t->capacity : 4096;
            t->where = realloc(t->where, t->capacity * sizeof *t->where);
            t->landmark = realloc(t->landmark, t->capacity * sizeof *t->landmark);
        }
        t->where[t->length++] = step_where(pid);
    }
    size_t text = (size_t)(&etext - &__executable_start);
    uint8_t *seen = calloc(text, 1);
    uint32_t last = 0;
    for (uint64_t i = 0; i < t->length; i++) {
        uintptr_t at = t->where[i] - (uintptr_t)&__executable_start;
        if (t->where[i] && at < text && !seen[at]) {
            seen[at] = 1;
            last = (uint32_t)i + 1;
        }
        t->landmark[i] = last; /* 0: none yet */
    }
    free(seen);
}

/* Run n instructions, or to the end of the operation; return the number of single steps. Set *ended if the
 * operation ended before n. */
static uint64_t step_to(pid_t pid, const trace *t, uint64_t n, bool *ended)
{
    uint64_t done = 0, steps = 0;
    *ended = false;
    if (n && n <= t->length && t->landmark[n - 1]) {
        done = t->landmark[n - 1];
        if (!step_run_to(pid, t->where[done - 1])) {
            *ended = true;
            return 0;
        }
    }
    for (; done < n; done++, steps++)
        if (!step_once(pid)) {
            *ended = true;
            return steps;
        }
    return steps;
}

static void step_forget(trace *t)
{
    free(t->where);
    free(t->landmark);
    *t = (trace){0};
}

#endif /* PRS_TEST_STEPPER_H */
