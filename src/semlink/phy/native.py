# SPDX-License-Identifier: Apache-2.0
"""Programs in C++, compiled for this machine when they are first needed.

What stands in a few small matrices for each of many channels spends its time between operations of torch, not in them.
"""

import ctypes
import os
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")


class Lock:
    """A lock that a forked process has anew: the thread that held it is not there to let go of it."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._held = threading.Lock()

    def __enter__(self) -> None:
        self._held.acquire()

    def __exit__(self, *raised: object) -> None:
        self._held.release()


_lock = Lock()


def build(name: str, **sizes: int) -> ctypes.CDLL | str:
    """Compile ``name``, a file beside this one, by ``$CXX`` or else ``c++``, with ``sizes`` as its macros.

    Returns:
        The library, the same one the next time; or a line that says why there is none.
    """
    with _lock:
        return _build(name, tuple(sizes.items()))


@cache
def _build(name: str, sizes: tuple[tuple[str, int], ...]) -> ctypes.CDLL | str:
    words = os.environ.get("CXX") or "c++"
    try:
        compiler = shlex.split(words)
    except ValueError as error:
        return f"{name} is not compiled: CXX is {words}: {error}"
    macros = [f"-D{macro.upper()}={value}" for macro, value in sizes]
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            library = str(Path(folder) / "library.so")
            command = [*compiler, *FLAGS, *macros, str(Path(__file__).with_name(name)), "-o", library]
            subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace")
            return ctypes.CDLL(library)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()] or [str(error)]
        return f"{compiler[0]} does not compile {name}: {next((line for line in lines if 'error' in line), lines[-1])}"
    except OSError as error:
        return f"{name} cannot be compiled and loaded: {error}"


def call_in_parts(function: Callable[..., Any], batch: list[Tensor], *rest: Tensor) -> None:
    """Call ``function`` on rows of ``batch``, as many parts as torch has threads.

    It is given the addresses of a part of each tensor of ``batch``, the number of its rows, then address and number of
    rows of each of ``rest``; all are contiguous and on the CPU.
    """

    def call(*part: Tensor) -> None:
        given = [*map(address, part), ctypes.c_int64(len(part[0]))]
        for each in rest:
            given += [address(each), ctypes.c_int64(len(each))]
        function(*given)

    def address(each: Tensor) -> ctypes.c_void_p:
        return ctypes.c_void_p(each.data_ptr())

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:  # a call by ctypes lets other threads run
        list(pool.map(call, *(each.chunk(threads) for each in batch)))
