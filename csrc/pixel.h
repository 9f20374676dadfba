// SPDX-License-Identifier: Apache-2.0
// One call of the convolution with a kernel per position: sizes and pointers that abi/ has checked, and how it is cut.
#ifndef CONVARY_PIXEL_H
#define CONVARY_PIXEL_H

#include <stdint.h>

#include "conv.h"

namespace convary {

enum Border : int64_t { border_zeros, border_replicate, border_reflect, border_circular, border_clamp, borders };

// One spatial axis. A place is an input position counted from the padding's edge: place p is input p - pad.
struct PixelAxis {
    int64_t in, out, taps, stride, pad, dilation, scale;
    Border border;

    CONVARY_INLINE int64_t reach() const { return (taps - 1) * dilation + 1; }
    CONVARY_INLINE int64_t windows() const { return out / scale; }
    // The place where a window begins.
    CONVARY_INLINE int64_t start(int64_t window) const {
        const int64_t place = window * stride;
        if (border != border_clamp || place < pad) return border == border_clamp ? pad : place;
        return place < pad + in - reach() ? place : pad + in - reach();
    }
    // The input that is read at a place, or -1 for a zero.
    CONVARY_INLINE int64_t source(int64_t place) const {
        const int64_t i = place - pad;
        if (i >= 0 && i < in) return i;
        if (border == border_replicate) return i < 0 ? 0 : in - 1;
        if (border == border_reflect) return i < 0 ? -i : 2 * (in - 1) - i;
        if (border == border_circular) return i < 0 ? i + in : i - in;
        return -1;
    }
};

// out is y in the forward pass, else a gradient; grad_y is null in the forward pass.
struct PixelConv {
    const float *x, *weight, *grad_y;
    float* out;
    int64_t B, C, G;
    bool interleaved;
    PixelAxis h, w;

    // Rows of x are read from lines, packed with what the border provides. Where neighbouring outputs read neighbouring
    // inputs a line is the row with its margins; else it is spread: a run for each tap of a row of taps.
    bool spread;
    int64_t run, line;         // floats from run to run, and of a line
    bool rolling;              // lines stay until the windows have passed them; else they are packed anew for each row
    int64_t slots;             // lines kept per channel
    int64_t channels;          // of a block that is worked on together
    int64_t rows, row_blocks;  // of a work item
    int64_t margin, pitch;     // gradient of x: zeros beside a row of outputs, and floats from row to row
    const int64_t *first,
        *taps_of;  // gradient of x: row r is read by taps_of[first[r]] .. : row of outputs * h.taps + tap
    int64_t lines, weights, sums, columns, offsets;  // floats of the parts of the scratch memory

    CONVARY_INLINE int64_t T() const { return h.taps * w.taps; }
    CONVARY_INLINE int64_t P() const { return h.out * w.out; }
    CONVARY_INLINE int64_t Cg() const { return C / G; }
    CONVARY_INLINE int64_t channel(int64_t g, int64_t k) const { return interleaved ? k * G + g : g * Cg() + k; }
    CONVARY_INLINE int64_t total() const { return lines + weights + sums + columns + offsets; }
};

constexpr int64_t pixel_columns = 64;  // outputs of a row that are worked on together

}  // namespace convary

#endif
