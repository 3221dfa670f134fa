# SPDX-License-Identifier: Apache-2.0
"""Verbs on links in run folders: quickstart, train, evaluate, attack, report."""

import contextlib
import difflib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from semlink._errors import SemlinkError
from semlink.cli.common import GRID_DB, Common, argument, command, deliver, device_for, say

if TYPE_CHECKING:
    from semlink.schemes import Key


@dataclass(kw_only=True)
class Quickstart(Common):
    """Run the main job: train deepjscc and deepjscc-encryption, attack both, write one page.

    example: semlink quickstart --out my-first-links
    """

    data: str = "digits"
    """Data set; 'digits' needs no download."""
    preset: str = "cpu"
    """smoke, short, tune, brief, cpu or paper."""
    snr_db: float = 12.0
    """Es/N0 in training, and on the eavesdropper's own channel, in dB."""
    precision: str = "auto"
    """auto, bf16 or fp32."""
    perceptual: Literal["vgg16", "none"] = "none"
    """Perceptual loss of the attacker; vgg16 needs the weights in SEMLINK_DATA."""

    def run(self) -> None:
        """Do the main job and print what to take away."""
        from semlink.bench import main_job
        from semlink.report import takeaways, write_page
        from semlink.training import ScreenProgress, resolve_precision

        folder, device = self.out or Path("quickstart"), device_for(self.device)
        runs = main_job(
            folder,
            device,
            ScreenProgress,
            data=self.data,
            preset_name=self.preset,
            snr_db=self.snr_db,
            seed=self.seed,
            precision=resolve_precision(device, self.precision),
            perceptual=self.perceptual,
        )
        page = write_page(runs, folder / "report.html", command())
        sentences = takeaways(runs)
        if self.json:
            say(json.dumps({"report": str(page), "runs": [str(r) for r in runs], "takeaways": sentences}))
        else:
            say(*("• " + sentence for sentence in sentences), f"Report: {page}")


@dataclass(kw_only=True)
class Train(Common):
    """Train a link; the same command resumes one that was interrupted.

    example: semlink train deepjscc --data cifar10 --snr-db 12 --out runs/first

    semlink train SCHEME --help lists the options of a scheme.
    """

    scheme: str = argument()
    """Key of a scheme, as deepjscc."""
    data: str = "digits"
    """Data set: digits, mnist, fashion-mnist, cifar10 or celeba; joined by +, one for each of several users in turn."""
    variant: str = "default"
    """Named split of the data set."""
    task: str | None = None
    """classify, attributes or reconstruct; the data set's own if left out, reconstruct for several users."""
    channel: str | None = None
    """awgn, rayleigh, rician or interference, which is meant if left out for schemes of several users."""
    snr_db: float = 12.0
    """Es/N0 in training, in dB; schemes of several users train over a range of their own, and are validated here."""
    channel_uses: int = 64
    """Complex symbols per image, a multiple of 8; of each antenna for several users."""
    preset: str = "cpu"
    """smoke, short, tune, brief, cpu, converged or paper."""
    options: list[str] = field(default_factory=list)
    """The scheme's own options, as NAME=VALUE."""
    start: str | None = None
    """Trained link whose weights this one begins with, where they fit: a run folder, or zoo: and a name."""
    precision: str = "auto"
    """auto, bf16 or fp32; kept when a run is resumed."""
    devices: int = 1
    """Processes (CPU) or GPUs that share each batch."""
    key_file: Path | None = None
    """File with your key, 64 hex digits; SEMLINK_KEY in the environment does as well."""
    tensorboard: Path | None = None
    """Folder that takes every epoch's losses and validation for TensorBoard."""

    def run(self) -> None:
        """Train and print the record."""
        from semlink.bench import default_folder, held_precision, make_recipe, train
        from semlink.report import text
        from semlink.schemes import schemes
        from semlink.training import ScreenProgress, resolve_precision

        if self.devices < 1:
            raise SemlinkError(f"--devices is {self.devices}: at least 1 is needed")
        device = device_for(self.device)
        key = _key(self.key_file) if schemes[self.scheme].secret or self.key_file else None
        recipe = make_recipe(
            self.scheme,
            data=self.data,
            variant=self.variant,
            task=self.task,
            channel=self.channel,
            snr_db=self.snr_db,
            channel_uses=self.channel_uses,
            preset=self.preset,
            seed=self.seed,
            precision=resolve_precision(device, self.precision),
            key=key,
            start=self.start,
            **_options(self.options),
        )
        folder = self.out or default_folder(recipe)
        if self.precision == "auto" and (held := held_precision(folder)):
            recipe = recipe.model_copy(update={"precision": held})
        with ScreenProgress(self.scheme) as watch:
            done = train(recipe, folder, device, watch, key, self.devices, self.start, self.tensorboard)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            say(done.model_dump_json() if self.json else text.trained(done, folder))

    @staticmethod
    def help_on(argv: list[str]) -> list[str]:
        """Return what the scheme named first in ``argv``, if any, adds to the help."""
        from semlink.report import text
        from semlink.schemes import schemes

        named = argv[0] if argv and not argv[0].startswith("-") else None
        return [] if named is None else ["", *text.scheme_help(named, schemes[named])]


