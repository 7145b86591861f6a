/* STREAM's operations over float32 as C has them: the peers of `aifx bench hardware` (benchmarks/ceilings.py builds it).
 * NAME(x, y, z, s, count, rounds); `_nt` stores past the caches, `_in` writes into an operand's place. */
#ifdef __SSE__
#include <immintrin.h>
#define STORE_PAST_CACHES(p, v) _mm_stream_ps(p, v)
#endif

#define ARRAYS float *restrict x, const float *restrict y, const float *restrict z, float s, long count, long rounds

#define OPERATION(name, value)                                    \
    void name(ARRAYS) {                                           \
        for (long round = 0; round < rounds; round++) {           \
            _Pragma("omp parallel for schedule(static)")          \
            for (long i = 0; i < count; i++) x[i] = value;        \
        }                                                         \
    }

OPERATION(copy, y[i])
OPERATION(scale, s * y[i])
OPERATION(add, y[i] + z[i])
OPERATION(triad, y[i] + s * z[i])
OPERATION(scale_in, s * x[i])
OPERATION(add_in, y[i] - x[i])
OPERATION(triad_in, y[i] + s * x[i])

#ifdef STORE_PAST_CACHES
#define PAST_CACHES(name, value)                                                    \
    void name##_nt(ARRAYS) {                                                        \
        __m128 factor = _mm_set1_ps(s);                                             \
        for (long round = 0; round < rounds; round++) {                             \
            _Pragma("omp parallel for schedule(static)")                            \
            for (long i = 0; i < count; i += 4) STORE_PAST_CACHES(x + i, value);    \
        }                                                                           \
        (void)factor;                                                               \
    }
#define Y _mm_load_ps(y + i)
#define Z _mm_load_ps(z + i)

PAST_CACHES(copy, Y)
PAST_CACHES(scale, _mm_mul_ps(factor, Y))
PAST_CACHES(add, _mm_add_ps(Y, Z))
PAST_CACHES(triad, _mm_add_ps(Y, _mm_mul_ps(factor, Z)))
#endif
