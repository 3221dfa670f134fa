# SPDX-License-Identifier: Apache-2.0
"""Where a bench shows what it does, in tests."""


class Quiet:
    """A board that shows nothing."""

    def begin(self, graph, waiting, slots): ...

    def start(self, cell):
        return lambda moment: None

    def end(self, cell, result, message): ...

    def note(self, text): ...
