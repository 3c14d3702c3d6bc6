"""Every setting of the gateway: environment variables with the prefix `PALISADE_`, or keyword arguments in tests."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.errors import ConfigError
from gateway.trust.admission import Demands

DEFAULT_MODEL = "gtsrb"
_ADDRESS = re.compile(r"^[a-z][a-z0-9+]*://")


def shipped_models() -> list[Path]:
    """`models` of the working directory, or else beside the package, where a checkout and a bento keep it."""
    # Absolute at once: BentoML changes the working directory while it imports a bento.
    here = Path("models").absolute()
    beside = Path(__file__).resolve().parents[1] / "models"
    return [beside if beside.is_dir() and not here.is_dir() else here]


class Settings(BaseSettings):
    """Settings of one gateway process; each field is `PALISADE_<FIELD>` in the environment."""

    model_config = SettingsConfigDict(
        env_prefix="PALISADE_", env_ignore_empty=True, frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    models: Annotated[list[Path], NoDecode] = Field(default_factory=shipped_models, min_length=1)
    """Folders of bundles, or single bundles, separated like PATH. Addresses (`s3://...`, `oci://...`; then separated by
    commas) are fetched at the start (docs/trust.md); here they stand as the folders that they are fetched to."""
    pull_timeout: float = Field(default=3600.0, gt=0.0)
    """Seconds that fetching one bundle of a remote entry of `models` may take."""
    cache_dir: Path | None = None
    """Folder that bundles are fetched to; unset: `palisade` below the user's folder for caches."""
    default_model: str | None = None
    """Model of requests that name none; unset: `gtsrb` if it is served, else the first by name."""
    alpha: float | None = Field(default=None, gt=0.0, lt=1.0)
    """False-positive rate of the flag, in place of every bundle's own; must have been calibrated."""
    policy: Literal["observe", "sanitize", "block"] | None = None
    """Action on flagged inputs, in place of every bundle's own."""
    block_from: Literal["flagged", "suspect"] = "flagged"
    """Level from which the policy `block` gives no answer; `suspect`: at the bundle's second level (5 %) already."""

    trust: Annotated[list[Path], NoDecode] = Field(default_factory=list)
    """Public keys or root certificates (PEM files, separated like PATH), one of which must have signed every bundle;
    unset: bundles need no signature. Needs the extra `trust`."""
    require_card: int | None = Field(default=None, ge=0)
    """Serve only bundles with a complete robustness card whose checks passed, no measurement of it older than so many
    days."""
    require: Literal["agreed", "proved"] | None = None
    """Level of certificate below which no answer is given (403 `not_certified`); every image is then certified."""
    certify_share: float = Field(default=0.02, gt=0.0, le=0.25)
    """Share of the image under the square patch that certificates are about, where a request names no size."""

    max_body_bytes: int = Field(default=10_000_000, ge=1_000)
    """Bytes of a request; beyond it the answer is 413 `image_too_large`."""
    # Above its own bound Pillow would warn, and from twice that refuse, by itself.
    max_pixels: int = Field(default=16_000_000, ge=64, le=89_000_000)
    """Pixels that an image may have before it is resized."""
    body_timeout: float = Field(default=20.0, gt=0.0)
    """Seconds a client may take to send the head of a request, and again its body."""
    request_timeout: float = Field(default=30.0, gt=0.0)
    """Seconds from a complete body to an answer; beyond it the answer is 503 `overloaded`."""

    keep_alive: int = Field(default=75, ge=1, le=3600)
    """Seconds an idle connection stays open: longer than common load balancers keep one for reuse."""
    drain_timeout: int = Field(default=25, ge=1, le=3600)
    """Seconds that requests in flight get to finish when the server is stopped (SIGTERM)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU where there is one."""
    precision: Literal["auto", "fp32", "fp16"] = "auto"
    """`auto`: fp16 on CUDA where the bundle was calibrated for it, else fp32."""
    threads: int = Field(default=0, ge=0, le=256)
    """Intra-op threads of one worker; 0: usable cores (affinity and container quota) divided by the workers."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that serve; each loads every model."""
    decode_threads: int = Field(default=2, ge=1, le=64)
    """Images decoded, and pictures encoded, at once in one worker."""
    batches_in_flight: int = Field(default=3, ge=1, le=8)
    """Batches that run at once in one worker."""
    batch_window: float = Field(default=0.002, ge=0.0, le=1.0)
    """Seconds a batch waits for more images while another runs."""
    max_waiting: int = Field(default=256, ge=0, le=10_000)
    """Images that may wait in one worker; beyond it the answer is 503 `overloaded`."""

    cascade: bool = False
    """Answer images that the screen finds plainly benign without views, where the bundle was calibrated for it."""
    cascade_audit: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of the images that the screen lets through that get the whole verdict all the same."""

    votes: bool = False
    """Masks vote on every verdict: on a share of the images, which the card states, no small patch changes the answer
    without a flag. A part of alpha is for it. Bundles without a calibration for it (`palisade votes`) are refused."""
    pool: bool | None = None
    """All networks of a bundle answer together, under the policy `sanitize`: of what fools the answering network alone,
    more is answered rightly. Unset: wherever a bundle is calibrated for it (`palisade pool`); `true` refuses others."""

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
    """Address that is listened on; any but this machine's own needs `keys_file` or `allow_unauthenticated`."""
    port: int = Field(default=3000, ge=1, le=65_535)
    """Port that is listened on."""

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
    replicas_url: str | None = Field(default=None, repr=False)
    """`postgresql://user:password@host/name`, through which several gateways that are one service hold one limit for
    each caller and serve the same versions; unset: each gateway for itself."""

    audit: bool = True
    """Keep flagged, changed and blocked requests, and a uniform sample, for review."""
    data_dir: Path | None = None
    """Folder of the audit trail (spool, and SQLite unless `audit_url` is set); unset: the user's data folder."""
    audit_url: str | None = Field(default=None, repr=False)
    """`postgresql://user:password@host/name`, one database for several gateways; unset: SQLite in `data_dir`."""
    audit_sample: float = Field(default=0.01, ge=0.0, le=1.0)
    """Probability with which any request is drawn into the uniform sample, and its p-value into the watch on drift."""
    audit_suspects: bool = False
    """Keep suspect requests, too: inputs unusual at the second level alone, up to 5 % of benign traffic."""
    audit_privacy: Literal["none", "hash", "image"] = "image"
    """What is kept of an image: nothing, the SHA-256 of the bytes sent, or also pixels and maps."""
    audit_max_events: int = Field(default=50_000, ge=1)
    """Events in the store; beyond it the oldest go."""
    audit_max_bytes: int = Field(default=1 << 30, ge=0)
    """Bytes of images and maps in the store; beyond it the oldest events lose their pictures and stay."""
    audit_max_age_days: float = Field(default=30.0, gt=0.0)
    """Days after which an event goes."""
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

    _sources: dict[str, Path] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _fetched_to(cls, values: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Put the folder in the place of each address among the models."""
        addresses: list[str] = []
        if isinstance(values, dict) and "models" in values:
            given = values["models"]
            parts = _split(given) if isinstance(given, str) else list(given)
            addresses = [part for part in parts if isinstance(part, str) and _ADDRESS.match(part)]
            values = values | {"models": parts}
            if addresses:
                root = Path(values.get("cache_dir") or _caches())
                values["models"] = [_below(root, part) if part in addresses else part for part in parts]
        made = handler(values)
        if addresses:
            root = made.cache_dir or _caches()
            made._sources |= {address: _below(root, address).absolute() for address in addresses}  # noqa: SLF001
        return made

    @property
    def sources(self) -> dict[str, Path]:
        """Of the entries of `models` that were addresses: the folder that each is fetched to."""
        return dict(self._sources)

    @field_validator("trust", mode="before")
    @classmethod
    def _paths(cls, value: object) -> object:
        return _split(value) if isinstance(value, str) else value

    @field_validator("trust")
    @classmethod
    def _readable(cls, value: list[Path]) -> list[Path]:
        for path in value:
            if not path.is_file():
                raise ValueError(f"{path}: no such file")
        return [path.absolute() for path in value]

    @property
    def demands(self) -> Demands:
        """What is asked of a bundle beyond soundness."""
        return Demands(tuple(self.trust), self.require_card)

    @field_validator("keys_file", "state_dir", "data_dir", "cache_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        # At once: BentoML changes the working directory.
        try:
            return None if value is None else value.expanduser().absolute()
        except RuntimeError as error:  # ~ cannot be expanded: the user has no home folder
            raise ValueError(str(error)) from None


def _split(text: str) -> list[str]:
    """Entries separated as those of PATH are, or by commas where one is an address, which has colons of its own."""
    return [part.strip() for part in text.split("," if "://" in text else os.pathsep) if part.strip()]


def _caches() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "palisade"
    except RuntimeError:  # the user has no home folder
        raise ValueError("an address needs a folder to be fetched to: set PALISADE_CACHE_DIR") from None


def _below(root: Path, address: str) -> Path:
    """The folder of the bundles that were fetched from `address`."""
    return root / hashlib.sha256(address.encode()).hexdigest()[:16]


def load_settings(**overrides: object) -> Settings:
    """Settings of the environment, with `overrides` first; `ConfigError` names the variable that is wrong."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks the types
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of no single setting
            raise ConfigError(first["msg"].removeprefix("Value error, ")) from None
        name = "PALISADE_" + "_".join(map(str, first["loc"])).upper()
        raise ConfigError(f"{name}={first.get('input')!r}: {first['msg']}") from None
