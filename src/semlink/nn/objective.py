# SPDX-License-Identifier: Apache-2.0
"""What the training loop needs to know of a thing to train: its phases.

A single objective has one phase. Alternating adversaries have several, each with its own optimiser and number of steps
a round. K joint users are one phase whose module takes groups, ``(B, K, ...)``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Optimiser:
    """An optimiser and its learning-rate schedule.

    Attributes:
        kind: ``sgd`` has Nesterov momentum ``betas[0]``; ``adamw`` is Adam when ``weight_decay`` is 0.
        learning_rate: its peak.
        weight_decay: applied to weights of two or more dimensions only.
        schedule: ``triangle`` rises linearly from a fifth of the peak for ``warm_up`` of the steps, then falls linearly
            to 0; ``cosine`` rises from 0 and falls along a half cosine; ``constant`` stays.
    """

    kind: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "triangle", "cosine"] = "constant"
    warm_up: float = 0.2

    def rate_at(self, progress: float) -> float:
        """Return the learning rate at ``progress`` in [0, 1] of all steps."""
        if self.schedule == "constant":
            return self.learning_rate
        floor = 0.2 if self.schedule == "triangle" else 0.0
        if progress < self.warm_up:
            return self.learning_rate * (floor + (1 - floor) * progress / self.warm_up)
        fall = (progress - self.warm_up) / (1 - self.warm_up)
        return self.learning_rate * (1 - fall if self.schedule == "triangle" else 0.5 + 0.5 * math.cos(math.pi * fall))

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the torch optimiser over ``parameters``, with decay only where it belongs."""
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.kind == "sgd":
            return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.betas[0], nesterov=True)
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=True)


@dataclass(frozen=True)
class Telling(Optimiser):
    """An optimiser that passes on what the loop tells it before each step: how far training is, 0 to 1.

    What hangs on it follows from the step alone, so a run that is resumed needs no counter to go on as it was.
    """

    tell: Callable[[float], None] = field(kw_only=True)

    @classmethod
    def of(cls, optimiser: Optimiser, tell: Callable[[float], None]) -> "Telling":
        """Return ``optimiser`` with ``tell``."""
        return cls(**vars(optimiser), tell=tell)

    def rate_at(self, progress: float) -> float:
        """Pass ``progress`` on and return the learning rate."""
        self.tell(progress)
        return super().rate_at(progress)


class Annealed(nn.Module):
    """An objective one part of which comes into force during training; a :class:`Telling` optimiser says how far it is.

    Args:
        anneal_start, anneal_end: shares of training between which :attr:`anneal` rises from 0 to 1.
    """

    def __init__(self, anneal_start: float = 0.0, anneal_end: float = 0.0) -> None:
        super().__init__()
        self.anneal_start, self.anneal_end, self.progress = anneal_start, anneal_end, 0.0

    def at(self, progress: float) -> None:
        """Take note of how far training is."""
        self.progress = progress

    @property
    def anneal(self) -> float:
        """Share of that part's weight that is in force."""
        if self.progress >= self.anneal_end:
            return 1.0
        if self.progress <= self.anneal_start:
            return 0.0
        return (self.progress - self.anneal_start) / (self.anneal_end - self.anneal_start)


@dataclass
class Phase:
    """One player of a training round.

    Attributes:
        module: called as ``module(images, targets, generator)``; returns named scalar losses, of which ``loss`` is
            minimised and the others are shown.
        parameters: what this phase moves; every other parameter is held still while it runs.
        steps: optimiser steps in each round.
    """

    name: str
    module: nn.Module
    optimiser: Optimiser
    parameters: list[nn.Parameter] = field(default_factory=list)
    steps: int = 1

    def __post_init__(self) -> None:
        self.parameters = self.parameters or [p for p in self.module.parameters() if p.requires_grad]
