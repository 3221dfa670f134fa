# SPDX-License-Identifier: Apache-2.0
"""The exported names, the arrows between rooms, and what an import costs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import semlink
from semlink._errors import SemlinkError, check_name
from semlink._registry import Registry

SOURCE = Path(semlink.__file__).parent


def test_exported_names():
    assert semlink.__all__ == [
        "Key",
        "Link",
        "SemlinkError",
        "__version__",
        "attacks",
        "channels",
        "cost",
        "create",
        "load",
        "register_scheme",
        "schemes",
    ]
    assert all(getattr(semlink, name) is not None for name in semlink.__all__)
    with pytest.raises(AttributeError, match="no attribute 'metric'"):
        semlink.metric  # noqa: B018


def test_keys():
    assert {"deepjscc", "deepjscc-encryption"} <= set(semlink.schemes.keys())
    decoders = ["inversion", "inversion-plain", "inversion-unet"]
    knowing = ["search-learned", "search-smooth", "set-inversion", "sorted-inversion"]
    first = ["codebook-inversion", "cross-link", "ensemble-inversion", "generative", "inference"]
    assert semlink.attacks.keys() == [*first, *decoders, *knowing]
    assert {"awgn", "interference", "overheard-3", "rayleigh", "rician"} <= set(semlink.channels.keys())


def test_the_example_of_the_package_runs():
    link = semlink.create("deepjscc", data="cifar10", channel="awgn", snr_db=12)
    sent = link.transmit(torch.rand(4, 3, 32, 32))
    assert sent.symbols.shape == (4, 64)
    assert sent.symbols.dtype == torch.complex64
    assert sent.channel_uses == 64
    received = link.channel(sent.symbols, snr_db=12.0, generator=torch.Generator().manual_seed(1))
    assert link.receive(received, sent.header).shape == (4, 10)


def test_a_users_scheme_is_found_everywhere():
    from semlink.schemes import DeepJSCC

    class Mine(DeepJSCC):
        pass

    semlink.register_scheme("test-mine")(Mine)
    assert isinstance(semlink.create("test-mine", preset="smoke").scheme, Mine)
    with pytest.raises(SemlinkError, match="registered already"):
        semlink.register_scheme("test-mine")(Mine)


def test_registry_suggests_the_nearest_key():
    registry: Registry[int] = Registry("thing")
    registry.register("alpha")(1)
    with pytest.raises(SemlinkError, match="unknown thing 'alhpa'; did you mean 'alpha'"):
        registry["alhpa"]
    with pytest.raises(SemlinkError, match="known: none"):
        check_name("thing", "x", [])


@pytest.mark.parametrize("heavy", ["lightning_fabric", "matplotlib", "mlxtend", "pooch", "sklearn", "tyro", "jinja2"])
def test_heavy_libraries_are_imported_where_they_are_used(heavy):
    """All rooms together import none of them; see benchmarks/ for the seconds."""
    rooms = "semlink, semlink.data, semlink.phy, semlink.nn, semlink.metrics, semlink.schemes, semlink.attacks"
    rooms += ", semlink.training, semlink.bench, semlink.report, semlink.cli, sys"
    code = f"import {rooms}; print('{heavy}' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_the_package_and_the_command_line_do_not_import_torch():
    code = "import semlink, semlink.cli, sys; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_every_file_says_its_licence_and_stays_readable():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
        assert text.count("\n") <= 500, path
        assert not re.search(r"^\s*(import|from) (pickle|dill|joblib|torchvision)\b", text, re.MULTILINE), path
