"""A running gateway as an oracle for black-box attacks, at each level of disclosure (docs/security.md).

The goal is an *undetected wrong answer*. At `full` and `verdict` the caller sees probabilities and the verdict and can
lower a loss made of both (`Endpoint.score`, for Square); at `label` nothing is to be seen but the label
(`Endpoint.fooled`, for RayS).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from gateway.client import ROOM_AGAIN, Gateway, GatewayAnswer, GatewayUnreachable, Patience
from training.attacks.square import QueriesSpent
from training.errors import TrainingError
from training.served.scoring import png, to_uint8

_FLOOR = 1e-6  # of a probability: answers have six digits
_FLAG_WEIGHT = 1.0


@dataclass(frozen=True)
class Answer:
    """The answer to one image; None where the level of disclosure hides it (label: refused by policy)."""

    label: int | None
    probabilities: dict[int, float] | None
    flagged: bool | None
    p_value: float | None


class Endpoint:
    """`POST /v1/predict` of the gateway at `url`, asked by `workers` threads at once.

    `queries` counts answers. A request that is refused for the rate limit or overload, or that times out, is sent again
    after what `Retry-After` states, at most `tries` times, and counts once. Beyond `budget` answers `QueriesSpent` is
    raised; any other refusal is a `TrainingError` with the gateway's message.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        model: str | None = None,
        workers: int = 4,
        budget: int | None = None,
        tries: int = 20,
        timeout: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gateway, self._lock = Gateway(url, key), Lock()
        self._query = {} if model is None else {"model": model}
        self._workers, self._timeout, self._sleep = workers, timeout, sleep
        self._patience = Patience(tries=tries, reconnect=True)
        self._top: dict[str, str] | None = None
        self.budget, self.queries = budget, 0

    def score(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss (M,) for `square`: below 0 where the answer is wrong and not flagged.

        Else the positive part of log p(label) - log p(runner-up), plus 1 - log(p-value) where the image is flagged.
        `TrainingError` at disclosure `label`, where there is nothing to lower.
        """
        losses = [self._loss(*pair) for pair in zip(self.ask(images), labels.tolist(), strict=True)]
        return torch.tensor(losses, device=images.device)

    def fooled(self, images: Tensor, labels: Tensor) -> Tensor:
        """For `rays`: which labels (M,) bool are wrong, all that is seen at disclosure `label`.

        Where the verdict is seen, a flagged answer does not count.
        """
        answers = zip(self.ask(images), labels.tolist(), strict=True)
        return torch.tensor(
            [answer.label not in {None, label} and not answer.flagged for answer, label in answers],
            device=images.device,
        )

    def ask(self, images: Tensor) -> list[Answer]:
        """The answers to images (M, C, H, W) in [0, 1], rounded to 8 bits and sent as PNG."""
        files = [png(image) for image in to_uint8(images.detach().cpu().numpy())]
        with self._lock:
            if self.budget is not None and self.queries + len(files) > self.budget:
                raise QueriesSpent(f"the budget of {self.budget:,} queries is spent")
            self.queries += len(files)
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(self._ask, files))

    def _ask(self, file: bytes) -> Answer:
        try:
            response = self._gateway.send_patiently(
                "POST",
                "v1/predict",
                patience=self._patience,
                sleep=self._sleep,
                content=file,
                params=self._parameters(),
                timeout=self._timeout,
                headers={"Content-Type": "image/png"},
            )
            return _read(response.json())
        except GatewayAnswer as error:
            if error.code == "blocked_by_policy":
                return Answer(None, None, True, None)
            if error.status in ROOM_AGAIN:
                raise self._gave_up(error) from None
            raise TrainingError(f"{self._gateway.url}: {error}") from None
        except GatewayUnreachable as error:
            raise self._gave_up(error) from None
        except (KeyError, TypeError, ValueError):
            raise TrainingError(f"{self._gateway.url} does not answer as a gateway does") from None

    def _gave_up(self, last: Exception) -> TrainingError:
        return TrainingError(f"{self._gateway.url}: no answer in {self._patience.tries} tries: {last}")

    def _parameters(self) -> dict[str, str]:
        """All classes are asked for, so that the label's probability is among them."""
        with self._lock:
            if self._top is None:
                models = self._gateway.call("GET", "v1", "models", timeout=self._timeout)["models"]
                name = self._query.get("model")
                classes = next(
                    (m["classes"] for m in models if m["name"] == name or (name is None and m["default"])), 1
                )
                self._top = self._query | {"top_k": str(classes)}
            return self._top

    @staticmethod
    def _loss(answer: Answer, label: int) -> float:
        if answer.flagged is None:
            raise TrainingError(
                "the gateway shows this key labels alone, from which no loss can be computed (use rays)"
            )
        alarm = _FLAG_WEIGHT * (1 - math.log(max(answer.p_value or 0.0, _FLOOR))) if answer.flagged else 0.0
        if answer.probabilities is None:  # refused by policy
            return alarm - math.log(_FLOOR)
        own = answer.probabilities.get(label, _FLOOR)
        other = max((p for index, p in answer.probabilities.items() if index != label), default=_FLOOR)
        if answer.label != label and not answer.flagged:
            return -1.0
        return max(math.log(max(own, _FLOOR)) - math.log(max(other, _FLOOR)), 0.0) + alarm


def _read(body: dict[str, Any]) -> Answer:
    verdict, top = body.get("verdict"), body.get("top")
    return Answer(
        label=int(body["prediction"]["index"]),
        probabilities=None if top is None else {int(each["index"]): float(each["probability"]) for each in top},
        flagged=None if verdict is None else bool(verdict["flagged"]),
        p_value=None if verdict is None else float(verdict["p_value"]),
    )
