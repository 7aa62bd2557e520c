/* The garbage collector during a load.
 *
 * Each few hundred containers made trigger a collection that visits all of them, some several times, and can find nothing: what a
 * load makes is reachable from its stack. So while only this code runs, the collector is switched off, and it is switched on
 * again before any other code runs (prp_load_foreign, prp_load_drop), before the GIL can be given up, and at the end. Nobody can see
 * it off, nobody's own switching is undone, and a process that has switched it off keeps it off. The first collection after it makes
 * up for those that were left out.
 *
 * In small streams the collector stays on, so each allocation of a container may run finalizers.
 */
#include "unpickler.h"

void prp_load_pause_collector(prp_loader *L)
{
    if (PyGC_Disable())
        L->collector_paused = true;
    else
        L->may_pause = false; /* off already, and not by us: leave it alone */
}

void prp_load_resume_collector(prp_loader *L)
{
    PyGC_Enable();
    L->collector_paused = false;
}
