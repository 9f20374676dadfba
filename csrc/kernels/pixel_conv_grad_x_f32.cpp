// SPDX-License-Identifier: Apache-2.0
// The gradient of x of the convolution with a kernel per position, some rows of x of one group per work item. For each
// row of x the rows of windows that read it are gone through; what lies outside is folded back when the row is
// complete.
#include "../kernels.h"
#include "pixel_lines.h"

namespace convary::CONVARY_VARIANT {
namespace {

constexpr int64_t together = 4;  // channels that are worked on at once

// sums[k, place] += sum_tap weights[tap, place - tap * dilation] * grads[k, place - tap * dilation], both with zeros
// around; `weights` and `grads` point at output 0.
template <int64_t count>
void gather(const PixelConv& conv, const float* weights, const float* grads, float* sums) {
    for (int64_t place = 0; place < conv.w.out + conv.margin; place += 2 * lanes) {
        vec sum[count][2];
#pragma GCC unroll 4
        for (int64_t k = 0; k < count; ++k) {
            sum[k][0] = load(sums + k * conv.line + place);
            sum[k][1] = load(sums + k * conv.line + place + lanes);
        }
        for (int64_t tap = 0; tap < conv.w.taps; ++tap) {
            const int64_t j = place - tap * conv.w.dilation;
            const float* w = weights + tap * conv.pitch + j;
            const vec first = load(w), second = load(w + lanes);
#pragma GCC unroll 4
            for (int64_t k = 0; k < count; ++k) {
                sum[k][0] += first * load(grads + k * conv.pitch + j);
                sum[k][1] += second * load(grads + k * conv.pitch + j + lanes);
            }
        }
#pragma GCC unroll 4
        for (int64_t k = 0; k < count; ++k) {
            store(sums + k * conv.line + place, sum[k][0]);
            store(sums + k * conv.line + place + lanes, sum[k][1]);
        }
    }
}

typedef void (*Gather)(const PixelConv&, const float*, const float*, float*);
const Gather gathers[] = {gather<1>, gather<2>, gather<3>, gather<4>};

// sums[tap, j] += weights[tap, j] * grads[j]
void multiply_runs(const PixelConv& conv, const float* weights, const float* grads, float* sums) {
    for (int64_t tap = 0; tap < conv.w.taps; ++tap) {
        float* run = sums + tap * conv.run;
        for (int64_t j = 0; j < conv.w.out; j += lanes) {
            store(run + j, load(run + j) + load(weights + tap * conv.pitch + j) * load(grads + j));
        }
    }
}

// A row of x from its sums: the adjoint of pack_line.
void fold(const PixelConv& conv, const float* sums, const int64_t* columns, float* row) {
    const PixelAxis& w = conv.w;
    if (!conv.spread) {
        copy(row, sums + w.pad, w.in);
        for (int64_t place = 0; place < w.pad; ++place) {
            const int64_t left = w.source(place), right = w.source(place + w.pad + w.in);
            if (left >= 0) row[left] += sums[place];
            if (right >= 0) row[right] += sums[place + w.pad + w.in];
        }
        return;
    }
    clear(row, w.in);
    for (int64_t tap = 0; tap < w.taps; ++tap, columns += w.windows(), sums += conv.run) {
        for (int64_t q = 0; q < w.windows(); ++q) {
            if (columns[q] < 0) continue;
            float sum = 0.0f;
            for (int64_t e = 0; e < w.scale; ++e) sum += sums[q * w.scale + e];
            row[columns[q]] += sum;
        }
    }
}

}  // namespace

void pixel_conv_grad_x_f32(const PixelConv& conv, int64_t item, float* scratch) {
    float *kept = scratch, *packed = kept + conv.lines, *sums = packed + conv.weights;
    int64_t* columns = reinterpret_cast<int64_t*>(sums + conv.sums);
    int64_t* places = columns + conv.columns / 2;
    const int64_t T = conv.T(), P = conv.P(), width = conv.w.out, map = conv.h.in * conv.w.in;
    const int64_t row = item % conv.row_blocks * conv.rows, last = least(row + conv.rows, conv.h.in);
    const int64_t b = item / conv.row_blocks / conv.G, g = item / conv.row_blocks % conv.G;
    const int64_t step = conv.interleaved ? conv.G : 1;
    if (conv.spread) find_columns(conv.w, columns);
    clear(kept, conv.lines + conv.weights);  // the margins stay zero
    for (int64_t k0 = 0; k0 < conv.Cg(); k0 += conv.channels) {
        const int64_t count = least(conv.channels, conv.Cg() - k0), c = b * conv.C + conv.channel(g, k0);
        for (int64_t slot = 0; slot < conv.slots; ++slot) places[slot] = -1;
        for (int64_t r = row; r < last; ++r) {
            clear(sums, count * conv.line);
            for (int64_t entry = conv.first[r]; entry < conv.first[r + 1]; ++entry) {
                const int64_t i = conv.taps_of[entry] / conv.h.taps, tap = conv.taps_of[entry] % conv.h.taps,
                              slot = i % conv.slots;
                float* grads = kept + slot * conv.channels * conv.pitch + conv.margin;
                for (int64_t k = 0; k < count && places[slot] != i; ++k) {
                    copy(grads + k * conv.pitch, conv.grad_y + (c + k * step) * P + i * width, width);
                }
                places[slot] = i;
                const float* weight = conv.weight + ((b * conv.G + g) * T + tap * conv.w.taps) * P + i * width;
                float* weights = packed + conv.margin;
                for (int64_t j = 0; j < conv.w.taps; ++j) {
                    copy(weights + j * conv.pitch, weight + j * P, width);
                    if (k0 == 0 && i + 1 < conv.h.out) fetch_ahead(weight + j * P + width, width);
                }
                for (int64_t k = 0; k < count && conv.spread; ++k) {
                    multiply_runs(conv, weights, grads + k * conv.pitch, sums + k * conv.line);
                }
                for (int64_t k = 0; k < count && !conv.spread; k += together) {
                    const int64_t some = least(together, count - k);
                    gathers[some - 1](conv, weights, grads + k * conv.pitch, sums + k * conv.line);
                }
            }
            for (int64_t k = 0; k < count; ++k) {
                fold(conv, sums + k * conv.line, columns, conv.out + (c + k * step) * map + r * conv.w.in);
            }
        }
    }
}

}  // namespace convary::CONVARY_VARIANT
