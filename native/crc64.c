/* CRC-64/XZ: tables for every machine, carry-less multiplication where the CPU has it, and the arithmetic of joining.
 *
 * A 64-bit word stands for a polynomial with its bits reversed: bit 63 is the coefficient of x^0. So "times x" is a
 * shift to the right. Source: the polynomial of ECMA-182, 0x42F0E1EBA9EA3693, is 0xC96C5795D7870F42 reversed.
 */

#include "native.h"

#include <string.h>

#define POLYNOMIAL UINT64_C(0xC96C5795D7870F42)
#define X_TO_THE_0 (UINT64_C(1) << 63)

static inline uint64_t
times_x(uint64_t a)
{
    return a >> 1 ^ (POLYNOMIAL & (0 - (a & 1)));
}

/* a * b modulo the polynomial. */
static uint64_t
times(uint64_t a, uint64_t b)
{
    uint64_t product = 0;

    for (; b != 0; b <<= 1, a = times_x(a)) {
        product ^= a & (0 - (b >> 63));
    }
    return product;
}

/* x^(n * unit), where `base` is x^unit. */
static uint64_t
power(uint64_t base, uint64_t n)
{
    uint64_t result = X_TO_THE_0;

    for (; n != 0; n >>= 1, base = times(base, base)) {
        if (n & 1) {
            result = times(result, base);
        }
    }
    return result;
}

uint64_t
crc64_combine(uint64_t crc_a, uint64_t crc_b, uint64_t length_b)
{
    const uint64_t x_to_the_8 = X_TO_THE_0 >> 8;

    /* The ones before and after either CRC cancel: only A's remainder has to be carried over B. */
    return times(crc_a, power(x_to_the_8, length_b)) ^ crc_b;
}

/* What carries the halves of a chunk over `bits`.
 * Why one less than the distance: a carry-less product of two reversed words comes out times x. */
static void
fill_fold(uint64_t fold[2], uint64_t bits)
{
    const uint64_t x = X_TO_THE_0 >> 1;

    fold[0] = power(x, bits + 64 - 1);
    fold[1] = power(x, bits - 1);
}

void
crc64_fill_tables(Crc64Tables *tables)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        uint64_t crc = byte;

        for (int bit = 0; bit < 8; bit++) {
            crc = times_x(crc);
        }
        tables->slice[0][byte] = crc;
    }
    for (int k = 1; k < 16; k++) { /* slice[k]: the byte, then k zero bytes */
        for (unsigned byte = 0; byte < 256; byte++) {
            const uint64_t crc = tables->slice[k - 1][byte];

            tables->slice[k][byte] = crc >> 8 ^ tables->slice[0][crc & 0xff];
        }
    }
    fill_fold(tables->fold_2048, 2048);
    fill_fold(tables->fold_1024, 1024);
    fill_fold(tables->fold_512, 512);
    fill_fold(tables->fold_128, 128);
}

static inline uint64_t
load_word(const uint8_t *p)
{
    return (uint64_t)p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 24
           | (uint64_t)p[4] << 32 | (uint64_t)p[5] << 40 | (uint64_t)p[6] << 48 | (uint64_t)p[7] << 56;
}

/* The remainder alone, without the ones before and after. */
static uint64_t
remainder_by_table(const Crc64Tables *tables, uint64_t r, const uint8_t *data, size_t length)
{
    const uint64_t(*const slice)[256] = tables->slice;

    for (; length >= 16; length -= 16, data += 16) {
        const uint64_t low = load_word(data) ^ r, high = load_word(data + 8);

        r = slice[15][low & 0xff] ^ slice[14][low >> 8 & 0xff] ^ slice[13][low >> 16 & 0xff]
            ^ slice[12][low >> 24 & 0xff] ^ slice[11][low >> 32 & 0xff] ^ slice[10][low >> 40 & 0xff]
            ^ slice[9][low >> 48 & 0xff] ^ slice[8][low >> 56] ^ slice[7][high & 0xff]
            ^ slice[6][high >> 8 & 0xff] ^ slice[5][high >> 16 & 0xff] ^ slice[4][high >> 24 & 0xff]
            ^ slice[3][high >> 32 & 0xff] ^ slice[2][high >> 40 & 0xff] ^ slice[1][high >> 48 & 0xff]
            ^ slice[0][high >> 56];
    }
    for (; length > 0; length--, data++) {
        r = r >> 8 ^ slice[0][(r ^ *data) & 0xff];
    }
    return r;
}

uint64_t
crc64_table(const Crc64Tables *tables, uint64_t crc, const uint8_t *data, size_t length)
{
    return ~remainder_by_table(tables, ~crc, data, length);
}

#ifdef NATIVE_X86_64

#include <immintrin.h>

#define FOLD_TARGET __attribute__((target("pclmul,sse2")))

/* `chunk` carried over the distance that `by` stands for, plus what is found there. The first eight bytes of a chunk
 * are its upper half, 64 powers of x above the others; hence two constants. */
