# SPDX-License-Identifier: Apache-2.0
"""What Semlink adds to the start of a program: ``python benchmarks/startup.py``.

Targets: ``import semlink`` adds less than 0.3 s to torch's import; ``semlink --help`` answers in less than 0.5 s. What
fetching every public name adds is shown too: most of it is pydantic building the records. Each command runs in a
fresh interpreter, in turn, five times after one warm-up; medians are compared.
"""

import statistics
import subprocess
import sys
import time

NAMES = "semlink.Key, semlink.Link, semlink.attacks, semlink.channels, semlink.create, semlink.load, semlink.schemes"
COMMANDS = {
    "python": "pass",
    "import torch": "import torch",
    "import torch, semlink": "import torch, semlink",
    "import torch, every public name": f"import torch, semlink; {NAMES}",
    "semlink --help": "import sys; sys.argv = ['semlink', '--help']; from semlink.cli import main; sys.exit(main())",
}


def seconds(code: str) -> float:
    """Return the wall time of one interpreter that runs ``code``."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> int:
    """Print the medians and say whether the targets are met."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(6):
        for name, code in COMMANDS.items():
            spent = seconds(code)
            if repeat:
                times[name].append(spent)
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:<34}{value:7.3f} s")
    added = median["import torch, semlink"] - median["import torch"]
    print(f"{'semlink adds to torch':<34}{added:7.3f} s  (target 0.3 s)")
    return 0 if added < 0.3 and median["semlink --help"] < 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
