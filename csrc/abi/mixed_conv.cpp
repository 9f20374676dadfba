// SPDX-License-Identifier: Apache-2.0
// The entries of the mixed convolution and its gradients.
#include "../kernels.h"
#include "conv_call.h"

namespace convary {
namespace {

// A plan that both entries below make alike: threads and sizes decide it.
int32_t plan_grad(const convary_conv_sizes& sizes, ConvGrad* grad) {
    const int32_t code = check_sizes(sizes, &grad->conv);
    if (code != CONVARY_OK) return code;
    if (kernels() == nullptr) return CONVARY_NO_ISA;
    if (sizes.half_bank > sizes.half) return CONVARY_BAD_GEOMETRY;
    if (sizes.B < 1 || sizes.C < 1 || sizes.O < 1 || sizes.K < 1) return CONVARY_BAD_GEOMETRY;
    int64_t kernel = 0, out = 0;
    if (__builtin_mul_overflow(grad->conv.Cg(), grad->conv.T(), &kernel)) return CONVARY_SIZE_OVERFLOW;
    if (__builtin_mul_overflow(grad->conv.h.out, grad->conv.w.out, &out)) return CONVARY_SIZE_OVERFLOW;
    plan_grad_weights(grad, sizes.threads);
    return CONVARY_OK;
}

// The parts of a sum over blocks, of which all samples together have `each` rows of n.
int32_t check_part(const void* data, bool optional, int64_t blocks, int64_t each, int64_t n, Extent* result) {
    int64_t rows = 0;
    if (__builtin_mul_overflow(blocks, each, &rows)) return CONVARY_SIZE_OVERFLOW;
    if (optional && data == nullptr) n = 0;
    return extent(data, rows, n, result);
}

// CONVARY_OK with `x_end`, `bank_end` and the extent of the bank's gradient filled in, or what is wrong.
int32_t check_grads(ConvGrad* call, Extent* grad_bank) {
    const ConvGrad& grad = *call;
    const Conv& conv = grad.conv;
    Extent outs[4] = {}, ins[7] = {};
    const int64_t kernel = conv.Cg() * conv.T(), rows = grad.factor_rows();
    int32_t code = extent(grad.grad_bank, conv.K * conv.O, kernel, &outs[0]);
    if (code == CONVARY_OK) code = check_part(grad.part_tap, false, grad.items(), conv.B * conv.K, conv.T(), &outs[1]);
    if (code == CONVARY_OK) code = check_part(grad.part_filter, true, grad.c_blocks, conv.B * rows, conv.O, &outs[2]);
    if (code == CONVARY_OK) code = check_part(grad.part_channel, true, grad.o_blocks, conv.B * rows, conv.C, &outs[3]);
    if (code == CONVARY_OK) code = extent(conv.x, conv.B * conv.C, conv.h.in * conv.w.in, &ins[0], feature_size(conv));
    if (code == CONVARY_OK) code = extent(conv.bank, conv.K * conv.O, kernel, &ins[1], bank_size(conv));
    if (code == CONVARY_OK) code = extent(grad.grad_y, conv.B * conv.O, conv.P(), &ins[2], feature_size(conv));
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
    call->conv.x_end = ins[0].end(), call->conv.bank_end = ins[1].end();
    return code;
}

}  // namespace
}  // namespace convary

int32_t convary_mixed_conv(const convary_conv_sizes* sizes, const void* x, const void* bank, const float* kernel,
                           const float* filter, const float* channel, const float* tap, const float* bias, void* y) {
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

int32_t convary_mixed_conv_grad_x(const convary_conv_sizes* sizes, const void* grad_y, const void* bank,
                                  const float* kernel, const float* filter, const float* channel, const float* tap,
                                  void* grad_x) {
    using namespace convary;
    if (sizes == nullptr) return CONVARY_NULL_POINTER;
    Conv conv = {};
    conv.x = grad_y, conv.bank = bank, conv.kernel = kernel, conv.filter = filter, conv.channel = channel,
    conv.tap = tap;
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

int32_t convary_mixed_conv_grad_bank(const convary_conv_sizes* sizes, const void* x, const void* grad_y,
                                     const void* bank, const float* kernel, const float* filter, const float* channel,
                                     const float* tap, float* grad_bank, float* part_tap, float* part_filter,
                                     float* part_channel) {
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
    code = check_grads(&grad, &out);
    if (code != CONVARY_OK) return code;
    expect_fresh(out);
    return execute_grad_weights(grad);
}
