# SPDX-License-Identifier: Apache-2.0
"""Making links by name, untrained or from a run folder."""

import dataclasses
import inspect
import math
from importlib import import_module
from pathlib import Path
from typing import Literal

import torch

from semlink import data, phy
from semlink._errors import SemlinkError, check_name, check_whole
from semlink.bench import record
from semlink.bench.presets import PRESETS, preset
from semlink.nn.adversary import Adversary
from semlink.schemes import Design, Key, Link, Network, NetworkScheme, Task, schemes
from semlink.schemes.options import check_options
from semlink.training import checkpoint

INTERFERENCE = "interference"  # for a scheme of several users, who number as its option says


def make_recipe(
    scheme: str,
    *,
    data: str = "digits",
    variant: str = "default",
    task: str | None = None,
    channel: str | None = None,
    snr_db: float = 12.0,
    channel_uses: int = 64,
    preset: str = "cpu",
    seed: int = 0,
    precision: Literal["bf16", "fp32"] = "fp32",
    key: Key | None = None,
    start: str | Path | None = None,
    **options: bool | int | float | str,
) -> record.Recipe:
    """Check every name and number of a link and return its recipe.

    ``channel`` is "awgn" if left out, and "interference" for the schemes of K users, whose task is then to reconstruct.

    Raises:
        SemlinkError: a name is unknown or a number makes no sense; the message says which and what would be right.
    """
    kind = schemes[scheme]
    check_options(scheme, options)
    together = issubclass(kind, NetworkScheme)
    channel = check_name("channel", channel or (INTERFERENCE if together else "awgn"), channel_names())
    check_channel(scheme, channel)
    if not together and len(_sets(data)) > 1:
        raise SemlinkError(f"scheme '{scheme}' is of one user: data '{data}' is of several; name one set")
    if not math.isfinite(snr_db):
        raise SemlinkError(f"snr_db is {snr_db}: a finite number of dB is expected")
    check_seed(seed)
    if kind.secret is None and key is not None:
        raise SemlinkError(f"scheme '{scheme}' takes no key; leave the key out")
    shown = _description(data, variant)
    chosen = _task(task or ("reconstruct" if together else None), shown)
    if kind.secret is not None:
        key = key or Key.for_test(seed)
    check_name("preset", preset, PRESETS)
    recipe = record.Recipe(
        scheme=scheme,
        options=options,
        data=data,
        variant=variant,
        task=chosen.name,
        channel=channel,
        snr_db=snr_db,
        channel_uses=channel_uses,
        preset=preset,
        seed=seed,
        precision=precision,
        key=key.describe() if key else None,
        start=None if start is None else weights_of(start),
    )
    _sets(data, users_of(recipe))
    return recipe


def check_channel(scheme: str, channel: str) -> None:
    """Raise SemlinkError where a scheme of several users is not on their channel."""
    if issubclass(schemes[scheme], NetworkScheme) and channel != INTERFERENCE:
        raise SemlinkError(f"scheme '{scheme}' is of several users, on channel '{INTERFERENCE}', not '{channel}'")


def channel_names() -> list[str]:
    """Return the channels."""
    return phy.channels.keys()


def users_of(recipe: record.Recipe) -> int | None:
    """Return K of a scheme of several users, None of one of a single user."""
    kind = schemes[recipe.scheme]
    if not issubclass(kind, NetworkScheme):
        return None
    default = inspect.signature(NetworkScheme).parameters["users"].default
    return check_whole("users", recipe.options.get("users", default))  # pyright: ignore[reportArgumentType]


def modules_of(scheme: str, channel: str | None = None) -> tuple[str, ...]:
    """Return the modules that define a scheme and a channel; that of several users is part of their schemes."""
    kind = schemes[scheme]
    if channel is None or issubclass(kind, NetworkScheme):
        return (kind.__module__,)
    made = phy.channels[channel]
    return kind.__module__, getattr(made, "func", made).__module__  # some are made with their number of users


