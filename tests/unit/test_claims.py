# SPDX-License-Identifier: Apache-2.0
"""What the papers claim: every claim can be read, names what there is, and is judged by its numbers alone."""

import statistics
from typing import Literal

import pytest

from semlink._errors import SemlinkError
from semlink.bench import measures, recipes
from semlink.bench.record import Measurement
from semlink.bench.results import BenchRecord, Difference, LinkCost
from semlink.bench.rows import Row
from semlink.report import claims

CLAIM = '[[claims]]\nid = "A1"\nwhere = "here"\nsays = "a beats b."\n'
TEST = '[[claims.tests]]\nrecord = "start"\nmetrics = ["accuracy"]\nsnr_db = [4, 8]\n'
ABOVE = TEST + 'higher = ["a"]\nlower = ["b"]\n'


def measured(mean, half=1.0, n=100):
    return Measurement(mean=mean, low=mean - half, high=mean + half, n=n, unit="%", method="m", level=0.95)


def held(means, *, differences=(), variant="default", attack=None, converged=None):
    """A record of means by link and SNR; a list of means is of so many seeds."""
    rows = []
    for (link, snr_db), mean in means.items():
        seeds = {i: measured(each) for i, each in enumerate(mean if isinstance(mean, list) else [mean])}
        over = measured(statistics.mean(mean), n=len(mean)) if isinstance(mean, list) else None
        rows.append(
            Row(
                link=link,
                attack=attack,
                metric="accuracy",
                snr_db=snr_db,
                seeds=seeds,
                over_seeds=over,
                converged=converged,
            )
        )
    return BenchRecord.model_construct(name="start", variant=variant, rows=rows, differences=list(differences))


def verdict(text, *records):
    (claim,) = claims.read(text, "x.toml")
    return claims.judge(claim, records)


def test_a_claim_holds_where_every_comparison_bears_it_out():
    found = verdict(CLAIM + ABOVE, held({("a", 4): 50, ("b", 4): 48, ("a", 8): 60, ("b", 8): 50}))
    assert found.verdict == "held"
    assert [each.said for each in found.findings] == [f"start, accuracy at {snr} dB: a above b" for snr in (4, 8)]
    assert found.findings[0].shown == "+2 [0.586, 3.41] %"  # half-widths of 1 each: sqrt(2)
    assert found.findings[0].over == "100 images"


@pytest.mark.parametrize("other", [49.0, 50.0, 60.0])
def test_one_that_does_not_is_enough(other):
    found = verdict(CLAIM + ABOVE, held({("a", 4): 50, ("b", 4): other, ("a", 8): 60, ("b", 8): 50}))
    assert (found.verdict, [each.borne_out for each in found.findings]) == ("not held", [False, True])


def test_a_margin_counts():
    record = held({("a", snr): 50.0 for snr in (4, 8)} | {("b", snr): 46.0 for snr in (4, 8)})
    assert verdict(CLAIM + ABOVE + "margin = 2.5\n", record).verdict == "held"
    assert verdict(CLAIM + ABOVE + "margin = 3\n", record).verdict == "not held"


def test_the_paired_difference_is_taken_where_there_is_one():
    close = {("a", 4): 50, ("b", 4): 49.5, ("a", 8): 60, ("b", 8): 50}
    assert verdict(CLAIM + ABOVE, held(close)).verdict == "not held"
    for first, second, sign in (("b", "a", 1), ("a", "b", -1)):
        found = verdict(CLAIM + ABOVE, held(close, differences=[paired(first, second, measured(sign * 0.5, 0.2))]))
        assert (found.verdict, found.findings[0].shown) == ("held", "+0.5 [0.3, 0.7] %")


def paired(first, second, difference, over: Literal["seeds", "images"] = "images"):
    """The paired difference of two links at 4 dB."""
    return Difference(
        metric="accuracy",
        snr_db=4,
        first=first,
        second=second,
        over=over,
        seeds=[0],
        p_value=0.01,
        p_holm=0.02,
        difference=difference,
    )


@pytest.mark.parametrize("order", [1, -1])
def test_an_interval_over_trainings_prevails_over_one_over_images(order):
    wide, narrow = paired("b", "a", measured(0.5, 0.6, n=3), over="seeds"), paired("b", "a", measured(0.5, 0.2))
    trained = {("a", 4): [50.0, 50.2, 50.4], ("b", 4): [49.5, 49.7, 49.9], ("a", 8): 60, ("b", 8): 50}
    found = verdict(CLAIM + ABOVE, held(trained, differences=[wide, narrow][::order]))
    assert (found.findings[0].over, found.findings[0].borne_out) == ("3 seeds", False)
    found = verdict(CLAIM + ABOVE, held(trained, differences=[narrow]))  # the trainings are known without the pairing
    assert (found.findings[0].over, found.findings[0].borne_out) == ("3 seeds", False)
    page = claims.markdown([found])
    assert "| 1 of 2 | 3 seeds, 100 images |" in page
    assert "a above b: +0.5 [-0.914, 1.91] %, over 3 seeds" in page


