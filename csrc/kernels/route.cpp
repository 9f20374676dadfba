// SPDX-License-Identifier: Apache-2.0
// Routers in inference: a mean per map, and a perceptron of at most one hidden layer per sample.
#include "../kernels.h"
#include "../vec.h"

namespace convary::CONVARY_VARIANT {
namespace {

float lane_sum(vec v) {
    float sum = 0.0f;
    for (int64_t i = 0; i < lanes; ++i) sum += v[i];
    return sum;
}

template <typename X>
float sum(const X* from, int64_t n) {
    vec sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * lanes <= n; i += 4 * lanes) {
#pragma GCC unroll 4
        for (int64_t j = 0; j < 4; ++j) sums[j] += load(from + i + j * lanes);
    }
    for (; i + lanes <= n; i += lanes) sums[0] += load(from + i);
    float rest = 0.0f;
    for (; i < n; ++i) rest += widen(from[i]);
    return lane_sum((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

// out[r] = rows[r] . v + bias[r], four rows at a time.
template <typename W>
void multiply(const W* rows, const float* v, const W* bias, int64_t count, int64_t n, float* out) {
    for (int64_t r = 0; r < count; r += 4) {
        const int64_t together = count - r < 4 ? count - r : 4;
        const W* from[4];
        for (int64_t j = 0; j < 4; ++j) from[j] = rows + (r + (j < together ? j : 0)) * n;
        vec sums[4] = {};
        int64_t i = 0;
        for (; i + lanes <= n; i += lanes) {
            const vec value = load(v + i);
#pragma GCC unroll 4
            for (int64_t j = 0; j < 4; ++j) sums[j] += value * load(from[j] + i);
        }
        for (int64_t j = 0; j < together; ++j) {
            float total = lane_sum(sums[j]);
            for (int64_t k = i; k < n; ++k) total += v[k] * widen(from[j][k]);
            out[r + j] = total + (bias == nullptr ? 0.0f : widen(bias[r + j]));
        }
    }
}

template <typename W>
void normalise(const Route& route, float* h) {
    const auto number = [](const void* from, int64_t i) { return widen(static_cast<const W*>(from)[i]); };
    for (int64_t i = 0; i < route.hidden; ++i) {
        if (route.mean != nullptr) {
            const float deviation = __builtin_sqrtf(number(route.variance, i) + route.epsilon);
            h[i] = (h[i] - number(route.mean, i)) / deviation * number(route.gain, i) + number(route.shift, i);
        }
        if (h[i] < 0.0f) h[i] = 0.0f;  // not a maximum: NaN stays
    }
}

void sigmoid(float* v, int64_t n) {
    for (int64_t i = 0; i < n; ++i) v[i] = 1.0f / (1.0f + __builtin_expf(-v[i]));
}

void softmax(float* v, int64_t n) {
    float largest = v[0], total = 0.0f;
    for (int64_t i = 1; i < n; ++i) largest = v[i] > largest ? v[i] : largest;
    for (int64_t i = 0; i < n; ++i) total += v[i] = __builtin_expf(v[i] - largest);
    for (int64_t i = 0; i < n; ++i) v[i] /= total;
}

template <typename W>
void run(const Route& route, int64_t b, float* scratch) {
    const auto numbers = [](const void* from, int64_t i) {
        return from == nullptr ? nullptr : static_cast<const W*>(from) + i;
    };
    const float* v = route.pooled + b * route.C;
    int64_t n = route.C;
    if (route.hidden > 0) {
        multiply(numbers(route.squeeze, 0), v, numbers(route.squeeze_bias, 0), route.hidden, n, scratch);
        normalise<W>(route, scratch);
        v = scratch;
        n = route.hidden;
    }
    int64_t first = 0;  // output of the piece
    for (int64_t i = 0; i < route_pieces; ++i) {
        const int64_t length = route.pieces[i];
        if (length == 0) continue;
        float* out = route.out + route.B * first + b * length;
        multiply(numbers(route.head, first * n), v, numbers(route.head_bias, first), length, n, out);
        for (int64_t j = 0; j < length && route.temperature != nullptr; ++j) out[j] /= *route.temperature;
        if (i < route.gates || route.rest == 1) {
            sigmoid(out, length);
        } else if (route.rest == 2) {
            softmax(out, length);
        }
        first += length;
    }
}

}  // namespace

void route_pool(const Route& route, int64_t map) {
    const int64_t first = map * route.P;
    const float total = route.half ? sum(static_cast<const bf16*>(route.x) + first, route.P)
                                   : sum(static_cast<const float*>(route.x) + first, route.P);
    route.pooled[map] = total / static_cast<float>(route.P);
}

void route(const Route& route, int64_t b, float* scratch) {
    route.half_layers ? run<bf16>(route, b, scratch) : run<float>(route, b, scratch);
}

}  // namespace convary::CONVARY_VARIANT
