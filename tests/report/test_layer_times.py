# SPDX-License-Identifier: Apache-2.0
"""Where the time of an exported file goes: every layer by its name, in both files, and a picture of it."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn

import convary as cv
from convary._blocked import DOMAIN
from convary._exported import onnx_nodes
from convary._layer_times import layer_times
from convary.report import draw_layer_times

pytest.importorskip("onnxruntime")


def test_a_static_and_a_dynamic_file_have_the_same_layers(tmp_path):
    static = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU6(), nn.Flatten(),
        nn.Linear(800, 4),
    ).eval()  # fmt: skip
    dynamic = cv.convert(static, cv.ODConv(experts=2)).eval()
    x, times = torch.randn(1, 3, 9, 9), {}
    runtimes = {"static": "any", "any": "any", "onnxruntime": "onnxruntime"}
    if cv.ops.native.available() is None:
        runtimes["convary"] = "convary"
    for name, runtime in runtimes.items():
        path = tmp_path / f"{name}.onnx"
        cv.export(static if name == "static" else dynamic, x, path, dynamic=(), runtime=runtime)
        times[name] = layer_times(path, x)
        assert {"0", "3", "6"} <= set(times[name]) <= {"0", "2", "3", "4", "5", "6", "(between)", "(network)"}
        assert all(ms > 0 for layer, ms in times[name].items() if layer in ("0", "3", "6"))
    picture = tmp_path / "times.svg"
    draw_layer_times({name: times[name] for name in ("static", "any")}, picture)
    ElementTree.parse(picture)


def test_blocked_convolutions_are_of_their_layers(tmp_path):
    layers = cv.DyConv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), nn.ReLU6(), cv.ODConv2d(16, 32, 1), nn.ReLU()
    cv.export(nn.Sequential(*layers).eval(), (1, 16, 20, 20), tmp_path / "m.onnx", dynamic=(), runtime="onnxruntime")
    nodes = [n for n in onnx_nodes(tmp_path / "m.onnx") if (n.op_type, n.domain) == ("Conv", DOMAIN)]
    scopes = [prop.value for n in nodes for prop in n.metadata_props if prop.key == "pkg.torch.onnx.name_scopes"]
    assert len(nodes) >= 2 and len(scopes) == len(nodes)
    assert {scope.split("'")[3] for scope in scopes} == {"0", "3"}
