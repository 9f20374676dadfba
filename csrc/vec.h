// SPDX-License-Identifier: Apache-2.0
// One vector type per instruction set, for the files in kernels/, which CMake compiles once per set with
// CONVARY_VARIANT (its name) and CONVARY_LANES (floats per vector) defined. GCC and Clang vector extensions do the
// rest.
//
// Kernel files must not include C++ library headers: an inline function of theirs, compiled here for AVX-512, could be
// the copy that the linker keeps for everybody. All code below is in the variant's own namespace for the same reason.
#ifndef CONVARY_VEC_H
#define CONVARY_VEC_H

#include <stdint.h>

#include "half.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace convary::CONVARY_VARIANT {

constexpr int64_t lanes = CONVARY_LANES;
constexpr int64_t vector_bytes = lanes * 4;

typedef float vec __attribute__((vector_size(CONVARY_LANES * 4), may_alias));
typedef float vec_unaligned __attribute__((vector_size(CONVARY_LANES * 4), aligned(4), may_alias));

static inline vec load(const float* p) { return *reinterpret_cast<const vec_unaligned*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec_unaligned*>(p) = v; }

// The bits of a vector; and as many numbers of 16 bits, which are the upper halves of floats.
typedef uint32_t bits __attribute__((vector_size(CONVARY_LANES * 4), may_alias));
typedef uint16_t halves __attribute__((vector_size(CONVARY_LANES * 2), aligned(2), may_alias));

static inline bits load_bits(const bf16* p) {
    return __builtin_convertvector(*reinterpret_cast<const halves*>(p), bits);
}
static inline vec load(const bf16* p) { return reinterpret_cast<vec>(load_bits(p) << 16); }

// Rounded to nearest, ties to even. A NaN stays one: what is added could carry its bits away.
static inline void store(bf16* p, vec v) {
    const bits whole = reinterpret_cast<bits>(v), even = whole + 0x7fff + ((whole >> 16) & 1);
    const bits rounded = v == v ? even : (whole | 0x400000);
    *reinterpret_cast<halves*>(p) = __builtin_convertvector(rounded >> 16, halves);
}

// Products of 16 bits. Each lane holds a pair of numbers, the first one in its lower half.
#if defined(__AVX512BF16__)
constexpr bool has_pairs = true;

static inline vec pair(vec first, vec second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vec)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

// sum + the products of both numbers of each pair with those of one pair.
static inline vec add_products(vec sum, vec pairs, float one) {
    return _mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)_mm512_set1_ps(one));
}
#else
constexpr bool has_pairs = false;
static inline vec pair(vec first, vec) { return first; }
static inline vec add_products(vec sum, vec pairs, float one) { return sum + one * pairs; }
#endif

// Stores past the cache, for output that is larger than the cache and not read back soon. p is aligned to the vector.
static inline void stream(float* p, vec v) {
#if defined(__clang__)
    __builtin_nontemporal_store(v, reinterpret_cast<vec*>(p));
#elif defined(__x86_64__) && CONVARY_LANES == 16
    __builtin_ia32_movntps512(p, v);
#elif defined(__x86_64__) && CONVARY_LANES == 8
    __builtin_ia32_movntps256(p, v);
#elif defined(__x86_64__)
    __builtin_ia32_movntps(p, v);
#else
    *reinterpret_cast<vec*>(p) = v;
#endif
}

static inline void stream(bf16* p, vec v) { store(p, v); }

// Orders streamed stores before whatever hands the result to another thread.
static inline void stream_fence() {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
}

}  // namespace convary::CONVARY_VARIANT

#endif
