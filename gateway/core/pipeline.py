"""Transport-free core: an image in, `Decision` out (defend, judge, neutralise, choose what is served).

What happens to one image is written once, as a generator that asks for passes through the graph; the server answers it
through the micro-batcher, the command line and evaluation in lists of images.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from gateway.core.certificate import LEADS, Certificate, CertificateWanted, certificate_of, certify
from gateway.core.decision import (
    Action,
    BlockFrom,
    Decision,
    Neutralized,
    Pass,
    Region,
    Stage,
    Timing,
    ranked,
)
from gateway.core.decode import Limits, decode_image, to_pixels
from gateway.core.engine import Engine
from gateway.core.loading import Bundle
from gateway.core.manifest import Part
from gateway.core.masks import MaskSet
from gateway.core.outputs import PartOutputs, ScreenOutputs, softmax
from gateway.core.pool import field_logits, may_overrule, opinion
from gateway.core.rules import PoolRule
from gateway.core.small_field import SmallFieldFound, WindowSet
from gateway.core.small_field_engine import SmallFieldEngine
from gateway.core.verdict import Judge, Verdict, lead, preference
from gateway.core.votes import NAME as VOTES
from gateway.core.votes import Votes, flags_nothing, joined
from gateway.errors import BundleError, PalisadeError

R = TypeVar("R")
Screening = Literal["off", "on", "audit"]
_ROA: Region = "roa"
_ROA_MINUS_ROI: Region = "roa_minus_roi"


@dataclass(frozen=True)
class Work:
    """One pass that an image needs: pixels (C, H, W) float32, and the mask (H, W) of what is inpainted first.

    `composite`: judge it by the cascade's calibration, as an image that its screen did not let through.
    """

    part: Part
    pixels: np.ndarray
    mask: np.ndarray | None = None
    composite: bool = False


@dataclass(frozen=True)
class Masked:
    """Pixels (C, H, W) whose label is asked for while what `mask` (H, W) marks is inpainted: one forward pass."""

    pixels: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Proof:
    """Pixels (C, H, W) that the network of small fields is asked about, against squares of side `patch`."""

    pixels: np.ndarray
    patch: int


@dataclass(frozen=True)
class Seen:
    """Pixels (C, H, W) whose evidence (K, h, w) the network of small fields is asked for."""

    pixels: np.ndarray


Question = list[Masked] | list[Proof] | list[Seen]
Reply = list[np.ndarray] | list[SmallFieldFound]


class Pipeline:
    """The defended answer of one bundle version; safe to call from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        judge: Judge,
        *,
        action: Action | None = None,
        block_from: BlockFrom = "flagged",
        votes: bool = False,
        pool: bool | None = None,
        limits: Limits = Limits(),
    ) -> None:
        self.bundle = bundle
        self.small_field = _small_field(bundle, engine)
        self.engine = engine
        self.judge = judge
        self.action: Action = action or bundle.manifest.policy.action
        self.block_from: BlockFrom = block_from
        self.layer_band = judge.layer_band()
        self.votes = _voting(bundle, judge) if votes else None
        self.pool = _pooling(bundle, judge, wanted=pool)
        self._limits = limits
        self._labels = tuple(bundle.manifest.classes)
        self._unsuspected = Verdict(
            p_value=1.0,
            alpha=judge.alpha,
            p_cutoff=judge.p_cutoff,
            flagged=False,
            gated=False,
            evidence={},
            layers={},
            suspect_alpha=judge.suspect_alpha,
            suspect_cutoff=judge.cutoff(judge.suspect_alpha),
        )

    @classmethod
    def on(
        cls,
        engine: Engine,
        bundle: Bundle,
        *,
        alpha: float | None = None,
        action: Action | None = None,
        block_from: BlockFrom = "flagged",
        votes: bool = False,
        pool: bool | None = None,
        limits: Limits = Limits(),
    ) -> Pipeline:
        """The pipeline of a bundle, judged by its calibration for what `engine` runs on.

        `alpha` and `action` default to the bundle's policy; with `votes`, masks vote on every verdict
        (`gateway.core.votes`). Networks answer together (`gateway.core.pool`) where the calibration has a pool, unless
        `pool` is False; True insists on one. Raises `BundleError` where nothing fitting was calibrated, and
        `ValueError` for an `alpha` that was not.
        """
        judge = Judge(bundle, bundle.calibration(engine.provider, engine.precision), alpha=alpha)
        return cls(bundle, engine, judge, action=action, block_from=block_from, votes=votes, pool=pool, limits=limits)

    @property
    def smallest_p(self) -> float:
        """The smallest p-value that an image can have: that of one beyond every benign image in every score."""
        own = self.judge.smallest_p
        if self.votes is None:
            return own
        beyond = self.votes.beyond
        return min(joined(own, 1.0, beyond), joined(1.0, self.votes.smallest_p, beyond))

    @property
    def can_screen(self) -> bool:
        """Whether the bundle has a cascade, calibrated for this engine."""
        return "screen" in self.engine.parts and self.judge.calibration.cascade is not None

    def decode(self, data: bytes) -> np.ndarray:
        """The image of an upload, uint8 (H, W, C) at the network's size; raises the decoder's errors."""
        return decode_image(data, self.bundle.manifest.input, self._limits)

    def decide(self, data: bytes) -> Decision:
        """Decode and defend one image, explained; raises the errors of `gateway.core.decode` and `EngineError`."""
        start = time.perf_counter()
        image = self.decode(data)
        decoded = time.perf_counter()
        (decision,) = self.decide_images([image])
        return replace(decision, timing=Timing(decoded - start, 0.0, time.perf_counter() - decoded))

    def decide_images(
        self, images: Sequence[np.ndarray], *, explain: bool = True, screening: Screening = "off"
    ) -> list[Decision]:
        """Defend images at the network's size, in batches of the largest bucket; raises `EngineError`."""
        jobs = [self.steps(image, explain=explain, screening=screening) for image in images]
        open_ = {i: next(job) for i, job in enumerate(jobs)}
        decisions: dict[int, Decision] = {}
        while open_:
            part, composite = next((work.part, work.composite) for work in open_.values())
            alike = [i for i, work in open_.items() if (work.part, work.composite) == (part, composite)]
            batch = alike[: self.engine.buckets[-1]]
            for i, result in zip(batch, self.run([open_.pop(i) for i in batch]), strict=True):
                if isinstance(result, PalisadeError):
                    raise result
                try:
                    open_[i] = jobs[i].send(result)
                except StopIteration as stop:
                    decisions[i] = stop.value
        return [self._asked(self.consulting(decisions[i])) for i in range(len(images))]

    def run(self, batch: Sequence[Work]) -> list[Pass | PalisadeError]:
        """Results of passes of one part, by one call of the engine; an error for each image with non-finite logits."""
        part, composite = batch[0].part, batch[0].composite
        pixels = np.stack([work.pixels for work in batch])
        masks = None
        if any(work.mask is not None for work in batch):
            empty = np.zeros(pixels.shape[2:], np.float32)
            masks = np.stack([empty if work.mask is None else work.mask for work in batch])
        outputs = self.engine.run(pixels, masks, part=part)
        if isinstance(outputs, ScreenOutputs):
            plain = ~self.judge.screen(outputs.screen_scores)
            verdicts = [self._unsuspected] * len(batch)
        else:
            plain = np.zeros(len(batch), bool)
            verdicts = self.judge.judge(outputs.scores, outputs.layer_deviation, cascade=composite)
            verdicts = self.judge.with_kinds(verdicts, outputs)
        name = self.bundle.name
        return [
            self._pass(outputs.image(i), verdicts[i], plain=bool(plain[i])) if finite else self.engine.failure(name)
            for i, finite in enumerate(outputs.finite)
        ]

    def certifying(self, decision: Decision, wanted: CertificateWanted) -> Generator[Question, Reply, Certificate]:
        """The certificate of a decision's served label: yields masked images, and is sent the logits (K,) of each.

        Where the bundle has a network of small fields it is asked first, unless every mask is to be run anyway.
        """
        whole = decision.raw.whole
        first = None if whole is None else whole.roi
        return self._certified_by(
            decision.pixels, decision.served.prediction.index, wanted, LEADS[self.engine.precision], first
        )

    def consulting(self, decision: Decision) -> Generator[Question, Reply, Decision]:
        """The decision once masks have voted and the pool was asked, where they are to be: yields what to ask them."""
        if self.votes is None:
            return (yield from self._pooling(decision, None))
        hidden = self.votes.masks
        asked: Question = [Seen(decision.pixels)]
        if isinstance(hidden, MaskSet):
            asked = [Masked(decision.pixels, mask) for mask in hidden.singles()]
        found = yield asked
        under = np.stack([each for each in found if isinstance(each, np.ndarray)])
        whole = evidence = None
        if isinstance(hidden, WindowSet):
            evidence = under[0]
            under, whole = hidden.logits(evidence), hidden.whole(evidence)
        voted = self.votes.vote(decision.served.prediction.index, under, whole)
        raw = replace(decision.raw, verdict=decision.raw.verdict.with_votes(voted))
        decision = replace(decision, raw=raw, heard=(*decision.heard, VOTES), voted=voted)
        final = yield from self._pooling(decision, evidence)
        # Votes guarantee a flag on what is served wrongly: without one the pool may not serve what they object to more.
        if final.pooled is None or decision.flagged:
            return final
        worse = self.votes.vote(final.pooled.index, under, whole).p_value < voted.p_value
        return decision if worse else final

    def _pooling(self, decision: Decision, evidence: np.ndarray | None) -> Generator[Question, Reply, Decision]:
        """The decision with the pool's opinion, where it overrules the first answer.

        `evidence` (K, h, w) is that of the network of small fields, where it was asked already.
        """
        rule, raw, whole = self.pool, decision.raw, decision.raw.whole
        if rule is None or whole is None or whole.companion_logits is None:
            return decision
        if decision.action != "sanitize" or decision.shown.prediction.index != raw.prediction.index:
            return decision  # neutralisation has found another answer
        if not may_overrule(rule, raw.prediction.index, whole.logits, whole.companion_logits):
            return decision
        field = None
        if rule.small_field is not None:
            if evidence is None:
                (evidence,) = (each for each in (yield [Seen(decision.pixels)]) if isinstance(each, np.ndarray))
            field = field_logits(evidence)
        found = opinion(rule, raw.prediction.index, whole.logits, whole.companion_logits, field)
        return decision if found is None else replace(decision, pooled=found)

    def warm_votes(self) -> None:
        """Open what answers masked images, which the first image would wait for else; raises `EngineError`."""
        if self.votes is not None and isinstance(self.votes.masks, MaskSet):
            size = self.bundle.manifest.input
            pixels = np.zeros((size.channels, size.height, size.width), np.float32)
            self.answer([Masked(pixels, mask) for mask in self.votes.masks.singles()[:1]])

    def certified_label(self, pixels: np.ndarray, index: int, wanted: CertificateWanted, *, lead: float) -> Certificate:
        """The certificate of a label for `pixels` (C, H, W), whichever would be served; raises `EngineError`."""
        return self._asked(self._certified_by(pixels, index, wanted, lead))

    def certified(self, decision: Decision, wanted: CertificateWanted) -> Decision:
        """A decision with its certificate, run in batches of the largest bucket; raises `EngineError`."""
        certificate = self._asked(self.certifying(decision, wanted))
        return replace(decision, certificate=certificate, required=wanted.require)

    def _certified_by(
        self,
        pixels: np.ndarray,
        index: int,
        wanted: CertificateWanted,
        lead: float,
        first: np.ndarray | None = None,
    ) -> Generator[Question, Reply, Certificate]:
        every_mask = wanted.by == "any" and (wanted.votes or wanted.thorough)
        if self.small_field is not None and wanted.by != "masks" and not every_mask:
            reply = yield [Proof(pixels, wanted.masks.patch)]
            (found,) = (each for each in reply if isinstance(each, SmallFieldFound))
            made = certificate_of(found, index, wanted, lead)
            if wanted.by == "small_field" or made.level == wanted.level:
                return made
        steps = certify(index, wanted, lead, first)
        try:
            masks = next(steps)
            while True:
                logits = yield [Masked(pixels, mask) for mask in masks]
                masks = steps.send(np.stack([each for each in logits if isinstance(each, np.ndarray)]))
        except StopIteration as stop:
            certificate: Certificate = stop.value
            return certificate

    def _asked(self, steps: Generator[Question, Reply, R]) -> R:
        """What `steps` returns, its masked images run in batches of the largest bucket; raises `EngineError`."""
        most = self.engine.buckets[-1]
        try:
            asked = next(steps)
            while True:
                found = [each for i in range(0, len(asked), most) for each in self.reply(asked[i : i + most])]
                if failed := next((each for each in found if isinstance(each, PalisadeError)), None):
                    raise failed
                asked = steps.send(found)  # type: ignore[arg-type]
        except StopIteration as stop:
            result: R = stop.value
            return result

    def reply(
        self, batch: Sequence[Masked] | Sequence[Proof] | Sequence[Seen]
    ) -> Sequence[np.ndarray | SmallFieldFound | PalisadeError]:
        """`answer`, `prove` or `see`, by what is asked."""
        if proofs := [each for each in batch if isinstance(each, Proof)]:
            return self.prove(proofs)
        if seen := [each for each in batch if isinstance(each, Seen)]:
            return self.see(seen)
        return self.answer([each for each in batch if isinstance(each, Masked)])

    def see(self, batch: Sequence[Seen]) -> list[np.ndarray | PalisadeError]:
        """Evidence (K, h, w) of images, by one call of the network of small fields; an error where it is not finite."""
        evidence = self._field().evidence(np.stack([each.pixels for each in batch]))
        return [row if np.isfinite(row).all() else self.engine.failure(self.bundle.name) for row in evidence]

    def _field(self) -> SmallFieldEngine:
        if self.small_field is None:
            raise ValueError(f"{self.bundle.name} has no network of small fields")
        return self.small_field

    def prove(self, batch: Sequence[Proof]) -> list[SmallFieldFound]:
        """What the network of small fields finds of images; raises `EngineError`, `ValueError` where there is none."""
        found: list[SmallFieldFound | None] = [None] * len(batch)
        for patch in {each.patch for each in batch}:
            rows = [i for i, each in enumerate(batch) if each.patch == patch]
            made = self._field().prove(np.stack([batch[i].pixels for i in rows]), patch)
            for i, each in zip(rows, made, strict=True):
                found[i] = each
        return [each for each in found if each is not None]

    def answer(self, batch: Sequence[Masked]) -> list[np.ndarray | PalisadeError]:
        """Logits (K,) of masked images, by one call of the engine; an error for each whose logits are not finite."""
        logits = self.engine.answer(np.stack([each.pixels for each in batch]), np.stack([each.mask for each in batch]))
        return [row if np.isfinite(row).all() else self.engine.failure(self.bundle.name) for row in logits]

    def steps(self, image: np.ndarray, *, explain: bool, screening: Screening) -> Generator[Work, Pass, Decision]:
        """The passes that one image needs, in turn: send the result of each; the generator returns the decision.

        `image` is uint8 (H, W, C), or float32 (C, H, W) in [0, 1], at the network's size.
        """
        pixels = image if image.dtype == np.float32 else to_pixels(image)[0]
        part: Part = "full" if explain else "verdict"
        screened: Pass | None = None
        # An explanation needs the whole graph anyway.
        if screening != "off" and self.can_screen and not explain:
            screened = yield Work("screen", pixels)
            if screened.plain and screening == "on":
                return self._decision(pixels, screened, None, stage="screen")
        raw = yield Work(part, pixels, composite=screened is not None and not screened.plain)
        mask, region = self._suspected(raw)
        neutralized = None
        if mask is not None:
            result = yield Work(part, pixels, mask.astype(np.float32))
            neutralized = Neutralized(region=region, mask=mask, result=result)
        return self._decision(pixels, raw, neutralized, audited=screened is not None and screened.plain)

    def _suspected(self, raw: Pass) -> tuple[np.ndarray | None, Region]:
        """The region (H, W) bool that is inpainted before the second pass; None for no region.

        When the gate is up the whole window goes, since a flagged, concentrated region of importance is itself the
        suspected attack; a window that is conspicuous alone loses only what the prediction doesn't rest on.
        """
        outputs = raw.whole
        if outputs is None:
            return None, _ROA
        mask, region = outputs.roa > 0.5, _ROA
        if not raw.verdict.gated:
            mask, region = mask & ~(outputs.roi > 0.5), _ROA_MINUS_ROI
            if float(outputs.roa_score) < self.judge.calibration.roa_threshold:
                return None, region
        return (mask if mask.any() else None), region

    def _recovers(self, raw: Pass, second: Pass) -> bool:
        """Whether the second answer is better than the first.

        Where the gate was up: if the window stood out, the answer without it is a clear one, and the companion does
        not prefer the first one (`Recovery`). Where it was down: if it is still down.
        """
        if not raw.verdict.gated:
            return not second.verdict.gated
        recovery, outputs = self.judge.calibration.recovery, raw.whole
        if recovery is None or outputs is None:
            return False
        clear, prefers = float(lead(second.outputs.logits[None])[0]), 0.0
        if outputs.companion_logits is not None:
            labels = (np.array([each.prediction.index]) for each in (raw, second))
            prefers = float(preference(outputs.companion_logits[None], *labels)[0])
        return bool(recovery.strength(float(outputs.roa_score), clear, prefers) >= recovery.threshold)

    def _decision(
        self,
        pixels: np.ndarray,
        raw: Pass,
        neutralized: Neutralized | None,
        *,
        stage: Stage = "verdict",
        audited: bool = False,
    ) -> Decision:
        recovered = neutralized is not None and self._recovers(raw, neutralized.result)
        return Decision(
            model=self.bundle.name,
            version=self.bundle.version,
            action=self.action,
            heard=self.judge.calibration.heard,
            pixels=pixels,
            raw=raw,
            neutralized=neutralized,
            serve_neutralized=recovered and self.action == "sanitize",
            stage=stage,
            audited=audited,
            timing=Timing(),
            labels=self._labels,
            block_from=self.block_from,
        )

    def _pass(self, outputs: PartOutputs, verdict: Verdict, *, plain: bool) -> Pass:
        probabilities = softmax(outputs.logits)
        companion = None
        if outputs.companion_logits is not None:
            companion = ranked(softmax(outputs.companion_logits), self._labels, 1)[0]
        return Pass(
            outputs=outputs,
            probabilities=probabilities,
            verdict=verdict,
            prediction=ranked(probabilities, self._labels, 1)[0],
            companion=companion,
            plain=plain,
        )


