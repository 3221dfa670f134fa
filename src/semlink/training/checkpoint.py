# SPDX-License-Identifier: Apache-2.0
"""Training state on disk: safetensors for tensors, JSON for the rest; whole or absent.

``checkpoint.json`` names the tensor file and its SHA-256 and is replaced last, so whatever moment a process dies at,
the JSON on disk points to tensors that are complete. The file that it pointed to before is removed afterwards.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from semlink._errors import SemlinkError
from semlink._files import atomic_path, sha256_file, write_text


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write ``tensors`` to ``path`` atomically, contiguous and on the CPU.

    Raises:
        SemlinkError: the disk takes no more; what stood at ``path`` still does.
    """
    with atomic_path(path) as part:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, metadata)
        except SafetensorError as error:  # its way to report what would be an OSError
            raise SemlinkError(f"{path} cannot be written ({error}); free space or choose another --out") from None


def load_tensors(path: Path, sha256: str, remedy: str) -> dict[str, Tensor]:
    """Read ``path`` if it is what its record says.

    Raises:
        SemlinkError: the file is missing, damaged or another; ``remedy`` says how to get it back.
    """
    if not path.is_file():
        raise SemlinkError(f"{path} is missing; {remedy}")
    if sha256_file(path) != sha256:
        raise SemlinkError(f"{path} is damaged: its SHA-256 is not {sha256[:12]}…, which was recorded; {remedy}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise SemlinkError(f"{path} is not a safetensors file ({error}); {remedy}") from None


def save(folder: Path, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Replace the checkpoint of ``folder``."""
    path = folder / f"checkpoint-{state['epoch']:04d}.safetensors"
    save_tensors(path, tensors)
    write_text(folder / "checkpoint.json", json.dumps({**state, "tensors": path.name, "sha256": sha256_file(path)}))
    for old in folder.glob("checkpoint-*.safetensors"):
        if old != path:
            old.unlink()


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return the state and tensors of the checkpoint of ``folder``, or None if there is none.

    Raises:
        SemlinkError: the checkpoint is damaged.
    """
    path = folder / "checkpoint.json"
    if not path.is_file():
        return None
    remedy = f"remove {folder} to start this run anew"
    try:
        state = json.loads(path.read_text())
        tensors, sha256 = folder / state["tensors"], str(state["sha256"])
        if len(state["history"]) != state["epoch"]:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise SemlinkError(f"{path} is damaged; {remedy}") from None
    return state, load_tensors(tensors, sha256, remedy)


def remove(folder: Path) -> None:
    """Delete the checkpoint of a finished run: first what points, then what is pointed to."""
    (folder / "checkpoint.json").unlink(missing_ok=True)
    for path in folder.glob("checkpoint-*.safetensors"):
        path.unlink()


def sweep(folder: Path, *names: str) -> None:
    """Delete what killed writers of files that begin with ``names`` left half-made; the caller holds the folder."""
    for name in names:
        for part in folder.glob(f".{name}*.part"):
            part.unlink(missing_ok=True)


def pack_optimiser(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as flat tensors ``prefix.<parameter>.<name>``; scalars become 0-d float64."""
    packed = {}
    for index, entries in optimiser.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:
                packed[f"{prefix}.{index}.{name}"] = (
                    value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
                )
    return packed


def unpack_optimiser(prefix: str, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what :func:`pack_optimiser` saved."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix + "."):
            index, name = key.removeprefix(prefix + ".").split(".", 1)
            state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    for parameter, entries in optimiser.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # laid out in memory as the parameter: fused optimisers take both for granted as they lie
                entries[name] = torch.empty_like(parameter).copy_(value)
