// SPDX-License-Identifier: Apache-2.0
// The inner product of the convolutions: a tile of accumulators, output channels in the lanes, one broadcast input per
// position. Inputs are addressed by an offset per step of the depth, so no im2col matrix exists.
#include "conv_parts.h"

namespace convary::CONVARY_VARIANT {
namespace {

typedef void (*Tile)(const float* weights, const int64_t* offsets, int64_t depth, const float* x, int64_t step,
                     int64_t pitch, float* acc, int64_t acc_pitch, bool add, Ahead* ahead);

// `count` vectors of channels x `rows` rows of `columns` positions, which are neighbours in x where they are not apart.
template <bool pairs, bool apart, int64_t count, int64_t rows, int64_t columns>
void tile(const float* weights, const int64_t* offsets, int64_t depth, const float* x, int64_t step, int64_t pitch,
          float* acc, int64_t acc_pitch, bool add, Ahead* ahead) {
    constexpr int64_t width = count * lanes;
    vec sum[rows * columns][count];
#pragma GCC unroll 14
    for (int64_t p = 0; p < rows * columns; ++p) {
        const float* from = acc + p / columns * acc_pitch + p % columns * width;
#pragma GCC unroll 2
        for (int64_t v = 0; v < count; ++v) sum[p][v] = add ? load(from + v * lanes) : vec{};
    }
    const char *at = ahead->at, *end = ahead->end;
    int64_t stride = ahead->step, rate = ahead->rate;
    for (int64_t d = 0; d < depth; ++d) {
        for (int64_t i = 0; i < rate; ++i) {
            __builtin_prefetch(at, 0, 2);
            at += stride;
            if (at >= end) {
                ahead->next_row();
                at = ahead->at, end = ahead->end, stride = ahead->step, rate = ahead->rate;
            }
        }
        const float* first = x + offsets[d];
        vec w[count];
#pragma GCC unroll 2
        for (int64_t v = 0; v < count; ++v) w[v] = load(weights + d * width + v * lanes);
#pragma GCC unroll 14
        for (int64_t p = 0; p < rows * columns; ++p) {
            const float value = first[p / columns * pitch + p % columns * (apart ? step : 1)];
#pragma GCC unroll 2
            for (int64_t v = 0; v < count; ++v) {
                sum[p][v] = pairs ? add_products(sum[p][v], w[v], value) : sum[p][v] + value * w[v];
            }
        }
    }
    ahead->at = at;
#pragma GCC unroll 14
    for (int64_t p = 0; p < rows * columns; ++p) {
        float* to = acc + p / columns * acc_pitch + p % columns * width;
#pragma GCC unroll 2
        for (int64_t v = 0; v < count; ++v) store(to + v * lanes, sum[p][v]);
    }
}

#define CONVARY_TILES(pairs, apart, count)                                                                             \
    {                                                                                                                  \
        {tile<pairs, apart, count, 1, 1>, tile<pairs, apart, count, 1, 2>, tile<pairs, apart, count, 1, 3>,            \
         tile<pairs, apart, count, 1, 4>, tile<pairs, apart, count, 1, 5>, tile<pairs, apart, count, 1, 6>,            \
         CONVARY_WIDE_TILES(pairs, apart, count)},                                                                     \
        {tile<pairs, apart, count, 2, 1>, tile<pairs, apart, count, 2, 2>, tile<pairs, apart, count, 2, 3>,            \
         CONVARY_WIDE_PAIRS(pairs, apart, count)},                                                                     \
    }
#if CONVARY_LANES == 16 || defined(__aarch64__)
#define CONVARY_WIDE_TILES(pairs, apart, count)                                                                        \
    tile<pairs, apart, count, 1, 7>, tile<pairs, apart, count, 1, 8>, tile<pairs, apart, count, 1, 9>,                 \
        tile<pairs, apart, count, 1, 10>, tile<pairs, apart, count, 1, 11>, tile<pairs, apart, count, 1, 12>,          \
        tile<pairs, apart, count, 1, 13>, tile<pairs, apart, count, 1, 14>
#define CONVARY_WIDE_PAIRS(pairs, apart, count)                                                                        \
    tile<pairs, apart, count, 2, 4>, tile<pairs, apart, count, 2, 5>, tile<pairs, apart, count, 2, 6>,                 \
        tile<pairs, apart, count, 2, 7>
#else
#define CONVARY_WIDE_TILES(pairs, apart, count)
#define CONVARY_WIDE_PAIRS(pairs, apart, count)
#endif

template <bool pairs>
constexpr Tile tiles[2][2][2][tile_positions] = {{CONVARY_TILES(pairs, false, 1), CONVARY_TILES(pairs, false, 2)},
                                                 {CONVARY_TILES(pairs, true, 1), CONVARY_TILES(pairs, true, 2)}};

}  // namespace

template <bool pairs>
void multiply(const float* weights, const int64_t* offsets, int64_t depth, const float* x, int64_t step, int64_t pitch,
              int64_t rows, int64_t columns, int64_t width, float* acc, bool add, Ahead* ahead) {
    const auto& kinds = tiles<pairs>[step != 1][width / lanes - 1];
    const int64_t acc_pitch = columns * width;
    const int64_t together = ceil_div(columns, ceil_div(columns, tile_positions));  // tiles of even width
    const bool two = 2 * columns <= tile_positions;
    for (int64_t row = 0; row < rows;) {
        const int64_t height = two && row + 2 <= rows ? 2 : 1;
        for (int64_t column = 0; column < columns; column += together) {
            const int64_t size = least(together, columns - column);
            kinds[height - 1][size - 1](weights, offsets, depth, x + row * pitch + column * step, step, pitch,
                                        acc + (row * columns + column) * width, acc_pitch, add, ahead);
        }
        row += height;
    }
}

template void multiply<false>(const float*, const int64_t*, int64_t, const float*, int64_t, int64_t, int64_t, int64_t,
                              int64_t, float*, bool, Ahead*);
#if defined(__AVX512BF16__)
template void multiply<true>(const float*, const int64_t*, int64_t, const float*, int64_t, int64_t, int64_t, int64_t,
                             int64_t, float*, bool, Ahead*);
#endif

}  // namespace convary::CONVARY_VARIANT
