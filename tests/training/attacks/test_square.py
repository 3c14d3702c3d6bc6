from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from tests.training.toy import Linear
from training.attacks.margin import margin
from training.attacks.square import QueriesSpent, margin_score, session_score, square
from training.util.module_modes import seeded

WEIGHT = torch.randn(2, 16, generator=seeded(1))
NETWORK = Linear(WEIGHT)
X = torch.randint(60, 190, (6, 1, 4, 4), generator=seeded(2)) / 255
Y = NETWORK(X).argmax(1)
SLOPE = (WEIGHT[Y] - WEIGHT[1 - Y]).view_as(X)


def never(images: Tensor, labels: Tensor) -> Tensor:
    """The margin, moved up so that nothing is a success."""
    return margin(NETWORK(images), labels) + 100


@torch.no_grad()
def test_finds_the_corner_of_a_linear_model() -> None:
    found = square(never, X, Y, eps=8 / 255, queries=600, generator=seeded(0))
    torch.testing.assert_close(found.adversarial, X - 8 / 255 * SLOPE.sign())
    assert found.queries.tolist() == [600] * 6
    assert not found.succeeded.any()


def test_images_are_such_as_a_file_can_carry() -> None:
    """eps rounded down to steps of 1/255, pixels multiples of it, in the ball and in [0, 1]."""
    seen: list[Tensor] = []

    def score(images: Tensor, labels: Tensor) -> Tensor:
        seen.append(images)
        return never(images, labels).detach()

    x = torch.where(torch.rand(X.shape, generator=seeded(3)) < 0.3, X.round(), X)
    square(score, x, Y, eps=0.05, queries=40, generator=seeded(0))
    asked = torch.stack(seen)
    torch.testing.assert_close(asked * 255, (asked * 255).round(), atol=1e-4, rtol=0)
    assert ((asked - x).abs().amax() * 255).round() == 12
    assert asked.min() >= 0
    assert asked.max() <= 1
    with pytest.raises(ValueError, match="multiples"):
        square(score, X + 0.001, Y, eps=0.05)


@torch.no_grad()
def test_an_image_is_asked_about_until_it_falls() -> None:
    distance = margin(NETWORK(X), Y) / SLOPE.flatten(1).abs().sum(1)
    eps = float(distance.median() * 255).__ceil__() / 255
    found = square(margin_score(NETWORK), X, Y, eps=eps, queries=300, generator=seeded(0))
    assert torch.equal(found.succeeded, margin(NETWORK(found.adversarial), Y) < 0)
    assert 0 < found.succeeded.sum() < 6
    assert (found.queries[found.succeeded] < 300).all()
    assert (found.queries[~found.succeeded] == 300).all()
    assert not found.succeeded[distance > eps].any()
    wrong = square(margin_score(NETWORK), X, 1 - Y, eps=0.0, queries=5)
    assert wrong.queries.tolist() == [1] * 6


def test_an_onnx_session_is_asked_the_same() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["pixels"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight"], ["logits"], transB=1),
        ],
        "linear",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 1, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(WEIGHT.numpy(), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found, expected = (
        square(score, X, Y, eps=4 / 255, queries=30, generator=seeded(0))
        for score in (session_score(session), margin_score(NETWORK))
    )
    assert torch.equal(found.adversarial, expected.adversarial)
    assert torch.equal(found.queries, expected.queries)


def test_further_inputs_of_a_session_follow_the_pixels() -> None:
    class Session:
        def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert outputs == ["logits"]
            assert inputs["mask"].shape == (6, 4, 4)
            return [np.tile(np.array([[1.0, 0.0]], np.float32), (6, 1))]

    score = session_score(Session(), mask=lambda pixels: np.zeros_like(pixels[:, 0]))
    assert score(X, torch.zeros(6, dtype=torch.long)).tolist() == [1.0] * 6


def test_a_spent_budget_ends_it_with_what_there_is() -> None:
    left = [7]

    def score(images: Tensor, labels: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise QueriesSpent("spent")
        return never(images, labels).detach()

    found = square(score, X, Y, eps=8 / 255, queries=100, generator=seeded(0))
    assert found.queries.tolist() == [7] * 6
    assert (never(found.adversarial, Y) < never(X, Y)).all()


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="needed"):
        square(never, X, Y, eps=0.1, queries=0)
