/*
 * Tests that release an object while another process, the checker, decides whether to free the object. The checker
 * must then free the object. The tests stop the checker at each of its decisions, and again at its end, so that its
 * exit cannot free an object that it should have freed before.
 */
#include "corpses.h"

static void wait_for_stop(pid_t pid)
{
    int status;
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK_MSG(WIFSTOPPED(status), "the child was to stop: status %x", (unsigned)status);
}

static void unref_slowly(prs_store *s, struct told *told)
{
    say(&told->ready);
    await(&told->go);
    prs_failpoint_arm("freeing", PRS_FAIL_STOP, 1, 0);
    prs_failpoint_arm("freeing_scanned", PRS_FAIL_STOP, 2, 0); /* the new holder's mark ends the first scan */
    prs_unref(s, &told->id[0]);
    raise(SIGSTOP);
}

TEST(while_its_freer_rolls_back)
{
    SEVERAL_PROCESSES();
    prs_store *s = store_of(16 * MIB);
    struct told *told = new_told();
    prs_view v;
    told->id[0] = put(s, 100, 1);
    pid_t pid = child_of(s, told, unref_slowly);
    await(&told->ready);
    prs_unref(s, &told->id[0]);
    say(&told->go);
    wait_for_stop(pid); /* the word is FREEING, and the process saw no holder */
    CHECK_EQ(prs_pin(s, &told->id[0], &v), PRS_OK);
    kill(pid, SIGCONT);
    wait_for_stop(pid); /* the checker saw our pin */
    prs_unpin(s, &told->id[0]);
    kill(pid, SIGCONT);
    wait_for_stop(pid); /* the checker has finished its work */
    CHECK(prs_state(s, &told->id[0]) < 0);
    goes_on(pid);
    CHECK_EMPTY(s);
    close_store(s);
    munmap(told, sizeof *told);
}

static int disk_error;

static void spill_slowly(prs_store *s, struct told *told)
{
    prs_error e;
    prs_unref(s, &told->id[0]);
    say(&told->ready);
    await(&told->go);
    prs_failpoint_arm("spill_marked", PRS_FAIL_STOP, 1, 0);
    if (disk_error)
        prs_failpoint_arm("spill_created", PRS_FAIL_ERRNO, 1, disk_error);
    int rc = prs_spill_for(s, MIB, &e);
    CHECK_EQ(rc, disk_error ? PRS_E_FULL : PRS_OK);
    raise(SIGSTOP);
}

TEST(while_it_is_being_spilled)
{
    SEVERAL_PROCESSES();
    char disk[] = "/var/tmp/prs-let-go-XXXXXX";
    CHECK(mkdtemp(disk));
    for (int how = 0; how < 2; how++) { /* the object is written to its file, or the disk is full */
        disk_error = how ? ENOSPC : 0;
        prs_store *s = store_with((prs_options){.capacity = 8 * MIB, .spill_dir = disk});
        struct told *told = new_told();
        told->id[0] = put(s, MIB, 1);
        pid_t pid = child_of(s, told, spill_slowly);
        await(&told->ready);
        say(&told->go);
        wait_for_stop(pid);
        CHECK_EQ(prs_word_state(prs_load_seqcst(&prs_slot_at(s, told->id[0].slot)->word)), PRS_STATE_SPILLING);
        prs_unref(s, &told->id[0]);
        kill(pid, SIGCONT);
        wait_for_stop(pid);
        CHECK(prs_state(s, &told->id[0]) < 0);
        goes_on(pid);
        CHECK_EMPTY(s);
        close_store(s);
        munmap(told, sizeof *told);
    }
    CHECK_EQ(rmdir(disk), 0);
}

TEST_MAIN()
