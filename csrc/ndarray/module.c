/* Imports numpy's C API (no other file does) and defines the function table for the other extensions. */
#define PRP_NDARRAY_IMPORTS
#include "ndarray.h"

static prp_ndarray_api table = {
    .version = PRP_NDARRAY_VERSION,
    .describe = prp_array_describe,
    .template_put = prp_array_template_put,
    .gather = prp_array_gather,
    .lies_at = prp_array_lies_at,
    .from_stream = prp_array_from_stream,
    .from_parts = prp_array_from_parts,
    .seal = prp_array_seal,
    .plain_dtype = prp_plain_dtype,
    .shared_dtype = prp_shared_dtype,
    .dtype_from_name = prp_dtype_from_name,
    .from_ints = prp_array_from_ints,
    .dtype_like_own = prp_dtype_like_own,
    .owns_references = prp_array_owns_references,
};

const prp_ndarray_api *prp_ndarray_init(void)
{
    import_array1(NULL);
    table.array_type = (PyObject *)&PyArray_Type;
    table.dtype_type = (PyObject *)&PyArrayDescr_Type;
    return prp_dtype_ready() < 0 ? NULL : &table;
}
