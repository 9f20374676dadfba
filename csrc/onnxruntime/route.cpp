// SPDX-License-Identifier: Apache-2.0
// Route: a router in inference as one node. Its outputs are the pieces of the coefficients, (B, length) each.
#include "operators.h"

namespace convary::ort {
namespace {

struct Router {
    static constexpr const char* name = "Route";
    static constexpr size_t inputs = 10, needed = 1, outputs = 4;
    static int type(size_t) { return float32; }
    int64_t pieces[outputs], gates, rest;
    float epsilon;

    Status* read(const Api& api, const Info* info) {
        size_t count = outputs;
        Status* failed = api.call(get_attribute_ints, info, "pieces", &pieces[0], &count);
        if (failed == nullptr) failed = api.call(get_attribute_int, info, "gates", &gates);
        if (failed == nullptr) failed = api.call(get_attribute_int, info, "rest", &rest);
        if (failed == nullptr) failed = api.call(get_attribute_float, info, "epsilon", &epsilon);
        return failed;
    }

    void run(Run& run) const {
        const Tensor x = run.input(0);
        Tensor layers[inputs - 1];
        for (size_t i = 0; i < inputs - 1; ++i) layers[i] = run.input(i + 1);
        if (run.failed != nullptr) return;
        convary_route_sizes sizes = {};
        if (!fit(x, layers, &sizes)) return run.fail("the layers of a router by convary do not fit x or each other");
        int64_t total = 0;
        for (const int64_t piece : pieces) total += piece;
        const int64_t pooled = sizes.B * sizes.C;
        float* memory = static_cast<float*>(malloc(static_cast<size_t>(pooled + sizes.B * total + 1) * sizeof(float)));
        if (memory == nullptr) return run.check(CONVARY_NO_MEMORY);
        const float* l[inputs - 1];
        for (size_t i = 0; i < inputs - 1; ++i) l[i] = layers[i].numbers();
        run.check(convary_route(&sizes, x.numbers(), l[0], l[1], l[2], l[3], l[4], l[5], l[6], l[7], l[8], memory,
                                memory + pooled));
        const float* from = memory + pooled;
        for (size_t i = 0; i < outputs && pieces[i] > 0 && run.failed == nullptr; ++i) {
            const int64_t shape[] = {sizes.B, pieces[i]};
            float* piece = run.output(i, shape, 2);
            const size_t bytes = static_cast<size_t>(sizes.B * pieces[i]) * sizeof(float);
            if (piece != nullptr) memcpy(piece, from, bytes);
            from += sizes.B * pieces[i];
        }
        free(memory);
    }

private:
    static bool has(const Tensor& vector, int64_t n) {
        return vector.data == nullptr || (vector.rank == 1 && vector.size[0] == n) || (vector.rank == 0 && n == 1);
    }

    // The sizes, where the weights are as long as each other say.
    bool fit(const Tensor& x, const Tensor* layers, convary_route_sizes* sizes) const {
        const Tensor &squeeze = layers[0], &head = layers[6];
        if (x.rank < 3) return false;
        int64_t positions = 1, outs = 0;
        for (size_t i = 2; i < x.rank; ++i) positions *= x.size[i];
        *sizes = {};
        sizes->B = x.size[0], sizes->C = x.size[1], sizes->P = positions;
        sizes->hidden = squeeze.data == nullptr ? 0 : squeeze.size[0];
        sizes->gates = gates, sizes->rest = rest, sizes->epsilon = epsilon;
        for (size_t i = 0; i < outputs; ++i) outs += sizes->pieces[i] = pieces[i];
        const int64_t hidden = sizes->hidden, width = hidden > 0 ? hidden : sizes->C;
        bool fits = head.is(outs, width) && has(layers[7], outs) && has(layers[8], 1);
        fits = fits && (squeeze.data == nullptr || squeeze.is(hidden, sizes->C));
        for (size_t i = 1; i < 6; ++i) fits = fits && has(layers[i], hidden);
        return fits;
    }
};

}  // namespace

const Operator* route() { return operator_of<Router>(); }

}  // namespace convary::ort
