# SPDX-License-Identifier: Apache-2.0
"""Tests of this folder are marked. The programs under field/ run as processes of their own, and are not imported."""

import pytest

collect_ignore_glob = ["field/*"]


def pytest_itemcollected(item: pytest.Item) -> None:
    """``make slow`` runs those that are not slow too: ``make test`` skips them for want of the programs."""
    item.add_marker("clients")
