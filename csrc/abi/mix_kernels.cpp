// SPDX-License-Identifier: Apache-2.0
// convary_mix_kernels_f32: checks, cuts the work into tiles, runs them on the caller's threads.
#include <string.h>

#include "../check.h"
#include "../convary.h"
#include "../kernels.h"

namespace convary {
namespace {

constexpr int64_t tile_floats = 6144;            // of the bank: 24 KiB, half an L1 cache
constexpr int64_t tile_step = 128;               // eight vectors of the widest set
constexpr int64_t grain_products = 1 << 16;      // coeff * bank products that are worth another thread
constexpr int64_t stream_bytes = int64_t{16} << 20;  // larger outputs would not stay in the cache anyway

struct Work {
    MixTile tile;
    const Kernels* kernels;
    int64_t B, columns, tiles, samples;  // columns a tile, tiles a row, samples a block
};

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

void run(int64_t begin, int64_t end, void* context) {
    const Work& work = *static_cast<const Work*>(context);
    for (int64_t i = begin; i < end; ++i) {
        const int64_t b0 = i / work.tiles * work.samples, n0 = i % work.tiles * work.columns;
        const int64_t b1 = least(b0 + work.samples, work.B), n1 = least(n0 + work.columns, work.tile.N);
        work.kernels->mix_kernels_f32(work.tile, b0, b1, n0, n1);
    }
}

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
    Work work = {{bank, coeff, out, K, N, outs.count * 4 >= stream_bytes}, kernels(), B, 0, 0, B};
    const int64_t steps = tile_floats * (B == 1 ? 8 : 1) / tile_step / K;  // one sample reuses nothing
    work.columns = (steps < 1 ? 1 : steps) * tile_step;
    work.tiles = ceil_div(N, work.columns);
    if (work.tiles < 16) work.samples = ceil_div(B, 16);  // few tiles: share out the samples as well
    const int64_t items = work.tiles * ceil_div(B, work.samples);
    const double products = static_cast<double>(outs.count) * static_cast<double>(K) / static_cast<double>(items);
    const double grain = static_cast<double>(grain_products) / products;
    return parallel_for(items, grain <= 1.0 ? 1 : static_cast<int64_t>(grain) + 1, run, &work);
}
