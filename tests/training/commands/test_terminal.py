"""What every training command shares."""

from __future__ import annotations

import os
import signal

import pytest
import typer

from training.commands.terminal import command


def test_a_command_that_is_asked_to_end_closes_what_it_has_opened(capsys: pytest.CaptureFixture[str]) -> None:
    """As `palisade evaluate`, which starts a gateway of its own, under `kill` or at the end of a session."""
    closed = []

    @command
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            closed.append("gateway")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as ended:
        work()
    assert ended.value.exit_code == 143
    assert closed == ["gateway"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert "run the same command again" in capsys.readouterr().err
