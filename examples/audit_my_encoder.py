# SPDX-License-Identifier: Apache-2.0
"""An encoder of your own, and how to find out what an eavesdropper learns from what it sends.

    semlink audit examples/audit_my_encoder.py:encoder

Any callable that takes no argument and returns a torch module will do, (B, C, H, W) -> (B, d) real or (B, n) complex;
load trained weights in it. Eight minutes later audit/audit.html says what Eve can draw and name, and audit/audit.json
says it to a machine. Of colour images, over fading, and to fail a build that leaks more than it used to:

    semlink audit my_package.my_module:my_encoder --data cifar10 --channel rayleigh --snr-db 15 --minutes 60
    semlink audit examples/audit_my_encoder.py:encoder --fail-above psnr_db=18 retrieval=50
"""

from torch import nn


def encoder() -> nn.Module:
    """Map digits (B, 1, 28, 28) to 32 real numbers, 16 symbols: untrained, and a leak all the same."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 32),
    )
