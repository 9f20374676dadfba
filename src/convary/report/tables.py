# SPDX-License-Identifier: Apache-2.0
"""The report's words and numbers: table rows, the summary and the caveats, all derived from the results."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from convary.report import noise
from convary.report.health import badges, trouble
from convary.text import TOO_FEW, counted, points_of_one, spell, standard_error

Method = dict[str, Any]
_SEEDS = 3  # below, a spread is not known well enough for words, whatever the interval says
MACS = ("convolution", "routing", "assembly")
UNTIMED = (
    "Latency, training step and memory are not measured: convary compare measures them after the trainings, unless it "
    "is interrupted or has --measure-seconds 0; the same command goes on there."
)


def headline(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per method for the first table; every cell is text that is ready to print."""
    static = _static(results)
    columns = {part: [method["macs"][part] for method in results["methods"]] for part in MACS}
    columns["total"] = [sum(method["macs"].values()) for method in results["methods"]]
    columns["params"] = [method["params"] for method in results["methods"]]
    digits = {name: decimals(max(counts) / 1e6) for name, counts in columns.items()}
    rows = [_row(method, static, digits, results["run"].get("init")) for method in results["methods"]]
    return [row | noise.timed(results["methods"], of) for row, of in zip(rows, results["methods"], strict=True)]


def _row(method: Method, static: Method | None, digits: dict[str, int], init: str | None) -> dict[str, Any]:
    macs, is_static = method["macs"], method["name"] == "static"
    seconds = _seconds(method)
    row = {part: f"{macs[part] / 1e6:.{digits[part]}f}" if macs[part] else "–" for part in MACS}
    row |= {
        "name": method["name"],
        "title": method["title"],
        "citation": method["citation"],
        "top1": f"{method['top1']['mean']:.2f}",
        "std": None if method["top1"]["std"] is None else f"± {method['top1']['std']:.2f}",
        "gain": None,
        "sort_gain": "",
        "interval": None,
        "wins": None,
        "params": f"{method['params'] / 1e6:.{digits['params']}f}",
        "params_ratio": None,
        "total": f"{sum(macs.values()) / 1e6:.{digits['total']}f}",
        "seconds": seconds,
        "took": None if seconds is None else spell(seconds),
        "file": _size(method, "bytes", "file"),
        "memory": _size(method, "memory", "of memory"),
        "health": badges(method, upcycled=_upcycled(method, init)),
        "trouble": trouble(method),
    }
    if static is not None and not is_static:
        row["gain"], row["sort_gain"] = signed(_gap(method, static)), _gap(method, static)
        row["interval"], row["wins"] = _interval(method), _wins(method)
        row["params_ratio"] = f"{method['params'] / static['params']:.2f}×"
    return row


def _upcycled(method: Method, init: str | None) -> bool:
    """Whether a network began as static: as its own name says, else as all do."""
    _, own, after = method["name"].partition("init=")
    return (after.partition(",")[0] if own else init) == "upcycle"


def _seconds(method: Method) -> float | None:
    """Of one training, the mean over the seeds; None where an older results.json does not know it."""
    found = [seed["curve"][-1].get("seconds") for seed in method.get("seeds", ())]
    return None if not found or None in found else sum(found) / len(found)


def _size(method: Method, name: str, what: str) -> str | None:
    """A number of bytes in words; None where an older results.json does not know it."""
    size = method.get(name)
    if size is None:
        return None
    return f"{size / 1e6:.1f} MB {what}" if size >= 1e6 else f"{size / 1e3:.0f} kB {what}"


def decimals(largest: float) -> int:
    """Decimal places that give a column's largest number three digits, of millions at most down to one.

    >>> [decimals(value) for value in (0.00052, 0.009, 0.24, 7.8, 12.4, 300.8, 0)]
    [6, 5, 3, 2, 1, 0, 0]
    """
    return 0 if largest <= 0 else min(6, max(0, 2 - math.floor(math.log10(largest))))


def signed(value: float) -> str:
    """With a sign that is as wide as a plus: +2.10, −0.35.

    >>> signed(2.1)
    '+2.10'
    """
    return f"{value:+.2f}".replace("-", "−")


