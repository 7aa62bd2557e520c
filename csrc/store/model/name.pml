/*
 * name.pml - the replacement of a named object (../name.c).
 *
 * Two writers put objects under one name, each in place of the one before, and may be killed at any step. A reader looks
 * the name up. All of them use the table of names under the lock; a process that takes the lock from a dead owner first
 * rebuilds the table, and may be killed during that, too. An entry holds its object through a link. An object exists
 * as long as a link holds it; what its maker holds is left out.
 *
 * Verified: whenever a living process has the lock and the table is rebuilt, one entry is bound, its object exists, and
 * its version is not below one that the reader has seen. In the end, one link is left. KILLS is the maximum number of
 * killed processes. Each of these planted errors is found:
 *   BUG_CLEAR_FIRST   the old entry is cleared before the new one is written
 *   BUG_SERIAL_FIRST  the serial of the new entry is written before `replaces`
 *   BUG_LATE_LINK     the link is made after the entry
 *   BUG_NO_SETTLE     the rebuild does not finish replacements
 *   BUG_NO_SWEEP      the rebuild leaves links that have no entry
 */
#ifndef KILLS
#define KILLS 2
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif

#define WRITERS 2
#define READER 2
#define PROCESSES 3
#define ENTRIES 4
#define LINKS 4
#define NOBODY 9
#define NIL 9

byte serial[ENTRIES], version[ENTRIES], replaces[ENTRIES], link_of[ENTRIES];
byte link_object[LINKS], link_entry[LINKS];
byte objects = 1, versions = 1; /* object 1 is bound at the start */
byte owner = NOBODY, kills = 0, ended = 0, left = 0;
bool alive[PROCESSES];

#define POINT(me)                                                                                                      \
    if                                                                                                                 \
    :: atomic { me != READER && kills < KILLS -> kills++; alive[me] = false; }; goto gone                              \
    :: skip                                                                                                            \
    fi

/* Take the lock; rebuild the table if its owner has died. */
inline take(me)
{
    if
    :: atomic { owner == NOBODY -> owner = me; }
    :: atomic { owner != NOBODY && !alive[owner] -> owner = me; }
       rebuild(me)
    fi
}

inline rebuild(me)
{
    i = 0;
    do
    :: i < ENTRIES ->
#ifndef BUG_NO_SETTLE
        if
        :: serial[i] && replaces[i] -> serial[replaces[i] - 1] = 0
        :: else
        fi;
#endif
        POINT(me);
        replaces[i] = 0;
        i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < ENTRIES ->
        if
        :: serial[i] && (link_object[link_of[i]] != serial[i] || link_entry[link_of[i]] != i) -> serial[i] = 0
        :: else
        fi;
        i++
    :: else -> break
    od;
    POINT(me);
    i = 0;
    do
    :: i < LINKS ->
#ifndef BUG_NO_SWEEP
        if
        :: link_object[i] && (!serial[link_entry[i]] || link_of[link_entry[i]] != i) -> link_object[i] = 0
        :: else
        fi;
#endif
        i++
    :: else -> break
    od
}

/* Find the bound entry, which is the only one, and check it. */
inline find(at)
{
    atomic {
        at = NIL;
        i = 0;
        do
        :: i < ENTRIES ->
            if
            :: serial[i] ->
                assert(at == NIL);
                at = i
            :: else
            fi;
            i++
        :: else -> break
        od;
        assert(at != NIL);
        assert(link_object[link_of[at]] == serial[at]);
        i = 0
    }
}

inline make_link()
{
    atomic {
        l = 0;
        do
        :: l < LINKS && link_object[l] -> l++
        :: else -> break
        od;
        assert(l < LINKS);
        link_object[l] = mine;
        link_entry[l] = new
    }
}

inline clear(at)
{
    serial[at] = 0;
    POINT(me);
    link_object[link_of[at]] = 0
}

proctype writer(byte me)
{
    byte i, l, mine, new, old, round = 0;
    do
    :: round == ROUNDS -> break
    :: else ->
        round++;
        atomic { objects++; mine = objects; }
        take(me);
        find(old);
        atomic {
            new = 0;
            do
            :: serial[new] -> new++
            :: else -> break
            od;
            assert(new < ENTRIES)
        }
#ifdef BUG_CLEAR_FIRST
        clear(old);
        POINT(me);
#endif
#ifndef BUG_LATE_LINK
        make_link();
        POINT(me);
        link_of[new] = l;
#endif
        atomic { versions++; version[new] = versions; }
        POINT(me);
#ifdef BUG_SERIAL_FIRST
        serial[new] = mine;
        POINT(me);
        replaces[new] = old + 1;
#else
        replaces[new] = old + 1;
        POINT(me);
        serial[new] = mine;
#endif
        POINT(me);
#ifdef BUG_LATE_LINK
        make_link();
        link_of[new] = l;
#endif
#ifndef BUG_CLEAR_FIRST
        clear(old);
#endif
        POINT(me);
        replaces[new] = 0;
        POINT(me);
        owner = NOBODY
    od;
gone:
    ended++
}

proctype reader()
{
    byte i, at, seen = 0, round = 0;
    do
    :: round == ROUNDS + 1 -> break
    :: else ->
        if
        :: round == ROUNDS -> ended == WRITERS /* the last look comes after all writers */
        :: else
        fi;
        round++;
        take(READER);
        find(at);
        assert(version[at] >= seen && version[at] <= versions);
        seen = version[at];
        if
        :: round == ROUNDS + 1 ->
            left = 0;
            i = 0;
            do
            :: i < LINKS ->
                left = left + (link_object[i] != 0);
                i++
            :: else -> break
            od;
            assert(left == 1)
        :: else
        fi;
        owner = NOBODY
    od;
gone:
    skip
}

init
{
    atomic {
        serial[0] = 1;
        version[0] = 1;
        link_object[0] = 1;
        alive[0] = true;
        alive[1] = true;
        alive[READER] = true;
        run writer(0);
        run writer(1);
        run reader();
    }
}
