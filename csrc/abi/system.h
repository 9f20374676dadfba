// SPDX-License-Identifier: Apache-2.0
// What differs between systems and processors.
#ifndef CONVARY_SYSTEM_H
#define CONVARY_SYSTEM_H

#include <stddef.h>

namespace convary {

// Whether this processor, as its system runs it, has an instruction set: "baseline", "avx2", "avx512" or "neon".
bool cpu_runs(const char* isa);

// Memory on a cache line, for `free_lines` to release; nullptr where there is none.
void* allocate_lines(size_t bytes);
void free_lines(void* memory);

}  // namespace convary

#endif
