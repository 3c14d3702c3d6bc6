"""A bundle is read, and refused unless the settings' demands of signature and card are met."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.core.loading import Bundle, load_bundle
from gateway.trust.cards import require_card
from gateway.trust.signatures import load_signed


@dataclass(frozen=True)
class Demands:
    """What is asked of a bundle beyond soundness; nothing by default."""

    trusted: tuple[Path, ...] = ()
    """PEM files with public keys or root certificates, one of which must have signed it."""
    card_days: int | None = None
    """A complete card whose checks passed, at most this many days old."""

    def load(self, folder: Path) -> Bundle:
        """The checked bundle; raises `BundleError`, `UntrustedBundle`, `CardRefused` or `ConfigError`."""
        bundle = load_signed(folder, self.trusted) if self.trusted else load_bundle(folder)
        if self.card_days is not None:
            require_card(bundle, self.card_days)
        return bundle
