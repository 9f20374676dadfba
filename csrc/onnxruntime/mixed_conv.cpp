// SPDX-License-Identifier: Apache-2.0
// MixedConv and SampleConv: the convolutions of csrc/convary.h as nodes of a file.
#include "operators.h"

namespace convary::ort {
namespace {

struct Geometry {
    int64_t stride[2], pad[2], dilation[2], groups;
    size_t axes;
    bool bounded;  // by attributes lower and upper, which a node need not have
    float lower, upper;
};

Status* read(const Api& api, const Info* info, Geometry* geometry) {
    size_t ranks[3] = {};
    const bool all = read_axes(api, info, "stride", 1, geometry->stride, &ranks[0]) &&
                     read_axes(api, info, "padding", 0, geometry->pad, &ranks[1]) &&
                     read_axes(api, info, "dilation", 1, geometry->dilation, &ranks[2]);
    if (!all || ranks[0] != ranks[1] || ranks[0] != ranks[2]) {
        return api.error("stride, padding and dilation must be one or two whole numbers each, as many as x has axes");
    }
    geometry->axes = ranks[0];
    const bool below = read_number(api, info, "lower", -__builtin_inff(), &geometry->lower);
    const bool above = read_number(api, info, "upper", __builtin_inff(), &geometry->upper);
    geometry->bounded = below || above;
    return api.call(get_attribute_int, info, "groups", &geometry->groups);
}

// The sizes of a convolution of x by kernels whose axes are (leading, O, C / G, ...), and the shape of y. False where
// they make none.
bool fit(const Geometry& geometry, const Tensor& x, const Tensor& kernels, convary_conv_sizes* sizes, int64_t* y) {
    const size_t axes = geometry.axes;
    if (x.rank != axes + 2 || kernels.rank != axes + 3 || geometry.groups < 1) return false;
    if (kernels.size[2] != x.size[1] / geometry.groups) return false;
    int64_t in[2] = {1, 1}, taps[2] = {1, 1};
    y[0] = x.size[0], y[1] = kernels.size[1];
    for (size_t i = 0; i < axes; ++i) {
        const size_t axis = 2 - axes + i;
        in[axis] = x.size[2 + i], taps[axis] = kernels.size[3 + i];
        if (geometry.stride[axis] < 1 || geometry.dilation[axis] < 1 || taps[axis] < 1) return false;
        const int64_t room = in[axis] + 2 * geometry.pad[axis] - geometry.dilation[axis] * (taps[axis] - 1) - 1;
        if (room < 0) return false;
        y[2 + i] = room / geometry.stride[axis] + 1;
    }
    *sizes = {};
    sizes->B = x.size[0], sizes->C = x.size[1], sizes->H = in[0], sizes->W = in[1];
    sizes->K = kernels.size[0], sizes->O = kernels.size[1], sizes->G = geometry.groups;
    sizes->kernel_h = taps[0], sizes->kernel_w = taps[1];
    sizes->stride_h = geometry.stride[0], sizes->stride_w = geometry.stride[1];
    sizes->pad_h = geometry.pad[0], sizes->pad_w = geometry.pad[1];
    sizes->dilation_h = geometry.dilation[0], sizes->dilation_w = geometry.dilation[1];
    sizes->filter_rows = sizes->channel_rows = sizes->tap_rows = sizes->bias_rows = 1;
    sizes->threads = Threads::count();
    sizes->bounded = geometry.bounded, sizes->lower = geometry.lower, sizes->upper = geometry.upper;
    return true;
}

// A factor (B, rows, n), or (B, n) for one row, where it is there; false where it has another shape.
bool rows_of(const Tensor& factor, int64_t B, int64_t n, int64_t* rows) {
    if (factor.data == nullptr || factor.is(B, n)) return true;
    *rows = factor.size[1];
    return factor.is(B, *rows, n);
}

bool rows_of_bias(const Tensor& bias, int64_t B, int64_t O, int64_t* rows) {
    if (bias.data == nullptr) return true;
    *rows = bias.rank == 2 ? B : 1;
    return bias.rank == 2 ? bias.is(B, O) : bias.rank == 1 && bias.size[0] == O;
}

constexpr const char* misfit = "the tensors of a convolution by convary do not fit together, or are empty";

struct MixedConv {
    static constexpr const char* name = "MixedConv";
    static constexpr size_t inputs = 7, needed = 2, outputs = 1;
    static int type(size_t i) { return i == 1 ? any_type : float32; }  // the bank may be bfloat16
    Geometry geometry;

    Status* read(const Api& api, const Info* info) { return ort::read(api, info, &geometry); }

    void run(Run& run) const {
        const Tensor x = run.input(0), bank = run.input(1), kernel = run.input(2), filter = run.input(3);
        const Tensor channel = run.input(4), tap = run.input(5), bias = run.input(6);
        if (run.failed != nullptr) return;
        convary_conv_sizes sizes = {};
        int64_t shape[most_axes] = {};
        if (bank.type != float32 && bank.type != bfloat16) return run.fail("a bank must be float or bfloat16");
        if (!fit(geometry, x, bank, &sizes, shape) || (kernel.data != nullptr && !kernel.is(sizes.B, sizes.K)) ||
            !rows_of(filter, sizes.B, sizes.O, &sizes.filter_rows) ||
            !rows_of(channel, sizes.B, sizes.C, &sizes.channel_rows) ||
            !rows_of(tap, sizes.B, sizes.kernel_h * sizes.kernel_w, &sizes.tap_rows) ||
            !rows_of_bias(bias, sizes.B, sizes.O, &sizes.bias_rows)) {
            return run.fail(misfit);
        }
        sizes.half_bank = bank.type == bfloat16;
        float* y = run.output(0, shape, x.rank);
        if (run.failed != nullptr) return;
        run.check(convary_mixed_conv(&sizes, x.data, bank.data, kernel.numbers(), filter.numbers(), channel.numbers(),
                                     tap.numbers(), bias.numbers(), y));
    }
};

struct SampleConv {
    static constexpr const char* name = "SampleConv";
    static constexpr size_t inputs = 4, needed = 2, outputs = 1;
    static int type(size_t i) { return i == 2 ? int64 : float32; }
    Geometry geometry;

    Status* read(const Api& api, const Info* info) { return ort::read(api, info, &geometry); }

    void run(Run& run) const {
        const Tensor x = run.input(0), weight = run.input(1), index = run.input(2), bias = run.input(3);
        if (run.failed != nullptr) return;
        convary_conv_sizes sizes = {};
        int64_t shape[most_axes] = {};
        if (!fit(geometry, x, weight, &sizes, shape) || (index.data == nullptr && sizes.K != sizes.B) ||
            (index.data != nullptr && !(index.rank == 1 && index.size[0] == sizes.K)) ||
            !rows_of_bias(bias, sizes.K, sizes.O, &sizes.bias_rows)) {
            return run.fail(misfit);
        }
        shape[0] = sizes.K;
        float* y = run.output(0, shape, x.rank);
        if (run.failed != nullptr) return;
        run.check(convary_sample_conv(&sizes, x.numbers(), weight.numbers(), bias.numbers(),
                                      static_cast<const int64_t*>(index.data), y));
    }
};

}  // namespace

const Operator* mixed_conv() { return operator_of<MixedConv>(); }
const Operator* sample_conv() { return operator_of<SampleConv>(); }

}  // namespace convary::ort
