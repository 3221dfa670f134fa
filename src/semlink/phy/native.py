# SPDX-License-Identifier: Apache-2.0
"""Programs in C++, compiled for this machine when they are first needed.

What stands in a few small matrices for each of many channels spends its time between operations of torch, not in them.
"""

import ctypes
import os
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")


@cache
def build(name: str, **sizes: int) -> ctypes.CDLL | None:
    """Compile ``name``, a file beside this one, by ``$CXX`` or else ``c++``, with ``sizes`` as its macros.

    Returns:
        The library; None, after a warning, where that does not work.
    """
    source = Path(__file__).with_name(name)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "library.so"
        macros = [f"-D{macro.upper()}={value}" for macro, value in sizes.items()]
        command = [os.environ.get("CXX", "c++"), *FLAGS, *macros, str(source), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            return ctypes.CDLL(str(library))
        except (OSError, subprocess.CalledProcessError) as error:
            said = (error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)).strip()
            reason = said.splitlines()[0] if said else f"{command[0]} ended with an error"
            warnings.warn(f"{command[0]} cannot compile {name}, so this runs without: {reason}", stacklevel=4)
    return None


def call_in_parts(function: "ctypes._NamedFuncPointer", batch: list[Tensor], *rest: Tensor) -> None:
    """Call ``function`` on rows of ``batch``, as many parts as torch has threads.

    It is given the addresses of a part of each tensor of ``batch``, the number of its rows, then address and number of
    rows of each of ``rest``; all are contiguous and on the CPU.
    """

    def call(*part: Tensor) -> None:
        given = [ctypes.c_void_p(each.data_ptr()) for each in part]
        sizes = [
            argument for each in rest for argument in (ctypes.c_void_p(each.data_ptr()), ctypes.c_int64(len(each)))
        ]
        function(*given, ctypes.c_int64(len(part[0])), *sizes)

    with ThreadPoolExecutor() as pool:  # a call by ctypes lets other threads run
        list(pool.map(call, *(each.chunk(torch.get_num_threads()) for each in batch)))
