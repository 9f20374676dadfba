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

// to[i] (+)= the sum across the lanes of vector i, for i in [0, n). Whole squares of vectors are read.
inline void lane_sums(const float* vectors, int64_t n, float* to, bool add) {
    for (int64_t i = 0; i < n; i += lanes) {
        vec rows[lanes];
#pragma GCC unroll 16
        for (int64_t r = 0; r < lanes; ++r) rows[r] = load(vectors + (i + r) * lanes);
        transpose(rows);
        for (int64_t half = lanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
            for (int64_t r = 0; r < half; ++r) rows[r] += rows[r + half];
        }
        alignas(vector_bytes) float sums[lanes];
        store(sums, rows[0]);
        for (int64_t r = 0; r < lanes && i + r < n; ++r) to[i + r] = add ? to[i + r] + sums[r] : sums[r];
    }
}

// One panel's mixed gradients of some samples, (T, channels, width) each, `mixed_step` apart.
struct Spread {
    const float* mixed;
    int64_t mixed_step;
    const float* bank;     // (channels, T, K, width)
    float* grad_bank;      // the same, added to
    const float* steps;    // (samples, K, T): kernel * tap
    const float* channel;  // (samples, K, channels), or null
    const float* filter;   // (samples, K, width), or null
    const float* tap;      // (samples, K, T); where rows is K, and so are the next two
    const float* factors;  // (samples, K, channels, T): kernel * channel * tap
    const float* plain;    // the same without kernel
    int64_t rows;          // of channel and filter, in place of K: 1 where the kernels share both
    float* sums;           // memory for (samples, channels + 2) vectors, and a square more
    int64_t K, T, channels, width;
    float *part_tap, *part_filter,
        *part_channel;   // first sample's; (K, T), (rows, O), (rows, C) a sample; the latter may be null
    int64_t O, C, used;  // `used` numbers of the panel's width
    bool add;            // an earlier panel has written part_tap and part_channel
};

void spread_gradient(const Spread& call, int64_t samples);

}  // namespace convary::CONVARY_VARIANT

#endif