def _gap(method: Method, static: Method) -> float:
    """Points of top-1 above static, from one place for page and headline: 0.425 rounds to either side."""
    gap = method.get("paired")
    return method["top1"]["mean"] - static["top1"]["mean"] if gap is None else gap["mean"]


def _interval(method: Method) -> str | None:
    """The 95 % interval of the paired gap, in words where it has none; None where there is one seed."""
    if (gap := method.get("paired")) is None:
        return None
    return f"{signed(gap['low'])} to {signed(gap['high'])}" if _has_interval(gap) else "no spread"


def _has_interval(gap: dict[str, Any]) -> bool:
    """Whether the seeds' gaps differ: a spread of 0 is the coarseness of few images, not certainty."""
    return gap["high"] - gap["low"] > 1e-9


def _wins(method: Method) -> str | None:
    if (gap := method.get("paired")) is None:
        return None
    ties = sum(abs(one) < 1e-9 for one in gap["gaps"])
    return f"{gap['wins']} of {len(gap['gaps'])} seeds" + (f", {ties} tied" if ties else "")


def summary(results: dict[str, Any]) -> str:
    """The outcome in words that say no more than the numbers: a difference only where its interval leaves out zero."""
    static = _static(results)
    others = [method for method in results["methods"] if method["name"] != "static"]
    if static is None or not others:
        best = max(results["methods"], key=lambda method: method["top1"]["mean"])
        return f"{best['title']} reached {best['top1']['mean']:.1f} % top-1."
    if (count := results["data"]["test"]) < TOO_FEW:
        tops = _listed([f"{method['title']} {method['top1']['mean']:.1f} %" for method in results["methods"]])
        return f"{counted(count)} can’t show a difference: {points_of_one(count)}. Top-1: {tops}."
    if any(method.get("paired") is None for method in others):
        gaps = ", ".join(f"{m['title']} {signed(_gap(m, static))}" for m in others)
        one = len(results["run"]["seeds"]) == 1
        said = "One seed, which ranks nothing" if one else "Results without intervals, which rank nothing"
        return (
            f"{said}: static reached {static['top1']['mean']:.1f} % top-1; the others differ from it by {gaps} points."
        )
    sure = [m for m in others if len(m["paired"]["gaps"]) >= _SEEDS and _has_interval(m["paired"])]
    better = [method for method in sure if method["paired"]["low"] > 0]
    worse = [method for method in sure if method["paired"]["high"] < 0]
    open_ = [method for method in others if method not in better and method not in worse]
    said = [_verdict(better, static, "above"), _verdict(worse, static, "below")]
    if open_:
        named = _listed([f"{m['title']} ({_gap_said(m, static)})" for m in open_])
        said.append(f"No difference to static is shown for {named}.")
    return " ".join(sentence for sentence in said if sentence)


def _gap_said(method: Method, static: Method) -> str:
    said = signed(_gap(method, static))
    return f"{said}, {_interval(method)}" if _has_interval(method["paired"]) else f"{said} for every seed"


def _verdict(methods: list[Method], static: Method, side: str) -> str:
    """Which methods are on one side of the static network, by how much, on how many seeds and at what cost."""
    if not methods:
        return ""
    parts = []
    total = sum(static["macs"].values())
    for method in methods:
        macs = sum(method["macs"].values()) / total
        parts.append(
            f"{method['title']} by {abs(_gap(method, static)):.2f} points ({_interval(method)}; "
            f"{_wins(method)}; {macs:.2f} times the multiply-adds, "
            f"{method['params'] / static['params']:.1f} times the parameters)"
        )
    return f"{side.capitalize()} static’s {static['top1']['mean']:.1f} % top-1, 95 % intervals: {_listed(parts)}."


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def picture_note(results: dict[str, Any]) -> str:
    """What a picture that travels without its page must say itself."""
    run, seeds = results["run"], len(results["run"]["seeds"])
    spread = "one seed" if seeds == 1 else f"{seeds} seeds (vertical bars: ± std)"
    epochs = f"{run['epochs']} epoch{'s' if run['epochs'] != 1 else ''}"
    bars = "; horizontal bars: 10th to 90th percentile" if noise.quiet_batches(results["methods"]) else ""
    return f"{run['model']} on {results['data']['title']}, {epochs}, {spread}{bars}. {results['machine']['cpu']}."


