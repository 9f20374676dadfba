// SPDX-License-Identifier: Apache-2.0
// One work item of the mixed convolution: some samples x a window of positions x some panels of output channels.
//
// Per block of input channels: the weights of a panel are mixed into cache, from the bank's rows or from a tile of the
// bank packed once for all samples of the item, and multiplied with the inputs at once. No mixed kernel is ever whole.
#include "../kernels.h"
#include "conv_parts.h"

namespace convary::CONVARY_VARIANT {
namespace {

class Item {
public:
    Item(const Conv& conv, const Blocks& blocks, int64_t item, float* scratch)
        : conv(conv), blocks(blocks), window(window_of(conv, blocks, item)), positions(window.rows * window.columns),
          single(blocks.channels >= conv.Cg()) {
        const int64_t o_block = item / (blocks.column_blocks * blocks.row_blocks * blocks.b_blocks);
        g = o_block / blocks.o_blocks;
        o0 = o_block % blocks.o_blocks * blocks.panels * blocks.panel;
        o1 = least(conv.Og(), o0 + blocks.panels * blocks.panel);
        b0 = item / (blocks.column_blocks * blocks.row_blocks) % blocks.b_blocks * blocks.samples;
        b1 = least(conv.B, b0 + blocks.samples);
        lay_out(scratch);
    }

    void run() {
        const int64_t together = blocks.pack_bank ? mix_samples : 1;
        for (c0 = 0; c0 < conv.Cg(); c0 += blocks.channels) {
            channels = least(blocks.channels, conv.Cg() - c0);
            depth = channels * conv.T();
            find_offsets();
            if (blocks.pack_bank) pack_bank();
            for (int64_t b = b0; b < b1; b += together) serve(b, least(together, b1 - b));
        }
    }

private:
    const Conv& conv;
    const Blocks& blocks;
    const Window window;
    const int64_t positions;
    const bool single;  // all input channels in one block: sums need not be kept
    int64_t g, o0, o1, b0, b1, c0, channels, depth;
    float *weights, *bank, *factors, *filter, *inputs, *sums, *scale, *shift;
    int64_t* offsets;

    static Window window_of(const Conv& conv, const Blocks& blocks, int64_t item) {
        const int64_t column = item % blocks.column_blocks * blocks.columns;
        const int64_t row = item / blocks.column_blocks % blocks.row_blocks * blocks.rows;
        return Window(conv, row, least(blocks.rows, conv.h.out - row), column,
                      least(blocks.columns, conv.w.out - column));
    }

    // Every part starts on a vector; mixed_conv_scratch counts the same parts.
    void lay_out(float* scratch) {
        const ConvScratch size(conv, blocks);
        weights = scratch;
        bank = weights + size.weights;
        factors = bank + size.bank;
        filter = factors + size.factors;
        inputs = filter + size.filter;
        sums = inputs + size.inputs;
        scale = sums + size.sums;
        shift = scale + size.scale;
        offsets = reinterpret_cast<int64_t*>(shift + size.scale);
    }

    int64_t panel_begin(int64_t panel) const { return o0 + panel * blocks.panel; }
    int64_t panels() const { return ceil_div(o1 - o0, blocks.panel); }
    int64_t count(int64_t panel) const { return least(blocks.panel, o1 - panel_begin(panel)); }
    int64_t width(int64_t panel) const { return ceil_div(count(panel), lanes) * lanes; }

    void find_offsets() {
        for (int64_t c = 0, d = 0; c < channels; ++c) {
            for (int64_t i = 0; i < conv.h.taps; ++i) {
                for (int64_t j = 0; j < conv.w.taps; ++j, ++d) {
                    offsets[d] = blocks.direct ? c * conv.w.in : c * window.plane + window.offset(conv, i, j);
                }
            }
        }
    }

    // Kernel 0's rows of this panel and block of channels; a kernel is O * C/G * T further on, a row C/G * T.
    const float* bank_rows(int64_t panel) const {
        return conv.bank + ((g * conv.Og() + panel_begin(panel)) * conv.Cg() + c0) * conv.T();
    }
    int64_t row_step() const { return conv.Cg() * conv.T(); }
    int64_t kernel_step() const { return conv.O * row_step(); }

