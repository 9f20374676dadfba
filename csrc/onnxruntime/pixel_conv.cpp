// SPDX-License-Identifier: Apache-2.0
// PixelConv: a convolution with a kernel per position as a node of a file.
#include "operators.h"

namespace convary::ort {
namespace {

struct PixelConv {
    static constexpr const char* name = "PixelConv";
    static constexpr size_t inputs = 2, needed = 2, outputs = 1;
    static int type(size_t) { return float32; }
    int64_t kernel[2], stride[2], pad[2], dilation[2], border, interleaved, scale;
    size_t axes;

    Status* read(const Api& api, const Info* info) {
        size_t ranks[3] = {};
        const bool all = read_axes(api, info, "kernel_size", 1, kernel, &axes) &&
                         read_axes(api, info, "stride", 1, stride, &ranks[0]) &&
                         read_axes(api, info, "padding", 0, pad, &ranks[1]) &&
                         read_axes(api, info, "dilation", 1, dilation, &ranks[2]);
        if (!all || axes != ranks[0] || axes != ranks[1] || axes != ranks[2]) {
            return api.error("kernel_size, stride, padding and dilation must be one or two whole numbers each");
        }
        Status* failed = api.call(get_attribute_int, info, "border", &border);
        if (failed == nullptr) failed = api.call(get_attribute_int, info, "interleaved", &interleaved);
        if (failed == nullptr) failed = api.call(get_attribute_int, info, "scale_factor", &scale);
        return failed;
    }

    void run(Run& run) const {
        const Tensor x = run.input(0), weight = run.input(1);
        if (run.failed != nullptr) return;
        // weight (B, G, taps, *S_out), and y (B, C, *S_out)
        const int64_t taps = kernel[0] * kernel[1];
        if (x.rank != axes + 2 || weight.rank != axes + 3 || weight.size[2] != taps || weight.size[0] != x.size[0]) {
            return run.fail("x and weight of a convolution by convary do not fit together");
        }
        convary_pixel_sizes sizes = {};
        sizes.B = x.size[0], sizes.C = x.size[1], sizes.G = weight.size[1];
        sizes.H = axes == 1 ? 1 : x.size[2], sizes.W = x.size[x.rank - 1];
        sizes.kernel_h = kernel[0], sizes.kernel_w = kernel[1], sizes.stride_h = stride[0], sizes.stride_w = stride[1];
        sizes.pad_h = pad[0], sizes.pad_w = pad[1], sizes.dilation_h = dilation[0], sizes.dilation_w = dilation[1];
        sizes.scale_h = axes == 1 ? 1 : scale, sizes.scale_w = scale;
        sizes.border = border, sizes.interleaved = interleaved, sizes.threads = Threads::count();
        int64_t shape[most_axes] = {x.size[0], x.size[1]};
        for (size_t i = 0; i < axes; ++i) {
            const size_t axis = 2 - axes + i;
            const int64_t room = x.size[2 + i] + 2 * pad[axis] - dilation[axis] * (kernel[axis] - 1) - 1;
            shape[2 + i] = room < 0 || stride[axis] < 1 ? -1 : scale * (room / stride[axis] + 1);
            if (shape[2 + i] != weight.size[3 + i]) return run.fail("weight has another map than y will have");
        }
        float* y = run.output(0, shape, x.rank);
        if (run.failed != nullptr) return;
        run.check(convary_pixel_conv_f32(&sizes, x.numbers(), weight.numbers(), y));
    }
};

}  // namespace

const Operator* pixel_conv() { return operator_of<PixelConv>(); }

}  // namespace convary::ort
