/*
 * fork.pml - the handover of a hold to a forked child (../atfork.c, ../client.c).
 *
 * A parent takes a hold on an object that another process releases. It claims a second client slot with a descriptor
 * that its child inherits, sets the child's bit in addition to its own and forks. Parent and child may be killed at any
 * step, may release their hold at any time, and free the object if they were the last holder. A third process also
 * frees the object, checks for dead clients and takes over their work. The lock byte belongs to the kernel, the bits to
 * the segment; whether a process believes that it holds the object is a separate variable, for comparison.
 *
 * Verified: the object is retired only if neither a living parent nor a living child believes that it holds the object;
 * if both have released it or are dead, one scan retires it. KILLS is the maximum number of killed processes (0 to 2).
 * Each of these planted errors is found:
 *   BUG_NO_INSIST   after setting the child's bit, the parent does not mark a word in state FREEING
 *   BUG_LATE_COPY   the child sets its bit itself, after the fork
 *   BUG_NO_BYTE     the second slot is claimed without a lock byte
 *   BUG_KEEPS_FD    the parent does not close its copy of the child's descriptor
 *   BUG_OWN_FD      the child inherits no descriptor for its slot: the byte is unlocked with the parent's copy
 */
#ifndef KILLS
#define KILLS 2
#endif

#define SEALED 0
#define FREEING 1
#define RETIRED 2

#define PARENT 0
#define CHILD 1
#define OTHER 2

#define FREE 0
#define UNBORN 1
#define LIVE 2
#define REAPING 3

byte state = SEALED, owner = OTHER; /* the parts of the slot's word */
bool mark = false;                  /* HELD */
bool bits[2];                       /* the bits set in the slot */
byte client[2];                     /* the client slots */
bool believes[2];                   /* whether the process believes that it holds the object */
bool alive[2];
bool fd[2];                         /* whether the process has a descriptor that keeps the child's byte locked */
bool done[2];
byte kills = 0;

#define dead(p) (!alive[p])
#define byte_held (fd[PARENT] || fd[CHILD])

/* Two reads, in either order, because bits of different words are not read at the same time. */
inline scan(me, result)
{
    if
    :: atomic { true -> result = bits[PARENT]; }
       atomic { result = result || bits[CHILD]; }
    :: atomic { true -> result = bits[CHILD]; }
       atomic { result = result || bits[PARENT]; }
    fi
}

/* We own the FREEING state: retire the object, or set it back to SEALED. A step of a killed process has no effect. */
inline settle(me, held)
{
    do
    :: atomic { me != OTHER && dead(me) -> break; }
    :: else ->
        if
        :: atomic { state != FREEING || owner != me -> break; } /* another process has taken over */
        :: else
        fi;
        atomic { if :: state == FREEING && owner == me -> mark = false; :: else fi; }
        scan(me, held);
        if
        :: atomic { me != OTHER && dead(me) -> break; }
        :: else
        fi;
        if
        :: !held ->
            atomic {
                if
                :: state == FREEING && owner == me && !mark && (me == OTHER || alive[me]) ->
                    assert(!(alive[PARENT] && believes[PARENT]));
                    assert(!(alive[CHILD] && believes[CHILD]));
                    state = RETIRED;
                    held = false;
                    break;
                :: else
                fi;
            }
        :: else ->
            atomic {
                if
                :: state == FREEING && owner == me && !mark && (me == OTHER || alive[me]) -> state = SEALED;
                :: else -> goto_again = true;
                fi;
            }
            if
            :: goto_again -> goto_again = false;
            :: else ->
                scan(me, held);
                if
                :: held -> break;
                :: else ->
                    atomic {
                        if
                        :: state == SEALED && (me == OTHER || alive[me]) -> state = FREEING; owner = me;
                        :: else -> break;
                        fi;
                    }
                fi;
            fi;
        fi;
    od
}

inline try_free(me, held)
{
    if
    :: state == SEALED ->
        scan(me, held);
        if
        :: held -> skip;
        :: else ->
            atomic {
                if
                :: state == SEALED && (me == OTHER || alive[me]) -> state = FREEING; owner = me; held = false;
                :: else -> held = true;
                fi;
            }
            if
            :: !held -> settle(me, held);
            :: else -> skip;
            fi;
        fi;
    :: else -> skip;
    fi
}

