// SPDX-License-Identifier: Apache-2.0
// What onnxruntime calls when this library is registered with a session's options.
#include "../convary.h"
#include "operators.h"

using namespace convary::ort;

extern "C" CONVARY_API Status* RegisterCustomOps(Options* options, const Base* base) {
    const void* const* table = base->table(least_version);
    if (table == nullptr) {
        return Api(base->table(1)).error("convary's operators want onnxruntime 1.17 or newer");
    }
    const Api api(table);
    // Sessions keep pointers to it, so it stays for as long as the library does.
    static Domain* domain = nullptr;
    static Status* const failed = [&] {
        Status* status = api.call(create_custom_op_domain, "convary", &domain);
        const Operator* const operators[] = {mixed_conv(), sample_conv(), pixel_conv(), route()};
        for (const Operator* op : operators) {
            if (status == nullptr) status = api.call(custom_op_domain_add, domain, op);
        }
        return status;
    }();
    return failed == nullptr ? api.call(add_custom_op_domain, options, domain)
                             : api.error("convary's operators could not be registered");
}
