/* handle.c - until when a handle stays.
 *
 * Purpose    A process opens and closes stores as often as it likes: nothing of a handle may stay, and nothing may go that a
 *            call, a view or a window still uses.
 * Algorithm  Three counts, each of which outlives the one before.  `users`: calls and drafts under way, counted by the caller
 *            under its own lock; the last of them closes a handle that was ended.  `pinned_slots`: objects with pins, counted
 *            by prs_close, and unpins at their work; the last of them tears the handle down.  `keeps`: windows, and one
 *            until the handle is torn down; the last one frees it.
 *
 *              open --prs_end--> ending --last use--> closed --last pin--> torn --last window--> freed
 *
 * Guarantee  A pin or a window may be dropped at any time, before and after.  In a forked child the uses of threads that are
 *            not there any more never end: such a handle is closed and torn down, and its addresses stay.
 */
#include "store.h"

void prs_use(prs_store *s)
{
    if (s->users++ == 0)
        s->users_forks = prs_fork_count();
}

bool prs_unuse(prs_store *s)
{
    if (s->users)
        s->users--;
    return s->users == 0 && s->ending;
}

bool prs_end(prs_store *s)
{
    s->ending = true;
    return s->users == 0 || s->users_forks != prs_fork_count();
}

void prs_release(prs_store *s)
{
    s->released = s->users == 0;
    prs_close(s);
}

void prs_keep_end(prs_store *s)
{
    if (prs_fetch_sub_acqrel(&s->keeps, 1) == 1)
        prs_discard(s);
}

uint32_t prs_age(const prs_store *s)
{
    uint64_t born = s->super->born_ns / (uint64_t)PRS_SECOND, now = prs_uptime();
    return now > born ? (uint32_t)(now - born) : 0; /* another time namespace may be behind */
}
