/* Which kernels this CPU can run, and how streams of unequal length share the lanes of one. */

#include "native.h"

#include <stdlib.h>

static const Md5Kernel md5_kernel_portable = {"portable", 0, {{0, 0, NULL}}};

size_t
md5_find_kernels(const Md5Kernel *kernels[MD5_KERNELS_MAX])
{
    size_t count = 0;

#ifdef NATIVE_X86_64
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        kernels[count++] = &md5_kernel_avx512;
    }
    if (__builtin_cpu_supports("avx2")) {
        kernels[count++] = &md5_kernel_avx2;
    }
#endif
#ifdef NATIVE_SIMD128
    kernels[count++] = &md5_kernel_simd128;
#endif
    kernels[count++] = &md5_kernel_portable;
    return count;
}

static int
compare_longest_first(const void *left, const void *right)
{
    const size_t a = ((const Md5Stream *)left)->blocks, b = ((const Md5Stream *)right)->blocks;

    return (a < b) - (a > b);
}

static void
move_state(uint32_t *to, size_t to_step, const uint32_t *from, size_t from_step)
{
    for (size_t word = 0; word < 4; word++) {
        to[word * to_step] = from[word * from_step];
    }
}

/* Works until fewer than `pays_from` streams are unfinished; moves those to the front and returns their number.
 * Invariant: outside this function every stream's state, data and blocks agree. */
static size_t
run_gang(const Md5Gang *gang, Md5Stream *streams, size_t count)
{
    _Alignas(64) uint32_t state[4 * MD5_LANES_MAX] = {0};
    const uint8_t *data[MD5_LANES_MAX];
    Md5Stream *seats[MD5_LANES_MAX] = {NULL};
    const size_t lanes = gang->lanes;
    size_t next = 0, busy = 0, unfinished = 0;

    for (;;) {
        const uint8_t *spare = NULL;
        size_t blocks = SIZE_MAX;

        for (size_t lane = 0; lane < lanes; lane++) {
            if (seats[lane] == NULL && next < count) {
                seats[lane] = &streams[next++];
                move_state(state + lane, lanes, seats[lane]->state, 1);
                busy++;
            }
            if (seats[lane] != NULL) {
                data[lane] = spare = seats[lane]->data;
                blocks = seats[lane]->blocks < blocks ? seats[lane]->blocks : blocks;
            }
        }
        if (busy == 0 || busy < gang->pays_from) {
            break;
        }
        for (size_t lane = 0; lane < lanes; lane++) {
            if (seats[lane] == NULL) {
                data[lane] = spare; /* a lane without a stream repeats a neighbour's work, and nobody looks */
            }
        }
        gang->run(state, data, blocks);
        for (size_t lane = 0; lane < lanes; lane++) {
            Md5Stream *stream = seats[lane];

            if (stream == NULL) {
                continue;
            }
            stream->data += blocks * MD5_BLOCK_BYTES;
            stream->blocks -= blocks;
            if (stream->blocks == 0) {
                move_state(stream->state, 1, state + lane, lanes);
                seats[lane] = NULL;
                busy--;
            }
        }
    }
    for (size_t lane = 0; lane < lanes; lane++) {
        if (seats[lane] != NULL) {
            move_state(seats[lane]->state, 1, state + lane, lanes);
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (streams[i].blocks > 0) {
            streams[unfinished++] = streams[i];
        }
    }
    return unfinished;
}

void
md5_many(const Md5Kernel *kernel, Md5Stream *streams, size_t count)
{
    if (kernel->gang_count > 0) {
        size_t whole = 0;

        for (size_t i = 0; i < count; i++) {
            if (streams[i].blocks > 0) {
                streams[whole++] = streams[i];
            }
        }
        count = whole;
        /* Why the longest first: what is seated last is short, so the lanes come to their end together. */
        qsort(streams, count, sizeof(*streams), compare_longest_first);
    }
    for (size_t i = 0; i < kernel->gang_count; i++) {
        if (count >= kernel->gangs[i].pays_from) {
            count = run_gang(&kernel->gangs[i], streams, count);
        }
    }
    for (size_t i = 0; i < count; i++) {
        md5_scalar(streams[i].state, streams[i].data, streams[i].blocks);
    }
}
