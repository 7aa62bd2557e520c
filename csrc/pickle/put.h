/* Put mode pickles an object for the store.
 *
 * The stream stays in scratch memory (the text of a large str stays in the str), and data of 1 KiB and more stays in
 * its objects. The result refers to the stream and to these objects, and the store copies each byte once, to its
 * final place. The stream is standard protocol 5 without frames.
 *
 * Usage:
 *
 *     prp_put_result r;
 *     if (prp_put(obj, 0, &r) < 0) ...            exception; its message ends with "(at <path>)"; nothing to release
 *     if (prp_put_check(&r) < 0) ...              exception; release
 *     copy r.segments[0 .. segment_count) one after the other: r.stream_len bytes in all
 *     for each r.buffers[i], len bytes: memcpy from .data (no GIL needed), or prp_put_gather() (GIL needed) if NULL
 *     prp_put_release(&r);                        always, GIL held; may run finalizers
 *
 * All memory that the result refers to stays valid and in place until prp_put_release(). While the GIL is released,
 * other threads may write to the memory of mutable exporters, as with any buffer. Several results may exist at a time,
 * and be released in any order.
 */
#ifndef PRP_PUT_H
#define PRP_PUT_H

#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct prp_saver prp_saver;

enum {
    PRP_PUT_SMALL_ROOT = 1, /* if the whole object is an array, use the template of array_template.h at any size */
};

typedef struct {
    const void *data;
    size_t len;
} prp_put_segment;

/* An out-of-band buffer. */
typedef struct {
    const void *data; /* contiguous bytes; if NULL, call prp_put_gather */
    size_t len;
    PyObject *owner;    /* owned: the exporter */
    Py_buffer *view;    /* the acquired view; NULL for arrays, which only `owner` keeps alive */
    void *source;       /* the prp_array_source of a strided array, or NULL */
    int64_t memo_index; /* memo index of the buffer in the stream, -1 if it has none */
    bool readonly;
} prp_put_buffer;

typedef struct {
    const prp_put_segment *segments;
    size_t segment_count;
    size_t stream_len;
    const prp_put_buffer *buffers; /* in the order of their NEXT_BUFFER opcodes */
    size_t buffer_count;
    prp_saver *saver; /* private to the implementation */
    prp_put_segment one;
} prp_put_result;

int prp_put(PyObject *obj, unsigned flags, prp_put_result *result);
/* Call this at a point after which no other code can run before the copies. Return -1 with an exception if an array has
 * been resized since it was pickled. */
int prp_put_check(const prp_put_result *result);
int prp_put_gather(const prp_put_buffer *buffer, void *to);
void prp_put_release(prp_put_result *result);

#endif
