from __future__ import annotations

from dataclasses import replace

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.core.decision import Timing
from gateway.core.pipeline import Pipeline
from gateway.settings import Settings
from gateway.telemetry import tracing
from tests.gateway.tiny import clean_image


def test_stages_are_spans_below_the_requests(pipeline: Pipeline) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    (decision,) = pipeline.decide_images([clean_image()])
    decision = replace(decision, timing=Timing(decode=0.001, queue=0.002, engine=0.004))
    tracing.trace_stages(decision, provider)
    assert not exporter.get_finished_spans(), "no request's span, nothing to hang a stage on"
    with provider.get_tracer("test").start_as_current_span("request") as request:
        tracing.trace_stages(decision, provider)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    for stage, milliseconds in {"decode": 1, "queue": 2, "engine": 4}.items():
        span = spans[stage]
        assert span.parent is not None
        assert span.parent.span_id == request.get_span_context().span_id
        assert span.end_time is not None
        assert span.start_time is not None
        assert span.end_time - span.start_time == milliseconds * 1_000_000
    assert spans["queue"].start_time == spans["decode"].end_time
    attributes = spans["request"].attributes
    assert attributes is not None
    assert (attributes["palisade.model"], attributes["palisade.flagged"]) == ("tiny", False)
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_without_an_endpoint_nothing_is_traced() -> None:
    assert tracing.tracing_options(Settings()) == {"excluded_urls": ".*"}
