// SPDX-License-Identifier: Apache-2.0
// The library itself: version, instruction set, threads, error texts.
#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "../check.h"
#include "../convary.h"
#include "../kernels.h"
#include "system.h"
#include "variants.h"

namespace convary {

// variants.h is CMake's list of what it compiled, best first: X(avx512) X(avx2) X(baseline).
#define CONVARY_ROW(isa)                                                                                               \
    namespace isa {                                                                                                    \
    extern const Kernels table;                                                                                        \
    }
CONVARY_VARIANTS(CONVARY_ROW)
#undef CONVARY_ROW

namespace {

// What this CPU can run of what was compiled, and the choice among it.
struct Choice {
    const Kernels* picked = nullptr;
    char names[64] = "";

    Choice() {
        const Kernels* rows[] = {
#define CONVARY_ROW(isa) &isa::table,
            CONVARY_VARIANTS(CONVARY_ROW)
#undef CONVARY_ROW
        };
        const char* forced = getenv("CONVARY_ISA");
        const bool free = forced == nullptr || forced[0] == '\0';
        for (const Kernels* row : rows) {
            if (!cpu_runs(row->isa)) continue;
            if (names[0] != '\0') strcat(names, ",");
            strcat(names, row->isa);
            if (picked == nullptr && (free || strcmp(forced, row->isa) == 0)) picked = row;
        }
    }
};

const Choice choice;
std::atomic<convary_parallel_for_fn> threads{nullptr};

// Released when its thread ends.
struct Memory {
    float* data = nullptr;
    int64_t floats = 0;
    ~Memory() { free_lines(data); }
};
thread_local Memory scratch;

}  // namespace

thread_local const Pool* pool = nullptr;

const Kernels* kernels() { return choice.picked; }

float* thread_scratch(int64_t floats) {
    if (floats > scratch.floats) {
        free_lines(scratch.data);
        scratch.data = static_cast<float*>(allocate_lines(static_cast<size_t>(floats) * 4));
        scratch.floats = scratch.data == nullptr ? 0 : floats;
    }
    return scratch.data;
}

int32_t parallel_for(int64_t end, int64_t grain, convary_range_fn fn, void* context) {
    const convary_parallel_for_fn run = threads.load(std::memory_order_acquire);
    if (end <= grain || (run == nullptr && pool == nullptr)) {
        if (end > 0) fn(0, end, context);
        return CONVARY_OK;
    }
    if (pool != nullptr) return pool->run(*pool, end, grain, fn, context);
    return run(0, end, grain, fn, context) == 0 ? CONVARY_OK : CONVARY_THREADS;
}

}  // namespace convary

int32_t convary_abi_version(void) { return CONVARY_ABI_VERSION; }

const char* convary_cpu_isa(void) { return convary::kernels() == nullptr ? nullptr : convary::kernels()->isa; }

const char* convary_isas(void) { return convary::choice.names; }

void convary_set_parallel_for(convary_parallel_for_fn fn) { convary::threads.store(fn, std::memory_order_release); }

const char* convary_error_text(int32_t code) {
    switch (code) {
        case CONVARY_OK: return "done";
        case CONVARY_NULL_POINTER: return "a pointer is null although its tensor has elements";
        case CONVARY_MISALIGNED: return "a pointer is not aligned to its element";
        case CONVARY_NEGATIVE_SIZE: return "a size is negative";
        case CONVARY_SIZE_OVERFLOW: return "a tensor is larger than the address space";
        case CONVARY_OVERLAP: return "the output overlaps an input";
        case CONVARY_NO_ISA: return "CONVARY_ISA names an instruction set that this library or CPU does not have";
        case CONVARY_THREADS: return "the parallel_for that was given to the library failed";
        case CONVARY_BAD_GEOMETRY: return "groups, kernel, stride, dilation or coefficient rows make no convolution";
        case CONVARY_NO_MEMORY: return "there is no memory for a block of the work";
        case CONVARY_BAD_INDEX: return "an index names an image that x does not have";
        default: return "unknown error code";
    }
}
