"""Tensors in JSON and requests of the Open Inference Protocol: what is refused rather than converted."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gateway.errors import BadParameter
from gateway.http.routes.oip.outputs import wanted
from gateway.http.routes.oip.tensors import DTYPES, read_request

KINDS = {name: np.dtype(code).kind for name, code in DTYPES.items()}
INTEGERS = [name for name, kind in KINDS.items() if kind in "iu"]
FLOATS = [name for name, kind in KINDS.items() if kind == "f"]


def tensor(datatype: str, shape: list[int], data: object) -> dict[str, object]:
    return {"name": "x", "datatype": datatype, "shape": shape, "data": data}


def read(datatype: str, shape: list[int], data: object) -> np.ndarray:
    """The tensor of a request; `data` as a value, or as the text that stands in the JSON."""
    text = data if isinstance(data, str) else json.dumps(data)
    body = json.dumps({"inputs": [tensor(datatype, shape, 0)]}).replace('"data": 0', f'"data": {text}')
    return read_request(body.encode(), None)[1]["x"].numbers()


def refused(request: dict[str, Any] | str) -> str:
    body = request if isinstance(request, str) else json.dumps(request)
    with pytest.raises(BadParameter) as caught:
        wanted(read_request(body.encode(), None)[0], "full")
    return caught.value.detail


@pytest.mark.parametrize("datatype", DTYPES)
def test_elements_flat_and_nested(datatype: str) -> None:
    value: Any = {"b": True, "u": 1, "i": 1, "f": 0.5}[KINDS[datatype]]
    expected = np.full((2, 1, 3), value, DTYPES[datatype])
    for data in ([value] * 6, [[[value] * 3]] * 2):
        given = read(datatype, [2, 1, 3], data)
        assert given.dtype == expected.dtype
        assert np.array_equal(given, expected)
    assert read(datatype, [0, 3], []).shape == (0, 3)


NO_NUMBERS = ["null", '"0.5"', '"1"', '"true"', '""', "[1]", "[]", "{}", "01", "0x1", "True"]
NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", *(f"{sign}1{'0' * 400}" for sign in ("", "-"))]


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("wrong", [*NO_NUMBERS, *NOT_FINITE, "1" + "0" * 5000], ids=lambda text: text[:9])
def test_what_is_an_element_of_no_number_type(datatype: str, wrong: str) -> None:
    right = "true" if KINDS[datatype] == "b" else "1"
    for data in (f"[{wrong}, {right}]", f"[{right}, {wrong}]", f"[[{right}], [{wrong}]]"):
        with pytest.raises(BadParameter):
            read(datatype, [2, 1], data)


@pytest.mark.parametrize("datatype", DTYPES)
def test_booleans_are_elements_of_bool_alone(datatype: str) -> None:
    if KINDS[datatype] == "b":
        for number in ("0", "1", "1.0"):
            with pytest.raises(BadParameter, match="BOOL takes true and false"):
                read(datatype, [2], f"[true, {number}]")
    else:
        with pytest.raises(BadParameter, match=r"takes (integers|numbers) \(got true\)"):
            read(datatype, [2], "[0, true]")


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_are_whole_and_within_their_range_exactly(datatype: str) -> None:
    bounds = np.iinfo(DTYPES[datatype])
    assert read(datatype, [2], [bounds.min, bounds.max]).tolist() == [bounds.min, bounds.max]
    for wrong in (str(bounds.min - 1), str(bounds.max + 1), "0.5", "1.0", "1e0", str(10**30)):
        with pytest.raises(BadParameter, match="takes integers"):
            read(datatype, [2], f"[0, {wrong}]")


@pytest.mark.parametrize("datatype", FLOATS)
def test_numbers_may_be_integers_and_must_be_finite(datatype: str) -> None:
    largest = float(np.finfo(DTYPES[datatype]).max)
    assert read(datatype, [3], [0, 1, 0.25]).tolist() == [0.0, 1.0, 0.25]
    assert read(datatype, [2], [largest, -largest]).tolist() == [largest, -largest]
    for wrong in (f"{largest * 1.01!r}", str(10**39), str(10**400)):
        with pytest.raises(BadParameter, match="finite numbers of its range"):
            read(datatype, [2], f"[0, {wrong}]")


MISSHAPEN = [
    [1],
    [1] * 5,
    [],
    [[1, 1, 1]],
    [[1, 1], [1, 1], [1, 1]],
    [[1, 1, 1], [1, 1]],
    [[1, 1, 1], 1],
    [1, [1, 1, 1]],
    [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
    [[[1], [1], [1]], [[1], [1], [1]]],
    [[[1, 1, 1], [1, 1, 1]]],
    [[1, 1, 1], [1, 1, [1]]],
    [[], []],
]


@pytest.mark.parametrize("data", MISSHAPEN, ids=str)
def test_lists_of_another_shape(data: object) -> None:
    for datatype in ("UINT8", "FP32", "INT64"):
        with pytest.raises(BadParameter, match="data must have the shape"):
            read(datatype, [2, 3], data)


def test_strings_are_flat_or_nested_in_their_shape_too() -> None:
    def items(shape: list[int], data: object) -> list[bytes]:
        return read_request(json.dumps({"inputs": [tensor("BYTES", shape, data)]}).encode(), None)[1]["x"].items()

    sound: list[tuple[list[int], object]] = [
        ([2], ["YQ==", "Yg=="]),
        ([2, 1], ["YQ==", "Yg=="]),
        ([2, 1], [["YQ=="], ["Yg=="]]),
    ]
    misshapen: list[tuple[list[int], object]] = [
        ([2], [["YQ=="], ["Yg=="]]),
        ([2, 1], [["YQ=="], "Yg=="]),
        ([2, 1], [["YQ==", "Yg=="]]),
    ]
    others: list[object] = [None, 1, True, {}]
    for shape, data in sound:
        assert items(shape, data) == [b"a", b"b"]
    for shape, data in misshapen:
        with pytest.raises(BadParameter, match="data must have the shape"):
            items(shape, data)
    for wrong in others:
        with pytest.raises(BadParameter, match="base64 text"):
            items([1], [wrong])


SOUND = {"inputs": [tensor("UINT8", [1], [1])]}


def test_keys_that_the_protocol_does_not_have() -> None:
    assert refused(SOUND | {"ouputs": []}) == "unknown key 'ouputs'; did you mean 'outputs'?"
    assert refused({"input": SOUND["inputs"]}) == "unknown key 'input'; did you mean 'inputs'?"
    assert refused(SOUND | {"zzz": 1}).startswith("unknown key 'zzz'; known here: id, model_name, parameters, inputs")
    typo = {"inputs": [tensor("UINT8", [1], [1]) | {"dtype": "UINT8"}]}
    assert refused(typo) == "inputs.0: unknown key 'dtype'; did you mean 'datatype'?"
    assert "outputs.1: unknown key 'nam'" in refused(SOUND | {"outputs": [{"name": "label"}, {"nam": "flagged"}]})


def test_parameters_are_the_protocols_place_for_extensions() -> None:
    # What tritonclient sends, and what other servers know: ignored.
    known_elsewhere = {
        "sequence_id": 1,
        "sequence_start": True,
        "priority": 2,
        "timeout": 5,
        "content_type": "np",
        "x": 0.5,
    }
    request = SOUND | {"parameters": known_elsewhere, "outputs": [{"name": "label", "parameters": known_elsewhere}]}
    request["inputs"] = [tensor("UINT8", [1], [1]) | {"parameters": known_elsewhere}]
    assert wanted(read_request(json.dumps(request).encode(), None)[0], "full") == {"label": False}
    for place, slip, meant in (
        ("request", "binary_data_ouput", "binary_data_output"),
        ("input", "binary_datasize", "binary_data_size"),
        ("output", "binarydata", "binary_data"),
    ):
        assert f"did you mean '{meant}'?" in refused(placed(place, {slip: 1}))
    for place in ("request", "input", "output"):
        for name in ("classification", "shared_memory_region"):
            assert f"{name} is not supported" in refused(placed(place, {name: "1"}))
        wrong: list[object] = [None, [], {}, [1]]
        for value in wrong:
            refused(placed(place, {"x": value}))
        refused(placed(place, {f"outbinary_put_data{i}": 1 for i in range(65)}))


def placed(place: str, parameters: dict[str, object]) -> dict[str, Any]:
    request: dict[str, Any] = {"inputs": [tensor("UINT8", [1], [1])], "outputs": [{"name": "label"}]}
    target = {"request": request, "input": request["inputs"][0], "output": request["outputs"][0]}[place]
    target["parameters"] = parameters
    return request


def test_absent_may_be_null() -> None:
    nothing = {"id": None, "model_name": None, "parameters": None, "outputs": None}
    request, _ = read_request(json.dumps(SOUND | nothing).encode(), None)
    assert (request.id, wanted(request, "label")) == (None, {"label_index": False, "label": False})


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": ["1"]},
        {"shape": [1.0]},
        {"shape": [True]},
        {"shape": "1"},
        {"shape": 1},
        {"name": 1},
        {"datatype": None},
        {"data": "1"},
        {"data": {"0": 1}},
        {"data": 1},
    ],
)
def test_no_value_is_made_to_fit(changes: dict[str, object]) -> None:
    refused({"inputs": [tensor("UINT8", [1], [1]) | changes]})


@pytest.mark.parametrize("value", [1, True, ["a"], {}])
def test_texts_are_texts(value: object) -> None:
    refused(SOUND | {"id": value})
    refused(SOUND | {"model_name": value})


@pytest.mark.parametrize("text", ["", "null", "[]", "1", "NaN", '{"inputs": NaN}', "{'inputs': []}", '{"inputs": [],}'])
def test_bodies_that_are_no_request(text: str) -> None:
    refused(text)


def test_a_literal_that_is_no_json_is_refused_wherever_it_stands() -> None:
    sound = json.dumps(SOUND | {"parameters": {"x": 1}})
    for literal in ("NaN", "Infinity", "-Infinity"):
        assert "not JSON" in refused(sound.replace('"x": 1', f'"x": {literal}'))
