# SPDX-License-Identifier: Apache-2.0
"""Recipes of benches: what a file means, and that every mistake in one is told by file, line and field.

In the texts below ``# <-`` marks the line that the message has to name.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from semlink._errors import SemlinkError
from semlink.bench import measures, mistakes, recipes
from semlink.schemes import DeepJSCC, schemes

LINK = '[links.a]\nscheme = "deepjscc"\n'
KEYED = '[links.k]\nscheme = "deepjscc-encryption"\n'
FIGURE = '[figures.f]\nmetric = "accuracy"\n'
FULL = """
title = "Two links"
[defaults]
data = "cifar10"
preset = "smoke"
seeds = [0, 1]
options = { }
[links.plain]
scheme = "deepjscc"
[links.shuffled]
scheme = "deepjscc-encryption"
preset = "cpu"
options = { fresh = false }
[attacks.inversion]
[attacks.with-key]
with_secret = true
links = ["shuffled"]
snr_db = 20
[evaluation]
snr_db = [0, 2.5]
metrics = ["accuracy", "mi_leakage"]
[figures.leakage]
metric = "mi_leakage"
links = ["plain", "shuffled"]
attacks = ["inversion"]
[variants.longer]
title = "Longer codes"
defaults.channel_uses = 128
links.shuffled.channel_uses = 256
evaluation.snr_db = [5]
[variants.bare.links.third]
scheme = "deepjscc"
"""


@pytest.fixture
def bench(tmp_path: Path):
    """Write a text to a file, of which the name is returned."""

    def write(text: str | bytes, name: str = "bench.toml") -> str:
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return str(tmp_path / name)

    return write


def refusal(name: str, variant: str | None = None) -> str:
    with pytest.raises(SemlinkError) as refused:
        recipes.load(name, variant)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# What a file means


def test_a_recipe_is_read_with_its_defaults(bench):
    read = recipes.load(bench(FULL))
    assert (read.name, read.title, read.variant) == ("bench", "Two links", "default")
    assert list(read.links) == ["plain", "shuffled"]
    plain, shuffled = read.links.values()
    assert (plain.data, plain.preset, plain.seeds, plain.options) == ("cifar10", "smoke", [0, 1], {})
    assert (shuffled.data, shuffled.preset, shuffled.seeds) == ("cifar10", "cpu", [0, 1])
    assert shuffled.options == {"fresh": False}
    assert read.attacks["inversion"] == recipes.AttackEntry()
    assert read.attacks["with-key"] == recipes.AttackEntry(with_secret=True, links=["shuffled"], snr_db=20.0)
    assert read.evaluation == recipes.Evaluation(snr_db=[0.0, 2.5], metrics=["accuracy", "mi_leakage"])
    assert read.figures == {
        "leakage": recipes.FigureEntry(metric="mi_leakage", links=["plain", "shuffled"], attacks=["inversion"])
    }


def test_what_is_left_out(bench):
    read = recipes.load(bench('title = "t"\n' + LINK + "[attacks.e]\n" + FIGURE))
    assert read.model_dump(exclude_none=True) == tomllib.loads("""
