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
from collections.abc import Callable, Iterable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from semlink import _plugins
from semlink._errors import SemlinkError, check_name
from semlink.bench import measures
from semlink.bench.mistakes import Keys, refuse, shown
from semlink.bench.relations import relations

T = TypeVar("T")


def _registered(kind: str) -> Iterable[str]:
    """Return the names of a kind; imported here, so that a file that is not there is noticed before torch is loaded."""
    from semlink import attacks, data, schemes
    from semlink.bench import links
    from semlink.bench.presets import PRESETS

    return {
        "scheme": schemes.keys,
        "attack": attacks.keys,
        "channel": links.channel_names,
        "data set": data.names,
        "preset": PRESETS.keys,
        "metric": measures.TITLES.keys,
    }[kind]()


def _named(kind: str, parted: bool = False) -> AfterValidator:
    """Return what checks a name; of one that is ``parted``, as auc.Smiling, the part before the dot."""

    def check(value: str) -> str:
        base, dot, part = value.partition(".") if parted else (value, "", "")
        try:
            if kind == "data set":  # several users may have one each, joined by "+"
                return "+".join(check_name(kind, each, _registered(kind)) for each in value.split("+"))
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


def _from_zoo(weights: str) -> str | None:
    if not weights:
        return None
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

    ``weights`` of the zoo are taken in place of training ("" in a variant that trains). Training begins with the
    weights of ``start``, where they fit: a link of the zoo, or the first seed of another link of this recipe. Tables
    compare it with the link ``against``, or with the first of the recipe.
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
    against: str | None = None


class AttackEntry(_Strict):
    """An attack on ``links`` (None: on all), at the link's own ``snr_db`` and ``preset`` where these are None.

    ``snr_db`` is Es/N0 on the eavesdropper's channel while she trains, in dB, at each of her ``antennas``. She has her
    images sent by the link that ``queries`` names, a model of the victim's that she made herself; None: by the victim.
    What she draws is also read, by a classifier of her clean images, if ``read``.
    """

    attack: AttackName = "inversion"
    links: Distinct[str] | None = None
    with_secret: bool = False
    snr_db: Decibels | None = None
    antennas: Annotated[int, Field(ge=1, le=64)] = 1
    transmissions: Annotated[int, Field(ge=1, le=64)] = 1
    channel: ChannelName | None = None
    csi: bool = True
    queries: str | None = None
    read: bool = False
    preset: PresetName | None = None
    perceptual: Literal["vgg16", "none"] = "none"

    def offers(self) -> tuple[str, ...]:
        """Return the metrics that it is judged by, without their parts."""
        from semlink.attacks import Inference, attacks

        if issubclass(attacks[self.attack], Inference):
            return measures.INFERRED
        return (*measures.DRAWN, *measures.ANSWERED) if self.read else measures.DRAWN

    def measured(self, metrics: Iterable[str]) -> list[str]:
        """Return those of ``metrics`` that it is judged by."""
        return [metric for metric in metrics if metric.partition(".")[0] in self.offers()]


class Evaluation(_Strict):
    """What is measured on the test set: at which Es/N0 in dB, with how many noise draws per image, which metrics."""

    snr_db: Distinct[Decibels] = [4.0, 8.0, 12.0, 16.0, 20.0]
    draws: Annotated[int, Field(ge=1)] = 5
    attack_draws: Annotated[int, Field(ge=1)] = 1
    seed: Seed = 0
    metrics: Distinct[Metric] = ["accuracy", "psnr_db", "ssim", "mi_leakage"]


class FigureEntry(_Strict):
    """A metric of ``links`` and ``attacks`` (None: of all), drawn over the SNR grid.

    ``over`` an option of the links' schemes, as ``users``, it is drawn of the links alone, at ``at_db`` of the grid.
    Over another metric, as ``accuracy``, it has a point for each link: its own, and what its strongest attack reaches.
    """

    metric: Metric
    over: str = "snr_db"
    at_db: Decibels | None = None
    links: Distinct[str] | None = None
    attacks: Distinct[str] | None = None
    title: str | None = None


class Content(_Strict):
    """What a recipe says, whatever its name.

    With ``costs`` nothing is trained to its end, evaluated or attacked: what each link takes is measured, alone.
    """

    title: str
    costs: bool = False
    plugins: list[str] = []
    links: Annotated[dict[Name, LinkEntry], Field(min_length=1)]
    attacks: dict[Name, AttackEntry] = {}
    evaluation: Evaluation = Evaluation()
    figures: dict[Name, FigureEntry] = {}


