"""What the HTTP interface answers: pydantic models, from which the OpenAPI document is made."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.access.keys import Disclosure, Role
from gateway.core.certificate import By, Level, Wanted
from gateway.core.decision import Action, Region, Stage
from gateway.core.kinds import Kind
from gateway.core.manifest import Precision
from gateway.core.verdict import Level as VerdictLevel


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelRef(_Response):
    name: str
    version: str


class ClassScore(_Response):
    label: str
    index: int
    probability: float


class Evidence(_Response):
    """One detector score: its own p-value, and the layer that deviates most where the score is about layers."""

    name: str
    p_value: float
    layer: str | None = None


class Layer(_Response):
    """Deviation of a layer's neurons from the reference views, and the band that 95 % of benign images stay under."""

    name: str
    deviation: float
    p_value: float
    benign_95: float


class VotesBody(_Response):
    """What masks say of the served label: the mask under which another one leads it most, in probability.

    Of the network of small fields (`by`), the window of its cells without which another label leads most, or the whole
    image, which is heard sooner.
    """

    by: By = "masks"
    p_value: float = Field(description="Conformal p-value of the objection, which has a part of alpha.")
    objection: float = Field(description="By how much `index` leads the served label under that mask, from -1 to 1.")
    index: int
    label: str
    box: tuple[int, int, int, int] = Field(
        description="The mask, or what the cells left out see (the whole image: none is left out): top, left, height "
        "and width, in network pixels."
    )
    patch: int = Field(description="Side of the patches that the masks are made for, in network pixels.")
    whole: bool = Field(default=False, description="Whether the network of small fields objects with nothing left out.")


class VerdictBody(_Response):
    """Evidence, not proof: flagged when `p_value <= p_cutoff`, which at most `alpha` of benign images are."""

    stage: Stage = Field(description="`screen`: the cascade found the image plainly benign and ran no views")
    flagged: bool
    p_value: float
    alpha: float
    p_cutoff: float
    level: VerdictLevel = Field(
        description="`flagged`; `suspect`: not flagged, but `p_value <= suspect_cutoff`; `none`: neither"
    )
    suspect_alpha: float = Field(description="At most this share of benign images is suspect or flagged.")
    suspect_cutoff: float
    action: Action
    kind: Kind | None = Field(
        default=None,
        description="`unfamiliar`: unlike the training data; `attacked`: like them, but unstable; `both`; `ordinary`. "
        "Null where the bundle does not tell kinds apart, and at stage `screen`.",
    )
    p_unfamiliar: float | None = Field(default=None, description="Conformal p-value of being unlike the training data.")
    p_attacked: float | None = Field(default=None, description="Conformal p-value of being unstable as attacks are.")
    votes: VotesBody | None = Field(default=None, description="Null where masks do not vote (`PALISADE_VOTES`).")
    evidence: list[Evidence]
    layers: list[Layer]


class Neutralization(_Response):
    """What was inpainted, and the network's prediction then; `served` when that is the answer."""

    applied: bool
    served: bool
    region: Region | None = None
    area: float = 0.0
    before: ClassScore | None = None
    after: ClassScore | None = None
    changed: bool = False
    p_value: float | None = Field(
        default=None, description="p-value of the image after neutralisation, of all scores but votes"
    )


class PoolBody(_Response):
    """The answer is that of a pool of all networks; `before` is the first one."""

    before: ClassScore
    lead: float = Field(description="By how much the answer leads the first one, in probability of the pool.")
    small_field: bool = Field(description="Whether the network of small fields was asked, too.")


class Picture(_Response):
    """A PNG of the network's input size, base64."""

    media_type: Literal["image/png"] = "image/png"
    height: int
    width: int
    data: str


class CompanionOpinion(ClassScore):
    agrees: bool


class Explanation(_Response):
    """Explains the answering network's label, served unless the pool's is, on the pixels that gave it (`pixels`).

    Maps that were not asked for are null.
    """

    label: str
    index: int
    pixels: Literal["input", "neutralized"]
    input_pixels: Picture | None = Field(default=None, description="The image as the network saw it.")
    saliency: Picture
    roi: Picture | None = None
    roa: Picture | None = None
    neutral_mask: Picture | None = None
    neutral_pixels: Picture | None = None
    companion: CompanionOpinion | None = None


class CertifiedPatch(_Response):
    """The square patch that a certificate is about: its side in pixels of the network's input, its share of them."""

    side: int
    share: float