title = "t"
costs = false
plugins = []
name = "bench"
variant = "default"
[attacks.e]
attack = "inversion"
with_secret = false
antennas = 1
transmissions = 1
csi = true
read = false
perceptual = "none"
[figures.f]
metric = "accuracy"
over = "snr_db"
[links.a]
scheme = "deepjscc"
options = {}
data = "digits"
variant = "default"
channel = "awgn"
snr_db = 12.0
channel_uses = 64
preset = "cpu"
seeds = [0]
precision = "auto"
[evaluation]
snr_db = [4, 8, 12, 16, 20]
draws = 5
attack_draws = 1
seed = 0
metrics = ["accuracy", "psnr_db", "ssim", "mi_leakage"]
""")


def test_a_variant_goes_over_the_rest_table_by_table(bench):
    file = bench(FULL)
    base, longer, bare = (recipes.load(file, variant) for variant in (None, "longer", "bare"))
    assert recipes.variants(file) == ["default", "longer", "bare"]
    assert (longer.title, longer.variant) == ("Longer codes", "longer")
    assert [link.channel_uses for link in longer.links.values()] == [128, 256]
    assert longer.links["shuffled"].options == {"fresh": False}
    assert longer.evaluation == base.evaluation.model_copy(update={"snr_db": [5.0]})
    assert (longer.attacks, longer.figures) == (base.attacks, base.figures)
    assert list(bare.links) == ["plain", "shuffled", "third"]
    assert bare.links["third"] == base.links["plain"]
    assert recipes.load(file, "default") == base


def test_defaults_reach_into_options(bench):
    text = """