/* Release the hold: clear the belief, then the bit, then try to free. */
inline let_go(me, held)
{
    atomic { if :: alive[me] -> believes[me] = false; :: else fi; }
    atomic { if :: alive[me] -> bits[me] = false; :: else fi; }
    if
    :: alive[me] -> try_free(me, held);
    :: else -> skip;
    fi
}

proctype child()
{
    bool held, goto_again = false;
#ifdef BUG_LATE_COPY
    atomic { if :: alive[CHILD] -> bits[CHILD] = true; :: else fi; }
#endif
    atomic { if :: alive[CHILD] -> client[CHILD] = LIVE; :: else -> goto over; fi; }
    atomic { if :: alive[CHILD] -> assert(!believes[CHILD] || state != RETIRED); :: else -> goto over; fi; }
    let_go(CHILD, held);
    atomic {
        if
        :: alive[CHILD] && client[CHILD] == LIVE -> client[CHILD] = FREE; fd[CHILD] = false;
        :: else
        fi;
    }
over:
    done[CHILD] = true;
}

proctype parent()
{
    bool held, goto_again = false;
    /* Take a hold while another process may be freeing the object: set the bit, then read the word. */
    atomic { if :: alive[PARENT] -> bits[PARENT] = true; :: else -> goto over; fi; }
    atomic {
        if
        :: alive[PARENT] && state != RETIRED ->
            believes[PARENT] = true;
            if
            :: state == FREEING -> mark = true;
            :: else
            fi;
        :: else -> goto over; /* the object no longer exists, so there is no hold to copy */
        fi;
    }
    /* prepare the fork */
#ifndef BUG_NO_BYTE
    atomic { if :: alive[PARENT] -> fd[PARENT] = true; :: else -> goto over; fi; }
#endif
    atomic { if :: alive[PARENT] -> client[CHILD] = UNBORN; :: else -> goto over; fi; }
#ifndef BUG_LATE_COPY
    atomic { if :: alive[PARENT] -> bits[CHILD] = true; :: else -> goto over; fi; }
#ifndef BUG_NO_INSIST
    atomic { if :: alive[PARENT] -> if :: state == FREEING -> mark = true; :: else fi; :: else -> goto over; fi; }
#endif
#endif
    atomic {
        if
        :: alive[PARENT] ->
            alive[CHILD] = true;
            believes[CHILD] = true;
#ifndef BUG_OWN_FD
            fd[CHILD] = fd[PARENT];
#endif
            done[CHILD] = false;
            run child();
        :: else -> goto over;
        fi;
    }
#ifndef BUG_KEEPS_FD
    atomic { if :: alive[PARENT] -> fd[PARENT] = false; :: else -> goto over; fi; }
#endif
    let_go(PARENT, held);
    atomic { if :: alive[PARENT] && client[PARENT] == LIVE -> client[PARENT] = FREE; :: else fi; }
over:
    done[PARENT] = true;
}

/* A kill: the process makes no further steps, and the kernel closes its descriptors. */
proctype killer()
{
    do /* the kill happens at any moment, or never */
    :: atomic { kills < KILLS && alive[PARENT] && !done[PARENT] -> alive[PARENT] = false; fd[PARENT] = false; kills++; }
    :: atomic { kills < KILLS && alive[CHILD] && !done[CHILD] -> alive[CHILD] = false; fd[CHILD] = false; kills++; }
    :: break;
    od
}

inline reap(who, held)
{
    if
    :: atomic {
           (client[who] == LIVE && dead(who)) || (client[who] == UNBORN && !byte_held) -> client[who] = REAPING;
       }
       atomic {
           held = false;
           if
           :: state == FREEING && owner == who -> owner = OTHER; held = true;
           :: else
           fi;
       }
       if
       :: held -> settle(OTHER, held);
       :: else -> skip;
       fi;
       bits[who] = false;
       try_free(OTHER, held);
       client[who] = FREE;
    :: else -> skip;
    fi
}

proctype other()
{
    bool held, goto_again = false;
    try_free(OTHER, held); /* this process has just released the object */
    reap(CHILD, held);
    reap(PARENT, held);
    /* After both processes have ended, scan once. */
    (done[PARENT] || dead(PARENT)) && (done[CHILD] || dead(CHILD));
    reap(PARENT, held);
    reap(CHILD, held);
    assert(state == RETIRED);
}

init
{
    atomic {
        client[PARENT] = LIVE;
        alive[PARENT] = true;
        done[CHILD] = true;
        run parent();
        run other();
        run killer();
    }
}
