/* Reads opcodes whose argument is a line of text (protocols 0 and 1), and byte strings written by Python 2. */
#include "unpickler.h"

#include <errno.h>

/* A copy of a line with its newline. It ends in a zero byte, and no later read can move it; short lines are in
 * `small`. */
typedef struct {
    char *text;
    Py_ssize_t len; /* length including the newline */
    char small[64];
} text_line;

static int get_line(prp_loader *L, text_line *line, Py_ssize_t at_least)
{
    const char *start;
    Py_ssize_t len = prp_load_line(L, &start);
    if (len < 0)
        return -1;
    if (len < at_least)
        return prp_load_truncated();
    line->len = len;
    line->text = len < (Py_ssize_t)sizeof(line->small) ? line->small : PyMem_Malloc((size_t)len + 1);
    if (!line->text) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(line->text, start, (size_t)len);
    line->text[len] = 0;
    return 0;
}

static void free_line(text_line *line)
{
    if (line->text != line->small)
        PyMem_Free(line->text);
}

PyObject *prp_load_text_int(prp_loader *L)
{
    text_line line;
    if (get_line(L, &line, 2) < 0)
        return NULL;
    char *stop;
    errno = 0;
    long number = strtol(line.text, &stop, prp_load_int_base);
    PyObject *value;
    if (errno || (*stop != '\n' && *stop != '\0')) {
        errno = 0;
        value = PyLong_FromString(line.text, NULL, prp_load_int_base);
        if (!value)
            PyErr_SetString(PyExc_ValueError, "could not convert string to int");
    } else if (line.len == 3 && (number == 0 || number == 1)) {
        value = PyBool_FromLong(number);
    } else {
        value = PyLong_FromLong(number);
    }
    free_line(&line);
    return value;
}

PyObject *prp_load_text_long(prp_loader *L)
{
    text_line line;
    if (get_line(L, &line, 2) < 0)
        return NULL;
    if (line.text[line.len - 2] == 'L')
        line.text[line.len - 2] = '\0';
    PyObject *value = PyLong_FromString(line.text, NULL, prp_load_int_base);
    free_line(&line);
    return value;
}

PyObject *prp_load_text_float(prp_loader *L)
{
    text_line line;
    if (get_line(L, &line, 2) < 0)
        return NULL;
    char *stop;
    errno = 0;
    double number = PyOS_string_to_double(line.text, &stop, PyExc_OverflowError);
    PyObject *value = NULL;
    if (number == -1.0 && PyErr_Occurred())
        ;
    else if (*stop != '\n' && *stop != '\0')
        PyErr_SetString(PyExc_ValueError, "could not convert string to float");
    else
        value = PyFloat_FromDouble(number);
    free_line(&line);
    return value;
}

PyObject *prp_load_old_string(prp_loader *L, const char *data, size_t n)
{
    if (L->raw_strings)
        return PyBytes_FromStringAndSize(data, (Py_ssize_t)n);
    if (L->encoding && prp_load_foreign(L) < 0) /* a codec or error handler may be foreign code */
        return NULL;
    /* Decode a copy, because decoders read their input twice and bytes in shared memory can change in between. */
    PyObject *own = PyBytes_FromStringAndSize(data, (Py_ssize_t)n);
    if (!own)
        return NULL;
    PyObject *text = PRP_FOREIGN(PyUnicode_Decode(
        PyBytes_AS_STRING(own), (Py_ssize_t)n, L->encoding ? L->encoding : "ASCII", L->errors ? L->errors : "strict"));
    Py_DECREF(own);
    if (L->encoding)
        prp_load_own(L);
    return text;
}

PyObject *prp_load_text_string(prp_loader *L)
{
    text_line line;
    if (get_line(L, &line, 1) < 0)
        return NULL;
    Py_ssize_t len = line.len - 1;
    PyObject *value = NULL;
    if (len >= 2 && line.text[0] == line.text[len - 1] && (line.text[0] == '\'' || line.text[0] == '"')) {
        PyObject *bytes = PyBytes_DecodeEscape(line.text + 1, len - 2, NULL, 0, NULL);
        if (bytes && !L->raw_strings) {
            value = prp_load_old_string(L, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
            Py_DECREF(bytes);
        } else {
            value = bytes;
        }
    } else {
        prp_load_malformed("the STRING opcode argument must be quoted");
    }
    free_line(&line);
    return value;
}

PyObject *prp_load_text_unicode(prp_loader *L)
{
    text_line line;
    if (get_line(L, &line, 1) < 0)
        return NULL;
    PyObject *value = PyUnicode_DecodeRawUnicodeEscape(line.text, line.len - 1, NULL);
    free_line(&line);
    return value;
}

/* Read the name of a module or class. */
PyObject *prp_load_text_name(prp_loader *L)
{
    text_line line;
    if (get_line(L, &line, 2) < 0)
        return NULL;
    PyObject *value = PyUnicode_DecodeUTF8(line.text, line.len - 1, "strict");
    free_line(&line);
    return value;
}

/* Read a persistent id, which may be empty. */
PyObject *prp_load_text_pid(prp_loader *L)
{
    text_line line;
    if (get_line(L, &line, 1) < 0)
        return NULL;
    PyObject *value = PyUnicode_DecodeASCII(line.text, line.len - 1, "strict");
    free_line(&line);
    return value;
}

/* Read the decimal memo index of GET or PUT. */
int prp_load_text_index(prp_loader *L, Py_ssize_t *index)
{
    text_line line;
    if (get_line(L, &line, 2) < 0)
        return -1;
    PyObject *number = PyLong_FromString(line.text, NULL, 10);
    free_line(&line);
    *index = number ? PyLong_AsSsize_t(number) : -1;
    Py_XDECREF(number);
    return *index == -1 && PyErr_Occurred() ? -1 : 0;
}