title = "t"
[defaults]
scheme = "deepjscc-encryption"
options.fresh = false
[links.kept]
[links.changed]
options.fresh = true
"""
    links = recipes.load(bench(text)).links
    assert [link.options for link in links.values()] == [{"fresh": False}, {"fresh": True}]


def test_numbers_and_truths_keep_their_types(bench, monkeypatch):
    class Free(DeepJSCC):
        def __init__(self, design, **options):
            super().__init__(design)

    monkeypatch.setitem(schemes._entries, "free", Free)
    text = 'title = "t"\n[links.a]\nscheme = "free"\nsnr_db = 12\noptions = { a = true, b = 1, c = 1.0, d = "1" }'
    link = recipes.load(bench(text)).links["a"]
    assert [(type(value), value) for value in link.options.values()] == [(bool, 1), (int, 1), (float, 1), (str, "1")]
    assert type(link.snr_db) is float


def test_a_recipe_cannot_be_changed(bench):
    read = recipes.load(bench(FULL))
    for part in (read, read.links["plain"], read.attacks["inversion"], read.evaluation, read.figures["leakage"]):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, next(iter(type(part).model_fields)), None)


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistakes(bench):
    read = recipes.load(bench(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode()))
    assert read == recipes.load(bench(FULL))


# The hash

SAME = {
    "comment": ("[evaluation]", "# why\n[evaluation] # so"),
    "title": ('"Two links"', '"Others"'),
    "order of keys": ('scheme = "deepjscc-encryption"\npreset = "cpu"', 'preset = "cpu"\nscheme="deepjscc-encryption"'),
    "a default said": ("[evaluation]", "[evaluation]\ndraws = 5"),
    "a default where it belongs": ("[links.plain]", '[links.plain]\ndata = "cifar10"'),
    "a number's form": ("[0, 2.5]", "[0.0, 25e-1]"),
    "another variant": ("[5]", "[6]"),
}
OTHER = {
    "attack's name": ("[attacks.with-key]", "[attacks.keyed]"),
    "scheme": ("fresh = false", "fresh = true"),
    "seeds": ("[0, 1]", "[0, 2]"),
    "attack": ("snr_db = 20", "snr_db = 21"),
    "grid": ("2.5", "2.6"),
    "draws": ("[evaluation]", "[evaluation]\ndraws = 6"),
    "metrics": ('"accuracy", "mi_leakage"', '"accuracy", "mi_leakage", "ssim"'),
    "figure": ('"plain", "shuffled"', '"shuffled"'),
    "figure's title": ('metric = "mi_leakage"', 'metric = "mi_leakage"\ntitle = "Leaks"'),
}


def changed(change: tuple[str, str]) -> str:
    assert FULL.count(change[0]) == 1
    return FULL.replace(*change)


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_the_hash_is_blind_to_form(bench, change):
    assert recipes.load(bench(changed(change), "other.toml")).sha256 == recipes.load(bench(FULL)).sha256


def test_the_hash_is_blind_to_the_order_of_tables(bench):
    head, *tables = FULL.replace("\n[", "\0[").split("\0")
    turned = "\n".join([head, *reversed(tables)])
    assert list(recipes.load(bench(turned)).links) == ["shuffled", "plain"]
    assert recipes.load(bench(turned)).sha256 == recipes.load(bench(FULL)).sha256


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_the_hash_sees_every_change_of_content(bench, change):
    before, after = recipes.load(bench(FULL)).sha256, recipes.load(bench(changed(change))).sha256
    assert before != after
    assert len(after) == 64


def test_every_variant_has_a_hash_of_its_own(bench):
    file = bench(FULL + "[variants.empty]")
    assert len({recipes.load(file, variant).sha256 for variant in recipes.variants(file)}) == 4


# Where recipes are found


def test_packaged_recipes_are_whole():
    assert "start" in recipes.names()
    for name in recipes.names():
        for variant in recipes.variants(name):
            read = recipes.load(name, variant)
            assert (read.name, read.variant) == (name, variant)


def test_the_packaged_beginning():
    base, longer = recipes.load("start"), recipes.load("start", "uses-128")
    assert list(base.links) == ["deepjscc", "encrypted"]
    assert {link.channel_uses for link in base.links.values()} == {64}
    assert {link.channel_uses for link in longer.links.values()} == {128}
    assert base.attacks["inversion-with-key"].links == ["encrypted"]


def test_packaged_names_are_paths_and_files_are_the_users(tmp_path, monkeypatch, bench):
    for path in ("top.toml", "paper-a/fig3.toml", "paper-a/notes.txt", "paper-a/x/y.toml"):
        (tmp_path / "recipes" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "recipes" / path).write_text('title = "packaged"\n' + LINK)
    monkeypatch.setattr(recipes.resources, "files", {"semlink": tmp_path}.__getitem__)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert recipes.names() == ["paper-a/fig3", "paper-a/x/y", "top"]
    assert recipes.load("paper-a/fig3").name == "paper-a/fig3"
    assert refusal("paper-a/fig4").startswith("unknown bench 'paper-a/fig4'; did you mean 'paper-a/fig3'? known: paper")
    (here / "top").mkdir()  # results, perhaps: no recipe
    assert recipes.load("top").title == "packaged"
    (here / "top").rmdir()
    (here / "top").write_text('title = "mine"\n' + LINK)
    assert recipes.load("top").title == "mine"
    assert refusal("top.toml") == (
        "top.toml cannot be read: No such file or directory; "
        "give a .toml file, or one of: paper-a/fig3, paper-a/x/y, top"
    )
    (here / "folder").mkdir()
    (here / "folder.toml").mkdir()
    for name in ("folder", "folder.toml"):
        assert refusal(name).startswith(f"{name} is a folder; give a .toml file, or one of: paper-a/fig3")


def test_an_unknown_variant(bench):
    file = bench(FULL)
    said = f"unknown variant of {file} 'loner'; did you mean 'longer'? known: bare, default, longer"
    assert refusal(file, "loner") == said
    assert refusal(file, "") == f"unknown variant of {file} ''; known: bare, default, longer"


def test_a_name_is_refused_without_torch():
    code = """
import runpy, sys
load = runpy.run_path(sys.argv[1])["load"]
try:
    load("strat")
except Exception as error:
    print(error, "torch" in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code, recipes.__file__], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("unknown bench 'strat'; did you mean 'start'?")
    assert shown.stdout.endswith(" False\n")


# Mistakes

