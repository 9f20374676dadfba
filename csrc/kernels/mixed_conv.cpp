// SPDX-License-Identifier: Apache-2.0
// One work item of the mixed convolution (products: conv_tile.cpp, mixing: conv_mix.cpp): some samples x a window of
// positions x some panels of output channels.
//
// Per block of input channels: the weights of a panel are mixed into cache, from the bank's rows or from a tile of the
// bank packed once for all samples of the item, and multiplied with the inputs at once. No mixed kernel is ever whole.
// Kernels given per sample are banks of one kernel.
#include "../kernels.h"
#include "conv_parts.h"

namespace convary::CONVARY_VARIANT {
namespace {

// X is the type of x and y, W that of the bank. In pairs, step d of the depth holds channels c and c + half of a block.
template <typename X, typename W>
class Item {
public:
    Item(const Conv& conv, const Blocks& blocks, int64_t item, float* scratch)
        : conv(conv), blocks(blocks), window(window_of(conv, blocks, item)), positions(window.rows * window.columns),
          single(conv.at_once(blocks.channels)), bank_begin(static_cast<const W*>(conv.bank)), own(bank_begin),
          ahead(own) {
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
        const int64_t terms = conv.terms(b0);  // where there are several, an item has one sample
        for (term = 0; term < terms; ++term) {
            for (c0 = 0; c0 < conv.Cg(); c0 += blocks.channels) {
                channels = least(blocks.channels, conv.Cg() - c0);
                half = pairs ? ceil_div(channels, 2) : channels;
                depth = half * conv.T();
                last = term + 1 == terms && c0 + channels == conv.Cg();
                find_offsets();
                if (blocks.pack_bank) pack_bank();
                if (blocks.pack_bank) look_ahead(0, b1 - b0);
                for (int64_t b = b0; b < b1; b += together) serve(b, least(together, b1 - b));
            }
        }
    }

private:
    static constexpr bool pairs = in_pairs<X>;
    const Conv& conv;
    const Blocks& blocks;
    const Window window;
    const int64_t positions;
    const bool single;  // one block makes the whole result: sums need not be kept
    const W* const bank_begin;
    const W* own;  // the bank of the sample in work
    Ahead ahead;   // the part of the bank that is mixed next
    int64_t g, o0, o1, b0, b1, c0, channels, half, depth, term;
    bool last;
    float *weights, *bank, *factors, *filter, *inputs, *sums, *maps, *scale, *shift;
    int64_t *offsets, *taps, *places,
        *all_taps;  // of the depth; of the bank, in use; where each tap of the bank goes, or -1

    static Window window_of(const Conv& conv, const Blocks& blocks, int64_t item) {
        const int64_t column = item % blocks.column_blocks * blocks.columns;
        const int64_t row = item / blocks.column_blocks % blocks.row_blocks * blocks.rows;
        return Window(conv, row, least(blocks.rows, conv.h.out - row), column,
                      least(blocks.columns, conv.w.out - column));
    }

    void lay_out(float* scratch) {
        const ConvScratch size(conv, blocks);
        weights = size.part(scratch, size.weights);
        bank = size.part(scratch, size.bank);
        factors = size.part(scratch, size.factors);
        filter = size.part(scratch, size.filter);
        inputs = size.part(scratch, size.inputs);
        sums = size.part(scratch, size.sums);
        maps = size.part(scratch, size.maps);
        scale = size.part(scratch, size.scale);
        shift = size.part(scratch, size.shift);
        offsets = reinterpret_cast<int64_t*>(size.part(scratch, size.offsets));
        taps = offsets + blocks.channels * conv.T();
        places = taps + conv.T();
        all_taps = places + conv.T_bank;
        for (int64_t t = 0; t < conv.T_bank; ++t) places[t] = -1;
        for (int64_t t = 0; t < conv.T(); ++t) {
            taps[t] = conv.bank_tap(t);
            places[taps[t]] = t;
        }
        for (int64_t t = 0; t < conv.T_bank; ++t) all_taps[t] = t;
    }

    int64_t panel_begin(int64_t panel) const { return o0 + panel * blocks.panel; }
    int64_t panels() const { return ceil_div(o1 - o0, blocks.panel); }
    int64_t count(int64_t panel) const { return least(blocks.panel, o1 - panel_begin(panel)); }
    int64_t width(int64_t panel) const { return ceil_div(count(panel), lanes) * lanes; }

