# SPDX-License-Identifier: Apache-2.0
"""docs/evidence.md and its pictures out of the committed results; every number on the page comes from them.

    python -m studies.page

The words are in studies/evidence.md; ``[[ ... ]]`` in it are the calls of :class:`Page`.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import jinja2

from convary import METHODS
from convary.files import read_json
from studies import methods
from studies.methods import EQUAL, SCRATCH, said, table
from studies.pictures import gaps, picture
from studies.results import AXES, FOLDER, Arm, read

TEMPLATE = Path(__file__).parent / "evidence.md"
DOCS = Path(__file__).parents[1] / "docs"
DRAWN = ("s2-papers", "s2-kin", "s2-attention", "s2-assembled", "s3-widths", "s3-more-widths")  # of one static network
BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
GAPS_TITLE = "CIFAR-10 (last rows: Fashion-MNIST), about 3,400 parameters: five seeds (dots), mean and 95 % interval"


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

    def ratio(self, block: str, name: str, what: str) -> str:
        """Its cost relative to static."""
        return f"{self.arm(block, name).ratio(what):.3g}"

    def gap(self, block: str, name: str, other: str = "") -> str:
        """Paired gap to static, or to another network of any block with it, with its 95 % interval and seeds won."""
        arm = self.arm(block, name)
        return said(arm.gap(self._paired(other, arm) if other else None))

    def _paired(self, name: str, arm: Arm) -> Arm:
        """The network of this name that shares its static network with another."""
        all_arms = (arm for arms in self.blocks.values() for arm in arms)
        return next(other for other in all_arms if other.name == name and other.base is arm.base)

    def table(self, *blocks: str, against: str = "") -> str:
        """Markdown: a row per network.

        Args:
            blocks: Whose networks, those that are not there left out.
            against: Another network to give the gap to in a second column.
        """
        arms = [arm for block in blocks for arm in self.blocks.get(block, [])]
        other = self._paired(against, arms[0]) if against else None
        head = ["network", "top-1 %", "gap to static: mean, 95 % interval, seeds won"]
        head += [f"gap to {other.entry['title']}"] if other else []
        head += ["multiply-adds", "parameters", "latency, 1 / 16 / 128 images", "training step", "learning rate"]
        rows = [[arm.entry["title"], _mean(arm.tops), said(arm.gap())] for arm in arms]
        for row, arm in zip(rows, arms, strict=True):
            if other:
                row.append("" if arm.is_static or arm.tops is other.tops else said(arm.gap(other)))
            row += [f"{arm.ratio('macs'):.2f}", f"{arm.ratio('params'):.1f}", *_cost(arm), _rate(arm)]
        return table(head, rows)

    def variants(self, method: str, *blocks: str) -> str:
        """Markdown: a method as published and its variants, each beside static and beside that method.

        Args:
            method: Its name in a block of methods from scratch.
            blocks: Whose networks, those that are not there left out.
        """
        whole = next(arm for block in SCRATCH for arm in self.blocks.get(block, []) if arm.name == method)
        arms = [arm for block in blocks for arm in self.blocks.get(block, []) if arm.name.startswith(method)]
        head = ["network", "top-1 %", "gap to static", f"gap to {whole.entry['title']}", "multiply-adds", "parameters"]
        rows = [
            [
                *(arm.entry["title"], _mean(arm.tops), said(arm.gap())),
                said(arm.gap(whole)) if arm is not whole else "",
                *(f"{arm.ratio('macs'):.2f}", f"{arm.ratio('params'):.1f}"),
            ]
            for arm in [whole, *arms]
        ]
        return table(head, rows)

    def equal(self, *blocks: str) -> str:
        """Markdown: the gap of every dynamic network to a static one of the same cost, for each kind of cost.

        Args:
            blocks: Whose networks, those that are not there left out.
        """
        arms = [arm for block in blocks for arm in self.blocks.get(block, [])]
        dynamic = [arm for arm in arms if arm.name.partition("@")[0] != "static"]
        head = ["network", *(f"equal {words}" for words in AXES.values())]
        rows = [[arm.entry["title"], *(self._equal(arm, axis) for axis in AXES)] for arm in dynamic]
        return table(head, rows)

    def gap_at(self, name: str, axis: str, block: str = "s2-papers") -> str:
        """Gap of one network to a static one of the same cost."""
        return self._equal(self.arm(block, name), axis)

    def _equal(self, arm: Arm, axis: str) -> str:
        found = arm.gap_at_equal(axis, (other for arms in self.blocks.values() for other in arms))
        return said(found) or ("not measured" if arm.ratio(axis) is None else "beyond what was trained")

    def rates(self, block: str) -> str:
        """Markdown: top-1 on held-out training images for each learning rate that was tried."""
        arms = [arm for arm in self.blocks[block] if arm.entry["lr"]["grid"]]
        tried = [entry["lr"] for entry in arms[0].entry["lr"]["grid"]]
        rows = [[arm.entry["title"], *(_tried(entry) for entry in arm.entry["lr"]["grid"])] for arm in arms]
        head = ["network", *(f"{lr:g}" for lr in tried)]
        return table(head, rows)

    def edges(self) -> str:
        """The networks whose best learning rate lies at an edge of those that were tried."""
        arms = (arm for arms in self.blocks.values() for arm in arms if len(arm.tops) > 1)  # S1 asks for no more
        found = [arm.entry["title"] for arm in arms if arm.entry["lr"]["at_edge"]]
        return "; ".join(dict.fromkeys(found)) or "none"

    def seeds(self, block: str) -> str:
        """Markdown: top-1 of every seed."""
        arms = self.blocks[block]
        head = ["network", *(f"seed {seed}" for seed in range(len(arms[0].tops))), "training images"]
        rows = [
            [arm.entry["title"], *(f"{top:.2f}" for top in arm.tops), _mean(arm.entry["train_top1"])] for arm in arms
        ]
        return table(head, rows)

    def bill(self, name: str) -> str:
        """Latency of 1, 16 and 128 images relative to static."""
        return _cost(next(arm for arms in self.blocks.values() for arm in arms if arm.name == name))[0]

    def machine(self) -> str:
        """Where cost was measured."""
        cost = FOLDER / "cost.json"
        return read_json(cost)["machine"]["cpu"] if cost.exists() else "not measured yet"

    def hours(self) -> str:
        """CPU hours of the final trainings, without the trials of learning rates."""
        return f"{sum(sum(arm.entry['cpu_seconds']) for arms in self.blocks.values() for arm in arms) / 3600:.1f}"


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _tried(entry: dict[str, Any]) -> str:
    return "diverged" if entry["held_out_top1"] is None else f"{entry['held_out_top1']:.2f}"


def _cost(arm: Arm) -> list[str]:
    if arm.cost is None:
        return ["not measured", ""]
    latency = " / ".join(f"{arm.cost[f'batch {batch}']['ratio']:.2f}" for batch in (1, 16, 128))
    return [latency, f"{arm.cost['step']['ratio']:.2f}"]


def _rate(arm: Arm) -> str:
    return f"{arm.entry['lr']['chosen']:g}{', an edge' if arm.entry['lr']['at_edge'] else ''}"


SUMMARY = {
    "README.md": (
        "CIFAR-10, a network of {params:,} parameters; gaps in points, with their 95 % interval and seeds won. "
        "From scratch for 20 epochs, CondConv: {condconv}; against a static network of ODConv's multiply-adds "
        "{condconv_equal}; against squeeze-and-excitation, which gains nothing there, {condconv_se}. "
        "CGC, with 1.3 times the parameters: {cgc}; against a static network of as many parameters {cgc_params}. "
        "ODConv: {odconv}; {odconv_equal}. A *trained* static network, converted and trained on for "
        "10 epochs, against the same network that trains on as long, ODConv: {odconv_on}; CondConv: {condconv_on}. "
        "Where one network serves *four conditions* (as it is, negative, on its side, at night), from scratch, "
        "CondConv: {condconv_conditions}; ODConv: {odconv_conditions}."
    ),
    "README.zh.md": (
        "CIFAR-10，{params:,} 个参数的网络；差值以百分点计，附 95 % 置信区间和胜出的种子数。"
        "从头训练 20 轮，CondConv：{condconv}；相对于乘加次数与 ODConv 相同的静态网络 {condconv_equal}；"
        "相对于在此毫无增益的 SE 注意力 {condconv_se}。"
        "CGC（参数为 1.3 倍）：{cgc}；相对于参数量相同的静态网络 {cgc_params}。"
        "ODConv：{odconv}；{odconv_equal}。将*训练好的*静态网络转换后再训练 10 轮，"
        "相对于同样继续训练的同一网络，ODConv：{odconv_on}；CondConv：{condconv_on}。"
        "一个网络应对*四种条件*（原图、负片、侧转、夜间）时，从头训练，CondConv：{condconv_conditions}；ODConv：{odconv_conditions}。"
    ),
}


def summary(page: Page, name: str) -> str:
    """For a README: against static, against a static network of equal cost, and from a trained network."""
    gaps = {
        f"{method}{suffix}": page.gap(block, method, other)
        for method in ("odconv", "condconv")
        for suffix, block, other in (
            ("", "s2-papers", ""),
            ("_equal", "s2-papers", EQUAL),
            ("_on", "s6-trained", ""),
            ("_conditions", "s7-conditions", ""),
            ("_se", "s2-papers", "se"),
        )
    }
    gaps |= {"cgc": page.gap("s2-assembled", "cgc"), "cgc_params": page.gap_at("cgc", "params", "s2-assembled")}
    if name == "README.zh.md":
        gaps = {key: gap.replace(" to ", " 至 ").replace(" of ", "/") for key, gap in gaps.items()}
    return SUMMARY[name].format(params=page.arm("s2-papers", EQUAL).base["params"], **gaps)


def put(text: str, inner: str) -> str:
    """The text with ``inner`` between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{inner}\n{end}{after}"


