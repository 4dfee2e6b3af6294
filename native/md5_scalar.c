/* MD5 of one stream in plain C: the path of every machine, and the judge of the vector paths. */

#include "native.h"
#include "md5_rounds.h"

const uint32_t md5_initial_state[4] = {0x67452301u, 0xefcdab89u, 0x98badcfeu, 0x10325476u};

/* Why bytes and not a cast: any alignment, either byte order; compilers make one load of it where they may. */
static inline uint32_t
load_word(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

#define F(b, c, d) ((d) ^ ((b) & ((c) ^ (d))))
/* Why a sum: the two halves share no bit, and c & ~d is ready a step before b is. */
#define G(b, c, d) (((c) & ~(d)) + ((b) & (d)))
#define H(b, c, d) ((b) ^ ((c) ^ (d)))
#define I(b, c, d) ((c) ^ ((b) | ~(d)))

#define MD5_STEP(f, a, b, c, d, word, constant, rotation) \
    do { \
        a += load_word(data + 4 * (word)) + (constant); \
        a += f(b, c, d); \
        a = (a << (rotation) | a >> (32 - (rotation))) + b; \
    } while (0)

void
md5_scalar(uint32_t state[4], const uint8_t *data, size_t blocks)
{
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];

    for (; blocks > 0; blocks--, data += MD5_BLOCK_BYTES) {
        const uint32_t a0 = a, b0 = b, c0 = c, d0 = d;

        MD5_ROUNDS(a, b, c, d);
        a += a0;
        b += b0;
        c += c0;
        d += d0;
    }
    state[0] = a;
    state[1] = b;
    state[2] = c;
    state[3] = d;
}
