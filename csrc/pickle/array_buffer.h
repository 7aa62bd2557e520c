/* Creates the PickleBuffer of an exact ndarray without the cost of numpy's own buffer export. */
#ifndef PRP_ARRAY_BUFFER_H
#define PRP_ARRAY_BUFFER_H

#include "interp.h"

/* Return the PickleBuffer of a contiguous array or, for Fortran order, of its transpose. Return NULL with an exception
 * on failure, including if the array does not support buffers. */
PyObject *prp_array_picklebuffer(PyObject *array);
/* Return whether `exporter` is such an exporter and its array now uses different memory. */
bool prp_array_buffer_moved(PyObject *exporter);
int prp_array_buffer_setup(void);

#endif
