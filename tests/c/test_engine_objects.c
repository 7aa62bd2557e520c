/*
 * Tests of objects: their bytes, holders and end of life; also of windows, edges, tokens, waiting and addresses.
 */
#include "corpses.h"
#include <sys/time.h>

/* ---- sizes ------------------------------------------------------------------------------------- */

TEST(sizes_at_every_class_boundary)
{
    prs_store *s = store_of(256 * MIB);
    for (uint32_t cls = 0; cls < PRS_CLASSES; cls++) {
        uint64_t edge = prs_class_size(cls);
        CHECK_EQ(prs_class_of(edge), cls);
        CHECK_EQ(prs_class_of(edge - 1), cls);
        if (edge < PRS_SMALL_MAX)
            CHECK_EQ(prs_class_of(edge + 1), cls + 1);
        CHECK(edge % PRS_UNIT == 0);
    }
    CHECK_EQ(prs_class_size(PRS_CLASSES - 1), PRS_SMALL_MAX);
    uint64_t sizes[3 * PRS_CLASSES + 32], n = 0;
    for (uint32_t cls = 0; cls < PRS_CLASSES; cls++)
        for (int d = -1; d <= 1; d++)
            sizes[n++] = prs_class_size(cls) + (uint64_t)(int64_t)d;
    const uint64_t more[] = {
        0,       1,   2,       63,         4095, 4096, 4097, 65535, 65537, 256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1,
        MIB - 1, MIB, MIB + 1, 5 * MIB + 3};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++)
        sizes[n++] = more[i];
    prs_oid id[3 * PRS_CLASSES + 32];
    for (uint64_t i = 0; i < n; i++)
        id[i] = put(s, sizes[i], i + 1);
    for (uint64_t i = 0; i < n; i++)
        CHECK_EQ(verify(s, &id[i], sizes[i], i + 1), PRS_OK);
    CHECK_STORE(s);
    CHECK_EQ(stats_of(s).objects, n);
    for (uint64_t i = 0; i < n; i++)
        prs_unref(s, &id[i]);
    for (uint64_t i = 0; i < n; i++)
        CHECK_EQ(prs_state(s, &id[i]), PRS_E_LOST);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(impossible_sizes_are_refused)
{
    prs_store *s = store_of(8 * MIB);
    prs_draft d;
    const uint64_t sizes[] = {8 * MIB + 1, UINT32_MAX, (uint64_t)1 << 44, INT64_MAX, UINT64_MAX - 4096, UINT64_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (unsigned flags = 0; flags < 4; flags++) {
            prs_error e = {0};
            CHECK_EQ(prs_alloc(s, sizes[i], flags, &d, &e), PRS_E_FULL);
            CHECK_EQ(e.capacity, 8 * MIB);
            CHECK(e.what[0]);
        }
    prs_error e = {0};
    CHECK_EQ(prs_alloc(s, 8 * MIB, 0, &d, &e), PRS_OK); /* allocate the whole store */
    uint8_t byte = 1;
    CHECK_EQ(prs_write(s, &d, 8 * MIB, &byte, 1, &e), PRS_E_INVAL);
    CHECK_EQ(prs_write(s, &d, UINT64_MAX, &byte, 2, &e), PRS_E_INVAL);
    prs_abort(s, &d);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(strided_writes_gather)
{
    prs_store *s = store_of(64 * MIB);
    enum { R = 700, C = 300 };
    for (int big = 0; big < 2; big++) {
        ptrdiff_t rows = big ? R : 30, shape[2] = {rows, C}, strides[2] = {(ptrdiff_t)sizeof(uint32_t), 0};
        strides[1] = rows * (ptrdiff_t)sizeof(uint32_t); /* the source is in Fortran order, the result in C order */
        uint32_t *src = malloc((size_t)rows * C * sizeof *src);
        for (ptrdiff_t i = 0; i < rows * C; i++)
            src[i] = (uint32_t)(i * 2654435761u);
        prs_draft d;
        prs_error e = {0};
        uint64_t n = (uint64_t)rows * C * sizeof *src;
        CHECK_EQ(prs_alloc(s, n + 8, 0, &d, &e), PRS_OK);
        CHECK_EQ(prs_write_strided(s, &d, 8, src, 2, shape, strides, sizeof *src, &e), PRS_OK);
        CHECK_EQ(prs_write_strided(s, &d, 16, src, 2, shape, strides, sizeof *src, &e), PRS_E_INVAL);
        CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
        prs_view v;
        CHECK_EQ(prs_pin(s, &d.id, &v), PRS_OK);
        const uint32_t *out = (const uint32_t *)(v.data + 8);
        for (ptrdiff_t r = 0; r < rows; r++)
            for (ptrdiff_t c = 0; c < C; c++)
                CHECK_EQ(out[r * C + c], src[c * rows + r]);
        prs_unpin(s, &d.id);
        prs_unref(s, &d.id);
        free(src);
    }
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(views_cannot_be_written)
{
    prs_store *s = store_of(8 * MIB);
    prs_oid small = put(s, 100, 1), large = put(s, MIB, 2);
    const prs_oid *ids[] = {&small, &large};
    for (int i = 0; i < 2; i++) {
        prs_view v;
        CHECK_EQ(prs_pin(s, ids[i], &v), PRS_OK);
        pid_t pid = fork();
        if (pid == 0) {
            child_setup(10);
            signal(SIGSEGV, SIG_DFL);
            if (mprotect((void *)((uintptr_t)v.data & ~4095ul), 4096, PROT_READ | PROT_WRITE) == 0)
                _exit(3);
            *(volatile uint8_t *)v.data = 0;
            _exit(4);
        }
        int status = reap_child(pid);
        CHECK_KILLED(status, SIGSEGV);
        prs_unpin(s, ids[i]);
    }
    CHECK_EQ(verify(s, &small, 100, 1), PRS_OK);
    CHECK_EQ(verify(s, &large, MIB, 2), PRS_OK);
    prs_reap_dead(s, 0);
    CHECK_STORE(s);
    close_store(s);
}

/* ---- holding and ending ------------------------------------------------------------------------ */

TEST(refs_and_pins_hold)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    prs_oid id = put(s, 300, 7);
    prs_view v, w;
    CHECK_EQ(prs_ref(s, &id), PRS_OK);
    prs_unref(s, &id);
    CHECK_EQ(prs_state(s, &id), PRS_OK);
    CHECK_EQ(prs_pin(t, &id, &v), PRS_OK);
    CHECK_EQ(prs_pin(t, &id, &w), PRS_OK);
    CHECK(v.data == w.data);
    prs_unref(s, &id); /* only the views of t are left */
    CHECK_EQ(verify(s, &id, 300, 7), PRS_OK);
    prs_unpin(t, &id);
    CHECK(content_right(v.data, 300, 7));
    CHECK_EQ(prs_ref(t, &id), PRS_OK);
    prs_unpin(t, &id);
    CHECK_EQ(verify(s, &id, 300, 7), PRS_OK);
    prs_unref(t, &id);
    CHECK_EQ(prs_state(s, &id), PRS_E_LOST);
    CHECK_EQ(prs_pin(s, &id, &v), PRS_E_LOST);
    CHECK_EQ(prs_ref(s, &id), PRS_E_LOST);
    prs_unref(s, &id); /* superfluous drops have no effect */
    prs_unpin(s, &id);
    CHECK_EMPTY(s);
    close_store(t);
    close_store(s);
}

TEST(free_ends_for_everyone_but_views)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    for (int round = 0; round < 2; round++) { /* in the second round the slots are reused */
        prs_oid id = put(s, 5000, 3);
        prs_view v;
        prs_error e = {0};
        CHECK_EQ(prs_ref(t, &id), PRS_OK);
        CHECK_EQ(prs_pin(t, &id, &v), PRS_OK);
        CHECK_EQ(prs_free(s, &id, &e), PRS_OK);
        CHECK_EQ(prs_free(s, &id, &e), PRS_OK);
        prs_view none;
        CHECK_EQ(prs_pin(t, &id, &none), PRS_E_FREED);
        CHECK_EQ(prs_pin(s, &id, &none), PRS_E_FREED);
        CHECK_EQ(prs_state(t, &id), PRS_E_FREED);
        prs_oid other = put(s, 5000, 4); /* this put must not reuse the bytes that `v` still uses */
        CHECK(content_right(v.data, 5000, 3));
        prs_unpin(t, &id);
        CHECK_EQ(prs_state(s, &id), PRS_E_FREED);
        CHECK_EQ(prs_free(s, &id, &e), PRS_OK);
        prs_oid again = put(s, 5000, 5);
        CHECK_EQ(verify(t, &again, 5000, 5), PRS_OK);
        prs_unref(t, &id); /* has no effect */
        prs_unref(s, &id);
        CHECK_EQ(verify(t, &again, 5000, 5), PRS_OK);
        prs_unref(s, &other);
        prs_unref(s, &again);
    }
    CHECK_EMPTY(s);
    close_store(t);
    close_store(s);
}

/* After a slot has been reused, holds of the earlier object do not count, and dropping them has no effect. */
TEST(slots_are_reused_and_old_refs_are_void)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    prs_error e = {0};
    prs_oid old = put(s, 64, 1);
    CHECK_EQ(prs_ref(t, &old), PRS_OK);
    CHECK_EQ(prs_ref(t, &old), PRS_OK);
    CHECK_EQ(prs_free(s, &old, &e), PRS_OK);
    prs_oid now = put(s, 64, 2);
    CHECK_EQ(now.slot, old.slot); /* slots are reused last in, first out */
    CHECK(now.generation != old.generation && now.serial > old.serial);
    CHECK_EQ(prs_state(t, &old), PRS_E_FREED);
    prs_unref(t, &old);
    CHECK_EQ(prs_ref(t, &now), PRS_OK);
    prs_unref(t, &old); /* must not drop the ref to `now` */
    prs_unref(s, &now);
    CHECK_EQ(verify(t, &now, 64, 2), PRS_OK);
    prs_unref(t, &now);
    CHECK_EQ(prs_state(s, &now), PRS_E_LOST);
    CHECK_EMPTY(s);
    close_store(t);
    close_store(s);
}

