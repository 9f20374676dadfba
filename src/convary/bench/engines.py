# SPDX-License-Identifier: Apache-2.0
"""What runs a whole network: ``torch.compile``, AOTInductor, onnxruntime, OpenVINO; each makes a step to be timed."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convary._runtimes import of_file

Step = Callable[[], Any]


class Running(NamedTuple):
    """A step, and what it took to make it.

    Attributes:
        call: The step.
        seconds: Of processor time, to export or compile, and for the first step.
        nodes: Of an ONNX file.
    """

    call: Step
    seconds: float
    nodes: int | None


@dataclass(frozen=True)
class Form:
    """One of the ways in which an engine's program can be written.

    Attributes:
        how: Arguments of ``convary.export``.
        tolerance: By pass: of the largest score; in training, of the largest gradient.
        one_image: Whether it is for one image or for any number of them, but not for several at a time.
    """

    how: Mapping[str, Any] = field(default_factory=dict)
    tolerance: Mapping[str, float] = field(default_factory=lambda: {"inference": 1e-4, "training": 1e-2})
    one_image: bool = False


def spent() -> float:
    """Seconds of processor time, of this process and of the compilers that it waited for."""
    return sum(os.times()[:4])


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What runs a network.

    Attributes:
        make: From a network, its input, "inference" or "training", arguments of ``convary.export``, the free axes and
            a folder for files to a step and the number of nodes of its file.
        module: What must be installed.
        extra: The extra of convary that brings it; None for torch's own.
        modes: The passes that it has.
        files: Whether it reads ONNX files.
        accelerated: Whether it runs where torch does, not on CPUs alone.
        forms: By name; the static network is written as the first.
        clock: Of making one.
    """

    make: Callable[[nn.Module, Tensor, str, Mapping[str, Any], Sequence[int], Path], tuple[Step, int | None]]
    module: str = "torch"
    extra: str | None = None
    modes: tuple[str, ...] = ("inference",)
    files: bool = False
    accelerated: bool = False
    forms: Mapping[str, Form]
    clock: Callable[[], float] = time.process_time


def obstacle(name: str) -> str | None:
    """Why an engine can't be used here, or None."""
    module = ENGINES[name].module
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


@contextlib.contextmanager
def prepared(engine: Engine) -> Iterator[None]:
    """Compilations are whole here, by one process, and one was made before: the first of a process takes longer."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    form = next(iter(engine.forms.values()))
    with (
        inductor.patch(force_disable_caches=True, compile_threads=1),
        dynamo.patch(recompile_limit=64),  # networks of one class count as one, and beyond it they run eagerly
        tempfile.TemporaryDirectory() as folder,
    ):
        layer = nn.Conv2d(3, 3, 1).eval()
        engine.make(layer, torch.randn(1, 3, 9, 9), "inference", form.how, (), Path(folder))[0]()
        yield


def _compiled(model: nn.Module, x: Tensor, mode: str, how: Any, free: Any, folder: Path) -> tuple[Step, None]:
    from convary.bench.models import step

    if "memory_format" in how:  # of dynamic networks: Inductor gives it to static ones by itself
        x, model = x.contiguous(**how), copy.deepcopy(model).to(**how)
    compiled: Any = torch.compile(model)
    return step(compiled, x, mode), None


def _aoti(
    model: nn.Module, x: Tensor, mode: str, how: Mapping[str, Any], free: Sequence[int], folder: Path
) -> tuple[Step, None]:
    from convary._export import export
    from convary.bench.models import step

    program = export(model, x, dynamic=free, **how)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(_fresh(folder, ".pt2")))
    packaged: Any = torch._inductor.aoti_load_package(path)
    return step(packaged, x, mode), None


def _by(runtime: str) -> Callable[..., tuple[Step, int]]:
    """What makes a step of a file in one of the runtimes of ``convary export``."""

    def make(
        model: nn.Module, x: Tensor, mode: str, how: Mapping[str, Any], free: Sequence[int], folder: Path
    ) -> tuple[Step, int]:
        path, nodes = _file(model, x, how, free, folder)
        run = of_file(path)[runtime].open(path, torch.get_num_threads())
        return lambda: run(x), nodes

    return make


def _file(model: nn.Module, x: Tensor, how: Mapping[str, Any], free: Sequence[int], folder: Path) -> tuple[Path, int]:
    from convary._export import export
    from convary._exported import onnx_nodes

    path = _fresh(folder, ".onnx")
    export(model, x, path, dynamic=free, **how)
    return path, len(onnx_nodes(path))


def _fresh(folder: Path, suffix: str) -> Path:
    return folder / f"{len(list(folder.iterdir()))}{suffix}"


_HALF = Form({"runtime": "convary", "bank_dtype": torch.bfloat16}, {"inference": 1e-2})  # rounded weights
ENGINES = {
    "compiled": Engine(
        make=_compiled, modes=("inference", "training"), clock=spent, accelerated=True,
        forms={
            "graph": Form(tolerance={"inference": 1e-3, "training": 1e-2}),
            "channels_last": Form({"memory_format": torch.channels_last}, {"inference": 1e-3}),
        },
    ),
    "aoti": Engine(
        make=_aoti, clock=spent, forms={"convary": Form({"runtime": "convary"}, {"inference": 1e-3})},
    ),
    "onnxruntime": Engine(
        make=_by("onnxruntime"), module="onnxruntime", extra="export", files=True,
        forms={
            "any": Form(), "onnxruntime": Form({"runtime": "onnxruntime"}), "convary": Form({"runtime": "convary"}),
            "convary-bf16": _HALF,
        },
    ),
    "openvino": Engine(
        make=_by("OpenVINO"), module="openvino", files=True,
        forms={"any": Form(), "openvino": Form({"runtime": "openvino"}, one_image=True)},
    ),
}  # fmt: skip
