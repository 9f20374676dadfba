// SPDX-License-Identifier: Apache-2.0
// Weights mixed into cache just before their use, output channels innermost.
#include "conv_parts.h"

namespace convary::CONVARY_VARIANT {
namespace {

inline int64_t placed(const int64_t* place, int64_t d) { return place == nullptr ? d : place[d]; }

// A weight, or a pair of two.
template <bool pairs>
inline vec weight_of(vec first, vec second) {
    return pairs ? pair(first, second) : first;
}

// `size` steps of the depth and `count` sources, at most a vector each, one by one: where reading on is not allowed, or
// where a step has no second.
template <bool pairs, typename W>
void mix_edge(const Rows<W>& rows, int64_t count, int64_t size, const Second& second, const float* factors,
              int64_t factor_step, const float* filter, int64_t width, const int64_t* place, float* out,
              int64_t out_step) {
    for (int64_t d = 0; d < size; ++d) {
        if (placed(place, d) < 0) continue;
        alignas(vector_bytes) float sums[2][lanes] = {};
        for (int64_t half = 0; half < (pairs && d < second.depth ? 2 : 1); ++half) {
            for (int64_t r = 0; r < count; ++r) {
                for (int64_t k = 0; k < rows.K; ++k) {
                    const float scale = filter == nullptr ? 1.0f : filter[k * width + r];
                    const float factor = factors[k * factor_step + half * second.factors + d] * scale;
                    sums[half][r] +=
                        factor * widen(rows.rows[k * rows.k_step + r * rows.row_step + half * second.rows + d]);
                }
            }
        }
        store(out + placed(place, d) * out_step, weight_of<pairs>(load(sums[0]), load(sums[1])));
    }
}

// A square, transposed in registers; its first `size` steps are kept, and zeros stand for sources from `count` on.
template <bool pairs, typename W>
inline void mix_square(const Rows<W>& rows, int64_t count, int64_t size, const Second& second, const float* factors,
                       int64_t factor_step, const float* filter, int64_t width, const int64_t* place, float* out,
                       int64_t out_step) {
    constexpr int64_t together = pairs ? 4 : lanes;  // rows whose sums are in registers at once
    vec sum[lanes];
#pragma GCC unroll 16
    for (int64_t r = 0; r < lanes; r += together) {
        vec first[together] = {}, next[together] = {};
        for (int64_t k = 0; k < rows.K; ++k) {
            const vec factor = load(factors + k * factor_step);
            const vec more = pairs ? load(factors + k * factor_step + second.factors) : vec{};
            const W* from = rows.rows + k * rows.k_step + r * rows.row_step;
#pragma GCC unroll 16
            for (int64_t i = 0; i < together; ++i) {
                const float scale = filter == nullptr ? 1.0f : filter[k * width + r + i];
                first[i] += factor * scale * load(from + i * rows.row_step);
                if (pairs) next[i] += more * scale * load(from + i * rows.row_step + second.rows);
            }
        }
#pragma GCC unroll 16
        for (int64_t i = 0; i < together; ++i) sum[r + i] = weight_of<pairs>(first[i], next[i]);
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
template <typename W>
inline vec mix_neighbours(const Rows<W>& rows, int64_t r, const float* factors, int64_t factor_step,
                          const float* filter, int64_t width) {
    vec sum = {};
    for (int64_t k = 0; k < rows.K; ++k) {
        const vec scaled = factors[k * factor_step] * load(rows.rows + k * rows.k_step + r);
        sum += filter == nullptr ? scaled : scaled * load(filter + k * width);
    }
    return sum;
}

// One packed step of some samples: `count` vectors, the bank's read once for all of them.
template <int64_t samples, int64_t count, bool filtered>
inline void mix_step(const float* packed, int64_t K, int64_t depth, const float* factors, const float* filter,
                     vec (&sum)[samples][count]) {
    constexpr int64_t width = count * lanes;
#pragma GCC unroll 4
    for (int64_t s = 0; s < samples; ++s) {
#pragma GCC unroll 2
        for (int64_t v = 0; v < count; ++v) sum[s][v] = vec{};
    }
    for (int64_t k = 0; k < K; ++k) {
        vec bank[count];
#pragma GCC unroll 2
        for (int64_t v = 0; v < count; ++v) bank[v] = load(packed + k * width + v * lanes);
#pragma GCC unroll 4
        for (int64_t s = 0; s < samples; ++s) {
            const float factor = factors[(s * K + k) * depth];
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
}

// The samples' weights of [0, half) steps, or of as many pairs.
template <bool pairs, int64_t samples, int64_t count, bool filtered>
void mix_steps(const float* packed, int64_t K, int64_t depth, int64_t half, const float* factors, const float* filter,
               float* out) {
    constexpr int64_t width = count * lanes;
    for (int64_t d = 0; d < half; ++d) {
        vec first[samples][count], second[samples][count] = {};
        mix_step<samples, count, filtered>(packed + d * K * width, K, depth, factors + d, filter, first);
        if (pairs && d + half < depth) {
            mix_step<samples, count, filtered>(packed + (d + half) * K * width, K, depth, factors + d + half, filter,
                                               second);
        }
#pragma GCC unroll 4
        for (int64_t s = 0; s < samples; ++s) {
#pragma GCC unroll 2
            for (int64_t v = 0; v < count; ++v) {
                store(out + (s * half + d) * width + v * lanes, weight_of<pairs>(first[s][v], second[s][v]));
            }
        }
    }
}

template <bool pairs, int64_t samples>
void mix_some(const float* packed, int64_t K, int64_t depth, int64_t half, int64_t width, const float* factors,
              const float* filter, float* out) {
    const auto mix =
        width == lanes ? (filter == nullptr ? mix_steps<pairs, samples, 1, false> : mix_steps<pairs, samples, 1, true>)
                       : (filter == nullptr ? mix_steps<pairs, samples, 2, false> : mix_steps<pairs, samples, 2, true>);
    mix(packed, K, depth, half, factors, filter, out);
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

template <bool pairs, typename W>
void mix_transposed(const Rows<W>& rows, int64_t depth, const Second& second, const float* factors, int64_t factor_step,
                    const float* filter, int64_t width, const int64_t* place, float* out, int64_t out_step) {
    for (int64_t r = 0; r < width; r += lanes) {
        const int64_t count = most(0, least(lanes, rows.count - r));
        const float* scale = filter == nullptr ? nullptr : filter + r;
        if (depth == 1 && rows.row_step == 1 && count == lanes) {  // 1x1, transposed: sources are neighbours already
            if (placed(place, 0) < 0) continue;
            const vec first = mix_neighbours(rows, r, factors, factor_step, scale, width);
            const bool alone = !pairs || second.depth < 1;
            const vec next =
                alone ? vec{}
                      : mix_neighbours(rows, r + second.rows, factors + second.factors, factor_step, scale, width);
            store(out + placed(place, 0) * out_step + r, weight_of<pairs>(first, next));
            continue;
        }
        for (int64_t d = 0; d < depth; d += lanes) {
            Rows<W> part = rows;
            part.rows += r * rows.row_step + d;
            const W* last = part.rows + (rows.K - 1) * rows.k_step + (lanes - 1) * rows.row_step + second.rows;
            const int64_t size = least(lanes, depth - d);
            const Second rest = {second.rows, second.factors, second.depth - d};
            float* to = out + r + (place == nullptr ? d * out_step : 0);
            const int64_t* places = place == nullptr ? nullptr : place + d;
            const bool whole = count > 0 && last + lanes <= rows.end && (!pairs || rest.depth >= size);
            (whole ? mix_square<pairs, W> : mix_edge<pairs, W>)(part, count, size, rest, factors + d, factor_step,
                                                                scale, width, places, to, out_step);
        }
    }
}

template <bool pairs>
void mix_packed(const float* packed, int64_t K, int64_t depth, int64_t half, int64_t width, const float* factors,
                const float* filter, int64_t samples, float* out) {
    static_assert(mix_samples == 4, "one case for each number of samples");
    switch (samples) {
        case 1: return mix_some<pairs, 1>(packed, K, depth, half, width, factors, filter, out);
        case 2: return mix_some<pairs, 2>(packed, K, depth, half, width, factors, filter, out);
        case 3: return mix_some<pairs, 3>(packed, K, depth, half, width, factors, filter, out);
        default: return mix_some<pairs, 4>(packed, K, depth, half, width, factors, filter, out);
    }
}

#define CONVARY_MIX(pairs, W)                                                                                          \
    template void mix_transposed<pairs>(const Rows<W>&, int64_t, const Second&, const float*, int64_t, const float*,   \
                                        int64_t, const int64_t*, float*, int64_t);
#define CONVARY_MIX_PACKED(pairs)                                                                                      \
    template void mix_packed<pairs>(const float*, int64_t, int64_t, int64_t, int64_t, const float*, const float*,      \
                                    int64_t, float*);
CONVARY_MIX(false, float)
CONVARY_MIX(false, bf16)
CONVARY_MIX_PACKED(false)
#if defined(__AVX512BF16__)
CONVARY_MIX(true, float)
CONVARY_MIX(true, bf16)
CONVARY_MIX_PACKED(true)
#endif
#undef CONVARY_MIX
#undef CONVARY_MIX_PACKED

}  // namespace convary::CONVARY_VARIANT