@dataclass(kw_only=True)
class Evaluate(Common):
    """Measure a trained link on its test set over an SNR grid.

    example: semlink evaluate runs/first --snr-db 4 8 12 16 20 --draws 5
    """

    folder: Path = argument()
    """Run folder that 'semlink train' made."""
    snr_db: list[float] = field(default_factory=lambda: list(GRID_DB))
    """Es/N0 values in dB."""
    draws: int = 5
    """Noise draws per image; averaged before images are counted."""
    key_file: Path | None = None
    """File with your key, if the link was trained with one."""

    def run(self) -> None:
        """Evaluate and print the table."""
        from semlink.bench import evaluate
        from semlink.report import text

        key = key_for(self.folder, self.key_file)
        done = evaluate(self.folder, self.snr_db, self.draws, self.seed, device_for(self.device), key)
        deliver(self.folder / "evaluate.json", self.out)
        say(done.model_dump_json() if self.json else text.evaluated(done))


@dataclass(kw_only=True)
class Attack(Common):
    """Let an eavesdropper attack a trained link.

    example: semlink attack runs/first --snr-db 12
    """

    folder: Path = argument()
    """Run folder that 'semlink train' made."""
    attack: str = "inversion"
    """Key of an attack."""
    snr_db: float | None = None
    """Es/N0 on the eavesdropper's own channel, in dB; the link's own if left out."""
    with_key: bool = False
    """The eavesdropper holds the key."""
    antennas: int = 1
    """Of the eavesdropper, or of those who collude; all that they hear is combined."""
    transmissions: int = 1
    """Of each image that she hears, with the noise and the nonce that the scheme draws for each."""
    channel: str | None = None
    """Her own channel: awgn, rayleigh, rician, or overheard on interference; of the link's kind if left out."""
    csi: bool = True
    """She knows the gains of her channel."""
    perceptual: Literal["vgg16", "none"] = "vgg16"
    """Perceptual loss of the attacker; vgg16 needs the weights in SEMLINK_DATA."""
    precision: str = "auto"
    """auto, bf16 or fp32."""
    key_file: Path | None = None
    """File with your key, if the link was trained with one (the victim transmits with it)."""

    def run(self) -> None:
        """Attack and print what she learned."""
        from semlink.attacks import Threat
        from semlink.bench import attack, record
        from semlink.bench.links import read_run
        from semlink.report import text
        from semlink.training import ScreenProgress, resolve_precision

        device, key = device_for(self.device), key_for(self.folder, self.key_file)
        snr_db = read_run(self.folder).recipe.snr_db if self.snr_db is None else self.snr_db
        with ScreenProgress(self.attack) as watch:
            path = attack(
                self.folder,
                Threat(snr_db, self.with_key, self.antennas, self.transmissions, self.channel, self.csi),
                device,
                name=self.attack,
                perceptual=self.perceptual,
                seed=self.seed,
                precision=resolve_precision(device, self.precision),
                watch=watch,
                key=key,
            )
        done = record.read(path, record.JudgeRecord)
        deliver(path, self.out)
        say(done.model_dump_json() if self.json else text.attacked(done, path))


