# SPDX-License-Identifier: Apache-2.0
"""Normal numbers of the compiled program: torch's, to the last bit, or torch's itself."""

import itertools
import math
import multiprocessing
import os
import shutil
import threading

import pytest
import torch

from semlink.phy import AWGN, native, normals

STEP = 2.0**-24  # between two uniform numbers


@pytest.fixture
def program():
    """What stands in for torch: there where torch draws with AVX2 as it does here, and a compiler is at hand."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no compiler")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch draws otherwise on this processor")
    found = normals._program()
    assert found is not None
    return found


@pytest.fixture
def eager(monkeypatch):
    """Use the program from the first number on, and build it anew before and after."""
    monkeypatch.setattr(normals, "MANY", 0)
    normals._program.cache_clear()
    yield
    normals._program.cache_clear()
    native._build.cache_clear()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32)


@pytest.mark.parametrize("count", [16, 17, 31, 623, 624, 625, 2047, 2049, 2063, 9984, 100_003])
@pytest.mark.parametrize("scale", [1.0, 0.2236, 0.0, 1e-30, 1e30])
def test_program_draws_as_torch_does(program, count, scale):
    ours, theirs = seeded(count), seeded(count)
    for _ in range(3):  # on from wherever the last draw ended
        numbers = torch.empty(count)
        program(numbers, scale, ours)
        assert torch.equal(bits(numbers), bits(torch.empty(count).normal_(0, scale, generator=theirs)))
        assert torch.equal(ours.get_state(), theirs.get_state())
        assert torch.equal(torch.rand(5, generator=ours), torch.rand(5, generator=theirs))


def test_program_draws_as_torch_does_for_long(program):
    ours, theirs, numbers = seeded(1), seeded(1), torch.empty(2**22)
    for _ in range(8):  # 32 million numbers: all but a seventh of the 2^24 that a radius and an angle can come from
        program(numbers, 1.0, ours)
        assert torch.equal(bits(numbers), bits(torch.empty_like(numbers).normal_(generator=theirs)))


def test_program_at_the_ends_of_radius_and_of_octants(program):
    """Uniform numbers that chance would hardly bring, by writing the words that make them into the state."""
    turns = [round(k / 8 / STEP) + step for k in range(9) for step in (-1, 0, 1)]
    angles = [turn for turn in turns if 0 <= turn < 2**24]
    radii = [0, 1, 2, 2**23 - 1, 2**23, 4_913_933, 4_913_934, 2**24 - 2, 2**24 - 1]  # two about 1 - sqrt(1/2)
    pairs = list(itertools.product(radii, angles))
    seen = []
    for begin in range(0, len(pairs), 304):
        words = torch.zeros(608, dtype=torch.int64)
        for at, (radius, angle) in enumerate(pairs[begin : begin + 304]):
            block, place = divmod(at, 8)
            words[16 * block + place], words[16 * block + 8 + place] = untempered(radius), untempered(angle)
        numbers = torch.empty(len(words))
        program(numbers, 1.0, about_to_give(words))
        assert torch.equal(bits(numbers), bits(torch.empty_like(numbers).normal_(generator=about_to_give(words))))
        seen.append(torch.rand(len(words), generator=about_to_give(words)).view(-1, 2, 8))
    uniform = torch.cat(seen)
    assert {round(u.item() / STEP) for u in uniform[:, 0].flatten()} >= set(radii)
    assert {round(u.item() / STEP) for u in uniform[:, 1].flatten()} >= set(angles)


def about_to_give(words: torch.Tensor) -> torch.Generator:
    """Return a generator whose next words are ``words``, at most 623, before tempering."""
    generator = seeded(0)
    torch.rand(1, generator=generator)  # fills its state with 624, of which it takes the first
    state = generator.get_state()
    state[32 : 32 + 8 * len(words)] = words.view(torch.uint8)
    generator.set_state(state)
    return generator


def untempered(x: int) -> int:
    """Return the word that MT19937's tempering turns into ``x``: each of its steps, done often enough, is undone."""
    steps = [
        (lambda x: x ^ x >> 18, 1),
        (lambda x: x ^ x << 15 & 0xEFC60000, 1),
        (lambda x: x ^ x << 7 & 0x9D2C5680, 7),
        (lambda x: x ^ x >> 11, 3),
    ]
    for step, times in steps:
        for _ in range(times):
            x = step(x)
    return x


def test_normals_compile_once_a_process_has_drawn_many(monkeypatch):
    built = []
    monkeypatch.setattr(native, "build", lambda name: built.append(name) or "not now")
    monkeypatch.setattr(normals, "MANY", 10_000)
    monkeypatch.setattr(normals._Tally, "drawn", 0)
    normals._program.cache_clear()
    try:
        for count, wanted in ((9_000, 0), (1_000, 0), (1_024, 0), (1_025, 1), (1_025, 1)):
            normals.normals((count,), 1.0, seeded(0))
            assert len(built) == wanted
    finally:
        normals._program.cache_clear()


