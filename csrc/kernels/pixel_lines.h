// SPDX-License-Identifier: Apache-2.0
// Rows of x as the convolution with a kernel per position reads them; see PixelConv.
#ifndef CONVARY_PIXEL_LINES_H
#define CONVARY_PIXEL_LINES_H

#include "../pixel.h"
#include "conv_parts.h"

namespace convary::CONVARY_VARIANT {

// Sends for n floats. The kernels of one position lie a map apart, and the hardware does not foresee the next row of
// each (measured: a quarter of the time where every channel has its own).
inline void fetch_ahead(const float* from, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(from + i);
}

// columns[tap * windows + q]: the input that tap reads in window q of a row, or -1 for a zero.
inline void find_columns(const PixelAxis& w, int64_t* columns) {
    for (int64_t tap = 0; tap < w.taps; ++tap) {
        for (int64_t q = 0; q < w.windows(); ++q) *columns++ = w.source(w.start(q) + tap * w.dilation);
    }
}

// One line from a row of x; a null row is zeros.
inline void pack_line(const PixelConv& conv, const float* row, const int64_t* columns, float* line) {
    const PixelAxis& w = conv.w;
    if (row == nullptr) return clear(line, conv.line);
    if (!conv.spread) {
        copy(line + w.pad, row, w.in);
        for (int64_t place = 0; place < w.pad; ++place) {
            const int64_t left = w.source(place), right = w.source(place + w.pad + w.in);
            line[place] = left < 0 ? 0.0f : row[left];
            line[place + w.pad + w.in] = right < 0 ? 0.0f : row[right];
        }
        return;
    }
    // Where no border is met, neighbouring windows of stride 1 read neighbours.
    const bool dense = w.stride == 1 && w.scale == 1;
    const int64_t inner = dense ? least(w.pad, w.out) : w.windows();
    const int64_t outer = dense ? most(inner, least(w.out, w.in - w.reach() + w.pad + 1)) : w.windows();
    for (int64_t tap = 0; tap < w.taps; ++tap, columns += w.windows()) {
        float* run = line + tap * conv.run;
        const auto pick = [&](int64_t begin, int64_t end) {
            for (int64_t q = begin; q < end; ++q) {
                const float value = columns[q] < 0 ? 0.0f : row[columns[q]];
                for (int64_t e = 0; e < w.scale; ++e) run[q * w.scale + e] = value;
            }
        };
        pick(0, inner);
        if (outer > inner) copy(run + inner, row + inner - w.pad + tap * w.dilation, outer - inner);
        pick(outer, w.windows());
    }
}

// The lines that a row of windows reads, kept from row to row.
struct Lines {
    const PixelConv& conv;
    const float* x;       // of the first channel
    int64_t step, count;  // from channel to channel, and how many
    const int64_t* columns;
    float* data;
    int64_t* places;  // which one each slot holds

    void forget() const {
        for (int64_t slot = 0; slot < conv.slots; ++slot) places[slot] = -1;
    }

    // offsets[t]: where, in `data`, tap t of the windows in row q begins to read, for the first channel.
    void fetch(int64_t q, int64_t* offsets) const {
        for (int64_t i = 0; i < conv.h.taps; ++i) {
            const int64_t place = conv.h.start(q) + i * conv.h.dilation, slot = conv.rolling ? place % conv.slots : i;
            float* to = data + slot * conv.channels * conv.line;
            if (places[slot] != place) {
                places[slot] = place;
                const int64_t r = conv.h.source(place);
                for (int64_t k = 0; k < count; ++k) {
                    pack_line(conv, r < 0 ? nullptr : x + k * step + r * conv.w.in, columns, to + k * conv.line);
                }
            }
            for (int64_t j = 0; j < conv.w.taps; ++j) {
                *offsets++ = to - data + j * (conv.spread ? conv.run : conv.w.dilation);
            }
        }
    }
};

}  // namespace convary::CONVARY_VARIANT

#endif