TEST(generation_wraps)
{
    prs_store *s = store_of(8 * MIB);
    prs_oid first = put(s, 64, 1);
    prs_unref(s, &first);
    prs_magazines_flush(s);
    CHECK_EMPTY(s);
    for (uint32_t i = 0; i < s->super->published; i++) { /* the store is idle, so all slots are FREE */
        prs_slot *slot = prs_slot_at(s, i);
        CHECK_EQ(prs_word_state(slot->word), PRS_STATE_FREE);
        slot->word = prs_word(UINT32_MAX - 1, 0, PRS_STATE_FREE);
    }
    CHECK_STORE(s);
    prs_oid ids[8];
    for (int round = 0; round < 8; round++) {
        ids[round] = put(s, 64, (uint64_t)round);
        for (int before = 0; before < round; before++) {
            prs_view v;
            CHECK_EQ(prs_pin(s, &ids[before], &v), PRS_E_LOST);
            CHECK_EQ(prs_ref(s, &ids[before]), PRS_E_LOST);
        }
        CHECK_EQ(verify(s, &ids[round], 64, (uint64_t)round), PRS_OK);
        CHECK_EQ(ids[round].generation, (uint32_t)(UINT32_MAX + (uint32_t)round));
        prs_unref(s, &ids[round]);
    }
    /* After four billion objects in one slot, slot and generation repeat, but the serials differ. */
    prs_slot *slot = prs_slot_at(s, ids[0].slot);
    prs_oid last = put(s, 64, 9);
    CHECK_EQ(last.slot, ids[0].slot);
    prs_oid forged = last;
    forged.serial = ids[0].serial;
    prs_view v;
    CHECK_EQ(prs_pin(s, &forged, &v), PRS_E_LOST);
    CHECK_EQ(prs_ref(s, &forged), PRS_E_LOST);
    CHECK_EQ(prs_state(s, &forged), PRS_E_LOST);
    CHECK_EQ(prs_load_seqcst(&prs_pins(s, slot)[s->my_word]) & s->my_bit, 0);
    CHECK_EQ(verify(s, &last, 64, 9), PRS_OK);
    prs_unref(s, &last);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(ids_that_make_no_sense)
{
    prs_store *s = store_of(8 * MIB);
    prs_oid id = put(s, 64, 1), bad;
    prs_view v;
    prs_error e = {0};
    bad = id, bad.store ^= 1;
    CHECK_EQ(prs_pin(s, &bad, &v), PRS_E_FOREIGN);
    CHECK_EQ(prs_ref(s, &bad), PRS_E_FOREIGN);
    CHECK_EQ(prs_free(s, &bad, &e), PRS_E_FOREIGN);
    const uint32_t slots[] = {s->super->published, s->max_slots, UINT32_MAX - 1, UINT32_MAX, 0x80000000u};
    for (size_t i = 0; i < sizeof slots / sizeof *slots; i++) {
        bad = id, bad.slot = slots[i];
        CHECK_EQ(prs_pin(s, &bad, &v), PRS_E_LOST);
        CHECK_EQ(prs_ref(s, &bad), PRS_E_LOST);
        CHECK_EQ(prs_state(s, &bad), PRS_E_LOST);
        CHECK_EQ(prs_wait(s, &bad, 0), PRS_E_LOST);
        CHECK_EQ(prs_free(s, &bad, &e), PRS_OK);
        prs_token token;
        CHECK_EQ(prs_token_take(s, &bad, PRS_TOKEN_ONCE, &token), PRS_E_LOST);
    }
    bad = id, bad.generation++;
    CHECK_EQ(prs_pin(s, &bad, &v), PRS_E_LOST);
    CHECK_EQ(prs_free(s, &bad, &e), PRS_OK);
    CHECK_EQ(verify(s, &id, 64, 1), PRS_OK);
    CHECK_STORE(s);
    close_store(s);
}

TEST(closed_handles_keep_views)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    prs_oid id = put(s, MIB, 5);
    prs_view v;
    CHECK_EQ(prs_pin(t, &id, &v), PRS_OK);
    prs_unref(s, &id);
    prs_close(t);
    prs_close(t);
    prs_dispose(t); /* has no effect while pins are left */
    CHECK(content_right(v.data, MIB, 5));
    CHECK_EQ(prs_pin(t, &id, &v), PRS_E_CLOSED);
    CHECK_EQ(prs_ref(t, &id), PRS_E_CLOSED);
    prs_error e = {0};
    prs_draft d;
    CHECK_EQ(prs_alloc(t, 10, 0, &d, &e), PRS_E_CLOSED);
    CHECK_EQ(prs_check(t, &e), PRS_E_CLOSED);
    CHECK_EQ(verify(s, &id, MIB, 5), PRS_OK);
    prs_unpin(t, &id);
    CHECK_EQ(prs_state(s, &id), PRS_E_LOST);
    CHECK_CLIENTS(s, 1);
    prs_dispose(t);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(closing_gives_everything_back)
{
    prs_store *s = store_of(32 * MIB), *t = client_of(s);
    prs_draft d[3];
    prs_error e = {0};
    for (int i = 0; i < 200; i++)
        put(t, (uint64_t)i * 700, (uint64_t)i); /* prs_close drops the refs */
    CHECK_EQ(prs_alloc(t, 100, 0, &d[0], &e), PRS_OK);
    CHECK_EQ(prs_alloc(t, MIB, 0, &d[1], &e), PRS_OK);
    CHECK_EQ(prs_alloc(t, MIB, PRS_ALLOC_WINDOW, &d[2], &e), PRS_OK);
    uint8_t *window = d[2].window;
    window[0] = 1;
    prs_close(t);
    prs_oid fresh = put(s, 2 * MIB, 8);
    memset(window, 0xEE, MIB); /* a window whose object was not sealed is now writable private memory */
    memset(d[0].dst, 0xEE, 100);
    CHECK_EQ(verify(s, &fresh, 2 * MIB, 8), PRS_OK);
    prs_unref(s, &fresh);
    CHECK_EMPTY(s);
    prs_dispose(t);
    close_store(s);
}

/* ---- replacing a hold by another after the freeing client's scan ---------------------------------- */

static void look_at_the_pins_again(int sig)
{
    (void)sig;
    prs_failpoint_arm("held_pins", PRS_FAIL_STOP, 1, 0);
}

static void let_go_in_steps(prs_store *t, struct told *told)
{
    signal(SIGCONT, look_at_the_pins_again);
    await(&told->go);
    prs_failpoint_arm("held_pins", PRS_FAIL_STOP, 1, 0);
    prs_failpoint_arm("freeing", PRS_FAIL_STOP, 1, 0);
    prs_unref(t, &told->id[0]);
}

static void stops_again(pid_t pid)
{
    int status;
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK_MSG(WIFSTOPPED(status), "the child should stop: status %x", (unsigned)status);
}

/* The freeing client first reads the pins, then the refs. The object is held all the time, but at the moment when that
 * client reads the refs, only a pin holds it. */
TEST(a_hold_traded_behind_the_freers_look_counts)
{
    SEVERAL_PROCESSES();
    if (prs_failpoint_names()[0] == NULL)
        SKIP("built without failpoints");
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    struct told *told = new_told();
    prs_oid id = told->id[0] = put(t, 640, 5);
    prs_view v;
    pid_t freer = child_of(t, told, let_go_in_steps);
    prs_unref(t, &id); /* now only the child holds the object */
    say(&told->go);
    stops_again(freer); /* the first scan of `freer` has read the pins, but not the refs */
    CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
    kill(freer, SIGCONT);
    stops_again(freer); /* `freer` saw no holder and has set FREEING, but has not begun the second scan */
    CHECK_EQ(prs_word_state(prs_load_seqcst(&prs_slot_at(s, id.slot)->word)), PRS_STATE_FREEING);
    CHECK_EQ(prs_ref(s, &id), PRS_OK);
    prs_unpin(s, &id);
    kill(freer, SIGCONT);
    stops_again(freer); /* `freer` saw no pin, but has not read the refs yet */
    CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
    prs_unref(s, &id);
    int status;
    do {
        kill(freer, SIGCONT);
        CHECK_EQ(waitpid(freer, &status, WUNTRACED), freer);
    } while (WIFSTOPPED(status));
    CHECK_EXITED(status);
    CHECK_EQ(prs_state(s, &id), PRS_OK);
    prs_oid other = put(t, 640, 6);
    CHECK(content_right(v.data, 640, 5));
    CHECK_STORE(s);
    prs_unpin(s, &id);
    CHECK_EQ(prs_state(s, &id), PRS_E_LOST);
    prs_unref(t, &other);
    prs_reap_dead(s, 0);
    CHECK_EMPTY(s);
    close_store(t);
    close_store(s);
    munmap(told, sizeof *told);
}

/* ---- windows ---------------------------------------------------------------------------------------- */

static void dies_of_writing(volatile uint8_t *at)
{
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(10);
        signal(SIGSEGV, SIG_DFL);
        *at = 1;
        _exit(0);
    }
    int status = reap_child(pid);
    CHECK_KILLED(status, SIGSEGV);
}

