// SPDX-License-Identifier: Apache-2.0
// This instruction set's row of the dispatch table.
#include "../kernels.h"

#define CONVARY_TEXT_(x) #x
#define CONVARY_TEXT(x) CONVARY_TEXT_(x)

namespace convary::CONVARY_VARIANT {

extern const Kernels table;
const Kernels table = {CONVARY_TEXT(CONVARY_VARIANT), CONVARY_LANES,
#define CONVARY_ENTRY(name, result, parameters) name,
                       CONVARY_KERNELS(CONVARY_ENTRY)
#undef CONVARY_ENTRY
};

}  // namespace convary::CONVARY_VARIANT
