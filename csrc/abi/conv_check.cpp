// SPDX-License-Identifier: Apache-2.0
// Sizes and pointers of the mixed and the sample convolution, as the caller gives them.
#include "conv_call.h"

#include "../kernels.h"

namespace convary {
namespace {

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
    const int64_t all[] = {sizes.B,
                           sizes.C,
                           sizes.H,
                           sizes.W,
                           sizes.O,
                           sizes.K,
                           sizes.G,
                           sizes.kernel_h,
                           sizes.kernel_w,
                           sizes.stride_h,
                           sizes.stride_w,
                           sizes.pad_h,
                           sizes.pad_w,
                           sizes.dilation_h,
                           sizes.dilation_w,
                           sizes.filter_rows,
                           sizes.channel_rows,
                           sizes.tap_rows,
                           sizes.bias_rows,
                           sizes.channels_last,
                           sizes.half,
                           sizes.half_bank,
                           sizes.threads,
                           sizes.bounded};
    for (const int64_t size : all) {
        if (size < 0) return CONVARY_NEGATIVE_SIZE;
        if (size > most_size) return CONVARY_SIZE_OVERFLOW;
    }
    const auto rows = [&](int64_t count) { return count == 1 || count == sizes.K; };
    if (sizes.G < 1 || sizes.C % sizes.G != 0 || sizes.O % sizes.G != 0 || !rows(sizes.filter_rows) ||
        !rows(sizes.channel_rows) || !rows(sizes.tap_rows) || sizes.channels_last > 1 || sizes.half > 1 ||
        sizes.half_bank > 1 || sizes.bounded > 1 || (sizes.bounded == 1 && !(sizes.lower <= sizes.upper)) ||
        (sizes.bias_rows != 1 && sizes.bias_rows != sizes.B)) {
        return CONVARY_BAD_GEOMETRY;
    }
    conv->B = conv->images = sizes.B, conv->C = sizes.C, conv->O = sizes.O, conv->K = sizes.K, conv->G = sizes.G;
    conv->filter_rows = sizes.filter_rows, conv->channel_rows = sizes.channel_rows, conv->tap_rows = sizes.tap_rows;
    conv->channels_last = sizes.channels_last == 1;
    conv->half = sizes.half == 1, conv->half_bank = sizes.half_bank == 1;
    if (sizes.bounded == 1) conv->range = {sizes.lower, sizes.upper};
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
        *result = {};
        return CONVARY_OK;
    }
    return extent(data, a * b, c * d, result);  // each size is below 2^31
}

}  // namespace

int32_t check_factors(const Conv& conv, Extent* results) {
    int32_t code = check_tensor(conv.kernel, true, conv.B, conv.K, 1, 1, &results[0]);
    if (code == CONVARY_OK) code = check_tensor(conv.filter, true, conv.B, conv.filter_rows, 1, conv.O, &results[1]);
    if (code == CONVARY_OK) code = check_tensor(conv.channel, true, conv.B, conv.channel_rows, 1, conv.C, &results[2]);
    if (code != CONVARY_OK) return code;
    return check_tensor(conv.tap, true, conv.B, conv.tap_rows, conv.T_bank, 1, &results[3]);
}

int32_t check_tensors(Conv* call, bool transposed, int64_t bias_rows, Extent* y) {
    const Conv& conv = *call;
    const int64_t Cg = conv.Cg();
    int64_t in = conv.h.in * conv.w.in, out = 0, kernel = 0;
    if (__builtin_mul_overflow(Cg, conv.T(), &kernel)) return CONVARY_SIZE_OVERFLOW;
    if (__builtin_mul_overflow(conv.h.out, conv.w.out, &out)) return CONVARY_SIZE_OVERFLOW;
    const int64_t banks = conv.bank_step == 0 ? 1 : conv.B;  // K is 1 where there are several
    const int64_t features = conv.images * conv.C, results = conv.B * conv.O;
    Extent inputs[7] = {};
    const int64_t size = feature_size(conv);
    int32_t code = extent(conv.x, transposed ? results : features, transposed ? out : in, &inputs[0], size);
    if (code == CONVARY_OK) code = extent(conv.bank, banks * conv.K * conv.O, kernel, &inputs[1], bank_size(conv));
    if (code == CONVARY_OK) code = check_factors(conv, &inputs[2]);
    if (code == CONVARY_OK) code = check_tensor(conv.bias, true, bias_rows, conv.O, 1, 1, &inputs[6]);
    if (code == CONVARY_OK) code = extent(conv.y, transposed ? features : results, transposed ? in : out, y, size);
    for (const Extent& input : inputs) {
        if (code == CONVARY_OK && overlap(*y, input)) code = CONVARY_OVERLAP;
    }
    if (code == CONVARY_OK && kernels() == nullptr) code = CONVARY_NO_ISA;
    if (code == CONVARY_OK) call->x_end = inputs[0].end(), call->bank_end = inputs[1].end();
    // Without channels (or kernels) there is nothing to sum; nobody asks for that.
    if (code == CONVARY_OK && (conv.C == 0 || conv.K == 0 || conv.O == 0) && y->count > 0) code = CONVARY_BAD_GEOMETRY;
    return code;
}

}  // namespace convary
