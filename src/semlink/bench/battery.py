# SPDX-License-Identifier: Apache-2.0
"""Which attacks an audit makes on a link, the most important first, and why it leaves out the others.

Eve hears at Bob's SNR, 8 dB better and 8 dB worse, and with four antennas. Whether an attack can be made at all the
attack itself says, when it is built; what suits the kind of link is said here.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from semlink._errors import SemlinkError
from semlink.attacks import Threat, attacks, keys
from semlink.bench import attacker
from semlink.bench.target import Target
from semlink.training import seeded

BETTER_DB = 8.0  # how much better than Bob, and worse, Eve hears
ANTENNAS = 4
TRANSMISSIONS = 10  # of one image, where the transmitter draws noise that they average out


class Case(NamedTuple):
    """An attack under a threat.

    Attributes:
        attack: its key.
        threat: what she has.
        reference: she holds the key, which the threat model excludes: shown for comparison, and no part of the verdict.
    """

    attack: str
    threat: Threat
    reference: bool = False


class Nature(NamedTuple):
    """What of a link decides which attacks suit it.

    Attributes:
        keyed: it has a secret.
        digital: it sends a payload of bits.
        random: it sends the same image in other ways at other times.
    """

    keyed: bool
    digital: bool
    random: bool


def nature(target: Target, device: torch.device) -> Nature:
    """Find out what kind of link it is by letting it send a few images twice."""
    images = target.sets.attacker_validation.batch(torch.arange(4))[0].to(device)
    first, second = (target.link.transmit(images, seeded(i, "nature", device=device)) for i in range(2))
    random = not torch.equal(first.symbols, second.symbols)
    return Nature(target.link.scheme.secret is not None, first.payload_bits is not None, random)


def battery(target: Target, kind: Nature, chosen: Sequence[str]) -> list[Case]:
    """Return the attacks to be made, the most important first.

    Args:
        target: the link.
        kind: what it is.
        chosen: keys of attacks; the battery if there is none.

    Raises:
        SemlinkError: a key is unknown.
    """
    snr_db = target.link.snr_db
    near, far = Threat(snr_db + BETTER_DB), Threat(snr_db - BETTER_DB)
    own = Threat(snr_db)
    if chosen:
        for key in chosen:
            attacks[key]
        cases = [Case(key, threat) for threat in (own, near, far) for key in dict.fromkeys(chosen)]
        return cases + [Case(key, Threat(snr_db, True), True) for key in dict.fromkeys(chosen) if kind.keyed]
    first = [Case("inversion", own), Case("inference", own), Case("inversion", near), Case("inference", near)]
    if kind.keyed:
        first += [Case(key, threat) for threat in (own, near) for key in ("sorted-inversion", "set-inversion")]
        first += [Case(key, Threat(snr_db, True), True) for key in ("inversion", "inference")]
    if kind.digital:
        first += [Case("codebook-inversion", own), Case("codebook-inversion", near)]
    if kind.random and not kind.keyed:
        first += [Case(key, Threat(snr_db, transmissions=TRANSMISSIONS)) for key in ("inversion", "inference")]
    return [
        *first,
        Case("inversion", Threat(snr_db, antennas=ANTENNAS)),
        Case("search-learned", near),
        Case("inversion", far),
        Case("inference", far),
        Case("ensemble-inversion", near),
        Case("inversion-unet", near),
        Case("generative", near),
        Case("search-smooth", near),
        Case("inversion-plain", near),
    ]


def called(case: Case) -> str:
    """Return what a case is called on a screen: the attack, and how Eve hears."""
    threat = case.threat
    more = [f"{n} {what}" for what in ("antennas", "transmissions") if (n := getattr(threat, what)) > 1]
    more += ["the key"] if threat.with_secret else []
    return ", ".join([f"{case.attack} at {threat.snr_db:g} dB", *more])


def assumptions(target: Target, kind: Nature) -> list[str]:
    """Return the threat model in sentences."""
    snr_db, repeats = target.link.snr_db, 10
    held = "attacker's and the attacker's validation images"
    counts = f"{len(target.sets.attacker):,} and {len(target.sets.attacker_validation):,}"
    said = [
        f"Eve listens and does nothing else. Over a channel of her own ({target.channel}) she hears every symbol, with "
        "noise that is never Bob's. She knows where a message begins, and the gains of her channel.",
        f"Bob hears at {snr_db:g} dB Es/N0. At which SNR Eve was tried, with how many antennas, stands beside every "
        f"attack below; over AWGN {ANTENNAS} antennas are worth {_db(ANTENNAS)}.",
        "She has images of her own, of the same kind as those that are sent and none of them, and has them sent as "
        f"often as she likes: the {held} ({counts}). Her attacks are trained on these.",
        "She does not know the weights of the encoder, unless an attack is marked as seeing the encoder; then she "
        "knows all of them (white box).",
    ]
    if target.recipe is not None and target.recipe.task != "reconstruct":
        said.append(
            f"The link is there to tell Bob something of the image (task: {target.recipe.task}). Without a secret, who "
            "hears as well as he does can learn that as he does; what is learned beyond it serves nobody but Eve."
        )
    if kind.keyed:
        said.append(
            "She does not know the key, and cannot have two messages sent under one nonce. What she could do with the "
            "key is shown for comparison and is no part of the verdict."
        )
    elif kind.random:
        said.append(
            f"The transmitter draws noise. She was also tried with {TRANSMISSIONS} transmissions of each image, each "
            "with noise of its own."
        )
    else:
        said.append(
            "An image is always sent as the same symbols. Who hears it sent several times, or over several antennas, "
            f"hears it better: {repeats} receptions over AWGN are worth {_db(repeats)}."
        )
    return said


def _db(receptions: int) -> str:
    return f"{10 * math.log10(receptions):.0f} dB"


def unsuited(target: Target, plan: attacker.Plan) -> str | None:
    """Return why an attack cannot be made on the link, None if it can."""
    try:
        attacker.build(target.link, plan, target.shown)
    except SemlinkError as error:
        return str(error)
    return None


def left_out(kind: Nature, cases: Sequence[Case], chosen: Sequence[str]) -> list[tuple[str, str]]:
    """Return what no case covers, and why: keys of attacks, then what Semlink has no attack for or does not grant."""
    made = {case.attack for case in cases}
    reasons = {
        "codebook-inversion": "the link sends no indices of codewords",
        "sorted-inversion": "the link permutes nothing under a key",
        "set-inversion": "the link permutes nothing under a key",
    }
    missing = [key for key in keys() if key not in made]
    found = [(key, "not among --attacks" if chosen else reasons.get(key, "not in the battery")) for key in missing]
    if kind.keyed:
        found.append(("repeated nonces, known keys, recovery of the key", "the audit takes key and nonces to be safe"))
    return [
        *found,
        ("an eavesdropper of more knowledge or effort", "attacks are lower bounds: a stronger one may learn more"),
        ("perceptual likeness (LPIPS)", "the attackers are trained on squared error, and it is not measured here"),
        ("messages that are changed, replayed or jammed", "Eve listens and does nothing else"),
        ("leakage through weights, timing, length or side channels of a device", "only what is sent is heard"),
        ("whether training images can be told from others", "membership inference is not part of this audit"),
    ]