TEST(sealing_revokes_the_window)
{
    prs_store *s = store_of(32 * MIB), *t = client_of(s);
    const uint64_t sizes[] = {0, 1, 5000, 4096, 3 * MIB + 1};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        prs_draft d;
        prs_error e = {0};
        CHECK_EQ(prs_alloc(s, sizes[k], PRS_ALLOC_WINDOW, &d, &e), PRS_OK);
        CHECK(d.window && ((uintptr_t)d.window & 4095) == 0);
        uint8_t *window = d.window;
        content(window, sizes[k], k);
        prs_view v;
        CHECK_EQ(prs_pin(t, &d.id, &v), PRS_E_AGAIN);
        CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
        CHECK(content_right(window, sizes[k], k));
        CHECK_EQ(mprotect(window, 4096, PROT_READ | PROT_WRITE), -1);
        CHECK_EQ(errno, EACCES);
        dies_of_writing(window);
        prs_reap_dead(s, 0); /* the child held the same objects as this process */
        CHECK_EQ(verify(t, &d.id, sizes[k], k), PRS_OK);
        prs_unref(s, &d.id);
        CHECK_EQ(verify(t, &d.id, sizes[k], k), PRS_OK); /* the window holds the object */
        prs_window_close(s, &d);
        CHECK_EQ(prs_state(t, &d.id), PRS_E_LOST);
    }
    prs_reap_dead(s, 0);
    CHECK_EMPTY(s);
    close_store(t);
    close_store(s);
}

