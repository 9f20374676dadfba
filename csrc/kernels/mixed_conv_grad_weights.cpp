// SPDX-License-Identifier: Apache-2.0
// The gradients of bank and coefficients: per sample the gradient of the mixed weights of some panels and channels is
// formed in cache, added to the K kernels' gradients and multiplied with the K kernels. It is never stored whole, and
// every number is written by one work item, so the result does not depend on the threads.
#include "../kernels.h"
#include "conv_parts.h"
#include "conv_sums.h"

namespace convary::CONVARY_VARIANT {
namespace {

// X is the type of x and of the gradient of y, W that of the bank. In pairs, a word holds two neighbours of a row.
template <typename X, typename W>
class WeightItem {
public:
    WeightItem(const ConvGrad& grad, int64_t item, float* scratch)
        : grad(grad), conv(grad.conv), item(item), ahead{Ahead(scratch), Ahead(scratch)} {
        cb = item % grad.c_blocks;
        ob = item / grad.c_blocks % grad.o_blocks;
        g = item / (grad.c_blocks * grad.o_blocks) % conv.G;
        c0 = cb * grad.channels;
        channels = least(grad.channels, conv.Cg() - c0);
        depth = channels * conv.T();
        o0 = ob * grad.panels * grad.panel;
        o1 = least(conv.Og(), o0 + grad.panels * grad.panel);
        pitch = (grad.columns - 1) * conv.w.stride + (conv.w.taps - 1) * conv.w.dilation + 1;
        const GradScratch size(grad, lanes);
        bank = size.part(scratch, size.bank);
        grad_bank = size.part(scratch, size.grad_bank);
        weights = size.part(scratch, size.weights);
        steps = size.part(scratch, size.steps);
        factors = size.part(scratch, size.factors);
        plain = size.part(scratch, size.plain);
        channel = size.part(scratch, size.channel);
        tap = size.part(scratch, size.tap);
        filter = size.part(scratch, size.filter);
        inputs = size.part(scratch, size.inputs);
        grads = size.part(scratch, size.grads);
        ones = size.part(scratch, size.ones);
        sums = size.part(scratch, size.sums);
        all_taps = reinterpret_cast<int64_t*>(size.part(scratch, size.offsets));
        offsets = all_taps + conv.T();
        for (int64_t i = 0; i < size.size(size.ones); ++i) ones[i] = 1.0f;
        for (int64_t t = 0; t < conv.T(); ++t) all_taps[t] = t;
    }

    void run() {
        if (conv.bank_step != 0) return run_own(item / (grad.c_blocks * grad.o_blocks * conv.G));
        for (int64_t panel = 0; panel < panels(); ++panel) {
            const int64_t n = width(panel);
            for (int64_t k = 0; k < conv.K; ++k) {
                const Rows<W> rows = {bank_row(panel, k), conv.bank_end, 1, 0, row_step(), count(panel)};
                turn(rows, depth, ones, n, tile(bank, panel) + k * n, conv.K * n);
            }
            clear(tile(grad_bank, panel), depth * conv.K * n);
        }
        for (int64_t b = 0; b < conv.B; b += mix_samples) serve(b, least(mix_samples, conv.B - b));
        finish();
    }

private:
    static constexpr bool pairs = in_pairs<X>;
    const ConvGrad& grad;
    const Conv& conv;
    const int64_t item;
    int64_t g, ob, cb, o0, o1, c0, channels, depth, pitch;
    float *bank, *grad_bank, *weights, *steps, *factors, *plain, *channel, *tap, *filter, *inputs, *grads, *ones, *sums;
    int64_t *offsets, *all_taps;
    Ahead ahead[2];  // for every other panel

