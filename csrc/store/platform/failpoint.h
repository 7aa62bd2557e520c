/* failpoint.h - named places at which a test can make this process die, stop or fail.
 *
 * PRS_POINT(name) marks a place at which a step has just changed shared state.  PRS_POINT_ERRNO(name)
 * may also return an errno, with which the step must then fail.  Both macros are empty unless PRS_DEBUG
 * is defined.  The list of points is failpoints.def.
 */
#ifndef PRS_FAILPOINT_H
#define PRS_FAILPOINT_H

#include <stdbool.h>

#ifdef PRS_DEBUG
enum prs_point {
#define POINT(name) PRS_POINT_##name,
#include "failpoints.def"
#undef POINT
    PRS_POINT_COUNT
};
int prs_point_hit(enum prs_point point);
#define PRS_POINT(name) ((void)prs_point_hit(PRS_POINT_##name))
#define PRS_POINT_ERRNO(name) prs_point_hit(PRS_POINT_##name)
#else
#define PRS_POINT(name) ((void)0)
#define PRS_POINT_ERRNO(name) 0
#endif

/* For tests. Without PRS_DEBUG these functions do nothing and return false, or an empty list. */

/* Arm a named point: perform the action at its `after`-th crossing. ERRNO_ON is also performed at every later
 * crossing, until the point is armed with action 0. */
enum { PRS_FAIL_KILL = 1, PRS_FAIL_STOP = 2, PRS_FAIL_ERRNO = 3, PRS_FAIL_HOLD = 4, PRS_FAIL_ERRNO_ON = 5 };
bool prs_failpoint_arm(const char *name, int action, int after, int value);
/* Names of all points, NULL-terminated. */
const char *const *prs_failpoint_names(void);

#endif