FIELDS = [
    # unknown keys
    ('nmae = "x" # <-\n' + LINK, "nmae: unknown key 'nmae'; known: attacks, costs, defaults, evaluation, figures"),
    ('name = "x" # <-\n' + LINK, "name: unknown key 'name'"),
    ('variant = "x" # <-\n' + LINK, "variant: unknown key 'variant'; did you mean 'variants'?"),
    (LINK + "chanel_uses = 8 # <-", "links.a.chanel_uses: unknown key 'chanel_uses'; did you mean 'channel_uses'?"),
    (LINK + "[attacks.x]\nwith_key = true # <-", "attacks.x.with_key: unknown key 'with_key'; did you mean"),
    (LINK + "[evaluation]\ndrws = 3 # <-", "evaluation.drws: unknown key 'drws'; did you mean 'draws'?"),
    (LINK + FIGURE + 'note = "" # <-', "figures.f.note: unknown key 'note'; "),
    (LINK + "[defaults]\nprset = 1 # <-", "defaults.prset: unknown key 'prset'; did you mean 'preset'? known: "),
    (LINK + "options.frehs = true # <-", "links.a.options.frehs: unknown option of deepjscc"),
    (KEYED + "[links.k.options]\nfresh = true\nfrehs = 1 # <-", "links.k.options.frehs: unknown option of deepjscc-en"),
    # names
    ('[links.a]\nscheme = "depjscc" # <-', "links.a.scheme: unknown scheme 'depjscc'; did you mean 'deepjscc'?"),
    (LINK + 'data = "digit" # <-', "links.a.data: unknown data set 'digit'; did you mean 'digits'?"),
    (LINK + 'channel = "awg" # <-', "links.a.channel: unknown channel 'awg'; did you mean 'awgn'?"),
    (LINK + 'preset = "smok" # <-', "links.a.preset: unknown preset 'smok'; did you mean 'smoke'?"),
    (LINK + 'data = "cifar10"\nvariant = "default2" # <-', "links.a.variant: unknown variant of cifar10 'default2'"),
    (LINK + 'task = "classifi" # <-', "links.a.task: unknown task 'classifi'; did you mean 'classify'?"),
    (LINK + 'task = "attributes" # <-', "links.a.task: task 'attributes' needs other targets than this data set has"),
    (LINK + 'precision = "fp16" # <-', "links.a.precision: expected 'auto', 'bf16' or 'fp32', not \"fp16\""),
    (LINK + '[attacks.x]\nattack = "invert" # <-', "attacks.x.attack: unknown attack 'invert'; did you mean"),
    (LINK + '[attacks.x]\npreset = "smok" # <-', "attacks.x.preset: unknown preset 'smok'"),
    (LINK + '[attacks.x]\nperceptual = "vgg" # <-', "attacks.x.perceptual: expected 'vgg16' or 'none', not \"vgg\""),
    (LINK + '[evaluation]\nmetrics = ["acuracy"] # <-', "evaluation.metrics: unknown metric 'acuracy'; did you mean"),
    (LINK + '[figures.f]\nmetric = "leakage" # <-', "figures.f.metric: unknown metric 'leakage'; did you mean"),
    ("[links.a_b] # <-\nscheme = 'deepjscc'", "links.a_b: expected a name of letters, digits, spaces and . + -"),
    (LINK + '[figures."a/b"] # <-\nmetric = "ssim"', 'figures."a/b": expected a name of letters'),
    (LINK + "[attacks.-a] # <-", "attacks.-a: expected a name of letters"),
    (LINK + '[variants."a\\n"] # <-', 'variants."a\\n": expected a name of letters'),
    (LINK + "[variants.default] # <-", "variants.default: 'default' is the file without a variant; choose another"),
    # types and ranges
    (LINK + 'snr_db = "12" # <-', 'links.a.snr_db: expected a number, not "12"'),
    (LINK + "snr_db = true # <-", "links.a.snr_db: expected a number, not true"),
    (LINK + "snr_db = inf # <-", "links.a.snr_db: expected a finite number, not inf"),
    (LINK + "channel_uses = 64.0 # <-", "links.a.channel_uses: expected a whole number, not 64.0"),
    (LINK + "channel_uses = true # <-", "links.a.channel_uses: expected a whole number, not true"),
    (LINK + "channel_uses = 0 # <-", "links.a.channel_uses: expected more than 0, not 0"),
    (LINK + "seeds = 0 # <-", "links.a.seeds: expected a list, not 0"),
    (LINK + "seeds = [] # <-", "links.a.seeds: expected at least 1 entry, not an empty list"),
    (LINK + "seeds = [ # <-\n 0,\n -1,\n]", "links.a.seeds: expected at least 0, not -1"),
    (LINK + f"seeds = [{2**63}] # <-", f"links.a.seeds: expected at most {2**63 - 1}, not {2**63}"),
    (LINK + "seeds = [1, 0, 1] # <-", "links.a.seeds: 1 stands there twice; give each once"),
    (LINK + "options = 3 # <-", "links.a.options: expected a table, not 3"),
    (LINK + "options.x = [1] # <-", "links.a.options.x: expected true or false or a whole number or a number or a"),
    (LINK + 'task = 3 # <-\ndata="digits"', "links.a.task: expected a string, not 3"),
    (LINK + "data = 1999-01-01 # <-", "links.a.data: expected a string, not 1999-01-01"),
    (LINK + 'weights = "deepjscc" # <-', "links.a.weights: expected 'zoo:' and the name of a trained link, not"),
    (LINK + 'weights = "zoo:" # <-', "links.a.weights: expected 'zoo:' and the name"),
    (LINK + 'seeds = [0, 1]\nweights = "zoo:x" # <-', "links.a.weights: these weights are one trained link: expected"),
    (LINK + "[attacks.x]\nwith_secret = 1 # <-", "attacks.x.with_secret: expected true or false, not 1"),
    (LINK + "[attacks.x]\nsnr_db = nan # <-", "attacks.x.snr_db: expected a finite number, not nan"),
    (LINK + '[attacks.x]\nlinks = "a" # <-', 'attacks.x.links: expected a list, not "a"'),
    (LINK + "[attacks.x]\nlinks = [] # <-", "attacks.x.links: expected at least 1 entry, not an empty list"),
    (LINK + "[evaluation]\nsnr_db = [] # <-", "evaluation.snr_db: expected at least 1 entry, not an empty list"),
    (LINK + "[evaluation]\nsnr_db = [4, 4.0] # <-", "evaluation.snr_db: 4.0 stands there twice"),
    (LINK + "[evaluation]\nsnr_db = [4, -inf] # <-", "evaluation.snr_db: expected a finite number, not -inf"),
    (LINK + "[evaluation]\ndraws = 0 # <-", "evaluation.draws: expected at least 1, not 0"),
    (LINK + "[evaluation]\nattack_draws = 0 # <-", "evaluation.attack_draws: expected at least 1, not 0"),
    (LINK + "[evaluation]\nseed = -1 # <-", "evaluation.seed: expected at least 0, not -1"),
    (LINK + "[evaluation]\nmetrics = [] # <-", "evaluation.metrics: expected at least 1 entry"),
    (LINK + FIGURE + "title = 1 # <-", "figures.f.title: expected a string, not 1"),
    ("links = 3 # <-\ndefaults.data = 'digits'", "links: expected a table, not 3"),
    ("links.a = 3 # <-", "links.a: expected a table, not 3"),
    ("[[links]] # <-\nscheme = 1", "links: expected a table, not a list"),
    ("[links] # <-", "links: expected at least 1 entry, not an empty table"),
    ("defaults = 3 # <-\n" + LINK, "defaults: expected a table, not 3"),
    ("variants = 3 # <-\n" + LINK, "variants: expected a table, not 3"),
    ("variants.x = 3 # <-\n" + LINK, "variants.x: expected a table, not 3"),
    # what is missing
    ('\n[links.a] # <-\ndata = "digits"', "links.a.scheme: is missing, and has no default"),
    ('\n[links]\na.data = "digits" # <-\na.seeds = [1]', "links.a.scheme: is missing"),
    (LINK + '[figures.f] # <-\ntitle = ""', "figures.f.metric: is missing, and has no default"),
    # references
    (LINK + '[attacks.x]\nlinks = ["a", "b"] # <-', "attacks.x.links: unknown link 'b'; known: a"),
    (LINK + FIGURE + 'links = ["aa"] # <-', "figures.f.links: unknown link 'aa'; did you mean 'a'?"),
    (LINK + FIGURE + 'attacks = ["x"] # <-', "figures.f.attacks: unknown attack 'x'; known: none"),
    (LINK + '[figures.f]\nmetric = "ssim" # <-', "figures.f.metric: none of its links is measured by 'ssim', and no"),
    (
        LINK + '[attacks.x]\n[figures.f]\nmetric = "accuracy" # <-\nattacks = ["x"]',
        "figures.f.metric: 'accuracy' is not measured of its attacks; leave 'attacks' out, or take one of: psnr_db, ss",
    ),
    (
        LINK + '[links.b]\nscheme = "deepjscc"\n[attacks.x]\nlinks = ["b"]\n[figures.f]\nmetric = "ssim" # <-\n'
        'attacks = ["x"]\nlinks = ["a"]',
        "figures.f.metric: none of its attacks is on any of its links",
    ),
    (
        LINK + '[links.b]\nscheme = "deepjscc"\n[attacks.x]\nlinks = ["b"]\n[figures.f]\nmetric = "ssim" # <-\n'
        'links = ["a"]',
        "figures.f.metric: none of its links is measured by 'ssim', and no attack is; they offer: accuracy, balanced_",
    ),
    (
        LINK + 'data = "celeba"\n[figures.f]\nmetric = "accuracy" # <-',
        "figures.f.metric: none of its links is measured by 'accuracy', and no attack is; they offer: accuracy.5_o",
    ),
    (
        LINK + FIGURE + '[figures."F"] # <-\nmetric = "accuracy"',
        "figures.F: figures 'f' and 'F' would be the same file",
    ),
    (
        LINK + '[figures."a b"]\nmetric = "accuracy"\n[figures."a-b"] # <-\nmetric = "accuracy"',
        "figures.a-b: figures 'a b' and 'a-b' would be the same file; rename one",
    ),
    (LINK + f'[figures."{"f" * 65}"] # <-\nmetric = "ssim"', f"figures.{'f' * 65}: expected a name of letters"),
    (LINK + '[figures.f]\nmetric = "lpips" # <-', "figures.f.metric: 'lpips' is not measured; add it to"),
    (
        '[links.n]\nscheme = "csi-free"\nchannel = "awgn" # <-\nchannel_uses = 16\n',
        "links.n.channel: scheme 'csi-free' is of several users, on channel 'interference', not 'awgn'",
    ),
    (
        LINK + 'channel = "interference"\n[attacks.x]\nchannel = "overheard-3" # <-',
        "attacks.x.channel: nobody is on 'overheard-3' while link 'a' is on 'interference'; name another channel, or",
    ),
    ("costs = 1 # <-\n" + LINK, "costs: expected true or false, not 1"),
    (
        "costs = true\n" + LINK + "[attacks.x] # <-",
        "attacks: a bench of costs has no attacks; leave that out, or 'costs'",
    ),
    ("costs = true\n" + LINK + "[figures.f] # <-\nmetric = 'accuracy'", "figures: a bench of costs has no figures"),
    (
        "costs = true\n[links.a] # <-\nscheme = 'deepjscc'\nstart = 'zoo:x'",
        "links.a: a bench of costs trains and compares",
    ),
    (LINK + KEYED + "[attacks.x]\nwith_secret = true # <-", "attacks.x.with_secret: without a secret: a; name in"),
    # defaults
    ('[defaults]\ndata = "digit" # <-\n' + LINK, "defaults.data: unknown data set 'digit'; did you mean 'digits'?"),
    ("[defaults]\noptions.x = 1 # <-\n" + LINK, "defaults.options.x: unknown option of deepjscc 'x'"),
    ('[defaults]\ndata = "digits"\n[links.a] # <-', "links.a.scheme: is missing"),
    ('[defaults]\ndata = "digit"\n' + LINK + 'data = "mnis" # <-', "links.a.data: unknown data set 'mnis'"),
    # variants, of which none is chosen
    (LINK + "[variants.x.evaluation]\ndrws = 3 # <-", "variants.x.evaluation.drws: unknown key 'drws'; did you mean"),
    (LINK + "[variants.x.evalution] # <-\ndraws = 3", "variants.x.evalution: unknown key 'evalution'; did you mean"),
    (LINK + "[variants.x]\nvariants.y.title = '' # <-", "variants.x.variants: unknown key 'variants'; known: "),
    (LINK + "[variants.x]\nlinks = 3 # <-", "variants.x.links: expected a table, not 3"),
    (LINK + "[variants.x]\nlinks.a.data = 3 # <-", "variants.x.links.a.data: expected a string, not 3"),
    (LINK + '[variants.x.defaults]\ndata = "digit" # <-', "variants.x.defaults.data: unknown data set 'digit'"),
    (LINK + '[variants.x.links.b] # <-\ndata = "digits"', "variants.x.links.b.scheme: is missing"),
    (LINK + '[attacks.e]\n[variants.x.attacks.e]\nlinks = ["b"] # <-', "variants.x.attacks.e.links: unknown link 'b'"),
    (
        LINK + FIGURE + "[variants.x.evaluation] # <-\nmetrics = ['lpips']",
        "variants.x.figures.f.metric: 'accuracy' is not",
    ),
]


