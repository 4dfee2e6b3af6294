/* obs_engine._native: the C core as Python sees it. All that touches the interpreter is in this file.
 *
 * The GIL is released around pure work on held buffers only. What is created per interpreter lives in the module's
 * state, so the module may be loaded by several interpreters.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <string.h>

#include "native.h"

/* Why a floor: a thread that lets go of the GIL may wait long for its return, which small work is not worth.
 * Precedent: hashlib, about the same number. */
#define GIL_RELEASE_MIN_BYTES 2048

typedef struct {
    PyTypeObject *md5_type;
    size_t md5_kernel_count;
    const Md5Kernel *md5_kernels[MD5_KERNELS_MAX];
    size_t crc64_kernel_count;
    const Crc64Kernel *crc64_kernels[CRC64_KERNELS_MAX];
    Crc64Tables crc64_tables;
} ModuleState;

/* ---- Md5 ---- */

/* Invariant: `pending` holds the last length % 64 bytes, which `state` does not know yet.
 * Invariant: `user` is NULL unless a call works on this object with the GIL released. */
typedef struct {
    PyObject_HEAD
    uint32_t state[4];
    uint64_t length;
    const void *user;
    uint8_t pending[MD5_BLOCK_BYTES];
} Md5Object;

/* The work of one call on one hasher. */
typedef struct {
    Md5Object *hasher;
    Py_buffer buffer;
} Feed;

/* Takes the bytes that complete a pending block; what whole blocks follow goes to `stream`.
 * Returns how many bytes are left: those blocks and the tail behind them. */
static size_t
feed_begin(Feed *feed, Md5Stream *stream)
{
    Md5Object *hasher = feed->hasher;
    const uint8_t *data = feed->buffer.buf;
    size_t length = (size_t)feed->buffer.len;
    const size_t held = hasher->length % MD5_BLOCK_BYTES;

    if (held > 0 && held + length >= MD5_BLOCK_BYTES) {
        const size_t missing = MD5_BLOCK_BYTES - held;

        memcpy(hasher->pending + held, data, missing);
        md5_scalar(hasher->state, hasher->pending, 1);
        hasher->length += missing;
        data += missing;
        length -= missing;
    }
    stream->state = hasher->state;
    stream->data = data;
    /* Why no blocks where a block stays incomplete: then all of the buffer is shorter than what is missing. */
    stream->blocks = hasher->length % MD5_BLOCK_BYTES == 0 ? length / MD5_BLOCK_BYTES : 0;
    return length;
}

/* Counts what feed_begin left, and keeps the bytes behind the last whole block. Needs: the stream was hashed. */
static void
feed_end(Feed *feed, size_t left)
{
    Md5Object *hasher = feed->hasher;
    const size_t held = hasher->length % MD5_BLOCK_BYTES;
    const size_t tail = held > 0 ? left : left % MD5_BLOCK_BYTES;

    if (tail > 0) {
        memcpy(hasher->pending + held, (const uint8_t *)feed->buffer.buf + feed->buffer.len - tail, tail);
    }
    hasher->length += left;
}

static PyObject *
md5_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    Md5Object *self;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Md5", names)) {
        return NULL;
    }
    self = (Md5Object *)type->tp_alloc(type, 0);
    if (self != NULL) {
        memcpy(self->state, md5_initial_state, sizeof(self->state));
    }
    return (PyObject *)self;
}

static void
md5_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    type->tp_free(self);
    Py_DECREF(type); /* an object of a heap type owns a reference to it */
}

static bool
md5_is_at_rest(const Md5Object *self, const char *what)
{
    if (self->user == NULL) {
        return true;
    }
    PyErr_Format(PyExc_RuntimeError,
                 "%s: expected an Md5 at rest, found one that another thread is updating; "
                 "give each thread its own, or wait for that call",
                 what);
    return false;
}

PyDoc_STRVAR(md5_update_doc, "update($self, data, /)\n--\n\nAdds the bytes of a contiguous buffer to the stream.");

