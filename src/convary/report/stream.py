# SPDX-License-Identifier: Apache-2.0
"""The experts' shares over training, layer by layer: where one swallows the others it is seen happening."""

from __future__ import annotations

from html import escape
from typing import Any

from convary.report.style import SERIES

WIDE, HIGH = 220, 76  # of a graph, in CSS pixels


def streams(method: dict[str, Any]) -> list[dict[str, str]]:
    """One graph per layer from the first seed's curve; none where an older results.json has no shares."""
    points = [(point["epoch"], point["experts"]) for point in method["seeds"][0]["curve"] if point.get("experts")]
    if len(points) < 2:
        return []
    epochs = [epoch for epoch, _ in points]
    layers = [layer for layer in points[0][1] if all(layer in shares for _, shares in points)]
    return [
        {
            "layer": layer,
            "svg": stream(epochs, [shares[layer] for _, shares in points], f"{layer} of {method['title']}"),
        }
        for layer in layers
    ]


def stream(epochs: list[float], shares: list[list[float]], name: str) -> str:
    """Stacked areas, one per expert, from bottom to top.

    Args:
        epochs: Where the shares were taken, at least two of them.
        shares: At each of them, one number per expert.
        name: Whose they are.
    """
    x = [WIDE * (epoch - epochs[0]) / (epochs[-1] - epochs[0]) for epoch in epochs]
    parts = []
    for expert in range(len(shares[0])):
        low = [HIGH * (1 - sum(row[:expert])) for row in shares]
        high = [HIGH * (1 - sum(row[: expert + 1])) for row in shares]
        outline = [*zip(x, high, strict=True), *reversed(list(zip(x, low, strict=True)))]
        area = " ".join(f"{right:.1f},{down:.1f}" for right, down in outline)
        said = f"expert {expert + 1} of {name}: {100 * shares[0][expert]:.0f} % after epoch {epochs[0]:g}, "
        said += f"{100 * shares[-1][expert]:.0f} % after epoch {epochs[-1]:g}"
        parts.append(
            f'<polygon class="mark" points="{area}" fill="var(--{SERIES[expert % len(SERIES)]})">'
            f"<title>{escape(said)}</title></polygon>"
        )
    label = escape(f"Shares of the experts over training, {name}")
    return (
        f'<svg class="stream" role="img" aria-label="{label}" data-marks viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" '
        f'height="{HIGH}">{"".join(parts)}</svg>'
    )