def secret_of(scheme: str) -> str | None:
    """Return what an attacker of a scheme would have to hold, None if it has no secret."""
    return schemes[scheme].secret


def check_seed(seed: int) -> None:
    """Raise SemlinkError unless ``seed`` fits a random generator."""
    if not 0 <= seed < 2**63:
        raise SemlinkError(f"seed is {seed}: a whole number from 0 to 2**63 - 1 is expected")


def _description(name: str, variant: str) -> "data.Description":
    shown = data.describe(name)
    check_name(f"variant of {name}", variant, data.variants(name))
    return shown


def _sets(name: str, users: int | None = None) -> list[str]:
    return data.members(name, users)


def _task(kind: str | None, shown: "data.Description") -> Task:
    return Task.create(kind, shown.image_shape, shown.kind, shown.targets, shown.attributes)


def image_sets(recipe: record.Recipe) -> data.DataSet:
    """Load the images of ``recipe``, of every split as many as its preset uses.

    Raises:
        SemlinkError: the files are missing or damaged.
    """
    sets, most = data.load(recipe.data, recipe.variant, users_of(recipe)), PRESETS[recipe.preset].images
    if most is None:
        return sets
    splits = ("transceiver", "validation", "attacker", "attacker_validation", "test")
    fewer = {name: getattr(sets, name).subset(torch.arange(min(most, len(getattr(sets, name))))) for name in splits}
    return dataclasses.replace(sets, **fewer)


def build(recipe: record.Recipe) -> Link:
    """Return the untrained link of ``recipe``; its weights depend on the recipe's seed alone."""
    shown = data.describe(recipe.data)
    design = Design(
        _task(recipe.task, shown),
        recipe.channel_uses,
        preset(recipe.preset).scale(shown.image_shape[0]).backbone,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        try:
            scheme = schemes[recipe.scheme](design, **recipe.options)
        except TypeError as error:
            raise SemlinkError(f"scheme '{recipe.scheme}' does not take these options: {error}") from None
    if recipe.key and recipe.key["kind"] == "test":
        give_key(scheme, Key.for_test(recipe.seed))
    if isinstance(scheme, NetworkScheme):
        return Network(scheme, recipe.snr_db)
    return Link(scheme, phy.channels[recipe.channel](), recipe.snr_db)


def give_key(scheme: torch.nn.Module, key: Key) -> None:
    """Hand ``key`` to a scheme that works with one."""
    scheme.key = key  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]


def create(scheme: str, **settings: str | float | int | bool | Key | None) -> Link:
    """Return an untrained link.

    Example:
        >>> link = create("deepjscc", data="cifar10", channel="awgn", snr_db=12)

    Args:
        scheme: a key of ``semlink.schemes``.
        settings: any of ``data, variant, task, channel, snr_db, channel_uses, preset, seed, key`` and the scheme's own
            options.

    Raises:
        SemlinkError: a name is unknown or a number makes no sense.
    """
    recipe = make_recipe(scheme, **settings)  # pyright: ignore[reportArgumentType]
    link = build(recipe)
    if isinstance(key := settings.get("key"), Key):
        give_key(link.scheme, key)
    return link


def load(source: str | Path, key: Key | None = None) -> Link:
    """Return the trained link of a run folder or of the zoo.

    Example:
        >>> link = load("runs/mine")
        >>> link = load("zoo:deepjscc-cifar10")

    Args:
        source: where ``semlink train`` wrote, or "zoo:" and the name of a link of the zoo.
        key: the user's key, for a link that was trained with one; without it the receiver answers as with a wrong key.

    Raises:
        SemlinkError: the folder is no finished run, is from a newer version, or is damaged; the zoo has no such link or
            cannot be reached; or the key is another.
    """
    trained, weights = _find(source)
    link = build(trained.recipe)
    remedy = "restore it from a copy, or remove record.json beside it and train again"
    tensors = checkpoint.load_tensors(weights, trained.weights_sha256, remedy)
    try:
        if tensors.keys() != weights_in(link.scheme).keys():
            raise RuntimeError
        link.scheme.load_state_dict(tensors, strict=False)
    except RuntimeError:
        raise SemlinkError(
            f"{weights} does not fit '{trained.recipe.scheme}' of this Semlink; "
            f"use Semlink {trained.semlink}, or train again in another folder"
        ) from None
    if key is not None:
        check_key(trained.recipe, key, Path(source))
        give_key(link.scheme, key)
    return link


