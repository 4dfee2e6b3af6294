/* The one header of the C core: what each file offers to the others.
 *
 * Knows plain memory only. Nothing but module.c knows Python, so the rest may be compiled and sanitized alone.
 * There is no mutable static state: what the CPU can do is asked once per module and kept in the module's own state.
 */

#ifndef OBS_ENGINE_NATIVE_H
#define OBS_ENGINE_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) && (defined(__x86_64__) || defined(_M_X64))
#define NATIVE_X86_64 1 /* run-time dispatch and the intrinsics are at hand */
#endif

/* Why little-endian alone: MD5 reads little-endian words, which a vector load gives only there. */
#if defined(__GNUC__) && defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ \
    && (defined(__SSE2__) || defined(__ARM_NEON))
#define NATIVE_SIMD128 1 /* four-lane vectors that need no run-time question */
#endif

/* ---- MD5 (RFC 1321) ---- */

#define MD5_BLOCK_BYTES 64
#define MD5_LANES_MAX 32

extern const uint32_t md5_initial_state[4];

/* One stream's whole blocks: `blocks` x 64 bytes at `data`, to be folded into the four words at `state`. */
typedef struct {
    uint32_t *state;
    const uint8_t *data;
    size_t blocks;
} Md5Stream;

/* Folds `blocks` blocks of every lane into `state`, which holds word w of lane l at state[w * lanes + l].
 * Needs: `state` aligned to 64 bytes; data[l] readable for blocks * 64 bytes, at any alignment. */
typedef void (*Md5GangFunction)(uint32_t *state, const uint8_t *const *data, size_t blocks);

/* One way to hash `lanes` streams side by side. */
typedef struct {
    unsigned lanes;
    unsigned pays_from; /* with fewer busy lanes the next narrower way is faster (measured: README.md) */
    Md5GangFunction run;
} Md5Gang;

#define MD5_GANGS_MAX 2

/* A named set of ways, the widest first; what no gang takes is hashed stream by stream. */
typedef struct {
    const char *name;
    size_t gang_count;
    Md5Gang gangs[MD5_GANGS_MAX];
} Md5Kernel;

#define MD5_KERNELS_MAX 4

/* Writes the kernels that this CPU can run into `kernels`, best first; returns their number (1 or more). */
size_t md5_find_kernels(const Md5Kernel *kernels[MD5_KERNELS_MAX]);

/* One stream, on any machine. */
void md5_scalar(uint32_t state[4], const uint8_t *data, size_t blocks);

/* Hashes all streams to their end. Reorders and uses up `streams`. No two may share a state. */
void md5_many(const Md5Kernel *kernel, Md5Stream *streams, size_t count);

#ifdef NATIVE_X86_64
extern const Md5Kernel md5_kernel_avx512;
extern const Md5Kernel md5_kernel_avx2;
#endif
#ifdef NATIVE_SIMD128
extern const Md5Kernel md5_kernel_simd128;
#endif

/* ---- CRC-64/XZ, which the service calls crc64ecma ---- */

/* 32 KiB of slicing tables and the folding constants, filled once per module. */
typedef struct {
    uint64_t slice[16][256];
    uint64_t fold_2048[2]; /* carry 16 bytes over the next 256, 128, 64 and 16 */
    uint64_t fold_1024[2];
    uint64_t fold_512[2];
    uint64_t fold_128[2];
} Crc64Tables;

typedef uint64_t (*Crc64Function)(const Crc64Tables *tables, uint64_t crc, const uint8_t *data, size_t length);

typedef struct {
    const char *name;
    Crc64Function run;
} Crc64Kernel;

#define CRC64_KERNELS_MAX 3

void crc64_fill_tables(Crc64Tables *tables);

/* As md5_find_kernels. */
size_t crc64_find_kernels(const Crc64Kernel *kernels[CRC64_KERNELS_MAX]);

/* The CRC of what `crc` stands for, followed by `data`; the CRC of nothing is 0. */
uint64_t crc64_table(const Crc64Tables *tables, uint64_t crc, const uint8_t *data, size_t length);
#ifdef NATIVE_X86_64
uint64_t crc64_pclmul(const Crc64Tables *tables, uint64_t crc, const uint8_t *data, size_t length);
uint64_t crc64_avx512(const Crc64Tables *tables, uint64_t crc, const uint8_t *data, size_t length);
#endif

/* The CRC of A followed by B, from the CRC of each and the length of B in bytes. */
uint64_t crc64_combine(uint64_t crc_a, uint64_t crc_b, uint64_t length_b);

#endif
