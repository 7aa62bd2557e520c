/* Defines the stream of a single array, byte for byte.
 *
 * In put mode an exact ndarray is written as the call `numpy.ndarray(shape, dtype, buffer, 0, strides)`:
 *
 *     80 05                          PROTO 5
 *     8c 05 'numpy'                  SHORT_BINUNICODE     no MEMOIZE: no part of the stream is shared
 *     8c 07 'ndarray'                SHORT_BINUNICODE
 *     93                             STACK_GLOBAL
 *     28                             MARK                 <- the arguments; PRP_ARRAY_PREFIX ends after it
 *     <ints>                         shape                tuple, see below
 *     8c n <dtype.str>               SHORT_BINUNICODE     '<f8', '|S5', '>i4', '<M8[ns]'; ASCII, n <= 31
 *     97                             NEXT_BUFFER          the elements, or the bytes that the strides cover
 *     98                             READONLY_BUFFER      if and only if the array is not writeable
 *     4b 00                          BININT1 0            offset
 *     4e | <ints>                    NONE | strides       NONE for C order, else a tuple like the shape
 *     74                             TUPLE
 *     52                             REDUCE
 *     2e                             STOP
 *
 *     <ints> = 29                    EMPTY_TUPLE
 *            | i 85 | i i 86 | i i i 87                   TUPLE1, TUPLE2, TUPLE3
 *            | 28 i i i i ... 74                          MARK ... TUPLE
 *     i      = 4b u8 | 4d u16 | 4a i32 | 8a n <n bytes>   the shortest form of the value, as the standard pickler
 *                                                         writes it (LONG1: two's complement, n <= 8)
 *
 * The standard `pickle.loads(stream, buffers=[data])` can read this stream. The reader below accepts exactly this
 * grammar and checks every byte before it reads it; it does not validate the numbers, because the code that builds the
 * array does. This header uses neither Python nor numpy, because the store reads streams without importing either.
 */
#ifndef PRP_ARRAY_TEMPLATE_H
#define PRP_ARRAY_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PRP_ARRAY_PREFIX "\x80\x05\x8c\x05numpy\x8c\x07ndarray\x93("
#define PRP_ARRAY_PREFIX_LEN (sizeof(PRP_ARRAY_PREFIX) - 1)

/* The general pickler handles arrays with more dimensions than this. */
#define PRP_ARRAY_MAX_DIMS 32
#define PRP_ARRAY_MAX_DTYPE 31

/* Upper bound for the length of any stream: prefix, two tuples of 10-byte ints, dtype and remaining opcodes. */
#define PRP_ARRAY_STREAM_MAX (PRP_ARRAY_PREFIX_LEN + 2 * (2 + 10 * PRP_ARRAY_MAX_DIMS) + 2 + PRP_ARRAY_MAX_DTYPE + 8)

typedef struct {
    int nd;
    bool has_strides;
    bool readonly;
    uint8_t dtype_len;
    const char *dtype; /* has no terminating NUL; points into the stream that was read */
    int64_t shape[PRP_ARRAY_MAX_DIMS];
    int64_t strides[PRP_ARRAY_MAX_DIMS];
} prp_array_template;

/* ---- writing: the caller has PRP_ARRAY_STREAM_MAX bytes of room ---- */

static inline uint8_t *prp_array_put_int(uint8_t *p, int64_t value)
{
    if (value >= 0 && value <= 0xff) {
        *p++ = 0x4b;
        *p++ = (uint8_t)value;
    } else if (value >= 0 && value <= 0xffff) {
        *p++ = 0x4d;
        *p++ = (uint8_t)value;
        *p++ = (uint8_t)(value >> 8);
    } else if (value >= INT32_MIN && value <= INT32_MAX) {
        uint32_t u = (uint32_t)value;
        *p++ = 0x4a;
        for (int i = 0; i < 4; i++)
            *p++ = (uint8_t)(u >> (8 * i));
    } else {
        uint64_t u = (uint64_t)value;
        int n = 8;
        /* removes bytes that only repeat the sign */
        while (n > 1 && (value >> (8 * (n - 1) - 1)) == (value < 0 ? -1 : 0))
            n--;
        *p++ = 0x8a;
        *p++ = (uint8_t)n;
        for (int i = 0; i < n; i++)
            *p++ = (uint8_t)(u >> (8 * i));
    }
    return p;
}

static inline uint8_t *prp_array_put_ints(uint8_t *p, const int64_t *values, int n)
{
    if (n == 0) {
        *p++ = 0x29;
        return p;
    }
    if (n > 3)
        *p++ = 0x28;
    for (int i = 0; i < n; i++)
        p = prp_array_put_int(p, values[i]);
    *p++ = n > 3 ? 0x74 : (uint8_t)(0x84 + n);
    return p;
}

/* Write all five arguments, that is, the bytes after the prefix up to and including the strides. The general pickler
 * also calls this, between writing the global and writing its memo opcodes. */
