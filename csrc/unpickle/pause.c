/* Disables the garbage collector during a load.
 *
 * By default, every few hundred new containers trigger a collection, so the collector visits each container of a load
 * once, and some several times. Such a collection can free nothing, because all objects of a load are reachable from
 * its stack. So we disable the collector while only our code runs, and enable it before foreign code runs
 * (prp_load_foreign, prp_load_drop), before the GIL can be released, and at the end. No other code can observe that
 * the collector is disabled. We never undo another caller's gc.enable() or gc.disable(), and a process that disabled
 * the collector keeps it disabled. The next collection visits the objects that the skipped ones would have visited.
 *
 * For small streams the collector stays enabled, so each allocation of a container may run finalizers.
 */
#include "unpickler.h"

void prp_load_pause_collector(prp_loader *L)
{
    if (PyGC_Disable())
        L->collector_paused = true;
    else
        L->may_pause = false; /* the process disabled the collector: keep it disabled */
}

void prp_load_resume_collector(prp_loader *L)
{
    PyGC_Enable();
    L->collector_paused = false;
}
