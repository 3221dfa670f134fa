# SPDX-License-Identifier: Apache-2.0
"""Benches from TOML files: which links, which attacks on them, what is measured, what is drawn.

    file ─> TOML ─> [variants.X] merged over the rest ─> [defaults] merged under each link ─> fields ─> references

A file is checked in that order, and once more for each of its variants. The first step that finds mistakes reports
them: the first of them by its line, and how many more there are.
"""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from semlink._errors import SemlinkError, check_name
from semlink.bench.mistakes import Keys, refuse, shown

#: What the evaluation of a link may measure, and the judgement of an attack on it.
LINK_METRICS = ("accuracy", "balanced_accuracy", "auc", "average_precision", "psnr_db", "ssim")
ATTACK_METRICS = ("psnr_db", "ssim", "lpips", "mi_leakage")

T = TypeVar("T")


def _registered(kind: str) -> Iterable[str]:
    """Return the names of a kind; imported here, so that a file that is not there is noticed before torch is loaded."""
    from semlink import attacks, data, phy, schemes
    from semlink.bench.presets import PRESETS

    return {
        "scheme": schemes.keys,
        "attack": attacks.keys,
        "channel": phy.channels.keys,
        "data set": data.names,
        "preset": PRESETS.keys,
        "metric": lambda: {*LINK_METRICS, *ATTACK_METRICS},
    }[kind]()


def _named(kind: str, parted: bool = False) -> AfterValidator:
    """Return what checks a name; of one that is ``parted``, as auc.Smiling, the part before the dot."""

    def check(value: str) -> str:
        base, dot, part = value.partition(".") if parted else (value, "", "")
        try:
            return check_name(kind, base, _registered(kind)) + dot + part
        except SemlinkError as error:
            raise ValueError(str(error)) from None  # which pydantic collects

    return AfterValidator(check)


def _distinct(values: list[T]) -> list[T]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{shown(value)} stands there twice; give each once")
    return values


def _not_default(name: str) -> str:
    if name == "default":
        raise ValueError("'default' is the file without a variant; choose another name")
    return name


