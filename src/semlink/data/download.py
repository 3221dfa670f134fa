# SPDX-License-Identifier: Apache-2.0
"""Downloads from the authors' addresses: verified, shown on screen, whole or absent."""

import logging
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import TYPE_CHECKING, Any

from semlink._errors import SemlinkError, check_name
from semlink._files import sha256_file
from semlink.data.inventory import check
from semlink.data.sources import (
    DOWNLOADS,
    FACTS,
    FILES,
    SUPPLIED,
    Download,
    Published,
    damaged,
    data_root,
    folder,
)
from semlink.data.workshop import workshop

if TYPE_CHECKING:
    from rich.progress import Progress


def fetch(name: str, progress: bool = True) -> Path:
    """Download what is missing or damaged of a set, and return its folder.

    Args:
        name: a data set, or "weights".
        progress: show a progress bar on the standard error stream.

    Raises:
        SemlinkError: the name is unknown; no address delivers the published bytes; the folder cannot be written; the
            set is one its users must supply and is not complete (``instructions(name)`` has all details).
    """
    check_name("data set", name, FACTS)
    statuses = check(name)
    faults = [found for found in statuses if found.state != "ok"]
    if name == "digits":
        if faults:
            raise SemlinkError(faults[0].detail)
        return statuses[0].path.parent
    if faults and name in SUPPLIED:
        raise SemlinkError(f"{faults[0].path} is {faults[0].state}; {SUPPLIED[name].summary(folder(name))}")
    if faults:
        with workshop(folder(name)) as scratch, _bars(progress) as bars:
            _complete(name, scratch, bars)
    return folder(name)


def fetch_file(address: str, sha256: str, path: Path, otherwise: str) -> Path:
    """Return ``path`` with the sum ``sha256``, downloaded from ``address`` unless it is there.

    Args:
        address: a file by http or https.
        sha256: 64 hex digits.
        path: where the file belongs; its folder is made.
        otherwise: what to do where there is no network; the end of the error.

    Raises:
        SemlinkError: ``address`` does not deliver these bytes; the folder cannot be written.
    """

    def lacking() -> bool:
        return not path.is_file() or sha256_file(path) != sha256

    if lacking():
        with workshop(path.parent) as scratch:
            if lacking():  # another process may have fetched the file while this one waited for the workshop
                _download(Download((address,), sha256), path.name, scratch, None, otherwise).replace(path)
    return path


def _complete(name: str, scratch: Path, bars: "Progress | None") -> None:
    # Looked up again: another process may have fetched the files while this one waited for the workshop.
    lacking = [file for file, found in zip(FILES[name], check(name), strict=True) if found.state != "ok"]
    otherwise = f"put the files into {folder(name)} yourself"
    for download in DOWNLOADS[name]:
        title = PurePosixPath(download.addresses[0]).name
        if title.endswith(".tar.gz"):
            if lacking:
                archive = _download(download, title, scratch, bars, otherwise)
                for file, path in _extract(name, archive, lacking, scratch):
                    path.replace(data_root() / file.path)
        else:
            for file in lacking:
                if PurePosixPath(file.path).name == title:
                    _download(download, title, scratch, bars, otherwise).replace(data_root() / file.path)


def _download(download: Download, title: str, scratch: Path, bars: "Progress | None", otherwise: str) -> Path:
    """Return the path of a file in ``scratch`` with the published sum, from the first address that delivers it."""
    import pooch
    from requests import RequestException

    pooch.get_logger().setLevel(logging.WARNING)  # its notes would tear the progress bar
    failures = []
    for address in download.addresses:
        # Any: pooch documents progress bars of one's own, but infers bool for them. Without "identity" some servers
        # announce .gz files as compressed transfers, which arrive unpacked.
        bar: Any = _Bar(bars, title) if bars else False
        downloader: Any = pooch.HTTPDownloader(
            progressbar=bar, chunk_size=1 << 16, timeout=30, headers={"Accept-Encoding": "identity"}
        )
        try:
            return Path(pooch.retrieve(address, f"sha256:{download.sha256}", title, scratch, downloader=downloader))
        except RequestException as error:
            failures.append(f"{address}: {_reason(error)}")
        except ValueError:
            failures.append(f"{address}: the bytes received have not the published SHA-256")
    raise SemlinkError(f"cannot download {'; '.join(failures)}; nothing was kept: try again later, or {otherwise}")


def _reason(error: Exception) -> str:
    """Return why a transfer failed, in a few words: the messages of requests repeat the address and whole objects."""
    from requests import ConnectionError as NoConnection
    from requests import HTTPError, Timeout
    from requests.exceptions import ChunkedEncodingError

    if isinstance(error, HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, Timeout):
        return "the server does not answer in time"
    if isinstance(error, ChunkedEncodingError):
        return "the transfer broke off"
    if isinstance(error, NoConnection):
        return "no connection"
    return " ".join(str(error).split())


def _extract(name: str, archive: Path, wanted: list[Published], scratch: Path) -> Iterator[tuple[Published, Path]]:
    """Yield each wanted file of a .tar.gz archive and where it was unpacked, all of them verified first.

    Only regular members with the published paths are read, into names of our own: whatever paths, links or devices
    an archive may hold, nothing is written elsewhere.
    """
    unpacked: dict[Published, Path] = {}
    by_path = {file.path: file for file in wanted}
    try:
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                file = by_path.get(str(PurePosixPath(member.name)))
                stream = members.extractfile(member) if file and member.isreg() else None
                if file is None or stream is None:
                    continue
                path = scratch / PurePosixPath(file.path).name
                with stream, path.open("wb") as target:
                    copyfileobj(stream, target, 1 << 20)
                unpacked[file] = path
    except (tarfile.TarError, EOFError, zlib.error):
        raise damaged(name, archive, "is a damaged archive", "a gzip-compressed tar file") from None
    for file in wanted:
        if file not in unpacked or sha256_file(unpacked[file]) != file.sha256:
            raise damaged(name, archive, f"does not hold {file.path} as published", f"SHA-256 {file.sha256[:16]}...")
    yield from unpacked.items()


@contextmanager
def _bars(wanted: bool) -> "Iterator[Progress | None]":
    if not wanted:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        yield bars


class _Bar:
    """One line of a rich display, with the four members pooch expects of a progress bar."""

    def __init__(self, bars: "Progress", title: str) -> None:
        self._bars = bars
        self._task = bars.add_task(title, total=None)
        self._total: float | None = None

    @property
    def total(self) -> float | None:
        return self._total

    @total.setter
    def total(self, size: float) -> None:
        self._total = size or None  # 0 where the server does not tell
        self._bars.update(self._task, total=self._total)

    def update(self, count: int) -> None:
        self._bars.advance(self._task, count)

    def reset(self) -> None:
        self._bars.reset(self._task, total=self._total)

    def close(self) -> None:
        self._bars.refresh()
