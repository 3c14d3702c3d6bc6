"""The bundles on disk: `<root>/<name>/`, or several versions side by side in `<root>/<name>/<version>/`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.core.loading import Bundle, read_manifest
from gateway.core.manifest import DRAFT, MANIFEST, Manifest
from gateway.errors import BundleError, ConfigError, UnknownModel, UnknownVersion
from gateway.trust.admission import Demands


@dataclass(frozen=True)
class Found:
    """A bundle whose files are sound; the graphs are only opened when it is loaded."""

    bundle: Bundle

    @property
    def folder(self) -> Path:
        return self.bundle.path

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def name(self) -> str:
        return self.bundle.name

    @property
    def version(self) -> str:
        return self.bundle.version


@dataclass(frozen=True)
class Refused:
    """A folder with a manifest that must not be served, and why; its path gives name and version if it states none."""

    folder: Path
    reason: str
    name: str
    version: str
    kind: type[BundleError] = BundleError

    @property
    def error(self) -> BundleError:
        """What a caller is told who asks for it."""
        return self.kind(self.reason)


class Catalogue:
    """The bundles in the folders `roots`, read again by every call; unchanged files are hashed once."""

    def __init__(self, roots: Sequence[Path], demands: Demands | None = None) -> None:
        """`demands`: what is asked of a bundle beyond soundness; a bundle that does not meet it is a refused one."""
        self._roots = roots
        self._demands = demands or Demands()
        self._seen: dict[Path, tuple[object, Found | Refused]] = {}
        self._lock = threading.Lock()

    def look(self, *, again: bool = False) -> tuple[list[Found], list[Refused]]:
        """Sound bundles (by name, the newest first) and refused ones; `again` also hashes unchanged files.

        Of two folders with the same name and version the first one counts. Raises `ConfigError` for a missing root.
        """
        with self._lock:
            seen = {} if again else self._seen
            self._seen = {
                folder: (state, known[1] if known is not None and known[0] == state else self._check(root, folder))
                for root, folder in find_bundles(self._roots)
                for state, known in [(_state(folder), seen.get(folder))]
            }
            entries = [entry for _, entry in self._seen.values()]
        found: dict[tuple[str, str], Found] = {}
        refused = []
        for entry in entries:
            if isinstance(entry, Refused):
                refused.append(entry)
            elif (first := found.setdefault((entry.name, entry.version), entry)) is not entry:
                reason = f"{entry.folder}: {entry.name} {entry.version} is in {first.folder} already"
                refused.append(Refused(entry.folder, reason, entry.name, entry.version))
        newest_first = sorted(found.values(), key=lambda bundle: _precedence(bundle.version), reverse=True)
        return sorted(newest_first, key=lambda bundle: bundle.name), refused

    def versions(self, name: str) -> list[Found]:
        """The sound versions of a model, the newest first; raises `UnknownModel` if no folder states that name."""
        found, refused = self.look()
        if name not in {bundle.name for bundle in found} | {entry.name for entry in refused}:
            names = ", ".join(sorted({bundle.name for bundle in found}))
            raise UnknownModel(f"no bundle of a model {name[:80]!r} is on disk (has {names})")
        return [bundle for bundle in found if bundle.name == name]

    def find(self, name: str, version: str) -> Found:
        """The bundle of one version; raises `UnknownModel`, `UnknownVersion`, or `BundleError` if it is broken."""
        versions = self.versions(name)
        for bundle in versions:
            if bundle.version == version:
                return bundle
        for entry in self.look()[1]:
            if (entry.name, entry.version) == (name, version):
                raise entry.error
        have = ", ".join(bundle.version for bundle in versions)
        raise UnknownVersion(f"{name} {version[:80]!r} is not on disk (has {have})")

    def _check(self, root: Path, folder: Path) -> Found | Refused:
        name, version = folder.parent.name, folder.name
        try:
            if not folder.resolve().is_relative_to(root.resolve()):
                raise BundleError(f"{folder}: the link leads out of {root}")
            manifest = read_manifest(folder)
            name, version = manifest.name, manifest.version
            return Found(self._demands.load(folder))
        except BundleError as error:
            return Refused(folder, error.detail, name, version, type(error))
        except OSError as error:
            return Refused(folder, f"{folder}: unreadable: {error}", name, version)


def find_bundles(roots: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Each root with the folders in it that hold a manifest; `ConfigError` for a root that is missing.

    A root may be a bundle itself. Folders named `*.part` are bundles that `palisade build` is still writing.
    """
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"{root}: no such folder of bundles (PALISADE_MODELS)")
        yield from ((root, folder) for folder in _bundles(root, depth=2))


def _bundles(folder: Path, depth: int) -> Iterator[Path]:
    try:
        holds_one = (folder / MANIFEST).is_file()
        children = [] if holds_one or not depth else sorted(folder.iterdir())
    except OSError:  # not readable, as `lost+found` is: refused by its name, where the others are served
        yield folder
        return
    if holds_one:
        yield folder
    for child in children:
        if child.is_dir() and child.suffix != DRAFT:
            yield from _bundles(child, depth - 1)


def _state(folder: Path) -> object:
    """A value that changes whenever a file does: names, sizes and times; no user can set the change time."""
    try:
        files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    except OSError:
        return object()  # files are being changed; equal to no other state
    return [(path, stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns) for path, stat in files]


def _precedence(version: str) -> tuple[list[int], bool, list[tuple[bool, int, str]]]:
    """A value that is larger for the later of two versions, as Semantic Versioning 2.0.0 (section 11) orders them."""
    numbers, _, prerelease = version.partition("-")
    # A number comes before a word, and the shorter of two lists before the longer.
    parts = [(False, int(part), "") if part.isdigit() else (True, 0, part) for part in prerelease.split(".")]
    return [int(number) for number in numbers.split(".")], not prerelease, parts