def _from_zoo(weights: str) -> str:
    if not re.fullmatch("zoo:.+", weights):
        raise ValueError(f"expected 'zoo:' and the name of a trained link, not {shown(weights)}")
    return weights


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 .+-]{0,63}$")]
Distinct = Annotated[list[T], Field(min_length=1), AfterValidator(_distinct)]
Decibels = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Scheme = Annotated[str, _named("scheme")]
DataSetName = Annotated[str, _named("data set")]
ChannelName = Annotated[str, _named("channel")]
PresetName = Annotated[str, _named("preset")]
AttackName = Annotated[str, _named("attack")]
Metric = Annotated[str, _named("metric", parted=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class LinkEntry(_Strict):
    """A link, trained once for each seed.

    ``weights`` of the zoo are taken in place of training. Training begins with the weights of ``start``, where they
    fit: a link of the zoo, or the first seed of another link of this recipe.
    """

    scheme: Scheme
    options: dict[str, bool | int | float | str] = {}
    data: DataSetName = "digits"
    variant: str = "default"
    task: str | None = None
    channel: ChannelName = "awgn"
    snr_db: Decibels = 12.0
    channel_uses: Annotated[int, Field(gt=0)] = 64
    preset: PresetName = "cpu"
    seeds: Distinct[Seed] = [0]
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    weights: Annotated[str, AfterValidator(_from_zoo)] | None = None
    start: str | None = None


class AttackEntry(_Strict):
    """An attack on ``links`` (None: on all), at the link's own ``snr_db`` and ``preset`` where these are None.

    ``snr_db`` is Es/N0 on the eavesdropper's channel while she trains, in dB, at each of her ``antennas``.
    """

    attack: AttackName = "inversion"
    links: Distinct[str] | None = None
    with_secret: bool = False
    snr_db: Decibels | None = None
    antennas: Annotated[int, Field(ge=1, le=64)] = 1
    preset: PresetName | None = None
    perceptual: Literal["vgg16", "none"] = "none"


class Evaluation(_Strict):
    """What is measured on the test set: at which Es/N0 in dB, with how many noise draws per image, which metrics."""

    snr_db: Distinct[Decibels] = [4.0, 8.0, 12.0, 16.0, 20.0]
    draws: Annotated[int, Field(ge=1)] = 5
    attack_draws: Annotated[int, Field(ge=1)] = 1
    seed: Seed = 0
    metrics: Distinct[Metric] = ["accuracy", "psnr_db", "ssim", "mi_leakage"]


class FigureEntry(_Strict):
    """A metric drawn over the SNR grid, of ``links`` and ``attacks`` (None: of all)."""

    metric: Metric
    links: Distinct[str] | None = None
    attacks: Distinct[str] | None = None
    title: str | None = None


class _Content(_Strict):
    title: str
    links: Annotated[dict[Name, LinkEntry], Field(min_length=1)]
    attacks: dict[Name, AttackEntry] = {}
    evaluation: Evaluation = Evaluation()
    figures: dict[Name, FigureEntry] = {}


class BenchRecipe(_Content):
    """All that determines a bench: a file, read in one of its variants.

    Attributes:
        name: the file's stem, or the path of a packaged recipe, as "paper-a/fig3".
        variant: "default", or the overlay that was chosen.
    """

    name: str
    variant: str = "default"

    @property
    def sha256(self) -> str:
        """A hash of the content: neither name, title, comments nor the order of keys change it."""
        content = self.model_dump(mode="json", exclude={"name", "title"})
        for link in content["links"].values():
            if link["start"] is None:  # said by silence, so that recipes older than this key keep their hash
                del link["start"]
        for attack in content["attacks"].values():
            if attack["antennas"] == 1:
                del attack["antennas"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _Overlay(_Strict):
    title: str = ""
    defaults: dict[str, Any] = {}
    links: dict[str, Any] = {}
    attacks: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    figures: dict[str, Any] = {}


class _File(_Content):
    defaults: dict[str, Any] = {}
    variants: dict[Annotated[Name, AfterValidator(_not_default)], _Overlay] = {}


def names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(_packaged(resources.files("semlink") / "recipes"))


def variants(name: str) -> list[str]:
    """Return the readings that a recipe offers, "default" first.

    Raises:
        SemlinkError: as :func:`load`.
    """
    return list(_readings(name))


def load(name: str, variant: str | None = None) -> BenchRecipe:
    """Read a recipe and check all of it, the variants that are not chosen too.

    Args:
        name: a TOML file, or one of :func:`names`.
        variant: one of :func:`variants`; None is "default", the file without any.

    Raises:
        SemlinkError: there is no such recipe or variant, or it has a mistake; the message names file, line and field
            and says what would be right.
    """
    readings = _readings(name)
    return readings[check_name(f"variant of {name}", "default" if variant is None else variant, readings)]


def _packaged(folder: Traversable, prefix: str = "") -> dict[str, Traversable]:
    found = {}
    for each in folder.iterdir():
        if each.is_dir():
            found |= _packaged(each, f"{prefix}{each.name}/")
        elif each.name.endswith(".toml"):
            found[prefix + each.name.removesuffix(".toml")] = each
    return found


def _readings(name: str) -> dict[str, BenchRecipe]:
    """Return every reading of a recipe by the name of its variant."""
    packaged = _packaged(resources.files("semlink") / "recipes")
    if name.endswith(".toml") or os.path.isfile(name) or (name not in packaged and os.path.exists(name)):
        file, name = Path(name), Path(name).stem
    else:
        file = packaged[check_name("bench", name, packaged)]
    text = _text(file)
    document = _parse(file, text)
    content, mistakes = _check(document)
    if mistakes:
        refuse(file, text, [((), *mistake) for mistake in mistakes])
    readings, found = {"default": content}, []
    for variant, overlay in document.get("variants", {}).items():
        readings[variant], mistakes = _check(_merge(document, overlay))
        found += [(("variants", variant), *mistake) for mistake in mistakes]
    if found:
        refuse(file, text, found)
    return {
        variant: BenchRecipe(name=name, variant=variant, **{key: getattr(read, key) for key in _Content.model_fields})
        for variant, read in readings.items()
    }


def _text(file: Path | Traversable) -> str:
    if file.is_dir():
        raise SemlinkError(f"{file} is a folder; give a .toml file, or one of: {', '.join(names())}")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        raise SemlinkError(f"{file}, line {line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise SemlinkError(
            f"{file} cannot be read: {error.strerror}; give a .toml file, or one of: {', '.join(names())}"
        ) from None


def _parse(file: Path | Traversable, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of too many digits and lists too deep among them
        at = re.search(r"at line (\d+)", str(error))
        line = at[1] if at else text.rstrip().count("\n") + 1
        raise SemlinkError(f"{file}, line {line}: not TOML: {error}") from None


def _merge(base: Any, over: Any) -> Any:
    """Return ``over`` with what it lacks from ``base``, table by table."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merge(base[key], value) if key in base else value for key, value in over.items()}


def _check(document: dict[str, Any]) -> tuple[Any, list[tuple[Keys, str]]]:
    """Return the content of a document and its mistakes, each with the keys that lead to it."""
    if isinstance(links := document.get("links"), dict):
        defaults = document.get("defaults")
        document = document | {"links": {name: _merge(defaults, link) for name, link in links.items()}}
    try:
        content = _File.model_validate(document)
    except ValidationError as error:
        return None, _explain(error, document)
    relations = _relations(content)
    return content, [(keys, said) for keys, check, given in relations for said in _complaints(check, *given)]


_SECTIONS: dict[str, type[BaseModel]] = {
    "links": LinkEntry,
    "attacks": AttackEntry,
    "evaluation": Evaluation,
    "figures": FigureEntry,
    "variants": _Overlay,
}
_EXPECTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} entry",
    "string_pattern_mismatch": "a name of letters, digits, spaces and . + -, a letter or digit first, 64 at most",
}


def _explain(error: ValidationError, document: dict[str, Any]) -> list[tuple[Keys, str]]:
    """Return pydantic's findings in the words of the file, one for each place."""
    found: dict[tuple[str | int, ...], list[Any]] = {}
    for each in error.errors(include_url=False):
        found.setdefault(_place(document, each["loc"], each["type"] == "missing"), []).append(each)
    named = [(tuple(step for step in place if isinstance(step, str)), each) for place, each in found.items()]
    return [(keys, _message(keys, each)) for keys, each in named]


def _place(document: Any, steps: tuple[str | int, ...], missing: bool) -> tuple[str | int, ...]:
    """Drop from pydantic's ``steps`` what is not in the document: members of unions, "[key]"."""
    for depth, step in enumerate(steps):
        try:
            document = document[step]
        except (KeyError, TypeError):
            return steps[: depth + missing]
    return steps


def _message(keys: Keys, errors: list[Any]) -> str:
    first = errors[0]
    if first["type"] == "missing":
        return "is missing, and has no default"
    if first["type"] == "extra_forbidden":
        *table, key = keys
        model = _SECTIONS[table[0]] if table else _File
        return _complaints(check_name, "key", key, model.model_fields)[0]
    if first["type"] in _EXPECTED:  # a value of a union is in error once for each member
        expected = " or ".join(_EXPECTED[each["type"]].format(**each.get("ctx", {})) for each in errors)
        return f"expected {expected}, not {shown(first['input'])}"
    return str(first.get("ctx", {}).get("error", first["msg"]))


def _complaints(check: Callable[..., Any], *arguments: Any) -> list[str]:
    """Return what ``check`` has to say against its arguments, if anything."""
    try:
        check(*arguments)
    except SemlinkError as error:
        return [str(error)]
    return []


def _relations(content: _Content) -> Iterator[tuple[Keys, Callable[..., Any], tuple[Any, ...]]]:
    """Yield what must hold between fields that are right by themselves: keys, a check, and its arguments."""
    from semlink import data
    from semlink.schemes import Task, schemes
    from semlink.schemes.options import options, takes_any

    links, measured = content.links, content.evaluation.metrics
    for name, link in links.items():
        at, shown = ("links", name), data.describe(link.data)
        yield (*at, "variant"), check_name, (f"variant of {link.data}", link.variant, data.variants(link.data))
        yield (
            (*at, "task"),
            Task.create,
            (
                link.task,
                shown.image_shape,
                shown.kind,
                shown.targets,
                shown.attributes,
            ),
        )
        yield (*at, "weights"), _check_one_seed, (link,)
        yield (*at, "start"), _check_start, (name, links)
        scheme = schemes[link.scheme]
        known = [option.name for option in options(scheme)]
        for option in () if takes_any(scheme) else link.options:
            yield (*at, "options", option), check_name, (f"option of {link.scheme}", option, known)
    for name, attack in content.attacks.items():
        at = ("attacks", name)
        for link in attack.links or ():
            yield (*at, "links"), check_name, ("link", link, links)
        if attack.with_secret:
            bare = [link for link, entry in links.items() if schemes[entry.scheme].secret is None]
            yield (*at, "with_secret"), _check_secret, (attack.links or list(links), bare)
    for name, figure in content.figures.items():
        at = ("figures", name)
        for link in figure.links or ():
            yield (*at, "links"), check_name, ("link", link, links)
        for attack in figure.attacks or ():
            yield (*at, "attacks"), check_name, ("attack", attack, content.attacks)
        yield (*at, "metric"), _check_measured, (figure.metric, measured)
        named = {*(figure.links or ())} <= links.keys() and {*(figure.attacks or ())} <= content.attacks.keys()
        if named and figure.metric in measured:
            yield (*at, "metric"), _check_drawn, (figure, content)
        yield at, _check_file, (name, content.figures)


def _check_one_seed(link: LinkEntry) -> None:
    if link.weights is not None and len(link.seeds) != 1:
        raise SemlinkError(f"these weights are one trained link: expected exactly 1 seed, not {len(link.seeds)}")


def _check_start(name: str, links: dict[str, LinkEntry]) -> None:
    seen, link = [name], links[name]
    if link.start and link.weights:
        raise SemlinkError("a link with weights is not trained, so it starts from nothing; leave one of the two out")
    while link.start and not link.start.startswith("zoo:"):
        if link.start == seen[-1] or link.start not in links:
            others = [each for each in links if each != seen[-1]]
            check_name("link to start from ('zoo:' and a name is one too)", link.start, others)
        if link.start in seen:
            raise SemlinkError(f"links start from each other in a circle: {' from '.join([*seen, link.start])}")
        seen.append(link.start)
        link = links[link.start]


def _check_secret(targets: list[str], bare: list[str]) -> None:
    if without := [link for link in targets if link in bare]:
        raise SemlinkError(f"without a secret: {', '.join(without)}; name in 'links' those whose scheme has one")


def _check_measured(metric: str, measured: list[str]) -> None:
    if metric not in measured:
        raise SemlinkError(f"'{metric}' is not measured; add it to evaluation.metrics, now {', '.join(measured)}")


def _check_drawn(figure: FigureEntry, content: _Content) -> None:
    """Refuse a figure that no link and no attack of it has a number for."""
    links = figure.links or list(content.links)
    attacks = figure.attacks or list(content.attacks)
    attacked = [name for name in attacks if {*links} & {*(content.attacks[name].links or content.links)}]
    if figure.attacks is not None and not attacked:
        raise SemlinkError("none of its attacks is on any of its links; change 'attacks' or 'links'")
    if figure.metric in ATTACK_METRICS and attacked:
        return
    if figure.attacks is not None:
        raise SemlinkError(
            f"'{figure.metric}' is measured of links, not of attacks; leave 'attacks' out, or take one of: "
            f"{', '.join(ATTACK_METRICS)}"
        )
    offered = dict.fromkeys(metric for link in links for metric in _offered(content.links[link]))
    if figure.metric not in offered:
        raise SemlinkError(
            f"none of its links is measured by '{figure.metric}', and no attack is; they offer: {_few(offered)}"
        )


def _offered(link: LinkEntry) -> list[str]:
    """Return the metrics of a link's task, those of attributes one by one."""
    from semlink import data

    shown = data.describe(link.data)
    kind, _, chosen = (link.task or ("classify" if shown.kind == "classes" else "attributes")).partition(":")
    if kind == "attributes":
        names = chosen.split(",") if chosen else shown.attributes
        return [f"{metric}.{name}" for metric in LINK_METRICS[:4] for name in names]
    return list(LINK_METRICS[:2] if kind == "classify" else LINK_METRICS[4:])


def _few(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:4]) + (f" and {len(every) - 4} more" if len(every) > 4 else "")


def _check_file(name: str, figures: Iterable[str]) -> None:
    for other in figures:
        if other == name:
            return
        if other.replace(" ", "-").lower() == name.replace(" ", "-").lower():
            raise SemlinkError(f"figures '{other}' and '{name}' would be the same file; rename one")