def test_every_metric_is_compared():
    assert len(verdict(CLAIM + ABOVE.replace('"accuracy"', '"accuracy", "auc"'), held({})).missing) == 4


@pytest.mark.parametrize(("within", "expected"), [(3.5, "held"), (3.4, "not held")])
def test_alike_is_an_interval_within_bounds(within, expected):
    text = CLAIM + TEST + f'links = ["a", "b"]\nwithin = {within}\n'
    assert verdict(text, held({("a", 4): 50, ("b", 4): 48, ("a", 8): 50, ("b", 8): 50})).verdict == expected


def test_a_bound_and_a_spread():
    text = CLAIM + TEST + 'links = ["a"]\nleast = 49\n'
    assert verdict(text, held({("a", 4): 50, ("a", 8): 50.5})).verdict == "held"
    assert verdict(text, held({("a", 4): 50, ("a", 8): 49.5})).verdict == "not held"
    text = CLAIM + TEST.replace("[4, 8]", "[4]") + 'links = ["a"]\nspread = 0.5\n'
    assert verdict(text, held({("a", 4): [50.0, 50.4, 50.8]})).verdict == "held"
    assert verdict(text, held({("a", 4): [50.0, 51.0]})).verdict == "not held"
    found = verdict(text, held({("a", 4): 50}))
    assert (found.verdict, found.missing) == ("not testable", ["start, accuracy at 4 dB: a was trained once"])


def test_the_strongest_attack_counts():
    first = held({("a", snr): 50 for snr in (4, 8)} | {("b", snr): 40 for snr in (4, 8)}, attack="weak")
    first.rows.extend(held({("b", snr): 55 for snr in (4, 8)}, attack="strong").rows)
    assert verdict(CLAIM + ABOVE + 'attacks = ["weak"]\n', first).verdict == "held"
    found = verdict(CLAIM + ABOVE + 'attacks = ["weak", "strong"]\n', first)
    assert found.verdict == "not held"
    assert verdict(CLAIM + ABOVE, first).verdict == "not testable"  # of the links themselves nothing was measured


def test_what_is_missing_makes_it_not_testable_unless_something_speaks_against_it():
    found = verdict(CLAIM + ABOVE, held({("a", 4): 50, ("b", 4): 40, ("a", 8): 60}))
    assert (found.verdict, found.missing) == ("not testable", ["start, accuracy at 8 dB: b was not measured"])
    assert verdict(CLAIM + ABOVE, held({("a", 4): 50, ("b", 4): 60, ("a", 8): 60})).verdict == "not held"
    assert verdict(CLAIM + ABOVE).missing == ["no record of start"]
    assert verdict(CLAIM + 'untestable = "nobody knows"\n').missing == ["nobody knows"]


def test_the_recipe_without_a_variant_is_preferred():
    worse, better = (
        held({("a", snr): mean for snr in (4, 8)} | {("b", snr): 50 for snr in (4, 8)}, variant=variant)
        for mean, variant in ((40, "x"), (60, "default"))
    )
    assert verdict(CLAIM + ABOVE, worse, better).verdict == "held"
    assert "start (x), accuracy" in verdict(CLAIM + ABOVE, worse).findings[0].said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = ", "x.toml is not a list of claims"),
        ("claims = 3", "x.toml is not a list of claims"),
        (CLAIM, "x.toml, claim A1: : a claim has tests, or says in 'untestable' why there is none"),
        (CLAIM + ABOVE + CLAIM + ABOVE, "x.toml has two claims A1; rename one"),
        (CLAIM.replace("A1", "C1") + ABOVE, "x.toml, claim C1: id: String should match"),
        (CLAIM + ABOVE.replace("start", "strat"), "unknown bench of claim A1 'strat'; did you mean 'start'?"),
        (CLAIM + ABOVE.replace("lower", "lwer"), "x.toml, claim A1: tests.0.lwer: Extra inputs are not permitted"),
        (CLAIM + ABOVE + "within = 1\n", "a test names 'higher' and 'lower', two 'links' and 'within', or"),
        (CLAIM + TEST + 'links = ["a"]\nwithin = 1\n', "a test names 'higher' and 'lower', two 'links' and 'within'"),
        (CLAIM + TEST + "least = 1\n", "a test names 'higher' and 'lower', two 'links' and 'within', or"),
        (CLAIM + ABOVE.replace("[4, 8]", "[]"), "a test names 'metrics' and 'snr_db', or compares links by"),
    ],
)
def test_mistakes_are_named(text, words):
    with pytest.raises(SemlinkError) as refused:
        claims.read(text, "x.toml")
    assert words in str(refused.value)


