// SPDX-License-Identifier: Apache-2.0
// What surrounds the inner product: inputs packed with their zero padding, results turned back into maps.
#include "conv_parts.h"

namespace convary::CONVARY_VARIANT {
namespace {

// The numbers at even places of two vectors in a row.
#if CONVARY_LANES == 16
inline vec even(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
#elif CONVARY_LANES == 8
inline vec even(vec a, vec b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
#else
inline vec even(vec a, vec b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6); }
#endif

// n words from the i-th on. Reads may go on to `last`, writes a vector past n.
template <bool pairs, typename X>
void copy_words(float* to, Words<pairs, X> from, int64_t i, int64_t n, const void* last) {
    if constexpr (sizeof(X) == 4) return copy(to, from.first + i, n);
    int64_t done = 0;
    for (; done < n && from.furthest() + i + done + lanes <= last; done += lanes)
        store(to + done, from.load_from(i + done));
    for (; done < n; ++done) to[done] = from.one(i + done);
}

// to[i] = from[first + i * stride] where that lies in [0, size), else 0. Reads may go on to `last`, writes a vector
// past n.
template <bool pairs, typename X>
void pack_row(Words<pairs, X> from, const void* last, int64_t size, int64_t first, int64_t stride, int64_t n,
              float* to) {
    if (stride == 1) {  // without the divisions below: rows may be a few numbers long
        const int64_t begin = least(n, most(0, -first)), end = most(begin, least(n, size - first));
        clear(to, begin);
        copy_words(to + begin, from, first + begin, end - begin, last);
        clear(to + end, n - end);
        return;
    }
    const int64_t begin = first < 0 ? least(n, (-first + stride - 1) / stride) : 0;
    const int64_t end = first < size ? most(begin, least(n, (size - first + stride - 1) / stride)) : begin;
    clear(to, begin);
    int64_t i = begin;
    if (stride == 2) {
        for (; i < end && from.furthest() + first + 2 * (i + lanes) <= last; i += lanes) {
            const int64_t at = first + 2 * i;
            store(to + i, even(from.load_from(at), from.load_from(at + lanes)));
        }
    }
    for (; i < end; ++i) to[i] = from.one(first + i * stride);
    clear(to + end, n - end);
}

// Up to a vector of positions of up to a vector of channels.
template <typename X>
inline void store_square(const float* acc, int64_t width, int64_t positions, int64_t count, vec scale, vec shift,
                         const Range& range, X* maps, int64_t map_step, bool past) {
    vec rows[lanes];
#pragma GCC unroll 16
    for (int64_t p = 0; p < lanes; ++p) rows[p] = within(range, load(acc + p * width) * scale + shift);
    transpose(rows);
    if (past && positions == lanes && count == lanes) {
#pragma GCC unroll 16
        for (int64_t n = 0; n < lanes; ++n) stream(maps + n * map_step, rows[n]);
        return;
    }
    if (positions == lanes && count == lanes) {
#pragma GCC unroll 16
        for (int64_t n = 0; n < lanes; ++n) store(maps + n * map_step, rows[n]);
        return;
    }
    alignas(vector_bytes) float square[lanes * lanes];
    for (int64_t n = 0; n < lanes; ++n) store(square + n * lanes, rows[n]);
    for (int64_t n = 0; n < count; ++n) copy(maps + n * map_step, square + n * lanes, positions);
}

// `words` words of one position, and zeros up to `width`; writes may go a vector past that. The second numbers of pairs
// are as many further on.
template <bool pairs, typename X>
inline void pack_pixel(const X* from, int64_t channels, int64_t words, int64_t width, const void* last, float* to) {
    if constexpr (sizeof(X) == 4) {
        const bool vectors = channels <= lanes && width >= lanes;
        if (vectors && from + lanes <= last) return store(to, keep(load(from), channels));
        if (vectors) store(to, vec{});
        return copy(to, from, channels);
    }
    const Words<pairs, X> all = {from, pairs ? from + words : nullptr};
    const int64_t seconds = channels - words;  // the last word of an odd number of channels has none
    for (int64_t c = 0; c < width; c += lanes) {
        if (all.furthest() + c + lanes <= last) {
            const vec numbers = all.load_from(c);
            store(to + c, pairs ? keep_seconds(numbers, seconds - c) : keep(numbers, words - c));
        } else {
            for (int64_t i = c; i < least(c + lanes, width); ++i) {
                to[i] = i >= words ? 0.0f : i < seconds || !pairs ? all.one(i) : Words<pairs, X>{from, nullptr}.one(i);
            }
        }
    }
}

}  // namespace

template <bool pairs, typename X>
void pack_pixels(const Conv& conv, const Window& window, const X* first, int64_t channels, int64_t half, int64_t width,
                 float* packed) {
    const int64_t left = window.column * conv.w.stride - conv.w.pad, top = window.row * conv.h.stride - conv.h.pad;
    const int64_t begin = least(window.pitch, most(0, -left)), end = most(begin, least(window.pitch, conv.w.in - left));
    const int64_t words = pairs ? half : channels;
    for (int64_t i = 0; i < window.packed_rows; ++i, packed += window.pitch * width) {
        if (top + i < 0 || top + i >= conv.h.in) {
            clear(packed, window.pitch * width);
            continue;
        }
        const X* from = first + ((top + i) * conv.w.in + left) * conv.C;
        clear(packed, begin * width);
        for (int64_t j = begin; j < end; ++j)
            pack_pixel<pairs>(from + j * conv.C, channels, words, width, conv.x_end, packed + j * width);
        clear(packed + end * width, (window.pitch - end) * width);
    }
}

template <typename X>
void store_pixels(const Conv& conv, const Window& window, const float* acc, int64_t width, int64_t count,
                  const float* scale, const float* shift, X* y) {
    for (int64_t i = 0; i < window.rows; ++i) {
        for (int64_t j = 0; j < window.columns; ++j, acc += width) {
            X* to = y + i * conv.y_row + j * conv.y_column;
            for (int64_t n = 0; n < count; n += lanes) {
                const vec numbers = within(conv.range, load(acc + n) * load(scale + n) + load(shift + n));
                if (n + lanes <= count) {
                    store(to + n, numbers);
                } else {
                    alignas(vector_bytes) float edge[lanes];
                    store(edge, numbers);
                    copy(to + n, edge, count - n);
                }
            }
        }
    }
}

template <bool pairs, typename X>
void pack_plane(const Conv& conv, const Window& window, Words<pairs, X> maps, float* packed) {
    const Axis &h = conv.h, &w = conv.w;
    for (int64_t i = 0; i < h.phases(); ++i) {
        for (int64_t j = 0; j < w.phases(); ++j) {
            const int64_t first = window.column * w.stride + w.residue(j) - w.pad;
            for (int64_t r = 0; r < window.packed_rows; ++r, packed += window.pitch) {
                const int64_t row = (window.row + r) * h.stride + h.residue(i) - h.pad;
                if (row < 0 || row >= h.in) {
                    clear(packed, window.pitch);
                    continue;
                }
                const Words<pairs, X> line = {maps.first + row * w.in,
                                              maps.second == nullptr ? nullptr : maps.second + row * w.in};
                pack_row(line, conv.x_end, w.in, first, w.stride, window.pitch, packed);
            }
        }
    }
    if (w.stride == 2 || sizeof(X) == 2) store(packed, vec{});  // whatever was written there belongs to nobody
}

template <typename X>
void store_maps(const float* acc, int64_t width, int64_t positions, int64_t count, const float* scale,
                const float* shift, const Range& range, X* maps, int64_t map_step, bool past) {
    past = past && reinterpret_cast<uintptr_t>(maps) % vector_bytes == 0 && map_step % lanes == 0;
    for (int64_t n = 0; n < count; n += lanes) {
        const vec scales = load(scale + n), shifts = load(shift + n);
        const int64_t channels = least(lanes, count - n);
        for (int64_t p = 0; p < positions; p += lanes) {
            // The last square of a long row reaches back instead of over the edge.
            const int64_t from = positions >= lanes ? least(p, positions - lanes) : p;
            store_square(acc + from * width + n, width, least(lanes, positions - from), channels, scales, shifts, range,
                         maps + n * map_step + from, map_step, past && from % lanes == 0);
        }
    }
}

#define CONVARY_PACK(pairs, X)                                                                                         \
    template void pack_plane(const Conv&, const Window&, Words<pairs, X>, float*);                                     \
    template void pack_pixels<pairs>(const Conv&, const Window&, const X*, int64_t, int64_t, int64_t, float*);
CONVARY_PACK(false, float)
CONVARY_PACK(false, bf16)
#if defined(__AVX512BF16__)
CONVARY_PACK(true, bf16)
#endif
#undef CONVARY_PACK

#define CONVARY_STORE(X)                                                                                               \
    template void store_pixels(const Conv&, const Window&, const float*, int64_t, int64_t, const float*, const float*, \
                               X*);                                                                                    \
    template void store_maps(const float*, int64_t, int64_t, int64_t, const float*, const float*, const Range&, X*,    \
                             int64_t, bool);
CONVARY_STORE(float)
CONVARY_STORE(bf16)
#undef CONVARY_STORE

}  // namespace convary::CONVARY_VARIANT
