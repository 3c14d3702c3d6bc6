"""The gateway before an upstream that is sound, slow, hostile, gone, and back again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from gateway.app import create_api
from gateway.audit.store import Filter
from gateway.cli.main import app
from gateway.core.loading import load_bundle
from gateway.errors import (
    BundleError,
    ConfigError,
    PalisadeError,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.upstream.engine import UpstreamEngine
from gateway.versions.registry import Registry, load_pipeline
from tests.gateway.http_thread import serving
from tests.gateway.tiny import clean_image, encode, patched_image
from tests.gateway.upstream.fake import Fake, faked
from tests.gateway.upstream.tiny_guard import MAPS, ROWS, fake_server, write_guard

CLEAN, PATCHED = encode(clean_image()), encode(patched_image())


@pytest.fixture
def fake() -> Iterator[Fake]:
    with faked(fake_server()) as made:
        yield made


@dataclass
class Gateway:
    url: str
    fake: Fake
    api: Any

    def post(self, data: bytes = CLEAN, query: str = "") -> httpx.Response:
        return httpx.post(f"{self.url}/v1/predict{query}", content=data, timeout=30)


@contextmanager
def guarding(fake: Fake, folder: Path, **settings: Any) -> Iterator[Gateway]:
    write_guard(folder / "guarded", fake.url)
    chosen = Settings(
        **{"threads": 1, "upstream_timeout": 0.5, "upstream_pause": 0.2, "data_dir": folder / "data", **settings}
    )
    pipeline = load_pipeline(folder / "guarded", chosen)
    api = create_api(chosen)
    api.state.registry = Registry([pipeline])
    metrics.announce(pipeline)
    with serving(api) as url:
        yield Gateway(url, fake, api)


def test_an_attack_is_flagged_and_the_answer_recovered(fake: Fake, tmp_path: Path) -> None:
    with guarding(fake, tmp_path) as gateway:
        clean, attacked = gateway.post().json(), gateway.post(PATCHED, "?explain=all").json()
        assert (clean["prediction"]["label"], clean["verdict"]["flagged"]) == ("red", False)
        assert attacked["verdict"]["flagged"]
        assert attacked["neutralization"]["before"]["label"] == "blue"
        assert attacked["neutralization"]["after"]["label"] == "red"
        assert attacked["verdict"]["layers"] == []
        assert attacked["explanation"]["saliency"]["height"] == 16
        assert {row["name"] for row in attacked["verdict"]["evidence"]} == {"window_drop", "filter_drop"}
        assert httpx.get(f"{gateway.url}/v2/models/guarded/ready").status_code == 200
        assert httpx.get(f"{gateway.url}/v2/health/ready").status_code == 200
        shown = httpx.get(f"{gateway.url}/metrics").text
        assert 'palisade_upstream_up{model="guarded"} 1.0' in shown
        detail = httpx.get(f"{gateway.url}/v1/models/guarded").json()
        assert detail["manifest"]["upstream"]["rows"] == ROWS


def test_answers_of_an_upstream_are_certified_by_one_row_a_mask(fake: Fake, tmp_path: Path) -> None:
    with guarding(fake, tmp_path, certify_share=0.01) as gateway:
        fake.batches.clear()
        made = gateway.post(encode(clean_image((200, 0, 0))), "?certify=patch").json()["certificate"]
        assert (made["level"], made["label"], made["forwards"]) == ("proved", "red", 136)
        assert ROWS + 136 <= sum(fake.batches) < ROWS + 160  # with probes
        assert max(fake.batches) == 8
        assert gateway.post(PATCHED, "?certify=patch").json()["certificate"]["level"] == "none"


def test_rows_of_images_share_requests_of_the_upstreams_size(fake: Fake, tmp_path: Path) -> None:
    pipeline = load_pipeline(write_guard(tmp_path / "g", fake.url, max_rows=8), Settings(threads=1, upstream_pause=60))
    fake.batches.clear()
    decisions = pipeline.decide_images([clean_image()] * 4, explain=False)
    assert fake.batches == [8, 8, 4]
    assert {decision.raw.prediction.label for decision in decisions} == {"red"}


def test_requests_of_one_batch_with_different_classes_are_no_answer(fake: Fake, tmp_path: Path) -> None:
    pipeline = load_pipeline(write_guard(tmp_path / "g", fake.url, max_rows=3), Settings(threads=1, upstream_pause=60))
    calibrated = fake.model
    fake.model = lambda rows: np.repeat(calibrated(rows), 1 + len(rows) % 2, 1)  # five rows are three and two
    with pytest.raises(UpstreamInvalid, match="6 classes, 3 were calibrated"):
        pipeline.decide_images([clean_image()], explain=False)


def test_the_thread_that_watches_outlives_what_nobody_foresaw(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("can't start new thread")

    pipeline = load_pipeline(write_guard(tmp_path / "g", fake.url), Settings(threads=1, upstream_pause=0.05))
    deadline = time.monotonic() + 10
    for failing in (True, False):
        with monkeypatch.context() as patch:
            if failing:
                patch.setattr("gateway.upstream.protocol2.request_of", broken)
            while (pipeline.engine.problem is None) is failing:
                assert time.monotonic() < deadline
                time.sleep(0.02)


def test_explanations_do_not_share_a_batch_that_each_would_wait_for(fake: Fake, tmp_path: Path) -> None:
    with guarding(fake, tmp_path, upstream_timeout=10.0, upstream_pause=60) as gateway, ThreadPoolExecutor(12) as pool:
        fake.pause = 0.05
        fake.batches.clear()
        assert {each.status_code for each in pool.map(gateway.post, [CLEAN] * 12, ["?explain=all"] * 12)} == {200}
        # Apart from the fixed image, which new connections are asked for.
        assert sorted(n for n in fake.batches if n > 1) == [MAPS] * 12 + [ROWS] * 12
        fake.pause = 0.3
        assert {each.status_code for each in pool.map(gateway.post, [CLEAN] * 12)} == {200}
        assert max(fake.batches) > ROWS


HOSTILE: dict[str, tuple[dict[str, Any], int, str]] = {
    "slow": ({"pause": 2.0}, 504, "upstream_timeout"),
    "dripping": ({"drip": 0.02}, 504, "upstream_timeout"),
    "hanging up": ({"drop": True}, 503, "upstream_unavailable"),
    "overloaded": ({"status": 503, "answer": b"busy"}, 503, "upstream_unavailable"),
    "failing": ({"status": 500, "answer": b"secret traceback"}, 502, "upstream_invalid"),
    "moved": ({"status": 302, "answer": b""}, 502, "upstream_invalid"),
    "a web page": ({"answer": b"<html></html>"}, 502, "upstream_invalid"),
    "other JSON": ({"answer": b'{"outputs": 3}'}, 502, "upstream_invalid"),
    "one row": ({"model": lambda rows: np.zeros((1, 3), np.float32)}, 502, "upstream_invalid"),
    "more classes": ({"model": lambda rows: np.zeros((len(rows), 4), np.float32)}, 502, "upstream_invalid"),
    "not finite": ({"model": lambda rows: np.full((len(rows), 3), np.nan, np.float32)}, 502, "upstream_invalid"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_hostile_upstream_does_has_a_code(name: str, fake: Fake, tmp_path: Path) -> None:
    fields, status, code = HOSTILE[name]
    with guarding(fake, tmp_path, upstream_failures=100, upstream_pause=60) as gateway:
        assert gateway.post().status_code == 200
        before = {field: getattr(fake, field) for field in fields}
        for field, value in fields.items():
            setattr(fake, field, value)
        start = time.monotonic()
        answer = gateway.post()
        assert time.monotonic() - start < 5
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert "secret" not in answer.text
        assert gateway.fake.url not in answer.text
        if status == 503:
            assert int(answer.headers["retry-after"]) >= 1
        for field, value in before.items():
            setattr(fake, field, value)
        assert gateway.post().status_code == 200


def test_answers_of_another_model_are_not_judged(fake: Fake, tmp_path: Path) -> None:
    def wait_until(ready: int) -> None:
        deadline = time.monotonic() + 10
        while httpx.get(f"{gateway.url}/v2/health/ready").status_code != ready:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with guarding(fake, tmp_path) as gateway:
        calibrated = fake.model
        fake.model = lambda rows: calibrated(rows)[:, ::-1]
        wait_until(503)
        for query in ("", "?explain=all", "?certify=patch"):
            answer = gateway.post(query=query)
            assert (answer.status_code, answer.json()["code"]) == (502, "upstream_invalid"), answer.text
        fake.status = 500  # which leaves it open what it would serve
        time.sleep(0.5)
        fake.status = 200
        fake.model = calibrated
        wait_until(200)
        assert gateway.post().status_code == 200


def test_the_metric_is_that_of_the_active_version(fake: Fake, tmp_path: Path) -> None:
    settings = Settings(threads=1, upstream_pause=0.05)

    def shown() -> float:
        time.sleep(0.3)
        return float(metrics.upstream_up.labels("guarded")._value.get())

    sound = load_pipeline(write_guard(tmp_path / "a", fake.url), settings)
    metrics.announce(sound)
    other = load_pipeline(write_guard(tmp_path / "b", "http://127.0.0.1:9"), settings)  # a shadow, or the next one
    assert shown() == 1.0
    assert other.engine.problem is not None
    metrics.withdraw(sound)
    metrics.announce(other)
    assert shown() == 0.0
    metrics.withdraw(other)  # for one that has its network itself: nothing is down any more
    assert np.isnan(shown())


def test_one_poor_row_fails_its_own_image_alone(fake: Fake, tmp_path: Path) -> None:
    def model(rows: np.ndarray) -> np.ndarray:
        values = rows.mean((2, 3)) * np.array([10, 10, 40], np.float32)
        values[rows[:, 1].mean((1, 2)) > 0.9] = np.nan
        return values

    fake.model = model
    pipeline = load_pipeline(write_guard(tmp_path / "g", fake.url), Settings(threads=1))
    with pytest.raises(UpstreamInvalid, match="not finite"):
        pipeline.decide_images([clean_image((0, 240, 0))], explain=False)
    works = [
        next(pipeline.steps(image, explain=False, screening="off"))
        for image in (clean_image(), clean_image((0, 240, 0)))
    ]
    sound, poor = pipeline.run(works)
    assert isinstance(poor, UpstreamInvalid)
    assert not isinstance(sound, PalisadeError)


def test_images_on_which_the_upstream_fails_do_not_stop_the_others(fake: Fake, tmp_path: Path) -> None:
    sound, white = fake.model, encode(np.full_like(clean_image(), 255))

    def fails_on_white(rows: np.ndarray) -> np.ndarray:
        if (rows > 0.99).all(axis=(1, 2, 3)).any():
            raise ValueError("the server breaks on this one")  # and drops the connection
        return sound(rows)

    fake.model = fails_on_white
    with guarding(fake, tmp_path, upstream_failures=2, upstream_pause=60) as gateway:
        for _ in range(5):
            assert gateway.post(white).status_code == 503
        assert gateway.post().status_code == 200


def test_the_breaker_answers_at_once_and_closes_by_itself(fake: Fake, tmp_path: Path) -> None:
    with guarding(fake, tmp_path, upstream_failures=2, upstream_timeout=1.5, upstream_pause=0.5) as gateway:
        fake.pause = 3.0
        codes: list[str] = []
        took = 9.0
        while codes[-1:] != ["upstream_unavailable"]:
            start = time.monotonic()
            codes.append(gateway.post().json()["code"])
            took = time.monotonic() - start
        assert took < 1.0
        assert 1 <= codes.count("upstream_timeout") <= 2  # the thread that watches may have met the other one
        deadline = time.monotonic() + 10
        while httpx.get(f"{gateway.url}/v2/health/ready").status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        detail = httpx.get(f"{gateway.url}/v2/models/guarded/ready").json()
        assert detail["code"] == "not_ready"
        fake.pause = 0.0
        while httpx.get(f"{gateway.url}/v2/health/ready").status_code != 200:
            assert time.monotonic() < deadline + 20
            time.sleep(0.05)
        assert gateway.post().status_code == 200


def test_an_upstream_that_closes_idle_connections_costs_no_answer(tmp_path: Path) -> None:
    with faked(fake_server()) as fake:
        engine = load_pipeline(write_guard(tmp_path / "g", fake.url), Settings(threads=1, upstream_pause=60))
        assert engine.decide_images([clean_image()], explain=False)
        port = int(fake.url.rpartition(":")[2])
    with faked(fake_server(), port=port):
        assert engine.decide_images([clean_image()], explain=False)


def test_a_server_restarted_with_another_model_answers_nothing(tmp_path: Path) -> None:
    """At once, and not from the next check on, which is a minute away here."""
    with faked(fake_server()) as fake:
        pipeline = load_pipeline(write_guard(tmp_path / "g", fake.url), Settings(threads=1, upstream_pause=60))
        before = len(fake.batches)
        for _ in range(2):
            assert pipeline.decide_images([clean_image()], explain=False)
        assert len(fake.batches) == before + 2, "the fixed image is asked for only after a new connection"
        port = int(fake.url.rpartition(":")[2])
    fake.drop = True  # of connections that are open
    other = fake_server()
    calibrated = other.model
    other.model = lambda rows: calibrated(rows)[:, ::-1]
    with faked(other, port=port):
        for _ in range(2):
            with pytest.raises(UpstreamInvalid, match="does not serve the model that was calibrated"):
                pipeline.decide_images([clean_image()], explain=False)


def test_a_gateway_starts_before_its_upstream(tmp_path: Path) -> None:
    pipeline = load_pipeline(write_guard(tmp_path / "g", "http://127.0.0.1:9"), Settings(threads=1, upstream_pause=60))
    assert pipeline.engine.problem == "the upstream cannot be reached"
    with pytest.raises(UpstreamUnavailable):
        pipeline.decide_images([clean_image()])
    with faked(fake_server()) as fake:
        moved = load_pipeline(tmp_path / "g", Settings(threads=1, upstream=fake.url))
        assert moved.engine.problem is None


def test_a_token_is_sent_and_never_shown(tmp_path: Path) -> None:
    with faked(fake_server(token="t0ken")) as fake:  # noqa: S106
        folder = write_guard(tmp_path / "g", fake.url)
        assert load_pipeline(folder, Settings(threads=1)).engine.problem == "the upstream answered 401"
        settings = Settings(threads=1, upstream_token="t0ken")  # noqa: S106
        assert load_pipeline(folder, settings).engine.problem is None
        assert "t0ken" not in repr(settings)
        lined = Settings(threads=1, upstream_token=" t0ken\r\n")  # noqa: S106  # as a file has it
        assert load_pipeline(folder, lined).engine.problem is None
        for token in ("t0ken€", "t0\nken"):
            with pytest.raises(ConfigError, match="PALISADE_UPSTREAM_TOKEN: only printable") as caught:
                load_pipeline(folder, Settings(threads=1, upstream_token=token))
            assert "ken" not in caught.value.detail


def test_the_thread_that_watches_ends_with_its_version(fake: Fake, tmp_path: Path) -> None:
    def watching() -> int:
        return sum(thread.name == "palisade-upstream" for thread in threading.enumerate())

    before = watching()
    pipeline = load_pipeline(write_guard(tmp_path / "g", fake.url), Settings(threads=1, upstream_pause=0.05))
    assert isinstance(pipeline.engine, UpstreamEngine)
    assert watching() > before
    del pipeline
    deadline = time.monotonic() + 10
    while watching() > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_graph_that_does_not_fit_is_refused(fake: Fake, tmp_path: Path) -> None:
    folder = write_guard(tmp_path / "g", fake.url, rows=6)
    with pytest.raises(BundleError, match=r"rows\.onnx"):
        load_pipeline(folder, Settings(threads=1))


def test_verify_and_show_know_such_bundles(fake: Fake, tmp_path: Path) -> None:
    folder = str(write_guard(tmp_path / "g", fake.url))
    for command in ("verify", "show"):
        done = CliRunner().invoke(app, ["bundle", command, folder])
        assert done.exit_code == 0, done.output
    assert fake.url in " ".join(done.output.split())


def test_killed_under_load_no_request_hangs_and_no_event_is_lost(tmp_path: Path) -> None:
    """Every answer that said "flagged" has its event in the store, whatever happened to the upstream around it."""
    answers: list[httpx.Response] = []
    with (
        faked(fake_server()) as fake,
        guarding(fake, tmp_path, audit_sample=0.0, upstream_failures=3, upstream_timeout=10.0) as gateway,
    ):
        gateway.api.state.audit.start()

        def client(number: int) -> None:
            with httpx.Client(timeout=10) as session:
                for _ in range(30):
                    answers.append(session.post(f"{gateway.url}/v1/predict", content=PATCHED))
                    if number == 0 and len(answers) > 40:
                        fake.drop = True  # from now on it only hangs up

        start = time.monotonic()
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(client, range(6)))
        assert time.monotonic() - start < 60
        audit = gateway.api.state.audit
        audit.close()
        stored = {event.id for event in audit.store.page(Filter(), limit=200)}
    statuses = {answer.status_code for answer in answers}
    assert len(answers) == 180
    assert statuses <= {200, 503}
    assert statuses == {200, 503}
    flagged = {answer.headers["x-request-id"] for answer in answers if answer.status_code == 200}
    assert flagged == stored


def test_errors_keep_their_kind_through_the_batcher() -> None:
    for error, status in ((UpstreamUnavailable, 503), (UpstreamTimeout, 504), (UpstreamInvalid, 502)):
        assert error("x").problem()["status"] == status


def test_a_bundle_states_either_graphs_or_an_upstream(fake: Fake, tmp_path: Path) -> None:
    bundle = load_bundle(write_guard(tmp_path / "g", fake.url))
    with pytest.raises(ValueError, match="neither graphs of a network"):
        type(bundle.manifest).model_validate(bundle.manifest.model_dump() | {"companion": True})
    with pytest.raises(ValueError, match="graphs lacks the part"):
        type(bundle.manifest).model_validate(bundle.manifest.model_dump() | {"upstream": None})