def test_every_claim_names_what_its_bench_measures():
    found = claims.claims()
    assert {each.id[0] for each in found} == {"A", "B"}
    for claim in found:
        for test in claim.tests:
            bench = recipes.load(test.record)
            assert {*test.higher, *test.lower, *test.links} <= bench.links.keys(), claim.id
            assert bool(test.cost) == bench.costs, claim.id
            if test.cost:
                continue
            assert {*test.attacks} <= bench.attacks.keys(), claim.id
            assert {*test.snr_db} <= {*bench.evaluation.snr_db}, claim.id
            assert all(measures.wanted(metric, bench.evaluation.metrics) for metric in test.metrics), claim.id


@pytest.mark.parametrize(("converged", "expected"), [(True, "held"), (None, "held"), (False, "not held")])
def test_an_attack_that_has_not_converged_does_not_show_that_a_link_leaks_less(converged, expected):
    found = held({("a", snr): 50 for snr in (4, 8)}, attack="x", converged=False)
    found.rows.extend(held({("b", snr): 40 for snr in (4, 8)}, attack="x", converged=converged).rows)
    shown = verdict(CLAIM + ABOVE + 'attacks = ["x"]\n', found)
    assert shown.verdict == expected
    assert ("but the attack on b has not converged" in shown.findings[0].shown) == (expected == "not held")


COST = '[[claims.tests]]\nrecord = "start"\ncost = "{}"\n'


def costly(**costs):
    """A record of links that cost so many parameters, multiply-adds and seconds; a pair is with an adversary's."""
    found = []
    for link, of in costs.items():
        own, hers = of if isinstance(of, tuple) else (of, 0)
        found.append(
            LinkCost.model_construct(
                link=link,
                parameters={"total": own, "encoder": own, "adversary": hers},
                multiply_adds={"transmitter": own / 2, "receiver": own / 2, "adversary": hers},
                epoch_seconds=own,
                transmit_seconds=own / 4,
                receive_seconds=own / 4,
            )
        )
    return BenchRecord.model_construct(name="start", variant="default", rows=[], differences=[], costs=found)


@pytest.mark.parametrize("cost", ["parameters", "multiply_adds", "epoch_seconds", "image_seconds"])
@pytest.mark.parametrize(("other", "is_held"), [(109, False), (111, True)])
def test_costs_are_compared_by_their_ratio(cost, other, is_held):
    text = CLAIM + COST.format(cost) + 'higher = ["a"]\nlower = ["b"]\nmargin = 0.1\n'
    found = verdict(text, costly(a=other, b=100))
    assert found.verdict == ("held" if is_held else "not held")
    assert found.findings[0].said == f"start, {cost.replace('_', ' ')}: a above 1.1 times b"
    text = CLAIM + COST.format(cost) + 'links = ["a", "b"]\nwithin = 0.1\n'
    assert verdict(text, costly(a=other, b=100)).verdict == ("not held" if is_held else "held")
    assert verdict(text, costly(a=200 - other, b=100)).verdict == ("not held" if is_held else "held")


def test_an_adversary_counts_in_what_training_takes_and_in_no_time():
    for cost, is_held in {"parameters": True, "multiply_adds": True, "image_seconds": False}.items():
        text = CLAIM + COST.format(cost) + 'higher = ["a"]\nlower = ["b"]\n'
        assert verdict(text, costly(a=(100, 50), b=120)).verdict == ("held" if is_held else "not held")


def test_a_cost_that_was_not_measured_is_missing():
    text = CLAIM + COST.format("image_seconds") + 'links = ["a", "c"]\nwithin = 0.1\n'
    found = verdict(text, costly(a=100))
    assert (found.verdict, found.missing) == ("not testable", ["start, image seconds: c was not measured"])
    trained = costly(a=100, c=100)
    trained.costs[1] = trained.costs[1].model_copy(update={"transmit_seconds": None})
    assert verdict(text, trained).missing == ["start, image seconds: c was not measured"]
    text = CLAIM + COST.format("epoch_seconds") + 'links = ["a", "c"]\nwithin = 0.1\n'
    assert verdict(text, costly(a=100, c=0)).missing == ["start, epoch seconds: c was not measured"]


@pytest.mark.parametrize(
    "test",
    [
        COST.format("parameters") + 'metrics = ["accuracy"]\nsnr_db = [4]\nhigher = ["a"]\nlower = ["b"]\n',
        COST.format("parameters") + 'links = ["a"]\nleast = 3\n',
        COST.format("parameters") + 'attacks = ["x"]\nhigher = ["a"]\nlower = ["b"]\n',
        '[[claims.tests]]\nrecord = "start"\nmetrics = ["accuracy"]\nhigher = ["a"]\nlower = ["b"]\n',
        COST.format("watts") + 'links = ["a", "b"]\nwithin = 0.1\n',
    ],
)
def test_a_test_is_of_a_metric_or_of_a_cost(test):
    with pytest.raises(SemlinkError, match=r"x\.toml, claim A1: tests\.0"):
        claims.read(CLAIM + test, "x.toml")
