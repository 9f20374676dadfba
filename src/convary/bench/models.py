# SPDX-License-Identifier: Apache-2.0
"""Whole networks: dynamic against static, or against what released code does."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from convary import ops
from convary._convert import convert
from convary.bench.machine import load
from convary.bench.timing import clock_of, device_here, interleave
from convary.errors import ConvaryError
from convary.methods import method
from convary.models import build
from convary.nn import Router

Dtype = Literal["float32", "bf16"]
Placed = TypeVar("Placed", nn.Module, Tensor)
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CLASSES = 1000
CPU = torch.device("cpu")
CHECKED = 2  # images compared with the reference in float64
TOLERANCE = {"inference": 1e-4, "training": 1e-2}  # a ReLU that falls the other way in float32 turns a gradient off
# In bf16, and where float32 may be TF32, times the static network's error, which is large: 0.28 of a ResNet-18's
# gradients.
AS_STATIC = 1.5


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """What to measure.

    Attributes:
        models: Names that ``convary.models.build`` knows.
        methods: Names of methods, with their published defaults.
        batches: Batch sizes.
        modes: "inference" is the forward pass in eval mode, "training" forward and backward in training mode.
        dtypes: "float32", or "bf16", which is both networks under autocast.
        device: What torch calls it.
        layout: "contiguous" or "channels_last", of images and weights.
        threads: Numbers of threads, one after the other.
        image_size: Height and width of the images.
        against: "static" is the network as it was; "grouped" is the dynamic one run as released code runs it.
        memory: Whether to measure the peak memory of training at the largest batch, in processes of their own.
        seconds: Per line.
    """

    models: tuple[str, ...] = ("torchvision:mobilenet_v2", "torchvision:resnet18")
    methods: tuple[str, ...] = ("condconv", "dyconv", "odconv")
    batches: tuple[int, ...] = (1, 16)
    modes: tuple[str, ...] = ("inference", "training")
    dtypes: tuple[Dtype, ...] = ("float32",)
    device: str = "cpu"
    layout: str = "contiguous"
    threads: tuple[int, ...] = (1, 2)
    image_size: int = 224
    against: str = "static"
    memory: bool = True
    seconds: float = 6.0


def networks(name: str, method_name: str, image_size: int) -> tuple[nn.Module, nn.Module]:
    """The static network and its dynamic twin: upcycled, so that it is as well conditioned, with routers that route."""
    static = build(name, CLASSES, 3, (image_size, image_size))
    if method_name == "static":
        return static, static
    config = method(method_name)
    if method_name == "condconv":  # its paper has eight; all are compared with four
        config = method("condconv", experts=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dynamic = convert(copy.deepcopy(static), config)
        for module in dynamic.modules():
            if isinstance(module, Router):
                for linear in module.modules():
                    if isinstance(linear, nn.Linear):
                        nn.init.xavier_normal_(linear.weight)
        return static, dynamic


def precision(dtype: Dtype, device: str = "cpu") -> contextlib.AbstractContextManager:
    """What a forward pass in this dtype runs in."""
    return torch.autocast(device, torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()


def step(model: nn.Module, x: Tensor, mode: str, dtype: Dtype = "float32") -> Callable[[], object]:
    """What is timed: a forward pass, or forward and backward of a simple loss."""

    def infer() -> Tensor:
        with torch.inference_mode(), precision(dtype, x.device.type):
            return model(x)

    def train() -> None:
        model.zero_grad()
        with precision(dtype, x.device.type):
            y = model(x)
        y.float().square().mean().backward()

    return infer if mode == "inference" else train


def placed(what: Placed, device: torch.device, layout: str) -> Placed:
    """A network or its images, on a device and in a memory format."""
    to: Any = what.to  # which torch's stubs give no memory format
    return to(device, memory_format=FORMATS[layout])


class Check:
    """A network's results against the plain strategy ``bmm`` in float64.

    In eval mode, with the statistics of a few images: a batch of two in training mode is badly conditioned, and in eval
    mode the first images' results depend on no others, so that float64 needs them alone.

    Args:
        model: The network, on a CPU; it is not changed.
        image_size: Height and width of the images.
        most: The largest batch that will be asked for.
        device: Where it is checked.
        layout: In which memory format.
    """

    def __init__(
        self, model: nn.Module, image_size: int, most: int, device: torch.device = CPU, layout: str = "contiguous"
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = copy.deepcopy(model)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.5
        with torch.no_grad():
            for _ in range(4):
                self.model.train()(torch.randn(4, 3, image_size, image_size, generator=generator))
        self.model.eval()
        self.exact = copy.deepcopy(self.model).double()
        images = torch.randn(most, 3, image_size, image_size, generator=generator)
        self.model, self.images = placed(self.model, device, layout), placed(images, device, layout)
        self.truths: dict[int, tuple[Tensor, Tensor]] = {}

    def errors(self, batch: int, dtype: Dtype = "float32") -> dict[str, float]:
        """By mode: of the outputs, relative to the largest; in training also of all gradients taken as one vector.

        The whole batch is run, by the threads of now; its first images are compared.
        """
        n = min(batch, CHECKED)
        if n not in self.truths:
            with ops.strategy("bmm"):
                self.truths[n] = _results(self.exact, self.images[:n].cpu().contiguous().double(), n)
        want, truth = self.truths[n]
        with torch.inference_mode(), precision(dtype, self.images.device.type):
            inferred = self.model(self.images[:batch])[:n].cpu()
        trained, gradient = _results(self.model, self.images[:batch], n, dtype)
        outputs = [float((y - want).abs().max() / want.abs().max()) for y in (inferred, trained)]
        return {"inference": outputs[0], "training": max(outputs[1], float((gradient - truth).norm() / truth.norm()))}


def _results(model: nn.Module, x: Tensor, n: int, dtype: Dtype = "float32") -> tuple[Tensor, Tensor]:
    """The outputs of the first n images, and the gradient of their mean square, of all parameters in a row."""
    model.zero_grad()
    with precision(dtype, x.device.type):
        y = model(x)[:n]
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    y.square().mean().backward()
    gradients = [p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None]
    return y.detach().cpu(), torch.cat(gradients)


def measure(config: ModelsConfig) -> Iterator[dict[str, Any]]:
    """One line per network, method, dtype, batch, mode and number of threads.

    Yields:
        The line as plain JSON values: what was measured, the error and the fields of ``Timing``; a line whose error is
        above ``TOLERANCE``, in bf16 above ``AS_STATIC`` times the static network's, has no times. On an accelerator,
        where float32 may be TF32, the larger of both is allowed.

    Raises:
        ConfigError: the device is not here.
    """
    before, device = torch.get_num_threads(), device_here(config.device)
    rounded = config.dtypes != ("float32",) or device != CPU
    try:
        for name in config.models:
            for method_name in config.methods:
                pair = networks(name, method_name, config.image_size)
                most = (config.image_size, max(config.batches), device, config.layout)
                check, plain = Check(pair[1], *most), Check(pair[0], *most) if rounded else None
                static, dynamic = (placed(net, device, config.layout) for net in pair)
                for threads, dtype, batch in itertools.product(config.threads, config.dtypes, config.batches):
                    torch.set_num_threads(threads)
                    errors, allowed = check.errors(batch, dtype), TOLERANCE
                    if plain is not None and (dtype != "float32" or device != CPU):
                        allowed = _allowed(plain.errors(batch, dtype), dtype)
                    for mode in config.modes:
                        what = {
                            "model": name, "method": method_name, "dtype": dtype, "batch": batch, "mode": mode,
                            "threads": threads, "layout": config.layout, "error": errors[mode],
                        }  # fmt: skip
                        if errors[mode] < allowed[mode]:
                            what |= _timed(static, dynamic, batch, mode, dtype, config)
                        yield what
    finally:
        torch.set_num_threads(before)


def _allowed(errors_of_static: dict[str, float], dtype: Dtype) -> dict[str, float]:
    """What the dynamic network may be off by, where the static one is off by so much."""
    least = TOLERANCE if dtype == "float32" else dict.fromkeys(TOLERANCE, 0.0)
    return {mode: max(least[mode], AS_STATIC * error) for mode, error in errors_of_static.items()}


def _timed(
    static: nn.Module, dynamic: nn.Module, batch: int, mode: str, dtype: Dtype, config: ModelsConfig
) -> dict[str, Any]:
    """A line's times; in bf16 also against the static network in float32, its faster dtype on many a processor."""
    x = torch.randn(batch, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    x = placed(x, next(static.parameters()).device, config.layout)
    clock = clock_of(x.device)
    for model in (static, dynamic):
        model.train(mode == "training")
    ours = step(dynamic, x, mode, dtype)
    if config.against == "static":
        base = step(static, x, mode, dtype)
    else:
        plain = step(dynamic, x, mode, dtype)

        def base() -> object:
            with ops.strategy("grouped"):
                return plain()

    found = {**vars(interleave(ours, base, config.seconds, clock)), "load": load()}
    if dtype != "float32" and config.against == "static":
        found["float32"] = vars(interleave(ours, step(static, x, mode), config.seconds, clock))
    return found


def measure_memory(config: ModelsConfig) -> Iterator[dict[str, Any]]:
    """Peak memory of training, one line per network and method, at the largest batch and number of threads.

    Yields:
        Bytes as plain JSON values: ``static`` and ``dynamic`` peaks above an idle process with torch loaded, and
        ``extra_parameters``, the bytes of parameters that the dynamic network has more, whose gradients take as much.
    """
    batch, threads = max(config.batches), max(config.threads)
    for name in config.models:
        base = _peak(name, "static", batch, config.image_size, threads, config.device)
        for method_name in config.methods:
            ours = _peak(name, method_name, batch, config.image_size, threads, config.device)
            yield {
                "model": name, "method": method_name, "batch": batch, "threads": threads, "static": base["peak"],
                "dynamic": ours["peak"], "extra_parameters": ours["parameters"] - base["parameters"],
            }  # fmt: skip


def _peak(name: str, method_name: str, batch: int, image_size: int, threads: int, device: str) -> dict[str, int]:
    """In a process of its own, whose heap has no past."""
    arguments = [name, method_name, str(batch), str(image_size), str(threads), device]
    # glibc keeps freed memory for itself as it sees fit; told to give it back, it lets the peak be what is in use.
    environment = os.environ | dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
    done = subprocess.run(
        [sys.executable, "-m", "convary.bench.memory", *arguments],
        env=environment | {"MALLOC_ARENA_MAX": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ConvaryError(f"the peak memory of {name} with {method_name} was not measured: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])
