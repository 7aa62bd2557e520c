/* Runs libFuzzer within a Python process: run_guided_fuzz.py calls guide_run() with two Python functions. One function
 * tries an input, the other mutates an input.
 *
 * guided.sh links this file with libclang_rt.fuzzer_no_main into a library, and preloads the library together with the
 * sanitizer runtime. The extension module, compiled with -fsanitize=fuzzer-no-link, can then report its coverage. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sanitizer/allocator_interface.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*one)(const uint8_t *data, size_t size));
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
int guide_run(int argc, char **argv, PyObject *one, PyObject *mutate);
void guide_count(void);
Py_ssize_t guide_peak(void);

static PyObject *try_input, *change_input;

/* ---- memory, between guide_count() and guide_peak() -------------------------------------------------------------------- */

static __thread bool counting;
static Py_ssize_t live, peak;

static void on_malloc(const volatile void *ptr, size_t size)
{
    if (counting) {
        live += (Py_ssize_t)size;
        if (live > peak)
            peak = live;
    }
}

static void on_free(const volatile void *ptr)
{
    if (counting && ptr)
        live -= (Py_ssize_t)__sanitizer_get_allocated_size(ptr);
}

void guide_count(void)
{
    live = peak = 0;
    counting = true;
}

Py_ssize_t guide_peak(void)
{
    counting = false;
    return peak;
}

/* ---- what libFuzzer calls -------------------------------------------------------------------------------------------------- */

/* Abort on an exception, because libFuzzer saves the inputs that cause an abort. */
static int one(const uint8_t *data, size_t size)
{
    PyObject *result = PyObject_CallFunction(try_input, "y#", (const char *)data, (Py_ssize_t)size);
    if (!result) {
        PyErr_Print();
        abort();
    }
    Py_DECREF(result);
    return 0;
}

/* Alternate between libFuzzer's own mutations and mutations that use the structure of a pickle. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    if (seed & 1)
        return LLVMFuzzerMutate(data, size, max_size);
    PyObject *result = PyObject_CallFunction(change_input, "y#I", (const char *)data, (Py_ssize_t)size, seed);
    char *changed;
    Py_ssize_t length;
    if (!result || PyBytes_AsStringAndSize(result, &changed, &length) < 0) {
        PyErr_Print();
        abort();
    }
    if ((size_t)length > max_size)
        length = (Py_ssize_t)max_size;
    memcpy(data, changed, (size_t)length);
    Py_DECREF(result);
    return (size_t)length;
}

int guide_run(int argc, char **argv, PyObject *one_, PyObject *mutate)
{
    try_input = one_;
    change_input = mutate;
    if (!__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free)) {
        fputs("no room for the hooks of malloc\n", stderr);
        return 2;
    }
    return LLVMFuzzerRunDriver(&argc, &argv, one);
}
