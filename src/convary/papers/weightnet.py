# SPDX-License-Identifier: Apache-2.0
"""The tables of WeightNet, whose networks are no conversions."""

from __future__ import annotations

from convary.papers.row import Published, Row, Source, Table

SOURCE = {
    "paper": "Ma, Zhang, Huang, Sun: WeightNet: Revisiting the Design Space of Weight Networks, ECCV 2020",
    "url": "https://github.com/megvii-model/WeightNet",
}
OBSTACLE = (
    "the released networks have trimmed widths, and one reduction for all layers of a block; no conversion makes them"
)
STATIC = {"0.5": ("1.4M", "41M", "39.7"), "1.0": ("2.2M", "138M", "30.9"), "1.5": ("3.5M", "299M", "27.4"),
          "2.0": ("5.5M", "557M", "25.5")}  # fmt: skip


def _rows(times: dict[str, str], dynamic: dict[str, tuple[str, str, str]]) -> tuple[Row, ...]:
    rows = []
    for width, ratio in times.items():
        name, title = f"shufflenetv2-{width}", f"ShuffleNetV2 ({width}x)"
        for suffix, told, numbers in (
            ("", title, STATIC[width]),
            (f"-{ratio}", f"+ WeightNet ({ratio})", dynamic[width]),
        ):
            params, madds, error = numbers
            published = Published(params=params, madds=madds, error=error)
            rows.append(Row(name=name + suffix, title=told, network=None, published=published, obstacle=OBSTACLE))
    return tuple(rows)


SAME_PARAMS = Table(
    name="weightnet-params",
    title="WeightNet on ImageNet, at equal parameters and multiply-adds",
    source=Source(**SOURCE, place="README of the released code"),
    rows=_rows(
        dict.fromkeys(STATIC, "1x"),
        {"0.5": ("1.5M", "41M", "36.7"), "1.0": ("2.4M", "139M", "28.8"), "1.5": ("3.9M", "301M", "25.6"),
         "2.0": ("6.1M", "562M", "24.1")},
    ),
    note="A test builds the released 1x networks from layers of this package, with exactly the authors' parameters.",
)  # fmt: skip

SAME_FLOPS = Table(
    name="weightnet-madds",
    title="WeightNet on ImageNet, at equal multiply-adds",
    source=Source(**SOURCE, place="README of the released code"),
    rows=_rows(
        {"0.5": "8x", "1.0": "4x", "1.5": "4x", "2.0": "4x"},
        {"0.5": ("2.7M", "42M", "34.0"), "1.0": ("5.1M", "141M", "27.6"), "1.5": ("9.6M", "307M", "25.0"),
         "2.0": ("18.1M", "573M", "23.5")},
    ),
)  # fmt: skip

TABLES = (SAME_PARAMS, SAME_FLOPS)
