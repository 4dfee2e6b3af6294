/* MD5 in 4 and 8 lanes of 128-bit vectors in the compiler's own notation: SSE2 on x86-64, NEON on ARM. */

#include "native.h"

#ifdef NATIVE_SIMD128

typedef uint32_t LaneVector __attribute__((vector_size(16), may_alias));
typedef uint32_t LooseVector __attribute__((vector_size(16), may_alias, aligned(1)));

#define LANE_WIDTH 4
#define LANE_TARGET

#define LANE_F(b, c, d) ((d) ^ ((b) & ((c) ^ (d))))
#define LANE_G(b, c, d) ((c) ^ ((d) & ((b) ^ (c))))
#define LANE_H(b, c, d) ((b) ^ ((c) ^ (d)))
#define LANE_I(b, c, d) ((c) ^ ((b) | ~(d)))
#define LANE_ROTATE(x, n) ((x) << (n) | (x) >> (32 - (n)))

/* The indices count through both vectors: 0 to 3 the first, 4 to 7 the second. */
#if defined(__clang__)
#define LANE_PICK(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l)
#else
#define LANE_PICK(x, y, i, j, k, l) __builtin_shuffle(x, y, (LaneVector){i, j, k, l})
#endif

/* A quarter of a block at a time: four loads and a 4 x 4 transposition. */
static inline __attribute__((always_inline)) void
lane_load(LaneVector *words, const uint8_t *const *data, size_t offset)
{
    for (int quarter = 0; quarter < 4; quarter++) {
        LaneVector r[4], t[4];

        for (int i = 0; i < 4; i++) {
            r[i] = *(const LooseVector *)(const void *)(data[i] + offset + 16 * quarter);
        }
        t[0] = LANE_PICK(r[0], r[1], 0, 4, 1, 5);
        t[1] = LANE_PICK(r[0], r[1], 2, 6, 3, 7);
        t[2] = LANE_PICK(r[2], r[3], 0, 4, 1, 5);
        t[3] = LANE_PICK(r[2], r[3], 2, 6, 3, 7);
        words[4 * quarter] = LANE_PICK(t[0], t[2], 0, 1, 4, 5);
        words[4 * quarter + 1] = LANE_PICK(t[0], t[2], 2, 3, 6, 7);
        words[4 * quarter + 2] = LANE_PICK(t[1], t[3], 0, 1, 4, 5);
        words[4 * quarter + 3] = LANE_PICK(t[1], t[3], 2, 3, 6, 7);
    }
}

#define LANE_NAME md5_lanes_4
#define LANE_SETS 1
#include "md5_lanes.h"

#define LANE_NAME md5_lanes_8
#define LANE_SETS 2
#include "md5_lanes.h"

const Md5Kernel md5_kernel_simd128 = {"simd128", 2, {{8, 5, md5_lanes_8}, {4, 2, md5_lanes_4}}};

#endif
