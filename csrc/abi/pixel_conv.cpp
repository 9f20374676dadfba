// SPDX-License-Identifier: Apache-2.0
// The convolution with a kernel per position and its gradients: checks, cuts the work into items, runs them on the
// caller's threads.
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "../convary.h"
#include "../kernels.h"

namespace convary {
namespace {

constexpr double kept_floats = 1 << 17;  // of lines, which should stay in the cache
constexpr int64_t least_rows = 8;        // of an item: the rows around them are packed twice

// CONVARY_OK with `out` filled in, or what is wrong.
int32_t check_axis(PixelAxis* axis) {
    if (axis->in < 1 || axis->taps < 1 || axis->stride < 1 || axis->dilation < 1 || axis->scale < 1)
        return CONVARY_BAD_GEOMETRY;
    const int64_t room = axis->in + 2 * axis->pad - axis->reach();
    if (room < 0 || (axis->border == border_reflect && axis->pad >= axis->in) ||
        (axis->border == border_circular && axis->pad > axis->in) ||
        (axis->border == border_clamp && axis->in < axis->reach())) {
        return CONVARY_BAD_GEOMETRY;
    }
    const int64_t windows = room / axis->stride + 1;
    if (windows > most_size / axis->scale) return CONVARY_SIZE_OVERFLOW;
    axis->out = windows * axis->scale;
    if (axis->pad == 0) axis->border = border_zeros;  // they are the same, and zeros are simple
    return CONVARY_OK;
}

int32_t check_sizes(const convary_pixel_sizes& sizes, PixelConv* conv) {
    const int64_t all[] = {sizes.B,        sizes.C,           sizes.H,          sizes.W,        sizes.G,
                           sizes.kernel_h, sizes.kernel_w,    sizes.stride_h,   sizes.stride_w, sizes.pad_h,
                           sizes.pad_w,    sizes.dilation_h,  sizes.dilation_w, sizes.scale_h,  sizes.scale_w,
                           sizes.border,   sizes.interleaved, sizes.threads};
    for (const int64_t size : all) {
        if (size < 0) return CONVARY_NEGATIVE_SIZE;
        if (size > most_size) return CONVARY_SIZE_OVERFLOW;
    }
    if (sizes.G < 1 || sizes.C % sizes.G != 0 || sizes.border >= borders || sizes.interleaved > 1)
        return CONVARY_BAD_GEOMETRY;
    conv->B = sizes.B, conv->C = sizes.C, conv->G = sizes.G;
    conv->interleaved = sizes.interleaved == 1;
    const Border border = static_cast<Border>(sizes.border);
    conv->h = {sizes.H, 0, sizes.kernel_h, sizes.stride_h, sizes.pad_h, sizes.dilation_h, sizes.scale_h, border};
    conv->w = {sizes.W, 0, sizes.kernel_w, sizes.stride_w, sizes.pad_w, sizes.dilation_w, sizes.scale_w, border};
    const int32_t code = check_axis(&conv->h);
    return code != CONVARY_OK ? code : check_axis(&conv->w);
}

enum Tensor { tensor_x, tensor_weight, tensor_y };

// CONVARY_OK with the extent of the tensor that is written, or what is wrong with the pointers.
int32_t check_tensors(const PixelConv& conv, const float* x, const float* weight, const float* y, Tensor output,
                      Extent* out) {
    int64_t kernels_count = 0;
    if (__builtin_mul_overflow(conv.B * conv.G, conv.T(), &kernels_count)) return CONVARY_SIZE_OVERFLOW;
    Extent all[3] = {};
    int32_t code = extent(x, conv.B * conv.C, conv.h.in * conv.w.in, &all[tensor_x]);
    if (code == CONVARY_OK) code = extent(weight, kernels_count, conv.P(), &all[tensor_weight]);
    if (code == CONVARY_OK) code = extent(y, conv.B * conv.C, conv.P(), &all[tensor_y]);
    if (code != CONVARY_OK) return code;
    *out = all[output];
    for (int i = 0; i < 3; ++i) {
        if (i != output && overlap(*out, all[i])) return CONVARY_OVERLAP;
    }
    return kernels() == nullptr ? CONVARY_NO_ISA : CONVARY_OK;
}

// Floats of a part of the scratch memory, in whole cache lines; 0 and `fits` false where it is beyond any memory.
int64_t part(double floats, bool* fits) {
    *fits = *fits && floats < 1e10;
    return *fits ? (static_cast<int64_t>(floats) + 15) / 16 * 16 : 0;
}

// How the call is cut; false where a part of the scratch memory is beyond any memory. `rows` is what items are cut
// from: rows of y, or in the gradient of x those of x.
bool cut(PixelConv* conv, int64_t rows, bool of_x, int64_t threads) {
    const PixelAxis &h = conv->h, &w = conv->w;
    const int64_t lanes = kernels()->lanes, margin = (w.taps - 1) * w.dilation;
    const bool neighbours = w.stride == 1 && w.scale == 1 && w.border != border_clamp;
    conv->spread = !neighbours || margin > 2 * w.out + pixel_columns;
    conv->margin = of_x && !conv->spread ? margin : 0;
    conv->run = w.out + lanes;
    conv->pitch = w.out + 2 * conv->margin + 2 * lanes;
    const double line = conv->spread ? static_cast<double>(w.taps) * static_cast<double>(conv->run)
                                     : static_cast<double>(w.out + margin + 2 * lanes);
    conv->rolling = of_x || h.reach() <= 4 * h.taps + 16;
    conv->slots = !conv->rolling ? h.taps : h.reach() < 64 || !of_x ? h.reach() : 64;
    const double each = static_cast<double>(conv->slots) * (of_x ? static_cast<double>(conv->pitch) : line);
    const double some = kept_floats / each;
    conv->channels = some >= static_cast<double>(conv->Cg()) ? conv->Cg() : most(1, static_cast<int64_t>(some) / 4) * 4;
    conv->channels = least(conv->channels, conv->Cg());

    const int64_t maps = conv->B * conv->G, wanted = 4 * most(1, threads);
    conv->row_blocks = least(ceil_div(wanted, maps), ceil_div(rows, least_rows));
    conv->rows = ceil_div(rows, conv->row_blocks);
    conv->row_blocks = ceil_div(rows, conv->rows);

    bool fits = line < 1e9;
    conv->line = fits ? static_cast<int64_t>(line) : 0;
    const double channels = static_cast<double>(conv->channels), T = static_cast<double>(conv->T());
    const double taps = static_cast<double>(w.taps);
    conv->lines = part(channels * each, &fits);
    conv->weights =
        part(of_x ? taps * static_cast<double>(conv->pitch) : (T > channels ? T : channels) * pixel_columns, &fits);
    conv->sums = part(of_x ? channels * line : 4 * pixel_columns, &fits);
    conv->columns = part(conv->spread ? 2 * taps * static_cast<double>(w.windows()) : 0, &fits);
    conv->offsets = part(2 * ((of_x ? 0 : T) + static_cast<double>(conv->slots)), &fits);
    return fits;
}

int32_t execute(const PixelConv& conv, void (*kernel)(const PixelConv&, int64_t, float*)) {
    const int64_t items = conv.B * conv.G * conv.row_blocks;
    const double outputs = static_cast<double>(conv.B * conv.C) * static_cast<double>(conv.P());
    return run_items(items, grain_of(items, outputs * static_cast<double>(conv.T())), conv.total(),
                     [&](int64_t item, float* memory) { kernel(conv, item, memory); });
}

// Which rows of outputs, by which taps, read each row of x.
class Readers {
public:
    explicit Readers(const PixelAxis& h)
        : first(static_cast<int64_t*>(calloc(static_cast<size_t>(h.in) + 2, 8))),
          list(static_cast<int64_t*>(calloc(static_cast<size_t>(h.out), static_cast<size_t>(h.taps) * 8))) {
        if (first == nullptr || list == nullptr) return;
        each(h, [this](int64_t r, int64_t) { ++first[r + 2]; });
        for (int64_t r = 0; r < h.in; ++r) first[r + 2] += first[r + 1];
        each(h, [this](int64_t r, int64_t reader) { list[first[r + 1]++] = reader; });
    }
    ~Readers() {
        free(first);
        free(list);
    }
    Readers(const Readers&) = delete;
    Readers& operator=(const Readers&) = delete;

