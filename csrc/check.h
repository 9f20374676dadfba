// SPDX-License-Identifier: Apache-2.0
// What the entries of the C ABI share: checks of sizes and pointers, and threads.
#ifndef CONVARY_CHECK_H
#define CONVARY_CHECK_H

#include <stdint.h>

#include <atomic>

#include "convary.h"
#include "math.h"

namespace convary {

constexpr int64_t most_size = INT32_MAX;  // of any one size: products of two then fit 64 bits

// A dense tensor as the ABI sees it: where it starts and ends.
struct Extent {
    const void* data;
    int64_t count, bytes;

    const void* end() const { return static_cast<const char*>(data) + bytes; }
};

// count = a * b elements of `size` bytes; CONVARY_OK, CONVARY_NEGATIVE_SIZE or CONVARY_SIZE_OVERFLOW.
inline int32_t extent(const void* data, int64_t a, int64_t b, Extent* result, int64_t size = 4) {
    if (a < 0 || b < 0) return CONVARY_NEGATIVE_SIZE;
    if (__builtin_mul_overflow(a, b, &result->count) || __builtin_mul_overflow(result->count, size, &result->bytes) ||
        result->bytes > INTPTR_MAX) {
        return CONVARY_SIZE_OVERFLOW;
    }
    result->data = data;
    if (result->bytes == 0) return CONVARY_OK;
    if (data == nullptr) return CONVARY_NULL_POINTER;
    const uintptr_t address = reinterpret_cast<uintptr_t>(data);
    if (address % static_cast<uintptr_t>(size) != 0) return CONVARY_MISALIGNED;
    uintptr_t end = 0;
    return __builtin_add_overflow(address, static_cast<uintptr_t>(result->bytes), &end) ? CONVARY_SIZE_OVERFLOW
                                                                                        : CONVARY_OK;
}

inline bool overlap(const Extent& a, const Extent& b) {
    if (a.count == 0 || b.count == 0) return false;
    const uintptr_t a0 = reinterpret_cast<uintptr_t>(a.data), b0 = reinterpret_cast<uintptr_t>(b.data);
    return a0 < b0 + static_cast<uintptr_t>(b.bytes) && b0 < a0 + static_cast<uintptr_t>(a.bytes);
}

// Asks for huge pages under an output that is about to be written for the first time. Outputs of 32 MiB and more come
// straight from mmap, and filling them page by page costs more than computing them (measured: 147 ms against 25 for
// 302 MB). Only advice: nothing changes where the system does not take it.
void expect_fresh(const Extent& out);

// Memory of the calling thread, on a cache line, kept until a larger piece is asked for or the thread ends; nullptr
// where there is none. What it holds is whatever the last user left.
float* thread_scratch(int64_t floats);

// Threads that come with a call, as those of a runtime do, in place of the caller's usual ones; null for these.
struct Pool {
    int32_t (*run)(const Pool& pool, int64_t end, int64_t grain, convary_range_fn fn, void* context);
};
extern thread_local const Pool* pool;

// Runs fn over [0, end) on the caller's threads, at least `grain` items each. CONVARY_OK or CONVARY_THREADS.
int32_t parallel_for(int64_t end, int64_t grain, convary_range_fn fn, void* context);

constexpr double grain_products = 1 << 16;  // multiply-adds that are worth another thread

// Items that are worth another thread, where all of them together make `products` multiply-adds.
inline int64_t grain_of(int64_t items, double products) {
    const double grain = grain_products * static_cast<double>(items) / products;
    if (!(grain > 1.0)) return 1;
    return grain < static_cast<double>(items) ? static_cast<int64_t>(grain) + 1 : most(items, 1);
}

// one(item, scratch) for every item, at least `grain` of them to a thread, with `floats` of scratch memory.
// CONVARY_OK, CONVARY_THREADS or CONVARY_NO_MEMORY.
template <typename One>
int32_t run_items(int64_t items, int64_t grain, int64_t floats, const One& one) {
    struct Loop {
        const One& one;
        int64_t floats;
        std::atomic<bool> no_memory;
    } loop{one, floats, {false}};
    const auto range = [](int64_t begin, int64_t end, void* context) {
        Loop& loop = *static_cast<Loop*>(context);
        float* scratch = thread_scratch(loop.floats);
        if (scratch == nullptr && loop.floats > 0) {
            loop.no_memory.store(true, std::memory_order_relaxed);
            return;
        }
        for (int64_t i = begin; i < end; ++i) loop.one(i, scratch);
    };
    const int32_t code = parallel_for(items, grain, range, &loop);
    return code == CONVARY_OK && loop.no_memory.load() ? CONVARY_NO_MEMORY : code;
}

}  // namespace convary

#endif
