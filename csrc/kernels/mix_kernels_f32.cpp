// SPDX-License-Identifier: Apache-2.0
// out[b, n] = sum_k coeff[b, k] * bank[k, n] over one tile: the bank's tile stays in cache while all samples are
// served.
#include "../kernels.h"
#include "../vec.h"

namespace convary::CONVARY_VARIANT {
namespace {

constexpr int64_t unroll = 8;  // accumulators: enough to hide the latency of a fused multiply-add on two ports

inline float mix_one(const float* bank, const float* coeff, int64_t K, int64_t N) {
    float sum = coeff[0] * bank[0];
    for (int64_t k = 1; k < K; ++k) sum += coeff[k] * bank[k * N];
    return sum;
}

// `count` vectors of one sample; `bank` points at the first column.
template <int64_t count, bool streamed>
inline void mix_vectors(const float* bank, const float* coeff, float* out, int64_t K, int64_t N) {
    vec sum[count];
    for (int64_t i = 0; i < count; ++i) sum[i] = coeff[0] * load(bank + i * lanes);
    for (int64_t k = 1; k < K; ++k) {
        const float* row = bank + k * N;
        for (int64_t i = 0; i < count; ++i) sum[i] += coeff[k] * load(row + i * lanes);
    }
    for (int64_t i = 0; i < count; ++i) {
        if (streamed) {
            stream(out + i * lanes, sum[i]);
        } else {
            store(out + i * lanes, sum[i]);
        }
    }
}

template <bool streamed>
void mix_row(const float* bank, const float* coeff, float* out, int64_t K, int64_t N, int64_t count) {
    int64_t n = 0;
    if (streamed) {  // up to the first aligned output
        const int64_t odd = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % vector_bytes) / 4;
        const int64_t head = odd == 0 ? 0 : lanes - odd;
        for (; n < head && n < count; ++n) out[n] = mix_one(bank + n, coeff, K, N);
    }
    for (; n + unroll * lanes <= count; n += unroll * lanes) {
        mix_vectors<unroll, streamed>(bank + n, coeff, out + n, K, N);
    }
    for (; n + lanes <= count; n += lanes) mix_vectors<1, streamed>(bank + n, coeff, out + n, K, N);
    for (; n < count; ++n) out[n] = mix_one(bank + n, coeff, K, N);
}

}  // namespace

void mix_kernels_f32(const MixTile& tile, int64_t b0, int64_t b1, int64_t n0, int64_t n1) {
    for (int64_t b = b0; b < b1; ++b) {
        const float* coeff = tile.coeff + b * tile.K;
        float* out = tile.out + b * tile.N + n0;
        if (tile.stream) {
            mix_row<true>(tile.bank + n0, coeff, out, tile.K, tile.N, n1 - n0);
        } else {
            mix_row<false>(tile.bank + n0, coeff, out, tile.K, tile.N, n1 - n0);
        }
    }
    if (tile.stream) stream_fence();
}

}  // namespace convary::CONVARY_VARIANT
