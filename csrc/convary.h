// SPDX-License-Identifier: Apache-2.0
// The C ABI of convary's native library: plain C types, no torch, no Python. Everything a caller may use is here.
//
// Every operation checks its sizes and pointers, returns one of the codes below and never throws or aborts.
// Tensors are dense float32, row-major but for the features of a convolution with channels_last; sizes are int64_t
// counts of elements.
#ifndef CONVARY_H
#define CONVARY_H

#include <stdint.h>

// Raised with every change of a signature or of a meaning below; convary.ops.native refuses any other number.
#define CONVARY_ABI_VERSION 8

#if defined(_WIN32)
#define CONVARY_API __declspec(dllexport)
#else
#define CONVARY_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CONVARY_OK = 0,
    CONVARY_NULL_POINTER = 1,   // a pointer is null although its tensor has elements
    CONVARY_MISALIGNED = 2,     // a pointer is not aligned to its element
    CONVARY_NEGATIVE_SIZE = 3,  // a size is below zero
    CONVARY_SIZE_OVERFLOW = 4,  // a tensor would not fit the address space
    CONVARY_OVERLAP = 5,        // the output overlaps an input
    CONVARY_NO_ISA = 6,         // CONVARY_ISA names something that this library or CPU does not have
    CONVARY_THREADS = 7,        // the caller's parallel_for failed
    CONVARY_BAD_GEOMETRY = 8,   // groups, kernel, stride, dilation or coefficient rows make no convolution
    CONVARY_NO_MEMORY = 9,      // there is no memory for a block of the work
    CONVARY_BAD_INDEX = 10      // an index names an image that x does not have
};

// Runs [begin, end) of the work; called from several threads with ranges that do not overlap.
typedef void (*convary_range_fn)(int64_t begin, int64_t end, void* context);
// torch_parallel_for of libtorch_cpu (torch/csrc/stable/c/shim.h): 0 when done.
typedef int32_t (*convary_parallel_for_fn)(int64_t begin, int64_t end, int64_t grain, convary_range_fn fn,
                                           void* context);

CONVARY_API int32_t convary_abi_version(void);

// The instruction set picked when the library was loaded ("baseline", "avx2", "avx512", "avx512_bf16", "neon"): the
// best this CPU has, or the one that the environment variable CONVARY_ISA names. NULL where that one is unknown or
// unsupported.
CONVARY_API const char* convary_cpu_isa(void);

// Comma-separated names of every instruction set that this library holds and this CPU can run, best first.
CONVARY_API const char* convary_isas(void);

// A sentence for a code above.
CONVARY_API const char* convary_error_text(int32_t code);

// Without one (or with NULL) operations run on the calling thread.
CONVARY_API void convary_set_parallel_for(convary_parallel_for_fn fn);

// out[b, n] = sum_k coeff[b, k] * bank[k, n];  bank (K, N), coeff (B, K), out (B, N); zeros where K is 0.
CONVARY_API int32_t convary_mix_kernels_f32(const float* bank, const float* coeff, float* out, int64_t K, int64_t N,
                                            int64_t B);

// The sizes of a convolution. A line (1-D) is a map one row high.
typedef struct {
    int64_t B, C, H, W;  // x (B, C, H, W)
    int64_t O, K, G;     // bank (K, O, C / G, kernel_h, kernel_w)
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int64_t filter_rows, channel_rows, tap_rows;  // 1: shared by the kernels; K: one row for each
    int64_t bias_rows;                            // 1: for all samples; B: one row for each
    int64_t channels_last;                        // 1: x, y and their gradients are (B, H, W, C), (B, H, W, O); else 0
    int64_t half;        // 1: x, y and their gradients are bf16, the upper halves of floats; 0: all numbers are floats
    int64_t half_bank;   // 1: the bank is; for gradients of the weights, only where half is 1. All else is floats
    int64_t threads;     // how many threads to cut the work for; y and the gradient of x do not depend on it
    int64_t bounded;     // 1: numbers of y below lower become lower, those above upper become upper; NaN stays
    float lower, upper;  // of y alone: gradients are those of a y that has no bounds
} convary_conv_sizes;

// y[b, o, p] = bias[b, o] + sum_c sum_t W[b, o, c, t] x[b, c, p * stride + t * dilation - pad]
// W[b, o, c, t] = sum_k kernel[b, k] filter[b, k, o] channel[b, k, c] tap[b, k, t] bank[k, o, c, t]
// kernel (B, K), filter (B, filter_rows, O), channel (B, channel_rows, C), tap (B, tap_rows, kernel_h * kernel_w) and
// bias (bias_rows, O) may be NULL: 1, or no bias.
// y (B, O, (H + 2 pad_h - dilation_h (kernel_h - 1) - 1) / stride_h + 1, likewise W). A sample's result does not depend
// on the others, bit for bit.
CONVARY_API int32_t convary_mixed_conv(const convary_conv_sizes* sizes, const void* x, const void* bank,
                                       const float* kernel, const float* filter, const float* channel, const float* tap,
                                       const float* bias, void* y);

// The gradient of x from that of y, bias aside; same sizes.
CONVARY_API int32_t convary_mixed_conv_grad_x(const convary_conv_sizes* sizes, const void* grad_y, const void* bank,
                                              const float* kernel, const float* filter, const float* channel,
                                              const float* tap, void* grad_x);

// How many parts the sums of convary_mixed_conv_grad_bank come in: blocks[0] of part_tap, blocks[1] of part_filter,
// blocks[2] of part_channel.
CONVARY_API int32_t convary_mixed_conv_grad_blocks(const convary_conv_sizes* sizes, int64_t* blocks);

