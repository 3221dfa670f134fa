# SPDX-License-Identifier: Apache-2.0
"""Several receptions as one: the SNR that theory says, no weights are better, and an attacker who uses it."""

import math

import pytest
import torch

from semlink import phy
from semlink._errors import SemlinkError
from semlink.attacks import Tap, Threat
from semlink.nn import Backbone
from semlink.phy.combining import combine
from semlink.schemes import DeepJSCC, Design, Link, Task


def receptions(channel, count, snr_db, batch=400, uses=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    symbols = phy.noise((batch, uses), 1.0, generator, torch.device("cpu"))
    return symbols, [channel(symbols, snr_db, generator) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 4, 10])
def test_without_fading_l_copies_raise_the_snr_by_ten_log_l(count):
    symbols, heard = receptions(phy.AWGN(), count, 3.0)
    found = combine(heard)
    assert found.csi is None
    assert found.noise_variance.unique().item() == pytest.approx(10**-0.3 / count)
    error = (found.symbols - symbols).abs().square()
    reached = -10 * torch.log10(error.mean()).item()
    tolerance = 4 * 10 / math.log(10) / error.numel() ** 0.5  # four standard errors of a mean of squares, in dB
    assert reached == pytest.approx(3.0 + 10 * math.log10(count), abs=tolerance)


def test_what_is_combined_is_gain_times_symbol_in_noise_of_one_reception():
    symbols, heard = receptions(phy.Rayleigh(), 3, 10.0)
    found = combine(heard)
    gains = torch.stack([each.csi for each in heard])
    assert torch.allclose(found.csi.real, gains.abs().square().sum(0).sqrt(), atol=1e-5)
    assert found.csi.imag.abs().max() == 0
    noise = found.symbols - found.csi * symbols
    assert noise.abs().square().mean() == pytest.approx(0.1, rel=4 / noise.numel() ** 0.5)
    assert (noise * symbols.conj()).mean().abs() < 4 * (0.1 / noise.numel()) ** 0.5
    assert torch.equal(found.noise_variance, heard[0].noise_variance)
    assert gains.abs().square().sum(0).mean() == pytest.approx(3.0, abs=4 * (3 / 400) ** 0.5)


def test_no_other_weights_reach_a_higher_snr():
    _, heard = receptions(phy.Rician(), 4, 0.0, batch=1)
    h = torch.stack([each.csi[0, 0] for each in heard])
    best = combine(heard).csi.abs().square().item()
    for seed in range(200):
        w = phy.noise((4,), 1.0, torch.Generator().manual_seed(seed), torch.device("cpu"))
        assert ((w.conj() * h).sum().abs().square() / w.abs().square().sum()).item() <= best * (1 + 1e-5)


def test_one_reception_is_itself():
    _, (heard,) = receptions(phy.AWGN(), 1, 3.0)
    assert combine([heard]) is heard


def test_what_cannot_be_combined_is_refused():
    _, (first, second) = receptions(phy.AWGN(), 2, 3.0)
    _, (louder,) = receptions(phy.AWGN(), 1, 4.0)
    _, (shorter,) = receptions(phy.AWGN(), 1, 3.0, uses=20)
    for wrong in (louder, shorter):
        with pytest.raises(SemlinkError, match="of one block and equally noisy"):
            combine([first, second, wrong])
    with pytest.raises(SemlinkError, match="no reception to combine"):
        combine([])


def test_an_eavesdropper_with_several_antennas_hears_that_much_better():
    torch.manual_seed(0)
    scheme = DeepJSCC(Design(Task("classify", (1, 28, 28), 10), 64, Backbone(16, 16)))
    link, images = Link(scheme, phy.AWGN(), 12.0), torch.rand(200, 1, 28, 28)
    sent = link.transmit(images, torch.Generator().manual_seed(1))
    clean = phy.to_features(sent.symbols)
    errors = []
    for antennas in (1, 5):
        heard = Tap(link, Threat(6.0, antennas=antennas)).hear(sent, torch.Generator().manual_seed(2))
        errors.append((heard - clean).square().mean().item())
    gained = 10 * math.log10(errors[0] / errors[1])
    assert gained == pytest.approx(10 * math.log10(5), abs=4 * 2**0.5 * 4.34 * (2 / clean.numel()) ** 0.5)
    one = Tap(link, Threat(6.0)).hear(sent, torch.Generator().manual_seed(2))
    assert Threat(6.0).describe() == {
        "snr_db": 6.0,
        "with_secret": False,
        "antennas": 1,
        "transmissions": 1,
        "channel": None,
        "csi": True,
    }
    assert torch.equal(one, Tap(link, Threat(6.0, antennas=1)).hear(sent, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("antennas", [0, -1, 1.5])
def test_a_number_of_antennas_that_makes_no_sense_is_refused(antennas):
    with pytest.raises(SemlinkError, match=f"antennas is {antennas}"):
        Threat(6.0, antennas=antennas)
