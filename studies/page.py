# SPDX-License-Identifier: Apache-2.0
"""docs/evidence.md and its pictures out of the committed results; every number on the page comes from them.

    python -m studies.page

The words are in studies/evidence.md; ``[[ ... ]]`` in it are the calls of :class:`Page`.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from convary.files import read_json
from convary.report import style
from convary.report.figures import label
from convary.report.tables import signed
from studies.results import FOLDER, Arm, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = Path(__file__).parent / "evidence.md"
DOCS = Path(__file__).parents[1] / "docs"
README = DOCS.parent / "README.md"
BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
EQUAL = "static@macs:odconv"
GAPS_TITLE = "CIFAR-10, 3,440 parameters: five seeds (dots), mean and 95 % interval"
AXES = {"macs": "multiply-adds (times static)", "batch 16": "measured latency of 16 images (times static)"}


class Page:
    """What the template calls.

    Args:
        blocks: As :func:`studies.results.read` gives them.
    """

    def __init__(self, blocks: dict[str, list[Arm]]):
        self.blocks = blocks

    def arm(self, block: str, name: str) -> Arm:
        """One network of a block."""
        return next(arm for arm in self.blocks[block] if arm.name == name)

    def top1(self, block: str, name: str) -> str:
        """Mean over the seeds, in percent."""
        tops = self.arm(block, name).tops
        return f"{sum(tops) / len(tops):.1f}"

    def gap(self, block: str, name: str, other: str = "") -> str:
        """Paired gap to static, or to another network, with its 95 % interval and seeds won."""
        base = self._any(other) if other else None
        return _said(self.arm(block, name).gap(base))

    def _any(self, name: str) -> Arm:
        return next(arm for arms in self.blocks.values() for arm in arms if arm.name == name)

    def table(self, *blocks: str, against: str = "") -> str:
        """Markdown: a row per network.

        Args:
            blocks: Whose networks, those that are not there left out.
            against: Another network to give the gap to in a second column.
        """
        arms = [arm for block in blocks for arm in self.blocks.get(block, [])]
        other = self._any(against) if against else None
        head = ["network", "top-1 %", "gap to static: mean, 95 % interval, seeds won"]
        head += [f"gap to {other.entry['title']}"] if other else []
        head += ["multiply-adds", "parameters", "latency, 1 / 16 / 128 images", "training step", "learning rate"]
        rows = [[arm.entry["title"], _mean(arm.tops), _said(arm.gap())] for arm in arms]
        for row, arm in zip(rows, arms, strict=True):
            if other:
                row.append("" if arm.is_static or arm.tops is other.tops else _said(arm.gap(other)))
            row += [f"{arm.ratio('macs'):.2f}", f"{arm.ratio('params'):.1f}", *_cost(arm), _rate(arm)]
        return "\n".join(_line(row) for row in [head, ["---"] * len(head), *rows])

    def rates(self, block: str) -> str:
        """Markdown: top-1 on held-out training images for each learning rate that was tried."""
        arms = [arm for arm in self.blocks[block] if arm.entry["lr"]["grid"]]
        tried = [entry["lr"] for entry in arms[0].entry["lr"]["grid"]]
        rows = [[arm.entry["title"], *(_tried(entry) for entry in arm.entry["lr"]["grid"])] for arm in arms]
        head = ["network", *(f"{lr:g}" for lr in tried)]
        return "\n".join(_line(row) for row in [head, ["---"] * len(head), *rows])

    def edges(self) -> str:
        """The networks whose best learning rate lies at an edge of those that were tried."""
        found = [arm.entry["title"] for arms in self.blocks.values() for arm in arms if arm.entry["lr"]["at_edge"]]
        return ", ".join(found) or "none"

    def seeds(self, block: str) -> str:
        """Markdown: top-1 of every seed."""
        arms = self.blocks[block]
        head = ["network", *(f"seed {seed}" for seed in range(len(arms[0].tops))), "training images"]
        rows = [
            [arm.entry["title"], *(f"{top:.2f}" for top in arm.tops), _mean(arm.entry["train_top1"])] for arm in arms
        ]
        return "\n".join(_line(row) for row in [head, ["---"] * len(head), *rows])

    def bill(self, name: str) -> str:
        """Latency of 1, 16 and 128 images relative to static."""
        return _cost(self._any(name))[0]

    def machine(self) -> str:
        """Where cost was measured."""
        cost = FOLDER / "cost.json"
        return read_json(cost)["machine"]["cpu"] if cost.exists() else "not measured yet"

    def hours(self) -> str:
        """CPU hours of the final trainings, without the trials of learning rates."""
        return f"{sum(sum(arm.entry['cpu_seconds']) for arms in self.blocks.values() for arm in arms) / 3600:.1f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def _said(gap: dict[str, Any] | None) -> str:
    if gap is None:
        return ""
    words = (
        f"{signed(gap['mean'])} ({signed(gap['low'])} to {signed(gap['high'])}), {gap['wins']} of {len(gap['gaps'])}"
    )
    return f"**{words}**" if gap["low"] > 0 or gap["high"] < 0 else words


def _tried(entry: dict[str, Any]) -> str:
    return "diverged" if entry["held_out_top1"] is None else f"{entry['held_out_top1']:.2f}"


def _cost(arm: Arm) -> list[str]:
    if arm.cost is None:
        return ["not measured", ""]
    latency = " / ".join(f"{arm.cost[f'batch {batch}']['ratio']:.2f}" for batch in (1, 16, 128))
    return [latency, f"{arm.cost['step']['ratio']:.2f}"]


def _rate(arm: Arm) -> str:
    return f"{arm.entry['lr']['chosen']:g}{', an edge' if arm.entry['lr']['at_edge'] else ''}"


def picture(blocks: dict[str, list[Arm]], names: tuple[str, ...], path: Path, title: str) -> None:
    """Top-1 against cost: static networks of all widths as a line, every method a point with its interval.

    Args:
        blocks: As :func:`studies.results.read` gives them.
        names: The blocks to draw, which share their static network.
        path: Of the SVG.
        title: Above the picture.
    """
    arms = [arm for name in names for arm in blocks.get(name, [])]
    looks = style.looks([arm.name for arm in arms])
    with style.rc(text_as_paths=True):
        drawn, panels = style.figure(10.5, 4.2, 2)
        for panel, (axis, words) in zip(panels, AXES.items(), strict=True):
            _panel(panel, [arm for arm in arms if axis == "macs" or arm.cost], axis, looks)
            style.titled(panel, "Top-1 accuracy (%)", words)
        drawn.suptitle(title, fontsize=10, x=0.01, ha="left", color=style.COLORS["muted"][0])
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, metadata={"Date": None})


def _panel(panel: Axes, arms: list[Arm], axis: str, looks: dict[str, style.Look]) -> None:
    def x(arm: Arm) -> float:
        return arm.ratio("macs") if axis == "macs" else arm.cost[axis]["ratio"]  # type: ignore[index]

    def y(arm: Arm) -> float:
        return sum(arm.tops) / len(arm.tops)

    family = sorted((arm for arm in arms if arm.name.partition("@")[0] == "static"), key=x)
    panel.plot([x(arm) for arm in family], [y(arm) for arm in family], "-", color=style.COLORS["static"][0], lw=1.4)
    places, bars = [], []
    for arm in arms:
        here, mean, look = x(arm), y(arm), looks[arm.name]
        gap = arm.gap()
        half = 0.0 if gap is None else gap["high"] - gap["mean"]
        panel.errorbar(
            here,
            mean,
            yerr=half,
            fmt=look.marker,
            color=look.color,
            ms=8,
            mec=style.COLORS["surface"][0],
            elinewidth=1.3,
        )
        words = f"static, {arm.ratio('macs'):.2f} MACs" if arm.name.startswith("static@") else arm.entry["title"]
        places.append((here, mean, words, look.color))
        bars.append((here, mean - half, here, mean + half))
    panel.margins(x=0.15, y=0.12)
    label(panel, places, bars)


GAPS = {"s2-papers": "from scratch", "s2-kin": "from scratch", "s6-trained": "from a trained static network"}


def gaps(blocks: dict[str, list[Arm]], path: Path, title: str) -> None:
    """The gap of every network to static: seeds as dots, the mean with its 95 % interval.

    Args:
        blocks: As :func:`studies.results.read` gives them.
        path: Of the SVG.
        title: Above the picture.
    """
    rows = [(arm, how) for block, how in GAPS.items() for arm in blocks.get(block, []) if not arm.is_static]
    looks = style.looks([arm.name for arm, _ in rows])
    muted = style.COLORS["muted"][0]
    with style.rc(text_as_paths=True):
        drawn, (panel,) = style.figure(10.5, 0.75 + 0.42 * len(rows))
        for y, (arm, _) in enumerate(rows):
            gap, look = arm.gap(), looks[arm.name]
            if gap is not None:
                panel.plot(gap["gaps"], [y] * len(gap["gaps"]), "o", ms=4, color=look.color, alpha=0.4, mew=0)
                panel.plot([gap["low"], gap["high"]], [y, y], "-", lw=2.0, color=look.color)
                panel.plot([gap["mean"]], [y], look.marker, ms=9, color=look.color, mec=style.COLORS["surface"][0])
                panel.annotate(f"{signed(gap['mean'])}", (1.01, y), xycoords=("axes fraction", "data"), va="center",
                               color=look.color, fontsize=9.5, weight="bold")  # fmt: skip
        panel.axvline(0.0, color=muted, linewidth=1.0)
        panel.set_yticks(range(len(rows)), [f"{arm.entry['title']}, {how}" for arm, how in rows])
        panel.invert_yaxis()
        panel.grid(visible=False)
        panel.margins(y=0.12)
        style.titled(panel, title, "points of top-1 above the static network with the same seed")
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, metadata={"Date": None})


def summary(page: Page) -> str:
    """For the README: the methods on one network, against static and against a static network of equal cost."""
    equal = page.arm("s2-papers", EQUAL)
    arms = [arm for block in ("s2-papers", "s2-kin") for arm in page.blocks.get(block, [])]
    head = ["", "top-1 %", "gap to static", f"gap to {equal.entry['title']}", "multiply-adds", "parameters"]
    rows = [[arm.entry["title"], _mean(arm.tops), _said(arm.gap())] for arm in arms]
    for row, arm in zip(rows, arms, strict=True):
        row.append("" if arm.is_static or arm.tops is equal.tops else _said(arm.gap(equal)))
        row += [f"{arm.ratio('macs'):.2f}", f"{arm.ratio('params'):.1f}"]
    first = (
        f"CIFAR-10, a network of {equal.base['params']:,} parameters, 20 epochs, {len(equal.tops)} paired seeds, a "
        "learning rate chosen for each: gaps in points with their 95 % interval and seeds won; bold where it leaves "
        "out zero."
    )
    table = [_line(row) for row in [head, ["---"] * len(head), *rows]]
    if "s6-trained" not in page.blocks:
        return "\n".join([first, "", *table])
    odconv, condconv = (page.gap("s6-trained", name) for name in ("odconv", "condconv"))
    last = (
        "From a *trained* static network, converted and trained on for 10 epochs, against the static network that "
        f"trains on as long: ODConv {odconv}; CondConv {condconv}."
    )
    return "\n".join([first, "", *table, "", last])


def put(text: str, inner: str) -> str:
    """The text with ``inner`` between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{inner}\n{end}{after}"


def write(docs: Path = DOCS, readme: Path = README, results: Path = FOLDER) -> None:
    """The page, its picture and the summary in the README.

    Args:
        docs: Where ``evidence.md`` and ``images/`` go.
        readme: Has the marks between which the summary goes.
        results: What studies.run wrote.

    Raises:
        DataError: results that are not pairs.
    """
    blocks = read(results)
    environment = jinja2.Environment(
        variable_start_string="[[",
        variable_end_string="]]",
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,
    )
    page = Page(blocks)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(page=page, blocks=blocks)
    (docs / "evidence.md").write_text(text, encoding="utf-8")
    readme.write_text(put(readme.read_text(encoding="utf-8"), summary(page)), encoding="utf-8")
    title = (
        "CIFAR-10, a network of 3,440 parameters, 20 epochs, 5 paired seeds; bars: 95 % interval of the gap to static"
    )
    gaps(blocks, docs / "images" / "gaps.svg", GAPS_TITLE)
    picture(blocks, ("s2-papers", "s2-kin", "s3-widths", "s2-assembled"), docs / "images" / "evidence.svg", title)


if __name__ == "__main__":
    write()
