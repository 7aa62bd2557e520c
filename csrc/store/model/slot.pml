/* slot.pml - the protocol of the slot word (object.c, magazine.c, recover.c), for Spin.
 *
 * Three clients use two slots.  Any client may die between any two steps: its writes to shared memory remain, and its
 * private memory is reset, so that states of dead clients do not differ.  A client holds objects by bits in refs and
 * pins, replaces refs by pins, passes refs on by tokens, frees objects, also for all clients, reuses slots, and reaps
 * dead clients.  Each step below is one access to shared memory that the C code makes as one atomic operation (or a
 * section under the store lock).
 *
 * Verified: the slot of a pinned object is not reused (no use after free); a slot has at most one owner; after all
 * clients have left and dead ones were reaped, there is no sealed object without a holder and no slot that belongs to
 * a client that no longer exists.
 *
 * Planted errors, each of which must be found (-DBUG_...):
 *   BUG_CLEAR_NO_SCAN     releasing a hold does not try to free the object
 *   BUG_LOAD_BEFORE_SET   the word is read before the bit is set, not after
 *   BUG_NO_ROLLBACK_SCAN  a freeing client does not scan again after its rollback
 *   BUG_NO_HELD           a hold taken while FREEING does not mark the word
 *   BUG_BLIND_RETIRE      the last step of freeing is a store, not a compare-and-swap
 *   BUG_NO_GENERATION     taking from a magazine does not compare the generation
 *   BUG_TOKEN_AFTER       the sender drops its ref before the token is counted
 *   BUG_TOKEN_TWICE       a token is identified by its index, without its serial
 *   BUG_REAP_BITS_ONLY    a reaper clears bits, but does not finish the dead client's work
 *   BUG_UNDO_WRONG        an undone hold clears a bit that another thread's count still needs
 *
 * All sequences of operations are explored.  For errors that need long sequences, -DONLY_MESSAGES and -DONLY_RESERVES
 * leave out some operations; run.sh lists the options.
 */

#ifndef CLIENTS
#define CLIENTS 3
#endif
#define SLOTS 2
#ifndef STEPS
#define STEPS 3 /* number of operations of each client */
#endif
#ifndef STEPS_FIRST
#define STEPS_FIRST STEPS /* the same for client 0 */
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

#define FREE 0
#define RESERVED 1
#define CREATING 2
#define SEALED 3
#define FREEING 4

#define NOBODY CLIENTS
#define BIT(c) (1 << (c))

typedef Slot {
    byte state;
    byte generation; /* modulo 8, which is small enough to check and large enough not to wrap here */
    byte client;
    bool freed, held;
    byte links;      /* number of tokens that hold the object */
    byte owners;     /* ghost: number of clients that believe that they own the slot */
};

Slot slot[SLOTS];
byte bits[2 * SLOTS]; /* the holders: the refs of each slot, then the pins, with one bit per client */
#define REFS(s) bits[s]
#define PINS(s) bits[SLOTS + s]
bool alive[CLIENTS] = true;
bool finished[CLIENTS];
byte deaths, dying = CLIENTS; /* the client that dies at its next step, or CLIENTS for none */

/* There is at most one token in flight, with its serial and its object. */
byte token_serial, token_slot, token_generation, next_serial = 1;
bool token_valid;
bool token_ended; /* ghost: whether the token's object was freed for all clients */
/* The current message, whose bytes any process may read any number of times, and the previous message. */
byte message_serial, message_slot, message_generation;
byte old_serial, old_slot, old_generation;
byte owed; /* ghost: the serial of a message that must still find its object, or 0 */

/* The private memory of each client. */
typedef Private {
    byte refs[SLOTS];       /* 0 or 1 */
    byte pins[SLOTS];
    byte generation[SLOTS]; /* generation of the object whose holds the counts record */
    byte magazine;          /* the slot that the client believes to be reserved for it, or NOBODY_SLOT */
    byte magazine_generation;
};
#define NO_SLOT SLOTS
Private mine[CLIENTS + 1]; /* the last one belongs to the reaper, whose magazine counts as full */

/* ---- freeing ---------------------------------------------------------------------------------------- */

