# SPDX-License-Identifier: Apache-2.0
"""Inference: a dynamic convolution as two native calls whose arguments were prepared before.

A camera sends its images one by one. What Python does per layer (finding weights, checking them, shaping coefficients)
then costs more than a small convolution, and several times that when large banks have just swept the caches; in a batch
of small maps it is still a tenth. So the arguments of both calls are kept, and only what may have changed since is
looked at again. Preparing costs more than it saves once, so it waits until a shape comes twice in a row: images of ever
new sizes take the usual way.

Measured on one thread at batch 1 (CondConv 1x1, 32 to 64 channels, 14 x 14; ODConv 3x3, 64 to 64, 7 x 7): 56 and 148 us
a layer; 95 and 220 us where sizes are cached by shape but layers are looked through and pointers fetched on every call;
167 and 307 us the usual way.
"""

from __future__ import annotations

import weakref
from ctypes import addressof
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convary.nn.conv import DynamicConv
from convary.nn.layer import DynamicLayer
from convary.nn.perceptron_router import PerceptronRouter, is_hooked
from convary.nn.router import Router
from convary.ops import Coefficients, mixed
from convary.ops.cost import measured
from convary.ops.dispatch import decide, problem_of
from convary.ops.geometry import resolve
from convary.ops.mixed.native import structure
from convary.ops.native import library
from convary.ops.native import router as native_route
from convary.ops.native.call import check
from convary.ops.tracing import is_traced

FLOAT = 4  # bytes