    int64_t panels() const { return ceil_div(o1 - o0, grad.panel); }
    int64_t first(int64_t panel) const { return g * conv.Og() + o0 + panel * grad.panel; }
    int64_t count(int64_t panel) const { return least(grad.panel, o1 - o0 - panel * grad.panel); }
    int64_t width(int64_t panel) const { return ceil_div(count(panel), lanes) * lanes; }
    int64_t row_step() const { return conv.Cg() * conv.T(); }
    int64_t kernel_step() const { return conv.O * row_step(); }
    int64_t bank_at(int64_t panel, int64_t k) const {
        return k * kernel_step() + first(panel) * row_step() + c0 * conv.T();
    }
    const W* bank_row(int64_t panel, int64_t k) const { return static_cast<const W*>(conv.bank) + bank_at(panel, k); }
    const X* map_of_y(int64_t b, int64_t o) const {
        return static_cast<const X*>(grad.grad_y) + (b * conv.O + o) * conv.P();
    }
    float* tile(float* tiles, int64_t panel) const { return tiles + panel * depth * conv.K * grad.panel; }
    // Gradient of the mixed weights of one sample of those served together: (T, channels, width).
    float* mixed(int64_t panel, int64_t s) const { return weights + (panel * mix_samples + s) * depth * grad.panel; }

    // The gradient of the kernels of sample b alone.
    void run_own(int64_t b) {
        correlate(b, 0);
        for (int64_t i = 0; i < grad.panel; ++i) sums[i] = 1.0f, sums[grad.panel + i] = 0.0f;
        for (int64_t panel = 0; panel < panels(); ++panel) {
            const int64_t n = width(panel), T = conv.T();
            for (int64_t d = 0; d < depth; ++d) {  // (T, channels) to (channels, T)
                copy(bank + d * n, mixed(panel, 0) + (d % T * channels + d / T) * n, n);
            }
            float* to = grad.grad_bank + b * conv.bank_step + first(panel) * row_step() + c0 * T;
            store_maps(bank, n, depth, count(panel), sums, sums + grad.panel, {}, to, row_step());
        }
    }

    // Fetch what is packed after sample b, during its products: inputs and gradients of the next one, or, after the
    // last, the next item's bank.
    void look_ahead(int64_t b) {
        const int64_t steps = panels() * conv.T() * ceil_div(channels, tile_positions) * conv.P() / 2;
        if (conv.bank_step == 0 && b + 1 < conv.B) {
            const int64_t map = conv.h.in * conv.w.in;
            if (conv.channels_last) return;  // a block's channels lie apart
            const X* next = static_cast<const X*>(conv.x) + ((b + 1) * conv.C + g * conv.Cg() + c0) * map;
            ahead[0] = Ahead(next, 1, 0, 1, 0, channels * map, steps);
            ahead[1] = Ahead(map_of_y(b + 1, first(0)), 1, 0, 1, 0, (o1 - o0) * conv.P(), steps);
        } else if (conv.bank_step == 0 && c0 + channels < conv.Cg()) {
            const int64_t more = least(grad.channels, conv.Cg() - c0 - channels) * conv.T();
            for (int64_t panel = 0; panel < least(2, panels()); ++panel) {
                const W* next = bank_row(panel, 0) + channels * conv.T();
                ahead[panel] = Ahead(next, conv.K, kernel_step(), count(panel), row_step(), more, steps);
            }
        }
    }

    void correlate(int64_t b, int64_t s) {
        look_ahead(b);
        for (int64_t row = 0; row < conv.h.out; row += grad.rows) {
            for (int64_t column = 0; column < conv.w.out; column += grad.columns) {
                add_window(b, s, row, least(grad.rows, conv.h.out - row), column,
                           least(grad.columns, conv.w.out - column));
            }
        }
    }

    void serve(int64_t b, int64_t samples) {
        for (int64_t s = 0; s < samples; ++s) {
            correlate(b + s, s);
            find_factors(b, s);
        }
        for (int64_t panel = 0; panel < panels(); ++panel) spread(b, samples, panel);
    }

