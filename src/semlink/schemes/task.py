# SPDX-License-Identifier: Apache-2.0
"""What a link is for: a class, a set of attributes, or the image itself."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from semlink._errors import SemlinkError, check_name

Kind = Literal["classify", "attributes", "reconstruct"]
KINDS: tuple[Kind, ...] = ("classify", "attributes", "reconstruct")


@dataclass(frozen=True)
class Task:
    """A task on images of ``image_shape = (C, H, W)`` with ``outputs`` logits (0 for reconstruction)."""

    kind: Kind
    image_shape: tuple[int, int, int]
    outputs: int

    @classmethod
    def create(cls, kind: str | None, image_shape: tuple[int, int, int], target_kind: str, targets: int) -> "Task":
        """Return the task ``kind``, or the natural one of a data set whose targets are of ``target_kind``.

        Args:
            kind: one of ``classify``, ``attributes``, ``reconstruct``; None takes the data set's own.
            image_shape: (C, H, W).
            target_kind: ``classes`` or ``attributes``, what the data set's targets are.
            targets: number of classes or attributes.

        Raises:
            SemlinkError: the task does not exist or the data set has no targets for it.
        """
        natural = "classify" if target_kind == "classes" else "attributes"
        kind = check_name("task", kind or natural, KINDS)
        if kind not in (natural, "reconstruct"):
            raise SemlinkError(
                f"task '{kind}' needs other targets than this data set has; use '{natural}' or 'reconstruct'"
            )
        return cls(kind, image_shape, 0 if kind == "reconstruct" else targets)  # pyright: ignore[reportArgumentType]

    def loss(self, output: Tensor, images: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return the scalar training loss of ``output``: logits (B, outputs), or images (B, C, H, W)."""
        if self.kind == "classify":
            return F.cross_entropy(output, targets, label_smoothing=label_smoothing)
        if self.kind == "attributes":
            return F.binary_cross_entropy_with_logits(output, targets)
        return F.mse_loss(output, images)
