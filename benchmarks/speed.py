# SPDX-License-Identifier: Apache-2.0
"""How fast next to others: ``python benchmarks/speed.py [--rows PART ...] [--out FOLDER]``, or ``make bench-speed``.

Each row does the same work by Semlink and by its peers, in turn, in one process, of one thread or of two where networks
are trained, and compares the fastest of several rounds: what else a machine does only ever adds time. The ratio is to
the best peer. Before anything is timed the results are held to each other, so that no row compares two different
things; of trainings, the numbers of parameters.
"""

import argparse
import functools
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import komm
import numpy as np
import torch
import trainings
import transceivers
from rows import Row, Work, capability, fastest, generator
from sionna.phy import config
from sionna.phy.channel import AWGN as TheirAWGN
from sionna.phy.channel import ApplyFlatFadingChannel, GenerateFlatFadingChannel
from sionna.phy.mapping import Constellation as TheirConstellation
from sionna.phy.mapping import Demapper, Mapper
from skimage.metrics import structural_similarity
from sklearn.metrics import mutual_info_score
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

import semlink
from semlink import phy
from semlink.bench import evaluator, links
from semlink.metrics import mean_interval, mi_leakage, mi_null, psnr_db, ssim
from semlink.phy.normals import MANY
from semlink.training import describe_machine, keep_memory, seeded

LIBRARIES = ("torch", "sionna-no-rt", "komm", "torchmetrics", "scikit-image", "scikit-learn", "clarabel")
config.device = "cpu"


