/* client.pml - client slots and the store lock (client.c, recover.c, lock.c), for Spin.
 *
 * A process claims a client slot, then releases the slot or dies; after a reap, a successor claims the slot.  Two other
 * processes (observers) check for dead clients and take or steal the store lock.  Owners and observers may die
 * between any two steps.  An observer may also be slow, so that its observation is out of date when it acts.  Each
 * step is one access to shared memory, one system call, or one compare-and-swap of the C code.
 *
 * Verified: no process clears the bit of a living client (a view would lose its memory); at most one living
 * process has the lock; a reaper frees only slots that it owns.
 *
 * Planted errors, each of which must be found (-DBUG_...):
 *   BUG_NO_RECHECK          the slot is reaped in its present state, not only in the state for which the proof is valid
 *   BUG_STATE_INCARNATION   the state of a client does not carry its incarnation
 *   BUG_LOCK_INCARNATION    the lock word does not carry its owner's incarnation
 *   BUG_NO_BYTE             a process claims a slot without locking its byte first
 *   BUG_FREE_FIRST          a reaper frees the slot before it has cleared the bits
 */

#define FREE 0
#define UNBORN 1
#define LIVE 2
#define REAPING 3

#ifndef LIVES
#define LIVES 2 /* number of times that each owner claims the slot */
#endif
#ifndef DEATHS
#define DEATHS 2
#endif

#define NOBODY 255

/* Processes 0 and 1 own the slot in turn; 2 and 3 are observers. */
bool alive[4] = true;
byte deaths;

/* The slot.  `who`: the reaper while REAPING. */
byte what = FREE, who, tag; /* one word, changed and compared as a unit */
byte incarnation;
byte owner_pid = NOBODY;   /* the pid in the slot */
byte byte_lock = NOBODY; /* the OFD lock, which is released when its process dies */
bool mark;            /* the client's bit in the holders of an object */

/* The store lock: owner and incarnation in one word. 0: free; 1: the slot above; 2, 3: the observers. */
byte lock, lock_tag;
byte inside; /* ghost: number of living processes that have the lock */

bool holding[2]; /* ghost: this owner believes that its bit is set */

#ifdef BUG_STATE_INCARNATION
#define TAG(i) 0
#else
#define TAG(i) i
#endif
#ifdef BUG_LOCK_INCARNATION
#define LOCK_TAG(i) 0
#else
#define LOCK_TAG(i) i
#endif

inline die(p)
{
    atomic {
        deaths < DEATHS ->
        deaths++;
        alive[p] = false;
        if
        :: byte_lock == p -> byte_lock = NOBODY
        :: else
        fi;
        if
        :: p < 2 -> holding[p] = false
        :: else
        fi;
        if
        :: has -> inside--
        :: else
        fi;
        goto dead
    }
}

inline take_lock(name, t)
{
    atomic {
        if
        :: lock == 0 -> lock = name; lock_tag = LOCK_TAG(t); has = true; inside++; assert(inside == 1)
        :: else
        fi
    }
}

inline give_lock()
{
    atomic { /* the lock must not be stolen from a living owner */
        lock = 0;
        has = false;
        inside--
    }
}

