# SPDX-License-Identifier: Apache-2.0
"""Turn results.json into what people read: ``write`` a page, ``picture`` for one image, ``headline`` for the table.

``draw`` makes a picture of what ``convary.diagnose`` found.
"""

from convary.report.diagnosis import draw
from convary.report.page import picture, write
from convary.report.schema import check, load
from convary.report.tables import headline

__all__ = ["check", "draw", "headline", "load", "picture", "write"]
