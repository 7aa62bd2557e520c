/* handle.c - the lifetime of a handle.
 *
 * Purpose    A process may open and close stores any number of times.  A closed handle must free all its resources, but
 *            only after calls, views and windows have stopped using them.
 * Algorithm  A handle has three counts, which reach 0 in this order.  `users`: calls and drafts in progress, counted by
 *            the caller under its own lock; when the last one ends, an ending handle is closed.  `pinned_slots`:
 *            objects with pins, counted by prs_close, and unpins in progress; when the last one ends, the handle is
 *            torn down.  `keeps`: windows, plus one until the handle is torn down; when the last one ends, the handle
 *            is freed.
 *
 *              open --prs_end--> ending --last use--> closed --last pin--> torn --last window--> freed
 *
 * Guarantee  A pin may be dropped or a window closed at any time, before or after each step.  In a forked child, uses
 *            by the parent's other threads never end: prs_release closes and tears down such a handle, but keeps its
 *            address ranges reserved.
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
    return now > born ? (uint32_t)(now - born) : 0; /* the clock may be behind in another time namespace */
}
