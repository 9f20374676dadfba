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

// to[i] = from[first + i * stride] where that lies in [0, size), else 0. Reads may go on to `last`, writes a vector
// past n.
void pack_row(const float* from, const float* last, int64_t size, int64_t first, int64_t stride, int64_t n, float* to) {
    if (stride == 1) {  // without the divisions below: rows may be a few numbers long
        const int64_t begin = least(n, most(0, -first)), end = most(begin, least(n, size - first));
        clear(to, begin);
        copy(to + begin, from + first + begin, end - begin);
        clear(to + end, n - end);
        return;
    }
    const int64_t begin = first < 0 ? least(n, (-first + stride - 1) / stride) : 0;
    const int64_t end = first < size ? most(begin, least(n, (size - first + stride - 1) / stride)) : begin;
    clear(to, begin);
    if (stride == 2) {
        int64_t i = begin;
        for (; i < end && from + first + 2 * (i + lanes) <= last; i += lanes) {
            const float* pair = from + first + 2 * i;
            store(to + i, even(load(pair), load(pair + lanes)));
        }
        for (; i < end; ++i) to[i] = from[first + i * 2];
    } else {
        for (int64_t i = begin; i < end; ++i) to[i] = from[first + i * stride];
    }
    clear(to + end, n - end);
}

// Up to a vector of positions of up to a vector of channels.
inline void store_square(const float* acc, int64_t width, int64_t positions, int64_t count, vec scale, vec shift,
                         float* maps, int64_t map_step, bool past) {
    vec rows[lanes];
#pragma GCC unroll 16
    for (int64_t p = 0; p < lanes; ++p) rows[p] = load(acc + p * width) * scale + shift;
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

}  // namespace

void pack_pixels(const Conv& conv, const Window& window, const float* first, int64_t channels, int64_t width,
                 float* packed) {
    const int64_t left = window.column * conv.w.stride - conv.w.pad, top = window.row * conv.h.stride - conv.h.pad;
    const int64_t begin = least(window.pitch, most(0, -left)), end = most(begin, least(window.pitch, conv.w.in - left));
    const bool vectors = channels <= lanes && width >= lanes;
    for (int64_t i = 0; i < window.packed_rows; ++i, packed += window.pitch * width) {
        if (top + i < 0 || top + i >= conv.h.in) {
            clear(packed, window.pitch * width);
            continue;
        }
        const float* from = first + ((top + i) * conv.w.in + left) * conv.C;
        clear(packed, begin * width);
        for (int64_t j = begin; j < end; ++j) {
            if (vectors && from + j * conv.C + lanes <= conv.x_end) {
                store(packed + j * width, keep(load(from + j * conv.C), channels));
            } else {
                if (vectors) store(packed + j * width, vec{});
                copy(packed + j * width, from + j * conv.C, channels);
            }
        }
        clear(packed + end * width, (window.pitch - end) * width);
    }
}

void store_pixels(const Conv& conv, const Window& window, const float* acc, int64_t width, int64_t count,
                  const float* scale, const float* shift, float* y) {
    for (int64_t i = 0; i < window.rows; ++i) {
        for (int64_t j = 0; j < window.columns; ++j, acc += width) {
            float* to = y + i * conv.y_row + j * conv.y_column;
            for (int64_t n = 0; n < count; n += lanes) {
                const vec numbers = load(acc + n) * load(scale + n) + load(shift + n);
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

void pack_plane(const Conv& conv, const Window& window, const float* map, float* packed) {
    const Axis &h = conv.h, &w = conv.w;
    for (int64_t i = 0; i < h.phases(); ++i) {
        for (int64_t j = 0; j < w.phases(); ++j) {
            const int64_t first = window.column * w.stride + w.residue(j) - w.pad;
            for (int64_t r = 0; r < window.packed_rows; ++r, packed += window.pitch) {
                const int64_t row = (window.row + r) * h.stride + h.residue(i) - h.pad;
                if (row < 0 || row >= h.in) {
                    clear(packed, window.pitch);
                } else {
                    pack_row(map + row * w.in, conv.x_end, w.in, first, w.stride, window.pitch, packed);
                }
            }
        }
    }
    if (w.stride == 2) store(packed, vec{});  // whatever was written there belongs to nobody
}

void store_maps(const float* acc, int64_t width, int64_t positions, int64_t count, const float* scale,
                const float* shift, float* maps, int64_t map_step, bool past) {
    past = past && reinterpret_cast<uintptr_t>(maps) % vector_bytes == 0 && map_step % lanes == 0;
    for (int64_t n = 0; n < count; n += lanes) {
        const vec scales = load(scale + n), shifts = load(shift + n);
        const int64_t channels = least(lanes, count - n);
        for (int64_t p = 0; p < positions; p += lanes) {
            // The last square of a long row reaches back instead of over the edge.
            const int64_t from = positions >= lanes ? least(p, positions - lanes) : p;
            store_square(acc + from * width + n, width, least(lanes, positions - from), channels, scales, shifts,
                         maps + n * map_step + from, map_step, past && from % lanes == 0);
        }
    }
}

}  // namespace convary::CONVARY_VARIANT
