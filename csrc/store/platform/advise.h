/* advise.h - madvise() with a reliable result. */
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
 * Return whether madvise() returns 0 only if it followed the advice. Emulators (qemu's user mode) ignore unknown
 * advice and return 0, even for PROT_NONE pages, for which a kernel must return an error; we test this once per
 * process.
 */
bool prs_advice_is_honest(void);

/* Call madvise for all pages in [at, at + n), and continue after signals. Return 0 or -errno (-EOPNOTSUPP if the result
 * of madvise() is not reliable); preserve errno. */
int prs_advise(char *at, size_t n, int advice);

#endif
