/* spill.h - what the two files about spilling share. */
#ifndef PRS_SPILL_H
#define PRS_SPILL_H

#include "store.h"

int prs_spill_open_file(prs_store *s, uint32_t slot, uint64_t serial, int flags); /* of open() */
/* Did this process begin it?  A child forked in the middle shares the descriptor, but the file is its parent's. */
bool prs_spill_job_ours(const prs_store *s, const prs_spill_job *job);
/* The error of a write to the spill directory: a full disk is a full store. */
int prs_spill_disk(prs_store *s, int rc, uint64_t want, prs_error *error);
/* All bytes are in the file: hand the object over to it. */
int prs_spill_commit(prs_store *s, prs_spill_job *job, prs_error *error);

#endif