def write(docs: Path = DOCS, readmes: Path = DOCS.parent, results: Path = FOLDER) -> None:
    """The page and its pictures, the summary in the READMEs, the results of methods and the table that helps to choose.

    Args:
        docs: Where ``evidence.md`` and ``images/`` go, and where ``methods/`` and ``which-method.md`` are.
        readmes: Folder of ``README.md`` and its translation, which have the marks between which the summary goes.
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
    for name in SUMMARY:
        readme = readmes / name
        readme.write_text(put(readme.read_text(encoding="utf-8"), summary(page, name)), encoding="utf-8")
    for config in METHODS:
        path = docs / "methods" / f"{config.name}.md"
        text = put(path.read_text(encoding="utf-8"), methods.result(blocks, config))
        path.write_text(text, encoding="utf-8")
    which = docs / "which-method.md"
    which.write_text(put(which.read_text(encoding="utf-8"), methods.decision(blocks)), encoding="utf-8")
    title = (
        "CIFAR-10, a network of 3,440 parameters, 20 epochs, 5 paired seeds; bars: 95 % interval of the gap to static"
    )
    gaps(blocks, docs / "images" / "gaps.svg", GAPS_TITLE)
    picture(blocks, DRAWN, docs / "images" / "evidence.svg", title)


if __name__ == "__main__":
    write()
