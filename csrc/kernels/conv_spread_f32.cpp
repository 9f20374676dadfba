// SPDX-License-Identifier: Apache-2.0
// From the gradient of mixed weights to the K kernels' gradients and the sums that the coefficients' gradients are.
#include "conv_sums.h"

namespace convary::CONVARY_VARIANT {
namespace {

#if CONVARY_LANES == 16 || defined(__aarch64__)
constexpr int64_t most_samples = 4;  // that share each pass over the bank: with four kernels, 24 of 32 registers
#else
constexpr int64_t most_samples = 2;  // 12 of 16
#endif
constexpr int64_t most_kernels = 4;

void put(float* to, float value, bool add) { *to = add ? *to + value : value; }

// One tap of samples [s0, s0 + samples) and kernels [k0, k0 + kernels), which share filter and channel factors. Scaling
// the mixed gradient by these once serves every kernel, and their sums need the bank only as mixed by kernel and tap:
// three multiply-adds per weight, kernel and sample.
template <int64_t samples, int64_t kernels, bool scaled>
void spread_tap(const Spread& call, int64_t s0, int64_t k0, int64_t t) {
    const int64_t K = call.K, T = call.T, width = call.width, channels = call.channels;
    const float* mixed = call.mixed + s0 * call.mixed_step + t * channels * width;
    const float* filter = call.filter + s0 * width;
    const float* channel = call.channel + s0 * channels;
    float* by_filter = call.sums + s0 * width;
    float* by_channel = call.sums + (mix_samples * 2 + s0 * channels) * lanes;
    float step[samples][kernels];
    vec dots[samples][kernels];
    for (int64_t s = 0; s < samples; ++s) {
        for (int64_t k = 0; k < kernels; ++k) {
            step[s][k] = call.steps[((s0 + s) * K + k0 + k) * T + t];
            dots[s][k] = vec{};
        }
    }
    for (int64_t c = 0; c < channels; ++c) {
        for (int64_t v = 0; v < width; v += lanes) {
            vec whole[samples], part[samples], weight[samples];
#pragma GCC unroll 4
            for (int64_t s = 0; s < samples; ++s) {
                part[s] = whole[s] = load(mixed + s * call.mixed_step + c * width + v);
                if (scaled) part[s] *= channel[s * channels + c] * load(filter + s * width + v);
                weight[s] = vec{};
            }
            const int64_t at = ((c * T + t) * K + k0) * width + v;
#pragma GCC unroll 4
            for (int64_t k = 0; k < kernels; ++k) {
                const vec bank = load(call.bank + at + k * width);
                vec sum = load(call.grad_bank + at + k * width);
#pragma GCC unroll 4
                for (int64_t s = 0; s < samples; ++s) {
                    sum += step[s][k] * part[s];
                    dots[s][k] += bank * part[s];
                    if (scaled) weight[s] += step[s][k] * bank;
                }
                store(call.grad_bank + at + k * width, sum);
            }
            if (!scaled) continue;
#pragma GCC unroll 4
            for (int64_t s = 0; s < samples; ++s) {
                const vec product = whole[s] * weight[s];
                float *to_filter = by_filter + s * width + v, *to_channel = by_channel + (s * channels + c) * lanes;
                store(to_filter, load(to_filter) + channel[s * channels + c] * product);
                store(to_channel, load(to_channel) + load(filter + s * width + v) * product);
            }
        }
    }
    for (int64_t s = 0; s < samples; ++s) {
        for (int64_t k = 0; k < kernels; ++k) {
            put(call.part_tap + ((s0 + s) * K + k0 + k) * T + t, lane_sum(dots[s][k]), call.add);
        }
    }
}

template <int64_t samples, bool scaled>
void spread_some(const Spread& call, int64_t s0) {
    for (int64_t t = 0; t < call.T; ++t) {
        int64_t k = 0;
        for (; k + most_kernels <= call.K; k += most_kernels) spread_tap<samples, most_kernels, scaled>(call, s0, k, t);
        for (; k < call.K; ++k) spread_tap<samples, 1, scaled>(call, s0, k, t);
    }
}

template <bool scaled>
void spread_shared(const Spread& call, int64_t samples) {
    if (scaled)
        clear(call.sums, samples * call.width),
            clear(call.sums + mix_samples * 2 * lanes, samples * call.channels * lanes);
    int64_t s = 0;
    for (; s + most_samples <= samples; s += most_samples) spread_some<most_samples, scaled>(call, s);
    for (; s + 2 <= samples; s += 2) spread_some<2, scaled>(call, s);
    for (; s < samples; ++s) spread_some<1, scaled>(call, s);
    for (s = 0; s < samples && scaled; ++s) {
        if (call.part_filter != nullptr) copy(call.part_filter + s * call.O, call.sums + s * call.width, call.used);
        if (call.part_channel == nullptr) continue;
        const float* by_channel = call.sums + (mix_samples * 2 + s * call.channels) * lanes;
        lane_sums(by_channel, call.channels, call.part_channel + s * call.C, call.add);
    }
}

// Filter or channel factors that differ between the kernels, one sample.
template <int64_t count>
void spread_one(const Spread& call, int64_t s) {
    constexpr int64_t width = count * lanes;
    const int64_t K = call.K, T = call.T, depth = call.channels * T;
    for (int64_t k = 0; k < K; ++k) {
        vec filter[count], by_filter[count];
        for (int64_t v = 0; v < count; ++v) {
            by_filter[v] = vec{};
            filter[v] = load(call.filter + (s * K + k) * width + v * lanes);
        }
        float* by_channel = call.sums;
        clear(by_channel, call.channels * lanes);
        for (int64_t t = 0; t < T; ++t) {
            vec by_tap = {};
            const float tap = call.tap[(s * K + k) * T + t];
            for (int64_t c = 0; c < call.channels; ++c) {
                const int64_t d = c * T + t, at = (d * K + k) * width;
                const float factor = call.factors[(s * K + k) * depth + d];
                const float plain = call.plain[(s * K + k) * depth + d];
                vec filtered = {};
#pragma GCC unroll 2
                for (int64_t v = 0; v < count; ++v) {
                    const vec mixed =
                        load(call.mixed + s * call.mixed_step + (t * call.channels + c) * width + v * lanes);
                    const vec product = mixed * load(call.bank + at + v * lanes);
                    store(call.grad_bank + at + v * lanes,
                          load(call.grad_bank + at + v * lanes) + factor * filter[v] * mixed);
                    filtered += filter[v] * product;
                    by_filter[v] += plain * product;
                }
                by_tap += call.channel[(s * K + k) * call.channels + c] * filtered;
                store(by_channel + c * lanes, load(by_channel + c * lanes) + tap * filtered);
            }
            put(call.part_tap + (s * K + k) * T + t, lane_sum(by_tap), call.add);
        }
        if (call.part_filter != nullptr) {
            alignas(vector_bytes) float numbers[width];
            for (int64_t v = 0; v < count; ++v) store(numbers + v * lanes, by_filter[v]);
            copy(call.part_filter + (s * K + k) * call.O, numbers, call.used);
        }
        if (call.part_channel == nullptr) continue;
        lane_sums(by_channel, call.channels, call.part_channel + (s * K + k) * call.C, call.add);
    }
}

}  // namespace

void spread_gradient(const Spread& call, int64_t samples) {
    if (call.filter == nullptr) return spread_shared<false>(call, samples);
    if (call.rows == 1) return spread_shared<true>(call, samples);
    for (int64_t s = 0; s < samples; ++s) (call.width == lanes ? spread_one<1> : spread_one<2>)(call, s);
}

}  // namespace convary::CONVARY_VARIANT
