/* Reads short ASCII text once and checks it in registers. Most strings are of this kind, and only this case is worth
 * inlining. */
#ifndef PRP_LOAD_SHORT_H
#define PRP_LOAD_SHORT_H

#include "unpickler.h"
#include "interp_write.h"

#define PRP_NOT_ASCII 0x8080808080808080ull

/* A string of 2 to 16 bytes in two registers, its start and its end, which overlap or are adjacent. */
typedef struct {
    uint64_t head, tail;
} prp_short_text;

static inline prp_short_text prp_read_short(const uint8_t *data, size_t n)
{
    prp_short_text text;
    if (n >= 8) {
        memcpy(&text.head, data, 8);
        memcpy(&text.tail, data + n - 8, 8);
    } else if (n >= 4) {
        uint32_t head, tail;
        memcpy(&head, data, 4);
        memcpy(&tail, data + n - 4, 4);
        text = (prp_short_text){head, tail};
    } else {
        uint16_t head;
        memcpy(&head, data, 2);
        text = (prp_short_text){head, data[n - 1]};
    }
    __asm__ volatile("" : "+r"(text.head), "+r"(text.tail)); /* prevents the compiler from reading the source twice */
    return text;
}

static inline void prp_write_short(uint8_t *to, size_t n, prp_short_text text)
{
    if (n >= 8) {
        memcpy(to, &text.head, 8);
        memcpy(to + n - 8, &text.tail, 8);
    } else if (n >= 4) {
        memcpy(to, &text.head, 4);
        memcpy(to + n - 4, &text.tail, 4);
    } else {
        memcpy(to, &text.head, 2);
        to[n - 1] = (uint8_t)text.tail;
    }
}

static inline bool prp_short_is_ascii(prp_short_text text)
{
    return !((text.head | text.tail) & PRP_NOT_ASCII);
}

static inline PyObject *prp_short_str(prp_short_text ascii, size_t n)
{
    PyObject *text = prp_ascii_new((Py_ssize_t)n);
    if (PRP_LIKELY(text))
        prp_write_short(PyUnicode_1BYTE_DATA(text), n, ascii);
    return text;
}

/* This function does the same as prp_load_utf8. */
static inline PyObject *prp_load_text(const uint8_t *data, size_t n)
{
    if (PRP_LIKELY(n > 1 && n <= sizeof(prp_short_text))) {
        prp_short_text own = prp_read_short(data, n);
        if (PRP_LIKELY(prp_short_is_ascii(own)))
            return prp_short_str(own, n);
    }
    return prp_load_utf8(data, n); /* this reads and checks the text again */
}

#endif