@dataclass(kw_only=True)
class Report:
    """Draw a page from run folders, or of a bench.

    example: semlink report runs/first --out first.html
    """

    folders: list[Path] = argument()
    """Run folders that 'semlink train' made; or one bench, by the name of its recipe or the folder of its record."""
    out: Path = Path("report.html")
    """The page to write; the tables of a bench go beside it as .csv and .tex."""
    variant: str | None = None
    """The reading of a bench that its recipe names."""
    store: Path | None = None
    """Folder of all benches; SEMLINK_STORE, or a folder of the user's data, if left out."""
    json: bool = False
    """Print the page's path as JSON."""

    def run(self) -> None:
        """Write the page."""
        from semlink.report import write_page

        if (bench := self._bench()) is not None:
            from semlink.report import bench_page

            page, *beside = bench_page.write(bench, self.out)
        else:
            page, beside = write_page(self.folders, self.out, command()), []
        if self.json:
            say(json.dumps({"report": str(page), "tables": [str(path) for path in beside]}))
        else:
            say(f"Report: {page}", *(f"Tables: {path}" for path in beside))

    def _bench(self) -> Path | None:
        """Return the folder of the bench that is named, None if these are run folders."""
        from semlink.bench import recipes, results
        from semlink.bench.store import Store, default_root

        named = self.folders[0]
        if self.variant is not None and named.is_dir():
            raise SemlinkError(f"{named} is a folder; --variant is of a bench that is named by its recipe")
        if len(self.folders) == 1 and (named / "record.json").is_file():
            with contextlib.suppress(ValueError, AttributeError):  # damaged: whoever reads it will say so
                return named if json.loads((named / "record.json").read_text()).get("kind") == "bench" else None
            return None
        if named.exists() and named.suffix != ".toml":
            return None
        if len(self.folders) > 1 or (str(named) not in recipes.names() and named.suffix != ".toml"):
            if len(self.folders) == 1 and (near := difflib.get_close_matches(str(named), recipes.names(), 1)):
                raise SemlinkError(f"{named} is no run folder and no bench; did you mean '{near[0]}'?")
            return None
        recipe, root = recipes.load(str(named), self.variant), self.store or default_root()
        folder = results.folder_of(recipe, Store(root)) if (root / "store.json").is_file() else root
        if not (folder / "record.json").is_file():
            raise SemlinkError(f"bench {recipe.name} has no record in {root}; 'semlink bench {named}' makes one")
        return folder


def _key(key_file: Path | None) -> "Key | None":
    """Return the user's key from the file, else from the environment, else None."""
    from semlink.schemes import Key

    return Key.from_file(key_file) if key_file else Key.from_environment()


def key_for(folder: Path, key_file: Path | None) -> "Key | None":
    """Return the user's key if the run in ``folder`` was made with one, or if one was named."""
    from semlink.bench.links import read_run

    kept = read_run(folder).recipe.key
    return _key(key_file) if key_file or (kept and kept["kind"] == "user") else None


def _options(pairs: list[str]) -> dict[str, bool | int | float | str]:
    """Parse a scheme's NAME=VALUE options: true and false, numbers, else text."""
    parsed: dict[str, bool | int | float | str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise SemlinkError(f"option '{pair}' of the scheme: NAME=VALUE is expected, as fresh=false")
        if name in parsed:
            raise SemlinkError(f"option '{name}' of the scheme is given twice, the second time as '{pair}'; give one")
        parsed[name] = _value(text)
    return parsed


def _value(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
