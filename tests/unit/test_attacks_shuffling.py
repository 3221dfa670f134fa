# SPDX-License-Identifier: Apache-2.0
"""Keys of shuffled features: recovered from few pairs or some hundred ciphertexts, and not where they must not be."""

import itertools
import math

import pytest
import torch

import semlink
from semlink import data
from semlink._errors import SemlinkError
from semlink.attacks import Tap, Threat
from semlink.attacks.shuffling import FoundKey, ciphertext_only, fraction_correct, known_plaintext, recovery_curve
from semlink.schemes.key import permutations

D = 128
NOISE = 10 ** (-12 / 10) / 2  # of a feature at 12 dB, where two features share a symbol of unit energy


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def population(seed, alike=False):
    """Return a sampler of features (n, 128) = tanh(W u + b), u of 32 dimensions, all normal; the target's generator.

    Each message is scaled to half a unit of power a feature, as a link scales its code. ``alike`` is for marginals that
    are equal by design: no b, rows of W of one norm, and one scale for all messages.
    """
    weights = torch.randn(D, 32, generator=seeded(seed)) / math.sqrt(32)
    bias = 0.5 * torch.randn(D, generator=seeded(1000 + seed))
    if alike:
        weights, bias = weights / weights.norm(dim=1, keepdim=True), torch.zeros(D)

    def sample(count, generator):
        values = torch.tanh(torch.randn(count, 32, generator=generator) @ weights.T + bias)
        power = 0.394294 if alike else values.square().mean(1, keepdim=True)  # E tanh(standard normal)^2
        return values * (0.5 / power) ** 0.5

    return sample


def encrypt(plain, generator, noise=NOISE, flips=False):
    """Return what is heard under a new key, its permutation and its signs."""
    d = plain.shape[1]
    order, signs = torch.randperm(d, generator=generator), torch.ones(d)
    if flips:
        signs = 1.0 - 2 * torch.randint(2, (d,), generator=generator)
    return plain[:, order] * signs + math.sqrt(noise) * torch.randn(plain.shape, generator=generator), order, signs


def from_ciphertexts(sample, seed, count, own=1000, flips=False, **options):
    """Attack ``count`` ciphertexts with ``own`` plain features of other images; return the keys found and true."""
    generator = seeded(seed)
    heard, order, signs = encrypt(sample(count, generator), generator, flips=flips)
    return ciphertext_only(sample(own, generator), heard, NOISE, flips, **options), order, signs


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_five_known_pairs_give_nine_tenths_of_the_key_and_ten_give_it_all(seed):
    features = population(seed)(4000, seeded(10 + seed))
    one, three, five, ten = recovery_curve(features, NOISE, [1, 3, 5, 10], generator=seeded(seed))
    assert one.mean < 0.1 < 0.4 < three.mean < 0.7
    assert five.mean >= 0.9
    assert ten.mean >= 0.99
    assert all(each.n == 100 and each.low <= each.mean <= each.high for each in (one, three, five, ten))
    assert ten.method == "student-t over keys"


@pytest.mark.parametrize(("seed", "keys"), [(0, 100), (1, 15), (2, 15)])
def test_five_hundred_ciphertexts_give_every_position(seed, keys):
    sample = population(seed)
    for key in range(keys):
        found, order, _ = from_ciphertexts(sample, key, 500)
        assert torch.equal(found.permutation, order)
        assert found.marginals_differ is True
        assert found.signs is None
        assert 0.7 < float(found.misfit) < 1.3  # of all squared differences of covariances, over their variance


def test_marginals_alone_give_a_part_of_it():
    shares = []
    for key in range(5):
        found, order, _ = from_ciphertexts(population(0), key, 500, covariances=False)
        shares.append(float(fraction_correct(found, order)))
    assert 0.15 < sum(shares) / 5 < 0.6