def weights_in(scheme: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights and buffers of a link; those of an adversary that it was trained against are none of its."""
    hers = tuple(f"{name}." for name, part in scheme.named_modules() if isinstance(part, Adversary))
    return {name: value for name, value in scheme.state_dict().items() if not name.startswith(hers)}


def start_from(link: Link, source: str | Path) -> dict[str, int]:
    """Give ``link`` the weights of the trained link ``source``, where names and shapes agree.

    Returns:
        How many of its parameters were taken, and of how many.

    Raises:
        SemlinkError: fewer than half fit; otherwise as :func:`load`.
    """
    trained, weights = _find(source)
    tensors = checkpoint.load_tensors(weights, trained.weights_sha256, "restore it from a copy, or train it again")
    scheme = link.scheme.core
    own = weights_in(scheme)
    fitting = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
    scheme.load_state_dict(fitting, strict=False)
    counts = {name: p.numel() for name, p in scheme.named_parameters() if name in own}
    taken = {"parameters": sum(counts[name] for name in fitting if name in counts), "of": sum(counts.values())}
    if 2 * taken["parameters"] < taken["of"]:
        raise SemlinkError(
            f"only {taken['parameters']:,} of this link's {taken['of']:,} parameters are in {source} "
            f"({trained.recipe.scheme} on {trained.recipe.data}, preset {trained.recipe.preset}); start from another"
        )
    return taken


def weights_of(source: str | Path) -> str:
    """Return the SHA-256 of the weights of a trained link: a run folder, or "zoo:" and a name."""
    return _find(source)[0].weights_sha256


def _find(source: str | Path) -> tuple[record.TrainRecord, Path]:
    """Return the record of a trained link and the path of its weights."""
    if isinstance(source, str) and source.startswith("zoo:"):
        # Found by name, not by an import statement: the zoo builds on this module, and, since the weights are known by
        # their SHA-256, its code changes no result and must not count among what trainings depend on (bench.code).
        return import_module("semlink.bench.zoo").read(source)
    folder = Path(source)
    return read_run(folder), folder / "weights.safetensors"


def check_key(recipe: record.Recipe, key: Key | None, folder: Path) -> None:
    """Raise SemlinkError unless ``key`` is the one that ``recipe`` was made with; a user's key must be given again."""
    if key is None:
        if recipe.key and recipe.key["kind"] == "user":
            raise SemlinkError(
                f"the run in {folder} uses your key, which is stored nowhere; "
                "give it again with --key-file or in SEMLINK_KEY"
            )
    elif recipe.key is None:
        raise SemlinkError(f"{folder} holds a link without a key; leave the key out")
    elif key.describe() != recipe.key:
        raise SemlinkError(
            f"{folder} was made with another key (fingerprint {recipe.key['fingerprint']}); "
            "give that one, or choose another --out"
        )


def read_run(folder: Path) -> record.TrainRecord:
    """Return the record of a finished run.

    Raises:
        SemlinkError: ``folder`` is not a run folder, or its training is not finished.
    """
    if not folder.is_dir():
        raise SemlinkError(f"run folder {folder} does not exist; 'semlink train' makes one")
    if not (folder / "record.json").exists():
        if (folder / "recipe.json").exists():
            raise SemlinkError(f"the training in {folder} is not finished; the command that started it resumes it")
        raise SemlinkError(f"{folder} is not a run folder: it has no record.json; 'semlink train' makes one")
    return record.read(folder / "record.json", record.TrainRecord)
