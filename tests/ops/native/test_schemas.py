# SPDX-License-Identifier: Apache-2.0
"""Compiled code in caches and exported programs call operators by name: of a name, the schema never changes."""

import torch

import convary  # noqa: F401 -- declares the operators

CONV = "int[] stride, int[] padding, int[] dilation, int groups"
MIX = "Tensor bank, Tensor? kernel, Tensor? filter, Tensor? channel, Tensor? tap"
SAMPLE = "Tensor weight, Tensor? index"
PIXEL = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, str border, str group_order, int scale_factor"
ROUTER = (
    "Tensor? squeeze, Tensor? squeeze_bias, Tensor? mean, Tensor? variance, Tensor? gain, Tensor? shift, Tensor last, "
    "Tensor? last_bias, Tensor? temperature, float epsilon, int[] pieces, int gates, str rest"
)
SCHEMAS = {  # instead of changing a line, give the changed operator another name
    f"mixed_conv(Tensor x, {MIX}, Tensor? bias, {CONV}) -> Tensor",
    f"mixed_conv_forward(Tensor x, {MIX}, Tensor? bias, {CONV}) -> Tensor",
    f"mixed_conv_forward_last(Tensor x, {MIX}, Tensor? bias, {CONV}) -> Tensor",
    f"mixed_conv_grad_x(Tensor grad, SymInt[] size, {MIX}, {CONV}) -> Tensor",
    f"mixed_conv_grad_bank(Tensor grad, Tensor x, {MIX}, {CONV}) -> Tensor[]",
    f"sample_conv(Tensor x, {SAMPLE}, Tensor? bias, {CONV}) -> Tensor",
    f"sample_conv_forward(Tensor x, {SAMPLE}, Tensor? bias, {CONV}) -> Tensor",
    f"sample_conv_grad_x(Tensor grad, SymInt[] size, {SAMPLE}, {CONV}) -> Tensor",
    f"sample_conv_grad_weight(Tensor grad, Tensor x, {SAMPLE}, {CONV}) -> Tensor[]",
    f"pixel_conv(Tensor x, Tensor weight, {PIXEL}) -> Tensor",
    f"pixel_conv_forward(Tensor x, Tensor weight, {PIXEL}) -> Tensor",
    f"pixel_conv_grad_x(Tensor grad, SymInt[] size, Tensor weight, {PIXEL}) -> Tensor",
    f"pixel_conv_grad_weight(Tensor grad, Tensor x, Tensor weight, {PIXEL}) -> Tensor[]",
    f"route(Tensor x, {ROUTER}) -> Tensor[]",
    f"deferred_conv(Tensor x, {SAMPLE}, {CONV}) -> Tensor",
    f"deferred_conv_grad_x(Tensor grad, Tensor x, {SAMPLE}, {CONV}) -> Tensor",
    f"deferred_conv_grad_weight(Tensor grad, Tensor x, {SAMPLE}, {CONV}) -> Tensor",
}


def test_no_operator_changes_under_its_name():
    declared = {str(s) for s in torch._C._jit_get_all_schemas() if s.name.startswith("convary::")}
    assert declared == {f"convary::{schema}" for schema in SCHEMAS}