    int64_t* const first;  // (rows of x + 1), and one more that the counting needs
    int64_t* const list;

private:
    template <typename F>
    static void each(const PixelAxis& h, F visit) {
        for (int64_t i = 0; i < h.out; ++i) {
            for (int64_t tap = 0; tap < h.taps; ++tap) {
                const int64_t r = h.source(h.start(i / h.scale) + tap * h.dilation);
                if (r >= 0) visit(r, i * h.taps + tap);
            }
        }
    }
};

}  // namespace
}  // namespace convary

int32_t convary_pixel_conv_f32(const convary_pixel_sizes* sizes, const float* x, const float* weight, float* y) {
    using namespace convary;
    if (sizes == nullptr) return CONVARY_NULL_POINTER;
    PixelConv conv = {};
    conv.x = x, conv.weight = weight, conv.out = y;
    Extent out = {};
    int32_t code = check_sizes(*sizes, &conv);
    if (code == CONVARY_OK) code = check_tensors(conv, x, weight, y, tensor_y, &out);
    if (code != CONVARY_OK || out.count == 0) return code;
    if (!cut(&conv, conv.h.out, false, sizes->threads)) return CONVARY_NO_MEMORY;
    expect_fresh(out);
    return execute(conv, kernels()->pixel_conv_f32);
}

