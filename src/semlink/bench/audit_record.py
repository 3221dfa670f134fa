# SPDX-License-Identifier: Apache-2.0
"""The record of an audit: what was assumed, what was tried, what came out, the worst first, and what was not tried."""

from typing import Any, Literal

from semlink import _version
from semlink.bench import record
from semlink.bench.record import Measurement, Strict


class Tried(Strict):
    """An attack that was made.

    ``epochs`` is how long it was trained, ``full_epochs`` how long it would have been had time not been short.
    ``results`` are at the threat's own SNR; a lower bound's ``low`` is
    what may be claimed. ``reference`` marks one that the threat model excludes, as by an eavesdropper with the key; it
    is no part of the verdict.
    """

    attack: str
    threat: dict[str, bool | int | float | str | None]
    reference: bool
    sees: list[str]
    epochs: int
    full_epochs: int
    parameters: int
    converged: bool
    last_fifth_fall: float | None
    attacker_sha256: str
    values_sha256: str
    images: int
    draws: int
    training_seconds: float
    measuring_seconds: float
    results: dict[str, Measurement]
    ceilings_bits: dict[str, float]

    @property
    def snr_db(self) -> float:
        """Es/N0 at each antenna of the eavesdropper, in dB."""
        return float(self.threat["snr_db"] or 0.0)


class Verdict(Strict):
    """What the strongest attack made of one metric.

    ``attack``, ``threat`` and ``sees`` are those of ``Tried``. ``baseline`` needs no interception. ``ceiling`` is what
    no attack can exceed under that threat, ``ceiling_by`` why; None if none is known. ``share`` says where the value
    lies between baseline (0) and learning all that the metric can show (1). ``leaks`` is true if some attack was above
    its baseline by more than chance. Verdicts are sorted by both, the worst first.
    """

    metric: str
    value: Measurement
    attack: str
    threat: dict[str, bool | int | float | str | None]
    sees: list[str]
    converged: bool
    baseline: Measurement
    baseline_by: str
    ceiling: float | None
    ceiling_by: str | None
    share: float
    leaks: bool


class Untested(Strict):
    """What was not tested, and why."""

    what: str
    why: str


class Shown(Strict):
    """A test image that is shown beside what was drawn of it: ``rank`` 1 ``of`` so many is the best drawn, by PSNR."""

    index: int
    rank: int
    of: int
    psnr_db: float


class Bound(Strict):
    """What an eavesdropper can learn of an image at most, by any attack: bits by the name of the reason.

    ``dfil`` is the diagonal Fisher information leakage, in the inverse of squared pixel values: an estimate of an image
    that is unbiased has a mean squared error of at least its inverse. None if there is no such number.
    """

    threat: dict[str, bool | int | float | str | None]
    bits: dict[str, float]
    dfil: Measurement | None


class AuditRecord(Strict):
    """An audit.

    ``target`` says what was audited, ``victim_sha256`` is the hash of its weights and buffers, ``link`` its channel,
    SNR and symbols. ``minutes`` is the budget, ``seconds`` what the attacks took of it. ``baselines`` need no
    interception; ``reader`` is what the classifier that reads drawings makes of real images. ``shown`` are test images,
    chosen by rank, of which the attack at ``shown_of`` in ``tried`` drew what the page shows.
    """

    format: int = record.FORMAT
    kind: Literal["audit"] = "audit"
    semlink: str = _version.VERSION
    code_sha256: str
    libraries: dict[str, str]
    machine: dict[str, str | int]
    target: dict[str, Any]
    victim_sha256: str
    link: dict[str, Any]
    data: dict[str, Any]
    preset: str
    seed: int
    precision: Literal["bf16", "fp32"]
    minutes: float
    seconds: float
    finished: str
    command: str
    threat_model: list[str]
    verdicts: list[Verdict]
    tried: list[Tried]
    baselines: dict[str, dict[str, Measurement]]
    bounds: list[Bound]
    shown: list[Shown]
    shown_of: int | None
    reader: dict[str, Measurement] | None
    untested: list[Untested]