def channels() -> list[Row]:
    """AWGN, Rayleigh fading and the interference channel, on 4,096 images of 64 symbols.

    They are timed as a process goes on once it has drawn so much noise that a program for it was compiled.
    """
    phy.noise((MANY // 2 + 1,), 1.0, generator(), torch.device("cpu"))
    x = phy.normalise_power(torch.randn(4096, 64, dtype=torch.complex64, generator=generator()))
    n0, g = torch.tensor(0.1), generator(1)
    awgn, fading = phy.AWGN(), phy.Rayleigh()
    theirs, draw, apply = TheirAWGN(), GenerateFlatFadingChannel(1, 1), ApplyFlatFadingChannel()
    found = [
        Row(
            "AWGN, 4,096 x 64 symbols",
            1.2,
            fastest({"semlink": lambda: awgn(x, 10.0, g), "sionna": lambda: theirs(x, n0)}),
        )
    ]

    def rayleigh() -> Tensor:
        gains = draw(4096)[:, 0]  # one for each image
        return theirs(gains * x, n0)

    found.append(
        Row("Rayleigh, one gain an image", 1.2, fastest({"semlink": lambda: fading(x, 10.0, g), "sionna": rayleigh}))
    )
    raw = torch.randn(4096, 64, dtype=torch.complex64, generator=generator(4))

    def formula() -> Tensor:
        return raw / raw.abs().square().mean(1, keepdim=True).sqrt()

    torch.testing.assert_close(phy.normalise_power(raw), formula())
    works: dict[str, Work] = {"semlink": lambda: phy.normalise_power(raw), "the formula in torch": formula}
    found.append(Row("power constraint, each of 4,096 images", 1.2, fastest(works)))
    medium = phy.Interference(2, 2, 2)
    X = phy.normalise_block(torch.randn(2048, 2, 2, 16, dtype=torch.complex64, generator=generator(2)))
    column = X.permute(0, 3, 1, 2).reshape(-1, 4)

    levels = torch.full((2048,), 10.0)  # one an image, as networks are trained

    def ours() -> Tensor:
        return medium(X, medium.draw(2048, g), levels, g)

    both = GenerateFlatFadingChannel(4, 4)

    def stacked() -> Tensor:
        return apply(column, both(2048).repeat_interleave(16, 0), n0)

    H = medium.draw(2048, generator(3))
    block = H.transpose(2, 3).reshape(2048, 4, 4)
    silent = medium(X, H, 300.0, g).permute(0, 3, 1, 2).reshape(-1, 4)
    torch.testing.assert_close(silent, apply(column, block.repeat_interleave(16, 0)), rtol=1e-4, atol=1e-4)
    found.append(Row("interference channel, K = 2, 2x2, 16 uses", 1.2, fastest({"semlink": ours, "sionna": stacked})))
    return found


def constellations() -> list[Row]:
    """Mapping, hard decisions and LLRs of 16- and 64-QAM, 200,000 symbols."""
    found = []
    for order in (16, 64):
        ours, width = phy.qam(order, "gray"), order.bit_length() - 1
        labels = (ours.bits.long() << torch.arange(width - 1, -1, -1)).sum(1)
        points = torch.empty_like(ours.points)
        points[labels] = ours.points
        theirs = TheirConstellation("custom", width, points=points)
        other = komm.QAMConstellation(order, deltas=(6 / (order - 1)) ** 0.5)
        sent = torch.randint(order, (200_000,), generator=generator())
        bits, indices = ours.bits[sent].float().reshape(1, -1), sent.numpy()
        mapper, n0 = Mapper(constellation=theirs), torch.tensor(0.1)
        torch.testing.assert_close(ours.modulate(sent), mapper(bits)[0])
        mapping = {
            "semlink": lambda ours=ours, sent=sent: ours.modulate(sent),
            "sionna": lambda mapper=mapper, bits=bits: mapper(bits),
            "komm": lambda other=other, indices=indices: other.indices_to_symbols(indices),
        }
        found.append(Row(f"{order}-QAM mapping", 1.2, fastest(mapping)))
        y = phy.AWGN()(ours.modulate(sent)[None], 10.0, generator(1)).symbols
        hard, column = Demapper("maxlog", constellation=theirs, hard_out=True), y[0].numpy()[:, None]
        assert torch.equal(ours.bits[ours.demodulate(y)].float().flatten(), hard(y, n0).flatten())
        deciding = {
            "semlink": lambda ours=ours, y=y: ours.demodulate(y),
            "sionna": lambda hard=hard, y=y, n0=n0: hard(y, n0),
            "komm": lambda other=other, column=column: other.closest_indices(column.ravel()),
        }
        found.append(Row(f"{order}-QAM hard decisions", 1.2, fastest(deciding)))
        soft = Demapper("app", constellation=theirs)
        torch.testing.assert_close(ours.llr(y, 0.1).flatten(), soft(y, n0).flatten(), rtol=1e-3, atol=2e-3)
        weighing = {
            "semlink": lambda ours=ours, y=y: ours.llr(y, 0.1),
            "sionna": lambda soft=soft, y=y, n0=n0: soft(y, n0),
        }
        found.append(Row(f"{order}-QAM LLRs", 4.0, fastest(weighing)))
    return found


def quality() -> list[Row]:
    """SSIM and PSNR of 1,000 pairs of 32 x 32 colour images, each by itself."""
    x = torch.rand(1000, 3, 32, 32, generator=generator())
    y = (x + 0.1 * torch.randn(x.shape, generator=generator(1))).clamp(0, 1)
    arrays = list(zip(x.numpy(), y.numpy(), strict=True))
    wang = {
        "gaussian_weights": True,
        "use_sample_covariance": False,
        "sigma": 1.5,
        "data_range": 1.0,
        "channel_axis": 0,
    }

    def by_torchmetrics() -> object:
        return structural_similarity_index_measure(y, x, data_range=1.0, reduction="none")

    def by_scikit_image() -> Any:
        return [structural_similarity(a, b, **wang) for a, b in arrays]

    np.testing.assert_allclose(ssim(x, y), by_scikit_image(), atol=1e-4)
    works = {"semlink": lambda: ssim(x, y), "torchmetrics": by_torchmetrics, "scikit-image": by_scikit_image}
    found = [Row("SSIM, 1,000 images 3 x 32 x 32", 3.0, fastest(works, 3))]
    dims = (1, 2, 3)

    def psnr() -> Tensor:
        return peak_signal_noise_ratio(y, x, data_range=1.0, reduction="none", dim=dims)

    torch.testing.assert_close(psnr_db(x, y), psnr())
    found.append(Row("PSNR of the same", 1.0, fastest({"semlink": lambda: psnr_db(x, y), "torchmetrics": psnr})))
    return found


def leakage() -> list[Row]:
    """MI leakage over 10,000 pairs, null and interval; by scikit-learn score by score, scaled up from 100 pairs."""
    x = torch.rand(10_000, 3, 32, 32, generator=generator())
    y = (x + 0.2 * torch.randn(x.shape, generator=generator(1))).clamp(0, 1)
    few = 100
    a, b = ((255 * each[:few]).round().byte().flatten(2).numpy() // 8 for each in (x, y))  # 32 bins

    def ours() -> object:
        return mean_interval(mi_leakage(x, y) - mi_null(x, y, generator(2)))

    def scores(partner: Sequence[int]) -> list[float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 32 labels look continuous to it
            return [mutual_info_score(a[i, c], b[j, c]) for i, j in enumerate(partner) for c in range(3)]

    def theirs() -> object:
        return np.array(scores(range(few))) - np.array(scores([*range(1, few), 0]))

    # Miller and Madow's correction, which scikit-learn has not, is a matter of occupied bins.
    both = [a.reshape(3 * few, -1), b.reshape(3 * few, -1)]
    used = [[len(np.unique(each)) for each in rows] for rows in (*both, 32 * both[0].astype(int) + both[1])]
    correction = (np.array(used[0]) + used[1] - np.array(used[2]) - 1) / (2 * 32 * 32)
    known = (np.array(scores(range(few))) + correction).reshape(few, 3).mean(1) / np.log(2)
    np.testing.assert_allclose(mi_leakage(x[:few], y[:few]), known, rtol=1e-4)
    seconds = fastest({"semlink": ours, "scikit-learn": theirs}, 5)
    seconds["scikit-learn"] *= len(x) / few
    return [Row("MI leakage, 10,000 pairs, null and interval", 100.0, seconds)]


def evaluation() -> list[Row]:
    """Evaluation over 5 SNRs and 10 noise draws of 500 images: encoded once, or the whole link each time."""
    link = semlink.create("deepjscc", data="cifar10", channel_uses=64)
    link.scheme.eval()
    images, device = torch.rand(500, 3, 32, 32, generator=generator()), torch.device("cpu")
    test = links.data.ImageSet((255 * images).round().byte(), torch.zeros(500, dtype=torch.int64))
    shown, grid = test.batch(torch.arange(500))[0], [4.0, 8.0, 12.0, 16.0, 20.0]

    def ours() -> object:
        return evaluator.measure(link, test, grid, 10, 0, device)

    def whole() -> list[Tensor]:
        noise = seeded(0, "plain")
        return [link.deliver(shown, snr_db, noise) for snr_db in grid for _ in range(10)]

    receiver = torch.no_grad()(lambda: link.receive(link.channel(sent.symbols, 12.0, generator()), sent.header))
    sent = link.transmit(shown)
    share = fastest({"whole": lambda: link.deliver(shown, 12.0, generator()), "receiver": receiver}, 3)
    most = 1 / (share["receiver"] / share["whole"] + 1 / 50)
    said = f"evaluation, 5 SNRs x 10 draws (receiver {100 * share['receiver'] / share['whole']:.0f} % of a pass)"
    return [Row(said, 0.8 * most, fastest({"semlink": ours, "whole link each time": whole}, 2))]


def designs() -> list[Row]:
    """Min-max MSE transceivers, 8,192 channels of 2 x 2 antennas, eager and compiled; Clarabel's are scaled up."""
    found = []
    for users, snr_db in transceivers.CASES:
        H = transceivers.channels(users, transceivers.OURS, 0)
        theirs, a_second = transceivers.reference(users, snr_db, transceivers.THEIRS, 0, transceivers.TIMES)
        for compiled, target in ((False, 50.0), (True, 700.0)):
            design = functools.partial(phy.minimise_max_mse, H, snr_db, compiled=compiled)
            worse = design().mse[: transceivers.THEIRS].amax(1).numpy() - theirs  # compiles
            assert worse.mean() <= 0.01 * theirs.mean() + 3 * worse.std() / len(worse) ** 0.5, "a worse design"
            seconds = {
                "semlink": transceivers.timed(design, transceivers.TIMES),
                "Clarabel": transceivers.OURS / a_second,
            }
            said = f"transceivers, K = {users}, {snr_db:.0f} dB, {'compiled' if compiled else 'eager'}"
            found.append(Row(said, target, seconds))
    return found


def start() -> list[Row]:
    """The start of the command line; its target is seconds more than Python's own."""

    def run(*words: str) -> Work:
        return lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    works = {"semlink": run(sys.executable, "-m", "semlink.cli", "--help"), "python": run(sys.executable, "-c", "pass")}
    return [Row("semlink --help", None, fastest(works, 5))]


TABLE = {each.__name__: (each, 1) for each in (channels, constellations, quality, leakage, evaluation, start, designs)}
TABLE |= {each.__name__: (each, 2) for each in (trainings.links_steps, trainings.attack_step, trainings.irsc_epoch)}


def main() -> int:
    """Measure each part in a process of its own, print, and write the record if asked to.

    The exit status is 1 if a target is missed. A record that lies there, if it is of this machine and of these
    libraries, keeps the rows of parts that are left out.
    """
    parser = argparse.ArgumentParser(description="How fast next to others.")
    parser.add_argument("--rows", nargs="*", choices=TABLE, default=list(TABLE), help="parts of the table")
    parser.add_argument("--out", type=Path, help="folder that takes the record, one of each kind of processor")
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    given = parser.parse_args()
    if given.here:
        (name,) = given.rows
        part, threads = TABLE[name]
        torch.set_flush_denormal(True)  # both as the command line does; the others gain by it too
        keep_memory()
        torch.set_num_threads(threads)
        print(json.dumps([asdict(row) | {"peer": row.peer, "ratio": round(row.ratio, 2)} for row in part()]))
        return 0
    out = given.out and given.out / f"cpu-{capability().lower().replace(' ', '-')}.json"
    machine = describe_machine(torch.device("cpu")) | {"capability": capability()}
    machine.pop("threads")  # every row has its own
    held = {"machine": machine, "libraries": {each: version(each) for each in LIBRARIES}}
    parts, measured = {}, {}
    if out and out.exists() and set(given.rows) != set(TABLE):
        record = json.loads(out.read_text())
        if held != {name: record.get(name) for name in held}:
            parser.error(f"{out} is of another machine or of other libraries: measure all rows, or another --out")
        parts, measured = record["parts"], record["measured"]
    print(f"{'work':58}{'semlink':>12}{'best peer':>14}  {'peer':22}{'ratio':>8}{'at least':>10}")
    for name in given.rows:
        run = subprocess.run([sys.executable, __file__, "--here", "--rows", name], stdout=subprocess.PIPE, check=True)
        parts[name], measured[name] = json.loads(run.stdout.splitlines()[-1]), datetime.now(UTC).date().isoformat()
        for row in parts[name]:
            ours, theirs = (f"{1e3 * row['seconds'][side]:,.1f} ms" for side in ("semlink", row["peer"]))
            target = "" if row["target"] is None else f"{row['target']:.1f}"
            print(
                f"{row['work']:58}{ours:>12}{theirs:>14}  {row['peer']:22}{row['ratio']:8.1f}{target:>10}", flush=True
            )
    if out:
        order = [name for name in TABLE if name in parts]
        said = held | {
            "measured": {name: measured[name] for name in order},
            "parts": {name: parts[name] for name in order},
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(said, indent=1) + "\n")
    rows = [row for name in given.rows for row in parts[name]]
    return int(any(row["target"] is not None and row["ratio"] < row["target"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
