// SPDX-License-Identifier: Apache-2.0
// The mixed convolution and its gradients: checks, cuts the work into items, runs them on the caller's threads.
#include <string.h>

#include <atomic>

#include "../check.h"
#include "../conv.h"
#include "../convary.h"
#include "../kernels.h"
#include "conv_call.h"

namespace convary {
namespace {

constexpr int64_t most_size = INT32_MAX;             // of any one size: products of two then fit 64 bits
constexpr double grain_products = 1 << 16;           // multiply-adds that are worth another thread

struct Work {
    Conv conv;
    Blocks blocks;
    const Kernels* kernels;
    int64_t scratch;
    std::atomic<bool> no_memory;
};

void run(int64_t begin, int64_t end, void* context) {
    Work& work = *static_cast<Work*>(context);
    float* scratch = thread_scratch(work.scratch);
    if (scratch == nullptr) {
        work.no_memory.store(true, std::memory_order_relaxed);
        return;
    }
    const auto kernel = work.blocks.depthwise ? work.kernels->mixed_conv_depthwise_f32
                        : work.blocks.thin    ? work.kernels->sample_conv_thin_f32
                                              : work.kernels->mixed_conv_f32;
    for (int64_t i = begin; i < end; ++i) kernel(work.conv, work.blocks, i, scratch);
}

int64_t greatest_divisor(int64_t a, int64_t b) { return b == 0 ? a : greatest_divisor(b, a % b); }

// CONVARY_OK with `out` and `period` filled in, or what is wrong.
int32_t check_axis(Axis* axis) {
    if (axis->taps < 1 || axis->stride < 1 || axis->dilation < 1) return CONVARY_BAD_GEOMETRY;
    const int64_t room = axis->in + 2 * axis->pad - (axis->taps - 1) * axis->dilation - 1;
    if (room < 0) return CONVARY_BAD_GEOMETRY;
    axis->out = room / axis->stride + 1;
    axis->period = axis->stride / greatest_divisor(axis->stride, axis->dilation);
    return CONVARY_OK;
}

}  // namespace

int32_t check_sizes(const convary_conv_sizes& sizes, Conv* conv) {
    const int64_t all[] = {sizes.B, sizes.C, sizes.H, sizes.W, sizes.O, sizes.K, sizes.G, sizes.kernel_h, sizes.kernel_w,
                           sizes.stride_h, sizes.stride_w, sizes.pad_h, sizes.pad_w, sizes.dilation_h, sizes.dilation_w,
                           sizes.filter_rows, sizes.channel_rows, sizes.tap_rows, sizes.bias_rows, sizes.channels_last,
                           sizes.threads};
    for (const int64_t size : all) {
        if (size < 0) return CONVARY_NEGATIVE_SIZE;
        if (size > most_size) return CONVARY_SIZE_OVERFLOW;
    }
    const auto rows = [&](int64_t count) { return count == 1 || count == sizes.K; };
    if (sizes.G < 1 || sizes.C % sizes.G != 0 || sizes.O % sizes.G != 0 || !rows(sizes.filter_rows) ||
        !rows(sizes.channel_rows) || !rows(sizes.tap_rows) || sizes.channels_last > 1 || (sizes.bias_rows != 1 && sizes.bias_rows != sizes.B)) {
        return CONVARY_BAD_GEOMETRY;
    }
    conv->B = conv->images = sizes.B, conv->C = sizes.C, conv->O = sizes.O, conv->K = sizes.K, conv->G = sizes.G;
    conv->filter_rows = sizes.filter_rows, conv->channel_rows = sizes.channel_rows, conv->tap_rows = sizes.tap_rows;
    conv->last = sizes.channels_last == 1;
    conv->bias_step = sizes.bias_rows == 1 ? 0 : sizes.O;
    conv->h = {sizes.H, 0, sizes.kernel_h, sizes.stride_h, sizes.pad_h, sizes.dilation_h, 1};
    conv->w = {sizes.W, 0, sizes.kernel_w, sizes.stride_w, sizes.pad_w, sizes.dilation_w, 1};
    const int32_t code = check_axis(&conv->h);
    if (code != CONVARY_OK) return code;
    conv->T_bank = conv->T();
    conv->h_taps = {0, conv->w.taps};
    conv->w_taps = {0, 1};
    return check_axis(&conv->w);
}

namespace {

// (a, b, c, d) elements; a null pointer means none where the tensor is optional.
int32_t check_tensor(const void* data, bool optional, int64_t a, int64_t b, int64_t c, int64_t d, Extent* result) {
    if (optional && data == nullptr) {
        *result = {nullptr, 0};
        return CONVARY_OK;
    }
    return extent(data, a * b, c * d, result);  // each size is below 2^31
}

// Of kernel, filter, channel and tap.
int32_t check_factors(const Conv& conv, Extent* results) {
    int32_t code = check_tensor(conv.kernel, true, conv.B, conv.K, 1, 1, &results[0]);
    if (code == CONVARY_OK) code = check_tensor(conv.filter, true, conv.B, conv.filter_rows, 1, conv.O, &results[1]);
    if (code == CONVARY_OK) code = check_tensor(conv.channel, true, conv.B, conv.channel_rows, 1, conv.C, &results[2]);
    if (code != CONVARY_OK) return code;
    return check_tensor(conv.tap, true, conv.B, conv.tap_rows, conv.T_bank, 1, &results[3]);
}

}  // namespace

int32_t check_tensors(Conv* call, bool transposed, int64_t bias_rows, Extent* y) {
    const Conv& conv = *call;
    const int64_t Cg = conv.Cg();
    int64_t in = conv.h.in * conv.w.in, out = 0, kernel = 0;
    if (__builtin_mul_overflow(Cg, conv.T(), &kernel)) return CONVARY_SIZE_OVERFLOW;
    if (__builtin_mul_overflow(conv.h.out, conv.w.out, &out)) return CONVARY_SIZE_OVERFLOW;
    const int64_t banks = conv.bank_step == 0 ? 1 : conv.B;  // K is 1 where there are several
    const int64_t features = conv.images * conv.C, results = conv.B * conv.O;
    Extent inputs[7] = {};
    int32_t code = extent(conv.x, transposed ? results : features, transposed ? out : in, &inputs[0]);
    if (code == CONVARY_OK) code = extent(conv.bank, banks * conv.K * conv.O, kernel, &inputs[1]);
    if (code == CONVARY_OK) code = check_factors(conv, &inputs[2]);
    if (code == CONVARY_OK) code = check_tensor(conv.bias, true, bias_rows, conv.O, 1, 1, &inputs[6]);
    if (code == CONVARY_OK) code = extent(conv.y, transposed ? features : results, transposed ? in : out, y);
    for (const Extent& input : inputs) {
        if (code == CONVARY_OK && overlap(*y, input)) code = CONVARY_OVERLAP;
    }
    if (code == CONVARY_OK && kernels() == nullptr) code = CONVARY_NO_ISA;
    if (code == CONVARY_OK) call->x_end = conv.x + inputs[0].count, call->bank_end = conv.bank + inputs[1].count;
    // Without channels (or kernels) there is nothing to sum; nobody asks for that.
    if (code == CONVARY_OK && (conv.C == 0 || conv.K == 0 || conv.O == 0) && y->count > 0) code = CONVARY_BAD_GEOMETRY;
    return code;
}

namespace {

// A 1x1 convolution that touches every input once sees a map as one row.
void flatten(Conv* conv) {
    const bool plain = conv->T() == 1 && conv->h.stride == 1 && conv->w.stride == 1 && conv->h.pad == 0 && conv->w.pad == 0;
    const int64_t column = conv->last ? conv->O : 1;
    if (!plain || conv->y_column != column || conv->y_row != conv->w.out * column || conv->h.in != conv->h.out) return;
    conv->w.in = conv->w.out = conv->P();
    conv->h.in = conv->h.out = 1;
    conv->y_row = conv->w.in * column;
}

}  // namespace

void place_y(Conv* conv) {
    conv->y_column = conv->last ? conv->O : 1;
    conv->y_row = conv->w.out * conv->y_column;
    conv->y_map = conv->last ? 1 : conv->P();
    conv->y_sample = conv->O * conv->P();
}

int32_t execute(Conv conv, int64_t threads) {
    flatten(&conv);
    Work work = {};
    work.conv = conv;
    work.kernels = kernels();
    work.blocks = cut(conv, work.kernels->lanes, threads < 1 ? 1 : threads);
    const ConvScratch scratch(conv, work.blocks);
    if (!scratch.fits) return CONVARY_NO_MEMORY;
    work.scratch = scratch.total();
    const int64_t items = work.blocks.items(conv);
    const int64_t samples = conv.first == nullptr ? conv.B : conv.first[conv.B];
    const double outputs = static_cast<double>(samples * conv.O) * static_cast<double>(conv.P());
    const double products = outputs * static_cast<double>(conv.Cg() * conv.T());
    const double grain = grain_products * static_cast<double>(items) / products;
    const int32_t code = parallel_for(items, grain <= 1.0 ? 1 : static_cast<int64_t>(grain) + 1, run, &work);
    return code == CONVARY_OK && work.no_memory.load() ? CONVARY_NO_MEMORY : code;
}

namespace {

// The axis of the transposed convolution that makes the positions congruent to `residue` modulo the stride. False
// where no tap reaches them: their gradient is 0.
bool transpose_axis(const Axis& axis, int64_t residue, int64_t tap_step, Axis* result, TapRange* taps) {
    int64_t first = 0;
    while (first < axis.taps && (residue + axis.pad - first * axis.dilation) % axis.stride != 0) {
        if (++first == axis.period) return false;
    }
    if (first >= axis.taps) return false;
    const int64_t count = (axis.taps - first + axis.period - 1) / axis.period;
    const int64_t dilation = axis.period * axis.dilation / axis.stride;
    // The first tap reads the furthest output; in order of position the taps run backwards.
    const int64_t furthest = (residue + axis.pad - first * axis.dilation) / axis.stride;
    const int64_t positions = axis.in > residue ? (axis.in - residue + axis.stride - 1) / axis.stride : 0;
    *result = {axis.out, positions, count, 1, (count - 1) * dilation - furthest, dilation, 1};
    *taps = {(first + (count - 1) * axis.period) * tap_step, -axis.period * tap_step};
    return true;
}

}  // namespace

int32_t execute_grad_x(const Conv& conv, int64_t threads) {
    Conv back = conv;
    back.C = conv.O, back.O = conv.C;
    back.filter = conv.channel, back.filter_rows = conv.channel_rows;
    back.channel = conv.filter, back.channel_rows = conv.filter_rows;
    back.transposed = true;
    const int64_t map = conv.h.in * conv.w.in, column = conv.x_column();
    back.y_sample = conv.C * map, back.y_map = conv.x_map();
    back.y_row = conv.w.in * conv.h.stride * column, back.y_column = conv.w.stride * column;
    const bool gaps = conv.h.phases() < conv.h.stride || conv.w.phases() < conv.w.stride;  // positions that no tap reaches
    if (gaps || conv.h.in == 0 || conv.w.in == 0) memset(conv.y, 0, static_cast<size_t>(conv.B * conv.C * map) * 4);
    for (int64_t i = 0; i < conv.h.stride && i < conv.h.in; ++i) {
        for (int64_t j = 0; j < conv.w.stride && j < conv.w.in; ++j) {
            if (!transpose_axis(conv.h, i, conv.w.taps, &back.h, &back.h_taps)) continue;
            if (!transpose_axis(conv.w, j, 1, &back.w, &back.w_taps)) continue;
            back.y = conv.y + (i * conv.w.in + j) * column;
            const int32_t code = execute(back, threads);
            if (code != CONVARY_OK) return code;
        }
    }
    return CONVARY_OK;
}

namespace {

struct GradWork {
    ConvGrad grad;
    const Kernels* kernels;
    int64_t scratch;
    std::atomic<bool> no_memory;
};

void run_grad(int64_t begin, int64_t end, void* context) {
    GradWork& work = *static_cast<GradWork*>(context);
    float* scratch = thread_scratch(work.scratch);
    if (scratch == nullptr) {
        work.no_memory.store(true, std::memory_order_relaxed);
        return;
    }
    const auto kernel = work.grad.depthwise ? work.kernels->mixed_conv_depthwise_weights_f32
                        : work.grad.thin    ? work.kernels->sample_conv_thin_weights_f32
                                            : work.kernels->mixed_conv_weights_f32;
    for (int64_t i = begin; i < end; ++i) kernel(work.grad, i, scratch);
}

}  // namespace

int32_t execute_weights(const ConvGrad& grad) {
    GradWork work = {};
    work.grad = grad;
    work.kernels = kernels();
    const GradScratch scratch(grad, work.kernels->lanes);
    if (!scratch.fits) return CONVARY_NO_MEMORY;
    work.scratch = scratch.total();
    const int32_t code = parallel_for(grad.items(), 1, run_grad, &work);
    return code == CONVARY_OK && work.no_memory.load() ? CONVARY_NO_MEMORY : code;
}

void plan_weights(ConvGrad* grad, int64_t threads) {
    Conv& conv = grad->conv;
    place_y(&conv);
    flatten(&conv);
    cut_weights(grad, kernels()->lanes, threads < 1 ? 1 : threads);
}

namespace {

// A plan that both entries below make alike: threads and sizes decide it.
int32_t plan_grad(const convary_conv_sizes& sizes, ConvGrad* grad) {
    const int32_t code = check_sizes(sizes, &grad->conv);
    if (code != CONVARY_OK) return code;
    if (kernels() == nullptr) return CONVARY_NO_ISA;
    if (sizes.B < 1 || sizes.C < 1 || sizes.O < 1 || sizes.K < 1) return CONVARY_BAD_GEOMETRY;
    int64_t kernel = 0, out = 0;
    if (__builtin_mul_overflow(grad->conv.Cg(), grad->conv.T(), &kernel)) return CONVARY_SIZE_OVERFLOW;
    if (__builtin_mul_overflow(grad->conv.h.out, grad->conv.w.out, &out)) return CONVARY_SIZE_OVERFLOW;
    plan_weights(grad, sizes.threads);
    return CONVARY_OK;
}

// The parts of a sum over blocks, of which all samples together have `each` rows of n.
int32_t check_part(const void* data, bool optional, int64_t blocks, int64_t each, int64_t n, Extent* result) {
    int64_t rows = 0;
    if (__builtin_mul_overflow(blocks, each, &rows)) return CONVARY_SIZE_OVERFLOW;
    if (optional && data == nullptr) n = 0;
    return extent(data, rows, n, result);
}

int32_t check_grads(const ConvGrad& grad, Extent* grad_bank) {
    const Conv& conv = grad.conv;
    Extent outs[4] = {}, ins[7] = {};
    const int64_t kernel = conv.Cg() * conv.T(), rows = grad.factor_rows();
    int32_t code = extent(grad.grad_bank, conv.K * conv.O, kernel, &outs[0]);
    if (code == CONVARY_OK) code = check_part(grad.part_tap, false, grad.items(), conv.B * conv.K, conv.T(), &outs[1]);
    if (code == CONVARY_OK) code = check_part(grad.part_filter, true, grad.c_blocks, conv.B * rows, conv.O, &outs[2]);
    if (code == CONVARY_OK) code = check_part(grad.part_channel, true, grad.o_blocks, conv.B * rows, conv.C, &outs[3]);
    if (code == CONVARY_OK) code = extent(conv.x, conv.B * conv.C, conv.h.in * conv.w.in, &ins[0]);
    if (code == CONVARY_OK) code = extent(conv.bank, conv.K * conv.O, kernel, &ins[1]);
    if (code == CONVARY_OK) code = extent(grad.grad_y, conv.B * conv.O, conv.P(), &ins[2]);
    if (code == CONVARY_OK) code = check_factors(conv, &ins[3]);
    for (int i = 0; i < 4 && code == CONVARY_OK; ++i) {
        for (const Extent& in : ins) {
            if (overlap(outs[i], in)) code = CONVARY_OVERLAP;
        }
        for (int j = 0; j < i; ++j) {
            if (overlap(outs[i], outs[j])) code = CONVARY_OVERLAP;
        }
    }
    *grad_bank = outs[0];
    return code;
}

}  // namespace
}  // namespace convary

