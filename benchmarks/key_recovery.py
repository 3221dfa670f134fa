# SPDX-License-Identifier: Apache-2.0
"""What does a fixed permutation hide? ``python benchmarks/key_recovery.py``

The zoo's ``deepjscc-encryption`` on CIFAR-10, were it to use one key and nonce for all messages: how much of the
permutation an eavesdropper at 12 dB finds from messages whose images she knows, and from messages alone, with the
features of 2,000 images of her own.
"""

import torch
from torch import Tensor

import semlink
from semlink import data
from semlink.attacks import ciphertext_only, fraction_correct, recovery_curve
from semlink.data import ImageSet
from semlink.schemes import DeepJSCCEncryption

SNR_DB, KEYS, OWN = 12.0, 100, 2000
PAIRS, MESSAGES = (1, 2, 3, 5, 10, 20), (50, 100, 200, 500)


@torch.no_grad()
def features(scheme: DeepJSCCEncryption, images: ImageSet, count: int) -> Tensor:
    """Return the code of the first images before it is shuffled, (count, d) of unit mean square."""
    parts = torch.arange(count).split(500)
    return torch.cat([scheme.features(images.batch(part)[0]) for part in parts])


def main() -> None:
    """Print both tables."""
    scheme = semlink.load("zoo:deepjscc-encryption-cifar10").scheme.eval()
    if not isinstance(scheme, DeepJSCCEncryption):
        raise TypeError(f"{type(scheme).__name__} has no features to shuffle")
    sets, generator = data.load("cifar10"), torch.Generator().manual_seed(0)
    own, noise = features(scheme, sets.attacker, OWN), 10 ** (-SNR_DB / 10)  # of features with unit mean square
    print(f"known images   positions found, mean over {KEYS} keys [95 % interval]")
    for pairs, found in zip(PAIRS, recovery_curve(own, noise, PAIRS, generator=generator, keys=KEYS), strict=True):
        print(f"{pairs:12}   {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]")
    sent = features(scheme, sets.test, max(MESSAGES))
    print("messages only  positions found, 10 keys, least and mean")
    for count in MESSAGES:
        shares = []
        for _ in range(10):
            order = torch.randperm(sent.shape[1], generator=generator)
            heard = sent[:count, order] + noise**0.5 * torch.randn(count, len(order), generator=generator)
            shares.append(float(fraction_correct(ciphertext_only(own, heard, noise), order)))
        print(f"{count:12}   {min(shares):.3f}, {sum(shares) / len(shares):.3f}")


if __name__ == "__main__":
    main()
