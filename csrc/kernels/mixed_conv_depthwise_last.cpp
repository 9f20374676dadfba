// SPDX-License-Identifier: Apache-2.0
// The mixed depthwise convolution of features whose channels lie innermost, in whole vectors: x is read and y written
// where they lie. A work item is a window of one sample, some vectors of channels wide. A few positions are done for
// all of its channels before the next ones, so that memory is read as it lies.
#include "../kernels.h"
#include "conv_parts.h"

namespace convary::CONVARY_VARIANT {
namespace {

// Which taps of an output reach no padding, and where they read, in floats from the image's first.
struct Reached {
    int64_t *taps, *offsets, count;
};

// `positions` neighbouring outputs that reach the same taps, of one vector of channels; their inputs are `step` apart.
template <int64_t positions>
void run(const float* weights, const Reached& reached, const float* x, int64_t step, const float* start,
         const Range& range, float* y, int64_t y_step) {
    vec sum[positions];
    const vec first = load(start);
#pragma GCC unroll 14
    for (int64_t p = 0; p < positions; ++p) sum[p] = first;
    for (int64_t t = 0; t < reached.count; ++t) {
        const vec weight = load(weights + reached.taps[t] * lanes);
        const float* from = x + reached.offsets[t];
#pragma GCC unroll 14
        for (int64_t p = 0; p < positions; ++p) sum[p] += weight * load(from + p * step);
    }
#pragma GCC unroll 14
    for (int64_t p = 0; p < positions; ++p) store(y + p * y_step, within(range, sum[p]));
}

typedef void (*Run)(const float*, const Reached&, const float*, int64_t, const float*, const Range&, float*, int64_t);
const Run runs[tile_positions] = {
    run<1>, run<2>, run<3>, run<4>,  run<5>,  run<6>,
#if CONVARY_LANES == 16 || defined(__aarch64__)
    run<7>, run<8>, run<9>, run<10>, run<11>, run<12>, run<13>, run<14>,
#endif
};

bool reaches(const Axis& axis, int64_t out, int64_t tap) {
    const int64_t at = out * axis.stride + tap * axis.dilation - axis.pad;
    return at >= 0 && at < axis.in;
}

// Those of output (i, j).
void look(const Conv& conv, int64_t i, int64_t j, Reached* reached) {
    const Axis &h = conv.h, &w = conv.w;
    reached->count = 0;
    for (int64_t row = 0; row < h.taps; ++row) {
        for (int64_t column = 0; reaches(h, i, row) && column < w.taps; ++column) {
            if (!reaches(w, j, column)) continue;
            const int64_t y = i * h.stride + row * h.dilation - h.pad, x = j * w.stride + column * w.dilation - w.pad;
            reached->taps[reached->count] = conv.bank_tap(row * w.taps + column);
            reached->offsets[reached->count++] = (y * w.in + x) * conv.C;
        }
    }
}

// Neighbours of output column j, itself included, that reach the same taps; `end` is none of them.
int64_t alike(const Axis& w, int64_t j, int64_t end) {
    int64_t n = 1;
    while (reaches(w, j, 0) && j + n < end && reaches(w, j + n, w.taps - 1)) ++n;
    return n;
}

// weights[vector, tap, lane] of the channels from c on.
template <typename W>
void mix_vectors(const Conv& conv, int64_t b, int64_t c, int64_t vectors, int64_t* taps, float* factors, float* filter,
                 float* weights) {
    const int64_t T = conv.T_bank;
    for (int64_t t = 0; t < T; ++t) taps[t] = t;
    Conv without = conv;
    without.channel = nullptr;
    mixing_factors(without, b, 0, 0, 1, taps, T, factors);
    const bool filtered = conv.filter != nullptr || conv.channel != nullptr;
    for (int64_t v = 0; v < vectors; ++v, c += lanes, weights += T * lanes) {
        if (filtered) channel_filter(conv, b, c, lanes, filter);
        const W* own = static_cast<const W*>(conv.bank) + b * conv.bank_step + c * T;
        const Rows<W> rows = {own, conv.bank_end, conv.K, conv.O * T, T, lanes};
        mix_transposed<false>(rows, T, {}, factors, T, filtered ? filter : nullptr, lanes, nullptr, weights, lanes);
    }
}

}  // namespace

void mixed_conv_depthwise_last(const Conv& conv, const Blocks& blocks, int64_t item, float* scratch) {
    const ConvScratch size(conv, blocks);
    float *weights = size.part(scratch, size.weights), *shift = size.part(scratch, size.shift);
    int64_t* offsets = reinterpret_cast<int64_t*>(size.part(scratch, size.offsets));
    Reached reached = {offsets + conv.T(), offsets, 0};
    const int64_t first_column = item % blocks.column_blocks * blocks.columns;
    const int64_t first_row = item / blocks.column_blocks % blocks.row_blocks * blocks.rows;
    const int64_t o_block = item / (blocks.column_blocks * blocks.row_blocks);
    const int64_t b = o_block / blocks.o_blocks, c = o_block % blocks.o_blocks * blocks.panels * lanes;
    const int64_t vectors = least(blocks.panels, (conv.C - c) / lanes);
    (conv.half_bank ? mix_vectors<bf16> : mix_vectors<float>)(conv, b, c, vectors, offsets + 2 * conv.T(),
                                                              size.part(scratch, size.factors),
                                                              size.part(scratch, size.filter), weights);
    for (int64_t r = 0; r < vectors * lanes; ++r) {
        shift[r] = conv.bias != nullptr ? conv.bias[b * conv.bias_step + c + r] : 0.0f;
    }
    const float* x = conv.input<float>(b, c);
    const int64_t row_end = least(first_row + blocks.rows, conv.h.out), step = conv.w.stride * conv.C;
    const int64_t column_end = least(first_column + blocks.columns, conv.w.out);
    for (int64_t i = first_row; i < row_end; ++i) {
        for (int64_t j = first_column, n; j < column_end; j += n) {
            look(conv, i, j, &reached);
            n = alike(conv.w, j, column_end);
            const int64_t together = ceil_div(n, ceil_div(n, tile_positions));
            float* y = conv.output<float>(b, c) + i * conv.y_row + j * conv.y_column;
            for (int64_t p = 0; p < n; p += together) {
                const Run go = runs[least(together, n - p) - 1];
                for (int64_t v = 0; v < vectors; ++v) {
                    go(weights + v * conv.T_bank * lanes, reached, x + p * step + v * lanes, step, shift + v * lanes,
                       conv.range, y + p * conv.y_column + v * lanes, conv.y_column);
                }
            }
        }
    }
}

}  // namespace convary::CONVARY_VARIANT
