# SPDX-License-Identifier: Apache-2.0
"""What other people's tools find when they take a network apart: modules that they leave whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.fx import Proxy

from convary.errors import DtypeError, ExportError
from convary.nn.norm import adopt


class Opaque(nn.Module):
    """A module that is one piece to every tool: the base of dynamic layers, layers with generated kernels, and routers.

    - Features that are no floating-point numbers, such as the bytes of an image, are refused in words.
    - Every ``torch.fx`` tracer (torchvision's feature extraction, timm's, ``prepare_fx``) records a call of it as one
      node, whatever the tracer takes for a leaf. ``forward`` calls its first argument x.
    - ``torch.jit.script`` says what works instead.
    - Its norms take a batch of one in training after ``convert_sync_batchnorm`` too.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__:
            cls.forward = _entered(cls.forward)

    def initialise_(self) -> None:
        """Fill in the parameters and buffers of the module itself; nothing where its parts fill in their own."""

    def reset_parameters(self) -> None:
        """Make everything new, as when the module was built: all of its parts, settings in buffers, a router's heat.

        Whoever builds a network on the meta device calls it behind ``to_empty``, and whoever starts again behind a
        fold of a cross-validation: ``model.apply(...)``, which goes from the parts to the whole, ends as published. A
        tool that goes from the whole to the parts leaves routers' linear layers as ``nn.Linear`` starts.
        """
        for part in reversed(list(self.modules())):  # parts before what they are parts of
            if isinstance(part, Opaque):
                part.initialise_()
            elif hasattr(part, "reset_parameters"):
                part.reset_parameters()  # type: ignore[operator]

    def recorded_args(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        """The arguments behind x of the call that goes into a graph."""
        return args

    def __prepare_scriptable__(self) -> NoReturn:
        """``torch.jit.script`` asks every module in a network for another form of itself.

        Raises:
            ExportError: always.
        """
        raise ExportError(
            f"torch.jit.script can't compile {type(self).__name__}, which chooses its operations while it runs; use "
            "torch.jit.trace(model, x), which holds for any batch and size, or convary.export(model, x, 'model.pt2')"
        )

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As ``nn.Module.add_module``, by which ``convert_sync_batchnorm`` exchanges norms."""
        super().add_module(name, adopt(module, instead_of=self._modules.get(name)))


def _entered(forward: Callable) -> Callable:
    @functools.wraps(forward)
    def call(self: Opaque, x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, Proxy):
            name = x.tracer.path_of_module(self)  # type: ignore[attr-defined]
            return x.tracer.create_proxy("call_module", name, (x, *self.recorded_args(args, kwargs)), kwargs)
        if isinstance(x, Tensor) and not x.is_floating_point():
            raise DtypeError(
                f"{type(self).__name__} wants features of a floating-point dtype; got {x.dtype}; for the bytes of an "
                "image give x.float() / 255, normalised as in training"
            )
        if not isinstance(x, Tensor):
            got = "NumPy array; give torch.from_numpy(x)" if type(x).__module__ == "numpy" else type(x).__name__
            raise DtypeError(f"{type(self).__name__} wants a tensor; got a {got}")
        return forward(self, x, *args, **kwargs)

    return call
