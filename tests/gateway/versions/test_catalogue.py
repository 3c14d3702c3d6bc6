"""What is found in folders of bundles."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from gateway.core.loading import Bundle, load_bundle
from gateway.errors import BundleError, ConfigError, UnknownModel, UnknownVersion
from gateway.trust import admission
from gateway.versions.catalogue import Catalogue
from tests.gateway.tiny import write_bundle


def test_versions_side_by_side_the_newest_first(tmp_path: Path) -> None:
    for version in ("1.9.0", "1.10.0", "1.10.0-rc", "1.10.0-rc.2", "1.10.0-rc.10", "1.10.0-beta.3", "1.10.0-7"):
        write_bundle(tmp_path / "tiny" / version, version=version)
    write_bundle(tmp_path / "alone", name="alone")
    write_bundle(tmp_path / "tiny" / "2.0.0.part", version="2.0.0")
    found, refused = Catalogue([tmp_path]).look()
    assert [(bundle.name, bundle.version) for bundle in found] == [
        ("alone", "1.0.0"),
        ("tiny", "1.10.0"),
        ("tiny", "1.10.0-rc.10"),
        ("tiny", "1.10.0-rc.2"),
        ("tiny", "1.10.0-rc"),
        ("tiny", "1.10.0-beta.3"),
        ("tiny", "1.10.0-7"),
        ("tiny", "1.9.0"),
    ]
    assert not refused
    assert Catalogue([tmp_path / "alone"]).find("alone", "1.0.0").folder == tmp_path / "alone"
    with pytest.raises(ConfigError, match="no such folder"):
        Catalogue([tmp_path / "absent"]).look()


def test_what_is_missing_and_what_is_broken_is_told(tmp_path: Path) -> None:
    write_bundle(tmp_path / "tiny" / "1.0.0")
    (write_bundle(tmp_path / "tiny" / "2.0.0", version="2.0.0") / "calibration.npz").write_bytes(b"altered")
    (tmp_path / "tiny" / "3.0.0").mkdir()
    (tmp_path / "tiny" / "3.0.0" / "manifest.json").write_text("{")
    catalogue = Catalogue([tmp_path])
    with pytest.raises(BundleError, match=r"2\.0\.0/calibration\.npz: SHA-256"):
        catalogue.find("tiny", "2.0.0")
    with pytest.raises(BundleError, match=r"3\.0\.0/manifest\.json"):
        catalogue.find("tiny", "3.0.0")
    with pytest.raises(UnknownVersion, match=r"'4\.0\.0' is not on disk \(has 1\.0\.0\)"):
        catalogue.find("tiny", "4.0.0")
    with pytest.raises(UnknownModel, match=r"'nope' is on disk \(has tiny\)"):
        catalogue.find("nope", "1.0.0")


def test_a_folder_that_cannot_be_read_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "tiny")
    (tmp_path / "lost+found").mkdir()
    is_file, read_bytes = Path.is_file, Path.read_bytes

    def allowed(path: Path) -> Path:
        # Not by permissions, which do not hold for root.
        if path.parent.name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return path

    monkeypatch.setattr(Path, "is_file", lambda path: is_file(allowed(path)))
    monkeypatch.setattr(Path, "read_bytes", lambda path: read_bytes(allowed(path)))
    found, refused = Catalogue([tmp_path]).look()
    assert [bundle.name for bundle in found] == ["tiny"]
    assert [(entry.folder.name, "Permission denied" in entry.reason) for entry in refused] == [("lost+found", True)]


def test_folders_are_looked_at_anew(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "tiny" / "1.0.0")
    catalogue = Catalogue([tmp_path])
    assert len(catalogue.look()[0]) == 1
    write_bundle(tmp_path / "tiny" / "2.0.0", version="2.0.0")
    assert catalogue.find("tiny", "2.0.0")
    graph = first / "calibration.npz"
    graph.write_bytes(graph.read_bytes() + b"x")
    with pytest.raises(BundleError):
        catalogue.find("tiny", "1.0.0")
    shutil.rmtree(first)
    with pytest.raises(UnknownVersion):
        catalogue.find("tiny", "1.0.0")


def test_files_that_did_not_change_are_hashed_once_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bundle(tmp_path / "tiny")
    read: list[Path] = []

    def counted(path: Path) -> Bundle:
        read.append(path)
        return load_bundle(path)

    monkeypatch.setattr(admission, "load_bundle", counted)
    catalogue = Catalogue([tmp_path])
    for _ in range(3):
        (found,) = catalogue.look()[0]
    assert found.bundle.path == folder
    assert read == [folder]
    catalogue.look(again=True)
    assert read == [folder, folder]


def test_a_file_that_was_altered_and_dated_back_is_noticed(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny")
    catalogue = Catalogue([tmp_path])
    assert catalogue.look()[0]
    file = folder / "calibration.npz"
    times, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    with file.open("r+b") as altered:
        altered.write(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    while file.stat().st_ctime_ns == times.st_ctime_ns:  # the file system's clock ticks every few milliseconds
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "calibration.npz" in catalogue.look()[1][0].reason


def test_links_that_lead_out_and_doubles_are_refused(tmp_path: Path) -> None:
    outside = write_bundle(tmp_path / "outside", version="9.0.0")
    models = tmp_path / "models"
    write_bundle(models / "a")
    write_bundle(models / "b")
    (models / "tiny").mkdir()
    (models / "tiny" / "9.0.0").symlink_to(outside)
    found, refused = Catalogue([models]).look()
    assert [bundle.folder for bundle in found] == [models / "a"]
    reasons = {entry.folder: entry.reason for entry in refused}
    assert "leads out of" in reasons[models / "tiny" / "9.0.0"]
    assert f"is in {models / 'a'} already" in reasons[models / "b"]
    # The folder that an operator configured may itself be a link.
    (tmp_path / "link").symlink_to(models)
    assert len(Catalogue([tmp_path / "link"]).look()[0]) == 1