@pytest.mark.parametrize(("text", "said"), FIELDS, ids=[said[:60] for _, said in FIELDS])
def test_a_mistake_is_told_by_file_line_and_field(bench, text, said):
    text = 'title = "t"\n' + text
    line = text[: text.index("# <-")].count("\n") + 1
    file = bench(text)
    assert refusal(file).startswith(f"{file}, line {line}: {said}")
    assert "more error" not in refusal(file)


def test_what_is_missing_at_the_top_is_missing_in_line_1(bench):
    assert refusal(file := bench("\n" + LINK)) == f"{file}, line 1: title: is missing, and has no default"
    assert refusal(file := bench('\ntitle = "t"')) == f"{file}, line 1: links: is missing, and has no default"


def test_the_first_of_several_mistakes_is_told_and_how_many_more(bench):
    text = """title = "t"
[evaluation]
draws = 0
[links.a]
scheme = "deepjscc"
data = "x"
[defaults]
seeds = [-1, -2]
"""
    file = bench(text)
    assert refusal(file) == f"{file}, line 3: evaluation.draws: expected at least 1, not 0 (and 3 more errors)"
    file = bench(text.replace("draws = 0", "").replace("-2", "2"))
    assert refusal(file).startswith(f"{file}, line 6: links.a.data: unknown data set 'x'; ")
    assert refusal(file).endswith(" (and 1 more error)")