    void find_factors(int64_t b, int64_t s) {
        const int64_t K = conv.K, T = conv.T(), rows = grad.factor_rows();
        Conv part = conv;
        part.channel = nullptr;
        mixing_factors(part, b + s, g, 0, 1, all_taps, T, steps + s * T * K);
        if (!grad.scaled()) return;
        part.channel = conv.channel, part.kernel = part.tap = nullptr, part.K = rows;
        mixing_factors(part, b + s, g, c0, channels, all_taps, 1, channel + s * rows * channels);
        if (rows == 1) return;
        part = conv;
        mixing_factors(part, b + s, g, c0, channels, all_taps, T, factors + s * depth * K);
        part.kernel = nullptr;
        mixing_factors(part, b + s, g, c0, channels, all_taps, T, plain + s * depth * K);
        part.channel = nullptr;
        mixing_factors(part, b + s, g, 0, 1, all_taps, T, tap + s * T * K);
    }

    // The window's share of the mixed gradient of every panel.
    void add_window(int64_t b, int64_t s, int64_t row, int64_t rows, int64_t column, int64_t columns) {
        pack_inputs(b, row, rows, column, columns);
        const int64_t words = pairs ? ceil_div(columns, 2) : columns, apart = (pairs ? 2 : 1) * conv.w.stride;
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t i = 0; i < words; ++i) {
                offsets[r * words + i] = (r * conv.h.stride * pitch + i * apart) * grad.width;
            }
        }
        for (int64_t panel = 0; panel < panels(); ++panel) {
            const int64_t n = width(panel);
            if (conv.channels_last) copy_gradients(b, row, rows, column, columns, panel);
            const X *maps = map_of_y(b, first(panel)) + row * conv.w.out + column, *end = map_of_y(conv.B, 0);
            const bool whole = columns == conv.w.out;
            for (int64_t r = 0; r < (conv.channels_last ? 0 : whole ? 1 : rows); ++r) {
                const Rows<X> from = {maps + r * conv.w.out, end, 1, 0, conv.P(), count(panel)};
                turn(from, whole ? rows * columns : columns, ones, n, grads + r * columns * n, n);
            }
            for (int64_t r = 0; r < (pairs ? rows : 0); ++r) {
                pair_up(grads + r * columns * n, columns, n, 1, 2, grads + r * words * n);
            }
            for (int64_t t = 0; t < conv.T(); ++t) {
                const int64_t i = t / conv.w.taps * conv.h.dilation, j = t % conv.w.taps * conv.w.dilation;
                multiply<pairs>(grads, offsets, rows * words, inputs + (i * pitch + j) * grad.width, 1, 0, 1, channels,
                                n, mixed(panel, s) + t * channels * n, row + column > 0, &ahead[panel % 2]);
            }
        }
    }

    // Every `step`-th of a row of positions, each of `width` numbers, with the one that is `second` further on.
    static void pair_up(const float* row, int64_t columns, int64_t width, int64_t second, int64_t step, float* to) {
        for (int64_t i = 0; i < columns; i += step, to += width) {
            for (int64_t n = 0; n < width; n += lanes) {
                const float* at = row + i * width + n;
                store(to + n, pair(load(at), i + second < columns ? load(at + second * width) : vec{}));
            }
        }
    }

    void copy_gradients(int64_t b, int64_t row, int64_t rows, int64_t column, int64_t columns, int64_t panel) {
        const int64_t n = width(panel), used = count(panel);
        for (int64_t p = 0; p < rows * columns; ++p) {
            const int64_t position = (row + p / columns) * conv.w.out + column + p % columns;
            const X* from = map_of_y(b, 0) + position * conv.O + first(panel);
            copy(grads + p * n, from, used, map_of_y(conv.B, 0));
            clear(grads + p * n + used, n - used);
        }
    }

