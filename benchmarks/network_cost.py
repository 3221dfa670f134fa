# SPDX-License-Identifier: Apache-2.0
"""What the schemes of K users cost: networks, pilots, feedback. Nothing is trained; the figures follow from the design.

usage: python benchmarks/network_cost.py [K ...]        (2 3 4 5 if left out)

Multiply-adds are of matrix products of one group of K images, all users together; the design of precoders and filters
and the solution of the receivers' linear equations are not in them (benchmarks/transceivers.py times the former).
Pilot uses: channel uses that K Nt orthogonal pilots take, for every block. Feedback: real numbers that receivers send
to transmitters for every block, and their bits as single precision holds them. The paper feeds all of H to every
network; "row" says where a receiver needs its own row of H alone.
"""

import sys

import torch

import semlink
from semlink.report.bench import REAL_BITS

SCHEMES = {
    "interference-free": "none",
    "csi-free": "none",
    "irsc-csir": "all",
    "irsc-csitr": "all",
    "semi-conventional": "all",
    "dispersion": "row",
    "adaptive-precoding": "all",
}


def main(users: list[int]) -> None:
    """Print the table."""
    print(
        "K  scheme              parameters   multiply-adds      uses  reals sent  H at receivers  pilots   reals   bits"
    )
    for count in users:
        for scheme, csi in SCHEMES.items():
            link = semlink.create(scheme, data="mnist", channel_uses=16, users=count)
            found = semlink.cost(link, torch.rand(2, count, 1, 28, 28))
            said, streams = link.scheme.describe(), getattr(link.scheme, "reals", None)
            reals = streams or getattr(link.scheme, "features", 4 * found.channel_uses)
            adds, pilots = sum(found.multiply_adds.values()), said["pilot_uses"] if csi != "none" else 0
            print(
                f"{count}  {scheme:18}  {found.parameters['total']:10,}  {adds:14,}  {found.channel_uses:8}  {reals:10}"
                f"  {csi:>14}  {pilots:6}  {said['feedback_reals']:6}  {REAL_BITS * said['feedback_reals']:5}"
            )


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or [2, 3, 4, 5])
