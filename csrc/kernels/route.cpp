// SPDX-License-Identifier: Apache-2.0
// Routers in inference: a mean per map, and a perceptron of at most one hidden layer per sample.
#include "../kernels.h"
#include "conv_sums.h"

namespace convary::CONVARY_VARIANT {
namespace {

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

// The numbers of a row behind its whole vectors, at the end of a vector of zeros.
template <typename W>
vec tail(const W* row, int64_t n) {
    const int64_t rest = n % lanes;
    if (n >= lanes) {
        const whole last = ~before(lanes - rest);
        return reinterpret_cast<vec>(reinterpret_cast<whole>(load(row + n - lanes)) & last);
    }
    alignas(vector_bytes) float numbers[lanes] = {};
    for (int64_t i = 0; i < n; ++i) numbers[lanes - n + i] = widen(row[i]);
    return load(numbers);
}

constexpr int64_t together = 4;  // rows that share the loads of v

// out[r] = rows[r] . v + bias[r]: products of a few rows at a time, sums across the lanes of a square of them.
template <typename W>
void multiply(const W* rows, const float* v, const W* bias, int64_t count, int64_t n, float* out) {
    const int64_t vectors = n / lanes * lanes;
    const vec v_tail = vectors < n ? tail(v, n) : vec{};
    alignas(vector_bytes) float square[lanes * lanes] = {};
    for (int64_t r = 0; r < count; r += lanes) {
        const int64_t some = least(lanes, count - r);
        for (int64_t j = 0; j < some; j += together) {
            const W* from[together];
            for (int64_t i = 0; i < together; ++i) from[i] = rows + least(r + j + i, count - 1) * n;
            vec sums[together] = {};
            for (int64_t i = 0; i < vectors; i += lanes) {
                const vec value = load(v + i);
#pragma GCC unroll 4
                for (int64_t k = 0; k < together; ++k) sums[k] += value * load(from[k] + i);
            }
            for (int64_t k = 0; k < together; ++k) {
                if (vectors < n) sums[k] += v_tail * tail(from[k], n);
                store(square + (j + k) * lanes, sums[k]);
            }
        }
        lane_sums(square, some, out + r, false);
        for (int64_t i = 0; i < some && bias != nullptr; ++i) out[r + i] += widen(bias[r + i]);
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

// e^x to about 2e-7 of itself, within what float32 holds; NaN stays. As 2^i e^r, with a polynomial for |r| < 0.35.
vec exp(vec x) {
    x = within({-87.0f, 88.0f}, x);
    const vec shifter = broadcast(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to a whole number
    const vec shifted = x * 1.44269504f + shifter, i = shifted - shifter;
    const vec r = (x - i * 0.693359375f) + i * 2.12194440e-4f;  // ln 2 in two parts, of which the first has few bits
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const vec result = reinterpret_cast<vec>(reinterpret_cast<whole>(p) + (reinterpret_cast<whole>(shifted) << 23));
    return x == x ? result : x;
}

void sigmoid(float* v, int64_t n) {
    for (int64_t i = 0; i < n; i += lanes) {
        alignas(vector_bytes) float numbers[lanes] = {};
        const int64_t some = least(lanes, n - i);
        copy(numbers, v + i, some);
        store(numbers, 1.0f / (1.0f + exp(-load(numbers))));
        copy(v + i, numbers, some);
    }
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