static PyObject *
md5_update(PyObject *object, PyObject *data)
{
    Feed feed = {.hasher = (Md5Object *)object};
    Md5Stream stream;
    size_t left;

    if (PyObject_GetBuffer(data, &feed.buffer, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (!md5_is_at_rest(feed.hasher, "Md5.update")) {
        PyBuffer_Release(&feed.buffer);
        return NULL;
    }
    const bool is_long = feed.buffer.len >= GIL_RELEASE_MIN_BYTES;
    PyThreadState *thread = NULL;

    feed.hasher->user = &feed;
    if (is_long) {
        thread = PyEval_SaveThread();
    }
    left = feed_begin(&feed, &stream);
    md5_scalar(stream.state, stream.data, stream.blocks);
    feed_end(&feed, left);
    if (is_long) {
        PyEval_RestoreThread(thread);
    }
    feed.hasher->user = NULL;
    PyBuffer_Release(&feed.buffer);
    Py_RETURN_NONE;
}

/* The digest so far, on a copy of the state: the stream may go on. */
static void
md5_finish(const Md5Object *self, uint8_t digest[16])
{
    uint32_t state[4];
    uint8_t end[2 * MD5_BLOCK_BYTES] = {0};
    const size_t held = self->length % MD5_BLOCK_BYTES;
    const size_t blocks = held < MD5_BLOCK_BYTES - 8 ? 1 : 2;
    const uint64_t bits = self->length * 8; /* modulo 2^64, as the RFC has it */

    memcpy(state, self->state, sizeof(state));
    memcpy(end, self->pending, held);
    end[held] = 0x80;
    for (int i = 0; i < 8; i++) {
        end[blocks * MD5_BLOCK_BYTES - 8 + i] = (uint8_t)(bits >> 8 * i);
    }
    md5_scalar(state, end, blocks);
    for (int i = 0; i < 16; i++) {
        digest[i] = (uint8_t)(state[i / 4] >> 8 * (i % 4));
    }
}

PyDoc_STRVAR(md5_digest_doc, "digest($self, /)\n--\n\nThe 16 bytes of the MD5 so far; the stream may go on.");

static PyObject *
md5_digest(PyObject *object, PyObject *Py_UNUSED(none))
{
    uint8_t digest[16];

    if (!md5_is_at_rest((Md5Object *)object, "Md5.digest")) {
        return NULL;
    }
    md5_finish((Md5Object *)object, digest);
    return PyBytes_FromStringAndSize((const char *)digest, sizeof(digest));
}

PyDoc_STRVAR(md5_hexdigest_doc, "hexdigest($self, /)\n--\n\nAs digest, in 32 lower-case hexadecimal digits.");

static PyObject *
md5_hexdigest(PyObject *object, PyObject *Py_UNUSED(none))
{
    static const char digits[] = "0123456789abcdef";
    uint8_t digest[16];
    char text[32];

    if (!md5_is_at_rest((Md5Object *)object, "Md5.hexdigest")) {
        return NULL;
    }
    md5_finish((Md5Object *)object, digest);
    for (int i = 0; i < 16; i++) {
        text[2 * i] = digits[digest[i] >> 4];
        text[2 * i + 1] = digits[digest[i] & 15];
    }
    return PyUnicode_FromStringAndSize(text, sizeof(text));
}

PyDoc_STRVAR(md5_copy_doc, "copy($self, /)\n--\n\nA second stream that begins with what this one has seen.");

static PyObject *
md5_copy(PyObject *object, PyObject *Py_UNUSED(none))
{
    const Md5Object *self = (const Md5Object *)object;
    PyTypeObject *type = Py_TYPE(object);
    Md5Object *twin;

    if (!md5_is_at_rest(self, "Md5.copy")) {
        return NULL;
    }
    twin = (Md5Object *)type->tp_alloc(type, 0);
    if (twin != NULL) {
        memcpy(twin->state, self->state, sizeof(twin->state));
        memcpy(twin->pending, self->pending, sizeof(twin->pending));
        twin->length = self->length;
    }
    return (PyObject *)twin;
}

static PyMethodDef md5_methods[] = {
    {"update", md5_update, METH_O, md5_update_doc},
    {"digest", md5_digest, METH_NOARGS, md5_digest_doc},
    {"hexdigest", md5_hexdigest, METH_NOARGS, md5_hexdigest_doc},
    {"copy", md5_copy, METH_NOARGS, md5_copy_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(md5_doc, "Md5()\n--\n\nThe MD5 of one stream of bytes, as RFC 1321 has it.");

static PyType_Slot md5_slots[] = {
    {Py_tp_new, md5_new},
    {Py_tp_dealloc, md5_dealloc},
    {Py_tp_methods, md5_methods},
    {Py_tp_doc, (void *)md5_doc},
    {0, NULL},
};

static PyType_Spec md5_spec = {
    .name = "obs_engine._native.Md5",
    .basicsize = sizeof(Md5Object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = md5_slots,
};

/* ---- choosing a kernel ---- */

static const Md5Kernel *
find_md5_kernel(const ModuleState *state, const char *name)
{
    if (name == NULL) {
        return state->md5_kernels[0];
    }
    for (size_t i = 0; i < state->md5_kernel_count; i++) {
        if (strcmp(state->md5_kernels[i]->name, name) == 0) {
            return state->md5_kernels[i];
        }
    }
    PyErr_Format(PyExc_ValueError,
                 "md5_update_many kernel: expected a name from kernels(), found '%s'; leave it out for the best", name);
    return NULL;
}

static const Crc64Kernel *
find_crc64_kernel(const ModuleState *state, const char *name)
{
    if (name == NULL) {
        return state->crc64_kernels[0];
    }
    for (size_t i = 0; i < state->crc64_kernel_count; i++) {
        if (strcmp(state->crc64_kernels[i]->name, name) == 0) {
            return state->crc64_kernels[i];
        }
    }
    PyErr_Format(PyExc_ValueError,
                 "crc64 kernel: expected a name from crc64_kernels(), found '%s'; leave it out for the best", name);
    return NULL;
}

static PyObject *
tuple_of_names(const char *const *names, size_t count)
{
    PyObject *tuple = PyTuple_New((Py_ssize_t)count);

    for (size_t i = 0; tuple != NULL && i < count; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);

        if (name == NULL) {
            Py_CLEAR(tuple);
        }
        else {
            PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, name);
        }
    }
    return tuple;
}

PyDoc_STRVAR(kernels_doc, "kernels($module, /)\n--\n\nNames of the MD5 kernels that this CPU can run, best first.");

static PyObject *
kernels(PyObject *module, PyObject *Py_UNUSED(none))
{
    const ModuleState *state = PyModule_GetState(module);
    const char *names[MD5_KERNELS_MAX];

    for (size_t i = 0; i < state->md5_kernel_count; i++) {
        names[i] = state->md5_kernels[i]->name;
    }
    return tuple_of_names(names, state->md5_kernel_count);
}

PyDoc_STRVAR(crc64_kernels_doc,
             "crc64_kernels($module, /)\n--\n\nNames of the CRC-64 kernels that this CPU can run, best first.");

static PyObject *
crc64_kernels(PyObject *module, PyObject *Py_UNUSED(none))
{
    const ModuleState *state = PyModule_GetState(module);
    const char *names[CRC64_KERNELS_MAX];

    for (size_t i = 0; i < state->crc64_kernel_count; i++) {
        names[i] = state->crc64_kernels[i]->name;
    }
    return tuple_of_names(names, state->crc64_kernel_count);
}

/* ---- many streams ---- */

/* All feeds, side by side. Runs without the GIL. `left` has room for `count` lengths, as `streams` has. */
static void
feed_all(const Md5Kernel *kernel, Feed *feeds, Md5Stream *streams, size_t *left, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        left[i] = feed_begin(&feeds[i], &streams[i]);
    }
    md5_many(kernel, streams, count); /* reorders the streams: hence `left` apart */
    for (size_t i = 0; i < count; i++) {
        feed_end(&feeds[i], left[i]);
    }
}

/* Marks all hashers as used by this call, or none. */
static bool
take_hashers(Feed *feeds, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        Md5Object *hasher = feeds[i].hasher;

        if (hasher->user == feeds) {
            PyErr_Format(PyExc_ValueError,
                         "md5_update_many: expected each hasher once, found the one at index %zd again; "
                         "a stream has one order of bytes",
                         i);
        }
        else if (md5_is_at_rest(hasher, "md5_update_many")) {
            hasher->user = feeds;
            continue;
        }
        while (--i >= 0) {
            feeds[i].hasher->user = NULL;
        }
        return false;
    }
    return true;
}

PyDoc_STRVAR(md5_update_many_doc,
             "md5_update_many($module, /, hashers, buffers, kernel=None)\n--\n\n"
             "Adds buffers[i] to hashers[i], for all i side by side. All or none: errors come before any work.");

static PyObject *
md5_update_many(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"hashers", "buffers", "kernel", NULL};
    const ModuleState *state = PyModule_GetState(module);
    PyObject *given_hashers, *given_buffers, *hashers = NULL, *buffers = NULL, *result = NULL;
    const char *kernel_name = NULL;
    const Md5Kernel *kernel;
    Feed *feeds = NULL;
    Md5Stream *streams = NULL;
    size_t *left = NULL, total = 0;
    Py_ssize_t count = 0, held = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|z:md5_update_many", names, &given_hashers, &given_buffers,
                                     &kernel_name)) {
        return NULL;
    }
    kernel = find_md5_kernel(state, kernel_name);
    if (kernel == NULL) {
        return NULL;
    }
    /* Why tuples: taking a buffer may run Python code, and a list could change under it. */
    hashers = PySequence_Tuple(given_hashers);
    buffers = hashers == NULL ? NULL : PySequence_Tuple(given_buffers);
    if (buffers == NULL) {
        goto done;
    }
    count = PyTuple_GET_SIZE(hashers);
    if (PyTuple_GET_SIZE(buffers) != count) {
        PyErr_Format(PyExc_ValueError, "md5_update_many: expected one buffer for each hasher, found %zd and %zd",
                     PyTuple_GET_SIZE(buffers), count);
        goto done;
    }
    feeds = PyMem_New(Feed, count);
    streams = PyMem_New(Md5Stream, count);
    left = PyMem_New(size_t, count);
    if (feeds == NULL || streams == NULL || left == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (; held < count; held++) {
        PyObject *hasher = PyTuple_GET_ITEM(hashers, held);

        if (!Py_IS_TYPE(hasher, state->md5_type)) {
            PyErr_Format(PyExc_TypeError, "md5_update_many: expected an Md5 at index %zd of the hashers, found %s",
                         held, Py_TYPE(hasher)->tp_name);
            goto done;
        }
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(buffers, held), &feeds[held].buffer, PyBUF_SIMPLE) < 0) {
            goto done;
        }
        feeds[held].hasher = (Md5Object *)hasher;
        total += (size_t)feeds[held].buffer.len;
    }
    /* No Python code runs between here and the marks being taken off again, but in other threads. */
    if (!take_hashers(feeds, count)) {
        goto done;
    }
    if (total >= GIL_RELEASE_MIN_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        feed_all(kernel, feeds, streams, left, (size_t)count);
        Py_END_ALLOW_THREADS
    }
    else {
        feed_all(kernel, feeds, streams, left, (size_t)count);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        feeds[i].hasher->user = NULL;
    }
    result = Py_NewRef(Py_None);

