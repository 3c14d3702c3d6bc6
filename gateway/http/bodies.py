"""JSON objects of requests: unknown keys are refused, and no value is converted to fit."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json

from gateway.errors import BadParameter
from gateway.names import unknown


class StrictBody(BaseModel):
    """A JSON object of a request; it refuses undeclared keys and values of another type, even `"1"` for 1."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            if key not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_key", "{text}", {"text": unknown("key", key, list(cls.model_fields))}
                )
        return given

    @classmethod
    def read(cls, data: bytes) -> Self:
        """The object in `data`; `BadParameter` names the first key that is wrong."""
        try:
            return cls.model_validate(from_json(data, allow_inf_nan=False))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadParameter(f"{where + ': ' if where else ''}{first['msg'][:200]}") from None
        except ValueError as error:
            raise BadParameter(f"the body is not JSON: {str(error)[:200]}") from None
