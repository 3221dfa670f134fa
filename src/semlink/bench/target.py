# SPDX-License-Identifier: Apache-2.0
"""What an audit is of: a run, a link of the zoo, or an encoder of the user's, found by ``module:callable``."""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from semlink import data, phy
from semlink._errors import SemlinkError, check_name, check_number
from semlink.bench import code, links, record, zoo
from semlink.bench.attacker import fingerprint
from semlink.bench.presets import PRESETS
from semlink.data import DataSet, Description
from semlink.schemes import Key, Link, Task
from semlink.schemes.foreign import Foreign
from semlink.training import seeded

POWER_IMAGES = 5_000  # of the transceiver's: by so many at most the power of an encoder is measured


@dataclasses.dataclass(frozen=True)
class Target:
    """A link to be audited, and the images by which that is done.

    Attributes:
        name: as it was typed.
        kind: what it is, in words.
        link: an encoder of the user's has no receiver.
        channel: key of the channel.
        sets: the images of every role.
        shown: their shape and targets.
        preset: whose sizes and schedules the attackers use.
        identity: changes with whatever is sent: weights, code.
        recipe: None of an encoder of the user's.
    """

    name: str
    kind: str
    link: Link
    channel: str
    sets: DataSet
    shown: Description
    preset: str
    identity: str
    recipe: record.Recipe | None = None


def resolve(
    name: str,
    *,
    data_name: str | None = None,
    variant: str | None = None,
    channel: str | None = None,
    snr_db: float | None = None,
    preset: str | None = None,
    seed: int = 0,
    key: Callable[[Path], Key | None] = lambda folder: None,
) -> Target:
    """Return what ``name`` names: a run folder, ``zoo:NAME``, ``module:callable`` or ``file.py:callable``.

    A link that was trained with Semlink brings its data, channel and SNR; of an encoder they are the digits, AWGN and
    12 dB if left out.

    Args:
        name: as typed.
        data_name: data set.
        variant: of the data set.
        channel: key of a channel.
        snr_db: Es/N0 at the receiver, in dB.
        preset: whose sizes and schedules the attackers use; ``cpu``, or the run's own, if left out.
        seed: of whatever is random in the making of an encoder.
        key: returns the user's key for a run folder that may need one.

    Raises:
        SemlinkError: there is no such thing, it is no encoder, or an option does not fit it.
    """
    links.check_seed(seed)
    if name.startswith("zoo:") or Path(name).is_dir():
        given = {"--data": data_name, "--variant": variant, "--channel": channel, "--snr-db": snr_db}
        if unfit := [option for option, value in given.items() if value is not None]:
            raise SemlinkError(
                f"{unfit[0]} is for an encoder of your own; {name} brings its data and channel; leave it out"
            )
        source = name if name.startswith("zoo:") else Path(name)
        return _trained(name, source, preset, key(Path(name)) if isinstance(source, Path) else None)
    chosen, variant = data_name or "digits", variant or "default"
    check_name(f"variant of {chosen}", variant, data.variants(check_name("data set", chosen, data.names())))
    medium = phy.channels[check_name("channel", channel or "awgn", phy.channels.keys())]()
    level = check_number("snr_db", 12.0 if snr_db is None else snr_db, -100, 100)
    size = check_name("preset", preset or "cpu", PRESETS)
    encoder, module = find_encoder(name, seed)
    sets, shown = _fewer(data.load(chosen, variant), PRESETS[size].images), data.describe(chosen)
    images = sets.transceiver.batch(torch.arange(min(POWER_IMAGES, len(sets.transceiver))))[0]
    scheme = Foreign(encoder, Task("reconstruct", shown.image_shape, 0), images)
    link = Link(scheme, medium, level)
    identity = repr((fingerprint(encoder), _code(module), "" if scheme.random else _sent(link, images[:16])))
    return Target(name, "an encoder given as a torch module", link, channel or "awgn", sets, shown, size, identity)


