"""The folders that BentoML writes to, tried before it starts, because it ends in a traceback where it cannot write."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path

from gateway.errors import ConfigError
from gateway.settings import Settings

log = logging.getLogger(__name__)

HOME = "BENTOML_HOME"
# Set to a home that is a temporary folder, which the supervisor removes at the end.
TEMPORARY = "PALISADE_TEMPORARY_HOME"
_PARTS = ("bentos", "models", "envs", "tmp")


def bentoml_home(settings: Settings) -> dict[str, str]:
    """Environment variables of the server that name a home that BentoML can write.

    That is the folder BENTOML_HOME names; `ConfigError` where it cannot be written, since the user chose it. Without
    that variable it is the first that can be written of `~/bentoml` (BentoML's own choice), `bentoml` below the data
    and the state folder, and a temporary folder; `ConfigError` where none can.
    """
    try:
        tempfile.gettempdir()
    except OSError as error:
        # BentoML needs one for its sockets, wherever its home is.
        raise ConfigError(f"{error.strerror}: set TMPDIR to a folder that can be written") from None
    chosen = os.environ.get(HOME)
    if chosen:
        folder = Path(os.path.expanduser(os.path.expandvars(chosen))).absolute()  # noqa: PTH111  # raises nothing
        problem = _problem(folder)
        if problem is not None:
            raise ConfigError(f"{HOME}={folder}: {problem}; name a folder that can be written")
        return {HOME: str(folder)}
    usual = Path(os.path.expanduser("~"), "bentoml")  # noqa: PTH111
    if usual.is_absolute() and _problem(usual) is None:
        return {HOME: str(usual)}
    for parent in (settings.data_dir, settings.state_dir):
        if parent is not None and _problem(parent / "bentoml") is None:
            return _instead(parent / "bentoml")
    temporary = tempfile.mkdtemp(prefix="palisade-bentoml-")
    return _instead(Path(temporary)) | {TEMPORARY: temporary}


def remove_at_end() -> None:
    """In the supervisor: remove a temporary home when the server ends."""
    temporary = os.environ.get(TEMPORARY)
    if temporary:
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)


def _instead(folder: Path) -> dict[str, str]:
    log.warning("no home folder can be written: BentoML uses %s (set %s to use another)", folder, HOME)
    return {HOME: str(folder)}


def _problem(folder: Path) -> str | None:
    """Why BentoML's home cannot be there, or None; makes it."""
    try:
        for part in _PARTS:
            (folder / part).mkdir(parents=True, exist_ok=True)
        # Permissions alone do not show it: the disk may be full or mounted read-only.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