int32_t convary_mixed_conv_f32(const convary_conv_sizes* sizes, const float* x, const float* bank, const float* kernel,
                               const float* filter, const float* channel, const float* tap, const float* bias, float* y) {
    using namespace convary;
    if (sizes == nullptr) return CONVARY_NULL_POINTER;
    Conv conv = {};
    conv.x = x, conv.bank = bank, conv.kernel = kernel, conv.filter = filter, conv.channel = channel, conv.tap = tap;
    conv.bias = bias, conv.y = y;
    Extent out = {};
    int32_t code = check_sizes(*sizes, &conv);
    if (code == CONVARY_OK) code = check_tensors(&conv, false, sizes->bias_rows, &out);
    if (code != CONVARY_OK || out.count == 0) return code;
    expect_fresh(out);
    place_y(&conv);
    return execute(conv, sizes->threads);
}

int32_t convary_mixed_conv_grad_x_f32(const convary_conv_sizes* sizes, const float* grad_y, const float* bank,
                                      const float* kernel, const float* filter, const float* channel, const float* tap,
                                      float* grad_x) {
    using namespace convary;
    if (sizes == nullptr) return CONVARY_NULL_POINTER;
    Conv conv = {};
    conv.x = grad_y, conv.bank = bank, conv.kernel = kernel, conv.filter = filter, conv.channel = channel, conv.tap = tap;
    conv.y = grad_x;
    Extent out = {};
    int32_t code = check_sizes(*sizes, &conv);
    if (code == CONVARY_OK) code = check_tensors(&conv, true, sizes->bias_rows, &out);
    if (code != CONVARY_OK || out.count == 0) return code;
    expect_fresh(out);
    return execute_grad_x(conv, sizes->threads);
}

