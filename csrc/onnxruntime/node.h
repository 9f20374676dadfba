// SPDX-License-Identifier: Apache-2.0
// A node of a file while it runs: its tensors, and the runtime's threads.
#ifndef CONVARY_ONNXRUNTIME_NODE_H
#define CONVARY_ONNXRUNTIME_NODE_H

#include "../check.h"
#include "api.h"

namespace convary::ort {

constexpr size_t most_axes = 8;

struct Tensor {
    const void* data = nullptr;  // null where an optional one is absent
    int type = float32;
    size_t rank = 0;
    int64_t size[most_axes] = {};

    const float* numbers() const { return static_cast<const float*>(data); }
    bool is(int64_t a, int64_t b) const { return rank == 2 && size[0] == a && size[1] == b; }
    bool is(int64_t a, int64_t b, int64_t c) const { return rank == 3 && size[0] == a && size[1] == b && size[2] == c; }
};

// One run. After the first thing that goes wrong nothing else is asked for, and `failed` says what it was.
class Run {
public:
    Run(const Api& api, Context* context) : api(api), context(context) {}

    Tensor input(size_t i);
    float* output(size_t i, const int64_t* sizes, size_t rank);
    void fail(const char* text) {
        if (failed == nullptr) failed = api.error(text);
    }
    void check(int32_t code) {
        if (code != CONVARY_OK) fail(convary_error_text(code));
    }

    Status* failed = nullptr;

private:
    const Api& api;
    Context* context;
};

// The whole numbers of an attribute, one for each spatial axis of a map; one axis is a map one row high. False where
// the node has another count of them.
bool read_axes(const Api& api, const Info* info, const char* name, int64_t missing, int64_t (&axes)[2], size_t* rank);

// A number that a node need not have. False where it is missing.
bool read_number(const Api& api, const Info* info, const char* name, float missing, float* number);

// The runtime's threads, for the calls of this thread while this lives.
class Threads : public Pool {
public:
    Threads(const Api& api, Context* context);
    ~Threads();
    // Threads that have been seen to work: the runtime does not say how many it has.
    static int64_t count();

private:
    static int32_t run(const Pool& pool, int64_t end, int64_t grain, convary_range_fn fn, void* work);
    const Api& api;
    Context* context;
    const Pool* before;  // of the thread, which may be waiting for work of another node
};

}  // namespace convary::ort

#endif
