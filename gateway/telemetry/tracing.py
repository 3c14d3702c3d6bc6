"""OpenTelemetry: BentoML opens a span for each request and exports it; the stages of an image become spans below it."""

from __future__ import annotations

import importlib
import time
from typing import Any

from opentelemetry import trace

from gateway import bento_compat
from gateway.core.decision import Decision
from gateway.errors import ConfigError
from gateway.settings import Settings

STAGES = ("decode", "queue", "engine")
_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


def tracing_options(settings: Settings) -> dict[str, Any]:
    """BentoML's `tracing` option; `ConfigError` when an endpoint is set and the exporter does not work.

    Each worker makes an exporter when it starts; where that fails the worker ends and is started again, without end. So
    one is made here first: the package may be missing or broken, and its own variables (`OTEL_EXPORTER_OTLP_*`) wrong.
    """
    if settings.trace_endpoint is None:
        # Otherwise BentoML records a span of every request and discards it.
        return {"excluded_urls": ".*"}
    if not settings.trace_endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"PALISADE_TRACE_ENDPOINT={settings.trace_endpoint!r}: expected a URL that begins with http:// or https://"
        )
    try:
        exporter = importlib.import_module(_EXPORTER)
    except Exception as error:  # noqa: BLE001  # whatever a broken package raises
        raise ConfigError(
            f"PALISADE_TRACE_ENDPOINT: the exporter cannot be imported ({_reason(error)}): install it, "
            "`pip install 'palisade-gateway[tracing]'`, or unset the variable"
        ) from None
    try:
        exporter.OTLPSpanExporter(endpoint=settings.trace_endpoint).shutdown()
    except Exception as error:  # noqa: BLE001
        raise ConfigError(
            f"PALISADE_TRACE_ENDPOINT: the exporter cannot be made ({_reason(error)}): see the variables OTEL_*"
        ) from None
    otlp = {"protocol": "http", "endpoint": settings.trace_endpoint}
    return {"exporter_type": "otlp", "sample_rate": settings.trace_rate, "otlp": otlp}


def check_provider() -> None:
    """In the supervisor: `ConfigError` when BentoML's provider of tracers, one for each worker, cannot be made.

    It is made with or without an endpoint, and reads variables (`OTEL_*`) that are not ours to check.
    """
    try:
        bento_compat.tracer_provider().shutdown()
    except Exception as error:  # noqa: BLE001  # as above
        raise ConfigError(f"tracing cannot be set up ({_reason(error)}): see the variables OTEL_*") from None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def trace_stages(decision: Decision, provider: trace.TracerProvider | None = None) -> None:
    """Add the stages of `decision`, which has just been made, to the request's span if that is recorded.

    A stage's span has its exact duration; an image that needed two passes waited and ran twice, and shows the sums, one
    after the other. `provider` defaults to BentoML's.
    """
    request = trace.get_current_span()
    if not request.is_recording():
        return
    tracer = (provider or bento_compat.tracer_provider()).get_tracer("palisade")
    request.set_attributes(
        {
            "palisade.model": decision.model,
            "palisade.version": decision.version,
            "palisade.stage": decision.stage,
            "palisade.flagged": decision.flagged,
            "palisade.level": decision.level,
            "palisade.kind": decision.raw.verdict.kind or "",
            "palisade.neutralized": decision.neutralized is not None,
        }
    )
    begin = time.time_ns() - round(decision.timing.total * 1e9)
    for stage in STAGES:
        end = begin + round(getattr(decision.timing, stage) * 1e9)
        tracer.start_span(stage, start_time=begin).end(end_time=end)
        begin = end
