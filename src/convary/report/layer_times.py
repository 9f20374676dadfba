# SPDX-License-Identifier: Apache-2.0
"""The time of each layer of two exported files side by side, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from convary.report.figures import INK, MUTED
from convary.report.style import COLORS, rc
from convary.report.themes import save

ROW = 0.24  # inches
BAR = 0.38  # of a row


def draw_layer_times(times: Mapping[str, Mapping[str, float]], path: str | Path) -> None:
    """Draw a row for each layer and a bar for each file, in the order in which the layers of the last file run.

    Args:
        times: By name of a file, two of them: milliseconds by layer.
        path: .svg, .png or .pdf.

    Raises:
        OSError: if ``path`` cannot be written.
    """
    import matplotlib.pyplot as plt

    files = list(times)
    layers = list(dict.fromkeys(layer for name in reversed(files) for layer in times[name]))
    with rc(text_as_paths=True):
        drawn, panel = plt.subplots(figsize=(8.0, 1.2 + ROW * len(layers)), layout="constrained")
        for i, (name, role) in enumerate(zip(files, ("static", "series-0"), strict=True)):
            widths = [times[name].get(layer, 0.0) for layer in layers]
            places = [row + (i - 0.5) * BAR for row in range(len(layers))]
            label = f"{name}: {sum(widths):.2f} ms"
            panel.barh(places, widths, height=BAR, color=COLORS[role][0], label=label, linewidth=0)
        panel.set_yticks(range(len(layers)), layers, fontsize=7, color=INK)
        panel.set_ylim(len(layers) - 0.4, -0.6)
        panel.set_xlabel("milliseconds, one thread, by onnxruntime's profile", color=MUTED)
        panel.legend(loc="upper right", frameon=False)
        save(drawn, Path(path))
