# SPDX-License-Identifier: Apache-2.0
"""Downloads from a server on this machine that can break off, lie, stall and be absent."""

import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from semlink import data
from semlink._errors import SemlinkError
from semlink.data import sources
from semlink.data.sources import Download, Published

CONTENT = {f"part{k}-ubyte": bytes([k]) * 300_000 + os.urandom(200_000) for k in (1, 2)}
PACKED = {f"{name}.gz": gzip.compress(content) for name, content in CONTENT.items()}


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``spoil`` may change what is sent, in the length announced, and how far."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.spoil: Callable[[bytes], tuple[bytes, int]] = lambda body: (body, len(body))
        self.stall = False
        self.asked: list[str] = []
        self.sent_half = threading.Event()
        self.base = f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.server.files.get(self.path.removeprefix("/"))
        if body is None:
            self.send_error(404)
            return
        body, announced = self.server.spoil(body)
        self.send_response(200)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        if self.server.stall:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.server.sent_half.set()
            self.rfile.read()  # until the client is gone
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        running.files = dict(PACKED)
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def register(base: str) -> None:
    """Stand-ins for the tables of "mnist", offered at ``base``."""
    sources.FILES["mnist"] = tuple(
        Published(f"mnist/{name}.gz", len(content), hashlib.sha256(content).hexdigest())
        for name, content in CONTENT.items()
    )
    sources.DOWNLOADS["mnist"] = tuple(
        Download((base + name,), hashlib.sha256(packed).hexdigest()) for name, packed in PACKED.items()
    )


