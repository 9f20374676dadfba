# SPDX-License-Identifier: Apache-2.0
"""``benchmarks/gpu.py`` where there is no GPU: what it checks and writes, and the page that is committed."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from convary import ops

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
        "errors": {"lines": lines, "whole": True}, "layers": part, "networks": part,
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