TEST(aborted_windows_show_zeros_or_nothing)
{
    prs_store *s = store_of(32 * MIB);
    prs_draft d;
    prs_error e = {0};
    CHECK_EQ(prs_alloc(s, MIB, PRS_ALLOC_WINDOW, &d, &e), PRS_OK);
    uint8_t *window = d.window;
    memset(window, 7, MIB);
    prs_oid id = d.id;
    prs_abort_keep_window(s, &d);
    CHECK_EQ(prs_state(s, &id), PRS_E_LOST);
    prs_oid other = put(s, MIB, 1);
    CHECK_EQ(window[0], 0);
    memset(window, 9, MIB); /* the memory is private now */
    CHECK_EQ(verify(s, &other, MIB, 1), PRS_OK);
    munmap(window, MIB);
    prs_unref(s, &other);
    CHECK_EQ(prs_alloc(s, MIB, PRS_ALLOC_WINDOW, &d, &e), PRS_OK);
    window = d.window;
    prs_abort(s, &d);
    CHECK_EQ(msync(window, 4096, MS_ASYNC), -1); /* the window is unmapped */
    CHECK_EMPTY(s);
    close_store(s);
}

/* In a forked child the parent's open windows are read-only, and the child can neither seal nor keep the drafts. */
TEST(windows_belong_to_the_parent)
{
    prs_store *s = store_of(32 * MIB);
    prs_draft d;
    prs_error e = {0};
    CHECK_EQ(prs_alloc(s, MIB, PRS_ALLOC_WINDOW, &d, &e), PRS_OK);
    uint8_t *window = d.window;
    window[1] = 42;
    dies_of_writing(window);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(10);
        prs_error mine = {0};
        CHECK_EQ(window[1], 42);
        CHECK_EQ(prs_seal(s, &d, &mine), PRS_E_INVAL);
        prs_abort_keep_window(s, &d);
        CHECK_STORE(s);
        _exit(0);
    }
    int status = reap_child(pid);
    CHECK_EXITED(status);
    content(window, MIB, 3);
    CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
    CHECK_EQ(verify(s, &d.id, MIB, 3), PRS_OK);
    prs_window_close(s, &d);
    prs_reap_dead(s, 0);
    prs_unref(s, &d.id);
    CHECK_EMPTY(s);
    close_store(s);
}

