// SPDX-License-Identifier: Apache-2.0
// Sums across the lanes, and the gradient of mixed weights spread over K kernels and their coefficients.
#ifndef CONVARY_CONV_SUMS_H
#define CONVARY_CONV_SUMS_H

#include "conv_parts.h"

namespace convary::CONVARY_VARIANT {

inline float lane_sum(vec v) {
    alignas(vector_bytes) float numbers[lanes];
    store(numbers, v);
    for (int64_t half = lanes / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; ++i) numbers[i] += numbers[i + half];
    }
    return numbers[0];
}

// One panel's mixed gradients of some samples, (T, channels, width) each, `mixed_step` apart.
struct Spread {
    const float* mixed;
    int64_t mixed_step;
    const float* bank;       // (channels, T, K, width)
    float* grad_bank;        // the same, added to
    const float* factors;    // (samples, channels, T, K): kernel * channel * tap
    const float* plain;      // the same without kernel
    const float* channel;    // (samples, channels, K)
    const float* tap;        // (samples, T, K)
    const float* filter;     // (samples, K, width) or null
    float* sums;             // memory for (samples, K, channels + 2) vectors
    int64_t K, T, channels, depth, width;
    float *part_tap, *part_filter, *part_channel;  // first sample's; (K, T), (K, O), (K, C) a sample; the latter may be null
    int64_t O, C, used;                            // `used` numbers of the panel's width
    bool add;                                      // an earlier panel has written part_tap and part_channel
};

// general: with filter or channel factors.
void spread_gradient(const Spread& call, int64_t samples, bool general);

}  // namespace convary::CONVARY_VARIANT

#endif