class _Plan:
    """Both calls for x of one shape, and all that they depend on: whose attributes the weights are, and where."""

    def __init__(
        self, layer: DynamicConv, router: PerceptronRouter, layers: native_route.Layers, x: Tensor, pieces: list[Tensor]
    ) -> None:
        self.shape, self.circumstances = x.shape, _circumstances(x)
        self.options = _options(layer, router)
        coeffs = router.to_coefficients(pieces)
        _, geometry = resolve(x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
        factors = (coeffs.kernel, coeffs.filter, coeffs.channel, coeffs.tap)
        half = x.dtype is torch.bfloat16
        self.sizes, self.y_shape = structure(x.shape, layer.weight, factors, layer.bias, geometry, half=half)
        self.route_sizes = native_route.sizes(x, layers)
        self.address, self.route_address = addressof(self.sizes), addressof(self.route_sizes)
        self.route_pointers = [None if t is None else t.data_ptr() for t in layers[: native_route.TENSORS]]
        self.offsets = [None if f is None else f.data_ptr() - pieces[0].data_ptr() for f in factors]
        self.scale = layer._buffers["scale"]
        self.pooled, self.outputs = x.shape[0] * x.shape[1], x.shape[0] * sum(layers.pieces)
        first = self.pooled + (coeffs[0].data_ptr() - pieces[0].data_ptr()) // FLOAT
        self.scaled = slice(first, first + coeffs[0].numel())  # as DynamicLayer.scaled has it
        self.bank = layer.weight.data_ptr()
        self.bias = None if layer.bias is None else layer.bias.data_ptr()

        self.modules = _modules(router)
        owners = [layer, router, *(module for module in self.modules if module is not None)]
        tensors = [(o._parameters, name, t) for o in owners for name, t in o._parameters.items()]
        tensors += [(o._buffers, name, t) for o in owners for name, t in o._buffers.items()]
        self.tensors = [(owner, name, t, _place(t)) for owner, name, t in tensors]

    def holds(self, layer: DynamicConv, router: PerceptronRouter, x: Tensor) -> bool:
        """Whether everything is where it was and nobody watches the layers that are passed over."""
        if x.shape != self.shape or _circumstances(x) != self.circumstances:
            return False
        if _options(layer, router) != self.options or is_hooked(router):
            return False
        for module, before in zip(_modules(router), self.modules, strict=True):
            if module is not before or (module is not None and (module.training or is_hooked(module))):
                return False
        for owner, name, tensor, place in self.tensors:
            if owner.get(name) is not tensor or (tensor is not None and _place(tensor) != place):
                return False
        return True

    def run(self, x: Tensor) -> Tensor:
        """Route and convolve."""
        entries = library.loaded().entries
        scratch = torch.empty(self.pooled + self.outputs, dtype=torch.float32, device="cpu")
        y = x.new_empty(self.y_shape)
        pooled = scratch.data_ptr()
        out = pooled + FLOAT * self.pooled
        code = entries["route"](self.route_address, x.data_ptr(), *self.route_pointers, pooled, out)
        check(code, "route", self.route_sizes)
        if self.scale is not None:
            scratch[self.scaled].mul_(self.scale)
        factors = [None if offset is None else out + offset for offset in self.offsets]
        code = entries["mixed_conv"](self.address, x.data_ptr(), self.bank, *factors, self.bias, y.data_ptr())
        check(code, "mixed_conv", self.sizes)
        return y


def _place(tensor: Tensor | None) -> tuple:
    """Where a tensor's numbers are; ``.data`` may have been replaced."""
    return () if tensor is None else (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _modules(router: PerceptronRouter) -> tuple[nn.Module | None, ...]:
    return router.squeeze, router.norm, router.head


def _options(layer: DynamicConv, router: PerceptronRouter) -> tuple:
    """All that is no tensor and decides the result; the router itself, so that another one is noticed.

    A method replaced on the instance is one attribute more.
    """
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    own = (layer.__class__, len(layer.__dict__), router, router.__class__, len(router.__dict__))
    return *geometry, *own, router.training, router.sigmoids, router.activation, getattr(router.norm, "eps", None)


class _Seen(NamedTuple):
    """A layer without a plan: the last shape of x, and the circumstances in which another strategy is faster there."""

    shape: torch.Size
    slower_with: tuple | None = None


def _circumstances(x: Tensor) -> tuple:
    return torch.get_num_threads(), measured.is_on(), x.dtype, torch.is_autocast_enabled("cpu")


_plans: weakref.WeakKeyDictionary[nn.Module, _Plan | _Seen] = weakref.WeakKeyDictionary()


def infer(layer: DynamicConv, x: Tensor) -> Tensor | None:
    """The layer's output for x (B, C, *S) without a gradient, or None where it takes the usual way."""
    router = layer.router
    if is_traced(x):
        return None
    if not isinstance(router, PerceptronRouter) or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    if (layer.bias is not None and layer.bias.ndim == 2) or layer.rank > 2:
        return None
    if not native_route.can_run_on(x):
        return None
    plan = _plans.get(layer)
    if isinstance(plan, _Plan) and plan.holds(layer, router, x):
        return plan.run(x)
    if plan is None or plan.shape != x.shape:
        _plans[layer] = _Seen(x.shape)
        return None
    if isinstance(plan, _Seen) and plan.slower_with == _circumstances(x):
        return None
    made = _plans[layer] = _prepare(layer, router, x)
    return made.run(x) if isinstance(made, _Plan) else None


def _prepare(layer: DynamicConv, router: PerceptronRouter, x: Tensor) -> _Plan | _Seen:
    seen = _Seen(x.shape)
    if router.training or is_hooked(router) or not _is_ordinary(layer, router):
        return seen
    layers = router.native_layers()
    if layers is None or not native_route.can_run(x, layers):
        return seen
    pieces = native_route.route(x, layers)
    coeffs = router.to_coefficients(pieces)
    if layer.bias is not None and layer.bias.dtype is not torch.float32:  # the kernels want it in float32
        return seen
    geometry = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    asked = Coefficients(**{axis: factor.to(layer.weight.dtype) for axis, factor in coeffs.factors().items()})
    if decide(mixed.OP, problem_of(mixed.OP, x, layer.weight, asked, layer.bias, **geometry)) != "native":
        return _Seen(x.shape, _circumstances(x))
    # The coefficients must be what the router made, where it made them: the pieces, unchanged.
    memory = pieces[0].untyped_storage().data_ptr()
    for factor in coeffs.factors().values():
        if factor.untyped_storage().data_ptr() != memory or not factor.is_contiguous():
            return seen
    if not all(map(torch.equal, pieces, native_route.route(x, layers))):
        return seen
    return _Plan(layer, router, layers, x, pieces)


def _is_ordinary(layer: DynamicConv, router: PerceptronRouter) -> bool:
    """Whether layer and router compute what their classes here say, with weights that are parameters of their own."""
    if any(callable(getattr(type(module), name, None)) for module in (layer, router) for name in module.__dict__):
        return False  # a method replaced on the instance
    kind = type(layer)
    if kind.coefficients is not DynamicLayer.coefficients or kind.convolve is not DynamicConv.convolve:
        return False
    if kind.features is not DynamicConv.features:
        return False
    routing = type(router)
    if routing.forward is not Router.forward or routing._route is not PerceptronRouter._route:
        return False
    if routing.pieces is not PerceptronRouter.pieces:
        return False
    owned = [(layer, "weight"), (layer, "bias"), *((m, n) for m in _modules(router) if m for n in ("weight", "bias"))]
    for owner, name in owned:  # a pruned or parametrised weight is made anew on every access
        tensor = getattr(owner, name, None)
        if tensor is not owner._parameters.get(name) or (tensor is not None and not tensor.is_contiguous()):
            return False
    return True