def test_where_marginals_are_alike_they_are_at_chance_and_covariances_give_the_key():
    sample, keys, share = population(0, alike=True), 20, 0.0
    for key in range(keys):
        alone, order, _ = from_ciphertexts(sample, key, 300, covariances=False)
        assert alone.marginals_differ is False
        share += float(fraction_correct(alone, order)) / keys
        if key < 3:
            found, order, _ = from_ciphertexts(sample, key, 500)
            assert torch.equal(found.permutation, order)
            assert found.marginals_differ is False
    assert share < 1 / D + 5 / D / math.sqrt(keys)  # a random permutation has 1 +- 1 positions right


def test_covariances_alone_need_features_that_are_correlated():
    generator = seeded(0)
    values = torch.randn(2000, D, generator=generator) * math.sqrt(0.5)
    heard, order, _ = encrypt(values[:1000], generator)
    found = ciphertext_only(values[1000:], heard, NOISE)
    assert float(fraction_correct(found, order)) < 6 / D
    assert float(found.misfit) < 1.3, "any order fits them"


@pytest.mark.parametrize("flips", [False, True])
def test_without_noise_one_pair_is_enough(flips):
    plain = population(0)(1, seeded(3))
    heard, order, signs = encrypt(plain, seeded(4), noise=0.0, flips=flips)
    found = known_plaintext(plain, heard, flips)
    assert torch.equal(found.permutation, order)
    assert found.misfit < 1e-12
    assert (found.signs is None) is not flips
    assert flips is False or torch.equal(found.signs, signs)
    assert torch.equal(found.undo(heard), plain)


@pytest.mark.parametrize("flips", [False, True])
def test_flipped_signs_are_found_with_the_positions(flips):
    """An attacker who looks for no flips where there are some is lost."""
    sample, generator = population(1), seeded(5)
    plain = sample(30, generator)
    heard, order, signs = encrypt(plain, generator, flips=True)
    found = known_plaintext(plain, heard, sign_flips=flips)
    if flips:
        assert float(fraction_correct(found, order, signs)) == 1
        assert float(found.misfit) == pytest.approx(NOISE, rel=5 * math.sqrt(2 / plain.numel()))
        assert torch.equal(found.undo(plain[:, order] * signs), plain)
    else:
        assert float(fraction_correct(found, order)) < 0.75
        assert float(found.misfit) > 2 * NOISE


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flipped_signs_are_found_from_ciphertexts(seed):
    found, order, signs = from_ciphertexts(population(seed), seed, 500, flips=True)
    assert float(fraction_correct(found, order, signs)) == 1
    alone, *_ = from_ciphertexts(population(seed), seed, 500, flips=True, covariances=False)
    right = alone.permutation == order
    assert (alone.signs == signs)[right].double().mean() > 0.8


def test_more_pairs_and_less_noise_are_never_worse():
    features, pairs = population(2)(2000, seeded(1)), [1, 2, 3, 5, 8, 15]
    rows = []
    for snr_db in (0, 6, 12, 20):
        curve = recovery_curve(features, 10 ** (-snr_db / 10) / 2, pairs, generator=seeded(0), keys=40)
        rows.append([each.mean for each in curve])
    table = torch.tensor(rows)
    assert (table.diff(dim=1) >= 0).all()
    assert (table.diff(dim=0) >= 0).all()
    assert table[0, 0] < 0.05
    assert table[-1, -1] > 0.999


def test_flips_cost_pairs():
    features = population(0)(2000, seeded(1))
    plain, flipped = (
        recovery_curve(features, NOISE, [3], generator=seeded(0), sign_flips=flips)[0] for flips in (False, True)
    )
    assert 0.2 < flipped.high < plain.low


@pytest.mark.parametrize("flips", [False, True])
def test_pairs_that_do_not_belong_together_are_at_chance(flips):
    """A permutation unrelated to the truth has one position right on average, with variance one; signs, half of it."""
    keys, d = 2000, 12
    values = torch.randn(2, keys, 6, d, generator=seeded(0))
    truth = torch.rand(keys, d, generator=seeded(1)).argsort(1)
    found = known_plaintext(*values, sign_flips=flips)
    assert found.permutation.shape == (keys, d)
    assert found.misfit.shape == (keys,)
    error = 1 / d / math.sqrt(keys)
    assert abs(float(fraction_correct(found, truth).mean()) - 1 / d) < 5 * error
    if flips:
        signs = 1 - 2 * torch.randint(2, (keys, d), generator=seeded(2))
        assert abs(float(fraction_correct(found, truth, signs).mean()) - 0.5 / d) < 5 * error


