/* spill.h - functions that spill.c and spill_external.c share. */
#ifndef PRS_SPILL_H
#define PRS_SPILL_H

#include "store.h"

int prs_spill_open_file(prs_store *s, uint32_t slot, uint64_t serial, int flags); /* `flags` are those of open() */
/* Return whether this process began the job.  A forked child has the same descriptor, but the file belongs to the
 * parent. */
bool prs_spill_job_ours(const prs_store *s, const prs_spill_job *job);
/* Report a failed write to the spill directory; a full disk counts as a full store. */
int prs_spill_disk(prs_store *s, int rc, uint64_t want, prs_error *error);
/* Mark the object as stored in its file, which must be complete, and free its extent. */
int prs_spill_commit(prs_store *s, prs_spill_job *job, prs_error *error);

#endif
