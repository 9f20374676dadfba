// SPDX-License-Identifier: Apache-2.0
// What the entries of the mixed and of the sample convolution share.
#ifndef CONVARY_CONV_CALL_H
#define CONVARY_CONV_CALL_H

#include "../check.h"
#include "../conv.h"
#include "../convary.h"

namespace convary {

// CONVARY_OK with the sizes of `conv` filled in, or what is wrong. A bank for all samples until `bank_step` is set.
int32_t check_sizes(const convary_conv_sizes& sizes, Conv* conv);

// Bytes of a number of x, y and their gradients, and of the bank.
inline int64_t feature_size(const Conv& conv) { return conv.half ? 2 : 4; }
inline int64_t bank_size(const Conv& conv) { return conv.half_bank ? 2 : 4; }

// CONVARY_OK with the extents of kernel, filter, channel and tap, or what is wrong with them.
int32_t check_factors(const Conv& conv, Extent* results);

// CONVARY_OK with `x_end`, `bank_end` and the extent of y filled in, or what is wrong with the pointers. With
// `transposed` x and y hold the gradient of y and x: their shapes change places.
int32_t check_tensors(Conv* conv, bool transposed, int64_t bias_rows, Extent* y);

// Where y, which is dense, has its samples, maps, rows and columns.
void place_y(Conv* conv);

// The convolution, and the gradient of x, on the caller's threads, after the checks.
int32_t execute(Conv conv, int64_t threads);
int32_t execute_grad_x(const Conv& conv, int64_t threads);

// The gradient of the bank: its cut, for sizes that are checked, and the work, once the tensors are.
void plan_grad_weights(ConvGrad* grad, int64_t threads);
int32_t execute_grad_weights(const ConvGrad& grad);

}  // namespace convary

#endif
