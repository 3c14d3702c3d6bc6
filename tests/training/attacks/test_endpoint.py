"""A gateway as an oracle, played by a linear network behind httpx's mock transport."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.training.toy import Linear
from training.attacks.endpoint import Endpoint
from training.attacks.rays import rays
from training.attacks.square import QueriesSpent, square
from training.errors import TrainingError
from training.util.module_modes import seeded

WEIGHT = torch.randn(3, 48, generator=seeded(1))
NETWORK = Linear(WEIGHT)
X = torch.randint(60, 190, (4, 3, 4, 4), generator=seeded(2)) / 255
Y = NETWORK(X).argmax(1)
URL = "http://gateway.test"

Answerer = Callable[[Tensor], dict[str, object]]


def full(image: Tensor, *, flagged: bool = False) -> dict[str, object]:
    p = NETWORK(image[None]).softmax(1)[0].tolist()
    top = sorted(
        ({"label": str(k), "index": k, "probability": v} for k, v in enumerate(p)), key=lambda c: -c["probability"]
    )
    return {"prediction": top[0], "top": top, "verdict": {"flagged": flagged, "p_value": 0.01 if flagged else 0.5}}


def label(image: Tensor) -> dict[str, object]:
    return {"prediction": {"label": "?", "index": int(NETWORK(image[None]).argmax())}}


class Server:
    """Answers as `answer` says; refuses the first requests with the responses in `refusals`."""

    def __init__(self, answer: Answerer, refusals: list[httpx.Response | Exception] | None = None) -> None:
        self.answer, self.refusals, self.queries = answer, list(refusals or []), list[dict[str, Any]]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"models": [{"name": "signs", "default": True, "classes": 3}]})
        assert request.url.path == "/v1/predict"
        if self.refusals:
            refusal = self.refusals.pop(0)
            if isinstance(refusal, Exception):
                raise refusal
            return refusal
        self.queries.append(dict(request.url.params))
        pixels = np.asarray(Image.open(io.BytesIO(request.read())))
        return httpx.Response(200, json=self.answer(torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255))


def problem(status: int, code: str, wait: str | None = None) -> httpx.Response:
    headers = {} if wait is None else {"Retry-After": wait}
    return httpx.Response(status, json={"code": code, "detail": code}, headers=headers)


def endpoint(server: Server, **changed: Any) -> Endpoint:
    made = Endpoint(URL, "pal_key", **{"workers": 1, **changed})
    made._gateway._client = httpx.Client(transport=httpx.MockTransport(server), base_url=URL)
    return made


def test_the_loss_is_the_margin_of_what_is_told() -> None:
    server = Server(full)
    asked = endpoint(server)
    loss, (first, second) = asked.score(X, Y), NETWORK(X).log_softmax(1).topk(2).values.T
    torch.testing.assert_close(loss, first - second, atol=1e-3, rtol=1e-3)
    assert server.queries[0] == {"top_k": "3"}  # the label is among them wherever it stands
    assert asked.queries == 4
    assert (asked.score(X, (Y + 1) % 3) == -1).all()


def test_a_flagged_answer_is_no_success_and_costs_by_its_p_value() -> None:
    flagged = endpoint(Server(lambda image: full(image, flagged=True)))
    torch.testing.assert_close(
        flagged.score(X, Y) - endpoint(Server(full)).score(X, Y), torch.full((4,), 1 - math.log(0.01))
    )
    assert (flagged.score(X, (Y + 1) % 3) > 0).all()
    assert not flagged.fooled(X, (Y + 1) % 3).any()


def test_labels_alone_are_enough_for_rays_and_too_little_for_a_loss() -> None:
    asked = endpoint(Server(label))
    assert asked.fooled(X, Y).tolist() == [False] * 4
    assert asked.fooled(X, (Y + 1) % 3).tolist() == [True] * 4
    with pytest.raises(TrainingError, match="labels alone"):
        asked.score(X, Y)
    found = rays(asked.fooled, X, Y, eps=80 / 255, queries=60, generator=seeded(0))
    assert found.succeeded.any()
    assert torch.equal(NETWORK(found.adversarial).argmax(1) != Y, found.succeeded)


def test_square_finds_what_it_would_find_at_hand() -> None:
    found = square(endpoint(Server(full)).score, X, Y, eps=60 / 255, queries=60, generator=seeded(0))
    assert found.succeeded.any()
    assert torch.equal(NETWORK(found.adversarial).argmax(1) != Y, found.succeeded)


def test_refusals_are_waited_out_and_not_counted() -> None:
    waits: list[float] = []
    refusals: list[httpx.Response | Exception] = [
        problem(429, "rate_limited", "7"),
        problem(503, "overloaded", "2"),
        httpx.ReadTimeout("late"),
    ]
    server = Server(full, refusals)
    asked = endpoint(server, sleep=waits.append)
    asked.score(X[:1], Y[:1])
    # What Retry-After says and up to a quarter more, as tests/gateway/test_client.py says of every client.
    assert [7 <= waits[0] <= 8.75, 2 <= waits[1] <= 2.5] == [True, True]
    assert len(waits) == 3
    assert asked.queries == len(server.queries) == 1


def test_what_is_refused_for_good_is_said() -> None:
    with pytest.raises(TrainingError, match="unauthorized"):
        endpoint(Server(full, [problem(401, "unauthorized")])).ask(X)
    with pytest.raises(TrainingError, match="no answer in 3 tries"):
        endpoint(Server(full, [problem(503, "overloaded")] * 3), tries=3, sleep=lambda _s: None).ask(X[:1])
    with pytest.raises(TrainingError, match="does not answer as a gateway"):
        endpoint(Server(lambda _image: {})).ask(X)


def test_a_block_is_a_flag() -> None:
    asked = endpoint(Server(full, [problem(403, "blocked_by_policy")] * 2))
    (answer,) = asked.ask(X[:1])
    assert (answer.flagged, answer.label) == (True, None)
    assert asked.score(X[:1], Y[:1]) > 10  # worse than any answer


def test_the_budget_is_for_all_images_together() -> None:
    asked = endpoint(Server(full), budget=6)
    asked.ask(X)
    with pytest.raises(QueriesSpent, match="budget of 6"):
        asked.ask(X)
    assert asked.queries == 4
