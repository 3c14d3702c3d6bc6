"""`python -m gateway.cli`: the `palisade` command where its script is not on the path."""

from __future__ import annotations

from gateway.cli.main import app

app()
