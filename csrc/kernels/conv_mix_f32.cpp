// SPDX-License-Identifier: Apache-2.0
// Weights mixed into cache just before their use, output channels innermost.
#include "conv_parts.h"

namespace convary::CONVARY_VARIANT {
namespace {

// Rows of `count` kernels x `size` steps of the depth, at most a square, mixed one by one: the edges of a panel.
void mix_edge(const float* rows, int64_t K, int64_t k_step, int64_t row_step, int64_t count, int64_t size, int64_t depth,
              const float* factors, const float* filter, int64_t filter_step, float* out, int64_t out_step) {
    for (int64_t d = 0; d < size; ++d) {
        for (int64_t r = 0; r < lanes; ++r) {
            float sum = 0.0f;
            for (int64_t k = 0; r < count && k < K; ++k) {
                const float factor = factors[k * depth + d] * (filter == nullptr ? 1.0f : filter[k * filter_step + r]);
                sum += factor * rows[k * k_step + r * row_step + d];
            }
            out[d * out_step + r] = sum;
        }
    }
}

// A full square, transposed in registers.
inline void mix_square(const float* rows, int64_t K, int64_t k_step, int64_t row_step, int64_t depth,
                       const float* factors, const float* filter, int64_t filter_step, float* out, int64_t out_step) {
    vec sum[lanes];
#pragma GCC unroll 16
    for (int64_t r = 0; r < lanes; ++r) sum[r] = vec{};
    for (int64_t k = 0; k < K; ++k) {
        const vec factor = load(factors + k * depth);
        const float* from = rows + k * k_step;
        if (filter == nullptr) {
#pragma GCC unroll 16
            for (int64_t r = 0; r < lanes; ++r) sum[r] += factor * load(from + r * row_step);
        } else {
#pragma GCC unroll 16
            for (int64_t r = 0; r < lanes; ++r) {
                sum[r] += factor * filter[k * filter_step + r] * load(from + r * row_step);
            }
        }
    }
    transpose(sum);
#pragma GCC unroll 16
    for (int64_t d = 0; d < lanes; ++d) store(out + d * out_step, sum[d]);
}

// The samples' weights of one packed step: `count` vectors, the bank's read once for all of them.
template <int64_t samples, int64_t count, bool filtered>
void mix_steps(const float* packed, int64_t K, int64_t depth, const float* factors, const float* filter, float* out) {
    constexpr int64_t width = count * lanes;
    for (int64_t d = 0; d < depth; ++d) {
        vec sum[samples][count];
#pragma GCC unroll 4
        for (int64_t s = 0; s < samples; ++s) {
#pragma GCC unroll 2
            for (int64_t v = 0; v < count; ++v) sum[s][v] = vec{};
        }
        for (int64_t k = 0; k < K; ++k) {
            vec bank[count];
#pragma GCC unroll 2
            for (int64_t v = 0; v < count; ++v) bank[v] = load(packed + (d * K + k) * width + v * lanes);
#pragma GCC unroll 4
            for (int64_t s = 0; s < samples; ++s) {
                const float factor = factors[(s * depth + d) * K + k];
#pragma GCC unroll 2
                for (int64_t v = 0; v < count; ++v) {
                    if (filtered) {
                        sum[s][v] += factor * load(filter + (s * K + k) * width + v * lanes) * bank[v];
                    } else {
                        sum[s][v] += factor * bank[v];
                    }
                }
            }
        }
#pragma GCC unroll 4
        for (int64_t s = 0; s < samples; ++s) {
#pragma GCC unroll 2
            for (int64_t v = 0; v < count; ++v) store(out + (s * depth + d) * width + v * lanes, sum[s][v]);
        }
    }
}

template <int64_t samples>
void mix_some(const float* packed, int64_t K, int64_t depth, int64_t width, const float* factors, const float* filter,
              float* out) {
    if (width == lanes) {
        (filter == nullptr ? mix_steps<samples, 1, false> : mix_steps<samples, 1, true>)(packed, K, depth, factors,
                                                                                       filter, out);
    } else {
        (filter == nullptr ? mix_steps<samples, 2, false> : mix_steps<samples, 2, true>)(packed, K, depth, factors,
                                                                                       filter, out);
    }
}

}  // namespace

void mixing_factors(const Conv& conv, int64_t b, int64_t g, int64_t c0, int64_t channels, int64_t k_step,
                    int64_t d_step, float* factors) {
    const int64_t T = conv.T();
    for (int64_t k = 0; k < conv.K; ++k) {
        const float kernel = conv.kernel == nullptr ? 1.0f : conv.kernel[b * conv.K + k];
        const int64_t channel_row = b * conv.channel_rows + (conv.channel_rows == 1 ? 0 : k);
        const int64_t tap_row = b * conv.tap_rows + (conv.tap_rows == 1 ? 0 : k);
        const float* channel = conv.channel + channel_row * conv.C + g * conv.Cg() + c0;
        const float* tap = conv.tap + tap_row * T;
        float* to = factors + k * k_step;
        for (int64_t c = 0; c < channels; ++c) {
            const float factor = conv.channel == nullptr ? kernel : kernel * channel[c];
            for (int64_t t = 0; t < T; ++t) {
                to[(c * T + t) * d_step] = conv.tap == nullptr ? factor : factor * tap[t];
            }
        }
    }
}

void mix_transposed(const float* rows, int64_t K, int64_t k_step, int64_t row_step, int64_t count, int64_t depth,
                    const float* factors, const float* filter, int64_t filter_step, int64_t width, float* out,
                    int64_t out_step) {
    for (int64_t r = 0; r < width; r += lanes) {
        const float* from = rows + r * row_step;
        const float* scale = filter == nullptr ? nullptr : filter + r;
        int64_t d = 0;
        if (count - r >= lanes) {
            for (; d + lanes <= depth; d += lanes) {
                mix_square(from + d, K, k_step, row_step, depth, factors + d, scale, filter_step, out + d * out_step + r,
                           out_step);
            }
        }
        mix_edge(from + d, K, k_step, row_step, most(0, least(lanes, count - r)), depth - d, depth, factors + d, scale,
                 filter_step, out + d * out_step + r, out_step);
    }
}

void mix_packed(const float* packed, int64_t K, int64_t depth, int64_t width, const float* factors, const float* filter,
                int64_t samples, float* out) {
    static_assert(mix_samples == 4, "one case for each number of samples");
    switch (samples) {
        case 1: return mix_some<1>(packed, K, depth, width, factors, filter, out);
        case 2: return mix_some<2>(packed, K, depth, width, factors, filter, out);
        case 3: return mix_some<3>(packed, K, depth, width, factors, filter, out);
        default: return mix_some<4>(packed, K, depth, width, factors, filter, out);
    }
}

}  // namespace convary::CONVARY_VARIANT
