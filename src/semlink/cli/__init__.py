# SPDX-License-Identifier: Apache-2.0
"""``semlink …``: parses, calls, prints. Exit status 0, 1 (failed), 2 (bad input), 130 (interrupted)."""

import contextlib
import dataclasses
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from semlink import __version__
from semlink._arguments import check_arguments
from semlink._errors import SemlinkError, TrainingDiverged, check_name
from semlink.cli.audit import Audit
from semlink.cli.bench import Bench, BenchCompare, BenchShow, Claims, Results
from semlink.cli.common import say
from semlink.cli.data import Data
from semlink.cli.links import Attack, Evaluate, Quickstart, Report, Train

VERBS: dict[str, type] = {
    "quickstart": Quickstart,
    "train": Train,
    "evaluate": Evaluate,
    "attack": Attack,
    "audit": Audit,
    "bench": Bench,
    "bench show": BenchShow,
    "bench compare": BenchCompare,
    "claims": Claims,
    "results": Results,
    "report": Report,
    "data": Data,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(argv)
    except SemlinkError as error:
        return _fail(str(error), 2)
    except TrainingDiverged as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted; every finished epoch is kept, and the same command resumes", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR):
            raise
        where = f" at {error.filename}" if error.filename else ""
        return _fail(f"cannot write{where}: {os.strerror(error.errno).lower()}; free space or choose another --out", 2)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        say(_overview())
        return 0
    if argv[0] == "--version":
        say(f"semlink {__version__}")
        return 0
    words = 2 if " ".join(argv[:2]) in VERBS else 1
    verb = check_name("verb", " ".join(argv[:words]), VERBS)
    command = _parse(verb, VERBS[verb], argv[words:])
    return 0 if command is None else command.run() or 0


def _parse(verb: str, kind: type, argv: list[str]) -> Any:
    """Return the filled dataclass, or None after printing the help that was asked for."""
    import tyro

    wants_help = any(token in ("-h", "--help") for token in argv)
    if not wants_help:
        check_arguments(verb, kind, argv)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            return tyro.cli(_annotated(kind), args=["--help"] if wants_help else argv, prog=f"semlink {verb}")
    except SystemExit as stop:
        if stop.code:
            words = " ".join(shown.getvalue().replace("-" * 3, "").split())
            raise SemlinkError(f"{words}; see 'semlink {verb} --help'") from None
        say(shown.getvalue().rstrip(), *(kind.help_on(argv) if hasattr(kind, "help_on") else ()))
        return None


def _annotated(kind: type) -> Any:
    """Tell tyro which fields are positional."""
    import tyro

    for each in dataclasses.fields(kind):
        if each.metadata.get("positional"):
            kind.__annotations__[each.name] = tyro.conf.Positional[kind.__annotations__[each.name]]
    return kind


def _overview() -> str:
    width = max(map(len, VERBS))
    rows = [f"  {verb:<{width}}  {(kind.__doc__ or '').splitlines()[0]}" for verb, kind in VERBS.items()]
    return "\n".join(
        [
            "semlink: train semantic links, put them on channels, spy on them, measure what got through to whom",
            "",
            "usage: semlink VERB [OPTIONS]        semlink VERB --help shows a verb's options and an example",
            "",
            *rows,
        ]
    )


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return status
