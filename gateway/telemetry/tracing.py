"""OpenTelemetry: BentoML opens a span for each request and exports it; the stages of an image become spans below it."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

from opentelemetry import trace

from gateway.core.pipeline import Decision
from gateway.errors import ConfigError
from gateway.settings import Settings

STAGES = ("decode", "queue", "engine")


def tracing_options(settings: Settings) -> dict[str, Any]:
    """BentoML's `tracing` option; `ConfigError` when an endpoint is set and the exporter is not installed."""
    if settings.trace_endpoint is None:
        # Otherwise BentoML records a span of every request, to throw it away.
        return {"excluded_urls": ".*"}
    if find_spec("opentelemetry.exporter") is None:
        raise ConfigError("PALISADE_TRACE_ENDPOINT: install the exporter, `pip install palisade-gateway[tracing]`")
    otlp = {"protocol": "http", "endpoint": settings.trace_endpoint}
    return {"exporter_type": "otlp", "sample_rate": settings.trace_rate, "otlp": otlp}


def trace_stages(decision: Decision, provider: trace.TracerProvider | None = None) -> None:
    """Add the stages of `decision`, which has just been made, to the request's span if that is recorded.

    A stage's span has its exact duration; an image that needed two passes waited and ran twice, and has the sums, laid
    end to end. `provider` defaults to BentoML's.
    """
    request = trace.get_current_span()
    if not request.is_recording():
        return
    if provider is None:
        from bentoml._internal.configuration.containers import BentoMLContainer

        provider = BentoMLContainer.tracer_provider.get()
    tracer = provider.get_tracer("palisade")
    request.set_attributes(
        {
            "palisade.model": decision.model,
            "palisade.version": decision.version,
            "palisade.stage": decision.stage,
            "palisade.flagged": decision.flagged,
            "palisade.neutralized": decision.neutralized is not None,
        }
    )
    begin = time.time_ns() - round(decision.timing.total * 1e9)
    for stage in STAGES:
        end = begin + round(getattr(decision.timing, stage) * 1e9)
        tracer.start_span(stage, start_time=begin).end(end_time=end)
        begin = end
