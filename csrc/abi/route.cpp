// SPDX-License-Identifier: Apache-2.0
// convary_route: checks, pools on the caller's threads, then takes the samples one by one.
#include "../check.h"
#include "../convary.h"
#include "../kernels.h"

namespace convary {
namespace {

constexpr int64_t grain_numbers = 1 << 14;  // to add up, or multiply, that are worth another thread

int64_t grain(int64_t numbers) { return most(1, grain_numbers / most(1, numbers)); }

int32_t check(const convary_route_sizes& sizes, Route* call) {
    const Route& route = *call;
    const int64_t all[] = {sizes.B,         sizes.C,         sizes.P,          sizes.hidden,
                           sizes.pieces[0], sizes.pieces[1], sizes.pieces[2],  sizes.pieces[3],
                           sizes.gates,     sizes.half,      sizes.half_layers};
    for (const int64_t size : all) {
        if (size < 0) return CONVARY_NEGATIVE_SIZE;
        if (size > most_size) return CONVARY_SIZE_OVERFLOW;
    }
    for (const int64_t length : sizes.pieces) call->outputs += length;
    if (route.outputs > most_size) return CONVARY_SIZE_OVERFLOW;
    if (sizes.C < 1 || sizes.P < 1 || sizes.gates > route_pieces || sizes.rest < 0 || sizes.rest > 2 ||
        sizes.half > 1 || sizes.half_layers > sizes.half) {
        return CONVARY_BAD_GEOMETRY;
    }
    const bool normed =
        route.mean != nullptr || route.variance != nullptr || route.gain != nullptr || route.shift != nullptr;
    const int64_t width = sizes.hidden > 0 ? sizes.hidden : sizes.C, norm = normed ? sizes.hidden : 0;
    const int64_t size = route.half_layers ? 2 : 4;
    const struct {
        const void* data;
        int64_t rows, columns, size;
    } inputs[] = {
        {route.x, sizes.B * sizes.C, sizes.P, route.half ? 2 : 4},
        {route.squeeze, sizes.hidden, sizes.C, size},
        {route.squeeze_bias, 1, route.squeeze_bias == nullptr ? 0 : sizes.hidden, size},
        {route.mean, 1, norm, size},
        {route.variance, 1, norm, size},
        {route.gain, 1, norm, size},
        {route.shift, 1, norm, size},
        {route.head, route.outputs, width, size},
        {route.head_bias, 1, route.head_bias == nullptr ? 0 : route.outputs, size},
        {route.temperature, 1, route.temperature == nullptr ? 0 : 1, 4},
    };
    Extent pooled = {}, out = {}, in = {};
    int32_t code = extent(route.pooled, sizes.B, sizes.C, &pooled);
    if (code == CONVARY_OK) code = extent(route.out, sizes.B, route.outputs, &out);
    if (code == CONVARY_OK && overlap(pooled, out)) code = CONVARY_OVERLAP;
    for (const auto& input : inputs) {
        if (code == CONVARY_OK) code = extent(input.data, input.rows, input.columns, &in, input.size);
        if (code == CONVARY_OK && (overlap(pooled, in) || overlap(out, in))) code = CONVARY_OVERLAP;
    }
    return code == CONVARY_OK && kernels() == nullptr ? CONVARY_NO_ISA : code;
}

}  // namespace
}  // namespace convary

int32_t convary_route(const convary_route_sizes* sizes, const void* x, const void* squeeze, const void* squeeze_bias,
                      const void* mean, const void* variance, const void* gain, const void* shift, const void* head,
                      const void* head_bias, const float* temperature, float* pooled, float* out) {
    using namespace convary;
    if (sizes == nullptr) return CONVARY_NULL_POINTER;
    Route route = {x,
                   squeeze,
                   squeeze_bias,
                   mean,
                   variance,
                   gain,
                   shift,
                   head,
                   head_bias,
                   temperature,
                   pooled,
                   out,
                   sizes->B,
                   sizes->C,
                   sizes->P,
                   sizes->hidden,
                   0,
                   sizes->gates,
                   sizes->rest,
                   sizes->pieces,
                   sizes->epsilon,
                   sizes->half == 1,
                   sizes->half_layers == 1};
    int32_t code = check(*sizes, &route);
    if (code != CONVARY_OK || sizes->B == 0) return code;
    const Kernels& table = *kernels();
    code =
        run_items(sizes->B * sizes->C, grain(sizes->P), 0, [&](int64_t map, float*) { table.route_pool(route, map); });
    if (code != CONVARY_OK) return code;
    const int64_t width = sizes->hidden > 0 ? sizes->hidden : sizes->C;
    return run_items(sizes->B, grain(sizes->hidden * sizes->C + route.outputs * width), route.hidden,
                     [&](int64_t b, float* scratch) { table.route(route, b, scratch); });
}
