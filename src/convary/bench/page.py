# SPDX-License-Identifier: Apache-2.0
"""docs/benchmarks.md out of the saved measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convary.bench import page_devices, page_modes
from convary.bench.tables import MEMORY_TARGET, Record, markdown, memory_numbers, target, verdict
from convary.errors import ConfigError

HALF = "models-bf16*.json"  # of several machines, which their tables name
HALF_LAYERS = "layers-bf16*.json"
FILES = {
    "models": "models.json", "layers": "layers.json", "models-grouped": "models-grouped.json",
    "layers-grouped": "layers-grouped.json",
}  # fmt: skip
NOTES = "notes.md"
INTRODUCTION = """# Benchmarks

![Time relative to the static network: convary, and as released code does it](images/cost.svg)

What a dynamic convolution costs, against the ordinary one of its size and against what released code does: 1.00 is the
time of the static network, K is 4.
"""


def page(results: Path) -> str:
    """The page.

    Args:
        results: The folder that ``convary bench layers`` and ``convary bench models`` wrote to, with ``--out``.

    Raises:
        ConfigError: a file is missing or is not what they write.
    """
    found = {name: _read(results / file) for name, file in FILES.items() if (results / file).exists()}
    for name in ("models", "layers"):
        if name not in found:
            raise ConfigError(f"{results / FILES[name]} is missing; run convary bench {name} --out {results}")
    _check_machines(found, results)
    parts = [INTRODUCTION, _overview(found), _machine(found["models"]["machine"]), METHOD, _losses(found)]
    notes = results / NOTES
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8"))
    parts += ["## All measurements\n", _folded("Networks, against static", _models(found["models"], "static"))]
    if memory := _memory(found["models"]):
        parts.append(_folded("Memory of training", memory))
    parts.append(_folded("Layers, against static", _layers(found["layers"], "static")))
    for name, table in (("models-grouped", _models), ("layers-grouped", _layers)):
        if name in found:
            title = f"{name.partition('-')[0].capitalize().replace('Models', 'Networks')}, against released code's way"
            parts.append(_folded(title, GROUPED + "\n" + table(found[name], "grouped")))
    paths = {mode: results / file for mode, file in page_modes.FILES.items()}
    if shipped := {mode: _read(path) for mode, path in paths.items() if path.exists()}:
        parts.insert(2, page_modes.part(shipped, found["models"]))
    for mode, content in shipped.items():
        text = f"{_machine(content['machine'])}\n{page_modes.lines(content)}"
        parts.append(_folded(f"Networks in the mode {mode}, against static", text))
    if halves := sorted(results.glob(HALF), key=lambda path: (len(path.name), path.name)):
        parts.insert(2, f"## Half precision\n\n{BF16}\n" + "\n".join(_half(_read(path)) for path in halves))
    for content in map(_read, sorted(results.glob(HALF_LAYERS))):
        text = f"{_machine(content['machine'])}\n{_layers(content, 'static', dtypes=True)}"
        parts.append(_folded("Layers in half precision, against static in the same", text))
    parts += page_devices.parts([_read(path) for path in page_devices.files(results)])
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _folded(title: str, text: str) -> str:
    """A part of the page that opens on a click, on the site and on GitHub."""
    return f'<details markdown="1">\n<summary>{title}</summary>\n\n{text.rstrip()}\n\n</details>\n'


def _overview(found: dict[str, dict[str, Any]]) -> str:
    """The networks in brief: a row each, at two threads, and the same in released code's way where it was timed."""
    ways = {_key(row): row for row in found.get("models-grouped", {"rows": ()})["rows"]}
    rows: dict[tuple[str, str], dict[tuple[int, str], str]] = {}
    for row in found["models"]["rows"]:
        if row["threads"] != 2 or "ratio" not in row:
            continue
        cell, other = f"{row['ratio']:.2f}", ways.get(_key(row))
        if other is not None and "ratio" in other:
            cell = f"**{cell}** ({row['ratio'] / other['ratio']:.2f})"
        rows.setdefault((_short(row["model"]), row["method"]), {})[row["batch"], row["mode"]] = cell
    columns = sorted({column for cells in rows.values() for column in cells}, key=lambda c: (-c[0], c[1]))
    header = ["network", "method", *(f"{mode}, batch {batch}" for batch, mode in columns)]
    table = markdown(header, [[*name, *(cells.get(c, "") for c in columns)] for name, cells in rows.items()])
    return f"{table}\n\nTwo threads, 224x224, float32. In brackets: the same network in released code's way.\n"