/* If the child aborts its copy of the draft, this releases the inherited ref immediately. */
TEST(child_lets_go_of_the_parents_draft)
{
    prs_store *s = store_of(32 * MIB);
    prs_draft d;
    prs_error e = {0};
    int go[2], done[2];
    CHECK(pipe(go) == 0 && pipe(done) == 0);
    CHECK_EQ(prs_alloc(s, 1000, 0, &d, &e), PRS_OK);
    content(d.dst, 1000, 2);
    pid_t pid = fork();
    if (pid == 0) {
        child_setup(10);
        char c;
        prs_abort(s, &d);
        CHECK(write(done[1], "x", 1) == 1);
        CHECK(read(go[0], &c, 1) == 1); /* the client is alive, but holds nothing */
        _exit(0);
    }
    char c;
    CHECK(read(done[0], &c, 1) == 1);
    CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
    CHECK_EQ(verify(s, &d.id, 1000, 2), PRS_OK);
    prs_unref(s, &d.id);
    int state = prs_state(s, &d.id);
    CHECK(write(go[1], "x", 1) == 1);
    int status = reap_child(pid);
    CHECK_EXITED(status);
    CHECK_EQ(state, PRS_E_LOST);
    for (int i = 0; i < 2; i++)
        close(go[i]), close(done[i]);
    close_store(s);
}

/* ---- finding and copying -------------------------------------------------------------------------- */

TEST(find_names_the_pinned_object_around_an_address)
{
    prs_store *s = store_of(32 * MIB), *t = client_of(s);
    prs_oid a = put(s, 1000, 1), b = put(s, MIB, 2), found;
    prs_view va, vb, vt;
    uint64_t at;
    CHECK_EQ(prs_pin(s, &a, &va), PRS_OK);
    CHECK_EQ(prs_pin(s, &b, &vb), PRS_OK);
    CHECK_EQ(prs_find(s, va.data + 10, 990, &found, &at), PRS_OK);
    CHECK_MEM(&found, &a, sizeof a);
    CHECK_EQ(at, 10);
    CHECK_EQ(prs_find(s, vb.data, MIB, &found, &at), PRS_OK);
    CHECK_MEM(&found, &b, sizeof b);
    CHECK_EQ(prs_find(s, va.data + 10, 991, &found, &at), PRS_E_NOTFOUND); /* the range ends after the object */
    CHECK_EQ(prs_find(s, va.data - 1, 2, &found, &at), PRS_E_NOTFOUND);
    CHECK_EQ(prs_find(s, &at, 8, &found, &at), PRS_E_NOTFOUND); /* this is not an address of the store */
    CHECK_EQ(prs_find(s, va.data, UINT64_MAX, &found, &at), PRS_E_NOTFOUND);
    CHECK_EQ(prs_pin(t, &a, &vt), PRS_OK);
    CHECK_EQ(prs_find(s, vt.data, 8, &found, &at), PRS_E_NOTFOUND); /* this address is in another handle's mapping */
    prs_unpin(t, &a);
    prs_error e = {0};
    CHECK_EQ(prs_free(t, &a, &e), PRS_OK);
    CHECK_EQ(prs_find(s, va.data, 8, &found, &at), PRS_E_FREED);
    prs_unpin(s, &a);
    prs_unpin(s, &b);
    CHECK_EQ(prs_find(s, vb.data, 8, &found, &at), PRS_E_NOTFOUND); /* the object is not pinned */
    close_store(t);
    close_store(s);
}

TEST(copy_on_write_maps_leave_the_object_alone)
{
    prs_store *s = store_of(32 * MIB);
    for (int unaligned = 0; unaligned < 2; unaligned++) {
        uint64_t size = unaligned ? 70 * 1024 : MIB;
        prs_oid id = put(s, size, 4);
        prs_view v;
        void *map;
        size_t len;
        uint8_t *data;
        prs_error e = {0};
        CHECK_EQ(prs_pin(s, &id, &v), PRS_OK);
        CHECK_EQ(prs_cow_open(s, &id, &v, &map, &len, &data, &e), PRS_OK);
        CHECK(content_right(data, size, 4));
        memset(data, 0xAB, size);
        CHECK(content_right(v.data, size, 4));
        CHECK_EQ(data[size - 1], 0xAB);
        prs_cow_close(map, len);
        prs_unpin(s, &id);
        prs_unref(s, &id);
    }
    CHECK_EMPTY(s);
    close_store(s);
}

/* ---- edges ------------------------------------------------------------------------------------------ */