def test_references_are_counted_together(bench):
    file = bench('title = "t"\n' + LINK + '[attacks.x]\nlinks = ["b", "c"]\n[figures.f]\nmetric = "lpips"\n')
    assert refusal(file) == f"{file}, line 5: attacks.x.links: unknown link 'b'; known: a (and 2 more errors)"


def test_a_mistake_in_the_defaults_is_told_once_however_many_links_have_it(bench):
    file = bench('title = "t"\n[defaults]\npreset = 3\n' + LINK + LINK.replace(".a", ".b"))
    assert refusal(file) == f"{file}, line 3: defaults.preset: expected a string, not 3"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('title = "t"\nlinks = [1,\n2\n', 3, "not TOML: Unclosed array (at end of document)"),
        ('title = "t"\n\n[links.a\n', 3, "not TOML: Expected ']' at the end of a table declaration (at line 3, "),
        ("a = 1\na = 2\n", 2, "not TOML: Cannot overwrite a value (at line 2, "),
        ("a = 1\nb = " + "1" * 5000, 2, "not TOML: Exceeds the limit"),
        ("a = 1\nb = " + "[" * 5000, 2, "not TOML: "),
        (b"a = 1\n\n# caf\xe9\n", 3, "byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b"\xff\xfea\0", 1, "byte 0xff is not UTF-8; save the file as UTF-8"),
    ],
)
def test_what_is_not_toml_is_told_with_its_line(bench, text, line, said):
    file = bench(text)
    assert refusal(file).startswith(f"{file}, line {line}: {said}")


