// SPDX-License-Identifier: Apache-2.0
// How a convolution is cut into work items whose parts fit the cache.
#include "../conv.h"

namespace convary {
namespace {

// Floats of the parts that are in use together; they share a level-2 cache of 512 KiB to 1 MiB.
constexpr int64_t weight_floats = 40 << 10;
constexpr int64_t input_floats = 48 << 10;
constexpr int64_t bank_floats = 72 << 10;
constexpr int64_t sum_floats = 112 << 10;
constexpr int64_t gradient_floats = 128 << 10;
constexpr int64_t plane_floats = 5 << 10;    // of a depthwise map: half a level-1 cache
constexpr int64_t upright_floats = 8 << 10;  // of a vector of small depthwise maps, inputs and results: a level-1 cache
constexpr int64_t in_place_positions = 2048;   // of depthwise maps with channels innermost: mixing is cheap by then
constexpr int64_t window_positions = 512;      // outputs of a window: mixing has become cheap by then
constexpr int64_t window_columns = 448;        // of a row longer than a window
constexpr int64_t most_bank_floats = 1 << 20;  // of a packed tile; with more kernels it is mixed from where it lies
constexpr int64_t few_positions = 256;         // up to here mixing is dear, and a bank tile is worth packing
constexpr int64_t few_samples = 4;             // from here on
constexpr int64_t thin_channels = 32;          // up to here, in and out, 1x1 kernels are broadcast rather than packed
constexpr int64_t thin_floats = 6 << 10;       // of a window's inputs and results: most of a level-1 cache

// Parts of at most `size`, as even as can be.
int64_t even(int64_t whole, int64_t size) { return ceil_div(whole, ceil_div(whole, most(1, least(size, whole)))); }

// Positions that are packed for a window, of every channel.
double plane(const Conv& conv, const Blocks& blocks) {
    if (conv.channels_last) {
        const auto extent = [](const Axis& axis, int64_t out) {
            return static_cast<double>((out - 1) * axis.stride) + static_cast<double>((axis.taps - 1) * axis.dilation) +
                   1;
        };
        return extent(conv.h, blocks.rows) * extent(conv.w, blocks.columns);
    }
    const double rows = static_cast<double>(blocks.rows) + static_cast<double>(conv.h.reach());
    const double pitch = static_cast<double>(blocks.columns) + static_cast<double>(conv.w.reach());
    return static_cast<double>(conv.h.phases()) * static_cast<double>(conv.w.phases()) * rows * pitch;
}

// `limit` / `size`, for sizes that may be beyond any integer.
int64_t fit(int64_t limit, double size) { return static_cast<int64_t>(static_cast<double>(limit) / size); }

double upright_plane(const Conv& conv) {
    return static_cast<double>(conv.h.extent()) * static_cast<double>(conv.w.extent());
}

bool is_upright(const Conv& conv, const Blocks& blocks, int64_t lanes) {
    if (conv.channels_last) return true;
    const bool whole = blocks.rows == conv.h.out && blocks.columns == conv.w.out;
    const bool dense = conv.y_column == 1 && conv.y_row == conv.w.out;
    const double numbers = upright_plane(conv) + static_cast<double>(conv.P());
    return whole && dense && numbers * static_cast<double>(lanes) <= upright_floats;
}

void cut_window(const Conv& conv, int64_t lanes, Blocks* blocks) {
    const int64_t upright = upright_floats / lanes * 2 / 3;  // inputs, with as many results as half of them
    if (blocks->in_place) {
        blocks->columns = conv.w.out <= in_place_positions ? conv.w.out : even(conv.w.out, in_place_positions);
        blocks->rows = even(conv.h.out, in_place_positions / blocks->columns);
        return;
    }
    const int64_t positions = !blocks->depthwise ? window_positions : conv.channels_last ? upright / 2 : plane_floats;
    blocks->columns = conv.w.out <= positions ? conv.w.out : even(conv.w.out, least(positions, window_columns));
    blocks->rows = even(conv.h.out, positions / blocks->columns);
    const double limit = !blocks->depthwise   ? input_floats / least(16, conv.Cg())
                         : conv.channels_last ? upright
                                              : plane_floats;
    while (blocks->rows > 1 && plane(conv, *blocks) > limit) blocks->rows = (blocks->rows + 1) / 2;
}

// Samples share a packed tile of the bank: small maps of large batches.
bool cut_for_reuse(const Conv& conv, int64_t threads, Blocks* blocks) {
    const int64_t T = conv.T(), panels = ceil_div(conv.Og(), blocks->panel);
    if (conv.P() > few_positions || conv.B < few_samples || conv.K < 2) return false;
    if (static_cast<double>(conv.K) * static_cast<double>(T * blocks->panel) > most_bank_floats) return false;
    const int64_t per_panel = conv.K * T * blocks->panel, sums = conv.P() * blocks->panel;
    blocks->panels = even(panels, 2);
    while (blocks->panels > 1 && per_panel * blocks->panels > bank_floats) --blocks->panels;
    int64_t channels =
        least(bank_floats / (per_panel * blocks->panels), weight_floats / (mix_samples * T * blocks->panel));
    if (!blocks->direct) channels = least(channels, fit(input_floats, mix_samples * plane(conv, *blocks)));
    blocks->channels = even(conv.Cg(), channels);
    blocks->samples = even(conv.B, most(mix_samples, sum_floats / (sums * blocks->panels)));
    const int64_t o_items = conv.G * ceil_div(panels, blocks->panels);
    while (o_items * ceil_div(conv.B, blocks->samples) < 2 * threads && blocks->samples > 2 * mix_samples) {
        blocks->samples = (blocks->samples + 1) / 2;
    }
    return true;
}

// 1x1 at stride 1 without padding, of a map that is one row: the inputs can be read where they lie.
bool in_place(const Conv& conv) {
    return conv.h.in == 1 && conv.h.out == 1 && conv.h.pad == 0 && conv.w.in == conv.w.out && conv.T() == 1 &&
           conv.w.stride == 1 && conv.w.pad == 0 && conv.y_column == (conv.channels_last ? conv.O : 1);
}

// Positions of a window, whole vectors; 0 where the convolution is not thin.
int64_t thin_columns(const Conv& conv, int64_t lanes) {
    // A gradient at one phase of the stride may have one tap of a larger kernel, whose weights lie apart.
    if (conv.half || !in_place(conv) || conv.T_bank != 1 || conv.bank_step == 0) return 0;
    if (conv.Cg() > thin_channels || conv.Og() > thin_channels) return 0;
    return ceil_div(even(conv.w.out, thin_floats / (conv.Cg() + conv.Og())), lanes) * lanes;
}

// All channels of a depthwise window together where that leaves work for every thread: memory is then read as it lies.
void share_out_vectors(const Conv& conv, int64_t lanes, int64_t threads, Blocks* blocks) {
    const int64_t vectors = conv.C / lanes;
    const int64_t others = conv.B * ceil_div(conv.h.out, blocks->rows) * ceil_div(conv.w.out, blocks->columns);
    blocks->panels = even(vectors, most(1, weight_floats / (conv.T_bank * lanes)));
    while (blocks->panels > 1 && others * ceil_div(vectors, blocks->panels) < threads) {
        blocks->panels = (blocks->panels + 1) / 2;
    }
    blocks->o_blocks = ceil_div(vectors, blocks->panels);
}

void cut_by_sample(const Conv& conv, int64_t threads, Blocks* blocks) {
    const int64_t T = conv.T(), panels = ceil_div(conv.Og(), blocks->panel);
    blocks->samples = 1;
    int64_t channels = weight_floats / blocks->panel / T;
    if (!blocks->direct) channels = least(channels, fit(input_floats, plane(conv, *blocks)));
    blocks->channels = even(conv.Cg(), channels);
    const bool single = conv.at_once(blocks->channels);
    blocks->panels = even(panels, single ? panels : sum_floats / (blocks->rows * blocks->columns * blocks->panel));
    const int64_t others = conv.B * conv.G * ceil_div(conv.h.out, blocks->rows) * ceil_div(conv.w.out, blocks->columns);
    // Every item packs its inputs anew, so there are no more than make equal shares for the threads.
    for (; blocks->panels > 1; blocks->panels = (blocks->panels + 1) / 2) {
        const int64_t items = others * ceil_div(panels, blocks->panels);
        if (items >= 4 * threads || (items >= threads && items % threads == 0)) break;
    }
}

}  // namespace

Blocks cut(const Conv& conv, int64_t lanes, int64_t threads) {
    Blocks blocks = {};
    blocks.depthwise = conv.Cg() == 1 && conv.Og() == 1;
    blocks.in_place =
        blocks.depthwise && conv.channels_last && !conv.half && conv.first == nullptr && conv.C % lanes == 0;
    blocks.direct = !blocks.depthwise && !conv.half && in_place(conv);
    blocks.panel = blocks.depthwise ? lanes : 2 * lanes;
    cut_window(conv, lanes, &blocks);
    if (blocks.depthwise) {
        blocks.samples = blocks.channels = 1;
        blocks.upright = !blocks.in_place && is_upright(conv, blocks, lanes);
        blocks.panels = most(1, least(lanes, fit(plane_floats, plane(conv, blocks))));  // maps that go step by step
        blocks.o_blocks = ceil_div(conv.O, lanes);
        if (blocks.in_place) share_out_vectors(conv, lanes, threads, &blocks);
    } else if (const int64_t columns = thin_columns(conv, lanes); columns > 0) {
        blocks.thin = true;
        blocks.columns = columns;
        blocks.samples = blocks.panels = blocks.o_blocks = 1;
        blocks.channels = conv.Cg();
    } else {
        blocks.pack_bank = cut_for_reuse(conv, threads, &blocks);
        if (!blocks.pack_bank) cut_by_sample(conv, threads, &blocks);
        if (conv.half && blocks.channels < conv.Cg()) blocks.channels += blocks.channels % 2;  // whole pairs
        blocks.o_blocks = ceil_div(ceil_div(conv.Og(), blocks.panel), blocks.panels);
    }
    blocks.b_blocks = ceil_div(conv.B, blocks.samples);
    blocks.row_blocks = ceil_div(conv.h.out, blocks.rows);
    blocks.column_blocks = ceil_div(conv.w.out, blocks.columns);
    return blocks;
}

namespace {

void lay_out(const double* floats, int parts, Scratch* scratch) {
    scratch->fits = true;
    scratch->begin[0] = 0;
    for (int i = 0; i < Scratch::most; ++i) {
        scratch->fits = scratch->fits && (i >= parts || floats[i] < 1e10);
        const int64_t lines = scratch->fits && i < parts ? (static_cast<int64_t>(floats[i]) + 15) / 16 : 0;
        scratch->begin[i + 1] = scratch->begin[i] + 16 * lines;
    }
}

}  // namespace

ConvScratch::ConvScratch(const Conv& conv, const Blocks& blocks) {
    double floats[parts] = {};
    const double together = blocks.pack_bank ? mix_samples : 1, panel = static_cast<double>(blocks.panel);
    const double depth = static_cast<double>(blocks.channels) * static_cast<double>(conv.T());
    if (blocks.thin) {  // the last vector of the inputs, and the results
        floats[inputs] = depth * panel;
        floats[sums] = static_cast<double>(conv.Og() * blocks.columns);
        lay_out(floats, parts, this);
        return;
    }
    const double K = static_cast<double>(conv.K), kept = static_cast<double>(blocks.samples * blocks.panels);
    const bool single = conv.at_once(blocks.channels);
    // A vector's rows more, where reads may end past the last one.
    const double more = blocks.depthwise ? 8 * panel : panel * panel;
    const double full = static_cast<double>(blocks.channels) * static_cast<double>(conv.T_bank);  // unused taps too
    floats[weights] = together * (blocks.depthwise ? full : depth) * panel;
    floats[bank] = blocks.pack_bank ? K * depth * panel * static_cast<double>(blocks.panels) : 0;
    // An odd number of channels makes one pair more.
    floats[factors] = together * K * full + panel + static_cast<double>(conv.T_bank);
    floats[filter] = together * K * panel;
    const double maps_together =
        blocks.depthwise ? static_cast<double>(blocks.panels) : together * static_cast<double>(blocks.channels);
    floats[inputs] = blocks.direct ? 0 : maps_together * plane(conv, blocks) + more;
    const double positions = static_cast<double>(blocks.rows) * static_cast<double>(blocks.columns);
    floats[sums] = blocks.depthwise ? maps_together * (plane(conv, blocks) + more)
                                    : (single ? 1 : kept) * positions * panel + more;
    floats[maps] = conv.y_column == 1 ? 0 : positions * panel;
    if (blocks.upright) {
        floats[inputs] = (conv.channels_last ? plane(conv, blocks) : upright_plane(conv)) * panel;
        floats[sums] = (positions + panel) * panel;  // the store reads whole squares
    }
    floats[shift] = floats[scale] = panel;
    if (blocks.in_place) {
        floats[weights] = full * panel * static_cast<double>(blocks.panels);
        floats[shift] = panel * static_cast<double>(blocks.panels);
        floats[inputs] = floats[sums] = floats[maps] = 0;
    }
    floats[offsets] = 2 * depth + 2 * static_cast<double>(2 * conv.T_bank + conv.T());
    lay_out(floats, parts, this);
}

void cut_grad_weights(ConvGrad* grad, int64_t lanes, int64_t threads) {
    const Conv& conv = grad->conv;
    grad->depthwise = conv.Cg() == 1 && conv.Og() == 1;
    Blocks blocks = {};
    blocks.depthwise = grad->depthwise;
    cut_window(conv, lanes, &blocks);
    grad->rows = blocks.rows;
    grad->columns = blocks.columns;
    grad->panel = grad->depthwise ? lanes : 2 * lanes;
    grad->panels = grad->channels = grad->c_blocks = 1;
    grad->width = lanes;
    grad->o_blocks = ceil_div(conv.O, lanes);
    if (grad->depthwise) return;
    if (const int64_t thin = thin_columns(conv, lanes); thin > 0) {
        grad->thin = true;
        grad->columns = thin;
        grad->o_blocks = 1;
        return;
    }
    const int64_t panels = ceil_div(conv.Og(), grad->panel);
    grad->panels = least(panels, 2);
    // Per channel of the block: bank and gradient tiles of K kernels, and the mixed gradients of some samples.
    const double each = static_cast<double>(conv.T() * grad->panel) * static_cast<double>(2 * conv.K + mix_samples);
    int64_t channels = most(1, fit(gradient_floats, each * static_cast<double>(grad->panels)));
    if (channels > lanes) channels = channels / lanes * lanes;
    grad->channels = least(conv.Cg(), channels);
    const int64_t others = conv.bank_step == 0 ? conv.G : conv.G * conv.B;
    while (grad->channels > lanes &&
           others * ceil_div(panels, grad->panels) * ceil_div(conv.Cg(), grad->channels) < 2 * threads) {
        grad->channels = ceil_div(grad->channels / 2, lanes) * lanes;
    }
    grad->width = ceil_div(grad->channels, lanes) * lanes;
    grad->o_blocks = ceil_div(panels, grad->panels);
    grad->c_blocks = ceil_div(conv.Cg(), grad->channels);
}

GradScratch::GradScratch(const ConvGrad& grad, int64_t lanes) {
    double floats[parts] = {};
    const Conv& conv = grad.conv;
    const double T = static_cast<double>(conv.T()), K = static_cast<double>(conv.K), S = mix_samples;
    const double depth = static_cast<double>(grad.channels) * T, panels = static_cast<double>(grad.panels);
    const double panel = static_cast<double>(grad.panel), vector = static_cast<double>(lanes);
    const double positions = static_cast<double>(grad.rows) * static_cast<double>(grad.columns);
    const double rows = static_cast<double>(grad.rows - 1) * static_cast<double>(conv.h.stride) +
                        static_cast<double>((conv.h.taps - 1) * conv.h.dilation) + 1;
    const double columns = static_cast<double>(grad.columns - 1) * static_cast<double>(conv.w.stride) +
                           static_cast<double>((conv.w.taps - 1) * conv.w.dilation) + 1;
    if (grad.thin) {  // partial sums of each weight, and the last vector of inputs and gradients
        floats[sums] = static_cast<double>(conv.Cg() * conv.Og() + conv.Cg() + conv.Og()) * vector;
        lay_out(floats, parts, this);
        return;
    }
    Blocks blocks = {};
    blocks.rows = grad.rows, blocks.columns = grad.columns;
    const double stencil = plane(conv, blocks) * (conv.channels_last ? vector : 1) + 8 * vector;
    floats[bank] = K * depth * panel * panels + panel * panel * K;
    floats[grad_bank] = floats[bank];
    floats[weights] = S * depth * panel * panels + T * vector * vector;
    floats[steps] = S * K * T;
    floats[factors] = S * K * depth;
    floats[plain] = S * K * depth;
    floats[channel] = S * K * static_cast<double>(grad.channels);
    floats[tap] = S * K * T;
    floats[filter] = S * K * panel;
    floats[inputs] = grad.depthwise ? stencil : rows * columns * static_cast<double>(grad.width);
    floats[grads] = grad.depthwise ? stencil : positions * panel;
    floats[ones] = (depth > positions + columns ? depth : positions + columns) + vector;
    floats[sums] = (S * (static_cast<double>(grad.channels) + 2) + vector) * vector + panel * 2;
    floats[offsets] = 2 * (positions + 2 * T);
    lay_out(floats, parts, this);
}

}  // namespace convary