@pytest.mark.usefixtures("program", "eager")
def test_channel_is_the_same_with_the_program_and_without(monkeypatch):
    x = torch.zeros(40, 64, dtype=torch.complex64)
    fast, slow = seeded(3), seeded(3)
    levels = torch.linspace(0, 20, 40)
    found = [AWGN()(x, level, fast).symbols for level in (10.0, levels)]
    assert normals._program.cache_info().currsize == 1
    monkeypatch.setattr(normals, "MANY", 2**62)
    for ours, level in zip(found, (10.0, levels), strict=True):
        assert torch.equal(ours, AWGN()(x, level, slow).symbols)
    assert torch.equal(fast.get_state(), slow.get_state())


@pytest.mark.usefixtures("eager")
def test_normals_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    native._build.cache_clear()
    drawn = normals.normals((50, 50), 2.0, seeded(4))
    assert normals._program() is None
    assert torch.equal(drawn, torch.empty(50, 50).normal_(0, 2.0, generator=seeded(4)))


@pytest.mark.parametrize("fault", ["number", "state"])
def test_a_program_that_draws_otherwise_is_not_used(program, fault):
    def other(numbers: torch.Tensor, scale: float, generator: torch.Generator) -> None:
        program(numbers, scale, generator)
        if len(numbers) == 1031 and fault == "number":
            numbers[-1] = numbers[-1].nextafter(torch.tensor(9.0))
        if len(numbers) == 1031 and fault == "state":
            torch.rand(1, generator=generator)

    assert normals._agrees(program)
    assert not normals._agrees(other)


@pytest.mark.usefixtures("program", "eager")
def test_threads_that_share_a_generator_draw_different_numbers():
    shared, parts = seeded(5), []

    def draw() -> None:
        parts.extend(normals.normals((2048,), 1.0, shared) for _ in range(50))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = torch.empty(200, 2048)
    again = seeded(5)
    for row in wanted:
        row.normal_(generator=again)
    assert torch.equal(torch.stack(sorted(parts, key=lambda part: part[0].item())), wanted[wanted[:, 0].argsort()])


@pytest.mark.usefixtures("program", "eager")
def test_threads_draw_few_and_many_numbers_from_one_generator():
    shared, found = seeded(6), {16: [], 65_536: []}

    def draw(count: int, times: int) -> None:
        found[count].extend(normals.normals((count,), 1.0, shared) for _ in range(times))

    threads = [threading.Thread(target=draw, args=words) for words in ((16, 1500), (65_536, 50))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torch.isin(torch.stack(found[16]), torch.cat(found[65_536])).all(1).any()


@pytest.mark.usefixtures("program", "eager")
@pytest.mark.parametrize(
    "elsewhere", [lambda: torch.set_default_dtype(torch.bfloat16), lambda: torch.set_default_device("meta")]
)
def test_normals_do_not_depend_on_what_torch_makes_by_default(elsewhere):
    wanted = torch.empty(5000).normal_(0, 0.5, generator=seeded(8))
    try:
        elsewhere()
        drawn = normals.normals((5000,), 0.5, seeded(8))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("cpu")
    assert normals._program() is not None
    assert torch.equal(drawn, wanted)


@pytest.mark.usefixtures("program", "eager")
def test_channels_work_in_transforms_of_functions():
    x = torch.ones(1, 2048, dtype=torch.complex64)

    def energy(scale: torch.Tensor) -> torch.Tensor:
        return AWGN()(scale * x, 10.0, seeded(9)).symbols.abs().square().sum()

    at = torch.tensor(2.0, requires_grad=True)
    (wanted,) = torch.autograd.grad(energy(at), at)
    assert normals._program() is not None
    torch.testing.assert_close(torch.func.grad(energy)(torch.tensor(2.0)), wanted)


@pytest.mark.usefixtures("program", "eager")
@pytest.mark.parametrize("scale", [-1.0, math.nan])
def test_what_is_no_deviation_is_refused_as_by_torch(scale):
    with pytest.raises(RuntimeError, match="std >= 0"):
        normals.normals((5000,), scale, seeded(0))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_that_is_forked_while_a_lock_is_held_can_take_it():
    lock, taken, let_go = native.Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            let_go.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    child = multiprocessing.get_context("fork").Process(target=lock.__enter__)
    child.start()
    child.join(20)
    let_go.set()
    holder.join()
    child.kill()
    assert child.exitcode == 0
    with lock:
        pass
