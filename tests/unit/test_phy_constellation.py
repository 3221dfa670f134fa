# SPDX-License-Identifier: Apache-2.0
"""Constellations: geometry, labels, the frozen scale, hard and soft decisions against brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semlink._errors import SemlinkError
from semlink.phy import AWGN, Constellation, Rayleigh, psk, qam, zero_force

EACH = [(psk, 2), (psk, 4), (psk, 8), (psk, 16), (psk, 64), (psk, 256), (qam, 4), (qam, 16), (qam, 64), (qam, 256)]
SMALL = [(psk, 2), (psk, 4), (psk, 8), (psk, 16), (qam, 4), (qam, 16), (qam, 64)]
LOPSIDED = torch.tensor([5, 1, 1, 1] * 4)  # unlike arange(16), whose mean energy is that of uniform indices


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observations(batch: int, n: int, seed: int = 0) -> torch.Tensor:
    return 1.2 * torch.randn(batch, n, dtype=torch.complex64, generator=seeded(seed))


def brute_squares(constellation: Constellation, y: torch.Tensor) -> torch.Tensor:
    return (y.to(torch.complex128)[..., None] - constellation.points.to(torch.complex128)).abs() ** 2


@pytest.mark.parametrize(("family", "order"), EACH)
def test_geometry(family, order):
    constellation = family(order)
    points = constellation.points
    assert points.dtype == torch.complex64
    assert points.shape == (order,)
    assert (points.abs().double() ** 2).mean().item() == pytest.approx(1, abs=1e-6)
    assert points.to(torch.complex128).mean().abs() < 1e-6
    nearest = torch.pdist(torch.view_as_real(points)).min().item()
    expected = 2 * math.sin(math.pi / order) if family is psk else math.sqrt(6 / (order - 1))
    assert nearest == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("order", [4, 16, 64, 256])
def test_natural_qam_index_is_row_times_side_plus_column(order):
    constellation, side = qam(order), math.isqrt(order)
    spacing = math.sqrt(6 / (order - 1))
    for index in range(order):
        row, column = divmod(index, side)
        expected = complex(column - (side - 1) / 2, row - (side - 1) / 2) * spacing
        assert constellation.points[index].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("order", [2, 4, 8, 16, 256])
def test_psk_index_is_the_angle(order):
    start = math.pi / 4 if order == 4 else 0
    angles = start + 2 * math.pi * torch.arange(order).double() / order
    torch.testing.assert_close(psk(order).points, torch.polar(torch.ones(order).double(), angles).to(torch.complex64))


def test_qpsk_and_4qam_are_the_same_points():
    torch.testing.assert_close(psk(4).points[[2, 3, 1, 0]], qam(4).points, rtol=0, atol=1e-6)


@pytest.mark.parametrize("labelling", ["natural", "gray"])
@pytest.mark.parametrize(("family", "order"), EACH)
def test_labels_are_all_different(family, order, labelling):
    bits = family(order, labelling).bits
    assert bits.shape == (order, int(math.log2(order)))
    assert bits.unique(dim=0).shape[0] == order
    if labelling == "natural":
        assert [int("".join(map(str, row)), 2) for row in bits.tolist()] == list(range(order))


@pytest.mark.parametrize(("family", "order"), EACH)
def test_gray_neighbours_differ_in_one_bit(family, order):
    constellation = family(order, "gray")
    points = constellation.points.to(torch.complex128)
    distance = (points[:, None] - points).abs() + 10 * torch.eye(order)
    neighbours = (distance < 1.01 * distance.min()).nonzero()
    side = math.isqrt(order)
    ordered_pairs = 4 * side * (side - 1) if family is qam else 2 * order if order > 2 else 2
    assert len(neighbours) == ordered_pairs
    differing = (constellation.bits[neighbours[:, 0]] != constellation.bits[neighbours[:, 1]]).sum(1)
    assert (differing == 1).all()


@pytest.mark.parametrize("labelling", ["natural", "gray"])
@pytest.mark.parametrize(("family", "order"), EACH)
def test_demodulate_undoes_modulate(family, order, labelling):
    counts = torch.rand(order, generator=seeded(order)) ** 4
    for constellation in (family(order, labelling), family(order, labelling).scaled_under(counts)):
        indices = torch.arange(order).reshape(2, -1)
        symbols = constellation.modulate(indices)
        assert symbols.dtype == torch.complex64
        assert torch.equal(constellation.demodulate(symbols), indices)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("family", "order"), EACH)
def test_demodulate_finds_the_nearest_point(family, order, scaled):
    constellation = family(order)
    if scaled:
        constellation = constellation.scaled_under(torch.rand(order, generator=seeded(2)) ** 6)
    y = observations(20, 200)
    squares = brute_squares(constellation, y)
    best = squares.topk(2, largest=False).values
    decided = constellation.demodulate(y)
    assert decided.dtype == torch.int64
    clear = best[..., 1] - best[..., 0] > 1e-5  # float32 may decide either way on a border
    assert clear.float().mean() > 0.9
    assert torch.equal(decided[clear], squares.argmin(-1)[clear])


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.floats(0, 1e6), min_size=16, max_size=16).filter(lambda c: sum(c) > 1e-3),
    family=st.sampled_from([psk, qam]),
)
def test_scaled_energy_is_one_under_the_distribution(counts, family):
    distribution = torch.tensor(counts, dtype=torch.float64)
    scaled = family(16).scaled_under(distribution)
    energy = (scaled.points.to(torch.complex128).abs() ** 2 * distribution / distribution.sum()).sum()
    assert energy.item() == pytest.approx(1, abs=1e-6)
    ratio = scaled.points / family(16).points
    torch.testing.assert_close(ratio, ratio[:1].expand(16))
    assert ratio[0].real > 0


def test_corners_gain_without_the_scale_and_nothing_with_it():
    constellation = qam(16)
    corners = torch.zeros(16)
    corners[[0, 3, 12, 15]] = 0.25
    sent = torch.tensor([[0, 3, 12, 15] * 4])
    gain_db = 10 * math.log10((constellation.modulate(sent).abs() ** 2).mean())
    assert gain_db == pytest.approx(10 * math.log10(1.8), abs=1e-5)
    assert (constellation.points.abs() ** 2).max().item() == pytest.approx(1.8, abs=1e-5)  # so nothing gains more
    scaled = constellation.scaled_under(corners)
    assert (scaled.modulate(sent).abs() ** 2).mean().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close((scaled.points.abs() ** 2).max(), torch.tensor(1.0))


def test_counts_probabilities_and_repetition_give_the_same_scale():
    counts = LOPSIDED
    first = qam(16).scaled_under(counts)
    torch.testing.assert_close(qam(16).scaled_under(counts / counts.sum()).points, first.points)
    torch.testing.assert_close(first.scaled_under(counts).points, first.points)
    torch.testing.assert_close(qam(16).scaled_under(torch.ones(16)).points, qam(16).points)
    torch.testing.assert_close(psk(16).scaled_under(counts).points, psk(16).points)
    assert torch.equal(qam(16, "gray").scaled_under(counts).bits, qam(16, "gray").bits)


def test_the_original_is_left_alone():
    constellation = qam(16)
    before = constellation.points.clone()
    constellation.scaled_under(LOPSIDED)
    assert torch.equal(constellation.points, before)


def test_the_scale_travels_in_the_state_dict():
    scaled = qam(16, "gray").scaled_under(LOPSIDED)
    fresh = qam(16, "gray")
    assert (fresh.points - scaled.points).abs().max() > 0.05
    fresh.load_state_dict(scaled.state_dict())
    assert torch.equal(fresh.points, scaled.points)
    assert list(scaled.parameters()) == []  # frozen: no optimiser reaches it
    y = observations(4, 100)
    assert torch.equal(fresh.demodulate(y), scaled.demodulate(y))
    assert torch.equal(fresh.llr(y, 0.1), scaled.llr(y, 0.1))


def test_dtype_moves_keep_the_imaginary_rail():
    for moved in (qam(16).to(torch.float32), qam(16).double(), torch.nn.Sequential(qam(16)).to(torch.float32)[0]):
        assert torch.equal(moved.points, qam(16).points)


@pytest.mark.parametrize(
    "bad", [torch.ones(4), torch.zeros(16), -torch.ones(16), torch.full((16,), math.nan), torch.full((16,), math.inf)]
)
def test_senseless_distributions_are_refused(bad):
    with pytest.raises(SemlinkError, match="needs 16 finite, non-negative numbers"):
        qam(16).scaled_under(bad)


def test_senseless_orders_and_names_are_refused():
    for order in (-4, 0, 1, 2, 6, 8, 32, 36):
        with pytest.raises(SemlinkError, match=f"order {order}: an even power of two"):
            qam(order)
    for order in (-2, 0, 1, 3, 12):
        with pytest.raises(SemlinkError, match=f"order {order}: a power of two"):
            psk(order)
    for family in (psk, qam):
        with pytest.raises(SemlinkError, match="did you mean 'gray'"):
            family(16, "grey")
    with pytest.raises(SemlinkError, match="did you mean 'max-log'"):
        qam(16).llr(observations(1, 1), 0.1, "maxlog")  # pyright: ignore[reportArgumentType]


def brute_llr(constellation: Constellation, y: torch.Tensor, n0: torch.Tensor, method: str) -> torch.Tensor:
    exponents = -brute_squares(constellation, y) / n0.double()[..., None]
    columns = []
    for bit in constellation.bits.bool().unbind(1):
        one, zero = exponents[..., bit], exponents[..., ~bit]
        if method == "exact":
            columns.append(one.logsumexp(-1) - zero.logsumexp(-1))
        else:
            columns.append(one.max(-1).values - zero.max(-1).values)
    return torch.stack(columns, -1)


@pytest.mark.parametrize("method", ["exact", "max-log"])
@pytest.mark.parametrize("labelling", ["natural", "gray"])
@pytest.mark.parametrize(("family", "order"), SMALL)
def test_llr_is_brute_force(family, order, labelling, method):
    constellation = family(order, labelling).scaled_under(torch.rand(order, generator=seeded(1)))
    y = observations(5, 40)
    shapes = [
        torch.tensor(0.3),
        0.02 + torch.rand(5, 1, generator=seeded(2)),
        0.02 + torch.rand(5, 40, generator=seeded(3)),
    ]
    for n0 in shapes:
        expected = brute_llr(constellation, y, n0, method)
        found = constellation.llr(y, n0, method)
        assert found.shape == (5, 40, constellation.bits.shape[1])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(constellation.llr(y, 0.3, method), constellation.llr(y, shapes[0], method))


def test_bpsk_llr_closed_form():
    # ln P(1 | y) / P(0 | y) = -4 Re(y) / N0: index 0 is at +1 and N0 / 2 is on the rail. A factor 2 is the usual error.
    y = observations(1, 20)
    for method in ("exact", "max-log"):
        torch.testing.assert_close(psk(2).llr(y, 0.5, method)[..., 0], -8 * y.real, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("labelling", ["natural", "gray"])
@pytest.mark.parametrize(("family", "order"), SMALL)
def test_positive_llr_means_one(family, order, labelling):
    constellation = family(order, labelling)
    llr = constellation.llr(constellation.points[None], 1e-3)
    assert torch.equal((llr[0] > 0).to(torch.uint8), constellation.bits)


@pytest.mark.parametrize("snr_db", [4.0, 10.0])
@pytest.mark.parametrize(("family", "order", "labelling"), [(qam, 16, "gray"), (qam, 64, "natural"), (psk, 8, "gray")])
def test_llr_is_calibrated_with_the_channels_own_number(family, order, labelling, snr_db):
    constellation = family(order, labelling)
    sent = torch.randint(order, (200, 500), generator=seeded(1))
    received = AWGN()(constellation.modulate(sent), snr_db, seeded(2))
    llr = constellation.llr(received.symbols, received.noise_variance)
    wrong = ((llr > 0) != constellation.bits[sent].bool()).double()
    predicted = torch.sigmoid(-llr.abs()).double()
    surprise = (wrong - predicted).mean(-1)
    error = surprise.std().item() / math.sqrt(surprise.numel())
    assert abs(surprise.mean().item()) < 5 * error
    assert wrong.mean() / predicted.mean() == pytest.approx(1, abs=0.05)
    # The claim must hold bin by bin, not only on average.
    for low, high in ((0.0, 0.05), (0.05, 0.2), (0.2, 0.5)):
        chosen = (predicted >= low) & (predicted < high)
        difference = (wrong - predicted)[chosen]
        if len(difference) > 1000:
            assert abs(difference.mean()) < 5 * difference.std() / math.sqrt(len(difference))


def test_soft_decisions_over_fading_are_calibrated():
    constellation = qam(16)
    sent = torch.randint(16, (1000, 100), generator=seeded(3))
    received = zero_force(Rayleigh("symbol")(constellation.modulate(sent), 8.0, seeded(4)))
    posterior = constellation.posteriors(received.symbols, received.noise_variance).double()
    surprise = 1 - posterior.amax(-1) - (posterior.argmax(-1) != sent).double()
    assert abs(surprise.mean()) < 5 * surprise.std() / math.sqrt(surprise.numel())
    assert torch.equal(posterior.argmax(-1), constellation.demodulate(received.symbols))


@pytest.mark.parametrize(("family", "order"), SMALL)
def test_posteriors_are_bayes(family, order):
    constellation = family(order)
    y, n0 = observations(3, 30), torch.tensor([[0.1], [0.5], [2.0]])
    prior = torch.rand(order, generator=seeded(1))
    prior[0] = 0
    prior = prior / prior.sum()
    likelihood = torch.exp(-brute_squares(constellation, y) / n0.double()[..., None])
    for weight, given_prior in ((torch.ones(order), None), (prior, prior), (prior, prior.double())):
        expected = likelihood * weight
        expected = expected / expected.sum(-1, keepdim=True)
        found = constellation.posteriors(y, n0, given_prior)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found.sum(-1), torch.ones(3, 30))
    assert (constellation.posteriors(y, n0, prior)[..., 0] == 0).all()


def test_posteriors_survive_extremes():
    y = observations(2, 10)
    for n0 in (1e-30, 1e30):
        found = qam(16).posteriors(y, n0)
        torch.testing.assert_close(found.sum(-1), torch.ones(2, 10))
        assert qam(16).llr(y, n0).isfinite().all()
    assert torch.equal(qam(16).posteriors(y, 1e-30).argmax(-1), qam(16).demodulate(y))


@pytest.mark.parametrize(("family", "order"), [(qam, 16), (psk, 8)])
def test_soft_demodulation_passes_gradcheck(family, order):
    constellation = family(order, "gray")
    y = torch.randn(2, 3, dtype=torch.complex128, generator=seeded(5)).requires_grad_()
    n0 = torch.tensor([[0.3], [0.7]], dtype=torch.float64)
    prior = torch.linspace(1, 2, order)
    for function in (
        lambda y: constellation.posteriors(y, n0, prior),
        lambda y: constellation.llr(y, n0),
        lambda y: constellation.llr(y, n0, "max-log"),
        lambda y: constellation.expected_symbol(constellation.posteriors(y, n0)),
    ):
        assert torch.autograd.gradcheck(function, (y,))
    p = torch.rand(2, 3, order, dtype=torch.float64, generator=seeded(6)).requires_grad_()
    assert torch.autograd.gradcheck(constellation.expected_symbol, (p,))


@pytest.mark.parametrize(("family", "order"), EACH)
def test_expected_symbol_of_one_hot_rows_is_modulate_exactly(family, order):
    constellation = family(order).scaled_under(1 + torch.arange(order) % 5)
    indices = torch.randint(order, (4, 50), generator=seeded(1))
    sent = constellation.modulate(indices)
    rows = torch.nn.functional.one_hot(indices, order)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(constellation.expected_symbol(rows.float()), sent)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(constellation.expected_symbol(rows.float()), sent)
            assert torch.equal(constellation.expected_symbol(rows.bfloat16()), sent)
    finally:
        torch.set_float32_matmul_precision(before)


def test_soft_demodulation_is_float32_under_autocast():
    y = observations(3, 20)
    for constellation in (qam(16), psk(16)):
        with torch.autocast("cpu", torch.bfloat16):
            posterior, llr = constellation.posteriors(y, 0.1), constellation.llr(y, 0.1)
            decided = constellation.demodulate(y)
        assert torch.equal(posterior, constellation.posteriors(y, 0.1))
        assert torch.equal(llr, constellation.llr(y, 0.1))
        assert torch.equal(decided, constellation.demodulate(y))
