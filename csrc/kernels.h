// SPDX-License-Identifier: Apache-2.0
// The kernels that exist once per instruction set. To add one: a line here and a file in kernels/ that defines it in
// namespace convary::CONVARY_VARIANT; its checked entry of the C ABI goes to abi/.
#ifndef CONVARY_KERNELS_H
#define CONVARY_KERNELS_H

#include <stdint.h>

#include "conv.h"
#include "pixel.h"

namespace convary {

// out[b, n] for b in [b0, b1) and n in [n0, n1); the tile [n0, n1) of the K bank rows should fit the cache.
struct MixTile {
    const float* bank;   // (K, N)
    const float* coeff;  // (B, K)
    float* out;          // (B, N)
    int64_t K, N;
    bool stream;  // write past the cache
};

constexpr int64_t route_pieces = 4;

// A router in inference; pointers and sizes as convary_route in convary.h.
struct Route {
    const void *x, *squeeze, *squeeze_bias, *mean, *variance, *gain, *shift, *head, *head_bias;
    const float* temperature;
    float *pooled, *out;
    int64_t B, C, P, hidden, outputs, gates, rest;
    const int64_t* pieces;
    float epsilon;
    bool half, half_layers;  // bf16 in place of float: x; the layers, temperature aside
};

// X(name, return type, parameters). Those without a type in their names take float and bf16.
#define CONVARY_KERNELS(X)                                                                                             \
    X(mix_kernels_f32, void, (const MixTile& tile, int64_t b0, int64_t b1, int64_t n0, int64_t n1))                    \
    X(route_pool, void, (const Route& route, int64_t map))                                                             \
    X(route, void, (const Route& route, int64_t b, float* scratch))                                                    \
    X(mixed_conv, void, (const Conv& conv, const Blocks& blocks, int64_t item, float* scratch))                        \
    X(mixed_conv_depthwise, void, (const Conv& conv, const Blocks& blocks, int64_t item, float* scratch))              \
    X(mixed_conv_depthwise_last, void, (const Conv& conv, const Blocks& blocks, int64_t item, float* scratch))         \
    X(mixed_conv_grad_weights, void, (const ConvGrad& grad, int64_t item, float* scratch))                             \
    X(mixed_conv_depthwise_grad_weights, void, (const ConvGrad& grad, int64_t item, float* scratch))                   \
    X(sample_conv_thin_f32, void, (const Conv& conv, const Blocks& blocks, int64_t item, float* scratch))              \
    X(sample_conv_thin_grad_weights_f32, void, (const ConvGrad& grad, int64_t item, float* scratch))                   \
    X(pixel_conv_f32, void, (const PixelConv& conv, int64_t item, float* scratch))                                     \
    X(pixel_conv_grad_x_f32, void, (const PixelConv& conv, int64_t item, float* scratch))                              \
    X(pixel_conv_grad_weights_f32, void, (const PixelConv& conv, int64_t item, float* scratch))

// One row of the dispatch table per instruction set.
struct Kernels {
    const char* isa;
    int64_t lanes;  // floats per vector
#define CONVARY_FIELD(name, result, parameters) result(*name) parameters;
    CONVARY_KERNELS(CONVARY_FIELD)
#undef CONVARY_FIELD
};

// The row picked at load, or nullptr where CONVARY_ISA names something that can't run here.
const Kernels* kernels();

}  // namespace convary

#ifdef CONVARY_VARIANT
namespace convary::CONVARY_VARIANT {
#define CONVARY_DECLARE(name, result, parameters) result name parameters;
CONVARY_KERNELS(CONVARY_DECLARE)
#undef CONVARY_DECLARE
}  // namespace convary::CONVARY_VARIANT
#endif

#endif
