// SPDX-License-Identifier: Apache-2.0
// From a struct with its attributes, read(api, info) and run(run) to an operator as the runtime reads it.
#ifndef CONVARY_ONNXRUNTIME_OPERATORS_H
#define CONVARY_ONNXRUNTIME_OPERATORS_H

#include <stdlib.h>
#include <string.h>

#include <new>

#include "node.h"

namespace convary::ort {

const Operator* mixed_conv();
const Operator* sample_conv();
const Operator* pixel_conv();
const Operator* route();

template <typename Node>
struct Kernel {
    Api api;
    Node node;

    static Status* create(const Operator*, const void* const* table, const Info* info, void** result) {
        const Api api(table);
        void* memory = malloc(sizeof(Kernel));
        if (memory == nullptr) return api.error(convary_error_text(CONVARY_NO_MEMORY));
        Kernel* kernel = new (memory) Kernel{api, {}};
        Status* failed = kernel->node.read(api, info);
        if (failed != nullptr) return free(memory), failed;
        *result = kernel;
        return nullptr;
    }
    static Status* run(void* data, Context* context) {
        const Kernel& kernel = *static_cast<const Kernel*>(data);
        const Threads threads(kernel.api, context);
        Run run(kernel.api, context);
        kernel.node.run(run);
        return run.failed;
    }
};

template <typename Node>
const Operator* operator_of() {
    // Older forms of create and run stay empty: versions from 16 on take the later ones.
    static const Operator result = {
        16,
        nullptr,
        [](const Operator*) { return Node::name; },
        [](const Operator*) -> const char* { return nullptr; },
        [](const Operator*, size_t i) { return Node::type(i); },
        [](const Operator*) { return Node::inputs; },
        [](const Operator*, size_t) { return float32; },
        [](const Operator*) { return Node::outputs; },
        nullptr,
        [](void* kernel) { free(kernel); },
        [](const Operator*, size_t i) { return i < Node::needed ? required : optional; },
        [](const Operator*, size_t i) { return i == 0 ? required : optional; },
        [](const Operator*, size_t) { return 0; },
        {},
        Kernel<Node>::create,
        Kernel<Node>::run,
    };
    return &result;
}

}  // namespace convary::ort

#endif
