/* Makes arrays permanently read-only.
 *
 * `setflags(write=True)` can clear a read-only flag if the array owns its memory, or if its base can export a writable
 * buffer. So if an array owns its memory, we transfer the memory to a second array, the holder. Only a capsule refers
 * to the holder, so no code can access it, and the capsule becomes the base of the first array. The bytes are not
 * moved.
 */
#include "ndarray.h"

static void drop_holder(PyObject *capsule)
{
    Py_XDECREF((PyObject *)PyCapsule_GetPointer(capsule, "pyray_ser.sealed"));
}

static PyObject *capsule_of(PyObject *held)
{
    PyObject *capsule = PyCapsule_New(held, "pyray_ser.sealed", drop_holder);
    if (capsule)
        Py_INCREF(held);
    return capsule;
}

int prp_array_seal(PyObject *obj)
{
    if (!PyArray_Check(obj))
        return 0;
    PyArrayObject *array = (PyArrayObject *)obj;
    PyArrayObject_fields *fields = (PyArrayObject_fields *)obj;
    if (PyDataType_REFCHK(PyArray_DESCR(array)))
        return 0;
    PyArray_CLEARFLAGS(array, NPY_ARRAY_WRITEABLE);
    if (PyArray_CHKFLAGS(array, NPY_ARRAY_OWNDATA)) {
        PyArray_Descr *descr = PyArray_DESCR(array);
        Py_INCREF(descr);
        PyObject *holder = PyArray_NewFromDescr(&PyArray_Type, descr, PyArray_NDIM(array), PyArray_DIMS(array),
                                                PyArray_STRIDES(array), PyArray_DATA(array), 0, NULL);
        PyObject *capsule = holder ? capsule_of(holder) : NULL;
        Py_XDECREF(holder);
        if (!capsule)
            return -1;
        /* The holder now owns the memory, and frees it with the allocator that allocated it. */
        ((PyArrayObject_fields *)holder)->mem_handler = fields->mem_handler;
        fields->mem_handler = NULL;
        PyArray_ENABLEFLAGS((PyArrayObject *)holder, NPY_ARRAY_OWNDATA);
        PyArray_CLEARFLAGS(array, NPY_ARRAY_OWNDATA);
        Py_XSETREF(fields->base, capsule); /* an array that owns its memory has no base yet */
        return 0;
    }
    if (fields->base && !PyCapsule_CheckExact(fields->base)) {
        PyObject *capsule = capsule_of(fields->base);
        if (!capsule)
            return -1;
        Py_SETREF(fields->base, capsule);
    }
    return 0;
}

/* Return whether each element of `array` is at the address of an element of `owner`, an array of objects. */
static bool is_aligned_to(PyArrayObject *array, PyArrayObject *owner)
{
    const npy_intp size = sizeof(PyObject *);
    if ((PyArray_BYTES(array) - PyArray_BYTES(owner)) % size)
        return false;
    for (int i = 0; i < PyArray_NDIM(array); i++)
        if (PyArray_STRIDE(array, i) % size)
            return false;
    return true;
}

bool prp_array_owns_references(PyObject *obj)
{
    if (!PyArray_Check(obj))
        return true;
    PyArrayObject *array = (PyArrayObject *)obj, *owner = array;
    bool references = PyDataType_REFCHK(PyArray_DESCR(array));
    while (!PyArray_CHKFLAGS(owner, NPY_ARRAY_OWNDATA)) {
        PyObject *base = PyArray_BASE(owner);
        while (base && PyMemoryView_Check(base))
            base = PyMemoryView_GET_BASE(base);
        if (!base || !PyArray_Check(base))
            return !references;
        owner = (PyArrayObject *)base;
        bool both = references && PyArray_DESCR(array)->type_num == NPY_OBJECT &&
                    PyArray_DESCR(owner)->type_num == NPY_OBJECT && is_aligned_to(array, owner);
        if (PyDataType_REFCHK(PyArray_DESCR(owner)) ? !both : references)
            return false;
    }
    return true;
}
