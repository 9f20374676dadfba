// SPDX-License-Identifier: Apache-2.0
// The 1x1 convolution of few channels with kernels given per sample: positions in the lanes, weights broadcast, nothing
// packed or transposed. A work item is a window of positions of one sample and group, all of its output channels.
#include "../kernels.h"
#include "conv_parts.h"
#include "conv_sums.h"

namespace convary::CONVARY_VARIANT {
namespace {

#if CONVARY_LANES == 16 || defined(__aarch64__)
constexpr int64_t block_vectors = 4;  // of 32 registers, 16 are accumulators
constexpr int64_t block_channels = 4;
#else
constexpr int64_t block_vectors = 2;
constexpr int64_t block_channels = 2;
#endif
constexpr int64_t block_outputs = 4;

// From one output channel's weights to the next, and from one input channel's.
struct Steps {
    int64_t output, channel;
};

// sums[o * sum_step + i] += sum_c weights[o, c] * x[c * x_step + i] for `outputs` channels and `vectors` vectors of i.
template <int64_t outputs, int64_t vectors>
inline void add_block(const float* weights, Steps steps, int64_t channels, const float* x, int64_t x_step, float* sums,
                      int64_t sum_step) {
    vec sum[outputs][vectors];
#pragma GCC unroll 4
    for (int64_t o = 0; o < outputs; ++o) {
#pragma GCC unroll 4
        for (int64_t v = 0; v < vectors; ++v) sum[o][v] = load(sums + o * sum_step + v * lanes);
    }
    for (int64_t c = 0; c < channels; ++c) {
        vec values[vectors];
#pragma GCC unroll 4
        for (int64_t v = 0; v < vectors; ++v) values[v] = load(x + c * x_step + v * lanes);
#pragma GCC unroll 4
        for (int64_t o = 0; o < outputs; ++o) {
            const float weight = weights[o * steps.output + c * steps.channel];
#pragma GCC unroll 4
            for (int64_t v = 0; v < vectors; ++v) sum[o][v] += weight * values[v];
        }
    }
#pragma GCC unroll 4
    for (int64_t o = 0; o < outputs; ++o) {
#pragma GCC unroll 4
        for (int64_t v = 0; v < vectors; ++v) store(sums + o * sum_step + v * lanes, sum[o][v]);
    }
}

template <int64_t outputs>
void add_row(const float* weights, Steps steps, int64_t channels, const float* x, int64_t x_step, int64_t vectors,
             float* sums, int64_t sum_step) {
    int64_t v = 0;
    for (; v + block_vectors <= vectors; v += block_vectors) {
        add_block<outputs, block_vectors>(weights, steps, channels, x + v * lanes, x_step, sums + v * lanes, sum_step);
    }
    for (; v < vectors; ++v) {
        add_block<outputs, 1>(weights, steps, channels, x + v * lanes, x_step, sums + v * lanes, sum_step);
    }
}

void add_products(const float* weights, Steps steps, int64_t outputs, int64_t channels, const float* x, int64_t x_step,
                  int64_t vectors, float* sums, int64_t sum_step) {
    for (int64_t o = 0; o < outputs; o += block_outputs) {
        const auto add = [&](auto kind) {
            kind(weights + o * steps.output, steps, channels, x, x_step, vectors, sums + o * sum_step, sum_step);
        };
        switch (least(block_outputs, outputs - o)) {
            case 1: add(add_row<1>); break;
            case 2: add(add_row<2>); break;
            case 3: add(add_row<3>); break;
            default: add(add_row<4>);
        }
    }
}

// The last positions of a row, fewer than a vector, with zeros behind them.
void pack_tail(const float* x, int64_t x_step, int64_t channels, int64_t count, float* to) {
    for (int64_t c = 0; c < channels; ++c) {
        copy(to + c * lanes, x + c * x_step, count);
        clear(to + c * lanes + count, lanes - count);
    }
}

// dots[o, c] += a vector of partial sums of y[o * step + i] * x[c * step + i] over `vectors` vectors of i.
template <int64_t outputs, int64_t channels>
void add_dots(const float* y, const float* x, int64_t y_step, int64_t x_step, int64_t vectors, float* dots,
              int64_t dot_step) {
    vec sum[outputs][channels];
#pragma GCC unroll 4
    for (int64_t o = 0; o < outputs; ++o) {
#pragma GCC unroll 4
        for (int64_t c = 0; c < channels; ++c) sum[o][c] = load(dots + o * dot_step + c * lanes);
    }
    for (int64_t v = 0; v < vectors; ++v) {
        vec values[channels];
#pragma GCC unroll 4
        for (int64_t c = 0; c < channels; ++c) values[c] = load(x + c * x_step + v * lanes);
#pragma GCC unroll 4
        for (int64_t o = 0; o < outputs; ++o) {
            const vec grad = load(y + o * y_step + v * lanes);
#pragma GCC unroll 4
            for (int64_t c = 0; c < channels; ++c) sum[o][c] += grad * values[c];
        }
    }
#pragma GCC unroll 4
    for (int64_t o = 0; o < outputs; ++o) {
#pragma GCC unroll 4
        for (int64_t c = 0; c < channels; ++c) store(dots + o * dot_step + c * lanes, sum[o][c]);
    }
}

// The same for any number of channels.
void add_all_dots(const float* y, const float* x, int64_t outputs, int64_t channels, int64_t y_step, int64_t x_step,
                  int64_t vectors, float* dots) {
    const int64_t dot_step = channels * lanes;
    for (int64_t o = 0; o < outputs;) {
        const int64_t some = outputs - o >= block_outputs ? block_outputs : 1;
        for (int64_t c = 0; c < channels;) {
            const int64_t few = channels - c >= block_channels ? block_channels : 1;
            const auto kind = some == 1
                                  ? (few == 1 ? add_dots<1, 1> : add_dots<1, block_channels>)
                                  : (few == 1 ? add_dots<block_outputs, 1> : add_dots<block_outputs, block_channels>);
            kind(y + o * y_step, x + c * x_step, y_step, x_step, vectors, dots + o * dot_step + c * lanes, dot_step);
            c += few;
        }
        o += some;
    }
}

}  // namespace

void sample_conv_thin_f32(const Conv& conv, const Blocks& blocks, int64_t item, float* scratch) {
    const ConvScratch size(conv, blocks);
    float *tail = size.part(scratch, size.inputs), *sums = size.part(scratch, size.sums);
    const int64_t column = item % blocks.column_blocks * blocks.columns;
    const int64_t b = item / blocks.column_blocks % conv.B, g = item / (blocks.column_blocks * conv.B);
    const int64_t columns = least(blocks.columns, conv.w.out - column), Cg = conv.Cg(), Og = conv.Og();
    const int64_t vectors = columns / lanes, rest = columns % lanes, map = conv.w.in;
    const int64_t sum_step = ceil_div(columns, lanes) * lanes, terms = conv.terms(b);
    const Steps steps = conv.transposed ? Steps{1, Og} : Steps{Cg, 1};

    for (int64_t o = 0; o < Og; ++o) {
        const float start = conv.bias == nullptr ? 0.0f : conv.bias[b * conv.bias_step + g * Og + o];
        for (int64_t i = 0; i < sum_step; i += lanes) store(sums + o * sum_step + i, broadcast(start));
    }
    for (int64_t term = 0; term < terms; ++term) {
        const int64_t sample = conv.term(b, term);
        const float* weights = static_cast<const float*>(conv.bank) + sample * conv.bank_step + g * Og * Cg;
        const float* x = conv.input<float>(sample, g * Cg) + column;
        add_products(weights, steps, Og, Cg, x, map, vectors, sums, sum_step);
        if (rest > 0) {
            pack_tail(x + vectors * lanes, map, Cg, rest, tail);
            add_products(weights, steps, Og, Cg, tail, lanes, 1, sums + vectors * lanes, sum_step);
        }
    }
    for (int64_t o = 0; o < Og && terms > 0; ++o) {
        float* const row = sums + o * sum_step;
        for (int64_t i = 0; i < sum_step; i += lanes) store(row + i, within(conv.range, load(row + i)));
        copy(conv.output<float>(b, g * Og + o) + column, row, columns);
    }
}

void sample_conv_thin_grad_weights_f32(const ConvGrad& grad, int64_t item, float* scratch) {
    const Conv& conv = grad.conv;
    const int64_t Cg = conv.Cg(), Og = conv.Og(), P = conv.w.out, b = item / conv.G, g = item % conv.G;
    const GradScratch size(grad, lanes);
    float *dots = size.part(scratch, size.sums), *x_tail = dots + Og * Cg * lanes, *y_tail = x_tail + Cg * lanes;
    const float* x = conv.input<float>(b, g * Cg);
    const float* y = static_cast<const float*>(grad.grad_y) + (b * conv.O + g * Og) * P;
    clear(dots, Og * Cg * lanes);
    for (int64_t column = 0; column < P; column += grad.columns) {
        const int64_t columns = least(grad.columns, P - column), vectors = columns / lanes, rest = columns % lanes;
        add_all_dots(y + column, x + column, Og, Cg, P, P, vectors, dots);
        if (rest == 0) continue;
        pack_tail(x + column + vectors * lanes, P, Cg, rest, x_tail);
        pack_tail(y + column + vectors * lanes, P, Og, rest, y_tail);
        add_all_dots(y_tail, x_tail, Og, Cg, lanes, lanes, 1, dots);
    }
    float* to = grad.grad_bank + b * conv.bank_step + g * Og * Cg;
    for (int64_t i = 0; i < Og * Cg; ++i) to[i] = lane_sum(load(dots + i * lanes));
}

}  // namespace convary::CONVARY_VARIANT
