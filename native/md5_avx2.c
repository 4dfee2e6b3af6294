/* MD5 in 8 and 16 lanes of AVX2. */

#include "native.h"

#ifdef NATIVE_X86_64

#include <immintrin.h>

typedef uint32_t LaneVector __attribute__((vector_size(32), may_alias));

#define LANE_WIDTH 8
#define LANE_TARGET __attribute__((target("avx2")))

#define LANE_F(b, c, d) ((d) ^ ((b) & ((c) ^ (d))))
#define LANE_G(b, c, d) ((c) ^ ((d) & ((b) ^ (c))))
#define LANE_H(b, c, d) ((b) ^ ((c) ^ (d)))
#define LANE_I(b, c, d) ((c) ^ ((b) | ~(d)))
#define LANE_ROTATE(x, n) ((x) << (n) | (x) >> (32 - (n)))

/* Half a block at a time: eight loads and an 8 x 8 transposition. */
LANE_TARGET static inline __attribute__((always_inline)) void
lane_load(LaneVector *words, const uint8_t *const *data, size_t offset)
{
    for (int half = 0; half < 2; half++) {
        __m256i r[8], t[8];

        for (int i = 0; i < 8; i++) {
            r[i] = _mm256_loadu_si256((const __m256i *)(const void *)(data[i] + offset + 32 * half));
        }
        for (int i = 0; i < 8; i += 2) { /* pairs of streams: words interleaved */
            t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
            t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) { /* four streams: half h of r[i + k] has word 4 h + k of each */
            r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
            r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
            r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
            r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        for (int k = 0; k < 4; k++) {
            words[8 * half + k] = (LaneVector)_mm256_permute2x128_si256(r[k], r[k + 4], 0x20);
            words[8 * half + k + 4] = (LaneVector)_mm256_permute2x128_si256(r[k], r[k + 4], 0x31);
        }
    }
}

#define LANE_NAME md5_lanes_8
#define LANE_SETS 1
#include "md5_lanes.h"

#define LANE_NAME md5_lanes_16
#define LANE_SETS 2
#include "md5_lanes.h"

const Md5Kernel md5_kernel_avx2 = {"avx2", 2, {{16, 9, md5_lanes_16}, {8, 2, md5_lanes_8}}};

#endif
