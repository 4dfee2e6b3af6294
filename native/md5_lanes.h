/* MD5 over many streams side by side: a template that each md5_<name>.c includes once per gang.
 *
 * One vector holds one word of LANE_WIDTH streams; LANE_SETS such vectors are worked on in turn, because a step of
 * MD5 waits for the one before it and a second set of lanes fills the wait.
 *
 * Needs, from the including file:
 *   LANE_NAME    name of the function to define
 *   LANE_SETS    1 or 2
 *   LANE_TARGET  attribute that lets the compiler use the instructions (may be empty)
 *   LaneVector   vector of LANE_WIDTH uint32_t
 *   LANE_ROTATE(x, n), LANE_F, LANE_G, LANE_H, LANE_I
 *   lane_load    static function: the 16 words of one block of LANE_WIDTH streams, one vector each
 */

#include "md5_rounds.h"

#define MD5_STEP(f, a, b, c, d, word, constant, rotation) \
    do { \
        for (int s = 0; s < LANE_SETS; s++) { \
            LaneVector t = a[s] + (words[s][word] + (uint32_t)(constant)); \
            t += LANE_##f(b[s], c[s], d[s]); \
            a[s] = LANE_ROTATE(t, rotation) + b[s]; \
        } \
    } while (0)

LANE_TARGET static void
LANE_NAME(uint32_t *state, const uint8_t *const *data, size_t blocks)
{
    enum { LANES = LANE_WIDTH * LANE_SETS };
    LaneVector a[LANE_SETS], b[LANE_SETS], c[LANE_SETS], d[LANE_SETS], words[LANE_SETS][16];

    for (int s = 0; s < LANE_SETS; s++) {
        a[s] = *(const LaneVector *)(state + 0 * LANES + s * LANE_WIDTH);
        b[s] = *(const LaneVector *)(state + 1 * LANES + s * LANE_WIDTH);
        c[s] = *(const LaneVector *)(state + 2 * LANES + s * LANE_WIDTH);
        d[s] = *(const LaneVector *)(state + 3 * LANES + s * LANE_WIDTH);
    }
    for (size_t offset = 0; offset < blocks * MD5_BLOCK_BYTES; offset += MD5_BLOCK_BYTES) {
        LaneVector a0[LANE_SETS], b0[LANE_SETS], c0[LANE_SETS], d0[LANE_SETS];

        for (int s = 0; s < LANE_SETS; s++) {
            lane_load(words[s], data + s * LANE_WIDTH, offset);
            a0[s] = a[s];
            b0[s] = b[s];
            c0[s] = c[s];
            d0[s] = d[s];
        }
        MD5_ROUNDS(a, b, c, d);
        for (int s = 0; s < LANE_SETS; s++) {
            a[s] += a0[s];
            b[s] += b0[s];
            c[s] += c0[s];
            d[s] += d0[s];
        }
    }
    for (int s = 0; s < LANE_SETS; s++) {
        *(LaneVector *)(state + 0 * LANES + s * LANE_WIDTH) = a[s];
        *(LaneVector *)(state + 1 * LANES + s * LANE_WIDTH) = b[s];
        *(LaneVector *)(state + 2 * LANES + s * LANE_WIDTH) = c[s];
        *(LaneVector *)(state + 3 * LANES + s * LANE_WIDTH) = d[s];
    }
}

#undef MD5_STEP
#undef LANE_NAME
#undef LANE_SETS
