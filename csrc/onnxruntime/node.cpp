// SPDX-License-Identifier: Apache-2.0
#include "node.h"

#include <atomic>

namespace convary::ort {
namespace {

constexpr int64_t tasks_each = 4;  // for a thread, so that all end together
std::atomic<int64_t> seen{0};
thread_local bool counted = false;

struct Work {
    convary_range_fn fn;
    void* context;
    int64_t end, tasks;
};

void one_task(void* data, size_t task) {
    if (!counted) counted = true, seen.fetch_add(1, std::memory_order_relaxed);
    const Work& work = *static_cast<const Work*>(data);
    const int64_t i = static_cast<int64_t>(task);
    work.fn(work.end * i / work.tasks, work.end * (i + 1) / work.tasks, work.context);
}

}  // namespace

Tensor Run::input(size_t i) {
    Tensor tensor;
    const Value* value = nullptr;
    size_t inputs = 0;
    if (failed == nullptr) failed = api.call(get_input_count, static_cast<const Context*>(context), &inputs);
    if (failed != nullptr || i >= inputs) return tensor;
    failed = api.call(get_input, static_cast<const Context*>(context), i, &value);
    if (failed != nullptr || value == nullptr) return tensor;
    Shape* shape = nullptr;
    failed = api.call(get_tensor_type_and_shape, value, &shape);
    if (failed != nullptr) return tensor;
    failed = api.call(get_element_type, static_cast<const Shape*>(shape), &tensor.type);
    if (failed == nullptr) failed = api.call(get_dimensions_count, static_cast<const Shape*>(shape), &tensor.rank);
    if (failed == nullptr && tensor.rank > most_axes)
        fail("a tensor has more axes than any of convary's operators takes");
    if (failed == nullptr) {
        failed = api.call(get_dimensions, static_cast<const Shape*>(shape), &tensor.size[0], tensor.rank);
    }
    api.release(shape);
    void* data = nullptr;
    if (failed == nullptr) failed = api.call(get_tensor_mutable_data, const_cast<Value*>(value), &data);
    if (failed == nullptr) tensor.data = data;
    return tensor;
}

float* Run::output(size_t i, const int64_t* sizes, size_t rank) {
    Value* value = nullptr;
    void* data = nullptr;
    if (failed == nullptr) failed = api.call(get_output, context, i, sizes, rank, &value);
    if (failed == nullptr && value != nullptr) failed = api.call(get_tensor_mutable_data, value, &data);
    return static_cast<float*>(data);
}

bool read_axes(const Api& api, const Info* info, const char* name, int64_t missing, int64_t (&axes)[2], size_t* rank) {
    size_t count = 0;
    Status* failed = api.call(get_attribute_ints, info, name, static_cast<int64_t*>(nullptr), &count);
    if (failed != nullptr || count < 1 || count > 2) return api.release(failed), false;
    int64_t* const first = axes + (2 - count);
    axes[0] = missing;
    failed = api.call(get_attribute_ints, info, name, first, &count);
    *rank = count;
    return failed == nullptr || (api.release(failed), false);
}

bool read_number(const Api& api, const Info* info, const char* name, float missing, float* number) {
    Status* failed = api.call(get_attribute_float, info, name, number);
    if (failed == nullptr) return true;
    *number = missing;
    return api.release(failed), false;
}

Threads::Threads(const Api& api, Context* context) : Pool{run}, api(api), context(context), before(pool) {
    pool = this;
}

Threads::~Threads() { pool = before; }

int64_t Threads::count() { return most(1, seen.load(std::memory_order_relaxed)); }

int32_t Threads::run(const Pool& pool, int64_t end, int64_t grain, convary_range_fn fn, void* context) {
    const Threads& self = static_cast<const Threads&>(pool);
    Work work = {fn, context, end, least(ceil_div(end, most(grain, 1)), most(8, tasks_each * count()))};
    Status* failed = self.api.call(parallel_for, static_cast<const Context*>(self.context), &one_task,
                                   static_cast<size_t>(work.tasks), size_t{0}, static_cast<void*>(&work));
    return failed == nullptr ? CONVARY_OK : (self.api.release(failed), CONVARY_THREADS);
}

}  // namespace convary::ort
