"""Remote entries of `PALISADE_MODELS`: fetched at the start into the cache, from which they are served."""

from __future__ import annotations

import logging
import shutil

from gateway.errors import PalisadeError
from gateway.pulling.pull import pull
from gateway.settings import Settings
from gateway.versions.catalogue import Catalogue

log = logging.getLogger(__name__)


def fetch_sources(settings: Settings) -> None:
    """Fetch what remote entries of `PALISADE_MODELS` hold now; a cache holds the one bundle that its source held last.

    Where a source fails and its cache holds a bundle that may be served, that is served, with a warning. Raises what
    `pull` raises where it holds none.
    """
    for url, folder in settings.sources.items():
        try:
            pulled = pull(url, folder, settings.demands, max_seconds=settings.pull_timeout, replace=True)
        except PalisadeError as error:
            folder.mkdir(parents=True, exist_ok=True)
            if not Catalogue([folder], settings.demands).look()[0]:
                raise
            log.warning("%s; what was fetched before is served", error.detail)
            continue
        for other in Catalogue([folder]).look()[0]:
            if other.folder != pulled.folder:
                shutil.rmtree(other.folder, ignore_errors=True)
        log.info("%s: %s %s", url, pulled.manifest.name, pulled.manifest.version)
