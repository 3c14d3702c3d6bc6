"""What `palisade scan` is given: folders, images and tar shards, of this machine or of an object store (fsspec)."""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast

from gateway.cli.files import MAX_FILE_BYTES, SUFFIXES, Image, files_in, is_image
from gateway.core.decode import recognized
from gateway.errors import ArchiveUnreachable, ConfigError, ImageTooLarge, PalisadeError, PullFailed, UnreadableFile
from gateway.pulling.packages import failing, one_line, package
from gateway.pulling.sources import ADDRESS, refuse_credentials

SHARD_SUFFIX = ".tar"
_HEAD = 16
_AHEAD = 1 << 20


class Blob(Protocol):
    """A file, of this machine or of a store."""

    @property
    def name(self) -> str:
        """The path or the address."""

    def open(self) -> BinaryIO:
        """The bytes, which can be sought in; errors are those of the system or of the store."""

    def read(self, start: int, size: int) -> bytes:
        """At most `size` bytes from `start`; raises `UnreadableFile`."""


@dataclass(frozen=True)
class LocalBlob:
    name: str

    def open(self) -> BinaryIO:
        return Path(self.name).open("rb")

    def read(self, start: int, size: int) -> bytes:
        try:
            with self.open() as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise UnreadableFile(error.strerror or str(error)) from None


@dataclass(frozen=True)
class StoreBlob:
    """`name` is the address; `store` the one that was given, and `path` the object's in its file system.

    An address made of `name` alone would be another one where the path has `::` or `//` in it, or the store is a chain.
    """

    name: str
    store: str
    path: str

    def open(self) -> BinaryIO:
        files, _ = package("fsspec").core.url_to_fs(self.store)
        return cast(BinaryIO, files.open(self.path, "rb", cache_type="readahead", block_size=_AHEAD))

    def read(self, start: int, size: int) -> bytes:
        try:
            with failing(self.name):
                files, _ = package("fsspec").core.url_to_fs(self.store)
                return bytes(files.cat_file(self.path, start=start, end=start + size))
        except (PullFailed, OSError) as error:
            raise UnreadableFile(one_line(error)) from None


@dataclass(frozen=True)
class Part:
    """An image that is a range of a blob: an object of a store, or a member of a shard.

    `changed` is the time of the blob's last change: that of a member inside a tar file says nothing, since many
    writers set it to a constant.
    """

    name: str
    blob: Blob
    start: int
    size: int
    changed: float | None

    def stat(self) -> tuple[int, float | None]:
        """See `gateway.cli.files.Image`."""
        return self.size, self.changed

    def read(self) -> bytes:
        """See `gateway.cli.files.Image`."""
        if self.size > MAX_FILE_BYTES:
            raise ImageTooLarge(f"{self.size} bytes, at most {MAX_FILE_BYTES} are read")
        data = self.blob.read(self.start, self.size) if self.size else b""
        if len(data) != self.size:
            raise UnreadableFile(f"{self.blob.name}: {len(data)} bytes at byte {self.start}, {self.size} were expected")
        return data


@dataclass(frozen=True)
class Failed:
    """What stands in a report for a shard, or for a part of it, that cannot be read."""

    name: str
    size: int
    changed: float | None
    error: PalisadeError

    def stat(self) -> tuple[int, float | None]:
        """See `gateway.cli.files.Image`."""
        return self.size, self.changed

    def read(self) -> bytes:
        """Raises the error."""
        raise self.error


@dataclass(frozen=True)
class Shard:
    """A tar file whose members are images."""

    blob: Blob
    size: int
    changed: float | None

    @property
    def name(self) -> str:
        return self.blob.name


Place = Image | Shard
Members = Callable[[Sequence[Shard]], Iterable[list[Image]]]
"""The images in each of the shards, in their order."""


def find_places(paths: Iterable[str]) -> list[Place]:
    """The images and shards (`.tar`) of folders, files and addresses (`s3://...`), by name; each once.

    Raises `ConfigError` for what is not there and for addresses that no package at hand opens, and
    `ArchiveUnreachable`.
    """
    found: dict[str, Place] = {}
    for path in paths:
        for place in _in_store(path) if ADDRESS.match(path) else _on_disk(Path(path)):
            found.setdefault(place.name, place)
    return list(found.values())


def find_members(places: Sequence[Place], members: Members) -> list[Image]:
    """The images of `places`, each once, with those in shards at the place of the shard.

    A shard that cannot be read to its end gives the images before that, and then a `Failed` with its own name.
    """
    inside = iter(members([place for place in places if isinstance(place, Shard)]))
    found: dict[str, Image] = {}
    for place in places:
        for image in next(inside) if isinstance(place, Shard) else [place]:
            found.setdefault(image.name, image)
    return list(found.values())


def _on_disk(path: Path) -> Iterator[Place]:
    try:
        named = not stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise ConfigError(f"{path}: {'no such file or folder' if missing else error.strerror}") from None
    for file in files_in(path):
        if file.path.suffix.lower() == SHARD_SUFFIX:
            try:
                yield Shard(LocalBlob(file.name), *file.stat())
            except UnreadableFile:
                yield file
        elif named or is_image(file.path):
            yield file


def _in_store(url: str) -> Iterator[Place]:
    refuse_credentials(url)
    url = url.rstrip("/")
    fsspec = package("fsspec", "addresses of stores")
    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url}: {one_line(error)} (pip install 'palisade-gateway[remote]')") from None
    except Exception as error:  # noqa: BLE001 (some stores connect at once, and each has errors of its own)
        raise ArchiveUnreachable(f"{url}: {one_line(error)}") from None
    try:
        with failing(url):
            entries = files.find(root, detail=True)
    except FileNotFoundError:
        entries = {}
    except PullFailed as error:
        raise ArchiveUnreachable(error.detail) from None
    if not entries:
        raise ConfigError(f"{url}: no such file or folder")
    for path, entry in sorted(entries.items()):
        relative = path[len(root) :].removeprefix("/")
        blob = StoreBlob(f"{url}/{relative}" if relative else url, url, path)
        suffix = posixpath.splitext(path)[1].lower()
        if _hidden(relative):
            continue
        if suffix == SHARD_SUFFIX or not relative or suffix in SUFFIXES or _recognized(blob):
            yield _place(files, blob, entry, shard=suffix == SHARD_SUFFIX)


def _place(files: Any, blob: StoreBlob, entry: dict[str, Any], *, shard: bool) -> Place:
    """The object with its size, for which stores are asked once more whose listings lack it (those of web servers)."""
    try:
        if entry.get("size") is None:
            with failing(blob.name):
                entry = files.info(blob.path)
        if entry.get("size") is None:
            raise UnreadableFile(f"{blob.name}: the store does not state its size")
    except (PullFailed, OSError, UnreadableFile) as error:
        return Failed(blob.name, 0, _changed(entry), UnreadableFile(one_line(error)))
    size, changed = int(entry["size"]), _changed(entry)
    return Shard(blob, size, changed) if shard else Part(blob.name, blob, 0, size, changed)


def _changed(entry: dict[str, object]) -> float | None:
    """When an object changed last; each file system of fsspec has its own name and type for that."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = entry.get(name)
        if isinstance(value, int | float):
            return float(value)
        stamp = getattr(value, "timestamp", None)
        if stamp is not None:
            return float(stamp())
    return None


def _recognized(blob: Blob) -> bool:
    """True also of what cannot be read, which must not be missing from the report."""
    try:
        return recognized(blob.read(0, _HEAD))
    except UnreadableFile:
        return True


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)