def _small_field(bundle: Bundle, engine: Engine) -> SmallFieldEngine | None:
    manifest = bundle.manifest
    if manifest.small_field is None:
        return None
    return SmallFieldEngine(
        bundle.path,
        manifest.small_field,
        manifest.input,
        len(manifest.classes),
        provider=engine.provider,
        threads=engine.threads,
    )


def _pooling(bundle: Bundle, judge: Judge, *, wanted: bool | None) -> PoolRule | None:
    """The pool that a calibration has, unless it is not `wanted`; `BundleError` if it is and there is none."""
    rule = None if wanted is False else judge.calibration.pool
    if rule is None and wanted:
        key = judge.calibration.key
        raise BundleError(f"{bundle.path}: no pool answers on {key}: `palisade pool` calibrates that of cpu-fp32")
    return rule


def _voting(bundle: Bundle, judge: Judge) -> Votes:
    """The votes that a judge has; `BundleError` if it has none, and `ValueError` if half of its alpha flags nothing."""
    key, votes = judge.calibration.key, judge.votes
    if votes is None:
        raise BundleError(f"{bundle.path}: masks cannot vote on {key}: `palisade votes` calibrates that of cpu-fp32")
    flags = judge.smallest_p <= judge.p_cutoff  # without votes
    if flags and flags_nothing(judge.smallest_p, votes.smallest_p, judge.p_cutoff, votes.beyond):
        raise ValueError(
            f"too few benign images or groups to halve alpha {judge.alpha:g} for votes of masks: the smallest p-values "
            f"are {judge.smallest_p:.2g} and {votes.smallest_p:.2g}"
        )
    return votes