    void find_offsets() {
        for (int64_t c = 0, d = 0; c < half; ++c) {
            for (int64_t i = 0; i < conv.h.taps; ++i) {
                for (int64_t j = 0; j < conv.w.taps; ++j, ++d) {
                    const int64_t at = blocks.direct ? 0 : window.offset(conv, i, j);
                    const int64_t map = blocks.direct ? conv.w.in : window.plane;
                    offsets[d] = conv.channels_last ? at * half + c : c * map + at;
                }
            }
        }
    }

    int64_t kernel_step() const { return conv.O * conv.Cg() * conv.T_bank; }

    // The weights of a panel and the block of channels mixed, depth by width. In the bank a panel's output channels are
    // rows of the whole depth, or, transposed, neighbours of which each input channel of the depth has its own rows.
    // With `in_pairs`, of the first half of the channels, and those of the others beside them.
    template <bool in_pairs>
    void mix_bank(int64_t panel, int64_t first, int64_t K, const float* factors, int64_t factor_step,
                  const float* filter, float* out, int64_t out_step) const {
        const int64_t begin = panel_begin(panel), T = conv.T_bank, steps = in_pairs ? half : channels;
        const int64_t seconds = in_pairs ? channels - half : 0;
        Rows<W> rows = {nullptr, conv.bank_end, K, kernel_step(), 0, count(panel)};
        if (!conv.transposed) {
            rows.rows = own + first * kernel_step() + ((g * conv.Og() + begin) * conv.Cg() + c0) * T;
            rows.row_step = conv.Cg() * T;
            const Second second = {seconds == 0 ? 0 : half * T, half * T, seconds * T};
            return mix_transposed<in_pairs>(rows, steps * T, second, factors, factor_step, filter, width(panel),
                                            nullptr, out, out_step);
        }
        rows.row_step = T;
        for (int64_t c = 0; c < steps; ++c) {
            rows.rows = own + first * kernel_step() + ((g * conv.Cg() + c0 + c) * conv.Og() + begin) * T;
            const bool paired = c < seconds;
            const Second second = {paired ? half * conv.Og() * T : 0, half * T, paired ? T : 0};
            mix_transposed<in_pairs>(rows, T, second, factors + c * T, factor_step, filter, width(panel), places,
                                     out + c * conv.T() * out_step, out_step);
        }
    }

    // Fetch what is mixed after this block of channels (and, where each sample mixes for itself, this panel), during
    // the products of `products` samples.
    void look_ahead(int64_t panel, int64_t products) {
        int64_t begin = o0, end = o1, c = c0 + channels;
        const bool more = !blocks.pack_bank && panel + 1 < panels();
        if (more) begin = panel_begin(panel + 1), end = begin + count(panel + 1), c = c0;
        if (c >= conv.Cg()) {  // the next item on this thread
            if (blocks.row_blocks * blocks.column_blocks * blocks.b_blocks > 1) return;
            begin = o1, end = least(conv.Og(), o1 + (blocks.pack_bank ? o1 - o0 : blocks.panel)), c = 0;
        }
        if (begin >= end || conv.bank_step != 0) return;
        const int64_t next = least(blocks.channels, conv.Cg() - c), T = conv.T_bank;
        const int64_t tiles = ceil_div(positions, tile_positions) * (blocks.pack_bank ? panels() : 1);
        const int64_t steps = products * tiles * depth;
        ahead = conv.transposed ? Ahead(bank_begin + ((g * conv.Cg() + c) * conv.Og() + begin) * T, conv.K,
                                        kernel_step(), next, conv.Og() * T, (end - begin) * T, steps)
                                : Ahead(bank_begin + ((g * conv.Og() + begin) * conv.Cg() + c) * T, conv.K,
                                        kernel_step(), end - begin, conv.Cg() * T, next * T, steps);
    }

    void pack_bank() {
        const int64_t full = channels * conv.T_bank;
        for (int64_t d = 0; d < full; ++d) factors[d] = 1.0f;
        for (int64_t panel = 0; panel < panels(); ++panel) {
            const int64_t n = width(panel);
            for (int64_t k = 0; k < conv.K; ++k) {
                mix_bank<false>(panel, k, 1, factors, 0, nullptr, bank_tile(panel) + k * n, conv.K * n);
            }
        }
    }
    float* bank_tile(int64_t panel) const { return bank + panel * blocks.panel * conv.K * blocks.channels * conv.T(); }

