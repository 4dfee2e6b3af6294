/* MD5 in 16 and 32 lanes of AVX-512: rotates and any function of three words are one instruction each. */

#include "native.h"

#ifdef NATIVE_X86_64

#include <immintrin.h>

typedef uint32_t LaneVector __attribute__((vector_size(64), may_alias));

#define LANE_WIDTH 16
#define LANE_TARGET __attribute__((target("avx512f")))

/* The last argument is the truth table of f(b, c, d), the bit for b = c = d = 1 first. */
#define LANE_LOGIC(b, c, d, table) \
    ((LaneVector)_mm512_ternarylogic_epi32((__m512i)(b), (__m512i)(c), (__m512i)(d), (table)))
#define LANE_F(b, c, d) LANE_LOGIC(b, c, d, 0xca)
#define LANE_G(b, c, d) LANE_LOGIC(b, c, d, 0xe4)
#define LANE_H(b, c, d) LANE_LOGIC(b, c, d, 0x96)
#define LANE_I(b, c, d) LANE_LOGIC(b, c, d, 0x39)
#define LANE_ROTATE(x, n) ((LaneVector)_mm512_rol_epi32((__m512i)(x), (n)))

/* Sixteen loads of a whole block and a 16 x 16 transposition.
 * Why not a gather, nor quarters of blocks inserted from memory: slower by a third and by a fifth (README.md). */
LANE_TARGET static inline __attribute__((always_inline)) void
lane_load(LaneVector *words, const uint8_t *const *data, size_t offset)
{
    __m512i r[16], t[16];

    for (int i = 0; i < 16; i++) {
        r[i] = _mm512_loadu_si512((const void *)(data[i] + offset));
    }
    for (int i = 0; i < 16; i += 2) { /* pairs of streams: words interleaved */
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* four streams: quarter q of r[i + k] has word 4 q + k of each */
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int k = 0; k < 4; k++) { /* a 4 x 4 transposition of quarters */
        const __m512i low01 = _mm512_shuffle_i32x4(r[k], r[k + 4], 0x88);     /* quarters 0 and 2 */
        const __m512i high01 = _mm512_shuffle_i32x4(r[k], r[k + 4], 0xdd);    /* quarters 1 and 3 */
        const __m512i low23 = _mm512_shuffle_i32x4(r[k + 8], r[k + 12], 0x88);
        const __m512i high23 = _mm512_shuffle_i32x4(r[k + 8], r[k + 12], 0xdd);

        words[k] = (LaneVector)_mm512_shuffle_i32x4(low01, low23, 0x88);
        words[k + 4] = (LaneVector)_mm512_shuffle_i32x4(high01, high23, 0x88);
        words[k + 8] = (LaneVector)_mm512_shuffle_i32x4(low01, low23, 0xdd);
        words[k + 12] = (LaneVector)_mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
}

#define LANE_NAME md5_lanes_16
#define LANE_SETS 1
#include "md5_lanes.h"

#define LANE_NAME md5_lanes_32
#define LANE_SETS 2
#include "md5_lanes.h"

const Md5Kernel md5_kernel_avx512 = {"avx512", 2, {{32, 17, md5_lanes_32}, {16, 2, md5_lanes_16}}};

#endif
