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

namespace convary::CONVARY_VARIANT {

constexpr int64_t lanes = CONVARY_LANES;
constexpr int64_t vector_bytes = lanes * 4;

typedef float vec __attribute__((vector_size(CONVARY_LANES * 4), may_alias));
typedef float vec_unaligned __attribute__((vector_size(CONVARY_LANES * 4), aligned(4), may_alias));

static inline vec load(const float* p) { return *reinterpret_cast<const vec_unaligned*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec_unaligned*>(p) = v; }

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

// Orders streamed stores before whatever hands the result to another thread.
static inline void stream_fence() {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
}

}  // namespace convary::CONVARY_VARIANT

#endif