@pytest.mark.parametrize("attack", [lambda x, y: known_plaintext(x, y), lambda x, y: ciphertext_only(x, y, NOISE)])
def test_names_of_positions_do_not_matter(attack):
    """Rename plain positions by p and heard ones by q: position j carries p^-1 of what position q[j] carried."""
    generator = seeded(6)
    plain = population(0)(60, generator)
    heard, *_ = encrypt(plain, generator, noise=0.1)
    p, q = (torch.randperm(D, generator=generator) for _ in range(2))
    first, second = attack(plain, heard), attack(plain[:, p], heard[:, q])
    assert torch.equal(second.permutation, p.argsort()[first.permutation[q]])
    assert float(second.misfit) == pytest.approx(float(first.misfit))


def test_many_keys_at_once_are_as_one_by_one():
    values = torch.randn(2, 3, 4, 2, 9, generator=seeded(0))
    found = known_plaintext(*values, sign_flips=True)
    undone = found.undo(values[1])
    for i, j in itertools.product(range(3), range(4)):
        single = known_plaintext(values[0, i, j], values[1, i, j], sign_flips=True)
        assert torch.equal(found.permutation[i, j], single.permutation)
        assert torch.equal(found.signs[i, j], single.signs)
        assert float(found.misfit[i, j]) == pytest.approx(float(single.misfit))
        assert torch.equal(undone[i, j], single.undo(values[1, i, j]))
    assert float(found.misfit[0, 0]) == pytest.approx(float((undone - values[0])[0, 0].square().mean()))


@pytest.mark.parametrize("flips", [False, True])
def test_the_assignment_is_the_best_of_all(flips):
    """Brute force over the permutations of five positions, and all of their signs."""
    orders = torch.tensor(list(itertools.permutations(range(5))))
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=5))) if flips else torch.ones(1, 5)
    for seed in range(20):
        plain, heard = torch.randn(2, 2, 5, generator=seeded(seed))
        moved = plain.T[orders][:, None] * signs[..., None]  # (orders, signs, positions, pairs)
        costs = (moved - heard.T).square().sum((2, 3))
        best = divmod(int(costs.argmin()), len(signs))
        found = known_plaintext(plain, heard, flips)
        assert torch.equal(found.permutation, orders[best[0]])
        assert not flips or torch.equal(found.signs, signs[best[1]])
        assert float(found.misfit) == pytest.approx(float(costs.min()) / 10, rel=1e-5)


def test_covariances_find_the_best_of_all_orders():
    """Brute force over five positions of equal variance: the order in which both covariances are nearest."""
    orders = torch.tensor(list(itertools.permutations(range(5))))
    for seed in range(10):
        generator = seeded(seed)
        mixing = torch.nn.functional.normalize(torch.randn(5, 3, generator=generator, dtype=torch.float64), dim=1)
        plain, other = (torch.randn(800, 3, generator=generator, dtype=torch.float64) @ mixing.T for _ in range(2))
        heard, *_ = encrypt(other, generator, noise=0.05)
        wanted, seen = plain.T.cov() + 0.05 * torch.eye(5), heard.T.cov()
        gaps = (wanted[orders[:, :, None], orders[:, None]] - seen).square()
        gaps[:, range(5), range(5)] = 0
        found = ciphertext_only(plain, heard, 0.05)
        assert found.marginals_differ is False
        assert torch.equal(found.permutation, orders[gaps.sum((1, 2)).argmin()])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_near_twins_of_equal_marginals_are_told_apart(seed):
    """Features in pairs that hardly differ; a matching that clings to what it believed exchanges some for good."""
    generator = seeded(seed)
    base, step = (torch.nn.functional.normalize(torch.randn(32, 16, generator=generator), dim=1) for _ in range(2))
    mixing = torch.nn.functional.normalize(torch.cat([base, base + 0.5 * step]), dim=1)
    plain, other = (torch.randn(500, 16, generator=generator) @ mixing.T for _ in range(2))
    heard, order, _ = encrypt(other, generator, noise=1 / 16)
    found = ciphertext_only(plain, heard, 1 / 16)
    assert found.marginals_differ is False
    assert torch.equal(found.permutation, order)


