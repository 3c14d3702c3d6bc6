"""The engine of any bundle: its own graphs, or the upstream that it names."""

from __future__ import annotations

from urllib.parse import urlsplit

from gateway.core.engine import Device, Engine, WantedPrecision
from gateway.core.loading import Bundle
from gateway.core.upstream import Protocol2, Upstream, checked_url
from gateway.errors import ConfigError
from gateway.upstream.engine import UpstreamEngine
from gateway.upstream.peer import Classifier

_MODELS = "/v2/models/"


def open_engine(
    bundle: Bundle,
    *,
    device: Device = "auto",
    precision: WantedPrecision = "auto",
    threads: int = 0,
    url: str | None = None,
    token: str | None = None,
    timeout: float = 10.0,
    failures: int = 5,
    pause: float = 2.0,
) -> Engine:
    """The engine of `bundle`; of one with an upstream it asks the server at `url` (default: the bundle's).

    Raises as `Engine.open` does, and `ConfigError` for a `url` that is none.
    """
    manifest = bundle.manifest
    if manifest.upstream is None:
        return Engine.open(bundle, device=device, precision=precision, threads=threads)
    upstream = manifest.upstream if url is None else moved(manifest.upstream, url)
    classifier = Classifier(
        upstream,
        manifest.classes,
        model=bundle.name,
        timeout=timeout,
        token=token,
        failures=failures,
        pause=pause,
    )
    return UpstreamEngine(bundle.path, manifest.input, classifier, threads=threads, buckets=manifest.buckets)


def moved(upstream: Upstream, url: str) -> Upstream:
    """`upstream` at another address: of a server (`http://host:8000`), or of a model or classifier with its path."""
    try:
        base = checked_url(url)
    except ValueError as error:
        raise ConfigError(f"PALISADE_UPSTREAM={url!r}: {error}") from None
    protocol = upstream.protocol
    if isinstance(protocol, Protocol2) and _MODELS not in base:
        base += protocol.url[protocol.url.index(_MODELS) :] if _MODELS in protocol.url else ""
    elif not isinstance(protocol, Protocol2) and not urlsplit(base).path:
        stated = urlsplit(protocol.url)
        base += stated.path + (f"?{stated.query}" if stated.query else "")
    return upstream.model_copy(update={"protocol": protocol.model_copy(update={"url": base})})


def address_of(engine: Engine) -> str | None:
    """Where the upstream of `engine` is; None of an engine that runs the network itself."""
    return engine.classifier.url if isinstance(engine, UpstreamEngine) else None
