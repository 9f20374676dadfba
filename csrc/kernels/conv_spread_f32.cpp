// SPDX-License-Identifier: Apache-2.0
// From the gradient of mixed weights to the K kernels' gradients and the sums that the coefficients' gradients are.
#include "conv_sums.h"

namespace convary::CONVARY_VARIANT {
namespace {

void put(float* to, float value, bool add) { *to = add ? *to + value : value; }

// Kernel and tap factors only: two multiply-adds per weight, kernel and sample.
template <int64_t samples, int64_t count>
void spread_plain(const Spread& call) {
    constexpr int64_t width = count * lanes;
    const int64_t K = call.K, T = call.T;
    for (int64_t t = 0; t < T; ++t) {
        for (int64_t k = 0; k < K; ++k) {
            vec dots[samples];
            for (int64_t s = 0; s < samples; ++s) dots[s] = vec{};
            for (int64_t c = 0; c < call.channels; ++c) {
                const int64_t d = c * T + t, at = (d * K + k) * width;
                for (int64_t v = 0; v < count; ++v) {
                    const vec bank = load(call.bank + at + v * lanes);
                    vec sum = load(call.grad_bank + at + v * lanes);
#pragma GCC unroll 4
                    for (int64_t s = 0; s < samples; ++s) {
                        const vec mixed = load(call.mixed + s * call.mixed_step + (t * call.channels + c) * width + v * lanes);
                        sum += call.factors[(s * call.depth + d) * K + k] * mixed;
                        dots[s] += bank * mixed;
                    }
                    store(call.grad_bank + at + v * lanes, sum);
                }
            }
            for (int64_t s = 0; s < samples; ++s) put(call.part_tap + (s * K + k) * T + t, lane_sum(dots[s]), call.add);
        }
    }
}

// Every factor, one sample.
template <int64_t count>
void spread_one(const Spread& call, int64_t s) {
    constexpr int64_t width = count * lanes;
    const int64_t K = call.K, T = call.T;
    for (int64_t k = 0; k < K; ++k) {
        vec filter[count], by_filter[count];
        for (int64_t v = 0; v < count; ++v) {
            by_filter[v] = vec{};
            filter[v] = call.filter == nullptr ? broadcast(1.0f) : load(call.filter + (s * K + k) * width + v * lanes);
        }
        float* by_channel = call.sums;
        if (call.part_channel != nullptr) clear(by_channel, call.channels * lanes);
        for (int64_t t = 0; t < T; ++t) {
            vec by_tap = {};
            const float tap = call.tap[(s * T + t) * K + k];
            for (int64_t c = 0; c < call.channels; ++c) {
                const int64_t d = c * T + t, at = (d * K + k) * width;
                const float factor = call.factors[(s * call.depth + d) * K + k];
                const float plain = call.plain[(s * call.depth + d) * K + k];
                vec filtered = {};
#pragma GCC unroll 2
                for (int64_t v = 0; v < count; ++v) {
                    const vec mixed = load(call.mixed + s * call.mixed_step + (t * call.channels + c) * width + v * lanes);
                    const vec product = mixed * load(call.bank + at + v * lanes);
                    store(call.grad_bank + at + v * lanes,
                          load(call.grad_bank + at + v * lanes) + factor * filter[v] * mixed);
                    filtered += filter[v] * product;
                    by_filter[v] += plain * product;
                }
                by_tap += call.channel[(s * call.channels + c) * K + k] * filtered;
                if (call.part_channel != nullptr) {
                    store(by_channel + c * lanes, load(by_channel + c * lanes) + tap * filtered);
                }
            }
            put(call.part_tap + (s * K + k) * T + t, lane_sum(by_tap), call.add);
        }
        if (call.part_filter != nullptr) {
            alignas(vector_bytes) float numbers[width];
            for (int64_t v = 0; v < count; ++v) store(numbers + v * lanes, by_filter[v]);
            copy(call.part_filter + (s * K + k) * call.O, numbers, call.used);
        }
        if (call.part_channel != nullptr) {
            for (int64_t c = 0; c < call.channels; ++c) {
                put(call.part_channel + (s * K + k) * call.C + c, lane_sum(load(by_channel + c * lanes)), call.add);
            }
        }
    }
}

template <int64_t count>
void spread(const Spread& call, int64_t samples, bool general) {
    if (general) {
        for (int64_t s = 0; s < samples; ++s) spread_one<count>(call, s);
        return;
    }
    switch (samples) {
        case 1: return spread_plain<1, count>(call);
        case 2: return spread_plain<2, count>(call);
        case 3: return spread_plain<3, count>(call);
        default: return spread_plain<4, count>(call);
    }
}

}  // namespace

void spread_gradient(const Spread& call, int64_t samples, bool general) {
    (call.width == lanes ? spread<1> : spread<2>)(call, samples, general);
}

}  // namespace convary::CONVARY_VARIANT