def _key(row: Record) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("model", "method", "batch", "mode", "threads"))


METHOD = """This page is made by `make benchmarks` from measurements that `convary bench` saved; nothing here was
typed by hand but the notes. Every ratio is the median of pairwise ratios of calls that follow each other in one
process (A B, B A, ...), with the 10th and 90th percentile beside it, in float32 and eager mode. A line is timed only
after its result agreed with the reference, computed in float64, in the same run, at its batch and number of threads,
for the first two samples of the batch: layers within 1e-4 of the largest value, gradients included; networks within
1e-4 in the outputs and 1e-2 in the norm of all gradients (a ReLU near zero falls either way in float32).

*must* and *aim* are targets that we set ourselves at two threads; a line that misses its *must* says so.
"layer 32, 512->512, 7, 3" is a convolution of 512 to 512 channels on a batch of 32 maps of 7x7 with a kernel of 3x3.
"""
BF16 = """Both networks under `torch.autocast("cpu", torch.bfloat16)`, checked first: the error against
float64 is at most 1.5 times the static network's own. Where the processor multiplies bf16 (native kernels avx512_bf16),
so do torch and we. Without such instructions torch's own convolutions emulate them, and ours compute in float32: there
a network is fastest in float32, static or dynamic.
"""
GROUPED = """The same networks and kernels, run as the released code of the methods runs them: the mixed kernels of all
samples are written to memory and convolved with B groups. A ratio of 0.5 is twice as fast.
"""


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != 1 or not isinstance(content["rows"], list):
            raise ValueError("another schema")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a result of convary bench ({error}); measure again") from error
    return content


def _check_machines(found: dict[str, dict[str, Any]], results: Path) -> None:
    """Raise unless all tables come from one machine and one version: the page names it once."""
    for name, content in found.items():
        for fact in ("cpu", "cores", "torch", "convary", "native"):
            here, there = content["machine"].get(fact), found["models"]["machine"].get(fact)
            if here != there:
                raise ConfigError(
                    f"{results / FILES[name]} was measured with {fact} {here!r}, {FILES['models']} with {there!r}; "
                    "measure both again on one machine"
                )


def _machine(machine: dict[str, Any]) -> str:
    return (
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:g} GB, {machine['os']}; "
        f"torch {machine['torch']}, convary {machine['convary']}, native kernels {machine['native']}.\n"
    )


def _what(row: Record) -> str:
    if "model" in row:
        return f"{_short(row['model'])}, {row['method']}, batch {row['batch']}, {row['mode']}"
    factors = "all four factors" if row["factors"] == "all" else "kernel factor"
    return f"layer {row['layer']}, {row['mode']}, {factors}"


def _short(model: str) -> str:
    return model.rpartition(":")[2]


def _losses(found: dict[str, dict[str, Any]]) -> str:
    """Where a target is missed, where we are slower than static at all, and where we are faster."""
    rows = [(kind, row) for kind in ("models", "layers") for row in found[kind]["rows"]]
    wrong = [row for _, row in rows if "ratio" not in row]
    promised = [(kind, row) for kind, row in rows if "ratio" in row and target(kind, row) is not None]
    missed = [row for kind, row in promised if verdict(kind, row) == "**missed**"]
    heavy = [row for row in found["models"].get("memory", ()) if memory_numbers(row)[3] > MEMORY_TARGET[0]]
    aimed = sum(verdict(kind, row) == "aim" for kind, row in promised)
    lines = [
        "## Where we lose\n",
        f"Of {len(promised)} lines with a target, {len(promised) - len(missed)} reach their *must*, "
        f"{aimed} also their *aim*.",
    ]
    if missed or wrong or heavy:
        lines.append("\nMissed:\n")
        lines += [f"- {_what(row)}: {row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" for row in missed]
    lines += [f"- {_what(row)}: **wrong**, off by {row['error']:.0e}; not timed" for row in wrong]
    lines += [f"- {_short(row['model'])}, {row['method']}: peak memory of training" for row in heavy]
    others = [row for kind, row in promised if row not in missed and row["low"] > 1]
    slow = sorted(others, key=lambda row: -row["ratio"])[:8]
    if slow:
        lines.append("\nThe slowest of the others, where static is faster beyond the spread:\n")
    lines += [f"- {_what(row)}: {row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" for row in slow]
    return "\n".join(lines) + "\n"


