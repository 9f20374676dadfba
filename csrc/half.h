// SPDX-License-Identifier: Apache-2.0
// Numbers of 16 bits: the upper half of a float.
#ifndef CONVARY_HALF_H
#define CONVARY_HALF_H

#include <stdint.h>

#include "math.h"

namespace convary {

struct bf16 {
    uint16_t bits;
};

CONVARY_INLINE float widen(float value) { return value; }
CONVARY_INLINE float widen(bf16 value) {
    const uint32_t whole = static_cast<uint32_t>(value.bits) << 16;
    float result;
    __builtin_memcpy(&result, &whole, 4);
    return result;
}

// Two numbers in the place of a float.
CONVARY_INLINE float word(bf16 first, bf16 second) {
    const uint32_t whole = first.bits | static_cast<uint32_t>(second.bits) << 16;
    float result;
    __builtin_memcpy(&result, &whole, 4);
    return result;
}

}  // namespace convary

#endif
