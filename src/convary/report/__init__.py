# SPDX-License-Identifier: Apache-2.0
"""Turn results.json into what people read: ``write`` a page, ``picture`` for one image, ``headline`` for the table.

``draw`` makes a picture of what ``convary.diagnose`` found, ``draw_layer_times`` of where the time of files goes.
"""

from convary.report.diagnosis import draw
from convary.report.layer_times import draw_layer_times
from convary.report.page import picture, write
from convary.report.schema import check, load
from convary.report.tables import headline

__all__ = ["check", "draw", "draw_layer_times", "headline", "load", "picture", "write"]
