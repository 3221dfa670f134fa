# SPDX-License-Identifier: Apache-2.0
"""What symbols say of an image: its class or its attributes, and how much of that the link's own answer gives away.

    attacker's image ─> victim's transmitter ─> Eve's channel ─> tap ─> standardised ─> 3 hidden layers ─> logits
                                                                                                                │
    attacker's targets ────────────────────────── mean cross-entropy ───────────────────────────────────────────┘

The targets need not be the task: of a link that sends one attribute she may ask all of them. What she gets of the
others is to be held against ``delivered_floor``: the answer that the link exists to deliver is correlated with them,
and whoever knows it and nothing else knows that much.

May see: the symbols of any image she has sent (queries), through her own noise; the key if the threat grants it;
targets of images of her own. May not see: weights, gradients, the transceiver's training images, Bob's noise.

Source: F. Pittaluga, S. Koppal and A. Chakrabarti, "Learning privacy preserving encodings through adversarial
training", WACV 2019, for attributes inferred by a network that is trained anew on the encoding; C. Song and V.
Shmatikov, "Overlearning reveals sensitive attributes", ICLR 2020, for those that the task does not ask for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semlink._errors import SemlinkError
from semlink.attacks.base import Inference, Tap, attacks

_DROPOUT = 0.3
_LOUD = 1.0  # mean square of a feature of the code; far weaker ones, noise alone, are not made as loud as the others
_MOST_DELIVERED = 10  # attributes: 1024 patterns, each with a count for every target


@attacks.register("inference")
class SymbolInference(Inference):
    """Inference by a network on what is heard.

    Args:
        tap: what she hears.
        width: a quarter of the units of a hidden layer.
        kind: of the targets, ``classes`` or ``attributes``.
        outputs: classes, or attributes.
    """

    def __init__(self, tap: Tap, width: int, kind: str, outputs: int) -> None:
        super().__init__(tap, kind)
        hidden = 4 * width
        self.network = nn.Sequential(
            nn.BatchNorm1d(tap.features, eps=_LOUD, affine=False),
            *_layer(tap.features, hidden),
            *_layer(hidden, hidden),
            *_layer(hidden, hidden),
            nn.Linear(hidden, outputs),
        )

    def infer(self, intercepted: Tensor, snr_db: float) -> Tensor:
        """Return logits (B, outputs)."""
        del snr_db
        return self.network(intercepted)


def _layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.GELU(), nn.Dropout(_DROPOUT)


def delivered_floor(delivered: Tensor, targets: Tensor, delivered_test: Tensor, outputs: int) -> Tensor:
    """Return what who knows the delivered answer alone infers: logits (m, outputs) for m test images.

    A table of counts on the attacker's images, one added to each: log P(class | delivered) for classes, log-odds for
    attributes. A label that she has never seen leaves her with even chances.

    Args:
        delivered: what the link delivers of the attacker's images: (n,) int64 classes, or (n, k) attributes in {0, 1},
            of which the joint pattern is the label.
        targets: of the attacker's images: (n,) int64 classes, or (n, outputs) attributes in {0, 1}.
        delivered_test: as ``delivered``, of the test images.
        outputs: classes, or attributes.

    Raises:
        SemlinkError: more than 10 attributes are delivered.
    """
    known, asked = _labels(delivered), _labels(delivered_test)
    hits = (F.one_hot(targets, outputs) if targets.ndim == 1 else targets).double()
    rows = 1 + int(torch.cat([known, asked]).max())
    table = hits.new_zeros(rows, outputs).index_add(0, known, hits)
    seen = known.bincount(minlength=rows)[:, None]
    others = seen + outputs if targets.ndim == 1 else seen - table + 1
    return ((table + 1).log() - others.log())[asked].float()


def _labels(delivered: Tensor) -> Tensor:
    """Return (n,) int64."""
    if delivered.ndim == 1:
        return delivered
    count = delivered.shape[1]
    if count > _MOST_DELIVERED:
        raise SemlinkError(
            f"{count} attributes are delivered: a table of their joint patterns needs {_MOST_DELIVERED} or fewer; "
            "choose a task of fewer attributes"
        )
    return (delivered.long() << torch.arange(count, device=delivered.device)).sum(1)