def test_a_file_that_may_not_be_read(bench, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    file = bench(FULL)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert refusal(file).startswith(f"{file} cannot be read: Permission denied; give a .toml file, or one of: ")


# Lines

TABLES = [("a",), ("a", "b"), ("a", "b", "c d"), ("e.f",), ("g", "h"), ("g",)]
NOISE = ["", "  ", "# [no.table] \u2028 = \x85 =", "\t# k = 'not a key'"]
#: Statements on key {k}, each with the keys that it adds below it.
STATEMENTS = [
    ("{k} = 1", []),
    ("{k} = '[x] # y' # [z]", []),
    ('{k} = "a \\" [ # \\\\"', []),
    ("{k}.x.y = 1", [("x",), ("x", "y")]),
    ("{k} = {{ x = 1, 'y z'.w = [] }}", [("x",), ("y z",), ("y z", "w")]),
    ("{k} = [ # [\n  ']', # more\n\n  '''[t]\n''',\n]", []),
    ("{k} = [[1], [\n2]\n, {{ x = 1 }}]", []),
    ('{k} = """\n[t]\nk = 1 # \\"""\n\n"""', []),
    ("{k} = '''\n[[t]]\n# '' \"\"\"\n'''", []),
    ('{k} = """""" # empty', []),
]


def quoted(key: str) -> str:
    return f'"{key}"' if {" ", "."} & set(key) else key


@given(st.data(), st.permutations(TABLES), st.sampled_from(["\n", "\r\n"]))
def test_the_line_of_each_key_is_where_it_was_written(data, tables, end):
    text, expected = [], {}
    for number, table in enumerate([(), *tables]):
        text += data.draw(st.lists(st.sampled_from(NOISE), max_size=2))
        if table:
            expected[table] = len(text) + 1
            text.append(data.draw(st.sampled_from(["[{}]", " [ {} ] # [x]"])).format(".".join(map(quoted, table))))
        for index, (statement, below) in enumerate(data.draw(st.lists(st.sampled_from(STATEMENTS), max_size=4))):
            key = f"k{number}-{index}"
            expected |= {(*table, key, *path): len(text) + 1 for path in [(), *below]}
            text += (data.draw(st.sampled_from(["", "  "])) + statement.format(k=key)).split("\n")
            text += data.draw(st.lists(st.sampled_from(NOISE), max_size=1))
    whole = end.join(text)
    found = mistakes._lines(whole)
    assert found == expected | {(): 1}
    assert set(found) == {(), *mistakes._paths(tomllib.loads(whole))}


def test_the_landed_record_of_the_beginning_is_of_the_packaged_recipe():
    landed = Path(__file__).parents[2] / "results" / "start" / "record.json"
    assert json.loads(landed.read_text())["recipe_sha256"] == recipes.load("start").sha256


def test_a_figure_over_channel_uses():
    read = recipes.load("paper-a/channel-uses")
    found = [measures.option(link, "channel_uses") for link in read.links.values()]
    assert found == [16, 32, 64, 128] * 2
    assert {measures.series(link, "channel_uses") for link in read.links.values()} == {"deepjscc", "deepjscc-lbvq"}