// The gradient of the bank, and sums that the gradients of the coefficients are made of. With
// E[b, k, o, c, t] = (gradient of W)[b, o, c, t] * bank[k, o, c, t], each summed over the parts of the first axis:
//     part_tap (blocks[0], B, K, T)      sum over o, c of filter channel E
//     part_filter (blocks[1], B, R, O)   sum over c, t of channel tap E; depthwise: of tap E; may be NULL
//     part_channel (blocks[2], B, R, C)  sum over o, t of filter tap E; may be NULL, not written where depthwise
// R is K where the filter or the channel factor has K > 1 rows, and 1 where the kernels share them: those sums go over
// k too, of kernel times what is written there. Elsewhere the kernel factor is in no sum. Depthwise is C = O = G.
CONVARY_API int32_t convary_mixed_conv_grad_bank(const convary_conv_sizes* sizes, const void* x, const void* grad_y,
                                                 const void* bank, const float* kernel, const float* filter,
                                                 const float* channel, const float* tap, float* grad_bank,
                                                 float* part_tap, float* part_filter, float* part_channel);

// A convolution with kernels given per sample. In the sizes K counts the kernels, weight (K, O, C / G, kernel_h,
// kernel_w), and so the samples of y; the rows of factors are 1, those of the bias 1 or K, and channels_last is 0.
// y[n, o, p] = bias[n, o] + sum_c sum_t weight[n, o, c, t] x[index[n], c, p * stride + t * dilation - pad]
// y (K, O, ...) as above. index (K,) may be NULL: n, and K is B then. Else every number is in [0, B).
CONVARY_API int32_t convary_sample_conv(const convary_conv_sizes* sizes, const void* x, const void* weight,
                                        const float* bias, const int64_t* index, void* y);

// The gradient of x (B, C, H, W): of the samples of one image, added up in their order; 0 where an image has none.
CONVARY_API int32_t convary_sample_conv_grad_x(const convary_conv_sizes* sizes, const void* grad_y, const void* weight,
                                               const int64_t* index, void* grad_x);

// The gradient of weight (K, O, C / G, kernel_h, kernel_w).
CONVARY_API int32_t convary_sample_conv_grad_weight(const convary_conv_sizes* sizes, const void* x, const void* grad_y,
                                                    const int64_t* index, float* grad_weight);

// A router in inference: pooling, at most one hidden layer, a last layer, activations.
typedef struct {
    int64_t B, C, P;      // x (B, C, P): P positions, at least one
    int64_t hidden;       // 0: no hidden layer
    int64_t pieces[4];    // the outputs of the last layer, N, fall into pieces of these lengths; 0: no piece
    int64_t gates;        // this many pieces come first, with a sigmoid
    int64_t rest;         // the activation of each of the others: 0 none, 1 sigmoid, 2 softmax
    int64_t half;         // 1: x is bf16; 0: float
    int64_t half_layers;  // 1: so are the layers, but for the temperature; only where half is
    float epsilon;        // of the normalisation
} convary_route_sizes;

// v = mean of x over P;  h = relu(norm(squeeze v + squeeze_bias)), or v where hidden is 0
// z = (head h + head_bias) / temperature, and out is, piece by piece, the activations of that piece of z: (B, length),
// one piece behind the other.
// norm(z) = (z - mean) / sqrt(variance + epsilon) * gain + shift, each (hidden), all NULL for none.
// squeeze (hidden, C), head (N, hidden or C); the biases and temperature (one number) may be NULL.
// pooled (B, C) is written on the way.
CONVARY_API int32_t convary_route(const convary_route_sizes* sizes, const void* x, const void* squeeze,
                                  const void* squeeze_bias, const void* mean, const void* variance, const void* gain,
                                  const void* shift, const void* head, const void* head_bias, const float* temperature,
                                  float* pooled, float* out);

// The sizes of a convolution with a kernel per position. A line (1-D) is a map one row high.
typedef struct {
    int64_t B, C, H, W;  // x (B, C, H, W)
    int64_t G;           // weight (B, G, kernel_h * kernel_w, out_h, out_w)
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int64_t scale_h, scale_w;  // outputs that a window serves
    int64_t border;       // outside x: 0 zeros, 1 replicate, 2 reflect, 3 circular, 4 clamp: windows are moved inside
    int64_t interleaved;  // 0: channel c is of group c / (C / G); 1: of group c % G
    int64_t threads;      // how many threads to cut the work for; no result depends on it
} convary_pixel_sizes;

// y[b, c, p] = sum_t weight[b, group of c, t, p] x[b, c, p / scale * stride + t * dilation - pad]
// y (B, C, out_h, out_w), out_h = scale_h * ((H + 2 pad_h - dilation_h (kernel_h - 1) - 1) / stride_h + 1), likewise
// out_w. Borders reflect and circular want pad < H and pad <= H, clamp a window inside x. A sample's result does not
// depend on the others, bit for bit.
CONVARY_API int32_t convary_pixel_conv_f32(const convary_pixel_sizes* sizes, const float* x, const float* weight,
                                           float* y);

// The gradients of x and of weight; same sizes.
CONVARY_API int32_t convary_pixel_conv_grad_x_f32(const convary_pixel_sizes* sizes, const float* grad_y,
                                                  const float* weight, float* grad_x);
CONVARY_API int32_t convary_pixel_conv_grad_weight_f32(const convary_pixel_sizes* sizes, const float* x,
                                                       const float* grad_y, float* grad_weight);

#ifdef __cplusplus
}
#endif

#endif
