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

    model_config = SettingsConfigDict(env_prefix="PALISADE_", env_ignore_empty=True, frozen=True, extra="ignore")

    models: Annotated[list[Path], NoDecode] = Field(default_factory=shipped_models, min_length=1)
    """Folders of bundles, or single bundles, separated like PATH."""
    default_model: str | None = None
    """Model of requests that name none; unset: `gtsrb` if it is served, else the first by name."""
    alpha: float | None = Field(default=None, gt=0.0, lt=1.0)
    """False-positive rate of the flag, in place of every bundle's own; must have been calibrated."""
    policy: Literal["observe", "sanitize", "block"] | None = None
    """Action on flagged inputs, in place of every bundle's own."""

    max_body_bytes: int = Field(default=10_000_000, ge=1_000)
    # Above its own bound Pillow would warn, and from twice that refuse, by itself.
    max_pixels: int = Field(default=16_000_000, ge=64, le=89_000_000)
    body_timeout: float = Field(default=20.0, gt=0.0)
    """Seconds a client may take to send the head of a request, and again its body."""
    request_timeout: float = Field(default=30.0, gt=0.0)
    """Seconds from a complete body to an answer; beyond it the answer is 503 `overloaded`."""

    keep_alive: int = Field(default=75, ge=1, le=3600)
    """Seconds an idle connection stays open: longer than common load balancers keep one for reuse."""
    drain_timeout: int = Field(default=25, ge=1, le=3600)
    """Seconds that requests in flight get to finish when the server is stopped (SIGTERM)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "fp16"] = "auto"
    """`auto`: fp16 on CUDA where the bundle was calibrated for it, else fp32."""
    threads: int = Field(default=0, ge=0, le=256)
    """Intra-op threads of one worker; 0: usable cores (affinity and container quota) divided by the workers."""
    workers: int = Field(default=1, ge=1, le=64)
    decode_threads: int = Field(default=2, ge=1, le=64)
    """Images decoded, and pictures encoded, at once in one worker."""
    batches_in_flight: int = Field(default=2, ge=1, le=8)
    """Batches that run at once in one worker."""
    batch_window: float = Field(default=0.002, ge=0.0, le=1.0)
    """Seconds a batch waits for more images while another runs."""
    max_waiting: int = Field(default=256, ge=0, le=10_000)
    """Images that may wait in one worker; beyond it the answer is 503 `overloaded`."""

    cascade: bool = False
    """Answer images that the screen finds plainly benign without views, where the bundle was calibrated for it."""
    cascade_audit: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of the images that the screen lets through that get the whole verdict all the same."""

    upstream: str | None = None
    """Address of the server whose answers are judged, in place of the one that a bundle of `palisade guard` states."""
    upstream_token: str | None = Field(default=None, repr=False)
    """Sent to the upstream as `Authorization: Bearer`."""
    upstream_timeout: float = Field(default=10.0, gt=0.0)
    """Seconds that the upstream may take for one batch; beyond it the answer is 504 `upstream_timeout`."""
    upstream_failures: int = Field(default=5, ge=1)
    """Failures in a row after which the upstream is left alone."""
    upstream_pause: float = Field(default=2.0, gt=0.0)
    """Seconds until it is then tried again; meanwhile the answer is 503 `upstream_unavailable`, at once."""

    log_format: Literal["text", "json"] = "text"
    """`json`: an object a line, with the request's id, route, status and key."""
    trace_endpoint: str | None = None
    """OTLP address (HTTP) that spans are sent to, such as `http://collector:4318/v1/traces`; unset: no spans."""
    trace_rate: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of requests that are traced, where the caller has not decided whether to trace."""

    host: str = "127.0.0.1"
    port: int = Field(default=3000, ge=1, le=65_535)

    keys_file: Path | None = None
    """API keys (`palisade keys`). Unset: only this machine is answered, without keys."""
    allow_unauthenticated: bool = False
    """Answer strangers without keys too, as clients at `disclosure`."""
    disclosure: Literal["full", "verdict", "label"] = "verdict"
    """What callers with the role `client` see, unless their key states another disclosure."""
    rate: float | None = Field(default=None, gt=0.0)
    """Requests a second of each client; unset: unlimited."""
    burst: int | None = Field(default=None, ge=1)
    """Requests that a client may send at once after a rest; unset: those of one second."""
    metrics_token: str | None = Field(default=None, repr=False)
    """Token that `/metrics` asks for; unset: open to all."""
    label_quantum: float = Field(default=0.1, gt=0.0, le=10.0)
    """Answers at disclosure `label` are sent at multiples of at least this many seconds."""
    state_dir: Path | None = None
    """Folder on a local disk for what the workers of this server share; unset: a temporary one."""

    audit: bool = True
    """Keep flagged, changed and blocked requests, and a uniform sample, for review."""
    data_dir: Path | None = None
    """Folder of the audit trail (spool, and SQLite unless `audit_url` is set); unset: the user's data folder."""
    audit_url: str | None = Field(default=None, repr=False)
    """`postgresql://user:password@host/name`, one database for several gateways; unset: SQLite in `data_dir`."""
    audit_sample: float = Field(default=0.01, ge=0.0, le=1.0)
    """Probability with which any request is drawn into the uniform sample."""
    audit_privacy: Literal["none", "hash", "image"] = "image"
    """What is kept of an image: nothing, the SHA-256 of the bytes sent, or also pixels and maps."""
    audit_max_events: int = Field(default=50_000, ge=1)
    audit_max_bytes: int = Field(default=1 << 30, ge=0)
    """Bytes of images and maps in the store; beyond it the oldest events lose their pictures and stay."""
    audit_max_age_days: float = Field(default=30.0, gt=0.0)
    audit_spool_bytes: int = Field(default=256 << 20, ge=1 << 16)
    """Bytes of events that may wait for the store; near it new events lose their images, beyond it they are dropped."""

    campaigns: bool = True
    """Keep salted fingerprints of all images decided on, beside the audit trail, and look for query campaigns in them.
    They need the trail, and `audit_privacy` other than `none`."""
    campaign_queries: int = Field(default=1_000_000, ge=1_000, le=20_000_000)
    """Queries that are kept and compared; one worker of all holds some 330 bytes of memory for each."""
    campaign_max_age_days: float = Field(default=7.0, gt=0.0)
    """Days after which the fingerprint of a query is removed; case files stay as long as events."""
    campaign_reaction: Literal["alert", "label", "rate", "block"] = "alert"
    """What happens to a client's key that took part in a query campaign: nothing but the alert, disclosure `label`, at
    most `campaign_rate` requests a second, or none. A key's own entry (`campaigns`) comes first."""
    campaign_reaction_hours: float = Field(default=24.0, gt=0.0)
    """Hours after a campaign's last query for which that lasts."""
    campaign_rate: float = Field(default=0.1, gt=0.0)
    """Requests a second of such a key, where the reaction is `rate`."""

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part for part in value.split(os.pathsep) if part]
        return value

    @field_validator("keys_file", "state_dir", "data_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        # At once: BentoML changes the working directory.
        try:
            return None if value is None else value.expanduser().absolute()
        except RuntimeError as error:  # ~ cannot be expanded: the user has no home folder
            raise ValueError(str(error)) from None


def load_settings(**overrides: object) -> Settings:
    """Settings of the environment, with `overrides` first; `ConfigError` names the variable that is wrong."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks the types
    except ValidationError as error:
        first = error.errors()[0]
        name = "PALISADE_" + "_".join(map(str, first["loc"])).upper()
        raise ConfigError(f"{name}={first.get('input')!r}: {first['msg']}") from None
