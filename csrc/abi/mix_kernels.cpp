// SPDX-License-Identifier: Apache-2.0
// convary_mix_kernels_f32: checks, cuts the work into tiles, runs them on the caller's threads.
#include <string.h>

#include "../check.h"
#include "../convary.h"
#include "../kernels.h"

namespace convary {
namespace {

constexpr int64_t tile_floats = 6144;                // of the bank: 24 KiB, half an L1 cache
constexpr int64_t tile_step = 128;                   // eight vectors of the widest set
constexpr int64_t stream_bytes = int64_t{16} << 20;  // larger outputs would not stay in the cache anyway

int32_t check(const Extent& bank, const Extent& coeff, const Extent& out) {
    if (overlap(out, bank) || overlap(out, coeff)) return CONVARY_OVERLAP;
    return kernels() == nullptr ? CONVARY_NO_ISA : CONVARY_OK;
}

}  // namespace
}  // namespace convary

int32_t convary_mix_kernels_f32(const float* bank, const float* coeff, float* out, int64_t K, int64_t N, int64_t B) {
    using namespace convary;
    Extent banks, coeffs, outs;
    int32_t code = extent(bank, K, N, &banks);
    if (code == CONVARY_OK) code = extent(coeff, B, K, &coeffs);
    if (code == CONVARY_OK) code = extent(out, B, N, &outs);
    if (code == CONVARY_OK) code = check(banks, coeffs, outs);
    if (code != CONVARY_OK || outs.count == 0) return code;
    if (K == 0) {
        memset(out, 0, static_cast<size_t>(outs.count) * 4);
        return CONVARY_OK;
    }
    expect_fresh(outs);
    const MixTile tile = {bank, coeff, out, K, N, outs.count * 4 >= stream_bytes};
    const int64_t steps = tile_floats * (B == 1 ? 8 : 1) / tile_step / K;  // one sample reuses nothing
    const int64_t columns = most(1, steps) * tile_step, tiles = ceil_div(N, columns);
    const int64_t samples = tiles < 16 ? ceil_div(B, 16) : B;  // few tiles: share out the samples as well
    const int64_t items = tiles * ceil_div(B, samples);
    const double products = static_cast<double>(outs.count) * static_cast<double>(K);
    const auto mix = kernels()->mix_kernels_f32;
    return run_items(items, grain_of(items, products), 0, [&](int64_t item, float*) {
        const int64_t b = item / tiles * samples, n = item % tiles * columns;
        mix(tile, b, least(b + samples, B), n, least(n + columns, N));
    });
}
