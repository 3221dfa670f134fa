# SPDX-License-Identifier: Apache-2.0
"""The one training loop: any number of phases, users and devices, resumable to the bit.

All randomness of an epoch is drawn from generators seeded by (run seed, epoch), torch's own too (for a module that has
dropout), so a checkpoint needs no generator state: it holds weights, optimiser states, the epoch and the history.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from semlink._errors import SemlinkError, TrainingDiverged
from semlink._files import write_text
from semlink.nn import Phase
from semlink.training import checkpoint
from semlink.training.batches import Batches, seeded
from semlink.training.device import Precision

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.loggers.logger import Logger


@dataclass(frozen=True)
class Moment:
    """Where training stands, for whoever shows it."""

    epoch: int
    epochs: int
    progress: float
    seconds_left: float
    losses: dict[str, float]
    validation: dict[str, float]


class Watcher(Protocol):
    """Shows moments of training as they pass."""

    def __call__(self, moment: Moment) -> None:
        """Show one moment."""
        ...


def make_fabric(device: torch.device, precision: Precision, devices: int = 1, board: Path | None = None) -> "Fabric":
    """Return a launched Fabric: ``devices`` > 1 starts that many processes of this command (DDP), or torchrun did.

    ``board`` is a folder that takes every epoch's losses and validation for TensorBoard.

    Raises:
        SemlinkError: torchrun started more or fewer; a ``board`` is asked for, and TensorBoard is not installed.
    """
    from lightning_fabric import Fabric

    if "TORCHELASTIC_RUN_ID" in os.environ and (started := int(os.environ["WORLD_SIZE"])) != devices:
        raise SemlinkError(f"torchrun started {started} processes for a training in {devices}; make --devices the same")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision on standard error
    index = [device.index or 0] if device.type == "cuda" and devices == 1 else devices
    fabric = Fabric(
        accelerator=device.type,
        devices=index,
        strategy="ddp" if devices > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        loggers=[] if board is None else [make_board(board)],
    )
    fabric.launch()
    return fabric


def make_board(folder: Path) -> "Logger":
    """Return what writes to ``folder`` for TensorBoard; SemlinkError if that is not installed."""
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    try:
        return TensorBoardLogger(folder, name="", version="")
    except ModuleNotFoundError:
        raise SemlinkError(
            "TensorBoard is not installed; install it with: pip install 'semlink[tensorboard]'"
        ) from None


@dataclass
class Fit:
    """One training: what is trained, on what, for how long, and where it is kept.

    Attributes:
        model: holds every weight that must be stored, whatever phase moves it.
        batches: the training images.
        validate: returns validation metrics of ``model`` in evaluation mode.
        folder: takes the checkpoint and ``log.jsonl``.
        keep_best: name of the validation metric whose smallest value selects the weights; None keeps the last epoch's.
        stalled: says of the history, after each epoch, whether to end here; None: after ``epochs``.
    """

    model: nn.Module
    phases: list[Phase]
    batches: Batches
    validate: Callable[[], dict[str, float]]
    epochs: int
    seed: int
    folder: Path
    keep_best: str | None = None
    stalled: Callable[[list[dict[str, Any]]], bool] | None = None

    def run(self, fabric: "Fabric", watch: Watcher = lambda moment: None) -> list[dict[str, Any]]:
        """Train from the folder's checkpoint, or from the start, to the end; return the history, a row an epoch.

        On return ``model`` holds the selected weights, in evaluation mode, and the checkpoint is still there.

        Raises:
            SemlinkError: the checkpoint in ``folder`` is damaged.
            TrainingDiverged: a loss is not finite.
        """
        torch.set_flush_denormal(True)  # optimiser states that decay to denormals slow steps down up to 20 times
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        players = []
        for phase in self.phases:
            with self._alone(phase):  # DDP awaits a gradient of everything that may have one when a module is set up
                players.append(_Player(phase, fabric))
        self.model.to(fabric.device)
        self.batches.to(fabric.device)
        history, best = self._restore(players, fabric)
        started, begun_at = time.perf_counter(), len(history)

        def show(epoch: int, done: float, losses: dict[str, float]) -> None:
            progress, spent = (epoch + done) / self.epochs, time.perf_counter() - started
            left = spent * (1 - progress) / max(progress - begun_at / self.epochs, 1e-9)
            if fabric.is_global_zero:
                validation = history[-1]["validation"] if history else {}
                watch(Moment(epoch + 1, self.epochs, progress, left, losses, validation))

        for epoch in range(len(history), self.epochs):
            if self.stalled is not None and fabric.broadcast(self.stalled(history)):  # one process decides for all
                last = history[-1]
                if fabric.is_global_zero:
                    watch(Moment(len(history), self.epochs, 1.0, 0.0, last["losses"], last["validation"]))
                break
            tick = time.perf_counter()
            row: dict[str, Any] = {"epoch": epoch + 1}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeded(self.seed, "torch", epoch, fabric.global_rank).initial_seed())
                for done, losses in self._epoch(epoch, players, fabric):
                    row["losses"] = losses
                    if done < 1:
                        show(epoch, done, losses)
            self.model.eval()
            with fabric.autocast():
                row["validation"] = self.validate()
            row["epoch_seconds"] = round(time.perf_counter() - tick, 3)
            fabric.log_dict({**row["losses"], **row["validation"]}, step=epoch + 1)
            history.append(row)
            show(epoch, 1.0, row["losses"])  # the end of an epoch, with its own validation
            best = self._keep(history, best)
            if fabric.is_global_zero:
                self._save(history, best, players)
            fabric.barrier()
        if best:
            self.model.load_state_dict(best)
        self.model.eval()
        return history

    def _epoch(
        self, epoch: int, players: "list[_Player]", fabric: "Fabric"
    ) -> Iterable[tuple[float, dict[str, float]]]:
        """Run the rounds of an epoch; yield the share done and the mean losses so far, a few times a second at most."""
        self.model.train()
        for player in players:
            player.module.train()
            player.stream = self._stream(epoch, player.phase.name)
            player.generator = seeded(
                self.seed, player.phase.name, epoch, "noise", fabric.global_rank, device=fabric.device
            )
        rounds, sums, counts, shown = self.batches.rounds, {}, {}, time.perf_counter()
        for step in range(rounds):
            rate_at = (epoch + step / rounds) / self.epochs
            for player in players:
                with self._alone(player.phase):
                    for _ in range(player.phase.steps):
                        for name, value in player.step(rate_at, fabric).items():
                            key = name if len(players) == 1 else f"{player.phase.name}.{name}"
                            sums[key] = sums.get(key, 0.0) + value.detach()
                            counts[key] = counts.get(key, 0) + 1
            last = step == rounds - 1
            if last or time.perf_counter() - shown > 0.5:
                means = {key: float(total) / counts[key] for key, total in sums.items()}
                if last:  # each process has seen but its share of the images
                    shares = torch.tensor([*means.values()], dtype=torch.float64, device=fabric.device)
                    means = dict(zip(means, cast(Tensor, fabric.all_reduce(shares)).tolist(), strict=True))
                if not all(map(math.isfinite, means.values())):
                    raise TrainingDiverged(
                        f"epoch {epoch + 1}: the loss is not finite ({means}); lower the learning rate"
                    )
                shown = time.perf_counter()
                yield (step + 1) / rounds, means

    @contextmanager
    def _alone(self, phase: Phase) -> Iterator[None]:
        """Let gradients flow to this phase's parameters and to no others."""
        mine, before = set(phase.parameters), [(p, p.requires_grad) for p in self.model.parameters()]
        for parameter, _ in before:
            parameter.requires_grad_(parameter in mine)
        try:
            yield
        finally:
            for parameter, required in before:
                parameter.requires_grad_(required)

    def _stream(self, epoch: int, name: str) -> Iterable[tuple[Tensor, Tensor]]:
        lap = 0
        while True:  # a phase of several steps a round needs more than one pass over the images
            yield from self.batches.epoch(epoch, f"{name}/{lap}" if lap else name)
            lap += 1

    def _keep(self, history: list[dict[str, Any]], best: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.keep_best is None:
            return {}
        *earlier, last = [row["validation"][self.keep_best] for row in history]
        if not last <= min(filter(math.isfinite, earlier), default=math.inf):  # nor is one that is not a number kept
            return best
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _save(self, history: list[dict[str, Any]], best: dict[str, Tensor], players: "list[_Player]") -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in best.items()}
        for i, player in enumerate(players):
            tensors |= checkpoint.pack_optimiser(f"optimiser.{i}", player.optimiser)
        # The log first: were it last, a process killed between the two would leave it an epoch short for good.
        write_text(self.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        checkpoint.save(self.folder, {"epoch": len(history), "history": history}, tensors)

    def _restore(self, players: "list[_Player]", fabric: "Fabric") -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        found = checkpoint.load(self.folder)
        if found is None:
            return [], {}
        state, tensors = found

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v.to(fabric.device) for k, v in tensors.items() if k.startswith(prefix)}

        try:
            self.model.load_state_dict(under("model."))
        except RuntimeError:
            raise SemlinkError(
                f"the checkpoint in {self.folder} is of another model; remove the folder to start anew"
            ) from None
        for i, player in enumerate(players):
            checkpoint.unpack_optimiser(f"optimiser.{i}", player.optimiser, tensors)
        return state["history"], under("best.")


class _Player:
    """A phase set up on its device, with its optimiser and its batches."""

    stream: Iterable[tuple[Tensor, Tensor]]
    generator: torch.Generator

    def __init__(self, phase: Phase, fabric: "Fabric") -> None:
        self.phase = phase
        self.module = fabric.setup_module(phase.module)
        optimiser = fabric.setup_optimizers(phase.optimiser.build(phase.parameters))
        self.optimiser = cast(torch.optim.Optimizer, optimiser)  # what a Fabric optimiser behaves as

    def step(self, progress: float, fabric: "Fabric") -> dict[str, Tensor]:
        images, targets = next(iter(self.stream))
        rate = self.phase.optimiser.rate_at(progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        losses = self.module(images, targets, self.generator)
        self.optimiser.zero_grad()
        fabric.backward(losses["loss"])
        self.optimiser.step()
        return losses
