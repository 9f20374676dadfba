// SPDX-License-Identifier: Apache-2.0
// The convolution with kernels given per sample, and its gradients: a mixed convolution in which each sample has a bank
// of its own, of one kernel.
#include <stdlib.h>
#include <string.h>

#include "../kernels.h"
#include "conv_call.h"

namespace convary {
namespace {

// The sizes as those of a mixed convolution of K samples.
int32_t check_sample_sizes(const convary_conv_sizes& sizes, const int64_t* index, Conv* conv) {
    if (sizes.B < 0 || sizes.K < 0) return CONVARY_NEGATIVE_SIZE;
    if (sizes.B > INT32_MAX) return CONVARY_SIZE_OVERFLOW;
    if ((index == nullptr && sizes.B != sizes.K) || sizes.channels_last > 0) return CONVARY_BAD_GEOMETRY;
    convary_conv_sizes one = sizes;
    one.B = sizes.K, one.K = 1;
    const int32_t code = check_sizes(one, conv);
    if (code != CONVARY_OK) return code;
    conv->images = sizes.B;
    conv->image = index;
    int64_t kernel = 0;
    if (__builtin_mul_overflow(conv->Cg(), conv->T(), &kernel)) return CONVARY_SIZE_OVERFLOW;
    return __builtin_mul_overflow(kernel, conv->O, &conv->bank_step) ? CONVARY_SIZE_OVERFLOW : CONVARY_OK;
}

int32_t check_index(const Conv& conv, const Extent& out) {
    if (conv.image == nullptr) return CONVARY_OK;
    if (reinterpret_cast<uintptr_t>(conv.image) % 8 != 0) return CONVARY_MISALIGNED;
    Extent index = {};
    const int32_t code = extent(conv.image, conv.B, 2, &index);  // of four bytes
    if (code != CONVARY_OK) return code;
    if (overlap(out, index)) return CONVARY_OVERLAP;
    for (int64_t n = 0; n < conv.B; ++n) {
        if (conv.image[n] < 0 || conv.image[n] >= conv.images) return CONVARY_BAD_INDEX;
    }
    return CONVARY_OK;
}

// The samples of each image, in their order.
class Members {
public:
    explicit Members(const Conv& conv)
        : numbers(
              static_cast<int64_t*>(calloc(static_cast<size_t>(conv.images) + 1 + static_cast<size_t>(conv.B), 8))) {
        if (numbers == nullptr) return;
        for (int64_t n = 0; n < conv.B; ++n) ++numbers[conv.image[n] + 1];
        for (int64_t b = 0; b < conv.images; ++b) {
            lonely = lonely || numbers[b + 1] == 0;
            numbers[b + 1] += numbers[b];
        }
        int64_t* list = numbers + conv.images + 1;
        for (int64_t n = 0; n < conv.B; ++n) list[numbers[conv.image[n]]++] = n;
        for (int64_t b = conv.images; b > 0; --b) numbers[b] = numbers[b - 1];  // each start went on to the next one's
        numbers[0] = 0;
    }
    ~Members() { free(numbers); }
    Members(const Members&) = delete;
    Members& operator=(const Members&) = delete;

    int64_t* const numbers;  // first (images + 1), then the samples; null without memory
    bool lonely = false;     // some image has no sample
};

}  // namespace
}  // namespace convary

int32_t convary_sample_conv(const convary_conv_sizes* sizes, const void* x, const void* weight, const float* bias,
                            const int64_t* index, void* y) {
    using namespace convary;
    if (sizes == nullptr) return CONVARY_NULL_POINTER;
    Conv conv = {};
    conv.x = x, conv.bank = weight, conv.bias = bias, conv.y = y;
    Extent out = {};
    int32_t code = check_sample_sizes(*sizes, index, &conv);
    if (code == CONVARY_OK) code = check_tensors(&conv, false, sizes->bias_rows, &out);
    if (code == CONVARY_OK) code = check_index(conv, out);
    if (code != CONVARY_OK || out.count == 0) return code;
    expect_fresh(out);
    place_y(&conv);
    return execute(conv, sizes->threads);
}

int32_t convary_sample_conv_grad_x(const convary_conv_sizes* sizes, const void* grad_y, const void* weight,
                                   const int64_t* index, void* grad_x) {
    using namespace convary;
    if (sizes == nullptr) return CONVARY_NULL_POINTER;
    Conv conv = {};
    conv.x = grad_y, conv.bank = weight, conv.y = grad_x;
    Extent out = {};
    int32_t code = check_sample_sizes(*sizes, index, &conv);
    if (code == CONVARY_OK) code = check_tensors(&conv, true, sizes->bias_rows, &out);
    if (code == CONVARY_OK) code = check_index(conv, out);
    if (code != CONVARY_OK || out.count == 0) return code;
    expect_fresh(out);
    if (index == nullptr) return execute_grad_x(conv, sizes->threads);
    const Members members(conv);
    if (members.numbers == nullptr) return CONVARY_NO_MEMORY;
    if (members.lonely) memset(grad_x, 0, static_cast<size_t>(out.bytes));
    if (conv.B == 0) return CONVARY_OK;
    conv.first = members.numbers;
    conv.members = members.numbers + conv.images + 1;
    conv.B = conv.images;
    conv.image = nullptr;  // the input is the gradient of y, which every sample has of its own
    return execute_grad_x(conv, sizes->threads);
}

int32_t convary_sample_conv_grad_weight(const convary_conv_sizes* sizes, const void* x, const void* grad_y,
                                        const int64_t* index, float* grad_weight) {
    using namespace convary;
    if (sizes == nullptr) return CONVARY_NULL_POINTER;
    ConvGrad grad = {};
    Conv& conv = grad.conv;
    int32_t code = check_sample_sizes(*sizes, index, &conv);
    if (code != CONVARY_OK) return code;
    conv.x = x;
    grad.grad_y = grad_y, grad.grad_bank = grad_weight;
    int64_t map = 0;
    if (__builtin_mul_overflow(conv.h.out, conv.w.out, &map)) return CONVARY_SIZE_OVERFLOW;
    Extent features = {}, results = {}, out = {};
    code = extent(x, conv.images * conv.C, conv.h.in * conv.w.in, &features, feature_size(conv));
    if (code == CONVARY_OK) code = extent(grad_y, conv.B * conv.O, map, &results, feature_size(conv));
    if (code == CONVARY_OK) code = extent(grad_weight, conv.B, conv.bank_step, &out);
    if (code == CONVARY_OK && (overlap(out, features) || overlap(out, results))) code = CONVARY_OVERLAP;
    if (code == CONVARY_OK) code = check_index(conv, out);
    if (code == CONVARY_OK && kernels() == nullptr) code = CONVARY_NO_ISA;
    if (code != CONVARY_OK || out.count == 0) return code;
    conv.x_end = features.end();
    plan_grad_weights(&grad, sizes->threads);
    return execute_grad_weights(grad);
}
