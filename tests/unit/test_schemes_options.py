# SPDX-License-Identifier: Apache-2.0
import inspect

import pytest
from scheme_keys import EVERY

from semlink import schemes
from semlink._errors import SemlinkError
from semlink.cli import main
from semlink.schemes import DeepJSCC
from semlink.schemes.options import Option, check_options, options, takes_any


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


class Typed(DeepJSCC):
    """A scheme.

    Args:
        scale: of something.
        length: another number.
        other: of a type that nobody checks.
        bare: of none.
    """

    def __init__(self, design, scale: "float | None" = None, length: int = 1, other: list[int] = (), bare=2):
        super().__init__(design)


@pytest.fixture
def _typed(monkeypatch):
    monkeypatch.setitem(schemes.schemes._entries, "typed", Typed)


@pytest.mark.parametrize(
    ("scheme", "given", "said"),
    [
        ("semi-conventional", {"bank": 2.5}, "bank is 2.5: scheme 'semi-conventional' takes a whole number there (cha"),
        ("semi-conventional", {"streams": True}, "streams is True: scheme 'semi-conventional' takes a whole number"),
        ("adaptive-precoding", {"span": 1.5}, "span is 1.5: scheme 'adaptive-precoding' takes a whole number there"),
        ("csi-free", {"cross_gain_db": "abc"}, "cross_gain_db is 'abc': scheme 'csi-free' takes a number there (power"),
        ("csi-free", {"snr_low_db": False}, "snr_low_db is False: scheme 'csi-free' takes a number there"),
        ("csi-free", {"fairness": False}, "follow their losses: epoch, step, or off)"),
        ("csi-free", {"networks": 3}, "networks is 3: scheme 'csi-free' takes a name there"),
        ("ibal", {"adaptive": 1}, "adaptive is 1: scheme 'ibal' takes true or false there"),
        ("typed", {"scale": "wide"}, "scale is 'wide': scheme 'typed' takes a number there (of something)"),
        ("typed", {"lenght": 1}, "unknown option of typed 'lenght'; did you mean 'length'"),
    ],
)
@pytest.mark.usefixtures("_typed")
def test_an_option_of_another_type_is_refused_by_name(scheme, given, said):
    with pytest.raises(SemlinkError) as refused:
        check_options(scheme, {"length": 3} | given if scheme == "typed" else given)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("_typed")
def test_a_whole_number_is_a_number_and_other_types_are_left_to_the_scheme():
    check_options("typed", {"scale": 2, "length": 2, "other": "x", "bare": "x"})
    check_options("layered", {"unknown": 3, "fresh": False})
    for key in EVERY:
        defaults = {each.name: each.default for each in options(schemes.schemes[key])}
        check_options(key, {name: value for name, value in defaults.items() if value is not None})


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
