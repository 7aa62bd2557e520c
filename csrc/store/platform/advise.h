/* advise.h - madvise() whose result can be trusted. */
#ifndef PRS_ADVISE_H
#define PRS_ADVISE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_READ /* Linux 5.14 */
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE /* Linux 6.1 */
#define MADV_COLLAPSE 25
#endif

uintptr_t prs_page_size(void);

/*
 * Return whether a successful madvise() did what it was told. Emulators (qemu's user mode) ignore advice they do not
 * know and return 0, even for PROT_NONE pages, which a kernel must refuse; we test that once per process.
 */
bool prs_advice_is_honest(void);

/* Advise all pages under [at, at + n), again after signals. Return 0 or -errno (-EOPNOTSUPP: not honest); keep
 * errno. */
int prs_advise(char *at, size_t n, int advice);

#endif
