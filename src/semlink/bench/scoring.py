# SPDX-License-Identifier: Apache-2.0
"""Sending an image set over a link, and scoring what the receiver makes of each image."""

import torch
from torch import Tensor

from semlink.data import ImageSet
from semlink.metrics import correct, correct_attributes, psnr_db
from semlink.schemes import Link, Sent, Task

BATCH = 500


def score(task: Task, output: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    """Return the utility of each image: 1 or 0, the share of right attributes, or PSNR in dB. Shape (B,).

    Of groups of K images, each of which is a user's, it is the mean over users.
    """
    if images.ndim == 5:
        users = range(images.shape[1])
        return torch.stack([score(task, output[:, k], images[:, k], targets[:, k]) for k in users], 1).mean(1)
    if task.kind == "classify":
        return correct(output, targets)
    if task.kind == "attributes":
        return correct_attributes(output, task.targets(targets)).mean(1)
    return psnr_db(output, images)


@torch.no_grad()
def encode(link: Link, images: ImageSet, generator: torch.Generator, device: torch.device) -> Sent:
    """Send every image of a set once; the symbols stay on ``device``, for any number of SNRs and noise draws."""
    images = images.to(device)
    parts = [link.transmit(images.batch(i)[0], generator) for i in torch.arange(len(images)).split(BATCH)]
    headers = [part.header for part in parts if part.header is not None]
    return Sent(
        torch.cat([part.symbols for part in parts]), parts[0].payload_bits, torch.cat(headers) if headers else None
    )


def part(sent: Sent, indices: Tensor) -> Sent:
    """Return what was sent of the images ``indices``."""
    header = None if sent.header is None else sent.header[indices.to(sent.header.device)]
    return Sent(sent.symbols[indices.to(sent.symbols.device)], sent.payload_bits, header)