inline look(s, seen) /* reads the pins, then the refs, then the links, each in a separate step */
{
    if
    :: PINS(s) != 0 -> seen = true
    :: else ->
        if
        :: slot[s].freed -> seen = false
        :: else ->
            if
            :: REFS(s) != 0 -> seen = true
            :: else -> seen = (slot[s].links != 0)
            fi
        fi
    fi
}

inline settle(c, s) /* client c has set slot s to FREEING */
{
    do
    :: true ->
        atomic { /* check the owner and clear HELD, in one compare-and-swap */
            gen = slot[s].generation;
            ours = (slot[s].state == FREEING && slot[s].client == c);
            if
            :: ours -> slot[s].held = false; frd = slot[s].freed
            :: else
            fi
        }
        if
        :: !ours -> break
        :: else
        fi;
        look(s, seen);
        if
        :: !seen ->
            atomic {
                if
#ifdef BUG_BLIND_RETIRE
                :: true ->
#else
                :: slot[s].state == FREEING && slot[s].client == c && slot[s].generation == gen &&
                   !slot[s].held && slot[s].freed == frd ->
#endif
                    if
                    :: frd -> REFS(s) = 0
                    :: else
                    fi;
                    slot[s].state = RESERVED;
                    slot[s].generation = (slot[s].generation + 1) % 8;
                    slot[s].freed = false;
                    slot[s].held = false;
                    slot[s].links = 0;
                    ours = true
                :: else -> ours = false
                fi
            }
            if
            :: ours ->
                /* put the slot into the magazine, or return it to the shared stack under the lock */
                atomic {
                    if
                    :: mine[c].magazine == NO_SLOT ->
                        mine[c].magazine = s;
                        mine[c].magazine_generation = slot[s].generation
                    :: else ->
                        if
                        :: slot[s].state == RESERVED && slot[s].client == c -> slot[s].state = FREE
                        :: else
                        fi
                    fi
                }
                break
            :: else
            fi
        :: else ->
            atomic {
                if
                :: slot[s].state == FREEING && slot[s].client == c && slot[s].freed == frd && !slot[s].held ->
                    slot[s].state = SEALED;
                    ours = true
                :: else -> ours = false
                fi
            }
            if
            :: !ours -> skip
            :: else ->
#ifdef BUG_NO_ROLLBACK_SCAN
                break;
#endif
                look(s, seen);
                if
                :: seen -> break
                :: else
                fi;
                atomic {
                    if
                    :: slot[s].state == SEALED && slot[s].generation == gen ->
                        slot[s].state = FREEING;
                        slot[s].client = c
                    :: else -> ours = false
                    fi
                }
                if
                :: !ours -> break
                :: else
                fi
            fi
        fi
    od
}

inline try_free(c, s)
{
    atomic { gen = slot[s].generation; ours = (slot[s].state == SEALED) }
    if
    :: ours ->
        look(s, seen);
        if
        :: seen -> skip
        :: else ->
            atomic {
                if
                :: slot[s].state == SEALED && slot[s].generation == gen ->
                    slot[s].state = FREEING;
                    slot[s].client = c;
                    slot[s].held = false
                :: else -> ours = false
                fi
            }
            if
            :: ours -> settle(c, s)
            :: else
            fi
        fi
    :: else
    fi
}

inline let_go(c, s)
{
#ifndef BUG_CLEAR_NO_SCAN
    try_free(c, s)
#else
    skip
#endif
}

/* ---- holding ------------------------------------------------------------------------------------------- */

