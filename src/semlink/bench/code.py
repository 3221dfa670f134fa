# SPDX-License-Identifier: Apache-2.0
"""Which code a step of a bench depends on: a hash of the modules that it imports, and that they import in turn.

Names are followed to where they are defined: ``from semlink.schemes import Key`` counts ``schemes/key.py`` and not the
other schemes that the package's ``__init__`` imports, so a new scheme leaves every trained link as it is. Layout,
comments and docstrings do not count. Nor do modules that cannot change a result; NEUTRAL says why.

Of a module outside Semlink, as of a scheme of one's own, its own package is followed as well; other libraries are
known by their versions.
"""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from semlink._errors import SemlinkError

#: Words of errors, how files are written, how plugins are found, whose content counts where it is used, what records
#: look like (their format counts by itself), what a link is said to cost, what is drawn on screen, the zoo, whose
#: weights are known by their SHA-256, presets, whose values count instead, and this module: it names results and makes
#: none.
NEUTRAL = frozenset(
    f"semlink.{name}"
    for name in (
        "_errors",
        "_files",
        "_plugins",
        "_version",
        "bench.code",
        "bench.cost",
        "bench.presets",
        "bench.record",
        "bench.zoo",
        "training.processes",
        "training.progress",
    )
)
_PACKAGE = "semlink"


def modules_sha256(*modules: str) -> str:
    """Return the hash of ``modules`` and of all that they import from Semlink."""
    digest = hashlib.sha256()
    for name in sorted(imported(*modules)):
        digest.update(f"{name}\0{_essence(name)}\0".encode())
    return digest.hexdigest()


def imported(*modules: str) -> set[str]:
    """Return ``modules`` and what they import from Semlink, directly or not; NEUTRAL ones only if they are named."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and (name in modules or name not in NEUTRAL):
            found.add(name)
            waiting += _imports(name)
    return found


@cache
def _path(module: str) -> Path:
    if module in sys.modules:  # also __main__ and modules that were loaded from a path
        origin = getattr(sys.modules[module], "__file__", None)
        is_folder = hasattr(sys.modules[module], "__path__")
    else:
        spec = importlib.util.find_spec(module)
        origin, is_folder = (spec.origin, spec.submodule_search_locations is not None) if spec else (None, False)
    if is_folder and not origin:
        raise SemlinkError(
            f"folder {module} has no __init__.py, so results of its code could not be told apart; "
            "add one, it may be empty"
        )
    if not origin or not origin.endswith(".py"):
        raise SemlinkError(
            f"module {module} has no source file, so results of its code could not be told apart; put it in a .py file"
        )
    return Path(origin)


def _is_package(module: str) -> bool:
    return _path(module).name == "__init__.py"


def _package(module: str) -> str:
    """Return the package that ``module`` belongs to, or is; "" if it stands alone."""
    known = getattr(sys.modules.get(module), "__package__", None)  # also of what was started by python -m
    return known or (module if _is_package(module) else module.rpartition(".")[0])


def _is_module(package: str, name: str) -> bool:
    folder = _path(package).parent
    return (folder / name / "__init__.py").is_file() or (folder / f"{name}.py").is_file()


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_bytes())


@cache
def _imports(module: str) -> frozenset[str]:
    """Return the modules whose content ``module`` uses, of Semlink and of its own package."""
    nodes = list(ast.walk(_tree(module)))
    only_for_types = {
        id(node)
        for branch in nodes
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for statement in branch.body
        for node in ast.walk(statement)
    }
    roots, dotted, found = {_PACKAGE, _package(module).split(".")[0]}, _dotted(nodes), set[str]()
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in only_for_types:
            for called, target in _bound(node, module):
                if target.split(".")[0] in roots:
                    found |= _homes(target, [name.split(".")[1:] for name in dotted if name.split(".")[0] == called])
    return frozenset(found)


def _dotted(nodes: list[ast.AST]) -> set[str]:
    """Return the names that are used, with what is taken from them: ``a.b.c``, not the ``a.b`` in it."""
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    chains = [node for node in nodes if isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner]
    return {ast.unparse(node) for node in chains}


def _bound(node: ast.Import | ast.ImportFrom, module: str) -> Iterator[tuple[str, str]]:
    """Yield what an import statement of ``module`` calls a thing, and its full name."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            root = alias.name.split(".")[0]
            yield (alias.asname, alias.name) if alias.asname else (root, root)
        return
    source = importlib.util.resolve_name("." * node.level + (node.module or ""), _package(module))
    for alias in node.names:
        yield alias.asname or alias.name, f"{source}.{alias.name}"


def _homes(target: str, taken: list[list[str]]) -> set[str]:
    """Return the modules that define ``target``, or, if it is a package, each of what is ``taken`` from it."""
    module, *rest = target.split(".")
    while rest and _is_package(module) and _is_module(module, rest[0]):
        module = f"{module}.{rest.pop(0)}"
    if not _is_package(module):
        return {module}
    if not rest:
        return set().union(*(_homes(f"{target}.{'.'.join(names)}", []) for names in taken if names))
    for node in ast.walk(_tree(module)):  # re-exported? one that loads its names late tells under TYPE_CHECKING
        if isinstance(node, ast.ImportFrom):
            for called, origin in _bound(node, module):
                if called == rest[0] and origin.split(".")[0] == module.split(".")[0]:
                    return _homes(origin, [rest[1:]])
    return {module}


@cache
def _essence(module: str) -> str:
    """Return the source without layout, comments and docstrings."""
    tree = _tree(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            del node.body[: ast.get_docstring(node, clean=False) is not None]
    return _shown(tree)


def _shown(node: Any) -> str:
    """Return a syntax tree as text; every version of Python says the same, for fields that are empty are left out."""
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={_shown(value)}" for name, value in ast.iter_fields(node) if value is not None and value != []
        ]
        return f"{type(node).__name__}({', '.join(fields)})"
    return f"[{', '.join(map(_shown, node))}]" if isinstance(node, list) else repr(node)