def _ratio(row: Record) -> list[str]:
    if "ratio" not in row:
        return ["wrong", f"error {row['error']:.0e}", "", ""]
    return [f"{row['ratio']:.2f}", f"{row['low']:.2f}-{row['high']:.2f}", f"{row['ms']:.2f}", f"{row['base_ms']:.2f}"]


def _models(content: dict[str, Any], base: str) -> str:
    header = ["network", "method", "batch", "mode", "threads", "ratio", "p10-p90", "ms", f"{base} ms"]
    promises = base == "static"
    rows = []
    for row in content["rows"]:
        cells = [_short(row["model"]), row["method"], str(row["batch"]), row["mode"], str(row["threads"]), *_ratio(row)]
        rows.append([*cells, verdict("models", row)] if promises else cells)
    return markdown([*header, "reaches"] if promises else header, rows) + "\n"


def _half(content: dict[str, Any]) -> str:
    """Networks under autocast, against static in the same dtype and in float32."""
    header = ["network", "method", "batch", "mode", "threads", "ratio", "p10-p90", "to static in float32 ratio", "ms"]
    rows = []
    for row in content["rows"]:
        cells = [_short(row["model"]), row["method"], str(row["batch"]), row["mode"], str(row["threads"])]
        ratio, spread, ms, _ = _ratio(row)
        plain = row.get("float32")
        wide = f"{plain['ratio']:.2f} ({plain['low']:.2f}-{plain['high']:.2f})" if plain else ""
        rows.append([*cells, ratio, spread, wide, ms])
    return f"{_machine(content['machine'])}\n{markdown(header, rows)}\n"


def _memory(content: dict[str, Any]) -> str:
    rows = []
    for row in content.get("memory", ()):
        static, dynamic, parameters, rest = memory_numbers(row)
        must, aim = MEMORY_TARGET
        reached = "aim" if rest <= aim else "must" if rest <= must else "**missed**"
        peaks = [f"{static:.0f}", f"{dynamic:.0f}", f"{parameters:.0f}", f"{rest:.1%}"]
        rows.append([_short(row["model"]), row["method"], *peaks, reached])
    if not rows:
        return ""
    header = ["network", "method", "static MB", "dynamic MB", "more parameters, their gradients MB", "rest", "reaches"]
    told = (
        f"Peak resident memory of training at batch {content['memory'][0]['batch']}, above an idle process with torch "
        "loaded, each in its own process. *rest* is what the dynamic network needs beyond its parameters and their "
        f"gradients, over the static peak; it must stay below {MEMORY_TARGET[0]:.0%}, aim {MEMORY_TARGET[1]:.0%}.\n\n"
    )
    return told + markdown(header, rows) + "\n"


def _layers(content: dict[str, Any], base: str, *, dtypes: bool = False) -> str:
    names = ("layer", "mode", "factors", "layout", *(("dtype",) if dtypes else ()))
    header = ["layer (B, C->O, size, k)", *names[1:], "threads", "strategy", "ratio", "p10-p90", "ms", f"{base} ms"]
    promises = base == "static"
    rows = []
    for row in content["rows"]:
        cells = [row[name] for name in names]
        cells += [str(row["threads"]), row["strategy"], *_ratio(row)]
        rows.append([*cells, verdict("layers", row)] if promises else cells)
    return markdown([*header, "reaches"] if promises else header, rows) + "\n"