proctype Owner(byte p)
{
    byte mine, n;
    bool has;
    do
    :: n < LIVES ->
        n++;
        /* claim the slot */
#ifndef BUG_NO_BYTE
        atomic {
            if
            :: what == FREE && byte_lock == NOBODY -> byte_lock = p
            :: else -> goto again
            fi
        }
#else
        if
        :: what == FREE -> skip
        :: else -> goto again
        fi;
#endif
        mine = incarnation + 1;
        atomic {
            if
            :: what == FREE -> what = UNBORN; tag = TAG(mine); who = 0
            :: else ->
                if
                :: byte_lock == p -> byte_lock = NOBODY
                :: else
                fi;
                goto again
            fi
        }
        owner_pid = NOBODY;
        incarnation = mine;
        if
        :: die(p)
        :: true
        fi;
        owner_pid = p;
        atomic { what = LIVE; tag = TAG(mine) }
        /* hold an object */
        atomic { mark = true; holding[p] = true }
        if
        :: die(p)
        :: true
        fi;
        take_lock(1, mine);
        if
        :: has ->
            if
            :: die(p)
            :: true
            fi;
            give_lock()
        :: else
        fi;
        assert(mark); /* no process has cleared the bit */
        atomic { holding[p] = false; mark = false }
        if
        :: die(p)
        :: true
        fi;
        /* leave the store */
        atomic {
            if
            :: what == LIVE && tag == TAG(mine) -> what = FREE; tag = 0
            :: else
            fi
        }
        if
        :: byte_lock == p -> byte_lock = NOBODY
        :: else
        fi;
again:
        skip
    :: else -> break
    od;
dead:
    skip
}

/* Check whether the slot's client is dead. `proof` is true if this is proven for the state in (f, fw, ft). */
inline corpse()
{
    atomic { f = what; fw = who; ft = tag }
    proof = false;
    if
    :: f == FREE -> skip
    :: f == REAPING -> proof = (fw != p) && !alive[fw]
    :: f == UNBORN ->
        if
        :: byte_lock == NOBODY -> proof = (what == f && tag == ft)
        :: else
        fi
    :: f == LIVE ->
        fp = owner_pid;
        if
        :: fp < 2 && !alive[fp] -> atomic { proof = (what == f && tag == ft && owner_pid == fp) }
        :: else
        fi
    fi
}

proctype Looker(byte p)
{
    byte f, fw, ft, fp, w, wt, n;
    bool proof, has, dead_owner;
    do
    :: n < 2 ->
        n++;
        if
        :: /* check whether the client is dead, and reap it */
            corpse();
            if
            :: proof ->
                atomic {
                    if
#ifdef BUG_NO_RECHECK
                    :: what != FREE ->
#else
                    :: what == f && who == fw && tag == ft ->
#endif
                        what = REAPING; who = p; tag = TAG(n)
                    :: else -> goto next
                    fi
                }
#ifdef BUG_FREE_FIRST
                atomic { what = FREE; who = 0; tag = 0 }
#endif
                if
                :: die(p)
                :: true
                fi;
                mark = false;
                if
                :: die(p)
                :: true
                fi;
#ifndef BUG_FREE_FIRST
                atomic {
                    assert(what == REAPING && who == p);
                    what = FREE; who = 0; tag = 0
                }
#endif
            :: else
            fi
        :: true -> /* the store lock: take it, or steal it from the dead (`true`: an `else` behind :: belongs to this if) */
            take_lock(p, n);
            if
            :: has -> skip
            :: else ->
                atomic { w = lock; wt = lock_tag }
                dead_owner = false;
                if
                :: w == 1 ->
                    if
#ifndef BUG_LOCK_INCARNATION
                    :: incarnation != wt -> dead_owner = true
#endif
                    :: what == FREE ->
#ifndef BUG_LOCK_INCARNATION
                        dead_owner = true
#else
                        skip
#endif
                    :: else -> corpse(); dead_owner = proof
                    fi
                :: w > 1 && w != p -> dead_owner = !alive[w]
                :: else
                fi;
                if
                :: dead_owner ->
                    atomic {
                        if
                        :: lock == w && lock_tag == wt ->
                            lock = p; lock_tag = LOCK_TAG(n); has = true; inside++;
                            assert(inside == 1)
                        :: else
                        fi
                    }
                :: else
                fi
            fi;
            if
            :: has ->
                if
                :: die(p)
                :: true
                fi;
                give_lock()
            :: else
            fi
        fi;
next:
        skip
    :: else -> break
    od;
dead:
    skip
}

init
{
    atomic {
        run Owner(0);
        run Owner(1);
        run Looker(2);
        run Looker(3)
    }
}
