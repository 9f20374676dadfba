// SPDX-License-Identifier: Apache-2.0
// The gradients of bank and coefficients of the mixed depthwise convolution, a vector of channels per work item. The
// gradient of y is spread to the pitch of the packed inputs, with zeros between its rows: each tap is one long product.
#include "../kernels.h"
#include "conv_parts.h"
#include "conv_sums.h"

namespace convary::CONVARY_VARIANT {
namespace {

constexpr int64_t unroll = 4;

// dots[t * lanes * lanes ..] += a vector of partial sums over i in [0, n) of grads[i] * inputs[offsets[t] + i].
void correlate(const float* grads, const float* inputs, const int64_t* offsets, int64_t T, int64_t n, float* dots) {
    for (int64_t t = 0; t < T; ++t) {
        vec sum[unroll] = {};
        const float* from = inputs + offsets[t];
        for (int64_t i = 0; i < n; i += unroll * lanes) {
#pragma GCC unroll 4
            for (int64_t v = 0; v < unroll; ++v) sum[v] += load(grads + i + v * lanes) * load(from + i + v * lanes);
        }
        float* to = dots + t * lanes * lanes;
        store(to, load(to) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
    }
}

// dots[t * lanes ..] += the sum over a window's outputs of gradient * input, channels in the lanes. `grads` is (B, H,
// W, C), and is not read from `end` on.
template <typename X>
void correlate_upright(const Conv& conv, const Window& window, const X* grads, const X* end, int64_t count,
                       const float* inputs, const int64_t* offsets, float* dots) {
    for (int64_t i = 0; i < window.rows; ++i) {
        for (int64_t j = 0; j < window.columns; ++j) {
            const X* at = grads + (i * conv.w.out + j) * conv.C;
            alignas(vector_bytes) float edge[lanes] = {};
            if (at + lanes > end) copy(edge, at, count, end);
            const vec gradient = keep(at + lanes > end ? load(edge) : load(at), count);
            const float* from = inputs + (i * conv.h.stride * window.pitch + j * conv.w.stride) * lanes;
            for (int64_t t = 0; t < conv.T(); ++t) {
                float* to = dots + t * lanes;
                store(to, load(to) + gradient * load(from + offsets[t] * lanes));
            }
        }
    }
}

// to[r, t] = from[t * step + r]
void put_columns(const float* from, int64_t step, int64_t T, int64_t count, float* to) {
    for (int64_t r = 0; r < count; ++r) {
        for (int64_t t = 0; t < T; ++t) to[r * T + t] = from[t * step + r];
    }
}

template <typename X, typename W>
void run_depthwise(const ConvGrad& grad, int64_t item, float* scratch) {
    const Conv& conv = grad.conv;
    const GradScratch size(grad, lanes);
    float *bank = size.part(scratch, size.bank), *grad_bank = size.part(scratch, size.grad_bank);
    float *dots = size.part(scratch, size.weights), *steps = size.part(scratch, size.steps);
    float *channel = size.part(scratch, size.channel), *tap = size.part(scratch, size.tap);
    float *filter = size.part(scratch, size.filter), *inputs = size.part(scratch, size.inputs);
    float *grads = size.part(scratch, size.grads), *ones = size.part(scratch, size.ones);
    float* sums = size.part(scratch, size.sums);
    int64_t *all_taps = reinterpret_cast<int64_t*>(size.part(scratch, size.offsets)), *offsets = all_taps + conv.T();
    const bool own = conv.bank_step != 0;  // the sample's own bank, whose gradient is that of the weights
    const int64_t c0 = item % grad.o_blocks * lanes, count = least(lanes, conv.C - c0), T = conv.T(), K = conv.K;
    const int64_t b0 = own ? item / grad.o_blocks : 0, b1 = own ? b0 + 1 : conv.B;
    const int64_t map = conv.h.in * conv.w.in;
    const X *grad_y = static_cast<const X*>(grad.grad_y), *grad_end = grad_y + conv.B * conv.C * conv.P();
    for (int64_t i = 0; i < size.size(size.ones); ++i) ones[i] = 1.0f;
    for (int64_t t = 0; t < T; ++t) all_taps[t] = t;
    for (int64_t k = 0; k < K && !own; ++k) {
        const W* from = static_cast<const W*>(conv.bank) + (k * conv.O + c0) * T;
        turn(Rows<W>{from, conv.bank_end, 1, 0, T, count}, T, ones, lanes, bank + k * lanes, K * lanes);
    }
    clear(grad_bank, T * K * lanes);
    for (int64_t b = b0; b < b1; ++b) {
        clear(dots, T * lanes * lanes);
        for (int64_t row = 0; row < conv.h.out; row += grad.rows) {
            for (int64_t column = 0; column < conv.w.out; column += grad.columns) {
                const Window window(conv, row, least(grad.rows, conv.h.out - row), column,
                                    least(grad.columns, conv.w.out - column));
                for (int64_t t = 0; t < T; ++t) offsets[t] = window.offset(conv, t / conv.w.taps, t % conv.w.taps);
                if (conv.channels_last) {
                    pack_pixels<false>(conv, window, conv.input<X>(b, c0), count, 0, lanes, inputs);
                    const X* grads_at = grad_y + (b * conv.P() + row * conv.w.out + column) * conv.C + c0;
                    correlate_upright(conv, window, grads_at, grad_end, count, inputs, offsets, dots);
                    continue;
                }
                const int64_t n =
                    ceil_div((window.rows - 1) * window.pitch + window.columns, unroll * lanes) * unroll * lanes;
                clear(grads, n);
                // What is read past the window meets zeros of the gradient, but an earlier window may have left an Inf.
                clear(inputs + window.plane, unroll * lanes);
                for (int64_t r = 0; r < count; ++r) {
                    pack_plane(conv, window, Words<false, X>{conv.input<X>(b, c0) + r * map, nullptr}, inputs);
                    const X* from = grad_y + (b * conv.C + c0 + r) * conv.P() + row * conv.w.out + column;
                    for (int64_t i = 0; i < window.rows; ++i) {
                        copy(grads + i * window.pitch, from + i * conv.w.out, window.columns, grad_end);
                    }
                    correlate(grads, inputs, offsets, T, n, dots + r * lanes);
                }
            }
        }
        // A channel's partial sums are a row of a square; the columns' sum has a channel in each lane.
        for (int64_t t = 0; t < T && !conv.channels_last; ++t) {
            vec rows[lanes], sum = {};
            for (int64_t r = 0; r < lanes; ++r) rows[r] = load(dots + (t * lanes + r) * lanes);
            transpose(rows);
            for (int64_t r = 0; r < lanes; ++r) sum += rows[r];
            store(dots + t * lanes, sum);
        }
        if (own) {
            put_columns(dots, lanes, T, count, grad.grad_bank + (b * conv.O + c0) * T);
            return;
        }
        Conv part = conv;
        part.channel = nullptr;
        mixing_factors(part, b, 0, 0, 1, all_taps, T, steps);
        part.kernel = nullptr;
        mixing_factors(part, b, 0, 0, 1, all_taps, T, tap);
        for (int64_t k = 0; k < K; ++k) channel[k] = 1.0f;
        const int64_t rows = grad.factor_rows();
        if (grad.scaled()) channel_filter(conv, b, c0, count, filter);
        const Spread call = {dots,
                             0,
                             bank,
                             grad_bank,
                             steps,
                             channel,
                             grad.scaled() ? filter : nullptr,
                             tap,
                             steps,
                             tap,
                             rows,
                             sums,
                             K,
                             T,
                             1,
                             lanes,
                             grad.part_tap + (item * conv.B + b) * K * T,
                             grad.part_filter == nullptr ? nullptr : grad.part_filter + b * rows * conv.O + c0,
                             nullptr,
                             conv.O,
                             conv.C,
                             count,
                             false};
        spread_gradient(call, 1);
    }
    for (int64_t k = 0; k < K; ++k) {
        put_columns(grad_bank + k * lanes, K * lanes, T, count, grad.grad_bank + (k * conv.O + c0) * T);
    }
}

}  // namespace

void mixed_conv_depthwise_grad_weights(const ConvGrad& grad, int64_t item, float* scratch) {
    if (!grad.conv.half) return run_depthwise<float, float>(grad, item, scratch);
    if (!grad.conv.half_bank) return run_depthwise<bf16, float>(grad, item, scratch);
    run_depthwise<bf16, bf16>(grad, item, scratch);
}

}  // namespace convary::CONVARY_VARIANT
