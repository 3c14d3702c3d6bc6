"""Every setting of the gateway: environment variables with the prefix `PALISADE_`, or keyword arguments in tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.errors import ConfigError

DEFAULT_MODEL = "gtsrb"


def shipped_models() -> list[Path]:
    """`models` of the working directory, or else beside the package, where a checkout and a bento keep it."""
    # Absolute at once: BentoML changes the working directory while it imports a bento.
    here = Path("models").absolute()
    beside = Path(__file__).resolve().parents[1] / "models"
    return [beside if beside.is_dir() and not here.is_dir() else here]


class Settings(BaseSettings):
    """Settings of one gateway process; each field is `PALISADE_<FIELD>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="PALISADE_", frozen=True, extra="ignore")

    models: Annotated[list[Path], NoDecode] = Field(default_factory=shipped_models, min_length=1)
    """Folders of bundles, or single bundles, separated like PATH."""
    default_model: str | None = None
    """Model of requests that name none; unset: `gtsrb` if it is served, else the first by name."""
    alpha: float | None = Field(default=None, gt=0.0, lt=1.0)
    """False-positive rate of the flag, in place of every bundle's own; must have been calibrated."""
    policy: Literal["observe", "sanitize", "block"] | None = None
    """Action on flagged inputs, in place of every bundle's own."""

    max_body_bytes: int = Field(default=10_000_000, ge=1_000)
    # Above Pillow's own bound it would warn (and from twice that refuse) by itself.
    max_pixels: int = Field(default=16_000_000, ge=64, le=89_000_000)
    body_timeout: float = Field(default=20.0, gt=0.0)
    """Seconds a client may take to send a request body."""
    request_timeout: float = Field(default=30.0, gt=0.0)
    """Seconds from a complete body to an answer; beyond it the answer is 503 `overloaded`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0, le=256)
    """Intra-op threads of one worker; 0: usable cores (affinity and container quota) divided by the workers."""
    workers: int = Field(default=1, ge=1, le=64)
    concurrency: int = Field(default=2, ge=1, le=64)
    """Images in work at once in one worker."""
    max_waiting: int = Field(default=64, ge=0, le=10_000)
    """Images that may wait for one of those places; beyond it the answer is 503 `overloaded`."""

    host: str = "127.0.0.1"
    port: int = Field(default=3000, ge=1, le=65_535)

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part for part in value.split(os.pathsep) if part]
        return value


def load_settings(**overrides: object) -> Settings:
    """Settings of the environment, with `overrides` first; `ConfigError` names the variable that is wrong."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks the types
    except ValidationError as error:
        first = error.errors()[0]
        name = "PALISADE_" + "_".join(map(str, first["loc"])).upper()
        raise ConfigError(f"{name}={first.get('input')!r}: {first['msg']}") from None
