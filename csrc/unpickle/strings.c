/* Decodes strings from UTF-8 and caches short strings that are used as keys.
 *
 * Documents and instances repeat a few names many times. A small direct-mapped table, indexed by a hash of the bytes,
 * caches strings that are keys. Values are not cached, because most of them differ. If most keys differ too, the load
 * stops using the table. The table has at most PRP_KEY_SLOTS strings of at most KEY_BYTES bytes.
 */
#include "context.h" /* must come first: Python.h must precede the system headers */

#include "copy_short.h"
#include "ascii.h"

#define KEY_BYTES 40
#define BLOCK 256
#define SHORT 32
/* Make the compiler assume that the copy has changed, so that it cannot read the source of the copy again. */
#define PRP_READ_ONCE(copy) __asm__ volatile("" : : "r"(&(copy)) : "memory")

PyObject *prp_load_characters[128];

int prp_load_string_init(void)
{
    for (Py_UCS4 c = 0; c < 128; c++)
        if (!(prp_load_characters[c] = PyUnicode_FromOrdinal((int)c)))
            return -1;
    return 0;
}

/* Return whether `n` >= 2 bytes are ASCII. Read them as words; the last word may overlap the one before it. */
static inline bool is_ascii(const uint8_t *data, size_t n)
{
    uint64_t word, seen = 0;
    if (n >= 8) {
        /* Check long strings in blocks, so that the compiler vectorises the loop and we stop early at non-ASCII
         * text. */
        for (; n > BLOCK && !(seen & PRP_NOT_ASCII); n -= BLOCK, data += BLOCK)
            for (size_t i = 0; i < BLOCK; i += 8) {
                memcpy(&word, data + i, 8);
                seen |= word;
            }
        for (size_t i = 0; i + 8 < n; i += 8) {
            memcpy(&word, data + i, 8);
            seen |= word;
        }
        memcpy(&word, data + n - 8, 8);
        seen |= word;
    } else if (n >= 4) {
        uint32_t head, tail;
        memcpy(&head, data, 4);
        memcpy(&tail, data + n - 4, 4);
        seen = head | tail;
    } else {
        seen = data[0] | data[1] | data[n - 1];
    }
    return !(seen & PRP_NOT_ASCII);
}

static PyObject *decode(const uint8_t *own, size_t n)
{
    return PyUnicode_DecodeUTF8((const char *)own, (Py_ssize_t)n, "surrogatepass");
}

static PyObject *decode_short(prp_short_text text, size_t n)
{
    uint8_t own[2 * sizeof(uint64_t)];
    prp_write_short(own, n, text);
    return decode(own, n);
}

/* Bytes in shared memory can change, so we copy them first, and check and decode the copy: an ASCII str must not
 * contain non-ASCII bytes, and the interpreter's decoder reads its input twice. */
PyObject *prp_load_utf8(const uint8_t *data, size_t n)
{
    if (PRP_LIKELY(n > 1 && n <= sizeof(prp_short_text))) {
        prp_short_text own = prp_read_short(data, n);
        return PRP_LIKELY(prp_short_is_ascii(own)) ? prp_short_str(own, n) : decode_short(own, n);
    }
    if (n > 1 && n <= SHORT) {
        uint8_t own[SHORT];
        prp_copy_short(own, data, n);
        PRP_READ_ONCE(own);
        if (PRP_UNLIKELY(!is_ascii(own, n)))
            return decode(own, n);
        PyObject *text = prp_ascii_new((Py_ssize_t)n);
        if (PRP_LIKELY(text))
            prp_copy_short(PyUnicode_1BYTE_DATA(text), own, n);
        return text;
    }
    if (n <= 1) {
        uint8_t one = n ? prp_load_byte(data) : 0;
        return n && one < 128 ? Py_NewRef(prp_load_characters[one]) : decode(&one, n);
    }
    PyObject *text = prp_ascii_new((Py_ssize_t)n);
    if (PRP_UNLIKELY(!text))
        return NULL;
    uint8_t *own = PyUnicode_1BYTE_DATA(text);
    memcpy(own, data, n);
    PRP_READ_ONCE(*own);
    if (PRP_LIKELY(is_ascii(own, n)))
        return text;
    PyObject *wide = decode(own, n); /* `text` is not valid UTF-8, but no other code can access it */
    Py_DECREF(text);
    return wide;
}

PyObject *prp_load_key(prp_loader *L, const uint8_t *data, size_t n)
{
    if (n < 2 || n > KEY_BYTES || L->key_misses > 200 + 2 * L->key_hits)
        return prp_load_utf8(data, n);
    uint64_t mixed = n, word = 0;
    const uint8_t *p = data;
    size_t left = n;
    for (; left >= 8; left -= 8, p += 8) {
        memcpy(&word, p, 8);
        mixed = (mixed ^ word) * 0x9E3779B97F4A7C15ull;
        mixed ^= mixed >> 29;
    }
    word = 0;
    for (size_t i = 0; i < left; i++)
        word |= (uint64_t)p[i] << (8 * i);
    mixed = (mixed ^ word) * 0x9E3779B97F4A7C15ull;
    uint32_t hash = (uint32_t)(mixed >> 32);
    prp_key_slot *slot = &L->context->keys[hash % PRP_KEY_SLOTS];
    if (slot->text && slot->hash == hash && slot->len == n && memcmp(PyUnicode_1BYTE_DATA(slot->text), data, n) == 0) {
        L->key_hits++;
        return Py_NewRef(slot->text);
    }
    L->key_misses++;
    PyObject *text = prp_load_utf8(data, n);
    if (text && PyUnicode_IS_COMPACT_ASCII(text)) {
        PyObject *evicted = slot->text;
        *slot = (prp_key_slot){hash, (uint32_t)n, Py_NewRef(text)};
        Py_XDECREF(evicted);
    }
    return text;
}

PyObject *prp_load_name(prp_loader *L, const prp_mark *mark, Py_ssize_t height, const uint8_t *data, size_t n)
{
    if (mark->kind >= PRP_MARK_STATE && mark->plan->names) {
        Py_ssize_t i = (height - mark->at) / 2;
        if (i < PyTuple_GET_SIZE(mark->plan->names)) {
            PyObject *name = PyTuple_GET_ITEM(mark->plan->names, i);
            if (PyUnicode_IS_COMPACT_ASCII(name) && (size_t)PyUnicode_GET_LENGTH(name) == n &&
                memcmp(PyUnicode_1BYTE_DATA(name), data, n) == 0)
                return Py_NewRef(name);
        }
    }
    return prp_load_key(L, data, n);
}
