// SPDX-License-Identifier: Apache-2.0
// One call of the mixed convolution: sizes and pointers that abi/ has checked, and how it is cut into blocks.
#ifndef CONVARY_CONV_H
#define CONVARY_CONV_H

#include <stdint.h>

#include "half.h"
#include "math.h"

namespace convary {

// One spatial axis. Output p reads input p * stride + tap * dilation - pad.
//
// A strided axis is packed as `phases` runs of unit stride: run j holds the inputs whose distance to the first one is
// residue(j) modulo the stride, so that neighbouring outputs always read neighbouring numbers. Tap i reads run
// phase(i), shift(i) further on.
struct Axis {
    int64_t in, out, taps, stride, pad, dilation;
    int64_t period;  // stride / gcd(stride, dilation): taps that far apart read the same run

    CONVARY_INLINE int64_t phases() const { return taps < period ? taps : period; }
    CONVARY_INLINE int64_t phase(int64_t tap) const { return tap % period; }
    CONVARY_INLINE int64_t residue(int64_t phase) const { return phase * dilation % stride; }
    CONVARY_INLINE int64_t shift(int64_t tap) const { return tap * dilation / stride; }
    CONVARY_INLINE int64_t reach() const { return shift(taps - 1); }
    // Positions, padding included, from the first to the last that is read.
    CONVARY_INLINE int64_t extent() const { return (out - 1) * stride + (taps - 1) * dilation + 1; }
};

// What results are cut to; everything, where nobody says so.
struct Range {
    float lower = -__builtin_inff(), upper = __builtin_inff();
};

// In numbers of the bank: a row of taps is kernel_w of them.
struct TapRange {
    int64_t first, step;
};

// W[b,o,c,t] = sum_k kernel[b,k] filter[b,k,o] channel[b,k,c] tap[b,k,t] bank[k,o,c,t]; a null factor counts as 1,
// and one with a single row is shared by the kernels. Where each sample has kernels of its own, K is 1.
struct Conv {
    const void *x, *bank;
    const float *kernel, *filter, *channel, *tap, *bias;
    void* y;
    bool half, half_bank;  // bf16 in place of float: x and y; the bank
    int64_t B, C, O, K, G;
    int64_t filter_rows, channel_rows, tap_rows;  // 1 or K
    int64_t bias_step;                            // from one sample's bias to the next: 0 or O
    int64_t bank_step;                            // from one sample's bank to the next: 0 where they share one
    int64_t images;                               // samples of x
    const void *x_end, *bank_end;
    Range range;  // of y
    Axis h, w;

    // Sample b of y is made from the kernels and the input of sample b. `image` says whose input that is; `members`, in
    // the gradient of x, lists the samples [first[b], first[b + 1]) whose results add up. Either may be null.
    const int64_t *image, *members, *first;

    // The gradient of x is a convolution too: x and y, C and O, filter and channel change places, and so do the axes of
    // the bank. A strided one falls apart into one convolution of stride 1 for each residue of x's positions, with the
    // taps that reach them; its results lie `step` apart. Tap i of an axis is `first + i * tap_step` of the bank.
    bool transposed;
    TapRange h_taps, w_taps;
    int64_t T_bank;                            // taps of the bank
    int64_t y_sample, y_map, y_row, y_column;  // from one sample, map, row, column of y to the next
    bool channels_last;                        // features have their channels innermost: (B, H, W, C)

    CONVARY_INLINE int64_t terms(int64_t b) const { return first == nullptr ? 1 : first[b + 1] - first[b]; }
    CONVARY_INLINE int64_t term(int64_t b, int64_t i) const { return first == nullptr ? b : members[first[b] + i]; }
    CONVARY_INLINE int64_t source(int64_t sample) const { return image == nullptr ? sample : image[sample]; }
    // Whether a result is complete after one block of input channels, so that sums need not be kept.
    CONVARY_INLINE bool at_once(int64_t channels) const { return channels >= Cg() && first == nullptr; }