static prs_oid put_naming(prs_store *s, const prs_oid *inner, int n)
{
    prs_draft d;
    prs_error e = {0};
    CHECK_EQ(prs_alloc(s, 64, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
    for (int i = 0; i < n; i++) {
        int rc = prs_add_edge(s, &d, &inner[i], &e);
        CHECK_MSG(rc == PRS_OK, "prs_add_edge: %d %s", rc, e.what);
    }
    content(d.dst, 64, d.id.serial);
    CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
    return d.id;
}

TEST(a_chain_of_100000_falls)
{
    prs_store *s = store_with((prs_options){.capacity = 256 * MIB, .max_objects = 200000});
    enum { N = SANITIZED ? 20000 : 100000 };
    prs_oid last = put(s, 64, 1);
    for (int i = 0; i < N; i++) {
        prs_oid next = put_naming(s, &last, 1);
        prs_unref(s, &last);
        last = next;
    }
    prs_stats before = stats_of(s);
    CHECK_EQ(before.objects, N + 1);
    CHECK_EQ(before.edges, N);
    CHECK_STORE(s);
    prs_unref(s, &last);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(a_diamond_holds_its_foot_till_both_sides_are_gone)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    prs_oid foot = put(s, 2000, 6);
    prs_oid left = put_naming(s, &foot, 1);
    prs_oid twice[2] = {foot, foot};
    CHECK_EQ(prs_ref(t, &foot), PRS_OK);
    prs_oid right = put_naming(t, twice, 2);
    prs_unref(t, &foot);
    prs_oid sides[2] = {left, right};
    CHECK_EQ(prs_ref(s, &right), PRS_OK);
    prs_unref(t, &right);
    prs_oid top = put_naming(s, sides, 2);
    prs_unref(s, &foot);
    prs_unref(s, &left);
    prs_unref(s, &right);
    CHECK_EQ(stats_of(s).edges, 5);
    CHECK_STORE(s);
    CHECK_EQ(prs_ref(t, &left), PRS_OK);
    prs_unref(s, &top);
    prs_deferred_run_all(s);
    CHECK_EQ(prs_state(s, &right), PRS_E_LOST);
    CHECK_EQ(verify(s, &foot, 2000, 6), PRS_OK);
    CHECK_STORE(s);
    prs_unref(t, &left);
    prs_deferred_run_all(t);
    prs_deferred_run_all(s);
    CHECK_EQ(prs_state(s, &foot), PRS_E_LOST);
    CHECK_EMPTY(s);
    close_store(t);
    close_store(s);
}

TEST(edges_and_free)
{
    prs_store *s = store_of(8 * MIB);
    prs_error e = {0};
    prs_oid inner = put(s, 100, 1), outer = put_naming(s, &inner, 1);
    prs_unref(s, &inner);
    CHECK_EQ(prs_free(s, &inner, &e), PRS_OK); /* an edge of kind EDGE does not keep a freed object */
    CHECK_EQ(prs_state(s, &inner), PRS_E_FREED);
    prs_deferred_run_all(s);
    CHECK_STORE(s);
    prs_draft d;
    CHECK_EQ(prs_alloc(s, 64, PRS_ALLOC_ORDERED, &d, &e), PRS_OK);
    CHECK(prs_add_edge(s, &d, &inner, &e) < 0);
    CHECK_EQ(prs_add_edge(s, &d, &d.id, &e), PRS_E_INVAL); /* an object cannot refer to itself */
    prs_draft younger;
    CHECK_EQ(prs_alloc(s, 64, PRS_ALLOC_ORDERED, &younger, &e), PRS_OK);
    CHECK_EQ(prs_add_edge(s, &d, &younger.id, &e), PRS_E_INVAL);
    CHECK_EQ(prs_add_edge(s, &younger, &outer, &e), PRS_OK);
    prs_unref(s, &outer);
    CHECK_EQ(prs_state(s, &outer), PRS_OK);
    prs_abort(s, &younger); /* the edges of a draft end with the draft */
    prs_deferred_run_all(s);
    CHECK_EQ(prs_state(s, &outer), PRS_E_LOST);
    prs_abort(s, &d);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(the_table_of_links_grows_and_is_reused)
{
    prs_store *s = store_of(32 * MIB);
    enum { N = 3 * PRS_LINK_CHUNK };
    prs_oid id = put(s, 64, 1);
    prs_token *token = malloc(N * sizeof *token);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < N; i++)
            CHECK_EQ(prs_token_take(s, &id, i % 2 ? PRS_TOKEN_ONCE : PRS_TOKEN_STICKY, &token[i]), PRS_OK);
        CHECK_EQ(stats_of(s).in_flight, N);
        CHECK_STORE(s);
        for (int i = 0; i < N; i++)
            prs_token_drop(s, &id, &token[i]);
        CHECK_EQ(stats_of(s).in_flight, 0);
    }
    CHECK(s->super->links_published <= N + PRS_LINK_CHUNK);
    prs_unref(s, &id);
    CHECK_EMPTY(s);
    free(token);
    close_store(s);
}

/* ---- tokens ------------------------------------------------------------------------------------------- */

TEST(tokens_hold_until_claimed)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    prs_oid id = put(s, 500, 9);
    prs_token token;
    CHECK_EQ(prs_token_take(s, &id, PRS_TOKEN_ONCE, &token), PRS_OK);
    prs_unref(s, &id);
    CHECK_EQ(stats_of(s).in_flight, 1);
    CHECK_EQ(prs_token_claim(t, &id, &token), PRS_OK);
    CHECK_EQ(stats_of(s).in_flight, 0);
    CHECK_EQ(prs_token_claim(t, &id, &token), PRS_OK); /* loading the same bytes again only adds a ref */
    prs_token other;
    CHECK_EQ(prs_token_take(t, &id, PRS_TOKEN_ONCE, &other), PRS_OK);
    CHECK_EQ(other.index, token.index); /* the record is reused */
    CHECK_EQ(prs_token_claim(t, &id, &token), PRS_OK);
    CHECK_EQ(stats_of(s).in_flight, 1); /* the stale token did not end the token of another message */
    for (int i = 0; i < 3; i++)
        prs_unref(t, &id);
    CHECK_EQ(verify(s, &id, 500, 9), PRS_OK);
    prs_token_drop(s, &id, &token);
    CHECK_EQ(prs_state(s, &id), PRS_OK);
    prs_token_drop(s, &id, &other);
    prs_token_drop(s, &id, &other);
    CHECK_EQ(prs_state(s, &id), PRS_E_LOST);
    CHECK_EMPTY(s);
    close_store(t);
    close_store(s);
}