def test_the_distance_of_marginals_counts_the_noise():
    """Gaussians of standard deviations 1 and 2, 1 apart, are equal but for that once noise of variance 3 is added."""
    generator, n, unit = seeded(0), 20000, 4 * 2 / 20000
    plain, heard = torch.randn(n, 1, generator=generator), 1 + 2 * torch.randn(n, 1, generator=generator)
    right, deaf = (float(ciphertext_only(plain, heard, v, covariances=False).misfit) * unit for v in (3.0, 0.0))
    error = 5 * 2 * math.sqrt(unit)  # of a squared distance of 1, which is twice that of the distance
    assert right == pytest.approx(1, abs=error)
    assert deaf == pytest.approx(2, abs=error)


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_as_strong_as_the_code_costs_messages_and_not_the_key(seed):
    sample, generator = population(seed), seeded(seed)
    heard, order, _ = encrypt(sample(2000, generator), generator, noise=0.5)
    found = ciphertext_only(sample(2000, generator), heard, 0.5)
    assert torch.equal(found.permutation, order)
    assert 0.7 < float(found.misfit) < 1.3


@pytest.fixture(scope="module")
def digits():
    sets = data.load("digits")
    return sets.transceiver.batch(torch.arange(256))[0], sets.attacker.batch(torch.arange(900))[0]


def link_on(digits, **options):
    """Return an untrained link and its tap at 12 dB.

    All that it has learned are its BatchNorm statistics: without them its code is the same for all images.
    """
    link = semlink.create("deepjscc-encryption", data="digits", preset="smoke", **options)
    link.scheme.prepare(digits[0])
    link.scheme.train()
    with torch.no_grad():
        for _ in range(10):
            link.scheme.features(digits[0])
    return link, Tap(link, Threat(12.0))


@pytest.mark.parametrize("flips", [False, True])
def test_it_breaks_a_link_of_a_fixed_key_and_not_of_fresh_ones(digits, flips):
    pairs, images = 20, digits[1][:60]
    for fresh in (False, True):
        link, tap = link_on(digits, fresh=fresh, sign_flips=flips)
        sent = link.transmit(images, seeded(1))
        heard, code = tap.hear(sent, seeded(2)), link.scheme.features(images).detach()
        order = permutations(link.scheme.key, sent.header, tap.features)
        found = known_plaintext(code[:pairs], heard[:pairs], flips)
        share = float(fraction_correct(found, order[pairs:]).mean())  # of the messages that she would like to read
        if fresh:
            assert share < (1 + 5 / math.sqrt(len(images) - pairs)) / tap.features
            assert float(found.misfit) > 2 * 10**-1.2
        else:
            assert share == 1
            assert float(found.misfit) == pytest.approx(10**-1.2, rel=5 * math.sqrt(2 / pairs / tap.features))
            with_key = Tap(link, Threat(12.0, with_secret=True)).hear(sent, seeded(2))
            assert torch.equal(found.undo(heard), with_key)


@pytest.mark.parametrize("flips", [False, True])
def test_listening_breaks_a_fixed_key_and_not_fresh_ones(digits, flips):
    for fresh in (False, True):
        link, tap = link_on(digits, fresh=fresh, sign_flips=flips)
        sent = link.transmit(digits[1][:500], seeded(1))
        code = link.scheme.features(digits[1][500:]).detach()
        found = ciphertext_only(code, tap.hear(sent, seeded(2)), 10**-1.2, flips)
        share = float(fraction_correct(found, permutations(link.scheme.key, sent.header, tap.features)).mean())
        if fresh:
            assert share < (1 + 5 / math.sqrt(500)) / tap.features
        else:
            assert share == 1
            assert 0.7 < float(found.misfit) < 1.3