@pytest.fixture
def root(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEMLINK_DATA", str(tmp_path))
    for table in (sources.FILES, sources.DOWNLOADS):
        for name in ("mnist", "cifar10"):
            monkeypatch.setitem(table, name, table[name])  # restored afterwards
    register(server.base)
    return tmp_path


def kept(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != "lock")


def failure(name: str = "mnist") -> str:
    with pytest.raises(SemlinkError) as error:
        data.fetch(name, progress=False)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_arrive_whole_and_only_once(root: Path, server: Server) -> None:
    assert data.fetch("mnist", progress=False) == root / "mnist"
    assert kept(root) == ["mnist/part1-ubyte.gz", "mnist/part2-ubyte.gz"]
    assert [found.state for found in data.check("mnist")] == ["ok", "ok"]
    assert sorted(server.asked) == ["/part1-ubyte.gz", "/part2-ubyte.gz"]
    assert data.fetch("mnist", progress=False) == root / "mnist"
    assert len(server.asked) == 2


def test_progress_reaches_the_size_of_every_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.fetch("mnist", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    for name, packed in PACKED.items():
        assert name in shown.err
        size = f"{len(packed) / 1000:.1f}"
        assert f"{size}/{size}" in shown.err


def test_only_what_is_damaged_or_missing_is_fetched(root: Path, server: Server) -> None:
    data.fetch("mnist", progress=False)
    (root / "mnist" / "part2-ubyte.gz").write_bytes(PACKED["part2-ubyte.gz"][:-9])
    server.asked.clear()
    data.fetch("mnist", progress=False)
    assert server.asked == ["/part2-ubyte.gz"]
    assert [found.state for found in data.check("mnist")] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda body: (body[: len(body) // 2], len(body)), "the transfer broke off"),
        (lambda body: (body[: len(body) // 2], len(body) // 2), "have not the published SHA-256"),
        (lambda body: (body[:-1] + b"!", len(body)), "have not the published SHA-256"),
        (lambda body: (b"<html>sorry</html>", 18), "have not the published SHA-256"),
        (lambda body: (b"", 0), "have not the published SHA-256"),
    ],
    ids=["broken off", "short", "changed", "page", "empty"],
)
def test_a_bad_transfer_leaves_nothing(root: Path, server: Server, spoil: Callable, reason: str) -> None:
    server.spoil = spoil
    text = failure()
    assert reason in text
    assert f"{server.base}part1-ubyte.gz" in text
    assert kept(root) == []


def test_a_bad_transfer_leaves_the_old_file(root: Path, server: Server) -> None:
    data.fetch("mnist", progress=False)
    damaged = root / "mnist" / "part1-ubyte.gz"
    damaged.write_bytes(b"old")
    server.spoil = lambda body: (body[:100], len(body))
    failure()
    assert damaged.read_bytes() == b"old"


def test_absent_file_and_absent_server(root: Path, server: Server) -> None:
    server.files.clear()
    assert "the server answers 404 Not Found" in failure()
    register("http://127.0.0.1:9/")
    assert "no connection" in failure()
    assert kept(root) == []


def test_the_second_address_is_used_when_the_first_fails(root: Path, server: Server) -> None:
    sources.DOWNLOADS["mnist"] = tuple(
        Download((server.base + "gone/" + Path(d.addresses[0]).name, *d.addresses), d.sha256)
        for d in sources.DOWNLOADS["mnist"]
    )
    data.fetch("mnist", progress=False)
    assert [found.state for found in data.check("mnist")] == ["ok", "ok"]


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_half_way(root: Path, server: Server, kill: signal.Signals) -> None:
    server.stall = True
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_data_download as t\n"
        "from semlink.data import fetch, sources\n"
        f"t.CONTENT, t.PACKED = {dict.fromkeys(CONTENT, b'')!r}, {PACKED!r}\n"
        f"t.register({server.base!r}); fetch('mnist', progress=False)\n"
    )
    child = subprocess.Popen([sys.executable, "-"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdin is not None
    child.stdin.write(code.encode())
    child.stdin.close()
    assert server.sent_half.wait(60)
    child.send_signal(kill)
    child.wait(30)
    assert {found.state for found in data.check("mnist")} == {"missing"}
    assert [path for path in kept(root) if not path.startswith("mnist/.semlink/")] == []
    if kill == signal.SIGINT:
        assert kept(root) == []
    server.stall = False
    data.fetch("mnist", progress=False)
    assert kept(root) == ["mnist/part1-ubyte.gz", "mnist/part2-ubyte.gz"]


def test_two_at_once_wait_for_each_other(root: Path, server: Server) -> None:
    threads = [threading.Thread(target=data.fetch, args=("mnist", False)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [found.state for found in data.check("mnist")] == ["ok", "ok"]
    assert len(server.asked) == 2


def test_a_place_that_cannot_be_written(root: Path) -> None:
    (root / "mnist").write_text("in the way")
    assert f"cannot write in {root / 'mnist'}" in failure()


def test_a_full_disk_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pooch, "retrieve", full)
    assert "No space left on device" in failure()
    assert kept(root) == []


def archive(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


BATCHES = {f"cifar-10-batches-bin/{name}.bin": os.urandom(3_073) for name in ("data_batch_1", "test_batch")}


def offer(server: Server, packed: bytes) -> None:
    server.files["cifar-10-binary.tar.gz"] = packed
    sources.FILES["cifar10"] = tuple(
        Published(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in BATCHES.items()
    )
    sources.DOWNLOADS["cifar10"] = (
        Download((server.base + "cifar-10-binary.tar.gz",), hashlib.sha256(packed).hexdigest()),
    )


def test_archive_is_unpacked_and_removed(root: Path, server: Server) -> None:
    offer(server, archive({"cifar-10-batches-bin/readme.html": b"hello", **BATCHES}))
    assert data.fetch("cifar10", progress=False) == root / "cifar-10-batches-bin"
    assert kept(root) == sorted(BATCHES)
    assert [found.state for found in data.check("cifar10")] == ["ok", "ok"]


def test_archive_writes_nothing_elsewhere(root: Path, server: Server) -> None:
    evil = {"../escaped.bin": b"x", str(root / "absolute.bin"): b"x", "other/data_batch_1.bin": b"x"}
    offer(server, archive({**evil, **BATCHES}, links={"cifar-10-batches-bin/l": str(root)}))
    data.fetch("cifar10", progress=False)
    assert kept(root) == sorted(BATCHES)
    assert not (root.parent / "escaped.bin").exists()


@pytest.mark.parametrize("fault", ["missing", "changed", "link", "no archive"])
def test_archive_without_the_published_files_leaves_nothing(root: Path, server: Server, fault: str) -> None:
    path = "cifar-10-batches-bin/test_batch.bin"
    rest = {name: content for name, content in BATCHES.items() if name != path}
    offer(
        server,
        {
            "missing": archive(rest),
            "changed": archive({**BATCHES, path: b"x" * 3_073}),
            "link": archive(rest, links={path: "/etc/hostname"}),
            "no archive": archive(BATCHES)[:200],
        }[fault],
    )
    assert "semlink data fetch cifar10" in failure("cifar10")
    assert kept(root) == []


def test_celeba_and_weights_are_explained_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMLINK_DATA", str(tmp_path))
    text = failure("celeba")
    for needed in ("non-commercial research only", "redistributing", "img_align_celeba/", str(tmp_path / "celeba")):
        assert needed in text
    assert "9c1a4f1ca89334254d5e1801e594fac4c3b373a8a941e85d97716b7b4ed02410" in failure("weights")
    for name in ("celeba", "weights"):
        full = data.instructions(name)
        assert full is not None
        assert str(tmp_path / name) in full
    assert data.instructions("cifar10") is None
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_digits_need_no_download() -> None:
    assert data.fetch("digits", progress=False).is_dir()


def test_unknown_name() -> None:
    assert "did you mean 'celeba'" in failure("celebA")


def test_every_address_belongs_to_published_files() -> None:
    """The tables agree with each other: every file is offered, by name or in an archive."""
    assert set(sources.DOWNLOADS) | set(sources.SUPPLIED) == set(sources.FILES)
    for name, downloads in sources.DOWNLOADS.items():
        offered = {Path(address).name for download in downloads for address in download.addresses}
        assert all(Path(file.path).name in offered or name == "cifar10" for file in sources.FILES[name])