/* Set a bit, then read the word. `ok` is true if the client now holds the object. */
inline hold(c, s, g, b, ok)
{
    atomic { ok = (slot[s].generation == g && (slot[s].state == SEALED || slot[s].state == FREEING) && !slot[s].freed) }
    if
    :: !ok -> skip
    :: else ->
        bits[b + s] = bits[b + s] | BIT(c);
#ifndef BUG_LOAD_BEFORE_SET
        atomic { /* read the word; if it is FREEING, mark it by a compare-and-swap */
            if
            :: slot[s].generation != g || slot[s].freed -> ok = false
            :: else ->
                if
                :: slot[s].state == SEALED -> ok = true
                :: slot[s].state == FREEING ->
                    ok = true;
#ifndef BUG_NO_HELD
                    slot[s].held = true
#endif
                :: else -> ok = false
                fi
            fi
        }
#endif
        if
        :: ok -> skip
        :: else -> /* undo the hold; like the clearing of any bit, this may end the last hold */
            if
            :: mine[c].refs[s] == 0 || mine[c].generation[s] != slot[s].generation || slot[s].state != SEALED ->
                bits[b + s] = bits[b + s] & ~BIT(c)
            :: else
            fi;
            try_free(c, s)
        fi
    fi
}

inline put(c)
{
    /* take a slot from the magazine or, if that is empty, from the shared stack under the lock */
    s = NO_SLOT;
    if
    :: mine[c].magazine != NO_SLOT ->
        atomic {
            s = mine[c].magazine;
            g = mine[c].magazine_generation;
            mine[c].magazine = NO_SLOT;
            if
#ifdef BUG_NO_GENERATION
            :: slot[s].state == RESERVED || slot[s].state == CREATING ->
#else
            :: slot[s].state == RESERVED && slot[s].client == c && slot[s].generation == g ->
#endif
                slot[s].state = CREATING;
                g = slot[s].generation;
                slot[s].owners++
            :: else -> s = NO_SLOT
            fi
        }
    :: else ->
        atomic {
            if
            :: slot[0].state == FREE -> s = 0
            :: slot[0].state != FREE && slot[1].state == FREE -> s = 1
            /* a full store reclaims slots that other clients have reserved */
            :: slot[0].state == RESERVED && slot[1].state != FREE -> s = 0
            :: slot[0].state != FREE && slot[0].state != RESERVED && slot[1].state == RESERVED -> s = 1
            :: else
            fi;
            if
            :: s != NO_SLOT ->
                slot[s].generation = (slot[s].generation + 1) % 8;
                g = slot[s].generation;
                slot[s].client = c;
                slot[s].state = CREATING;
                slot[s].owners++
            :: else
            fi
        }
    fi;
    if
    :: s == NO_SLOT -> skip
    :: else ->
        assert(slot[s].owners == 1);
        REFS(s) = REFS(s) | BIT(c);
        atomic {
            mine[c].refs[s] = 1;
            mine[c].pins[s] = 0;
            mine[c].generation[s] = g
        }
        atomic {
            assert(slot[s].state == CREATING && slot[s].generation == g);
            slot[s].owners--;
            slot[s].state = SEALED;
            slot[s].freed = false;
            slot[s].held = false
        }
    fi
}

inline unref(c, s)
{
    if
    :: mine[c].refs[s] ->
        atomic { mine[c].refs[s] = 0; REFS(s) = REFS(s) & ~BIT(c) }
        let_go(c, s)
    :: else
    fi
}

inline read_it(c, s) /* pins the object, drops the ref while reading, uses the bytes, unpins */
{
    g = mine[c].generation[s];
    hold(c, s, g, SLOTS, ok);
    if
    :: ok ->
        mine[c].pins[s] = 1;
        if
        :: unref(c, s)
        :: true
        fi;
#ifdef BUG_UNDO_WRONG /* another thread also pins, without reading the first one's count */
        hold(c, s, g, SLOTS, ok);
#endif
        /* use the bytes, which must be those of the pinned object */
        assert(slot[s].generation == g && (slot[s].state == SEALED || slot[s].state == FREEING));
        atomic { mine[c].pins[s] = 0; PINS(s) = PINS(s) & ~BIT(c) }
        let_go(c, s)
    :: else
    fi
}

inline keep_old()
{
#ifdef OLD_MESSAGES
    old_serial = message_serial;
    old_slot = message_slot;
    old_generation = message_generation
#else
    skip
#endif
}

