/* failpoint.h - named places at which a test can make this process die, stop or fail.
 *
 * PRS_POINT(name) marks a step after which shared state has changed; PRS_POINT_ERRNO(name)
 * additionally yields an errno the step must behave as if it had met.  Compiled to nothing
 * unless PRS_DEBUG is defined.  The list of points is failpoints.def.
 */
#ifndef PRS_FAILPOINT_H
#define PRS_FAILPOINT_H

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

#endif
