// SPDX-License-Identifier: Apache-2.0
// Weights mixed into cache just before their use, output channels innermost.
#include "conv_parts.h"

namespace convary::CONVARY_VARIANT {
namespace {

inline int64_t placed(const int64_t* place, int64_t d) { return place == nullptr ? d : place[d]; }

// `size` steps of the depth and `count` sources, at most a vector each, one by one: where reading on is not allowed.
void mix_edge(const Rows& rows, int64_t count, int64_t size, const float* factors, int64_t factor_step,
              const float* filter, int64_t width, const int64_t* place, float* out, int64_t out_step) {
    for (int64_t d = 0; d < size; ++d) {
        if (placed(place, d) < 0) continue;
        for (int64_t r = 0; r < lanes; ++r) {
            float sum = 0.0f;
            for (int64_t k = 0; k < rows.K && r < count; ++k) {
                const float factor = factors[k * factor_step + d] * (filter == nullptr ? 1.0f : filter[k * width + r]);
                sum += factor * rows.rows[k * rows.k_step + r * rows.row_step + d];
            }
            out[placed(place, d) * out_step + r] = sum;
        }
    }
}

// A square, transposed in registers; its first `size` steps are kept, and zeros stand for sources from `count` on.
inline void mix_square(const Rows& rows, int64_t count, int64_t size, const float* factors, int64_t factor_step,
                       const float* filter, int64_t width, const int64_t* place, float* out, int64_t out_step) {
    vec sum[lanes];
#pragma GCC unroll 16
    for (int64_t r = 0; r < lanes; ++r) sum[r] = vec{};
    for (int64_t k = 0; k < rows.K; ++k) {
        const vec factor = load(factors + k * factor_step);
        const float* from = rows.rows + k * rows.k_step;
        if (filter == nullptr) {
#pragma GCC unroll 16
            for (int64_t r = 0; r < lanes; ++r) sum[r] += factor * load(from + r * rows.row_step);
        } else {
#pragma GCC unroll 16
            for (int64_t r = 0; r < lanes; ++r) {
                sum[r] += factor * filter[k * width + r] * load(from + r * rows.row_step);
            }
        }
    }
    transpose(sum);
    if (count < lanes) {
#pragma GCC unroll 16
        for (int64_t d = 0; d < lanes; ++d) sum[d] = keep(sum[d], count);
    }
    if (size == lanes && place == nullptr) {
#pragma GCC unroll 16
        for (int64_t d = 0; d < lanes; ++d) store(out + d * out_step, sum[d]);
        return;
    }
    alignas(vector_bytes) float square[lanes * lanes];
#pragma GCC unroll 16
    for (int64_t d = 0; d < lanes; ++d) store(square + d * lanes, sum[d]);
    for (int64_t d = 0; d < size; ++d) {
        if (placed(place, d) >= 0) store(out + placed(place, d) * out_step, load(square + d * lanes));
    }
}

// One step of the depth whose sources lie side by side.
inline void mix_neighbours(const Rows& rows, int64_t r, const float* factors, int64_t factor_step, const float* filter,
                           int64_t width, float* out) {
    vec sum = {};
    for (int64_t k = 0; k < rows.K; ++k) {
        const vec scaled = factors[k * factor_step] * load(rows.rows + k * rows.k_step + r);
        sum += filter == nullptr ? scaled : scaled * load(filter + k * width);
    }
    store(out, sum);
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
                const float factor = factors[(s * K + k) * depth + d];
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

void mixing_factors(const Conv& conv, int64_t b, int64_t g, int64_t c0, int64_t channels, const int64_t* taps,
                    int64_t T, float* factors) {
    for (int64_t k = 0; k < conv.K; ++k) {
        const float kernel = conv.kernel == nullptr ? 1.0f : conv.kernel[b * conv.K + k];
        const int64_t channel_row = b * conv.channel_rows + (conv.channel_rows == 1 ? 0 : k);
        const int64_t tap_row = b * conv.tap_rows + (conv.tap_rows == 1 ? 0 : k);
        const float* channel = conv.channel + channel_row * conv.C + g * conv.Cg() + c0;
        const float* tap = conv.tap + tap_row * conv.T_bank;
        float* to = factors + k * channels * T;
        if (T == 1) {
            const float factor = conv.tap == nullptr ? kernel : kernel * tap[taps[0]];
            for (int64_t c = 0; c < channels; ++c) to[c] = conv.channel == nullptr ? factor : factor * channel[c];
            continue;
        }
        for (int64_t c = 0; c < channels; ++c) {
            const float factor = conv.channel == nullptr ? kernel : kernel * channel[c];
            for (int64_t t = 0; t < T; ++t) *to++ = conv.tap == nullptr ? factor : factor * tap[taps[t]];
        }
    }
}

void mix_transposed(const Rows& rows, int64_t depth, const float* factors, int64_t factor_step, const float* filter,
                    int64_t width, const int64_t* place, float* out, int64_t out_step) {
    for (int64_t r = 0; r < width; r += lanes) {
        const int64_t count = most(0, least(lanes, rows.count - r));
        const float* scale = filter == nullptr ? nullptr : filter + r;
        if (depth == 1 && rows.row_step == 1 && count == lanes) {  // 1x1, transposed: sources are neighbours already
            if (placed(place, 0) >= 0) mix_neighbours(rows, r, factors, factor_step, scale, width, out + r);
            continue;
        }
        for (int64_t d = 0; d < depth; d += lanes) {
            Rows part = rows;
            part.rows += r * rows.row_step + d;
            const float* last = part.rows + (rows.K - 1) * rows.k_step + (lanes - 1) * rows.row_step;
            const int64_t size = least(lanes, depth - d);
            float* to = out + r + (place == nullptr ? d * out_step : 0);
            const int64_t* places = place == nullptr ? nullptr : place + d;
            if (count > 0 && last + lanes <= rows.end) {
                mix_square(part, count, size, factors + d, factor_step, scale, width, places, to, out_step);
            } else {
                mix_edge(part, count, size, factors + d, factor_step, scale, width, places, to, out_step);
            }
        }
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