    CONVARY_INLINE int64_t T() const { return h.taps * w.taps; }
    // Tap (i, j) by its place in the bank, whose rows of taps are as long as T_bank says.
    CONVARY_INLINE int64_t bank_tap(int64_t tap) const {
        const int64_t i = tap / w.taps, j = tap % w.taps;
        return h_taps.first + i * h_taps.step + w_taps.first + j * w_taps.step;
    }
    CONVARY_INLINE int64_t x_map() const { return channels_last ? 1 : h.in * w.in; }
    CONVARY_INLINE int64_t x_column() const { return channels_last ? C : 1; }
    template <typename X>
    CONVARY_INLINE const X* input(int64_t sample, int64_t c) const {
        return static_cast<const X*>(x) + source(sample) * C * h.in * w.in + c * x_map();
    }
    template <typename X>
    CONVARY_INLINE X* output(int64_t sample, int64_t o) const {
        return static_cast<X*>(y) + sample * y_sample + o * y_map;
    }
    CONVARY_INLINE int64_t P() const { return h.out * w.out; }
    CONVARY_INLINE int64_t Cg() const { return C / G; }
    CONVARY_INLINE int64_t Og() const { return O / G; }
};

// How a Conv is cut. A work item is `samples` x (rows x columns) outputs x `panels` panels of output channels.
struct Blocks {
    bool depthwise;  // one input and one output channel per group: a stencil, `panel` channels an item
    bool upright;    // a depthwise one of small maps, or of channels innermost: channels in the lanes, not positions
    bool in_place;   // a depthwise one of whole vectors of channels, innermost: x is read and y written where they lie
    bool direct;     // x is read where it lies: 1x1 at stride 1 without padding
    bool thin;       // 1x1 kernels of few channels, given per sample: positions in the lanes
    bool pack_bank;  // pack a tile of the K kernels once and mix it for every sample of the item
    int64_t samples, rows, columns, panels, channels;
    int64_t panel;                                          // output channels of a panel: two vectors
    int64_t b_blocks, row_blocks, column_blocks, o_blocks;  // o_blocks within a group

    CONVARY_INLINE int64_t items(const Conv& conv) const {
        return (depthwise ? 1 : conv.G) * o_blocks * b_blocks * row_blocks * column_blocks;
    }
};

// The cut for this call: `lanes` floats a vector, `threads` threads to keep busy. In abi/conv_plan.cpp.
Blocks cut(const Conv& conv, int64_t lanes, int64_t threads);

// A work item's scratch memory: parts of whole cache lines, one behind the other. In abi/conv_plan.cpp.
struct Scratch {
    static constexpr int most = 14;
    int64_t begin[most + 1];  // in floats
    bool fits;                // false where some part is beyond any memory

    CONVARY_INLINE float* part(float* memory, int i) const { return memory + begin[i]; }
    CONVARY_INLINE int64_t size(int i) const { return begin[i + 1] - begin[i]; }
    CONVARY_INLINE int64_t total() const { return begin[most]; }
};

struct ConvScratch : Scratch {
    enum { weights, bank, factors, filter, inputs, sums, maps, scale, shift, offsets, parts };
    ConvScratch(const Conv& conv, const Blocks& blocks);
};

// The gradient of the bank and what the gradients of the coefficients are made of. A work item forms the gradient of
// the mixed weights of some panels x `channels` input channels, sample by sample, in cache; where each sample has a
// bank of its own, that is the result, and each sample has its own items.
struct ConvGrad {
    Conv conv;
    const void* grad_y;  // bf16 where x is
    float* grad_bank;
    // Sums over a work item's weights of mixed gradient * bank * the other factors except kernel:
    float* part_tap;      // (items, B, K, T), without tap
    float* part_filter;   // (c_blocks, B, factor_rows, O), without filter (depthwise: nor channel), or null
    float* part_channel;  // (o_blocks, B, factor_rows, C), without channel, or null; unused in a depthwise convolution
    bool depthwise, thin;
    int64_t panel, panels, channels, rows, columns, o_blocks, c_blocks;  // blocks within a group
    int64_t width;                                                       // channels of a packed position: whole vectors

    // Whether features are scaled, and in how many ways: once where the kernels share both factors. Then the sums above
    // but part_tap are over the kernels, with the kernel factor.
    CONVARY_INLINE bool scaled() const { return conv.filter != nullptr || conv.channel != nullptr; }
    CONVARY_INLINE int64_t factor_rows() const {
        const bool each =
            (conv.filter != nullptr && conv.filter_rows > 1) || (conv.channel != nullptr && conv.channel_rows > 1);
        return each ? conv.K : 1;
    }
    CONVARY_INLINE int64_t items() const {
        return (depthwise ? 1 : conv.G) * o_blocks * c_blocks * (conv.bank_step == 0 ? 1 : conv.B);
    }
};

struct GradScratch : Scratch {
    enum {
        bank,
        grad_bank,
        weights,
        steps,
        factors,
        plain,
        channel,
        tap,
        filter,
        inputs,
        grads,
        ones,
        sums,
        offsets,
        parts
    };
    GradScratch(const ConvGrad& grad, int64_t lanes);
};

void cut_grad_weights(ConvGrad* grad, int64_t lanes, int64_t threads);

constexpr int64_t fresh_floats = 8 << 20;  // an output of that many comes straight from mmap: its first writing is dear
constexpr int64_t mix_samples = 4;         // samples mixed together: a bank tile is then read once for all of them

}  // namespace convary

#endif