    void pack_bank() {
        for (int64_t d = 0; d < depth; ++d) factors[d] = 1.0f;
        for (int64_t panel = 0; panel < panels(); ++panel) {
            const int64_t n = width(panel);
            for (int64_t k = 0; k < conv.K; ++k) {
                mix_transposed(bank_rows(panel) + k * kernel_step(), 1, 0, row_step(), count(panel), depth, factors,
                               nullptr, 0, n, bank_tile(panel) + k * n, conv.K * n);
            }
        }
    }
    float* bank_tile(int64_t panel) const { return bank + panel * blocks.panel * conv.K * blocks.channels * conv.T(); }

    // Samples [b, b + samples): pack their inputs, then panel by panel mix, multiply and, after the last block, store.
    void serve(int64_t b, int64_t samples) {
        for (int64_t s = 0; s < samples; ++s) {
            if (!blocks.direct) pack_inputs(b + s, inputs + s * blocks.channels * window.plane);
            float* to = factors + s * conv.K * depth;
            if (blocks.pack_bank) {
                mixing_factors(conv, b + s, g, c0, channels, 1, conv.K, to);
            } else {
                mixing_factors(conv, b + s, g, c0, channels, depth, 1, to);
            }
        }
        for (int64_t panel = 0; panel < panels(); ++panel) {
            mix(b, samples, panel);
            for (int64_t s = 0; s < samples; ++s) {
                const int64_t kept = single ? 0 : (b + s - b0) * blocks.panels + panel;
                float* acc = sums + kept * blocks.rows * blocks.columns * blocks.panel;
                const float* x = blocks.direct ? map(b + s) + window.column
                                               : inputs + s * blocks.channels * window.plane;
                multiply(weights + s * depth * width(panel), offsets, depth, x, window.pitch, window.rows,
                         window.columns, width(panel), acc, c0 > 0);
                if (c0 + channels == conv.Cg()) finish(b + s, panel, acc);
            }
        }
    }

    const float* map(int64_t b) const { return conv.x + (b * conv.C + g * conv.Cg() + c0) * conv.h.in * conv.w.in; }

    void pack_inputs(int64_t b, float* to) const {
        for (int64_t c = 0; c < channels; ++c) {
            pack_plane(conv, window, map(b) + c * conv.h.in * conv.w.in, to + c * window.plane);
        }
    }

    // The filter factor is part of the weights where it differs between kernels; a shared one waits for the store.
    bool filtered() const { return conv.filter != nullptr && conv.filter_rows > 1; }

    void mix(int64_t b, int64_t samples, int64_t panel) {
        const int64_t n = width(panel), used = count(panel);
        if (filtered()) {
            for (int64_t row = 0; row < samples * conv.K; ++row) {
                copy(filter + row * n, conv.filter + (b * conv.K + row) * conv.O + g * conv.Og() + panel_begin(panel),
                     used);
                clear(filter + row * n + used, n - used);
            }
        }
        const float* filters = filtered() ? filter : nullptr;
        if (blocks.pack_bank) {
            mix_packed(bank_tile(panel), conv.K, depth, n, factors, filters, samples, weights);
        } else {
            mix_transposed(bank_rows(panel), conv.K, kernel_step(), row_step(), used, depth, factors, filters, n, n,
                           weights, n);
        }
    }

    void finish(int64_t b, int64_t panel, const float* acc) {
        const int64_t first = g * conv.Og() + panel_begin(panel), used = count(panel);
        for (int64_t n = 0; n < used; ++n) {
            scale[n] = conv.filter != nullptr && !filtered() ? conv.filter[b * conv.O + first + n] : 1.0f;
            shift[n] = conv.bias != nullptr ? conv.bias[b * conv.bias_step + first + n] : 0.0f;
        }
        float* y = conv.y + (b * conv.O + first) * conv.P() + window.row * conv.w.out + window.column;
        const int64_t n = width(panel);
        if (window.columns == conv.w.out) {  // whole rows follow each other
            store_maps(acc, n, positions, used, scale, shift, y, conv.P());
            return;
        }
        for (int64_t r = 0; r < window.rows; ++r) {
            store_maps(acc + r * window.columns * n, n, window.columns, used, scale, shift, y + r * conv.w.out,
                       conv.P());
        }
    }
};

}  // namespace

void mixed_conv_f32(const Conv& conv, const Blocks& blocks, int64_t item, float* scratch) {
    Item(conv, blocks, item, scratch).run();
}

}  // namespace convary::CONVARY_VARIANT