def test_the_curve_follows_from_its_generator():
    features = population(0)(50, seeded(0))
    first, again, other = (recovery_curve(features, NOISE, [3], generator=seeded(s), keys=5) for s in (0, 0, 1))
    assert first == again != other
    (whole,) = recovery_curve(features, 0.0, [50], generator=seeded(0), keys=2)
    assert (whole.low, whole.mean, whole.high, whole.n) == (1, 1, 1, 2)


PLAIN = torch.zeros(6, 4)
ORDER = torch.arange(4)
KEY = FoundKey(ORDER, None, torch.zeros(()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: known_plaintext(PLAIN, PLAIN[:5]), r"shape \(6, 4\) and heard ones of \(5, 4\) are no pairs: give"),
        (lambda: known_plaintext(PLAIN[:0], PLAIN[:0]), r"plain is torch.float32 of shape \(0, 4\).* at least 1 mess"),
        (lambda: known_plaintext(PLAIN[0], PLAIN[0]), r"shape \(4,\): real features \(messages, d\)"),
        (lambda: known_plaintext(PLAIN, PLAIN / 0), "heard holds values that are not finite: leave"),
        (lambda: known_plaintext(PLAIN, PLAIN.to(torch.complex64)), "heard is torch.complex64"),
        (lambda: ciphertext_only(PLAIN[:3], PLAIN, 0.1), r"plain .*shape \(3, 4\).* at least 4 messages"),
        (lambda: ciphertext_only(PLAIN, PLAIN[:1], 0.1), r"heard .*shape \(1, 4\).* at least 2 messages"),
        (lambda: ciphertext_only(PLAIN, PLAIN[:, :3], 0.1), r"\(6, 4\) and heard ones of \(6, 3\).*of the same d"),
        (lambda: ciphertext_only(PLAIN[None], PLAIN[None], 0.1), r"\(M, d\) and \(N, d\)"),
        (lambda: ciphertext_only(PLAIN, PLAIN, -0.1), "noise_variance is -0.1: a finite number of at least 0"),
        (lambda: recovery_curve(PLAIN, -1.0, [1], generator=seeded(0)), "noise_variance is -1.0"),
        (lambda: recovery_curve(PLAIN, 0.1, [1, 7], generator=seeded(0)), "pairs holds 7: there are 6 images"),
        (lambda: recovery_curve(PLAIN, 0.1, [0], generator=seeded(0)), "pairs is 0: a whole number of at least 1"),
        (lambda: recovery_curve(PLAIN, 0.1, [1], generator=seeded(0), keys=1), "keys is 1: a whole number of at lea"),
        (
            lambda: recovery_curve(PLAIN[None], 0.1, [1], generator=seeded(0)),
            r"features .*\(1, 6, 4\).* one population",
        ),
        (lambda: fraction_correct(KEY, torch.tensor([0, 1, 1, 3])), "truth is no permutation: int64 positions 0 to 3"),
        (lambda: fraction_correct(KEY, ORDER.float()), "truth is no permutation"),
        (lambda: fraction_correct(KEY, torch.arange(5)), "truth is no permutation"),
        (lambda: fraction_correct(FoundKey(ORDER + 1, None, torch.zeros(())), ORDER), "found.permutation is no perm"),
        (lambda: fraction_correct(KEY, ORDER, torch.ones(4)), "found holds no signs to compare.*sign_flips=True"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(SemlinkError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_fraction_by_hand():
    key = FoundKey(torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]), torch.ones(2, 4), torch.zeros(2))
    assert fraction_correct(key, torch.tensor([0, 1, 3, 2])).tolist() == [0.5, 0]
    assert fraction_correct(key, torch.tensor([0, 1, 3, 2]), torch.tensor([1, -1, 1, 1])).tolist() == [0.25, 0]
    assert fraction_correct(key, key.permutation).tolist() == [1, 1]
