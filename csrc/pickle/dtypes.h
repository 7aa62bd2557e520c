/* Writes numpy's dtypes of plain numbers in the standard form, and writes objects that several arrays of a stream
 * share. */
#ifndef PRP_SAVE_DTYPE_H
#define PRP_SAVE_DTYPE_H

#include "class_plan.h"

int prp_save_dtype(prp_saver *s, PyObject *descr);
/* Write a string or class that the stream may share: its opcodes the first time, then a GET. The caller has reserved
 * the room. */
int prp_put_shared(prp_saver *s, PyObject *obj, const uint8_t *bytes, size_t len);

#endif
