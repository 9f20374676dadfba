// SPDX-License-Identifier: Apache-2.0
// What the convolution kernels of one instruction set share.
#ifndef CONVARY_CONV_PARTS_H
#define CONVARY_CONV_PARTS_H

#include "../conv.h"
#include "../vec.h"

namespace convary::CONVARY_VARIANT {

// Positions of a tile: two vectors of output channels times this many accumulators, and room for the operands.
#if CONVARY_LANES == 16 || defined(__aarch64__)
constexpr int64_t tile_positions = 14;  // of 32 registers
#else
constexpr int64_t tile_positions = 6;  // of 16 registers
#endif

// n floats; short rows are the common case, and a call of memcpy would cost more than they do.
inline void copy(float* to, const float* from, int64_t n) {
    typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
    if (n >= lanes) {
        for (int64_t i = 0; i + lanes <= n; i += lanes) store(to + i, load(from + i));
        store(to + n - lanes, load(from + n - lanes));
    } else if (n >= 4) {
        const four last = *reinterpret_cast<const four*>(from + n - 4);
        for (int64_t i = 0; i + 4 <= n; i += 4) {
            *reinterpret_cast<four*>(to + i) = *reinterpret_cast<const four*>(from + i);
        }
        *reinterpret_cast<four*>(to + n - 4) = last;
    } else {
        for (int64_t i = 0; i < n; ++i) to[i] = from[i];
    }
}

// The same of numbers of 16 bits, rounded.
inline void copy(bf16* to, const float* from, int64_t n) {
    if (n >= lanes) {
        for (int64_t i = 0; i + lanes <= n; i += lanes) store(to + i, load(from + i));
        store(to + n - lanes, load(from + n - lanes));
        return;
    }
    alignas(vector_bytes) float numbers[lanes] = {};
    bf16 rounded[lanes];
    for (int64_t i = 0; i < n; ++i) numbers[i] = from[i];
    store(rounded, load(numbers));
    for (int64_t i = 0; i < n; ++i) to[i] = rounded[i];
}

inline void clear(float* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = 0.0f;
}

inline vec broadcast(float value) { return value - vec{}; }

// Numbers outside become its ends; NaN stays.
inline vec within(const Range& range, vec v) {
    v = v < range.lower ? broadcast(range.lower) : v;
    return v > range.upper ? broadcast(range.upper) : v;
}

typedef int32_t whole __attribute__((vector_size(vector_bytes)));

inline whole before(int64_t count) {  // -1 in the first `count` lanes
    whole index;
    for (int32_t i = 0; i < lanes; ++i) index[i] = i;
    return index < static_cast<int32_t>(count);
}

// The first `count` numbers, and zeros.
inline vec keep(vec v, int64_t count) { return reinterpret_cast<vec>(reinterpret_cast<whole>(v) & before(count)); }

// Pairs, of which only the first `count` have a second number.
inline vec keep_seconds(vec v, int64_t count) {
    return reinterpret_cast<vec>(reinterpret_cast<whole>(v) & (before(count) | 0xffff));
}

// The two halves of rows a and b interleaved: a0 b0 a1 b1 ...
#if CONVARY_LANES == 16
inline vec zip_low(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline vec zip_high(vec a, vec b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif CONVARY_LANES == 8
inline vec zip_low(vec a, vec b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline vec zip_high(vec a, vec b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
inline vec zip_low(vec a, vec b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
inline vec zip_high(vec a, vec b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#endif

// A square of lanes x lanes, rows to columns: log2(lanes) rounds of interleaving row i with row i + lanes / 2.
inline void transpose(vec (&rows)[lanes]) {
    vec next[lanes];
#pragma GCC unroll 4
    for (int64_t round = 1; round < lanes; round *= 2) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes / 2; ++i) {
            next[2 * i] = zip_low(rows[i], rows[i + lanes / 2]);
            next[2 * i + 1] = zip_high(rows[i], rows[i + lanes / 2]);
        }
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) rows[i] = next[i];
    }
}

// A block of output positions of one sample and how its inputs are packed: [channel][phases][rows][pitch].
struct Window {
    int64_t row, rows, column, columns;  // outputs
    int64_t packed_rows, pitch, plane;   // of one phase, of one row, of one channel

    Window(const Conv& conv, int64_t row, int64_t rows, int64_t column, int64_t columns)
        : row(row), rows(rows), column(column), columns(columns), packed_rows(rows + conv.h.reach()),
          pitch(columns + conv.w.reach()), plane(conv.h.phases() * conv.w.phases() * packed_rows * pitch) {
        if (!conv.channels_last) return;  // channels innermost: positions as they lie, [rows][pitch][channel]
        packed_rows = (rows - 1) * conv.h.stride + (conv.h.taps - 1) * conv.h.dilation + 1;
        pitch = (columns - 1) * conv.w.stride + (conv.w.taps - 1) * conv.w.dilation + 1;
        plane = packed_rows * pitch;
    }

    // Where tap (i, j) of output (0, 0) lies in a packed channel.
    int64_t offset(const Conv& conv, int64_t i, int64_t j) const {
        if (conv.channels_last) return i * conv.h.dilation * pitch + j * conv.w.dilation;
        const int64_t run = conv.h.phase(i) * conv.w.phases() + conv.w.phase(j);
        return (run * packed_rows + conv.h.shift(i)) * pitch + conv.w.shift(j);
    }
};

// Numbers of either type, widened. Reads may go on to `end`; up to a vector of zeros is written behind the n numbers.
inline void copy(float* to, const bf16* from, int64_t n, const void* end) {
    int64_t i = 0;
    for (; i < n && from + i + lanes <= end; i += lanes) store(to + i, keep(load(from + i), n - i));
    for (; i < n; ++i) to[i] = widen(from[i]);
}
inline void copy(float* to, const float* from, int64_t n, const void*) { copy(to, from, n); }

// What a packed word is: a number, or, where the instruction set multiplies pairs of bf16, the numbers of two channels.
template <typename X>
constexpr bool in_pairs = has_pairs && sizeof(X) == 2;

// Words of an input: of channel `first` alone, or paired with `second`, which may be null: zeros.
template <bool pairs, typename X>
struct Words {
    const X *first, *second;

    const X* furthest() const { return pairs && second != nullptr ? second : first; }
    vec load_from(int64_t i) const {
        if constexpr (!pairs)
            return load(first + i);
        else {
            const bits low = load_bits(first + i);
            return reinterpret_cast<vec>(second == nullptr ? low : low | load_bits(second + i) << 16);
        }
    }
    float one(int64_t i) const {
        if constexpr (!pairs)
            return widen(first[i]);
        else
            return word(first[i], second == nullptr ? bf16{0} : second[i]);
    }
};

// Packs the inputs of a window out of one channel's map (H, W), or out of two, zeros where it reaches past the edge.
// Up to a vector behind the last packed word is written.
template <bool pairs, typename X>
void pack_plane(const Conv& conv, const Window& window, Words<pairs, X> maps, float* packed);

// The same where channels are innermost: the words of `channels` numbers of each position, from the image's `first`;
// channel i is paired with i + half. A position has `width` words in `packed`; zeros fill a vector.
template <bool pairs, typename X>
void pack_pixels(const Conv& conv, const Window& window, const X* first, int64_t channels, int64_t half, int64_t width,
                 float* packed);

// y[n] of each position = acc[position, n] * scale[n] + shift[n], within the range of y, for n in [0, count); y has its
// channels innermost.
template <typename X>
void store_pixels(const Conv& conv, const Window& window, const float* acc, int64_t width, int64_t count,
                  const float* scale, const float* shift, X* y);

// n numbers brought into the cache, to be read or written soon.
enum { read, write };
template <int use, typename X>
inline void fetch(const X* at, int64_t n) {
    for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(X))) __builtin_prefetch(at + i, use, 3);
}

// Memory that will be read next: K groups of `rows` rows of `length` numbers. Fetched into the level-2 cache a line at
// a time while a product keeps the arithmetic busy, so that a bank larger than the caches costs its bandwidth, not its
// latency on top of the arithmetic.
struct Ahead {
    const char *at, *end;  // of the row being fetched
    int64_t step, rate;    // bytes from one fetch to the next, 0 when nothing is left; fetches per step of a depth
    const char* first;
    int64_t K, k_step, rows, row_step, length, k, row;  // steps and length in bytes

    // Nothing to fetch: the same place again and again.
    explicit Ahead(const void* anywhere)
        : at(static_cast<const char*>(anywhere)), end(at + 1), step(0), rate(1), first(at), K(0) {}

    // `steps` steps of some depth are ahead, to spread the fetches over.
    template <typename X>
    Ahead(const X* from, int64_t K, int64_t k_step, int64_t rows, int64_t row_step, int64_t length, int64_t steps)
        : at(reinterpret_cast<const char*>(from)), end(at + length * size<X>), step(line), rate(1), first(at), K(K),
          k_step(k_step * size<X>), rows(rows), row_step(row_step * size<X>), length(length * size<X>), k(0), row(0) {
        const int64_t lines = K * rows * ceil_div(this->length, line);
        while (rate < 4 && rate * steps < lines) ++rate;
    }

    void next_row() {
        if (++row == rows) row = 0, ++k;
        if (k >= K) {
            *this = Ahead(first);
            return;
        }
        at = first + k * k_step + row * row_step;
        end = at + length;
    }

    static constexpr int64_t line = 64;
    template <typename X>
    static constexpr int64_t size = sizeof(X);
};

// acc[p, n] (+)= sum_d weights[d, n] * x[offsets[d] + p] over a window's positions p, columns `step` and rows `pitch`
// floats apart in x, and the `width` numbers n, one or two vectors. acc is (rows * columns, width). A weight and an
// input may be a pair of numbers each: both products are added.
template <bool pairs>
void multiply(const float* weights, const int64_t* offsets, int64_t depth, const float* x, int64_t step, int64_t pitch,
              int64_t rows, int64_t columns, int64_t width, float* acc, bool add, Ahead* ahead);

// factors (K, channels, T) of the channels [c0, c0 + channels) of group g and the `T` taps of the bank that `taps`
// lists: what multiplies the bank's weight in sample b, without the filter factor.
void mixing_factors(const Conv& conv, int64_t b, int64_t g, int64_t c0, int64_t channels, const int64_t* taps,
                    int64_t T, float* factors);

// K rows of `count` sources each: source r of kernel k begins at rows + k * k_step + r * row_step. Reads may go on to
// `end`, past what is asked for.
template <typename W>
struct Rows {
    const W* rows;
    const void* end;
    int64_t K, k_step, row_step, count;
};

// Where the second number of a pair is: `rows` further on in the sources and `factors` in the factors. The first
// `depth` steps have one.
struct Second {
    int64_t rows, factors, depth;
};

// out[place[d] * out_step + r] = sum_k factors[k * factor_step + d] * filter[k * width + r] * source(k, r)[d] for d in
// [0, depth) where place[d] is not negative; place may be null: d. Zeros for r in [count, width). filter may be null.
// Up to a vector of factors behind the last are read. With pairs each sum is the first number of a word.
template <bool pairs, typename W>
void mix_transposed(const Rows<W>& rows, int64_t depth, const Second& second, const float* factors, int64_t factor_step,
                    const float* filter, int64_t width, const int64_t* place, float* out, int64_t out_step);

// The sources themselves, widened: out[d * out_step + r] = source(0, r)[d]. `ones` has `depth` and a vector of them.
template <typename W>
inline void turn(const Rows<W>& rows, int64_t depth, const float* ones, int64_t width, float* out, int64_t out_step) {
    mix_transposed<false>(rows, depth, {}, ones, 0, nullptr, width, nullptr, out, out_step);
}

// filter[k * lanes + r] = channel and filter factor of channel c + r in sample b of a depthwise convolution, 1 from
// count.
void channel_filter(const Conv& conv, int64_t b, int64_t c, int64_t count, float* filter);

// out[s, d, n] = sum_k factors[s, k, d] * filter[s][k, n] * packed[d, k, n]; filter may be null, and so is filter[s]'s
// row step then. With pairs d goes to `half`, and step d + half is the second of a word, as far as there is one.
template <bool pairs>
void mix_packed(const float* packed, int64_t K, int64_t depth, int64_t half, int64_t width, const float* factors,
                const float* filter, int64_t samples, float* out);

// maps[n * map_step + p] = acc[p, n] * scale[n] + shift[n], within `range`, for p in [0, positions) and n in [0,
// count), written whole, and past the cache where that is asked for and the maps lie on vectors. acc is (positions,
// width) of which `count` are used, and may be read up to a vector's rows further on; scale and shift have `width`
// numbers.
template <typename X>
void store_maps(const float* acc, int64_t width, int64_t positions, int64_t count, const float* scale,
                const float* shift, const Range& range, X* maps, int64_t map_step, bool past = false);

}  // namespace convary::CONVARY_VARIANT

#endif
