/* Inline writers of atoms. Each writer receives the output pointer and returns the advanced pointer; the caller has
 * ensured PRP_ROOM free bytes. The writers are only for protocol 2 and up, unless a comment says otherwise. */
#ifndef PRP_WRITE_H
#define PRP_WRITE_H

#include <string.h>

#include "copy_short.h"
#include "pickler.h"

static inline uint8_t *prp_append_u16(uint8_t *p, uint32_t v)
{
    uint16_t x = (uint16_t)v;
    memcpy(p, &x, 2);
    return p + 2;
}

static inline uint8_t *prp_put_u32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, 4);
    return p + 4;
}

static inline uint8_t *prp_put_u64(uint8_t *p, uint64_t v)
{
    memcpy(p, &v, 8);
    return p + 8;
}

/* Write a value that fits into 32 bits, for protocol 1 and up. Compute the length without branches, because the lengths
 * of successive ints are often nearly random. */
static inline uint8_t *prp_put_int32(uint8_t *p, long value)
{
    static const uint8_t ops[3] = {OP_BININT1, OP_BININT2, OP_BININT};
    uint32_t bits = (uint32_t)value;
    unsigned width = (bits > 0xff) + (bits > 0xffff);
    p[0] = ops[width];
    prp_put_u32(p + 1, bits);
    return p + 2 + width + (width >> 1);
}

/* Write any 64-bit value: as a BININT form if it fits, else as LONG1 with the fewest bytes. */
static inline uint8_t *prp_append_int64(uint8_t *p, int64_t value)
{
    if (value == (int32_t)value)
        return prp_put_int32(p, (long)value);
    uint64_t magnitude = (uint64_t)(value < 0 ? ~value : value);
    int bytes = (64 - __builtin_clzll(magnitude)) / 8 + 1; /* includes one bit for the sign */
    *p++ = OP_LONG1;
    *p++ = (uint8_t)bytes;
    prp_put_u64(p, (uint64_t)value); /* writes eight bytes, keeps `bytes`; the next opcode overwrites the rest */
    if (bytes == 9)
        p[8] = 0;
    return p + bytes;
}

static inline uint8_t *prp_append_float(uint8_t *p, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, 8);
    *p++ = OP_BINFLOAT;
    return prp_put_u64(p, __builtin_bswap64(bits));
}

static inline uint8_t *prp_put_get(uint8_t *p, uint32_t index)
{
    if (index < 256) {
        *p++ = OP_BINGET;
        *p++ = (uint8_t)index;
        return p;
    }
    *p++ = OP_LONG_BINGET;
    return prp_put_u32(p, index);
}

/* Write the header of a string of `n` < 4 GiB UTF-8 bytes, for protocol 4 and up. */
static inline uint8_t *prp_put_str_header(uint8_t *p, size_t n)
{
    if (PRP_LIKELY(n <= 0xff)) {
        *p++ = OP_SHORT_BINUNICODE;
        *p++ = (uint8_t)n;
        return p;
    }
    *p++ = OP_BINUNICODE;
    return prp_put_u32(p, (uint32_t)n);
}

#endif
