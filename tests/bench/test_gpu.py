# SPDX-License-Identifier: Apache-2.0
"""``benchmarks/gpu.py`` where there is no GPU: what it checks and writes, and the page that is committed."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from convary import ops
from convary.ops import cost, dispatch
from convary.ops.cost import tables, times

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


@pytest.mark.slow
def test_the_script_measures_a_cpu(tmp_path, monkeypatch):
    out, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    monkeypatch.setattr(gpu, "WAYS", ("measured", "grouped"))  # to compile takes minutes
    flags = ["--device", "cpu", "--small", "--minutes", "0.5", "--out", str(out), "--page", str(page)]
    monkeypatch.setattr("sys.argv", ["gpu.py", *flags])
    monkeypatch.setenv("CONVARY_CACHE", str(tmp_path))
    assert gpu.main() == 0
    content = json.loads(out.read_text())
    assert all(line["right"] for line in content["errors"]["lines"])
    assert {line["strategy"] for line in content["layers"]["lines"]} >= {"measured", "grouped", "native"}
    text = page.read_text()
    assert text == gpu.page(content)
    count = len(content["errors"]["lines"])
    assert f"{count} of {count} checks" in text and "| mobilenet_v2_tiny | odconv | 2 |" in text


def test_a_wrong_value_is_found(monkeypatch):
    shape = gpu.SMALL_SHAPES[0]
    right = next(gpu.error_lines([shape], "cpu"))
    assert right["right"] and right["error"] < 1e-4
    true = gpu.call
    monkeypatch.setattr(gpu, "call", lambda *arguments: 1.01 * true(*arguments))
    assert not next(gpu.error_lines([shape], "cpu"))["right"]


def test_what_fails_is_a_line_and_the_rest_goes_on(monkeypatch):
    def broken(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(gpu, "call", broken)
    lines = list(gpu.error_lines(gpu.SMALL_SHAPES[:1], "cpu"))
    assert len(lines) > 3 and all(line["failed"] == "CUDA out of memory. Tried to allocate 2 GiB" for line in lines)
    part = {"lines": [], "whole": False}
    content = {
        "device": "a GPU", "machine": dict.fromkeys(("torch", "convary", "os"), "?"),
        "errors": {"lines": lines, "whole": True}, "costs": part, "layers": part, "networks": part,
    }  # fmt: skip
    text = gpu.page(content)
    assert f"0 of {len(lines)} checks" in text and "| CUDA out of memory. Tried to allocate 2 GiB |" in text
    assert text.count("The time was over") == 2


def test_a_part_ends_with_its_time():
    content = {}
    parts = {name: iter([{"n": n} for n in range(3)]) for name in gpu.SHARES}
    gpu.measured(content, parts, 0.0, lambda: None)
    assert {name: (len(part["lines"]), part["whole"]) for name, part in content.items()} == {
        name: (1, False) for name in gpu.SHARES
    }
    assert not ops.cost.measured.is_on()


def test_the_page_is_of_the_committed_measurement_or_says_that_there_is_none():
    saved = ROOT / "benchmarks" / "results" / "gpu.json"
    want = gpu.page(json.loads(saved.read_text())) if saved.exists() else gpu.ABSENT
    assert (ROOT / "docs" / "gpu.md").read_text() == want


# Seconds of each strategy on a GPU that was made up, by its kind and pass: another one wins in each.
WINNERS = {
    "dense": ("outputs", "triton"), "pointwise": ("bmm", "grouped"), "depthwise": ("triton", "loop"),
    "pixel": ("triton", "taps"),
}  # fmt: skip


def made_up(shape, seconds, device, dtype):
    """Times that grow with the work, in which the winner takes a third of the others' time."""
    problem = gpu.fit.problem_of(shape, str(device), dtype)
    winner = WINNERS[cost.kind(problem)][problem.training]
    slow = 3.0 if dtype is torch.float32 else 1.0
    base = slow * sum(1e-11 * amount for amount in cost.amounts(problem, "grouped").values())
    names = ("taps", "triton") if problem.op == "pixel_conv" else ("grouped", "loop", "outputs", "bmm", "triton")
    return {name: base if name == winner else 3 * base for name in names}


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A GPU of compute capability 9.0 that is not there, and a package without tables of GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(tables, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(gpu.fit, "machine", lambda device: {"device": "a GPU", "torch": "2"})
    monkeypatch.setattr(gpu, "device_here", lambda name: torch.device(name, 0))
    monkeypatch.setattr(gpu.fit, "measure", made_up)
    monkeypatch.setattr(tables, "_files", lambda: list(tmp_path.glob("cuda-*.json")))
    monkeypatch.setenv("CONVARY_CACHE", str(tmp_path / "cache"))
    cost.fitted_on.cache_clear()
    yield tmp_path
    cost.fitted_on.cache_clear()


def chosen(shape, dtype=torch.bfloat16) -> str:
    """By the table, for a problem of the GPU; every strategy could run there."""
    problem = gpu.fit.problem_of(shape, "cuda:0", dtype)
    op = dispatch.OPS[problem.op]
    names = [name for name in op.strategies if name not in ("native", "deferred")]
    ranked = [name for name in names if dispatch.is_ranked(op, problem, name)]
    return cost.preferred({name: dispatch.estimate(problem, name) for name in ranked})


SEEN = [(64, 96, 96, 20, 3, 1), (64, 96, 48, 20, 1, 1), (64, 96, 96, 20, 3, 96)]


def test_the_fitted_table_chooses_the_measured_winner(here):
    """On shapes that are not in it; before, nominal figures choose, and never what nobody measured."""
    kinds = ("dense", "pointwise", "depthwise")
    assert [chosen((*shape, False)) for shape in SEEN] == ["outputs", "bmm", "grouped"]
    (line,) = gpu.cost_lines("cuda", here / "cuda-9.0.json", 0.0)
    assert line == {"part": "costs", "good": line["good"], "table": "cuda-9.0.json"}
    assert line["good"][0] == line["good"][1] > 250
    for training in (False, True):
        wanted = [WINNERS[kind][training] for kind in kinds]
        assert [chosen((*shape, training)) for shape in SEEN] == wanted
        assert [chosen((*shape, training), torch.float32) for shape in SEEN] == wanted
        assert chosen((8, 32, 4, 20, 5, 1, training, "pixel_conv")) == WINNERS["pixel"][training]
    fast, slow = (dispatch.estimate(gpu.fit.problem_of((*SEEN[0], False), "cuda:0", dtype), "outputs")
                  for dtype in (torch.float16, torch.float32))  # fmt: skip
    assert slow > 2 * fast  # a table for each
    assert "fitted on a GPU (compute capability 9.0), torch 2" == tables.described(cost.fitted_on("cuda:0"), "cuda:0")


def test_which_table_holds_for_a_gpu(here, monkeypatch):
    """Its own, then that of its capability, then the nearest of the same generation; else none."""

    def table(name: str, capability: str, machine: str = "another GPU") -> None:
        path = Path(here / name)
        path.parent.mkdir(exist_ok=True)
        content = {"machine": machine, "torch": "2", "capability": capability, "rates": {"bf16": {}, "float32": {}}}
        path.write_text(json.dumps(content))
        cost.fitted_on.cache_clear()

    assert cost.fitted_on("cuda:0") is None
    table("cuda-8.0.json", "8.0")
    assert cost.fitted_on("cuda:0") is None
    table("cuda-9.3.json", "9.3")
    table("cuda-9.1.json", "9.1")
    found = cost.fitted_on("cuda:0")
    assert found["capability"] == "9.1" and "; this device has 9.0" in tables.described(found, "cuda:0")
    table("cuda-9.0.json", "9.0")
    assert cost.fitted_on("cuda:0")["capability"] == "9.0"
    own = times.own("cost-cuda").relative_to(here)
    table(str(own), "9.0", "a third GPU")
    assert cost.fitted_on("cuda:0")["machine"] == "another GPU"
    table(str(own), "9.0", "a GPU")
    assert cost.fitted_on("cuda:0")["machine"] == "a GPU"
    (here / own).write_text("{}")
    cost.fitted_on.cache_clear()
    with pytest.warns(UserWarning, match="the shipped costs are used"):
        assert cost.fitted_on("cuda:0")["machine"] == "another GPU"
    monkeypatch.setattr(torch.version, "hip", "6.0")
    cost.fitted_on.cache_clear()
    assert cost.fitted_on("cuda:0") is None


def test_positions_and_routers_are_checked_too(monkeypatch):
    lines = list(gpu.right.lines("cpu"))
    assert len(lines) > 15 and all(line["right"] for line in lines)
    assert {line["strategy"] for line in lines} == {"taps", "native", "triton"}  # this one of routers
    true = ops.pixel_conv
    monkeypatch.setattr(ops, "pixel_conv", lambda *a, **named: 1.05 * true(*a, **named))
    assert not any(line["right"] for line in gpu.right.lines("cpu") if line["layer"].startswith("pixel"))
