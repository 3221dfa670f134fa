# SPDX-License-Identifier: Apache-2.0
"""Figures that live inside a page: SVG in the page's own text colour and font, PNG as data URIs."""

import base64
import io
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from semlink.bench.figures import TEXT, Curve, draw_curves, style


def curves_svg(
    curves: Sequence[Curve],
    ylabel: str,
    chance: float | None = None,
    *,
    called: str = "guessing",
    always: bool = False,
    **axis: str,
) -> str:
    """Return an ``<svg>`` of measurements over SNR with their intervals, for the page that it is put into.

    ``chance``, ``called`` so, is drawn ``always``, or where the axis reaches down to it anyway; ``axis`` as of
    ``draw_curves``.
    """
    with style():
        figure, axes = draw_curves(curves, ylabel, **axis)
        if chance is not None and (always or axes.get_ylim()[0] <= chance):
            _level(axes, called, chance)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue())


def _level(axes: Any, name: str, value: float) -> None:
    axes.axhline(value, color=TEXT, alpha=0.45, linewidth=1)
    axes.text(1, value, name, transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=10.5)


def _inline(svg: str) -> str:
    """Make a stand-alone SVG file part of a page: no prologue, no addresses, and the colour of the text around it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:\w+)?|width|height)="[^"]*"', "", svg.split(">", 1)[0]) + ">" + svg.split(">", 1)[1]
    return svg.replace(TEXT, "currentColor")


def strip_uri(images: Tensor, zoom: int | None = None) -> str:
    """Return a PNG data URI of images side by side, each pixel enlarged to a square.

    Args:
        images: (N, C, H, W) in [0, 1], C 1 or 3.
        zoom: pixels that a square is wide; as many as make an image about 112 high if left out.
    """
    from PIL import Image

    channels, height, width = images.shape[1:]
    zoom = zoom or max(1, 112 // height)
    gap = max(2, zoom * width // 14)
    levels = (255 * images.float().clamp(0, 1)).round().to(torch.uint8)
    levels = levels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    colour = levels.expand(-1, 3, -1, -1) if channels == 1 else levels
    opaque = torch.cat([colour, torch.full_like(levels[:, :1], 255)], 1)
    strip = torch.nn.functional.pad(opaque, (0, gap)).permute(2, 0, 3, 1).flatten(1, 2)[:, :-gap]
    buffer = io.BytesIO()
    Image.fromarray(strip.contiguous().numpy(), "RGBA").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
