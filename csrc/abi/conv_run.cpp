// SPDX-License-Identifier: Apache-2.0
// Checked convolutions and their gradients: cut into items, run on the caller's threads.
#include <string.h>

#include "../kernels.h"
#include "conv_call.h"

namespace convary {
namespace {

// A 1x1 convolution that touches every input once sees a map as one row.
void flatten(Conv* conv) {
    const bool plain =
        conv->T() == 1 && conv->h.stride == 1 && conv->w.stride == 1 && conv->h.pad == 0 && conv->w.pad == 0;
    const int64_t column = conv->channels_last ? conv->O : 1;
    if (!plain || conv->y_column != column || conv->y_row != conv->w.out * column || conv->h.in != conv->h.out) return;
    conv->w.in = conv->w.out = conv->P();
    conv->h.in = conv->h.out = 1;
    conv->y_row = conv->w.in * column;
}

}  // namespace

void place_y(Conv* conv) {
    conv->y_column = conv->channels_last ? conv->O : 1;
    conv->y_row = conv->w.out * conv->y_column;
    conv->y_map = conv->channels_last ? 1 : conv->P();
    conv->y_sample = conv->O * conv->P();
}

int32_t execute(Conv conv, int64_t threads) {
    flatten(&conv);
    const Kernels& table = *kernels();
    const Blocks blocks = cut(conv, table.lanes, most(threads, 1));
    const ConvScratch scratch(conv, blocks);
    if (!scratch.fits) return CONVARY_NO_MEMORY;
    const auto kernel = blocks.in_place    ? table.mixed_conv_depthwise_last
                        : blocks.depthwise ? table.mixed_conv_depthwise
                        : blocks.thin      ? table.sample_conv_thin_f32
                                           : table.mixed_conv;
    const int64_t items = blocks.items(conv), samples = conv.first == nullptr ? conv.B : conv.first[conv.B];
    const double outputs = static_cast<double>(samples * conv.O) * static_cast<double>(conv.P());
    const int64_t grain = grain_of(items, outputs * static_cast<double>(conv.Cg() * conv.T()));
    return run_items(items, grain, scratch.total(),
                     [&](int64_t item, float* memory) { kernel(conv, blocks, item, memory); });
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
    back.range = {};
    back.C = conv.O, back.O = conv.C;
    back.filter = conv.channel, back.filter_rows = conv.channel_rows;
    back.channel = conv.filter, back.channel_rows = conv.filter_rows;
    back.transposed = true;
    const int64_t map = conv.h.in * conv.w.in, column = conv.x_column();
    back.y_sample = conv.C * map, back.y_map = conv.x_map();
    back.y_row = conv.w.in * conv.h.stride * column, back.y_column = conv.w.stride * column;
    const bool gaps =
        conv.h.phases() < conv.h.stride || conv.w.phases() < conv.w.stride;  // positions that no tap reaches
    if (gaps || conv.h.in == 0 || conv.w.in == 0) {
        memset(conv.y, 0, static_cast<size_t>(conv.B * conv.C * map * feature_size(conv)));
    }
    for (int64_t i = 0; i < conv.h.stride && i < conv.h.in; ++i) {
        for (int64_t j = 0; j < conv.w.stride && j < conv.w.in; ++j) {
            if (!transpose_axis(conv.h, i, conv.w.taps, &back.h, &back.h_taps)) continue;
            if (!transpose_axis(conv.w, j, 1, &back.w, &back.w_taps)) continue;
            back.y = static_cast<char*>(conv.y) + (i * conv.w.in + j) * column * feature_size(conv);
            const int32_t code = execute(back, threads);
            if (code != CONVARY_OK) return code;
        }
    }
    return CONVARY_OK;
}

void plan_grad_weights(ConvGrad* grad, int64_t threads) {
    Conv& conv = grad->conv;
    place_y(&conv);
    flatten(&conv);
    cut_grad_weights(grad, kernels()->lanes, most(threads, 1));
}

int32_t execute_grad_weights(const ConvGrad& grad) {
    const Kernels& table = *kernels();
    const GradScratch scratch(grad, table.lanes);
    if (!scratch.fits) return CONVARY_NO_MEMORY;
    const auto kernel = grad.depthwise ? table.mixed_conv_depthwise_grad_weights
                        : grad.thin    ? table.sample_conv_thin_grad_weights_f32
                                       : table.mixed_conv_grad_weights;
    return run_items(grad.items(), 1, scratch.total(),
                     [&](int64_t item, float* memory) { kernel(grad, item, memory); });
}

}  // namespace convary