int32_t convary_mixed_conv_grad_blocks(const convary_conv_sizes* sizes, int64_t* blocks) {
    using namespace convary;
    if (sizes == nullptr || blocks == nullptr) return CONVARY_NULL_POINTER;
    ConvGrad grad = {};
    const int32_t code = plan_grad(*sizes, &grad);
    if (code != CONVARY_OK) return code;
    blocks[0] = grad.items(), blocks[1] = grad.c_blocks, blocks[2] = grad.o_blocks;
    return CONVARY_OK;
}

int32_t convary_mixed_conv_grad_bank_f32(const convary_conv_sizes* sizes, const float* x, const float* grad_y,
                                         const float* bank, const float* kernel, const float* filter,
                                         const float* channel, const float* tap, float* grad_bank, float* part_tap,
                                         float* part_filter, float* part_channel) {
    using namespace convary;
    if (sizes == nullptr) return CONVARY_NULL_POINTER;
    ConvGrad grad = {};
    int32_t code = plan_grad(*sizes, &grad);
    if (code != CONVARY_OK) return code;
    Conv& conv = grad.conv;
    conv.x = x, conv.bank = bank, conv.kernel = kernel, conv.filter = filter, conv.channel = channel, conv.tap = tap;
    grad.grad_y = grad_y, grad.grad_bank = grad_bank;
    grad.part_tap = part_tap, grad.part_filter = part_filter, grad.part_channel = part_channel;
    Extent out = {};
    code = check_grads(grad, &out);
    if (code != CONVARY_OK) return code;
    expect_fresh(out);
    conv.x_end = x + conv.B * conv.C * conv.h.in * conv.w.in;
    conv.bank_end = bank + conv.K * conv.O * conv.Cg() * conv.T();
    return execute_weights(grad);
}