class BenchRecipe(Content):
    """All that determines a bench: a file, read in one of its variants.

    Attributes:
        name: the file's stem, or the path of a packaged recipe, as "paper-a/fig3".
        variant: "default", or the overlay that was chosen.
    """

    name: str
    variant: str = "default"

    @property
    def sha256(self) -> str:
        """A hash of the content: neither name, title, plugins' places, comments nor the order of keys change it."""
        content = self.model_dump(mode="json", exclude={"name", "title", "plugins"})
        if not content["costs"]:  # said by silence, as below
            del content["costs"]
        for link in content["links"].values():
            for key in ("start", "against"):
                if link[key] is None:  # said by silence, so that recipes older than this key keep their hash
                    del link[key]
        for figure in content["figures"].values():
            if figure["over"] == "snr_db":
                del figure["over"], figure["at_db"]
        for attack in content["attacks"].values():
            for key in ("antennas", "transmissions", "channel", "csi", "queries", "read"):
                if attack[key] == AttackEntry.model_fields[key].default:
                    del attack[key]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _Overlay(_Strict):
    title: str = ""
    without: Distinct[str] | None = None
    defaults: dict[str, Any] = {}
    links: dict[str, Any] = {}
    attacks: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    figures: dict[str, Any] = {}


class _File(Content):
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
    _load_plugins(file, text, document)
    content, mistakes = _check(document)
    if mistakes:
        refuse(file, text, [((), *mistake) for mistake in mistakes])
    readings, found = {"default": content}, []
    for variant, overlay in document.get("variants", {}).items():
        merged, out = _merge(document, overlay), overlay.get("without", [])
        unknown = [said for name in out for said in _complaints(check_name, "link to leave out", name, merged["links"])]
        readings[variant], mistakes = _check(_without(merged, out)) if not unknown else (None, [])
        found += [(("variants", variant), ("without",), said) for said in unknown]
        found += [(("variants", variant), *mistake) for mistake in mistakes]
    if found:
        refuse(file, text, found)
    return {
        variant: BenchRecipe(name=name, variant=variant, **{key: getattr(read, key) for key in Content.model_fields})
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


def _load_plugins(file: Path | Traversable, text: str, document: dict[str, Any]) -> None:
    """Load the Python files that a recipe names, beside it unless their paths are absolute."""
    named = document.get("plugins", [])
    if not isinstance(file, Path) or not isinstance(named, list):  # of the package, or a mistake that is said later
        return
    for path in named:
        try:
            _plugins.add((file.parent / str(path)).resolve())
        except SemlinkError as error:
            refuse(file, text, [((), ("plugins",), str(error))])


def _merge(base: Any, over: Any) -> Any:
    """Return ``over`` with what it lacks from ``base``, table by table."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merge(base[key], value) if key in base else value for key, value in over.items()}


def _without(document: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the document without the links ``names``; attacks and figures that have none left go too.

    Links that were to be compared with one of them are compared with the first.
    """
    names = [*names]
    kept = {key: value for key, value in document.items() if key != "without"}
    if not names:
        return kept
    attacks = _pruned(kept.get("attacks", {}), "links", names)
    gone = [name for name in kept.get("attacks", {}) if name not in attacks]
    figures = _pruned(_pruned(kept.get("figures", {}), "links", names), "attacks", gone)
    links = {name: _unpaired(link, names) for name, link in kept["links"].items() if name not in names}
    return kept | {"links": links, "attacks": attacks, "figures": figures}


def _unpaired(link: Any, names: list[str]) -> Any:
    if isinstance(link, dict) and link.get("against") in names:
        return {key: value for key, value in link.items() if key != "against"}
    return link


def _pruned(tables: dict[str, Any], key: str, gone: list[str]) -> dict[str, Any]:
    """Return tables whose lists under ``key`` lack the names that are gone, but for those whose list has none left."""
    found = {}
    for name, table in tables.items():
        if isinstance(table, dict) and isinstance(table.get(key), list):
            table = table | {key: [each for each in table[key] if each not in gone]}
            if not table[key]:
                continue
        found[name] = table
    return found


def _check(document: dict[str, Any]) -> tuple[Any, list[tuple[Keys, str]]]:
    """Return the content of a document and its mistakes, each with the keys that lead to it."""
    if isinstance(links := document.get("links"), dict):
        defaults = document.get("defaults")
        document = document | {"links": {name: _merge(defaults, link) for name, link in links.items()}}
    try:
        content = _File.model_validate(document)
    except ValidationError as error:
        return None, _explain(error, document)
    return content, [(keys, said) for keys, check, given in relations(content) for said in _complaints(check, *given)]


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
