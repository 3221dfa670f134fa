# SPDX-License-Identifier: Apache-2.0
"""The verb of a security reviewer: what does an eavesdropper learn from a run, or from an encoder of one's own?"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from semlink.cli.common import Common, argument, command, device_for, say


@dataclass(kw_only=True)
class Audit(Common):
    """Attack a run or an encoder of your own with all that fits the time, and write a page for a security reviewer.

    example: semlink audit my_module:my_encoder --data cifar10 --minutes 30 --fail-above psnr_db=18

    TARGET is a run folder, zoo:NAME, or module:callable or file.py:callable for an encoder of your own: the callable
    takes no argument and returns a torch module, images (B, C, H, W) in [0, 1] -> (B, d) real or (B, n) complex.
    """

    target: str = argument()
    """A run folder, zoo:NAME, module:callable or file.py:callable."""
    data: str | None = None
    """Data set, for an encoder of your own; digits if left out."""
    variant: str | None = None
    """Named split of the data set."""
    channel: str | None = None
    """awgn, rayleigh or rician, for an encoder of your own; awgn if left out."""
    snr_db: float | None = None
    """Bob's Es/N0 in dB, for an encoder of your own; 12 if left out. Eve is tried 8 dB better and worse too."""
    attacks: list[str] = field(default_factory=list)
    """Keys of attacks; a battery that suits the target if left out."""
    minutes: float = 8.0
    """Time for everything; what does not fit is listed as not tested."""
    fail_above: list[str] = field(default_factory=list)
    """METRIC=VALUE, as psnr_db=18: exit 1 if the 95 % interval of the strongest attack reaches above, or if the metric
    was not measured."""
    preset: str | None = None
    """smoke, short, tune, brief, cpu or paper: sizes and schedules of attacks; cpu, or the run's own, if left out."""
    precision: str = "auto"
    """auto, bf16 or fp32."""
    key_file: Path | None = None
    """File with your key, if the run was trained with one (the victim transmits with it)."""

    def run(self) -> int:
        """Audit, print the table, and return 1 if a limit is exceeded."""
        from semlink.bench import gate
        from semlink.bench.audit import audit
        from semlink.bench.target import resolve
        from semlink.cli.links import key_for
        from semlink.report.audit import write_audit_page
        from semlink.report.audit_text import audited
        from semlink.training import ScreenProgress, resolve_precision

        begun = time.perf_counter()
        device, out = device_for(self.device), self.out or Path("audit")
        target = resolve(
            self.target,
            data_name=self.data,
            variant=self.variant,
            channel=self.channel,
            snr_db=self.snr_db,
            preset=self.preset,
            seed=self.seed,
            key=lambda folder: key_for(folder, self.key_file),
        )
        limits = gate.limits(self.fail_above, target.shown.attributes)
        done, pictures = audit(
            target,
            out,
            device,
            ScreenProgress,
            minutes=self.minutes,
            attacks=self.attacks,
            seed=self.seed,
            precision=resolve_precision(device, self.precision),
            command=command(),
            begun=begun,
        )
        page = write_audit_page(done, pictures, out / "audit.html")
        say(done.model_dump_json() if self.json else audited(done, page))
        too_much = gate.exceeded(done, limits)
        for sentence in too_much:
            sys.stderr.write(f"error: {sentence}\n")
        return 1 if too_much else 0
