# SPDX-License-Identifier: Apache-2.0
"""One small member of every timm family converts and keeps its outputs: the rows of docs/timm.md, run again."""

import pytest
from scripts.sweep_timm import TOLERANCE, Row, listed, page, sweep

# Weight standardisation and transposed convolutions are all that stays.
STAY = ("derives from Conv2d", "no method has a form of a transposed convolution")


def _swept() -> list:
    """Every third family in the slow tests; the others in ``make sweep``, a quarter of an hour."""
    marks = [[pytest.mark.slow] if i % 3 == 0 else [pytest.mark.slow, pytest.mark.sweep] for i in range(len(listed()))]
    return [pytest.param(name, marks=mark) for name, mark in zip(listed(), marks, strict=True)]


@pytest.mark.parametrize("name", _swept())
def test_keeps_its_outputs(name):
    row = sweep(name)
    assert row.converted > 0
    assert row.error is not None and row.error <= TOLERANCE
    assert not row.stay or any(reason in row.stay for reason in STAY)


def test_tensorflows_padding_converts_whole():
    row = sweep("tf_mobilenetv3_small_minimal_100")
    assert (row.converted, row.stay) == (row.convolutions, "") and row.error <= TOLERANCE


def test_a_network_that_cannot_is_listed_with_the_reason():
    refused = Row("f", "m", 8, 2, 0, None, "why")
    assert "| f | m | 8 | 2 | 0 | - | why |" in page([refused])
    assert "0 of 1 keep" in page([refused])
