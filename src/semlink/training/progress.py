# SPDX-License-Identifier: Apache-2.0
"""Training on screen: a bar with time left, loss parts and the latest validation metric, on standard error."""

import os
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from semlink.training.loop import Moment


def _numbers(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


class ScreenProgress:
    """A watcher that draws on a terminal, and prints one line an epoch where there is none.

    Use as a context manager; the instance itself is the watcher.
    """

    def __init__(self, title: str) -> None:
        console = Console(stderr=True, quiet=os.environ.get("LOCAL_RANK", "0") != "0")  # of several processes one draws
        self.title = title
        self.plain = not console.is_terminal
        self.said = 0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=self.plain,
            transient=True,
        )
        self.task = self.bar.add_task(title, total=1.0, numbers="")

    def __call__(self, moment: Moment) -> None:
        """Show ``moment``."""
        numbers = _numbers(moment.losses)
        if moment.validation:
            numbers += "  | validation " + _numbers(moment.validation)
        self.bar.update(self.task, completed=moment.progress, numbers=numbers)
        if self.plain and moment.epoch > self.said and round(moment.progress * moment.epochs, 6) >= moment.epoch:
            self.said = moment.epoch
            left = f"{moment.seconds_left:.0f} s left"
            line = f"{self.title}: epoch {moment.epoch}/{moment.epochs}  {numbers}  {left}"
            self.bar.console.print(line, highlight=False, soft_wrap=True)

    def __enter__(self) -> "ScreenProgress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
