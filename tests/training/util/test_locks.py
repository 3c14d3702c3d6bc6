from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.errors import TrainingError
from training.util.atomic import draft_of
from training.util.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from training.util.locks import locked
with locked(Path(sys.argv[1]), Path("runs/x")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_holds_it_and_a_kill_releases_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(TrainingError, match=rf"^runs/x is in use by process {holder.pid}; "),
            locked(lock, Path("runs/x")),
        ):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    finally:
        holder.kill()
        holder.wait()
    with locked(lock, Path("runs/x")):
        assert lock.read_text() == str(os.getpid())
    assert not lock.exists()


def test_two_drafts_of_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with draft_of(out) as draft:
        (draft / "file").touch()
        with pytest.raises(TrainingError, match="bundle is in use by process"), draft_of(out):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (out / "file").is_file()
