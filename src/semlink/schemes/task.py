# SPDX-License-Identifier: Apache-2.0
"""What a link is for: a class, a set of attributes, or the image itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from semlink._errors import SemlinkError, check_name

Kind = Literal["classify", "attributes", "reconstruct"]
KINDS: tuple[Kind, ...] = ("classify", "attributes", "reconstruct")


@dataclass(frozen=True)
class Task:
    """A task on images of ``image_shape = (C, H, W)`` with ``outputs`` logits (0 for reconstruction).

    Attributes:
        attributes: names of those attributes of the data set that the task is about; empty if of all.
        columns: where they stand among the data set's targets.
    """

    kind: Kind
    image_shape: tuple[int, int, int]
    outputs: int
    attributes: tuple[str, ...] = ()
    columns: tuple[int, ...] = ()

    @classmethod
    def create(
        cls,
        kind: str | None,
        image_shape: tuple[int, int, int],
        target_kind: str,
        targets: int,
        attributes: Sequence[str] = (),
    ) -> "Task":
        """Return the task ``kind``, or the natural one of a data set whose targets are of ``target_kind``.

        Args:
            kind: one of ``classify``, ``attributes``, ``reconstruct``, or ``attributes:NAME,NAME`` for some of the
                attributes; None takes the data set's own.
            image_shape: (C, H, W).
            target_kind: ``classes`` or ``attributes``, what the data set's targets are.
            targets: number of classes or attributes.
            attributes: the data set's names of its attributes.

        Raises:
            SemlinkError: the task does not exist, the data set has no targets for it, or it has no such attribute.
        """
        natural = "classify" if target_kind == "classes" else "attributes"
        kind, _, chosen = (kind or natural).partition(":")
        check_name("task", kind, KINDS)
        if kind not in (natural, "reconstruct"):
            raise SemlinkError(
                f"task '{kind}' needs other targets than this data set has; use '{natural}' or 'reconstruct'"
            )
        if not chosen:
            return cls(kind, image_shape, 0 if kind == "reconstruct" else targets)  # pyright: ignore[reportArgumentType]
        names = tuple(chosen.split(","))
        if kind != "attributes" or len(set(names)) < len(names):
            raise SemlinkError(f"task '{kind}:{chosen}': attributes:NAME,NAME is expected, each name once")
        columns = tuple(list(attributes).index(check_name("attribute", name, attributes)) for name in names)
        return cls("attributes", image_shape, len(names), names, columns)

    @property
    def name(self) -> str:
        """What :meth:`create` makes this task of."""
        return f"{self.kind}:{','.join(self.attributes)}" if self.attributes else self.kind

    def targets(self, targets: Tensor) -> Tensor:
        """Return those of a data set's targets that the task is about: (B,) classes or (B, outputs) attributes."""
        return targets[:, list(self.columns)] if self.columns else targets

    def loss(self, output: Tensor, images: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return the scalar training loss of ``output``: logits (B, outputs), or images (B, C, H, W)."""
        if self.kind == "classify":
            return F.cross_entropy(output, targets, label_smoothing=label_smoothing)
        if self.kind == "attributes":
            return F.binary_cross_entropy_with_logits(output, self.targets(targets))
        return F.mse_loss(output, images)