static inline uint8_t *prp_array_put_arguments(uint8_t *p, const prp_array_template *t)
{
    p = prp_array_put_ints(p, t->shape, t->nd);
    *p++ = 0x8c;
    *p++ = t->dtype_len;
    memcpy(p, t->dtype, t->dtype_len);
    p += t->dtype_len;
    *p++ = 0x97;
    if (t->readonly)
        *p++ = 0x98;
    *p++ = 0x4b;
    *p++ = 0;
    if (t->has_strides)
        p = prp_array_put_ints(p, t->strides, t->nd);
    else
        *p++ = 0x4e;
    return p;
}

/* Write the whole stream; return its length. */
static inline size_t prp_array_template_write(uint8_t *out, const prp_array_template *t)
{
    uint8_t *p = out;
    memcpy(p, PRP_ARRAY_PREFIX, PRP_ARRAY_PREFIX_LEN);
    p = prp_array_put_arguments(p + PRP_ARRAY_PREFIX_LEN, t);
    *p++ = 0x74;
    *p++ = 0x52;
    *p++ = 0x2e;
    return (size_t)(p - out);
}

/* ---- reading: `end` is one past the last byte; NULL means "not the template" ---- */

/* This cheap first test returns true for every stream that matches the template, and for very few others. */
static inline bool prp_array_template_looks(const uint8_t *stream, size_t len)
{
    return len > PRP_ARRAY_PREFIX_LEN && memcmp(stream, PRP_ARRAY_PREFIX, PRP_ARRAY_PREFIX_LEN) == 0;
}

static inline const uint8_t *prp_array_get_int(const uint8_t *p, const uint8_t *end, int64_t *value)
{
    if (end - p < 2)
        return NULL;
    uint8_t op = *p++;
    if (op == 0x4b) {
        *value = *p;
        return p + 1;
    }
    if (op == 0x4d) {
        if (end - p < 2)
            return NULL;
        *value = (int64_t)(p[0] | (uint32_t)p[1] << 8);
        return p + 2;
    }
    if (op == 0x4a) {
        if (end - p < 4)
            return NULL;
        uint32_t u = p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        *value = (int32_t)u;
        return p + 4;
    }
    if (op == 0x8a) {
        int n = *p++;
        if (n > 8 || end - p < n)
            return NULL;
        uint64_t u = 0;
        for (int i = 0; i < n; i++)
            u |= (uint64_t)p[i] << (8 * i);
        if (n > 0 && n < 8 && (p[n - 1] & 0x80))
            u |= ~(uint64_t)0 << (8 * n);
        *value = (int64_t)u;
        return p + n;
    }
    return NULL;
}

/* `*n` is the expected number of ints, or -1 if it is unknown. */
static inline const uint8_t *prp_array_get_ints(const uint8_t *p, const uint8_t *end, int64_t *values, int *n)
{
    int count = 0;
    bool marked = false;
    if (p < end && *p == 0x28) {
        marked = true;
        p++;
    }
    for (;;) {
        if (p >= end)
            return NULL;
        uint8_t op = *p;
        if (op == 0x29 || op == 0x74 || (op >= 0x85 && op <= 0x87)) {
            p++;
            if (marked ? (op != 0x74 || count < 4) : count > 3 || op != (count == 0 ? 0x29 : 0x84 + count))
                return NULL;
            break;
        }
        if (count == PRP_ARRAY_MAX_DIMS)
            return NULL;
        p = prp_array_get_int(p, end, &values[count++]);
        if (!p)
            return NULL;
    }
    if (*n >= 0 && *n != count)
        return NULL;
    *n = count;
    return p;
}

/* Return whether the whole stream matches the template; if so, fill `t`. */
static inline bool prp_array_template_read(const uint8_t *stream, size_t len, prp_array_template *t)
{
    if (!prp_array_template_looks(stream, len))
        return false;
    const uint8_t *p = stream + PRP_ARRAY_PREFIX_LEN, *end = stream + len;
    t->nd = -1;
    p = prp_array_get_ints(p, end, t->shape, &t->nd);
    if (!p || end - p < 2 || p[0] != 0x8c || p[1] > PRP_ARRAY_MAX_DTYPE)
        return false;
    t->dtype_len = p[1];
    t->dtype = (const char *)p + 2;
    p += 2;
    if (end - p < t->dtype_len + 2)
        return false;
    p += t->dtype_len;
    if (*p++ != 0x97)
        return false;
    t->readonly = *p == 0x98;
    p += t->readonly;
    if (end - p < 3 || p[0] != 0x4b || p[1] != 0)
        return false;
    p += 2;
    t->has_strides = *p != 0x4e;
    if (t->has_strides) {
        p = prp_array_get_ints(p, end, t->strides, &t->nd);
        if (!p)
            return false;
    } else {
        p++;
    }
    return end - p == 3 && p[0] == 0x74 && p[1] == 0x52 && p[2] == 0x2e;
}

#endif