class CertificateRecord(_Response):
    """What `palisade certificate check` repeats a certificate from."""

    masks_per_axis: int
    lead: float = Field(description="By how much (of logits) the label had to lead under every mask.")
    provider: str
    precision: Precision
    graphs_sha256: str
    pixels_sha256: str = Field(description="Of the image as the network saw it: float32 (C, H, W), little-endian.")


class MaskVote(_Response):
    """The label under one mask of the first round, in pixels of the network's input; null if it was not run."""

    top: int
    left: int
    height: int
    width: int
    label: str | None
    index: int | None


class CertificateBody(_Response):
    """What was shown against a square patch anywhere in the image; `none` is no sign of an attack.

    `agreed`: the label is the same under every mask, of which one hides the whole patch. `proved`: also under every two
    masks, so that double masking gives the unpatched image this label. By the network of small fields (`by`) masks are
    windows of its cells, which hide all that a patch can touch, and the label is the one that it gives, too.
    """

    level: Level
    by: By = Field(default="masks", description="What shows it.")
    label: str
    index: int
    patch: CertifiedPatch
    masks: int = Field(description="Masks of the first round; of the network of small fields, windows.")
    tried: Wanted = Field(description="The highest level that was tried.")
    forwards: int = Field(description="Forward passes that were run.")
    record: CertificateRecord
    votes: list[MaskVote] | None = Field(default=None, description="With `explain=all`: the label under each mask.")


class TimingMs(_Response):
    decode: float
    queue: float
    engine: float
    total: float


class PredictResponse(_Response):
    id: str
    model: ModelRef
    prediction: ClassScore
    top: list[ClassScore]
    verdict: VerdictBody
    neutralization: Neutralization
    pool: PoolBody | None = Field(default=None, description="Null unless the answer is the pool's.")
    explanation: Explanation | None
    certificate: CertificateBody | None = None
    timing_ms: TimingMs


class PlainVerdict(_Response):
    """A verdict without its evidence; the p-value has two significant digits."""

    flagged: bool
    level: VerdictLevel
    p_value: float
    action: Action
    kind: Kind | None = None


class PlainNeutralization(_Response):
    applied: bool
    served: bool
    changed: bool


class VerdictResponse(_Response):
    """What a caller at disclosure `verdict` sees of a `PredictResponse`."""

    id: str
    model: ModelRef
    prediction: ClassScore
    top: list[ClassScore]
    verdict: PlainVerdict
    neutralization: PlainNeutralization
    pooled: bool = Field(default=False, description="Whether the answer is that of the pool of all networks.")
    explanation: Explanation | None
    certificate: CertificateBody | None = None


class ModelName(_Response):
    name: str


class Label(_Response):
    label: str
    index: int


class LabelResponse(_Response):
    """What a caller at disclosure `label` sees of a `PredictResponse`."""

    id: str
    model: ModelName
    prediction: Label


Disclosed = PredictResponse | VerdictResponse | LabelResponse


class ModelLabel(_Response):
    """What a caller at disclosure `label` sees of a model."""

    name: str
    default: bool
    description: str
    classes: int


class ModelSummary(ModelLabel):
    version: str
    created: date
    provider: str
    precision: Precision
    policy: Action
    alpha: float
    votes: int | None = Field(
        default=None, description="Side in pixels of the patches that masks vote on; null where they do not."
    )
    pool: bool = Field(default=False, description="Whether a pool of networks answers.")
    small_field: bool = Field(
        default=False, description="Whether a network of small fields can certify answers (`certify=small_field`)."
    )


class ModelList(_Response):
    models: list[ModelSummary | ModelLabel]


class ModelDetail(ModelSummary):
    manifest: dict[str, Any]
    card: dict[str, Any] | None
    smallest_p: float = Field(description="The p-value of an image beyond every benign one in every score.")
    layer_band: dict[str, float] = Field(description="Deviation that 95 % of benign images stay under, by layer.")


class SessionInfo(_Response):
    """Who is asking; `csrf` is the header X-CSRF-Token of a session's unsafe requests, null without a session."""

    key_id: str | None
    role: Role
    disclosure: Disclosure
    csrf: str | None
    expires: datetime | None


class Sample(_Response):
    """An image that a bundle ships; `truth` and `flagged` are what its evaluation recorded."""

    file: str
    kind: str = Field(description="First word of the file's name: `clean`, `attacked`, `patched`.")
    truth: str | None
    flagged: bool | None


class SampleList(_Response):
    samples: list[Sample]