inline send(c, s)
{
#ifdef BUG_TOKEN_AFTER
    if
    :: mine[c].refs[s] && !token_valid ->
        g = mine[c].generation[s];
        unref(c, s);
        atomic {
            slot[s].links++;
            token_valid = true;
            token_ended = false;
            token_serial = next_serial;
            next_serial++;
            token_slot = s;
            token_generation = g;
            keep_old();
            owed = token_serial;
            message_serial = token_serial;
            message_slot = s;
            message_generation = g
        }
    :: else
    fi
#else
    if
    :: mine[c].refs[s] && !token_valid && !slot[s].freed && slot[s].generation == mine[c].generation[s] ->
        atomic { /* under the store lock */
            slot[s].links++;
            token_valid = true;
            token_ended = false;
            token_serial = next_serial;
            next_serial++;
            token_slot = s;
            token_generation = mine[c].generation[s];
            keep_old();
            owed = token_serial;
            message_serial = token_serial;
            message_slot = s;
            message_generation = token_generation
        }
        unref(c, s)
    :: else
    fi
#endif
}

inline receive(c)
{
    if
    :: message_serial != 0 ->
        if
        :: atomic { s = message_slot; g = message_generation; serial = message_serial }
#ifdef OLD_MESSAGES
        :: old_serial != 0 -> atomic { s = old_slot; g = old_generation; serial = old_serial }
#endif
        fi;
        if
        :: mine[c].refs[s] && mine[c].generation[s] == g -> ok = true
        :: else ->
            hold(c, s, g, 0, ok);
            if
            :: ok -> atomic { mine[c].refs[s] = 1; mine[c].generation[s] = g }
            :: else
            fi
        fi;
        if
        :: ok ->
            atomic { /* under the store lock */
                if
                :: owed == serial -> owed = 0
                :: else
                fi;
                ours = false;
                if
#ifdef BUG_TOKEN_TWICE
                :: token_valid ->
#else
                :: token_valid && token_serial == serial ->
#endif
                    token_valid = false;
                    if
                    :: slot[token_slot].generation == token_generation && slot[token_slot].links > 0 ->
                        slot[token_slot].links--;
                        ours = true
                    :: else
                    fi
                :: else
                fi;
                s = token_slot
            }
            if
            :: ours -> try_free(c, s)
            :: else
            fi
        :: else ->
            /* a message that was not received yet must lead to its object, unless that was freed for all clients */
            assert(owed != serial || token_ended)
        fi
    :: else
    fi
}

inline end_for_all(c, s)
{
    if
    :: mine[c].refs[s] && slot[s].generation == mine[c].generation[s] ->
        atomic {
            if
            :: slot[s].generation == mine[c].generation[s] && (slot[s].state == SEALED || slot[s].state == FREEING) ->
                slot[s].freed = true;
                token_ended = token_ended || (token_valid && token_slot == s && token_generation == slot[s].generation)
            :: else
            fi
        }
        try_free(c, s)
    :: else
    fi
}

inline reap(c, d) /* client c cleans up after the dead client d */
{
    s = 0;
    do
    :: s < SLOTS ->
        atomic {
            ours = false;
            if
#ifndef BUG_REAP_BITS_ONLY
            :: slot[s].client == d && slot[s].state == RESERVED ->
                slot[s].state = FREE
            :: slot[s].client == d && slot[s].state == CREATING ->
                slot[s].state = FREEING;
                slot[s].freed = true;
                slot[s].client = c;
                slot[s].owners = 0;
                ours = true
            :: slot[s].client == d && slot[s].state == FREEING ->
                slot[s].client = c;
                ours = true
#endif
            :: else
            fi
        }
        if
        :: ours -> settle(c, s)
        :: else
        fi;
        REFS(s) = REFS(s) & ~BIT(d);
        PINS(s) = PINS(s) & ~BIT(d);
        try_free(c, s);
        s++
    :: else -> break
    od
}

/* ---- the processes --------------------------------------------------------------------------------------- */

/* Reset variables that are not read again, so that they do not make states differ. */
inline forget()
{
    s = 0; g = 0; gen = 0; serial = 0; k = 0;
    ok = false; ours = false; seen = false; frd = false;
    for (k : 0 .. SLOTS - 1) {
        if
        :: !mine[c].refs[k] && !mine[c].pins[k] -> mine[c].generation[k] = 0
        :: else
        fi
    }
    k = 0;
    if
    :: mine[c].magazine == NO_SLOT -> mine[c].magazine_generation = 0
    :: else
    fi
}

