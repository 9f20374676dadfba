// SPDX-License-Identifier: Apache-2.0
// convary_route_f32: checks, pools on the caller's threads, then takes the samples one by one.
#include <atomic>

#include "../check.h"
#include "../convary.h"
#include "../kernels.h"

namespace convary {
namespace {

constexpr int64_t grain_numbers = 1 << 14;  // to add up, or multiply, that are worth another thread

struct Work {
    Route route;
    const Kernels* kernels;
    std::atomic<bool> no_memory;
};

void pool(int64_t begin, int64_t end, void* context) {
    const Work& work = *static_cast<const Work*>(context);
    work.kernels->route_pool_f32(work.route, begin, end);
}

void run(int64_t begin, int64_t end, void* context) {
    Work& work = *static_cast<Work*>(context);
    float* scratch = thread_scratch(work.route.hidden);
    if (scratch == nullptr && work.route.hidden > 0) {
        work.no_memory.store(true, std::memory_order_relaxed);
        return;
    }
    for (int64_t b = begin; b < end; ++b) work.kernels->route_f32(work.route, b, scratch);
}

int64_t grain(int64_t numbers) { return numbers >= grain_numbers ? 1 : grain_numbers / (numbers < 1 ? 1 : numbers); }

int32_t check(const convary_route_sizes& sizes, Route* call) {
    const Route& route = *call;
    const int64_t all[] = {sizes.B, sizes.C, sizes.P, sizes.hidden, sizes.pieces[0], sizes.pieces[1], sizes.pieces[2],
                           sizes.pieces[3], sizes.gates};
    for (const int64_t size : all) {
        if (size < 0) return CONVARY_NEGATIVE_SIZE;
        if (size > INT32_MAX) return CONVARY_SIZE_OVERFLOW;
    }
    for (const int64_t length : sizes.pieces) call->outputs += length;
    if (route.outputs > INT32_MAX) return CONVARY_SIZE_OVERFLOW;
    if (sizes.C < 1 || sizes.P < 1 || sizes.gates > route_pieces || sizes.rest < 0 || sizes.rest > 2) {
        return CONVARY_BAD_GEOMETRY;
    }
    const bool normed = route.mean != nullptr || route.variance != nullptr || route.gain != nullptr || route.shift != nullptr;
    const int64_t width = sizes.hidden > 0 ? sizes.hidden : sizes.C, norm = normed ? sizes.hidden : 0;
    const struct {
        const float* data;
        int64_t rows, columns;
    } inputs[] = {
        {route.x, sizes.B * sizes.C, sizes.P}, {route.squeeze, sizes.hidden, sizes.C},
        {route.squeeze_bias, 1, route.squeeze_bias == nullptr ? 0 : sizes.hidden}, {route.mean, 1, norm},
        {route.variance, 1, norm}, {route.gain, 1, norm}, {route.shift, 1, norm}, {route.last, route.outputs, width},
        {route.last_bias, 1, route.last_bias == nullptr ? 0 : route.outputs},
        {route.temperature, 1, route.temperature == nullptr ? 0 : 1},
    };
    Extent pooled = {}, out = {}, in = {};
    int32_t code = extent(route.pooled, sizes.B, sizes.C, &pooled);
    if (code == CONVARY_OK) code = extent(route.out, sizes.B, route.outputs, &out);
    if (code == CONVARY_OK && overlap(pooled, out)) code = CONVARY_OVERLAP;
    for (const auto& input : inputs) {
        if (code == CONVARY_OK) code = extent(input.data, input.rows, input.columns, &in);
        if (code == CONVARY_OK && (overlap(pooled, in) || overlap(out, in))) code = CONVARY_OVERLAP;
    }
    return code == CONVARY_OK && kernels() == nullptr ? CONVARY_NO_ISA : code;
}

}  // namespace
}  // namespace convary

int32_t convary_route_f32(const convary_route_sizes* sizes, const float* x, const float* squeeze,
                          const float* squeeze_bias, const float* mean, const float* variance, const float* gain,
                          const float* shift, const float* last, const float* last_bias, const float* temperature,
                          float* pooled, float* out) {
    using namespace convary;
    if (sizes == nullptr) return CONVARY_NULL_POINTER;
    Work work = {};
    work.route = {x, squeeze, squeeze_bias, mean, variance, gain, shift, last, last_bias, temperature, pooled, out,
                  sizes->B, sizes->C, sizes->P, sizes->hidden, 0, sizes->gates, sizes->rest, sizes->pieces, sizes->epsilon};
    int32_t code = check(*sizes, &work.route);
    if (code != CONVARY_OK || sizes->B == 0) return code;
    work.kernels = kernels();
    code = parallel_for(sizes->B * sizes->C, grain(sizes->P), pool, &work);
    if (code != CONVARY_OK) return code;
    const int64_t width = sizes->hidden > 0 ? sizes->hidden : sizes->C;
    code = parallel_for(sizes->B, grain(sizes->hidden * sizes->C + work.route.outputs * width), run, &work);
    return code == CONVARY_OK && work.no_memory.load() ? CONVARY_NO_MEMORY : code;
}