TEST(tokens_of_a_freed_object_leave_no_record)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    prs_error e = {0};
    for (int i = 0; i < 2 * (int)PRS_LINK_CHUNK; i++) {
        prs_oid id = put(s, 64, 1);
        prs_token token;
        CHECK_EQ(prs_token_take(s, &id, PRS_TOKEN_ONCE, &token), PRS_OK);
        CHECK_EQ(prs_free(s, &id, &e), PRS_OK);
        CHECK_EQ(prs_token_claim(t, &id, &token), PRS_E_FREED); /* the message arrives after prs_free */
        prs_unref(s, &id);
    }
    CHECK_EQ(stats_of(s).in_flight, 0);
    CHECK_EMPTY(s);
    close_store(t);
    close_store(s);
}

/* ---- waiting -------------------------------------------------------------------------------------------- */

struct waiting {
    prs_store *s;
    prs_oid id;
    int rc;
};

static void *wait_for_it(void *arg)
{
    struct waiting *w = arg;
    do
        w->rc = prs_wait(w->s, &w->id, -1);
    while (w->rc == PRS_E_TIMEOUT || w->rc == PRS_E_INTR);
    return NULL;
}

TEST(waiters_are_woken_by_seal_and_abort)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    /* Check that the waiter is woken before its current slice ends; on a busy machine some attempts take longer than a
     * slice. */
    for (int aborts = 0, goes = 0; aborts < 2; goes++) {
        prs_draft d;
        prs_error e = {0};
        pthread_t thread[3];
        struct waiting w[3];
        CHECK_EQ(prs_alloc(s, 64, 0, &d, &e), PRS_OK);
        CHECK_EQ(prs_wait(t, &d.id, 0), PRS_E_TIMEOUT);
        CHECK_EQ(prs_ref(t, &d.id), PRS_OK);
        for (int i = 0; i < 3; i++) {
            w[i] = (struct waiting){i ? t : s, d.id, 1};
            pthread_create(&thread[i], NULL, wait_for_it, &w[i]);
        }
        prs_os_sleep(30 * PRS_MS);
        uint32_t epoch = prs_epoch(t);
        uint64_t start = test_now_ns();
        if (aborts)
            prs_abort(s, &d);
        else
            CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
        for (int i = 0; i < 3; i++)
            pthread_join(thread[i], NULL);
        bool woken = test_now_ns() - start < (SANITIZED ? 1000 : 80) * 1000000ull;
        CHECK(woken || goes < 200);
        for (int i = 0; i < 3; i++)
            CHECK_EQ(w[i].rc, aborts ? PRS_E_LOST : PRS_OK);
        CHECK(prs_epoch(t) != epoch);
        CHECK_EQ(prs_wait(t, &d.id, -1), aborts ? PRS_E_LOST : PRS_OK);
        prs_unref(t, &d.id);
        if (!aborts)
            prs_unref(s, &d.id);
        aborts += woken;
    }
    CHECK_EMPTY(s);
    close_store(t);
    close_store(s);
}

static void *wait_for_epoch(void *arg)
{
    struct waiting *w = arg;
    uint32_t seen = prs_epoch(w->s);
    int rc = prs_wait_any(w->s, &w->id);
    while (rc == PRS_E_AGAIN) {
        rc = prs_wait_epoch(w->s, seen, PRS_SECOND);
        seen = prs_epoch(w->s);
        rc = prs_wait_any(w->s, &w->id);
    }
    w->rc = rc;
    return NULL;
}

TEST(the_epoch_wakes_who_waits_for_many)
{
    prs_store *s = store_of(8 * MIB), *t = client_of(s);
    bool woken = false;
    /* Check that the waiter is woken before its current slice ends; on a busy machine some attempts take longer than a
     * slice. */
    for (int goes = 0; goes < 200 && !woken; goes++) {
        prs_draft d;
        prs_error e = {0};
        CHECK_EQ(prs_alloc(s, 64, 0, &d, &e), PRS_OK);
        struct waiting w = {t, d.id, 1};
        pthread_t thread;
        pthread_create(&thread, NULL, wait_for_epoch, &w);
        prs_os_sleep(30 * PRS_MS);
        uint64_t start = test_now_ns();
        CHECK_EQ(prs_seal(s, &d, &e), PRS_OK);
        pthread_join(thread, NULL);
        woken = test_now_ns() - start < (SANITIZED ? 1000 : 80) * 1000000ull;
        CHECK_EQ(w.rc, PRS_OK);
        prs_unref(s, &d.id);
    }
    CHECK(woken);
    CHECK_EQ(prs_wait_epoch(t, prs_epoch(t), 0), PRS_E_TIMEOUT);
    CHECK_EQ(prs_wait_epoch(t, prs_epoch(t) - 1, -1), PRS_OK);
    close_store(t);
    close_store(s);
}

