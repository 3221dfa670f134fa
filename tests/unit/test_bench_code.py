# SPDX-License-Identifier: Apache-2.0
"""The hash of code: what can change a result changes it, and nothing else does."""

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import semlink
from semlink._errors import SemlinkError
from semlink.bench import attacker, code, evaluator, judge, trainer

SOURCE, PATH = Path(semlink.__file__).parent, code._path


def forget() -> None:
    """Let the next hash read the files again."""
    importlib.invalidate_caches()
    for cached in (PATH, code._tree, code._imports, code._essence):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def _forgotten():
    forget()
    yield
    forget()


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes modules of a package ``mine`` and returns the hash of ``mine.scheme``."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**files: str) -> str:
        for name, text in files.items():
            path = tmp_path / "mine" / f"{name.replace('parts_', 'parts/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "mine" / "__init__.py").touch()
        forget()
        return code.modules_sha256("mine.scheme")

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("copy") / "semlink"
    shutil.copytree(SOURCE, root, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture
def append(copy, monkeypatch):
    """Writes at the end of a module of a copy of Semlink, which hashes are made of."""
    held = {}

    def path(module: str) -> Path:
        if module.split(".")[0] != "semlink":
            return PATH(module)
        bare = copy.parent / module.replace(".", "/")
        return bare / "__init__.py" if bare.is_dir() else bare.with_suffix(".py")

    def write(module: str, text: str) -> None:
        file = path(f"semlink.{module}")
        held[file] = file.read_text() if file.exists() else None
        file.write_text((held[file] or "") + text)
        forget()

    monkeypatch.setattr(code, "_path", path)
    yield write
    for file, text in held.items():
        file.unlink() if text is None else file.write_text(text)


def of_training(scheme: str = "deepjscc") -> str:
    return code.modules_sha256(*trainer.modules(scheme, "awgn"))


# What counts

BODY = '''
"""What this is."""
SIZE = 3


class Scheme:
    """A scheme."""

    def send(self, x, *, twice=False):
        """Send."""
        return SIZE * x if twice else x


async def later():
    """Wait."""
'''


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""What this is."""\n', ""),
        ('"""What this is."""', '"""What this was.\n\nAnd more.\n"""'),
        ('    """A scheme."""\n\n', ""),
        ('        """Send."""\n', '        # sends\n        "Send it."\n'),
        ('"""Wait."""', '"""Wait a while."""'),
        ("SIZE = 3", "\n\n# how many\nSIZE   =   (3)  # three"),
        ("SIZE = 3", "SIZE = 0x3"),
        (
            "return SIZE * x if twice else x",
            "return (\n            SIZE * x\n            if twice\n            else x\n        )",
        ),
        (
            "def send(self, x, *, twice=False):",
            "def send(\n        self,\n        x,\n        *,\n        twice=False,\n    ):",
        ),
    ],
)
def test_layout_comments_and_docstrings_do_not_count(mine, before, after):
    first = mine(scheme=BODY)
    assert before in BODY
    assert mine(scheme=BODY.replace(before, after)) == first


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("SIZE = 3", "SIZE = 4"),
        ("SIZE = 3", "SIZE = 3.0"),
        ("SIZE = 3", 'SIZE = "3"'),
        ("SIZE = 3", "SIZE = -3"),
        ("SIZE * x if twice", "SIZE + x if twice"),
        ("SIZE * x", "x * SIZE"),
        ("twice=False", "twice=True"),
        ("*, twice", "twice"),
        ("return SIZE * x if twice else x", "SIZE * x if twice else x"),
        ("send", "sent"),
        ("async def", "def"),
        ("class Scheme:", "class Scheme(dict):"),
        ("class Scheme:", "@wrapped\nclass Scheme:"),
        ("\n    def send", "\n    size: int = 3\n\n    def send"),
        ('        """Send."""\n', '        """Send."""\n        "a second text is no docstring"\n'),
    ],
)
def test_every_change_of_what_is_computed_counts(mine, before, after):
    first = mine(scheme=BODY)
    assert before in BODY
    assert mine(scheme=BODY.replace(before, after)) != first
    assert mine(scheme=BODY) == first


def test_where_a_statement_stands_counts(mine):
    first = mine(scheme="for i in (1, 2):\n    a = i\nb = 1\n")
    assert mine(scheme="for i in (1, 2):\n    a = i\n    b = 1\n") != first


# What is imported

IMPORTS = [
    "from mine.help import aid",
    "from mine.help import aid as other",
    "from mine.help import *",
    "from mine import help",
    "from mine import help as other",
    "from .help import aid",
    "from . import help",
    "from . import help as other",
    "import mine.help as other",
    "import mine.help\nmine.help.aid()",
    "def late():\n    from mine.help import aid",
    "try:\n    from mine.help import aid\nexcept ImportError:\n    aid = None",
]


@pytest.mark.parametrize("text", IMPORTS)
def test_a_module_that_is_imported_counts_however_it_is_imported(mine, text):
    first = mine(scheme=text, help="def aid(): return 1", other="X = 1")
    assert mine(other="X = 2") == first
    assert mine(help="def aid(): return 2") != first


def test_what_an_imported_module_imports_counts_too(mine):
    first = mine(scheme="from mine.a import f", a="from .b import f", b="import mine.c as c\nf = c.X", c="X = 1")
    assert code.imported("mine.scheme") == {"mine.scheme", "mine.a", "mine.b", "mine.c"}
    assert mine(c="X = 2") != first


def test_modules_that_import_one_another_are_each_counted_once(mine):
    first = mine(scheme="from mine.a import f", a="from mine.scheme import g\nX = 1")
    assert code.imported("mine.scheme") == {"mine.scheme", "mine.a"}
    assert mine(a="from mine.scheme import g\nX = 2") != first


def test_a_name_is_followed_through_the_package_that_passes_it_on(mine):
    package = "from mine.parts.one import First\nfrom .two import Second as Renamed\n"
    files = {"parts___init__": package, "parts_one": "First = 1", "parts_two": "Second = 1"}
    first = mine(scheme="from mine.parts import First", **files)
    assert code.imported("mine.scheme") == {"mine.scheme", "mine.parts.one"}
    assert mine(parts_two="Second = 2") == first
    assert mine(parts_one="First = 2") != first
    renamed = mine(scheme="from mine.parts import Renamed")
    assert code.imported("mine.scheme") == {"mine.scheme", "mine.parts.two"}
    assert mine(parts_two="Second = 3") != renamed
    whole = mine(scheme="from mine import parts\nparts.Renamed + parts.one.First")
    assert code.imported("mine.scheme") == {"mine.scheme", "mine.parts.one", "mine.parts.two"}
    assert mine(parts_one="First = 3") != whole


def test_what_a_package_defines_itself_counts_with_the_package(mine):
    files = {"parts___init__": "from mine.parts.one import First\nSIZE = First", "parts_one": "First = 1"}
    first = mine(scheme="from mine.parts import SIZE", **files)
    assert code.imported("mine.scheme") == {"mine.scheme", "mine.parts", "mine.parts.one"}
    assert mine(parts___init__="from mine.parts.one import First\nSIZE = First + 1") != first


def test_a_name_that_a_package_loads_late_is_told_by_its_types(mine):
    package = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from mine.parts.one import First
def __getattr__(name):
    ...
"""
    first = mine(scheme="from mine.parts import First", parts___init__=package, parts_one="First = 1")
    assert mine(parts_one="First = 2") != first


def test_an_import_for_types_alone_does_not_count_and_its_alternative_does(mine):
    text = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from mine.types import Kind
else:
    from mine.real import Kind
"""
    first = mine(scheme=text, types="Kind = 1", real="Kind = 1")
    assert code.imported("mine.scheme") == {"mine.scheme", "mine.real"}
    assert mine(types="Kind = 2") == first
    assert mine(real="Kind = 2") != first


def test_other_libraries_are_not_followed(mine):
    mine(scheme="import torch, numpy.linalg\nfrom scipy import stats\nimport json\nfrom collections.abc import Sized")
    assert code.imported("mine.scheme") == {"mine.scheme"}


def test_a_scheme_of_ones_own_counts_with_its_package_and_with_what_it_uses_of_semlink(mine, append):
    mine(
        scheme="from semlink.schemes import Scheme\nfrom mine.help import aid", help="from mine.deep import *", deep=""
    )
    found = code.imported("mine.scheme")
    assert {"mine.scheme", "mine.help", "mine.deep", "semlink.schemes.base"} <= found
    assert "semlink.schemes.deepjscc" not in found
    first = code.modules_sha256("mine.scheme")
    append("schemes.deepjscc", "X = 1")
    assert code.modules_sha256("mine.scheme") == first
    append("schemes.base", "X = 1")
    assert code.modules_sha256("mine.scheme") != first


def test_a_file_that_stands_alone_counts_alone(tmp_path, monkeypatch):
    (tmp_path / "alone.py").write_text("from semlink.phy import channels\nimport beside")
    (tmp_path / "beside.py").write_text("X = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = code.imported("alone")
    assert "semlink.phy.channel" in found
    assert "beside" not in found
    assert "alone" in found


def test_a_module_that_was_loaded_from_a_path_is_found_there(tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text("X = 1")
    loaded = ModuleType("loaded_by_path")
    loaded.__file__ = str(tmp_path / "elsewhere.py")
    monkeypatch.setitem(sys.modules, "loaded_by_path", loaded)
    first = code.modules_sha256("loaded_by_path")
    (tmp_path / "elsewhere.py").write_text("X = 2")
    forget()
    assert code.modules_sha256("loaded_by_path") != first


def test_a_folder_that_is_no_package_is_told_apart_from_code_without_source(tmp_path, monkeypatch):
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "scheme.py").write_text("from loose.beside import X\n")
    (tmp_path / "loose" / "beside.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SemlinkError, match=r"folder loose has no __init__\.py.*add one, it may be empty"):
        code.modules_sha256("loose.scheme")
    (tmp_path / "loose" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "loose")
    forget()
    assert code.imported("loose.scheme") == {"loose.scheme", "loose.beside"}


def test_code_without_a_source_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "compiled.so").write_bytes(b"")
    typed, binary = ModuleType("typed_in"), ModuleType("compiled")
    binary.__file__ = str(tmp_path / "compiled.so")
    for module in (typed, binary):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("typed_in", "compiled", "nowhere_at_all", "sys"):
        with pytest.raises(SemlinkError, match=f"module {name} has no source file.*put it in a .py file") as caught:
            code.modules_sha256(name)
        assert "\n" not in str(caught.value)


# Semlink itself


@pytest.mark.parametrize(
    "module",
    ["bench.trainer", "schemes.deepjscc", "phy.power", "nn.blocks", "training.loop", "data.splits", "_registry"],
)
def test_what_a_training_uses_changes_its_hash(append, module):
    first = of_training()
    append(module, "X = 1")
    assert of_training() != first


OTHERS = [
    *sorted(name.removeprefix("semlink.") for name in code.NEUTRAL),
    "bench.evaluator",
    "bench.judge",
    "bench.attacker",
    "bench.runner",
    "bench.results",
    "attacks.inversion",
    "metrics.statistics",
    "report.bench",
    "cli.bench",
]


def test_what_cannot_change_a_training_leaves_its_hash(append):
    first = of_training()
    for module in OTHERS:
        append(module, "X = 1")
    assert of_training() == first
    assert not {f"semlink.{module}" for module in OTHERS} & code.imported(*trainer.modules("deepjscc", "awgn"))


def test_modules_that_do_not_count_exist():
    assert all((SOURCE.parent / f"{name.replace('.', '/')}.py").is_file() for name in code.NEUTRAL)


def test_each_step_depends_on_the_module_that_does_it():
    steps = {
        "trainer": trainer.modules("deepjscc", "awgn"),
        "evaluator": evaluator.modules("deepjscc"),
        "attacker": attacker.modules("inversion", "deepjscc"),
        "judge": judge.modules("inversion", "deepjscc"),
    }
    found = {step: code.imported(*modules) for step, modules in steps.items()}
    assert all(f"semlink.bench.{step}" in held for step, held in found.items())
    assert all({"semlink.schemes.deepjscc", "semlink.phy.channel"} <= held for held in found.values())
    assert all("semlink.schemes.deepjscc_encryption" not in held for held in found.values())
    assert "semlink.bench.evaluator" not in found["trainer"]
    assert "semlink.attacks.inversion" not in found["evaluator"]
    assert "semlink.attacks.inversion" in found["attacker"] & found["judge"]
    assert len({code.modules_sha256(*modules) for modules in steps.values()}) == len(steps)


def test_a_new_scheme_leaves_the_hashes_of_the_others(append, copy):
    first = [of_training(scheme) for scheme in ("deepjscc", "deepjscc-encryption")]
    assert first[0] != first[1]
    append("schemes.novel", (copy / "schemes" / "deepjscc.py").read_text().replace("DeepJSCC", "Novel"))
    append("schemes", "\nfrom semlink.schemes.novel import Novel\n")
    assert [of_training(scheme) for scheme in ("deepjscc", "deepjscc-encryption")] == first
    append("schemes.deepjscc_encryption", "X = 1")
    assert of_training("deepjscc") == first[0]
    assert of_training("deepjscc-encryption") != first[1]
