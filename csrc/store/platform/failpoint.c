/* failpoint.c - injected deaths, stops and errors (see failpoint.h). */
#include "failpoint.h"
#include <stdbool.h>
#include <stddef.h>

#ifdef PRS_DEBUG

#include "atomic.h"
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const names[] = {
#define POINT(name) #name,
#include "failpoints.def"
#undef POINT
    NULL};

static struct {
    prs_atomic_u32 action;
    prs_atomic_u32 left; /* number of crossings until the point triggers */
    prs_atomic_u32 value;
} armed[PRS_POINT_COUNT];

int prs_point_hit(enum prs_point point)
{
    uint32_t action = prs_load_acquire(&armed[point].action);
    if (action == 0)
        return 0;
    uint32_t left = prs_fetch_sub_relaxed(&armed[point].left, 1);
    if (action == PRS_FAIL_ERRNO_ON && left <= 1)
        prs_store_relaxed(&armed[point].left, 1); /* triggers at the next crossing, too */
    else if (left != 1)
        return 0;
    switch (action) {
    case PRS_FAIL_KILL:
        kill(getpid(), SIGKILL);
        for (;;)
            pause();
    case PRS_FAIL_STOP:
        kill(getpid(), SIGSTOP);
        break;
    case PRS_FAIL_HOLD: { /* sleeps `value` milliseconds, which widens a race */
        uint32_t ms = prs_load_relaxed(&armed[point].value);
        struct timespec nap = {ms / 1000, (long)(ms % 1000) * 1000000};
        nanosleep(&nap, NULL);
        break;
    }
    default:
        return (int)prs_load_relaxed(&armed[point].value);
    }
    return 0;
}

bool prs_failpoint_arm(const char *name, int action, int after, int value)
{
    for (int i = 0; names[i]; i++) {
        if (strcmp(names[i], name) == 0) {
            prs_store_relaxed(&armed[i].value, (uint32_t)value);
            /* unreached by tests (no test): tests always count crossings from 1 */
            prs_store_relaxed(&armed[i].left, (uint32_t)(after < 1 ? 1 : after));
            prs_store_release(&armed[i].action, (uint32_t)action);
            return true;
        }
    }
    return false;
}

const char *const *prs_failpoint_names(void)
{
    return names;
}

#else

bool prs_failpoint_arm(const char *name, int action, int after, int value)
{
    (void)name, (void)action, (void)after, (void)value;
    return false;
}

const char *const *prs_failpoint_names(void)
{
    static const char *const none[] = {NULL};
    return none;
}

#endif