static void nothing(int sig)
{
    (void)sig;
}

TEST(a_signal_ends_the_wait)
{
    prs_store *s = store_of(8 * MIB);
    prs_draft d;
    prs_error e = {0};
    CHECK_EQ(prs_alloc(s, 64, 0, &d, &e), PRS_OK);
    struct sigaction action = {.sa_handler = nothing}, old;
    sigaction(SIGALRM, &action, &old);
    /* Send signals repeatedly, because the first one may arrive before the wait begins. */
    struct itimerval timer = {.it_value = {0, 20000}, .it_interval = {0, 20000}}, none = {0};
    setitimer(ITIMER_REAL, &timer, NULL);
    CHECK_EQ(prs_wait(s, &d.id, -1), PRS_E_INTR);
    CHECK_EQ(prs_wait_epoch(s, prs_epoch(s), -1), PRS_E_INTR);
    setitimer(ITIMER_REAL, &none, NULL);
    sigaction(SIGALRM, &old, NULL);
    prs_abort(s, &d);
    CHECK_EMPTY(s);
    close_store(s);
}

TEST(the_creators_death_ends_the_wait)
{
    for (int epoch = 0; epoch < 2; epoch++) {
        prs_store *s = store_of(8 * MIB);
        int pipes[2];
        CHECK(pipe(pipes) == 0);
        pid_t pid = fork();
        if (pid == 0) {
            child_setup(10);
            prs_draft d;
            prs_error e = {0};
            CHECK_EQ(prs_alloc(s, 64, 0, &d, &e), PRS_OK);
            CHECK(write(pipes[1], &d.id, sizeof d.id) == sizeof d.id);
            for (;;)
                pause();
        }
        prs_oid id;
        CHECK(read(pipes[0], &id, sizeof id) == sizeof id);
        CHECK_EQ(prs_ref(s, &id), PRS_OK);
        CHECK_EQ(prs_wait(s, &id, PRS_MS), PRS_E_TIMEOUT);
        struct waiting w = {s, id, 1};
        pthread_t thread;
        pthread_create(&thread, NULL, epoch ? wait_for_epoch : wait_for_it, &w);
        prs_os_sleep(20 * PRS_MS);
        kill(pid, SIGKILL);
        pthread_join(thread, NULL);
        CHECK_EQ(w.rc, PRS_E_LOST);
        int status = reap_child(pid);
        CHECK_KILLED(status, SIGKILL);
        prs_unref(s, &id);
        CHECK_EMPTY(s);
        close(pipes[0]), close(pipes[1]);
        close_store(s);
    }
}

/* ---- looking ------------------------------------------------------------------------------------------------ */

TEST(stats_and_list_tell_the_truth)
{
    prs_store *s = store_of(32 * MIB), *t = client_of(s);
    prs_error e = {0};
    prs_oid a = put(s, 1000, 1), b = put(s, MIB, 2), c = put_naming(s, &a, 1);
    prs_draft d;
    CHECK_EQ(prs_alloc(t, 10, 0, &d, &e), PRS_OK);
    prs_token token;
    CHECK_EQ(prs_token_take(s, &b, PRS_TOKEN_STICKY, &token), PRS_OK);
    prs_view v;
    CHECK_EQ(prs_pin(t, &a, &v), PRS_OK);
    CHECK_EQ(prs_free(s, &a, &e), PRS_OK);
    prs_stats stats = stats_of(s);
    CHECK_EQ(stats.capacity, 32 * MIB);
    CHECK_EQ(stats.objects, 3);
    CHECK_EQ(stats.unsealed, 1);
    CHECK_EQ(stats.used, 1024 + MIB + 64 + 64);
    CHECK_EQ(stats.in_flight, 1);
    CHECK_EQ(stats.edges, 1);
    CHECK_EQ(stats.clients, 2);
    CHECK(stats.backed >= MIB && stats.serial > c.serial);
    CHECK_EQ(stats.used + stats.reserved, s->super->arena.used);
    prs_record r[8];
    uint32_t cursor = 0;
    int n = 0, seen = 0;
    for (int got; (got = prs_list(s, &cursor, r + n, 2)) > 0;) /* two records per call */
        n += got;
    CHECK_EQ(n, 4);
    for (int i = 0; i < n; i++) {
        CHECK_EQ(r[i].id.store, prs_id(s));
        if (r[i].id.serial == a.serial)
            CHECK(r[i].freed && r[i].size == 1000 && r[i].extent == 1024 && r[i].pin_holders == 1 &&
                  r[i].tokens_and_edges == 1 && ++seen);
        if (r[i].id.serial == b.serial)
            CHECK(!r[i].freed && r[i].size == MIB && r[i].ref_holders == 1 && r[i].pin_holders == 0 &&
                  r[i].tokens_and_edges == 1 && ++seen);
        if (r[i].id.serial == d.id.serial)
            CHECK(r[i].state == PRS_STATE_CREATING && r[i].creator_pid == getpid() && ++seen);
    }
    CHECK_EQ(seen, 3);
    int32_t pids[4];
    CHECK_EQ(prs_client_pids(s, pids, 4), 2);
    CHECK_EQ(prs_client_pids(s, pids, 1), 1);
    CHECK_EQ(pids[0], getpid());
    close_store(t);
    close_store(s);
}

TEST_MAIN()
