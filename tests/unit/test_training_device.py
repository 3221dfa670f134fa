# SPDX-License-Identifier: Apache-2.0
"""Device and precision: resolved by name and by the processor's flags, and what a record says of the machine."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from semlink._errors import SemlinkError
from semlink.training import describe_machine, device, resolve_device, resolve_precision

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch):
    """Pretend that there are two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return monkeypatch


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_a_machine_without_gpu(no_cuda):
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    for name in ("cuda", "cuda:0"):
        with pytest.raises(
            SemlinkError, match=f"device '{name}' is not there: this machine has 0 CUDA devices; use cpu"
        ):
            resolve_device(name)


def test_a_machine_with_gpus(cuda):
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(SemlinkError, match="device 'cuda:2' is not there: this machine has 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    "name", ["", "gpu", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cuda:N", "cuda:0 "]
)
def test_what_is_no_device(cuda, name):
    with pytest.raises(SemlinkError, match=r"unknown device .*; use auto, cpu, cuda or cuda:N") as caught:
        resolve_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("fpu avx2 avx512f amx_tile amx_bf16 amx_int8", True),
        ("fpu avx2 avx512f avx512_bf16", True),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("fpu avx2", False),
    ],
)
def test_bf16_only_where_the_processor_has_it(monkeypatch, flags, fast):
    real = Path.read_text

    def read_text(path, *args, **kwargs):
        return f"flags\t\t: {flags}\n" if str(path) == "/proc/cpuinfo" else real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert device.cpu_has_bf16() is fast
    assert resolve_precision(CPU) == ("bf16" if fast else "fp32")
    assert resolve_precision(CPU, "bf16") == "bf16"  # an explicit choice is taken
    assert resolve_precision(CPU, "fp32") == "fp32"
    assert describe_machine(CPU)["bf16_in_hardware"] == int(fast)


def test_a_system_that_does_not_tell_gets_fp32(monkeypatch):
    def read_text(path, *args, **kwargs):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert device.cpu_has_bf16() is False
    assert resolve_precision(CPU) == "fp32"
    assert describe_machine(CPU)["processor"]


def test_a_gpu_takes_bf16_where_it_can(monkeypatch):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)
    for supported, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert resolve_precision(torch.device("cuda")) == precision


@pytest.mark.parametrize("name", ["fp8", "bf32", "", "BF16"])
def test_what_is_no_precision(name):
    with pytest.raises(SemlinkError, match=r"unknown precision .*known: auto, bf16, fp32"):
        resolve_precision(CPU, name)


def test_the_machine_is_described_but_not_named():
    import getpass
    import platform

    said = describe_machine(CPU)
    assert said["device"] == "cpu"
    assert said["threads"] == torch.get_num_threads()
    assert said["torch"] == torch.__version__
    words = json.dumps(said)
    assert platform.node() not in words
    assert str(Path.home()) not in words
    assert getpass.getuser() not in said.values()


@pytest.mark.parametrize("by", ["semlink.training.keep_memory()", "semlink.cli.common.device_for('cpu')"])
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_memory_of_large_tensors_is_kept_for_the_next(by):
    check = f"""
import resource
import torch
import semlink.cli.common, semlink.training
def faults():
    for _ in range(5):
        torch.zeros(10_000_000)
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.zeros(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun
before = faults()
{by}
print(before, faults())
"""
    run = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    before, after = map(int, run.stdout.split())
    assert after < before / 10