done:
    while (held > 0) {
        PyBuffer_Release(&feeds[--held].buffer);
    }
    PyMem_Free(left);
    PyMem_Free(streams);
    PyMem_Free(feeds);
    Py_XDECREF(buffers);
    Py_XDECREF(hashers);
    return result;
}

/* ---- CRC-64 ---- */

/* A whole number of 64 bits, or -1 with an error that names it. */
static int
read_word(PyObject *number, const char *what, uint64_t *word)
{
    PyObject *index = PyNumber_Index(number);

    if (index == NULL) {
        return -1;
    }
    *word = PyLong_AsUnsignedLongLong(index);
    if (*word == UINT64_MAX && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_Clear();
            PyErr_Format(PyExc_ValueError, "%s: expected 0 to 2**64 - 1, found %R", what, index);
        }
        Py_DECREF(index);
        return -1;
    }
    Py_DECREF(index);
    return 0;
}

PyDoc_STRVAR(crc64_doc,
             "crc64($module, /, data, value=0, kernel=None)\n--\n\n"
             "The CRC-64/XZ of what `value` is the CRC of, followed by data.");

static PyObject *
crc64(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "value", "kernel", NULL};
    const ModuleState *state = PyModule_GetState(module);
    PyObject *data, *value = NULL;
    const char *kernel_name = NULL;
    const Crc64Kernel *kernel;
    Py_buffer buffer;
    uint64_t crc = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|Oz:crc64", names, &data, &value, &kernel_name)) {
        return NULL;
    }
    kernel = find_crc64_kernel(state, kernel_name);
    if (kernel == NULL || (value != NULL && read_word(value, "crc64 value", &crc) < 0)) {
        return NULL;
    }
    if (PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (buffer.len >= GIL_RELEASE_MIN_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        crc = kernel->run(&state->crc64_tables, crc, buffer.buf, (size_t)buffer.len);
        Py_END_ALLOW_THREADS
    }
    else {
        crc = kernel->run(&state->crc64_tables, crc, buffer.buf, (size_t)buffer.len);
    }
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLongLong(crc);
}

