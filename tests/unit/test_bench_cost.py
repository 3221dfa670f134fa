# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from scheme_keys import SINGLE_USER

import semlink
from semlink.bench import create

IMAGES = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("key", SINGLE_USER)
def test_one_call_tells_what_any_scheme_of_one_user_costs(key):
    options = {"base": "deepjscc"} if key == "layered" else {}
    link = create(key, data="cifar10", preset="smoke", channel_uses=64, **options)
    found = semlink.cost(link, IMAGES)
    assert found.channel_uses == 64
    own = [p for name, p in link.scheme.named_parameters() if not name.startswith("adversary.")]
    assert found.parameters["total"] == sum(p.numel() for p in own)
    hers = {"adversary"} if key in ("ibal", "escs", "uis-tosc") else set()
    assert set(found.multiply_adds) == {"transmitter", "receiver"} | hers
    assert min(found.multiply_adds.values()) > 10_000
    assert 0.3 < found.mean_power < 1.7  # one on average over what is random; exactly one for analog codes
    assert min(found.transmit_seconds, found.receive_seconds) > 0
    sent = link.transmit(IMAGES)
    assert found.payload_bits == sent.payload_bits
    assert (sent.payload_bits or 1) <= 64 * 8


@pytest.mark.parametrize("key", ["deepjscc", "deepjscc-lbvq", "escs", "vl-vfe", "ibal"])
def test_every_parameter_is_computed_with_at_one_end_and_shared_ones_at_both(key):
    link = create(key, data="cifar10", preset="smoke", channel_uses=64)
    found, codebook = semlink.cost(link, IMAGES[:2]), [p for n, p in link.scheme.named_parameters() if "codebook" in n]
    shared = {"deepjscc-lbvq": sum(p.numel() for p in codebook)}.get(key, 0)
    if key == "escs":  # both ends derive what they are told from the key
        shared = sum(p.numel() for p in link.scheme.key_network.parameters())
    if key == "deepjscc":
        assert found.held == {"transmitter": found.parameters["encoder"], "receiver": found.parameters["decoder"]}
    if key != "vl-vfe":  # whose transmitter and receiver share what depends on the noise
        assert sum(found.held.values()) - shared == found.parameters["total"]
    assert min(found.held.values()) > shared


def test_the_adversary_of_training_is_counted_by_hand():
    link = create("ibal", data="cifar10", preset="smoke", channel_uses=64)
    drawing = link.scheme.adversary.decoder
    weights = {name: p for name, p in drawing.named_parameters() if p.dim() > 1}
    assert semlink.cost(link, IMAGES[:2]).multiply_adds["adversary"] > sum(p.numel() for p in weights.values())
    link.scheme.adversary = None  # without her nothing is counted, and nobody is missed
    assert set(semlink.cost(link, IMAGES[:2]).multiply_adds) == {"transmitter", "receiver"}


def test_a_payload_is_counted_in_bits():
    digital = create("deepjscc-lbvq", data="cifar10", preset="smoke", channel_uses=16)
    assert semlink.cost(digital, IMAGES).payload_bits == 16 * 4
    assert semlink.cost(create("deepjscc", data="cifar10", preset="smoke"), IMAGES).payload_bits is None


def test_backbones_are_alike_within_a_tenth():
    """What is compared has the same capacity, but for what a scheme dictates: keys, codebooks, mixing."""
    keys = ("deepjscc", "deepjscc-dp", "deepjscc-encryption", "vfe", "vl-vfe", "ibal", "deepjscc-lbvq", "uis-tosc")
    links = {key: create(key, data="cifar10", channel_uses=64) for key in keys}
    size = {key: semlink.cost(link, IMAGES[:2]).parameters["total"] for key, link in links.items()}
    assert size["deepjscc"] == pytest.approx(3.2e6, rel=0.01)
    assert all(0.9 < value / size["deepjscc"] < 1.1 for value in size.values()), size
