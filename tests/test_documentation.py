"""What the documentation asks to be typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_curl_says_that_it_sends_an_image(page: Path) -> None:
    """Else it names a form, which the gateway refuses (415)."""
    commands = re.findall(r"^curl [^\n]*--data-binary[^\n]*", page.read_text("utf-8"), re.MULTILINE)
    assert [command for command in commands if "Content-Type: image/" not in command] == []
