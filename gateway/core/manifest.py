"""The bundle: the one thing that crosses from training to serving (docs/architecture.md, "Bundle").

A bundle is a folder with a `manifest.json`, the defence graph, the calibration arrays, a robustness card and samples.
This module owns the manifest's schema and refuses folders that do not match it, naming the file.
"""

from __future__ import annotations

import hashlib
from datetime import date
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from gateway.core.preprocessing import Normalisation, Resize
from gateway.core.rules import KindRule, PoolRule, VoteRule
from gateway.core.small_field import SMALL_FIELD, SmallFieldSpec
from gateway.core.upstream import UPSTREAM_FILES, Upstream

SCHEMA_VERSION = 3

MANIFEST = "manifest.json"

WEIGHTS = "weights.bin"

CARD = "card.json"
REPORT = "report.html"

SIGNATURE = "model.sig"
"""Signature of every other file, the manifest among them; the manifest cannot list it."""

BUCKETS = (1, 2, 4, 8, 16, 32)

Part = Literal["screen", "verdict", "full"]

Precision = Literal["fp32", "fp16"]

PART_FILES: dict[Part, str] = {"screen": "screen.onnx", "verdict": "verdict.onnx", "full": "defense.onnx"}

DRAFT = ".part"
"""How the name of a folder ends that holds an unfinished bundle; no gateway reads it."""


def _no_draft(value: str) -> str:
    if value.endswith(DRAFT):  # its folder, NAME/VERSION, would never be served
        raise ValueError(f"may not end in {DRAFT}, as folders of unfinished bundles do")
    return value


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"), AfterValidator(_no_draft)]