proctype Client(byte c)
{
    byte s, g, gen, serial, n, k;
    bool ok, ours, seen, frd;
    {
        mine[c].magazine = NO_SLOT;
        do
        :: n < (c == 0 -> STEPS_FIRST : STEPS) ->
            atomic { n++; forget() };
            if /* `skip` precedes an operation that begins with an if-else: the `else` would belong to this `if` */
            :: put(c)
#ifndef ONLY_MESSAGES
            :: k = 0; unref(c, k)
            :: k = 1; unref(c, k)
#endif
#if !defined(ONLY_MESSAGES) || defined(WITH_READS)
            :: k = 0; read_it(c, k)
            :: k = 0; end_for_all(c, k)
#endif
#if !defined(ONLY_MESSAGES) && !defined(ONLY_RESERVES)
            :: k = 1; read_it(c, k)
#endif
#ifndef ONLY_RESERVES
            :: k = 0; send(c, k)
            :: skip; receive(c)
#endif
#ifdef OLD_MESSAGES
            :: k = 1; send(c, k)
#endif
            fi
        :: else -> break
        od;
        /* leave the store: drop the refs and return the magazine */
        k = 0;
        unref(c, k);
        k = 1;
        unref(c, k);
        atomic {
            if
            :: mine[c].magazine != NO_SLOT ->
                s = mine[c].magazine;
                if
                :: slot[s].state == RESERVED && slot[s].client == c &&
                   slot[s].generation == mine[c].magazine_generation -> slot[s].state = FREE
                :: else
                fi;
                mine[c].magazine = NO_SLOT
            :: else
            fi
        }
        atomic { forget(); n = 0; finished[c] = true }
    } unless {
        atomic {
            dying == c;
            dying = CLIENTS;
            alive[c] = false;
            forget();
            n = 0;
            for (k : 0 .. SLOTS - 1) {
                mine[c].refs[k] = 0;
                mine[c].pins[k] = 0;
                mine[c].generation[k] = 0
            }
            k = 0;
            mine[c].magazine = NO_SLOT;
            mine[c].magazine_generation = 0
        }
    }
}

proctype Reaper(byte c) /* a separate client that only cleans up, also while other clients are freeing */
{
    byte s, gen, d;
    bool ours, seen, frd;
    do
    :: d < CLIENTS ->
        if
        :: !alive[d] -> reap(c, d); d++
        :: finished[d] -> d++
        fi
    :: else -> break
    od;
    /* the token in flight may never arrive; its scope then ends it */
    atomic {
        ours = false;
        if
        :: token_valid && slot[token_slot].generation == token_generation && slot[token_slot].links > 0 ->
            slot[token_slot].links--;
            ours = true
        :: else
        fi;
        token_valid = false;
        owed = 0;
        s = token_slot
    }
    if
    :: ours -> try_free(c, s)
    :: else
    fi;
    s = 0;
    do
    :: s < SLOTS ->
        assert(REFS(s) == 0 && PINS(s) == 0);
        assert(slot[s].state == FREE || (slot[s].state == RESERVED && slot[s].client == c));
        s++
    :: else -> break
    od
}

init
{
    byte c;
    atomic {
        c = 0;
        do
        :: c < CLIENTS -> mine[c].magazine = NO_SLOT; run Client(c); c++
        :: else -> break
        od;
        run Reaper(NOBODY)
    }
    do
    :: deaths < DEATHS ->
        atomic {
            dying == CLIENTS;
            if
#ifdef VICTIM
            :: !finished[VICTIM] -> dying = VICTIM; deaths++
#else
            :: alive[0] && !finished[0] -> dying = 0; deaths++
            :: alive[1] && !finished[1] -> dying = 1; deaths++
#if CLIENTS > 2
            :: alive[2] && !finished[2] -> dying = 2; deaths++
#endif
#endif
            :: else -> deaths = DEATHS
            fi
        }
    :: true -> break
    od
}
