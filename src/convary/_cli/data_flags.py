# SPDX-License-Identifier: Apache-2.0
"""The flags of ``convary data``, apart from the list of the data sets, which needs no parser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Data:
    """List the data sets and whether they are on this machine; with a NAME, fetch or check that one."""

    name: Positional[str | None] = None
    """The set to fetch; leave it out for the list."""
    root: Path | None = None
    """Data root; by default $CONVARY_DATA, or a folder in the user's cache."""