PyDoc_STRVAR(crc64_combine_doc,
             "crc64_combine($module, /, crc_a, crc_b, length_b)\n--\n\n"
             "The CRC-64/XZ of A followed by B, from the CRC of each and the length of B in bytes.");

static PyObject *
combine(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"crc_a", "crc_b", "length_b", NULL};
    PyObject *given[3];
    uint64_t crc_a, crc_b, length_b;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO:crc64_combine", names, &given[0], &given[1], &given[2])) {
        return NULL;
    }
    if (read_word(given[0], "crc64_combine crc_a", &crc_a) < 0 || read_word(given[1], "crc64_combine crc_b", &crc_b) < 0
        || read_word(given[2], "crc64_combine length_b", &length_b) < 0) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(crc64_combine(crc_a, crc_b, length_b));
}

/* ---- the module ---- */

static int
module_exec(PyObject *module)
{
    ModuleState *state = PyModule_GetState(module);

    state->md5_kernel_count = md5_find_kernels(state->md5_kernels);
    state->crc64_kernel_count = crc64_find_kernels(state->crc64_kernels);
    crc64_fill_tables(&state->crc64_tables);
    state->md5_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &md5_spec, NULL);
    if (state->md5_type == NULL) {
        return -1;
    }
    return PyModule_AddType(module, state->md5_type);
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    ModuleState *state = PyModule_GetState(module);

    Py_VISIT(state->md5_type);
    return 0;
}

static int
module_clear(PyObject *module)
{
    ModuleState *state = PyModule_GetState(module);

    Py_CLEAR(state->md5_type);
    return 0;
}

static void
module_free(void *module)
{
    (void)module_clear(module);
}

#define WITH_KEYWORDS(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef module_methods[] = {
    {"kernels", kernels, METH_NOARGS, kernels_doc},
    {"crc64_kernels", crc64_kernels, METH_NOARGS, crc64_kernels_doc},
    {"md5_update_many", WITH_KEYWORDS(md5_update_many), METH_VARARGS | METH_KEYWORDS, md5_update_many_doc},
    {"crc64", WITH_KEYWORDS(crc64), METH_VARARGS | METH_KEYWORDS, crc64_doc},
    {"crc64_combine", WITH_KEYWORDS(combine), METH_VARARGS | METH_KEYWORDS, crc64_combine_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "obs_engine._native",
    .m_doc = "MD5 of many streams side by side, and CRC-64/XZ. obs_engine.digests is its only user.",
    .m_size = sizeof(ModuleState),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&module_definition);
}
