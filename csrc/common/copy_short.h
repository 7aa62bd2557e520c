/* Fast copies of short text, which is written to or read from a stream. */
#ifndef PRP_COPY_SHORT_H
#define PRP_COPY_SHORT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A memcpy for lengths that are mostly small. It copies two overlapping words and never reads beyond the end. */
static inline void prp_copy_short(uint8_t *to, const void *data, size_t n)
{
    const uint8_t *from = data;
    if (n > 32) {
        memcpy(to, from, n);
    } else if (n >= 16) {
        uint8_t head[16], tail[16];
        memcpy(head, from, 16);
        memcpy(tail, from + n - 16, 16);
        memcpy(to, head, 16);
        memcpy(to + n - 16, tail, 16);
    } else if (n >= 8) {
        uint64_t head, tail;
        memcpy(&head, from, 8);
        memcpy(&tail, from + n - 8, 8);
        memcpy(to, &head, 8);
        memcpy(to + n - 8, &tail, 8);
    } else if (n >= 4) {
        uint32_t head, tail;
        memcpy(&head, from, 4);
        memcpy(&tail, from + n - 4, 4);
        memcpy(to, &head, 4);
        memcpy(to + n - 4, &tail, 4);
    } else if (n) {
        to[0] = from[0];
        to[n / 2] = from[n / 2];
        to[n - 1] = from[n - 1];
    }
}

#endif