Version = Annotated[
    str,
    Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$", max_length=64),
    AfterValidator(_no_draft),
]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Probability = Annotated[float, Field(gt=0.0, lt=1.0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputSpec(_Strict):
    """The image the graph takes: float32 (N, C, H, W), pixels in [0, 1], RGB or grey, and how one becomes it."""

    height: int = Field(ge=8, le=1024)
    width: int = Field(ge=8, le=1024)
    channels: Literal[1, 3] = 3
    resize: Resize = Resize()
    normalise: Normalisation | None = None
    """What the graph does to the pixels for its answering network; None: it is not recorded."""

    @model_validator(mode="after")
    def _channels_agree(self) -> InputSpec:
        if self.normalise and len(self.normalise.mean) != self.channels:
            raise ValueError(f"normalise has {len(self.normalise.mean)} means for {self.channels} channel(s)")
        return self


class TensorSpec(_Strict):
    """One graph input or output; a string in `shape` is a dynamic axis (`N` is the batch)."""

    name: str
    dtype: Literal["float32", "float16", "uint8", "int64", "bool"]
    shape: list[int | str]


class GraphSpec(_Strict):
    """One part of the defence graph: its file and signature; its larger weights lie in a file that parts share."""

    file: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class MonitoredLayer(_Strict):
    """A layer whose neurons (channels) are watched; `sensitive` are the top ones by neuron sensitivity."""

    name: str
    channels: int = Field(ge=1)
    sensitive: list[int]


class Cutoff(_Strict):
    """Flag when p <= `p_cutoff`; at confidence `confidence` the false-positive rate is then at most `alpha`.

    `confidence` None: it is alpha on average over calibrations, and `p_cutoff` is alpha itself.
    """

    alpha: Probability
    p_cutoff: float = Field(ge=0.0, le=1.0)
    confidence: Probability | None = None


class Guard(_Strict):
    """The score whose objection no other score outweighs, and its share of the false-positive budget.

    Of every level up to `knee` it has `share_below`, of what lies beyond it `share`; Fisher's combination has the rest.
    """

    score: str
    share_below: Probability
    share: Probability
    knee: Probability


class Cascade(_Strict):
    """Calibration of the composite of the screen and the full verdict (docs/architecture.md, "Cascade").

    An image gets the full verdict if Fisher's statistic of `scores` is at or above `threshold`, as that of the share
    `goes_on` of benign images is; `cutoffs` are those of the composite's p-values.
    """

    scores: list[str] = Field(min_length=1)
    threshold: float
    goes_on: Probability
    cutoffs: list[Cutoff] = Field(min_length=1)
    n_on: int = Field(ge=1)


class Recovery(_Strict):
    """Which second answers are served once the gate is up: behind a window that stood out, clear, and not doubted.

    `contrast` (the graph's `roa_score`) and `lead` (best logit of the second answer less the next), each less its mean
    over gated benign images and in their deviations, and `preference` (what the companion gives the second label more
    than the first on the image as it came, in logits; 0 where the label is the same), over its root mean square on the
    benign images whose label changes, have to add up to at least `threshold`. Without `preference_rms` there is no
    third term.
    """

    contrast_mean: float
    contrast_std: float = Field(gt=0)
    lead_mean: float
    lead_std: float = Field(gt=0)
    preference_rms: float | None = Field(None, gt=0)
    threshold: float

    def strength(self, contrast: Any, lead: Any, preference: Any) -> Any:
        """The value that is compared with `threshold`, of numbers, arrays (N,) or tensors (N,), as one of those."""
        own = (contrast - self.contrast_mean) / self.contrast_std + (lead - self.lead_mean) / self.lead_std
        return own if self.preference_rms is None else own + preference / self.preference_rms


class Calibration(_Strict):
    """Benign scores of one provider and precision, bound by `graphs_sha256` to the graphs they came from.

    The arrays are in `file` under `<provider>-<precision>/<array>`, all ascending along their first axis: `components`
    (n_select, S), `layers` (n_select, L), `fused` (n,), `fisher` (n_tails,), with a guard `guard` (n_tails,) and, with
    a cascade, `cascade` (n_on,). `n_select` images give components' p-values: those of the calibrate split or, in
    older bundles, of the select split.
    """

    provider: Literal["cpu", "cuda"]
    precision: Precision
    graphs_sha256: Sha256
    file: Literal["calibration.npz"] = "calibration.npz"
    fused: list[str] = Field(min_length=1)
    guard: Guard | None = None
    cutoffs: list[Cutoff] = Field(min_length=1)
    cascade: Cascade | None = None
    n: int = Field(ge=20)
    groups: int = Field(ge=2)
    n_select: int = Field(ge=20)
    n_tails: int | None = Field(None, ge=20)
    """Images of the select split behind `fisher` and `guard`; None: `fisher` is (n_select,) and there is no `guard`."""
    counted: Literal["images", "groups"] = "images"
    """What p-values count: benign images, with cutoffs that allow for likeness within groups, or groups of them, with
    the arrays `fused_weights` (n,) and `cascade_weights` (n_on,); an input is then flagged exactly when p <= alpha."""
    smallest_p: float | None = Field(None, gt=0, le=1)
    """The smallest p-value that an input can have: that of one beyond every benign image in every score."""
    design_effect: float = Field(ge=1.0)
    roa_threshold: float
    recovery: Recovery | None = None
    """None: the second answer of a gated image is never served."""
    date: date
    kinds: KindRule | None = None
    """None: verdicts do not tell kinds of anomaly apart."""
    votes: VoteRule | None = None
    """None: masks cannot vote on verdicts."""
    pool: PoolRule | None = None
    """None: no pool of networks answers."""
    evaluated: bool = True
    """Whether the card's figures are those of the system with this calibration."""

    @property
    def key(self) -> str:
        return f"{self.provider}-{self.precision}"

    @property
    def heard(self) -> tuple[str, ...]:
        """The scores that bear on a verdict: those fused and the guard's."""
        return tuple(dict.fromkeys([*self.fused, *([self.guard.score] if self.guard else [])]))


class Policy(_Strict):
    """Defaults of the gateway for this bundle: the action, the flag's alpha and the neutralisation gate's alpha."""

    action: Literal["observe", "sanitize", "block"] = "sanitize"
    alpha: Probability = 0.01
    gate_alpha: Probability = 0.05


class Manifest(_Strict):
    schema_version: Literal[3] = 3
    name: Name
    version: Version
    description: str = ""
    created: date
    classes: list[str] = Field(min_length=2)
    input: InputSpec
    graphs: dict[Part, GraphSpec] = {}
    upstream: Upstream | None = None
    """The server whose answers are judged (`palisade guard`); such a bundle has no graph of a network."""
    variants: dict[Literal["fp16"], dict[Part, GraphSpec]] = {}
    buckets: list[Annotated[int, Field(ge=1, le=1024)]] = Field(list(BUCKETS), min_length=1)
    scores: list[str] = Field(min_length=1)
    screen_scores: list[str] = []
    layer_scores: list[str] = ["neuron_sensitivity"]
    """Scores that are statements about layers, so that their evidence names the one that deviates most."""
    localiser: str = "texture_colour"
    """What finds the region of attack."""
    titles: dict[str, str] = {}
    """What people read in place of the names of scores and localiser; a name without a title is read as it is."""
    meanings: dict[str, str] = {}
    """A sentence on each of them."""
    layers: list[MonitoredLayer]
    """At least one, but of a network that an upstream runs: its layers are not seen."""
    small_field: SmallFieldSpec | None = None
    """The grid of the network in `small_field.onnx`, which proves labels in one forward pass; None: there is none."""
    companion: bool
    companion_disagrees: float | None = Field(
        None, ge=0, le=1, description="share of clean calibrate images that the companion answers otherwise"
    )
    calibrations: list[Calibration] = Field(min_length=1)
    policy: Policy = Policy()
    training: dict[str, Any] = {}
    data: dict[str, Any] = {}
    software: dict[str, str] = {}
    files: dict[str, Sha256]

    @field_validator("files")
    @classmethod
    def _relative_paths(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            path = PurePosixPath(name)
            plain = path.as_posix() == name and "\\" not in name and name.isprintable()
            if not plain or path.is_absolute() or ".." in path.parts or name == MANIFEST:
                raise ValueError(f"file name {name!r} must be relative, inside the bundle and not the manifest")
        return files

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.upstream is not None:
            self._check_upstream()
        else:
            if missing := {"verdict", "full"} - set(self.graphs):
                raise ValueError(f"graphs lacks the part {min(missing)!r}")
            if not self.layers:
                raise ValueError("layers is empty")
        self._check_graphs("fp32")
        for precision in self.variants:
            self._check_graphs(precision)
        if (self.small_field is not None) != (SMALL_FIELD in self.files):
            raise ValueError(f"small_field and the file {SMALL_FIELD} belong together")
        if ("screen" in self.graphs) != bool(self.screen_scores):
            raise ValueError("screen_scores and the graph 'screen' belong together")
        if unknown := set(self.screen_scores) - set(self.scores):
            raise ValueError(f"screen_scores has unknown scores {sorted(unknown)}")
        if self.buckets != sorted(set(self.buckets)):
            raise ValueError("buckets must ascend")
        for calibration in self.calibrations:
            self._check_calibration(calibration)
        return self

    def graphs_of(self, precision: Precision) -> dict[Part, GraphSpec]:
        """The parts in that precision; none if the bundle has no such variant."""
        return self.graphs if precision == "fp32" else self.variants.get(precision, {})

    def _check_upstream(self) -> None:
        if self.graphs or self.variants or self.layers or self.companion:
            raise ValueError("a bundle with an upstream has neither graphs of a network, nor layers, nor a companion")
        if missing := set(UPSTREAM_FILES) - set(self.files):
            raise ValueError(f"files lacks {min(missing)}")

    def _check_calibration(self, calibration: Calibration) -> None:
        if self.upstream is None and not self.graphs_of(calibration.precision):
            raise ValueError(f"calibration {calibration.key}: variants lacks {calibration.precision}")
        unknown = set(calibration.heard) - set(self.scores)
        if unknown:
            raise ValueError(f"calibration {calibration.key} uses unknown scores {sorted(unknown)}")
        if calibration.votes is not None and calibration.votes.by == "small_field" and self.small_field is None:
            raise ValueError(
                f"the votes of {calibration.key} are those of a network of small fields, which is not there"
            )
        if calibration.pool is not None and not self.companion:
            raise ValueError(f"the pool of {calibration.key} is of a companion's opinions, which is not there")
        if calibration.pool is not None and calibration.pool.small_field and self.small_field is None:
            raise ValueError(f"the pool of {calibration.key} asks a network of small fields, which is not there")
        known = {*self.scores, "window", "energy", "doubt"}
        known |= {"companion_energy", "companion_doubt"} if self.companion else set()
        if calibration.kinds and (unknown := set(calibration.kinds.readings) - known):
            raise ValueError(f"the kinds of {calibration.key} read {sorted(unknown)}, which the graph does not give")
        cascade = calibration.cascade
        if cascade and (unknown := set(cascade.scores) - set(self.screen_scores)):
            raise ValueError(
                f"the cascade of {calibration.key} uses scores {sorted(unknown)} that the screen does not compute"
            )
        for cutoffs in [calibration.cutoffs, *([cascade.cutoffs] if cascade else [])]:
            if not {self.policy.alpha, self.policy.gate_alpha} <= {cutoff.alpha for cutoff in cutoffs}:
                raise ValueError(f"calibration {calibration.key} has no cutoff for the policy's alphas")

    def _check_graphs(self, precision: Precision) -> None:
        graphs = self.graphs_of(precision)
        if set(graphs) != set(self.graphs):
            raise ValueError(f"variants.{precision} has the parts {sorted(graphs)}, not {sorted(self.graphs)}")
        for part, graph in graphs.items():
            self._check_graph(part, graph, precision)

    def _check_graph(self, part: Part, graph: GraphSpec, precision: Precision) -> None:
        if graph.file != (expected := variant_file(PART_FILES[part], precision)):
            raise ValueError(f"graphs.{part}.file is {graph.file}, expected {expected}")
        if graph.file not in self.files:
            raise ValueError(f"files lacks {graph.file}")
        inputs = {t.name: t.shape for t in graph.inputs}
        if inputs != (wanted := expected_inputs(self.input, part)):
            raise ValueError(f"graphs.{part}.inputs are {inputs}, expected {wanted}")
        for tensor in (*graph.inputs, *graph.outputs):
            if tensor.dtype != "float32":
                raise ValueError(f"graph tensor {tensor.name!r} is {tensor.dtype}, expected float32")
        outputs = {t.name: t.shape for t in graph.outputs}
        shapes = expected_outputs(self, part)
        for name, shape in shapes.items():
            if name not in outputs:
                raise ValueError(f"graphs.{part}.outputs lacks {name!r}")
            if outputs[name] != shape:
                raise ValueError(f"graph output {name!r} has shape {outputs[name]}, expected {shape}")
        if extra := sorted(set(outputs) - set(shapes)):
            raise ValueError(f"graphs.{part}.outputs has {extra[0]!r}, which the part has not")


def expected_inputs(spec: InputSpec, part: Part = "full") -> dict[str, list[int | str]]:
    """Shapes of a part's inputs: `pixels` in [0, 1], and (not for `screen`) `mask` in {0, 1} of what is inpainted."""
    h, w = spec.height, spec.width
    pixels: dict[str, list[int | str]] = {"pixels": ["N", spec.channels, h, w]}
    return pixels if part == "screen" else pixels | {"mask": ["N", h, w]}


def expected_outputs(manifest: Manifest, part: Part = "full") -> dict[str, list[int | str]]:
    """Shapes that a part's outputs must have, by name (docs/architecture.md, "Defence graph")."""
    h, w, c = manifest.input.height, manifest.input.width, manifest.input.channels
    outputs: dict[str, list[int | str]] = {"logits": ["N", len(manifest.classes)]}
    if manifest.companion:
        outputs["companion_logits"] = ["N", len(manifest.classes)]
    if part == "screen":
        return outputs | {"screen_scores": ["N", len(manifest.screen_scores)]}
    if part == "full":
        outputs["saliency"] = ["N", h, w]
    return outputs | {
        "roi": ["N", h, w],
        "roa": ["N", h, w],
        "roa_score": ["N"],
        "neutral_pixels": ["N", c, h, w],
        "layer_deviation": ["N", len(manifest.layers)],
        "scores": ["N", len(manifest.scores)],
    }


def variant_file(file: str, precision: Precision) -> str:
    """Name of a graph's or weights' file in that precision: `screen.onnx`, `screen-fp16.onnx`."""
    path = PurePosixPath(file)
    return file if precision == "fp32" else f"{path.stem}-{precision}{path.suffix}"


def graphs_sha256(files: dict[str, str], precision: Precision = "fp32") -> str:
    """One digest of the hashes of all files of the graphs and their weights; what a calibration is bound to."""
    wanted = {variant_file(name, precision) for name in (*PART_FILES.values(), *UPSTREAM_FILES, WEIGHTS)}
    names = sorted(name for name in files if name in wanted)
    return hashlib.sha256("".join(f"{files[name]}  {name}\n" for name in names).encode()).hexdigest()
