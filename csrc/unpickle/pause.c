/* The garbage collector during a load.
 *
 * Every few hundred new containers trigger a collection that visits all of them, some several times, and can free
 * nothing: all objects of a load are reachable from its stack. So we disable the collector while only our code runs,
 * and enable it before foreign code runs (prp_load_foreign, prp_load_drop), before the GIL can be released, and at
 * the end. No other code can see it disabled, we never undo its own gc.enable() or gc.disable(), and a process that
 * disabled the collector keeps it disabled. The next collection makes up for those that were skipped.
 *
 * In small streams the collector stays on, so each allocation of a container may run finalizers.
 */
#include "unpickler.h"

void prp_load_pause_collector(prp_loader *L)
{
    if (PyGC_Disable())
        L->collector_paused = true;
    else
        L->may_pause = false; /* the process disabled it: leave it so */
}

void prp_load_resume_collector(prp_loader *L)
{
    PyGC_Enable();
    L->collector_paused = false;
}