int32_t convary_pixel_conv_grad_x_f32(const convary_pixel_sizes* sizes, const float* grad_y, const float* weight,
                                      float* grad_x) {
    using namespace convary;
    if (sizes == nullptr) return CONVARY_NULL_POINTER;
    PixelConv conv = {};
    conv.grad_y = grad_y, conv.weight = weight, conv.out = grad_x;
    Extent out = {};
    int32_t code = check_sizes(*sizes, &conv);
    if (code == CONVARY_OK) code = check_tensors(conv, grad_x, weight, grad_y, tensor_x, &out);
    if (code != CONVARY_OK || out.count == 0) return code;
    if (!cut(&conv, conv.h.in, true, sizes->threads)) return CONVARY_NO_MEMORY;
    const Readers readers(conv.h);
    if (readers.first == nullptr || readers.list == nullptr) return CONVARY_NO_MEMORY;
    conv.first = readers.first, conv.taps_of = readers.list;
    expect_fresh(out);
    return execute(conv, kernels()->pixel_conv_grad_x_f32);
}

int32_t convary_pixel_conv_grad_weight_f32(const convary_pixel_sizes* sizes, const float* x, const float* grad_y,
                                           float* grad_weight) {
    using namespace convary;
    if (sizes == nullptr) return CONVARY_NULL_POINTER;
    PixelConv conv = {};
    conv.x = x, conv.grad_y = grad_y, conv.out = grad_weight;
    Extent out = {};
    int32_t code = check_sizes(*sizes, &conv);
    if (code == CONVARY_OK) code = check_tensors(conv, x, grad_weight, grad_y, tensor_weight, &out);
    if (code != CONVARY_OK || out.count == 0) return code;
    if (conv.C == 0) {
        memset(grad_weight, 0, static_cast<size_t>(out.count) * 4);
        return CONVARY_OK;
    }
    if (!cut(&conv, conv.h.out, false, sizes->threads)) return CONVARY_NO_MEMORY;
    expect_fresh(out);
    return execute(conv, kernels()->pixel_conv_grad_weights_f32);
}
