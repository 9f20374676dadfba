// SPDX-License-Identifier: Apache-2.0
// The convolution with a kernel per position and the gradient of its weights, some rows of one group per work item. A
// vector holds neighbouring positions; each weight is read from memory once and serves all channels of the group.
#include "../kernels.h"
#include "pixel_lines.h"

namespace convary::CONVARY_VARIANT {
namespace {

constexpr int64_t together = 4;  // channels, or taps, that are worked on at once, two vectors of each

// y[k * y_step + j] = sum_t weights[t * step + j] * lines[k * line + offsets[t] + j] for `count` channels k and the
// vectors of j that begin at a and b.
template <int64_t count, int64_t vectors>
void filter(const float* weights, int64_t step, const int64_t* offsets, int64_t T, const float* lines, int64_t line,
            int64_t a, int64_t b, float* y, int64_t y_step) {
    vec sum[count][vectors] = {};
    for (int64_t t = 0; t < T; ++t) {
        const float* w = weights + t * step;
        const float* from = lines + offsets[t];
        const vec first = load(w + a), second = vectors == 2 ? load(w + b) : first;
#pragma GCC unroll 4
        for (int64_t k = 0; k < count; ++k) {
            sum[k][0] += first * load(from + k * line + a);
            if (vectors == 2) sum[k][vectors - 1] += second * load(from + k * line + b);
        }
    }
#pragma GCC unroll 4
    for (int64_t k = 0; k < count; ++k) {
        store(y + k * y_step + a, sum[k][0]);
        if (vectors == 2) store(y + k * y_step + b, sum[k][vectors - 1]);
    }
}

// The same for n positions, at least a vector; the last one overlaps the one before.
template <int64_t count>
void filter_row(const float* weights, int64_t step, const int64_t* offsets, int64_t T, const float* lines, int64_t line,
                int64_t n, float* y, int64_t y_step) {
    for (int64_t j = 0; j < n; j += 2 * lanes) {
        const int64_t a = least(j, n - lanes), b = least(j + lanes, n - lanes);
        if (n - j > lanes) {
            filter<count, 2>(weights, step, offsets, T, lines, line, a, b, y, y_step);
        } else {
            filter<count, 1>(weights, step, offsets, T, lines, line, a, b, y, y_step);
        }
    }
}

typedef void (*FilterRow)(const float*, int64_t, const int64_t*, int64_t, const float*, int64_t, int64_t, float*,
                          int64_t);
const FilterRow filter_rows[] = {filter_row<1>, filter_row<2>, filter_row<3>, filter_row<4>};

// out[t * step + j] = sum_k grads[k * pixel_columns + j] * lines[k * line + offsets[t] + j] for `count` taps t and n
// positions j, at least a vector.
template <int64_t count>
void correlate(const float* grads, const int64_t* offsets, const float* lines, int64_t line, int64_t channels,
               int64_t n, float* out, int64_t step) {
    for (int64_t j = 0; j < n; j += 2 * lanes) {
        const int64_t a = least(j, n - lanes), b = least(j + lanes, n - lanes);
        vec sum[count][2] = {};
        for (int64_t k = 0; k < channels; ++k) {
            const vec first = load(grads + k * pixel_columns + a), second = load(grads + k * pixel_columns + b);
#pragma GCC unroll 4
            for (int64_t t = 0; t < count; ++t) {
                const float* from = lines + k * line + offsets[t];
                sum[t][0] += first * load(from + a);
                sum[t][1] += second * load(from + b);
            }
        }
#pragma GCC unroll 4
        for (int64_t t = 0; t < count; ++t) {
            store(out + t * step + a, sum[t][0]);
            store(out + t * step + b, sum[t][1]);
        }
    }
}

typedef void (*Correlate)(const float*, const int64_t*, const float*, int64_t, int64_t, int64_t, float*, int64_t);
const Correlate correlates[] = {correlate<1>, correlate<2>, correlate<3>, correlate<4>};

}  // namespace

void pixel_conv_f32(const PixelConv& conv, int64_t item, float* scratch) {
    float *lines = scratch, *packed = lines + conv.lines, *edge = packed + conv.weights;
    int64_t* columns = reinterpret_cast<int64_t*>(edge + conv.sums);
    int64_t *offsets = columns + conv.columns / 2, *places = offsets + conv.T();
    const int64_t T = conv.T(), P = conv.P(), width = conv.w.out, map = conv.h.in * conv.w.in;
    const int64_t row = item % conv.row_blocks * conv.rows, last = least(row + conv.rows, conv.h.out);
    const int64_t b = item / conv.row_blocks / conv.G, g = item / conv.row_blocks % conv.G;
    const int64_t step = conv.interleaved ? conv.G : 1;
    if (conv.spread) find_columns(conv.w, columns);
    const bool once =
        conv.Cg() <= together && width >= lanes;  // then packing the weights would cost more than it saves
    for (int64_t k0 = 0; k0 < conv.Cg(); k0 += conv.channels) {
        const int64_t count = least(conv.channels, conv.Cg() - k0), c = b * conv.C + conv.channel(g, k0);
        const Lines kept = {conv, conv.x + c * map, step * map, count, columns, lines, places};
        kept.forget();
        for (int64_t i = row; i < last; ++i) {
            kept.fetch(i / conv.h.scale, offsets);
            for (int64_t begin = 0; begin < width; begin += pixel_columns) {
                const int64_t j = width >= lanes ? least(begin, width - lanes) : 0, n = least(pixel_columns, width - j);
                const float* weights = conv.weight + (b * conv.G + g) * T * P + i * width + j;
                for (int64_t t = 0; t < T && !once; ++t) copy(packed + t * pixel_columns, weights + t * P, n);
                for (int64_t t = 0; t < T && k0 == 0 && i + 1 < last; ++t) fetch_ahead(weights + t * P + width, n);
                for (int64_t k = 0; k < count; k += together) {
                    const int64_t some = least(together, count - k);
                    float* y = conv.out + (c + k * step) * P + i * width + j;
                    const bool narrow = n < lanes;
                    filter_rows[some - 1](once ? weights : packed, once ? P : pixel_columns, offsets, T,
                                          lines + k * conv.line + j, conv.line, most(n, lanes), narrow ? edge : y,
                                          narrow ? lanes : step * P);
                    for (int64_t r = 0; r < some && narrow; ++r) copy(y + r * step * P, edge + r * lanes, n);
                }
            }
        }
    }
}

void pixel_conv_grad_weights_f32(const PixelConv& conv, int64_t item, float* scratch) {
    float *lines = scratch, *grads = lines + conv.lines, *edge = grads + conv.weights;
    int64_t* columns = reinterpret_cast<int64_t*>(edge + conv.sums);
    int64_t *offsets = columns + conv.columns / 2, *places = offsets + conv.T();
    const int64_t T = conv.T(), P = conv.P(), width = conv.w.out, map = conv.h.in * conv.w.in;
    const int64_t row = item % conv.row_blocks * conv.rows, last = least(row + conv.rows, conv.h.out);
    const int64_t b = item / conv.row_blocks / conv.G, g = item / conv.row_blocks % conv.G;
    const int64_t step = conv.interleaved ? conv.G : 1;
    if (conv.spread) find_columns(conv.w, columns);
    for (int64_t k0 = 0; k0 < conv.Cg(); k0 += conv.channels) {
        const int64_t count = least(conv.channels, conv.Cg() - k0), c = b * conv.C + conv.channel(g, k0);
        const Lines kept = {conv, conv.x + c * map, step * map, count, columns, lines, places};
        kept.forget();
        for (int64_t i = row; i < last; ++i) {
            kept.fetch(i / conv.h.scale, offsets);
            for (int64_t j = 0; j < width; j += pixel_columns) {
                const int64_t n = least(pixel_columns, width - j);
                for (int64_t k = 0; k < count; ++k) {
                    copy(grads + k * pixel_columns, conv.grad_y + (c + k * step) * P + i * width + j, n);
                }
                for (int64_t t = 0; t < T; t += together) {
                    const int64_t some = least(together, T - t);
                    float* out = conv.out + ((b * conv.G + g) * T + t) * P + i * width + j;
                    const bool direct = n >= lanes && k0 == 0;
                    correlates[some - 1](grads, offsets + t, lines + j, conv.line, count, most(n, lanes),
                                         direct ? out : edge, direct ? P : pixel_columns);
                    for (int64_t r = 0; r < some && !direct; ++r) {
                        const float* part = edge + r * pixel_columns;
                        for (int64_t p = 0; p < n; ++p) out[r * P + p] = part[p] + (k0 == 0 ? 0.0f : out[r * P + p]);
                    }
                }
            }
        }
    }
}

}  // namespace convary::CONVARY_VARIANT
