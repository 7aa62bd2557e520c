/* A PickleBuffer of an exact ndarray, as PickleBuffer(array) is, without numpy's description of it. */
#ifndef PRP_ARRAY_BUFFER_H
#define PRP_ARRAY_BUFFER_H

#include "interp.h"

/* Return the PickleBuffer of a contiguous array; for Fortran order, that of its transpose. NULL with an exception,
 * also if the array refuses. */
PyObject *prp_array_picklebuffer(PyObject *array);
/* Return whether this is an exporter of ours whose array has other memory now. */
bool prp_array_buffer_moved(PyObject *exporter);
int prp_array_buffer_setup(void);

#endif
