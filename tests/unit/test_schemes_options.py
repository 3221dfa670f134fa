# SPDX-License-Identifier: Apache-2.0
import inspect

import pytest
from scheme_keys import EVERY

from semlink import schemes
from semlink.cli import main
from semlink.schemes import DeepJSCC
from semlink.schemes.options import Option, options, takes_any


class Base(DeepJSCC):
    """A scheme.

    Args:
        design: dimensions.
        weight: how much it counts,
            on two lines. Default 0.5: a paper.
        low, high: ends of a range.

    Raises:
        SemlinkError: never.
    """

    def __init__(self, design, weight=0.5, low=1, high=2):
        super().__init__(design)


class Heir(Base):
    """Another.

    Args:
        weight, low: as Base.
        high: its own end.
        **others: of the base.
    """

    def __init__(self, design, weight=0.5, low=1, high=3, bare="x", **others):
        super().__init__(design, weight, low, high)


def test_an_option_is_explained_by_its_class_or_the_one_it_is_as():
    assert options(Base) == [
        Option("weight", 0.5, "how much it counts, on two lines. Default 0.5: a paper."),
        Option("low", 1, "ends of a range."),
        Option("high", 2, "ends of a range."),
    ]
    assert options(Heir) == [
        Option("weight", 0.5, "how much it counts, on two lines. Default 0.5: a paper."),
        Option("low", 1, "ends of a range."),
        Option("high", 3, "its own end."),
        Option("bare", "x", ""),
    ]
    assert (takes_any(Base), takes_any(Heir), takes_any(Wrapper)) == (False, False, True)
    assert [each.name for each in options(Wrapper)] == ["first"]


class Wrapper(schemes.Scheme):
    """One that hands what it does not know to a scheme inside."""

    def __init__(self, design, first=1, **inside):
        super().__init__(design)


class Below(Base):
    """A scheme that sets what its base must be given.

    Args:
        own: of this one alone.
    """

    def __init__(self, design, own=4, **options):
        super().__init__(design, 0.1, **options)


def test_the_options_of_a_base_class_that_are_passed_on_are_options():
    class Lowest(Below):
        def __init__(self, design, must, may=5, **options):
            super().__init__(design, **options)

    class Last(Lowest):
        def __init__(self, design, width=6, **options):
            super().__init__(design, must=1, **options)

    assert [each.name for each in options(Below)] == ["own", "weight", "low", "high"]
    assert [each.name for each in options(Last)] == ["width", "may", "own", "weight", "low", "high"]
    assert next(each for each in options(Last) if each.name == "low").meaning == "ends of a range."
    assert not takes_any(Last)


@pytest.mark.parametrize("key", EVERY)
def test_every_option_of_every_scheme_is_explained_with_the_default_it_has(key):
    kind = schemes.schemes[key]
    taken = [p for p in list(inspect.signature(kind).parameters.values())[1:] if p.kind is not p.VAR_KEYWORD]
    found = options(kind)
    assert [(each.name, each.default) for each in found][: len(taken)] == [(p.name, p.default) for p in taken]
    for each in found:
        assert len(each.meaning) > 10, f"{key}: {each.name} is not explained"


def test_the_help_of_a_scheme_lists_its_options(capsys):
    assert main(["train", "deepjscc-dp", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "DeepJSCC with differential privacy" in shown
    assert "  epsilon=0.9" in shown
    assert "  nominal_sensitivity" in shown
    assert max(map(len, shown.splitlines())) <= 120
    assert main(["train", "deepjscc", "--help"]) == 0
    assert "no options of its own" in capsys.readouterr().out
    assert main(["train", "deepjscc-pd", "--help"]) == 2
    assert "did you mean 'deepjscc-dp'" in capsys.readouterr().err
