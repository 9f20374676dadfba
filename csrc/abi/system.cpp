// SPDX-License-Identifier: Apache-2.0
#include "system.h"

#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <malloc.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../check.h"
#include "../conv.h"

#if defined(__GLIBC__)
// What runs the destructors of a thread's variables. libstdc++ has the same function, but with it comes the unwinder,
// which binds the library to a C library as new as the one it was built with; without, glibc 2.27 is enough.
extern "C" int __cxa_thread_atexit_impl(void (*)(void*), void*, void*);
extern "C" int __cxa_thread_atexit(void (*destructor)(void*), void* object, void* library) {
    return __cxa_thread_atexit_impl(destructor, object, library);
}
#endif

namespace convary {
namespace {

constexpr size_t line_bytes = 64;

#if defined(__x86_64__)
// Read from the processor itself: __builtin_cpu_supports calls compiler-rt, which clang-cl does not link.
struct Features {
    bool avx2 = false, avx512 = false, avx512_bf16 = false;

    Features() {
        constexpr unsigned basic = bit_OSXSAVE | bit_FMA;
        constexpr unsigned sets = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
        constexpr unsigned ymm = 0x06, zmm = 0xe6;  // the registers that the system keeps for each thread
        unsigned a = 0, b = 0, c = 0, d = 0, saved = 0, unused = 0;
        if (!__get_cpuid(1, &a, &b, &c, &d) || (c & basic) != basic) return;
        __asm__("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        avx2 = (saved & ymm) == ymm && (b & bit_AVX2) != 0;
        avx512 = avx2 && (saved & zmm) == zmm && (b & sets) == sets;
        constexpr unsigned bf16 = 1u << 5;
        avx512_bf16 = avx512 && a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bf16) != 0;
    }
};
#endif

}  // namespace

bool cpu_runs(const char* isa) {
#if defined(__x86_64__)
    const Features features;
    if (strcmp(isa, "avx512_bf16") == 0) return features.avx512_bf16;
    if (strcmp(isa, "avx512") == 0) return features.avx512;
    if (strcmp(isa, "avx2") == 0) return features.avx2;
#endif
    return strcmp(isa, "baseline") == 0 || strcmp(isa, "neon") == 0;
}

void* allocate_lines(size_t bytes) {
    const size_t whole = (bytes + line_bytes - 1) / line_bytes * line_bytes;
#if defined(_WIN32)
    return _aligned_malloc(whole, line_bytes);
#else
    return aligned_alloc(line_bytes, whole);
#endif
}

void free_lines(void* memory) {
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}

void expect_fresh(const Extent& out) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t huge = uintptr_t{2} << 20;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(out.data) + huge - 1) / huge * huge;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(out.data) + static_cast<uintptr_t>(out.bytes)) / huge * huge;
    if (out.bytes >= fresh_floats * 4) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)out;
#endif
}

}  // namespace convary
