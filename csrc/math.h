// SPDX-License-Identifier: Apache-2.0
// Whole numbers: the smaller and the larger of two, and quotients rounded up.
#ifndef CONVARY_MATH_H
#define CONVARY_MATH_H

#include <stdint.h>

// Kernel files include this too, compiled for instruction sets of their own: nothing here may be emitted as a function,
// or the linker could keep the AVX-512 copy for everybody.
#define CONVARY_INLINE __attribute__((always_inline)) inline

namespace convary {

CONVARY_INLINE constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
CONVARY_INLINE constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
// a >= 0 and b > 0; a + b may not fit, so nothing is added first.
CONVARY_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

}  // namespace convary

#endif
