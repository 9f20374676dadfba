// SPDX-License-Identifier: Apache-2.0
// What is used of onnxruntime's C interface. Nothing is linked: the runtime hands over a table of functions, whose
// places never change, and asks for the operators by a table of ours. Both are declared here, as they are from
// version 1.17 on.
#ifndef CONVARY_ONNXRUNTIME_API_H
#define CONVARY_ONNXRUNTIME_API_H

#include <stddef.h>
#include <stdint.h>

namespace convary::ort {

constexpr uint32_t least_version = 17;  // of the runtime, 1.17: it shares its threads with operators

struct Status;  // of a call: null is well
struct Options;
struct Domain;
struct Info;     // of a node: its attributes
struct Context;  // of one run of a node
struct Value;
struct Shape;

struct Base {
    const void* const* (*table)(uint32_t version);  // null where the runtime is older
};

// Places in the table.
enum Place {
    create_status = 0,
    create_custom_op_domain = 26,
    custom_op_domain_add = 27,
    add_custom_op_domain = 28,
    get_tensor_mutable_data = 51,
    get_element_type = 60,
    get_dimensions_count = 61,
    get_dimensions = 62,
    get_tensor_type_and_shape = 65,
    get_attribute_float = 85,
    get_attribute_int = 86,
    get_input_count = 88,
    get_input = 90,
    get_output = 91,
    release_status = 93,
    release_shape = 99,
    get_attribute_ints = 163,
    parallel_for = 274,
};

class Api {
public:
    explicit Api(const void* const* table) : table(table) {}

    template <typename... Arguments>
    Status* call(Place place, Arguments... arguments) const {
        return at<Status*(Arguments...)>(place)(arguments...);
    }
    Status* error(const char* text) const { return call(create_status, int{1}, text); }
    void release(Status* status) const { at<void(Status*)>(release_status)(status); }
    void release(Shape* shape) const { at<void(Shape*)>(release_shape)(shape); }

private:
    template <typename Function>
    Function* at(Place place) const {
        return reinterpret_cast<Function*>(const_cast<void*>(table[place]));
    }

    const void* const* table;
};

constexpr int any_type = 0, float32 = 1, int64 = 7, bfloat16 = 16;  // types of elements
enum Presence : int { required, optional };                         // of an input or output

// An operator, as the runtime reads it. What comes later in its table is for versions that ask for more.
struct Operator {
    uint32_t version;
    void* (*create_kernel)(const Operator*, const void* const* table, const Info*);
    const char* (*name)(const Operator*);
    const char* (*provider)(const Operator*);  // null: the CPU
    int (*input_type)(const Operator*, size_t);
    size_t (*inputs)(const Operator*);
    int (*output_type)(const Operator*, size_t);
    size_t (*outputs)(const Operator*);
    void (*compute)(void* kernel, Context*);
    void (*destroy)(void* kernel);
    Presence (*input_presence)(const Operator*, size_t);
    Presence (*output_presence)(const Operator*, size_t);
    int (*input_memory)(const Operator*, size_t);  // 0: the operator's own
    int (*variadic[4])(const Operator*);           // not used
    Status* (*create)(const Operator*, const void* const* table, const Info*, void** kernel);
    Status* (*run)(void* kernel, Context*);
};

}  // namespace convary::ort

#endif