FOLD_TARGET static inline __attribute__((always_inline)) __m128i
fold(__m128i chunk, __m128i by, __m128i next)
{
    const __m128i upper = _mm_clmulepi64_si128(chunk, by, 0x00), lower = _mm_clmulepi64_si128(chunk, by, 0x11);

    return _mm_xor_si128(_mm_xor_si128(upper, lower), next);
}

FOLD_TARGET uint64_t
crc64_pclmul(const Crc64Tables *tables, uint64_t crc, const uint8_t *data, size_t length)
{
    enum { CHUNKS = 8, STRIDE = 16 * CHUNKS };
    const __m128i far = _mm_loadu_si128((const __m128i *)(const void *)tables->fold_1024);
    const __m128i near = _mm_loadu_si128((const __m128i *)(const void *)tables->fold_128);
    const __m128i *from = (const __m128i *)(const void *)data;
    __m128i chunk[CHUNKS], all;
    uint8_t rest[16];

    if (length < STRIDE) {
        return crc64_table(tables, crc, data, length);
    }
    for (int i = 0; i < CHUNKS; i++) {
        chunk[i] = _mm_loadu_si128(from + i);
    }
    chunk[0] = _mm_xor_si128(chunk[0], _mm_cvtsi64_si128((long long)~crc));
    for (from += CHUNKS, length -= STRIDE; length >= STRIDE; from += CHUNKS, length -= STRIDE) {
        for (int i = 0; i < CHUNKS; i++) {
            chunk[i] = fold(chunk[i], far, _mm_loadu_si128(from + i));
        }
    }
    all = chunk[0];
    for (int i = 1; i < CHUNKS; i++) {
        all = fold(all, near, chunk[i]);
    }
    for (; length >= 16; from++, length -= 16) {
        all = fold(all, near, _mm_loadu_si128(from));
    }
    _mm_storeu_si128((__m128i *)(void *)rest, all);
    crc = remainder_by_table(tables, 0, rest, sizeof(rest));
    return ~remainder_by_table(tables, crc, (const uint8_t *)from, length);
}

#define FOLD512_TARGET __attribute__((target("vpclmulqdq,pclmul,avx512f,sse2")))

/* As fold, four chunks at a time. */
FOLD512_TARGET static inline __attribute__((always_inline)) __m512i
fold512(__m512i chunks, __m512i by, __m512i next)
{
    const __m512i upper = _mm512_clmulepi64_epi128(chunks, by, 0x00), lower = _mm512_clmulepi64_epi128(chunks, by, 0x11);

    return _mm512_ternarylogic_epi64(upper, lower, next, 0x96); /* all three xored */
}

FOLD512_TARGET static inline __attribute__((always_inline)) __m512i
four_times(const uint64_t fold[2])
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)fold));
}

FOLD512_TARGET uint64_t
crc64_avx512(const Crc64Tables *tables, uint64_t crc, const uint8_t *data, size_t length)
{
    enum { VECTORS = 4, VECTOR = 64, STRIDE = VECTOR * VECTORS };
    const __m512i far = four_times(tables->fold_2048), middle = four_times(tables->fold_512);
    __m512i vector[VECTORS], all;
    uint8_t rest[VECTOR];

    if (length < STRIDE) {
        return crc64_pclmul(tables, crc, data, length);
    }
    for (int i = 0; i < VECTORS; i++) {
        vector[i] = _mm512_loadu_si512(data + VECTOR * i);
    }
    vector[0] = _mm512_xor_si512(vector[0], _mm512_zextsi128_si512(_mm_cvtsi64_si128((long long)~crc)));
    for (data += STRIDE, length -= STRIDE; length >= STRIDE; data += STRIDE, length -= STRIDE) {
        for (int i = 0; i < VECTORS; i++) {
            vector[i] = fold512(vector[i], far, _mm512_loadu_si512(data + VECTOR * i));
        }
    }
    all = vector[0];
    for (int i = 1; i < VECTORS; i++) {
        all = fold512(all, middle, vector[i]);
    }
    for (; length >= VECTOR; data += VECTOR, length -= VECTOR) {
        all = fold512(all, middle, _mm512_loadu_si512(data));
    }
    /* What is left is a message that has that remainder: ones before it, as a CRC has them, would be too many. */
    _mm512_storeu_si512(rest, all);
    crc = remainder_by_table(tables, 0, rest, sizeof(rest));
    return ~remainder_by_table(tables, crc, data, length);
}

static const Crc64Kernel kernel_pclmul = {"pclmul", crc64_pclmul};
static const Crc64Kernel kernel_avx512 = {"avx512", crc64_avx512};

#endif

static const Crc64Kernel kernel_table = {"portable", crc64_table};

size_t
crc64_find_kernels(const Crc64Kernel *kernels[CRC64_KERNELS_MAX])
{
    size_t count = 0;

#ifdef NATIVE_X86_64
    __builtin_cpu_init();
    if (__builtin_cpu_supports("pclmul") && __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f")) {
        kernels[count++] = &kernel_avx512;
    }
    if (__builtin_cpu_supports("pclmul")) {
        kernels[count++] = &kernel_pclmul;
    }
#endif
    kernels[count++] = &kernel_table;
    return count;
}