def caveats(results: dict[str, Any]) -> list[str]:
    """What these numbers can't show, said next to them."""
    run, data = results["run"], results["data"]
    seeds, epochs = len(run["seeds"]), run["epochs"]
    top1 = max(method["top1"]["mean"] for method in results["methods"])
    said = []
    if seeds == 1:
        said.append("One seed is one seed: there is no spread, because std needs at least 2 seeds.")
    else:
        said.append(
            f"± is the sample standard deviation over {seeds} seeds. Every network sees the same seeds and the same "
            "order of images: “vs static” is the mean of the gaps seed by seed, with its 95 % interval (Student’s t) "
            "and the seeds that it wins. Several intervals side by side each miss the truth once in twenty times."
        )
    said.append(_doubt(top1, data["test"]))
    said.append(
        f"{_number(epochs)} {'epoch is' if epochs == 1 else 'epochs are'} {_number(epochs).lower()} "
        f"epoch{'' if epochs == 1 else 's'}: this is a comparison under one small budget, not of converged networks, "
        "and says nothing about the published results."
    )
    edges = [method["title"] for method in results["methods"] if (method.get("lr") or {}).get("at_edge")]
    if edges:
        said.append(
            f"The best learning rate of {_listed(edges)} lies at an edge of those tried; a better one may lie beyond."
        )
    if run.get("limit_train"):
        said.append(f"Training used a class-balanced subset of {run['limit_train']:,} images.")
    if run.get("start_from"):
        said.append(f"Every network starts from trained weights: {run['start_from']}.")
    if run["init"] == "upcycle":
        state = "trained" if run.get("start") or run.get("start_from") else "untrained"
        said.append(f"With init upcycle a dynamic network first computes what the seed’s {state} static one computes.")
    if not noise.is_timed(results["methods"]):
        return [*said, UNTIMED]
    said.append(
        "Latency and step time were measured on the machine below and hold for it; each ratio is the median of "
        "interleaved pairs with static, with the 10th to 90th percentile. The range of static against itself is noise."
    )
    return [*said, *filter(None, [noise.busy(results["methods"])])]


def _doubt(top1: float, count: int) -> str:
    """How much of a top-1, and of a difference of two, is the choice of the test images."""
    if count < TOO_FEW:
        return f"With {counted(count)}, {points_of_one(count)}: nothing can be concluded."
    error = standard_error(top1, count)
    return (
        f"With {counted(count)}, one standard error of a top-1 near {top1:.0f} % is about {error:.1f} points, and "
        f"of the difference of two networks {math.sqrt(2) * error:.1f}, less where both are wrong on the same images. "
        "Smaller differences are not evidence."
    )


def facts(results: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Every flag of the run, the data set and the machine as label and value."""
    run = {key: value for key, value in results["run"].items() if key not in {"command", "started", "finished"}}
    data, machine = results["data"], results["machine"]
    return {
        "run": [*listed(run), ("started", _moment(results["run"]["started"])), ("took", _took(results["run"]))],
        "data": [
            ("name", f"{data['title']} ({data['name']})"),
            ("images", f"{data['train']:,} training, {data['test']:,} test"),
            ("image", " × ".join(str(side) for side in data["shape"])),
            ("classes", _classes(data["classes"])),
            ("licence", data["license"]),
            ("source", data["source"]),
        ],
        "machine": listed(machine),
    }


def listed(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values as words."""
    return [(key.replace("memory_gb", "memory (GB)").replace("_", " "), _value(value)) for key, value in values.items()]


def _classes(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
        return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()
    except ValueError:
        return text


def _took(run: dict[str, Any]) -> str:
    try:
        seconds = (datetime.fromisoformat(run["finished"]) - datetime.fromisoformat(run["started"])).total_seconds()
    except (ValueError, TypeError):
        return "unknown"
    return spell(seconds)


def _number(count: int) -> str:
    words = ["No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve"]
    return words[count] if 0 <= count < len(words) else str(count)


def _static(results: dict[str, Any]) -> Method | None:
    return next((method for method in results["methods"] if method["name"] == "static"), None)
