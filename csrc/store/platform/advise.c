/* advise.c - madvise() with a reliable result (see advise.h). */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "advise.h"

#include <errno.h>
#include <unistd.h>

#include "atomic.h"

uintptr_t prs_page_size(void)
{
    long size = sysconf(_SC_PAGESIZE); /* reads the auxiliary vector, makes no system call */
    /* unreached by tests (no injected fault): sysconf */
    return size > 0 ? (uintptr_t)size : 4096;
}

bool prs_advice_is_honest(void)
{
    static prs_atomic_u32 verdict; /* whether the result is reliable; 0: not known yet, 1: yes, 2: no */
    uint32_t known = prs_load_relaxed(&verdict);
    if (known == 0) {
        int saved = errno;
        void *barred = mmap(NULL, prs_page_size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        /* unreached by tests (no injected fault): no address space for one page */
        if (barred == MAP_FAILED) { /* try again at the next call */
            errno = saved;
            return false;
        }
        /* unreached by tests (other kernel): an emulator that ignores madvise */
        known = madvise(barred, prs_page_size(), MADV_POPULATE_WRITE) == 0 ? 2 : 1;
        munmap(barred, prs_page_size());
        prs_store_relaxed(&verdict, known);
        errno = saved;
    }
    return known == 1;
}

int prs_advise(char *at, size_t n, int advice)
{
    /* unreached by tests (other kernel): an emulator that ignores madvise */
    if (!prs_advice_is_honest())
        return -EOPNOTSUPP;
    int saved = errno, rc = 0;
    uintptr_t skew = (uintptr_t)at & (prs_page_size() - 1);
    while (madvise(at - skew, n + skew, advice) != 0) {
        /* unreached by tests (no injected fault, 2 branches): madvise interrupted */
        if (errno != EINTR && errno != EAGAIN) {
            rc = -errno;
            break;
        }
    }
    errno = saved;
    return rc;
}