def find_encoder(name: str, seed: int = 0) -> tuple[nn.Module, str]:
    """Return the encoder that ``module:callable`` or ``file.py:callable`` makes, and the name of its module.

    The callable takes no argument; torch's generator is seeded while it runs, so that two calls make the same weights.

    Raises:
        SemlinkError: there is no such module or callable, it fails, needs arguments, or makes no ``torch.nn.Module``.
    """
    place, colon, called = name.rpartition(":")
    if not colon and name.endswith(".py"):
        place, called = name, ""
    elif not colon:
        raise SemlinkError(
            f"there is no run folder '{name}'; a run folder, zoo:NAME, module:callable or file.py:callable is expected"
        )
    module = _import(place)
    own = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") and callable(value) and getattr(value, "__module__", None) in (module.__name__, None)
    }
    modules = {key: value for key, value in vars(module).items() if isinstance(value, nn.Module)}
    if not called:
        raise SemlinkError(f"'{name}' names no callable; write {name.rstrip(':')}:NAME with one of: {_listed(own)}")
    found = getattr(module, called, None)
    if found is None:
        check_name(f"callable of {place}", called, own | modules)
    return _made(name, found, seed), module.__name__


def _made(name: str, found: Any, seed: int) -> nn.Module:
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise SemlinkError(f"{name} is a {type(found).__name__}: a callable that returns a torch.nn.Module is expected")
    try:
        needed = [p.name for p in inspect.signature(found).parameters.values() if _is_needed(p)]
    except ValueError:
        needed = []
    if needed:
        raise SemlinkError(
            f"{name} needs arguments ({', '.join(needed)}): one that takes none is expected; wrap it in a function"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = found()
        except Exception as error:
            raise SemlinkError(f"{name} fails: {type(error).__name__}: {error}") from None
    if not isinstance(made, nn.Module):
        raise SemlinkError(f"{name} returns {type(made).__name__}: a torch.nn.Module is expected")
    return made


def _is_needed(parameter: inspect.Parameter) -> bool:
    open_ended = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and not open_ended


def _import(place: str) -> ModuleType:
    """Import a module by name, from the current folder too, or a file by its path."""
    is_file = place.endswith(".py") or "/" in place
    path = Path(place)
    if is_file and not path.is_file():
        near = sorted(each.name for each in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise SemlinkError(f"there is no file {place}; Python files there: {', '.join(near) or 'none'}")
    for folder in (str(path.parent.resolve()) if is_file else "", str(Path.cwd())):
        if folder and folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        if not is_file:
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(f"audited_{path.stem}", path.resolve())
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        if not is_file and place.split(".")[0] == (error.name or "").split(".")[0]:
            here = sorted(each.stem for each in Path.cwd().glob("*.py"))
            raise SemlinkError(f"there is no module '{place}'; modules here: {', '.join(here) or 'none'}") from None
        raise SemlinkError(f"{place} cannot be imported: {error}") from None
    except Exception as error:
        raise SemlinkError(f"{place} cannot be imported: {type(error).__name__}: {error}") from None
    return module


def _listed(named: dict[str, Any]) -> str:
    return ", ".join(sorted(named)) or "none"


def _trained(name: str, source: str | Path, preset: str | None, key: Key | None) -> Target:
    if isinstance(source, str):
        trained, kind = zoo.read(source)[0], "a link of the zoo"
    else:
        trained, kind = links.read_run(source), "a trained run"
        links.check_key(trained.recipe, key, source)
    recipe = trained.recipe
    if links.users_of(recipe):
        raise SemlinkError(f"{name} is of several users, and the audit is of a link of one; attack it by 'cross-link'")
    chosen = check_name("preset", preset or recipe.preset, PRESETS)
    sets, shown = links.image_sets(recipe.model_copy(update={"preset": chosen})), data.describe(recipe.data)
    identity = repr((trained.weights_sha256, code.modules_sha256(*links.modules_of(recipe.scheme, recipe.channel))))
    return Target(name, kind, links.load(source, key), recipe.channel, sets, shown, chosen, identity, recipe)


def _fewer(sets: DataSet, most: int | None) -> DataSet:
    roles = ("transceiver", "validation", "attacker", "attacker_validation", "test") if most else ()
    fewer = {role: getattr(sets, role) for role in roles}
    return dataclasses.replace(sets, **{r: s.subset(torch.arange(min(most or 0, len(s)))) for r, s in fewer.items()})


def _code(module: str) -> str:
    try:
        return code.modules_sha256(module)
    except SemlinkError:
        return ""


def _sent(link: Link, images: torch.Tensor) -> str:
    """Return a hash of what is sent of ``images``: it tells encoders apart whose weights are alike."""
    symbols = torch.view_as_real(link.transmit(images, seeded(0)).symbols)
    return hashlib.sha256(symbols.numpy().tobytes()).hexdigest()
