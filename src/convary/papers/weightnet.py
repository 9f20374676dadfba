# SPDX-License-Identifier: Apache-2.0
"""The tables of WeightNet, on ShuffleNetV2 of widths of their own."""

from __future__ import annotations

from convary.methods import WeightNet
from convary.papers.row import Published, Row, Source, Table

SOURCE = {
    "paper": "Ma, Zhang, Huang, Sun: WeightNet: Revisiting the Design Space of Weight Networks, ECCV 2020",
    "url": "https://github.com/megvii-model/WeightNet",
}
UNREAD = "the paper's settings have not been read again, and no training was released"
OWN = (
    "Every layer reduces its own input here; in the released code a block's layers share one reduction, so the "
    "parameters differ a little."
)
NETWORKS = {
    "0.5": "torchvision:shufflenet_v2_x0_5", "1.0": "torchvision:shufflenet_v2_x1_0@0.966",
    "1.5": "torchvision:shufflenet_v2_x1_5", "2.0": "torchvision:shufflenet_v2_x1_0@2.138",
}  # fmt: skip
STATIC = {"0.5": ("1.4M", "41M", "39.7"), "1.0": ("2.2M", "138M", "30.9"), "1.5": ("3.5M", "299M", "27.4"),
          "2.0": ("5.5M", "557M", "25.5")}  # fmt: skip


def _rows(times: dict[str, int], dynamic: dict[str, tuple[str, str, str]]) -> tuple[Row, ...]:
    rows = []
    for width, ratio in times.items():
        name = f"shufflenetv2-{width}"
        method = WeightNet(expansion=2 * ratio, splits=2)
        for found, title, of, numbers in (
            (name, f"ShuffleNetV2 ({width}x)", None, STATIC[width]),
            (f"{name}-{ratio}x", f"+ WeightNet ({ratio}x)", method, dynamic[width]),
        ):
            params, madds, error = numbers
            published = Published(params=params, madds=madds, error=error)
            rows.append(
                Row(name=found, title=title, network=NETWORKS[width], method=of, published=published, untrained=UNREAD,
                    note=OWN if of else "")
            )  # fmt: skip
    return tuple(rows)


WIDTHS = (
    "The released networks have 48, 112, 176 and 248 channels in their first stage and 1,024 before the classifier; so "
    "have these."
)
SAME_PARAMS = Table(
    name="weightnet-params",
    title="WeightNet on ImageNet, at equal parameters and multiply-adds",
    source=Source(**SOURCE, place="README of the released code"),
    rows=_rows(
        dict.fromkeys(STATIC, 1),
        {"0.5": ("1.5M", "41M", "36.7"), "1.0": ("2.4M", "139M", "28.8"), "1.5": ("3.9M", "301M", "25.6"),
         "2.0": ("6.1M", "562M", "24.1")},
    ),
    note=f"{WIDTHS} A test builds the released 1x networks from layers of this package, with exactly their parameters.",
)  # fmt: skip

SAME_FLOPS = Table(
    name="weightnet-madds",
    title="WeightNet on ImageNet, at equal multiply-adds",
    source=Source(**SOURCE, place="README of the released code"),
    rows=_rows(
        {"0.5": 8, "1.0": 4, "1.5": 4, "2.0": 4},
        {"0.5": ("2.7M", "42M", "34.0"), "1.0": ("5.1M", "141M", "27.6"), "1.5": ("9.6M", "307M", "25.0"),
         "2.0": ("18.1M", "573M", "23.5")},
    ),
    note=f"{WIDTHS} 4x is M = 8 and G = 2 here, 8x M = 16: the README says only the ratio.",
)  # fmt: skip

TABLES = (SAME_PARAMS, SAME_FLOPS)