    // inputs[row, column, channel] with the window's zero padding.
    void pack_inputs(int64_t b, int64_t row, int64_t rows, int64_t column, int64_t columns) {
        const int64_t height = (rows - 1) * conv.h.stride + (conv.h.taps - 1) * conv.h.dilation + 1;
        const int64_t needed = (columns - 1) * conv.w.stride + (conv.w.taps - 1) * conv.w.dilation + 1;
        if (conv.channels_last) {
            const Window window(conv, row, rows, column, grad.columns);  // whose pitch all windows have
            const X* first = conv.input<X>(b, g * conv.Cg() + c0);
            pack_pixels<false>(conv, window, first, channels, 0, grad.width, inputs);
        } else {
            pack_maps(b, row * conv.h.stride - conv.h.pad, height, column * conv.w.stride - conv.w.pad, needed);
        }
        for (int64_t i = 0; i < (pairs ? height : 0); ++i) {
            float* line = inputs + i * pitch * grad.width;
            pair_up(line, needed, grad.width, conv.w.stride, 1, line);
        }
    }

    void pack_maps(int64_t b, int64_t top, int64_t height, int64_t left, int64_t needed) {
        const int64_t map = conv.h.in * conv.w.in;
        const X* maps = conv.input<X>(b, g * conv.Cg() + c0);
        const int64_t j0 = least(needed, most(0, -left)), j1 = most(j0, least(needed, conv.w.in - left));
        for (int64_t i = 0; i < height; ++i) {
            float* to = inputs + i * pitch * grad.width;
            if (top + i < 0 || top + i >= conv.h.in) {
                clear(to, needed * grad.width);
                continue;
            }
            clear(to, j0 * grad.width);
            const Rows<X> from = {maps + (top + i) * conv.w.in + left + j0, conv.x_end, 1, 0, map, channels};
            turn(from, j1 - j0, ones, ceil_div(channels, lanes) * lanes, to + j0 * grad.width, grad.width);
            clear(to + j1 * grad.width, (needed - j1) * grad.width);
        }
    }

    void spread(int64_t b, int64_t samples, int64_t panel) {
        const int64_t n = width(panel), used = count(panel), rows = grad.factor_rows();
        for (int64_t i = 0; i < samples * rows && grad.scaled(); ++i) {
            const int64_t row = conv.filter_rows == 1 ? b + i / rows : b * rows + i;
            copy(filter + i * n, conv.filter == nullptr ? ones : conv.filter + row * conv.O + first(panel), used);
            clear(filter + i * n + used, n - used);
        }
        const Spread call = {
            mixed(panel, 0),
            depth * grad.panel,
            tile(bank, panel),
            tile(grad_bank, panel),
            steps,
            channel,
            grad.scaled() ? filter : nullptr,
            tap,
            factors,
            plain,
            rows,
            sums,
            conv.K,
            conv.T(),
            channels,
            n,
            grad.part_tap + (item * conv.B + b) * conv.K * conv.T(),
            grad.part_filter == nullptr ? nullptr : grad.part_filter + (cb * conv.B + b) * rows * conv.O + first(panel),
            grad.part_channel == nullptr ? nullptr
                                         : grad.part_channel + (ob * conv.B + b) * rows * conv.C + g * conv.Cg() + c0,
            conv.O,
            conv.C,
            used,
            panel > 0};
        spread_gradient(call, samples);
    }

    void finish() {
        float* scale = sums;
        float* shift = sums + grad.panel;
        const bool past = conv.K * kernel_step() >= fresh_floats;
        for (int64_t i = 0; i < grad.panel; ++i) scale[i] = 1.0f, shift[i] = 0.0f;
        for (int64_t panel = 0; panel < panels(); ++panel) {
            const int64_t n = width(panel);
            for (int64_t k = 0; k < conv.K; ++k) {
                float* to = grad.grad_bank + bank_at(panel, k);
                store_maps(tile(grad_bank, panel) + k * n, conv.K * n, depth, count(panel), scale, shift, {}, to,
                           row_step(), past);
            }
        }
        if (past) stream_fence();
    }
};

}  // namespace

void mixed_conv_grad_weights(const ConvGrad& grad, int64_t item, float* scratch) {
    if (!grad.conv.half) return WeightItem<float, float>(grad, item, scratch).run();
    if (!grad.conv.half_bank) return WeightItem<bf16, float>(grad, item, scratch).run();
    WeightItem<bf16, bf16>(grad, item, scratch).run();
}

}  // namespace convary::CONVARY_VARIANT
