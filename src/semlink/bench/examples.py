# SPDX-License-Identifier: Apache-2.0
"""The test images that stand for all in pictures: the first, and by rank the best, the middle and the worst.

They are the same first images for every link and attack, and nobody picks any. How they are laid out is elsewhere
(``pictures``), so that a change of the layout leaves what was measured as it is.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from semlink.data import ImageSet

FIRST = 10
RANKED = ("best", "median", "worst")


@torch.no_grad()
def examples(
    test: ImageSet, found: dict[float, dict[str, Tensor]], snr_db: float, make: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return test images beside what is made of them.

    Args:
        test: n images, or groups of K.
        found: per-image values (draws, n) by SNR in dB and metric. Ranks are by PSNR, draws averaged.
        snr_db: what was measured nearest to it ranks the images.
        make: from images (m, C, H, W), or groups (m, K, C, H, W), to what is made of them.

    Returns:
        ``originals`` and ``drawn``, (m, C, H, W) or (m, K, C, H, W). Where PSNR was measured also ``ranked``, (3,)
        int64, the indices of the images in the order of RANKED, with ``ranked_originals`` and ``ranked_drawn``.
    """
    images = test.batch(torch.arange(min(FIRST, len(test))))[0]
    shown = {"originals": images, "drawn": make(images)}
    values = found[min(found, key=lambda measured: abs(measured - snr_db))]
    if "psnr_db" in values:
        order = values["psnr_db"].mean(0).argsort(descending=True, stable=True)
        ranked = order[[0, len(order) // 2, -1]]
        images = test.batch(ranked)[0]
        shown |= {"ranked": ranked, "ranked_originals": images, "ranked_drawn": make(images)}
    return shown
