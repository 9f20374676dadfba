// SPDX-License-Identifier: Apache-2.0
// The mixed depthwise convolution, a vector of channels of one sample per work item: their kernels are mixed together.
// Then each map is packed with its zeros and convolved as one run, edge columns included, which are dropped at the
// store. Small maps, whose rows are shorter than a vector, are turned upright instead: a vector holds one position of
// all maps.
#include "../kernels.h"
#include "conv_parts.h"

namespace convary::CONVARY_VARIANT {
namespace {

constexpr int64_t unroll = 4;  // vectors of accumulators

// sums[i] = start + sum_t weights[taps[t] * lanes] * inputs[offsets[t] + i] for i in [0, n), up to unroll vectors more;
// with `add` what is there is the start. The sums are cut to `range`, everything where they go on.
void stencil(const float* weights, const int64_t* taps, const int64_t* offsets, int64_t T, const float* inputs,
             float start, const Range& range, int64_t n, float* sums, bool add) {
    for (int64_t i = 0; i < n; i += unroll * lanes) {
        vec sum[unroll];
#pragma GCC unroll 4
        for (int64_t v = 0; v < unroll; ++v) sum[v] = add ? load(sums + i + v * lanes) : broadcast(start);
        for (int64_t t = 0; t < T; ++t) {
            const float weight = weights[taps[t] * lanes];
            const float* from = inputs + offsets[t] + i;
#pragma GCC unroll 4
            for (int64_t v = 0; v < unroll; ++v) sum[v] += weight * load(from + v * lanes);
        }
#pragma GCC unroll 4
        for (int64_t v = 0; v < unroll; ++v) store(sums + i + v * lanes, within(range, sum[v]));
    }
}

// The window's rows without what lies between them.
template <typename X>
void put_rows(const Conv& conv, const Window& window, const float* sums, X* y) {
    for (int64_t i = 0; i < window.rows; ++i, sums += window.pitch, y += conv.y_row) {
        if (conv.y_column == 1) {
            copy(y, sums, window.columns);
        } else {
            for (int64_t j = 0; j < window.columns; j += lanes) {
                X row[lanes];
                store(row, load(sums + j));
                const int64_t n = least(lanes, window.columns - j);
                for (int64_t k = 0; k < n; ++k) y[(j + k) * conv.y_column] = row[k];
            }
        }
    }
}

// upright[row * columns + column, r] = map r at (row, column), both counted from the padding's edge; zeros around.
template <typename X>
void stand(const Conv& conv, const X* maps, int64_t count, float* upright) {
    const Axis &h = conv.h, &w = conv.w;
    const int64_t rows = h.extent(), columns = w.extent(), map = h.in * w.in;
    clear(upright, rows * columns * lanes);
    for (int64_t p = 0; p < map; p += lanes) {
        const int64_t first = map >= lanes ? least(p, map - lanes) : 0, n = least(lanes, map - first);
        vec square[lanes];
        for (int64_t r = 0; r < lanes; ++r) {
            const X* from = maps + (r < count ? r : 0) * map + first;
            if (from + lanes <= conv.x_end) {
                square[r] = load(from);
            } else {
                alignas(vector_bytes) float edge[lanes] = {};
                copy(edge, from, n, conv.x_end);
                square[r] = load(edge);
            }
        }
        transpose(square);
        int64_t row = first / w.in + h.pad, column = first % w.in + w.pad;
        for (int64_t i = 0; i < n; ++i) {
            const bool inside = row >= 0 && row < rows && column >= 0 && column < columns;
            if (inside) store(upright + (row * columns + column) * lanes, square[i]);
            if (++column == w.in + w.pad) column = w.pad, ++row;
        }
    }
}

// `count` neighbouring outputs of all maps, `step` floats of the input apart.
template <int64_t count>
void upright_run(const float* weights, const int64_t* taps, const int64_t* offsets, int64_t T, const float* inputs,
                 int64_t step, float* sums, bool add) {
    vec sum[count];
#pragma GCC unroll 14
    for (int64_t p = 0; p < count; ++p) sum[p] = add ? load(sums + p * lanes) : vec{};
    for (int64_t t = 0; t < T; ++t) {
        const vec weight = load(weights + taps[t] * lanes);
        const float* from = inputs + offsets[t] * lanes;
#pragma GCC unroll 14
        for (int64_t p = 0; p < count; ++p) sum[p] += weight * load(from + p * step);
    }
#pragma GCC unroll 14
    for (int64_t p = 0; p < count; ++p) store(sums + p * lanes, sum[p]);
}

typedef void (*UprightRun)(const float*, const int64_t*, const int64_t*, int64_t, const float*, int64_t, float*, bool);
const UprightRun upright_runs[] = {
    upright_run<1>,  upright_run<2>,  upright_run<3>, upright_run<4>,  upright_run<5>,  upright_run<6>,
#if CONVARY_LANES == 16 || defined(__aarch64__)
    upright_run<7>,  upright_run<8>,  upright_run<9>, upright_run<10>, upright_run<11>, upright_run<12>,
    upright_run<13>, upright_run<14>,
#endif
};

// sums[output, r] (+)= sum_t weights[taps[t], r] * upright[input of that output and tap, r].
void upright_stencil(const Conv& conv, const Window& window, const float* weights, const int64_t* taps,
                     const int64_t* offsets, const float* upright, int64_t pitch, float* sums, bool add) {
    const int64_t columns = window.columns, run = ceil_div(columns, ceil_div(columns, tile_positions));
    for (int64_t i = 0; i < window.rows; ++i) {
        for (int64_t j = 0; j < columns; j += run) {
            const int64_t n = least(run, columns - j);
            const float* from = upright + (i * conv.h.stride * pitch + j * conv.w.stride) * lanes;
            upright_runs[n - 1](weights, taps, offsets, conv.T(), from, conv.w.stride * lanes,
                                sums + (i * columns + j) * lanes, add);
        }
    }
}

}  // namespace

// The channel and filter factors of channels [c, c + count): in a depthwise bank both belong to the same number.
void channel_filter(const Conv& conv, int64_t b, int64_t c, int64_t count, float* filter) {
    for (int64_t k = 0; k < conv.K; ++k) {
        const float* first = conv.filter + (b * conv.filter_rows + (conv.filter_rows == 1 ? 0 : k)) * conv.O + c;
        const float* second = conv.channel + (b * conv.channel_rows + (conv.channel_rows == 1 ? 0 : k)) * conv.C + c;
        for (int64_t r = 0; r < lanes; ++r) {
            const bool used = r < count;
            filter[k * lanes + r] = (used && conv.filter != nullptr ? first[r] : 1.0f) *
                                    (used && conv.channel != nullptr ? second[r] : 1.0f);
        }
    }
}

namespace {

template <typename X, typename W>
void run_depthwise(const Conv& conv, const Blocks& blocks, int64_t item, float* scratch) {
    const ConvScratch size(conv, blocks);
    float *weights = size.part(scratch, size.weights), *factors = size.part(scratch, size.factors);
    float *filter = size.part(scratch, size.filter), *inputs = size.part(scratch, size.inputs);
    float* sums = size.part(scratch, size.sums);
    int64_t* offsets = reinterpret_cast<int64_t*>(size.part(scratch, size.offsets));
    int64_t *taps = offsets + conv.T(), *all_taps = taps + conv.T();

    const int64_t column = item % blocks.column_blocks * blocks.columns;
    const int64_t row = item / blocks.column_blocks % blocks.row_blocks * blocks.rows;
    const Window window(conv, row, least(blocks.rows, conv.h.out - row), column,
                        least(blocks.columns, conv.w.out - column));
    const int64_t o_block = item / (blocks.column_blocks * blocks.row_blocks);
    const int64_t b = o_block / blocks.o_blocks, c = o_block % blocks.o_blocks * lanes;
    const int64_t count = least(lanes, conv.C - c), T = conv.T_bank;

    for (int64_t t = 0; t < conv.T(); ++t) {
        offsets[t] = window.offset(conv, t / conv.w.taps, t % conv.w.taps);
        taps[t] = conv.bank_tap(t);
    }
    for (int64_t t = 0; t < T; ++t) all_taps[t] = t;
    const bool filtered = conv.filter != nullptr || conv.channel != nullptr;
    if (filtered) channel_filter(conv, b, c, count, filter);
    Conv without = conv;
    without.channel = nullptr;
    mixing_factors(without, b, 0, 0, 1, all_taps, T, factors);
    const auto mix = [&](int64_t sample) {
        const W* own = static_cast<const W*>(conv.bank) + sample * conv.bank_step + c * T;
        const Rows<W> rows = {own, conv.bank_end, conv.K, conv.O * T, T, count};
        mix_transposed<false>(rows, T, {}, factors, T, filtered ? filter : nullptr, lanes, nullptr, weights, lanes);
    };
    const int64_t terms = conv.terms(b);
    if (terms == 1) mix(conv.term(b, 0));

    if (blocks.upright) {
        float *scale = size.part(scratch, size.scale), *shift = size.part(scratch, size.shift);
        const int64_t pitch = conv.channels_last ? window.pitch : conv.w.extent();
        for (int64_t t = 0; t < conv.T(); ++t) {
            offsets[t] = t / conv.w.taps * conv.h.dilation * pitch + t % conv.w.taps * conv.w.dilation;
        }
        for (int64_t r = 0; r < lanes; ++r) {
            scale[r] = 1.0f;
            shift[r] = conv.bias != nullptr && r < count ? conv.bias[b * conv.bias_step + c + r] : 0.0f;
        }
        X* y = conv.output<X>(b, c) + row * conv.y_row + column * conv.y_column;
        if (!conv.channels_last) fetch<write>(y, count * conv.y_map);
        for (int64_t term = 0; term < terms; ++term) {
            const int64_t sample = conv.term(b, term);
            if (terms > 1) mix(sample);
            if (conv.channels_last) {
                pack_pixels<false>(conv, window, conv.input<X>(sample, c), count, 0, lanes, inputs);
            } else {
                fetch<read>(conv.input<X>(sample, c + count),
                            lanes * conv.x_map());  // the next item's maps follow these
                stand(conv, conv.input<X>(sample, c), count, inputs);
            }
            upright_stencil(conv, window, weights, taps, offsets, inputs, pitch, sums, term > 0);
        }
        if (terms == 0) return;
        if (conv.channels_last) return store_pixels(conv, window, sums, lanes, count, scale, shift, y);
        return store_maps(sums, lanes, conv.P(), count, scale, shift, conv.range, y, conv.y_map);
    }

    const int64_t n = (window.rows - 1) * window.pitch + window.columns;
    // A few maps step by step together: reading what was only just written, in other pieces, would stall.
    const int64_t room = window.plane + unroll * lanes;
    for (int64_t r0 = 0; r0 < count; r0 += blocks.panels) {
        const int64_t maps = least(blocks.panels, count - r0), first = c + r0;
        for (int64_t term = 0; term < terms; ++term) {
            const int64_t sample = conv.term(b, term);
            const X* x = conv.input<X>(sample, c + r0);
            if (terms > 1) mix(sample);
            for (int64_t r = 0; r < maps; ++r) {
                const Words<false, X> map = {x + r * conv.h.in * conv.w.in, nullptr};
                pack_plane(conv, window, map, inputs + r * window.plane);
            }
            for (int64_t r = 0; r < maps; ++r) {
                const float start = conv.bias == nullptr ? 0.0f : conv.bias[b * conv.bias_step + c + r0 + r];
                stencil(weights + r0 + r, taps, offsets, conv.T(), inputs + r * window.plane, start, conv.range, n,
                        sums + r * room, term > 0);
            }
        }
        for (int64_t r = 0; r < maps && terms > 0; ++r) {
            X* y = conv.output<X>(b, first + r) + row * conv.y_row + column * conv.y_column;
            put_rows(conv, window, sums + r * room, y);
        }
    }
}

}  // namespace

void mixed_conv_depthwise(const Conv& conv, const Blocks& blocks, int64_t item, float* scratch) {
    if (!conv.half && conv.half_bank) return run_depthwise<float, bf16>(conv, blocks, item, scratch);
    if (!conv.half) return run_depthwise<float, float>(conv, blocks, item, scratch);
    if (!conv.half_bank) return run_depthwise<bf16, float>(conv, blocks, item, scratch);
    run_depthwise<bf16, bf16>(conv, blocks, item, scratch);
}

}  // namespace convary::CONVARY_VARIANT