    // Samples [b, b + samples): pack their inputs, then panel by panel mix, multiply and, after the last block, store.
    void serve(int64_t b, int64_t samples) {
        own = bank_begin + conv.term(b, term) * conv.bank_step;
        for (int64_t s = 0; s < samples; ++s) {
            if (!blocks.direct) pack_inputs(b + s, inputs + s * blocks.channels * window.plane);
            float* to = factors + s * conv.K * channels * conv.T();
            if (blocks.pack_bank) {
                mixing_factors(conv, b + s, g, c0, channels, taps, conv.T(), to);
            } else {
                mixing_factors(conv, b, g, c0, channels, all_taps, conv.T_bank, to);
            }
        }
        for (int64_t panel = 0; panel < panels(); ++panel) {
            mix(b, samples, panel);
            if (!blocks.pack_bank) look_ahead(panel, samples);
            for (int64_t s = 0; s < samples; ++s) {
                const int64_t kept = single ? 0 : (b + s - b0) * blocks.panels + panel;
                float* acc = sums + kept * blocks.rows * blocks.columns * blocks.panel;
                const float* x = inputs + s * blocks.channels * window.plane;
                if constexpr (sizeof(X) == 4) {
                    if (blocks.direct) x = map(b + s) + window.column * conv.x_column();
                }
                const int64_t step = !conv.channels_last ? 1 : blocks.direct ? conv.C : conv.w.stride * half;
                const int64_t pitch = conv.channels_last ? conv.h.stride * window.pitch * half : window.pitch;
                multiply<pairs>(weights + s * depth * width(panel), offsets, depth, x, step, pitch, window.rows,
                                window.columns, width(panel), acc, term + c0 > 0, &ahead);
                if (last) finish(b + s, panel, acc);
            }
        }
    }

    const X* map(int64_t b) const { return conv.input<X>(conv.term(b, term), g * conv.Cg() + c0); }

    void pack_inputs(int64_t b, float* to) const {
        if (conv.channels_last) return pack_pixels<pairs>(conv, window, map(b), channels, half, half, to);
        const int64_t size = conv.h.in * conv.w.in;
        for (int64_t c = 0; c < half; ++c) {
            const X* second = pairs && c + half < channels ? map(b) + (c + half) * size : nullptr;
            pack_plane(conv, window, Words<pairs, X>{map(b) + c * size, second}, to + c * window.plane);
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
            mix_packed<pairs>(bank_tile(panel), conv.K, channels * conv.T(), depth, n, factors, filters, samples,
                              weights);
        } else {
            mix_bank<pairs>(panel, 0, conv.K, factors, channels * conv.T_bank, filters, weights, n);
        }
    }

    void finish(int64_t b, int64_t panel, const float* acc) {
        const int64_t first = g * conv.Og() + panel_begin(panel), used = count(panel);
        for (int64_t n = 0; n < used; ++n) {
            scale[n] = conv.filter != nullptr && !filtered() ? conv.filter[b * conv.O + first + n] : 1.0f;
            shift[n] = conv.bias != nullptr ? conv.bias[b * conv.bias_step + first + n] : 0.0f;
        }
        X* y = conv.output<X>(b, first) + window.row * conv.y_row + window.column * conv.y_column;
        const int64_t n = width(panel);
        if (conv.channels_last) {
            store_pixels(conv, window, acc, n, used, scale, shift, y);
        } else if (conv.y_column != 1) {
            store_maps<X>(acc, n, positions, used, scale, shift, conv.range, reinterpret_cast<X*>(maps), positions);
            scatter(used, y);
        } else if (window.columns == conv.y_row) {  // whole rows follow each other
            store_maps(acc, n, positions, used, scale, shift, conv.range, y, conv.y_map);
        } else {
            for (int64_t r = 0; r < window.rows; ++r) {
                store_maps(acc + r * window.columns * n, n, window.columns, used, scale, shift, conv.range,
                           y + r * conv.y_row, conv.y_map);
            }
        }
    }

    void scatter(int64_t count, X* y) const {
        const X* from = reinterpret_cast<const X*>(maps);
        for (int64_t n = 0; n < count; ++n) {
            for (int64_t r = 0; r < window.rows; ++r) {
                X* to = y + n * conv.y_map + r * conv.y_row;
                for (int64_t i = 0; i < window.columns; ++i) to[i * conv.y_column] = *from++;
            }
        }
    }
};

}  // namespace

void mixed_conv(const Conv& conv, const Blocks& blocks, int64_t item, float* scratch) {
    if (!conv.half && conv.half_bank) return Item<float, bf16>(conv, blocks, item, scratch).run();
    if (!conv.half) return Item<float, float>(conv, blocks, item, scratch).run();
    if (!conv.half_bank) return Item<bf16, float>(conv, blocks, item, scratch).run();
    Item<bf16, bf16>(conv, blocks, item, scratch).run();
}

}  // namespace convary::CONVARY_VARIANT
