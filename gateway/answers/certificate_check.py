"""Repeating a certificate from the answer that states it, the image, and the bundle (`palisade certificate check`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from gateway.answers import schemas
from gateway.answers.certificate import graphs_of, pixels_sha256
from gateway.core.certificate import LEADS, Certificate, CertificateWanted
from gateway.core.decode import to_pixels
from gateway.core.masks import MaskSet, default_k, largest_patch
from gateway.core.pipeline import Pipeline
from gateway.errors import PalisadeError


class CertificateInvalid(PalisadeError):
    """The answer has no certificate, or one in another form than the gateway's."""

    status, code, title = 422, "certificate_invalid", "No certificate"


class CertificateRefused(PalisadeError):
    """The certificate does not hold for this answer, image and bundle."""

    status, code, title = 422, "certificate_refused", "Certificate refused"


class _Answer(BaseModel):
    """The parts of an answer that a certificate is about; the others are not read."""

    model: schemas.ModelRef
    prediction: schemas.Label
    certificate: schemas.CertificateBody


@dataclass(frozen=True)
class Stated:
    """An answer's model, label and certificate."""

    model: str
    version: str
    index: int
    label: str
    certificate: schemas.CertificateBody


def read_answer(data: bytes) -> Stated:
    """The certificate in an answer of `/v1/predict` (JSON); raises `CertificateInvalid`."""
    try:
        answer = _Answer.model_validate(json.loads(data), strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise CertificateInvalid(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, RecursionError):
        raise CertificateInvalid("the answer is not JSON") from None
    prediction, model = answer.prediction, answer.model
    return Stated(model.name, model.version, prediction.index, prediction.label, answer.certificate)


def check_certificate(stated: Stated, image: bytes, pipeline: Pipeline) -> Certificate:
    """The certificate as it was found again, which is the one stated; raises `CertificateRefused` where it is not.

    `pipeline` is of the bundle that answered, on any provider; raises the decoder's errors for `image`.
    """
    masks = _masks(stated, pipeline)
    pixels = to_pixels(pipeline.decode(image))[0]
    made = stated.certificate
    _same("image", pixels_sha256(pixels), made.record.pixels_sha256, "is another one than was certified")
    wanted = CertificateWanted(masks, level=made.tried, votes=made.votes is not None, by=made.by)
    found = pipeline.certified_label(pixels, stated.index, wanted, lead=made.record.lead)
    _same("level", found.level, made.level)
    # Where a certificate that fails ends depends on the order of masks, which rounding can change.
    if found.level == made.tried and made.forwards != found.forwards:
        raise CertificateRefused(f"forwards: the answer states {made.forwards}, the certificate takes {found.forwards}")
    if not 1 <= made.forwards <= wanted.forwards:
        raise CertificateRefused(f"forwards: no certificate of this kind takes {made.forwards}")
    if made.votes is not None:
        _check_votes(made.votes, found, pipeline.bundle.manifest.classes)
    return found


def _masks(stated: Stated, pipeline: Pipeline) -> MaskSet:
    """The masks that the record states; `CertificateRefused` where record, answer and bundle contradict."""
    manifest, made = pipeline.bundle.manifest, stated.certificate
    record, spec = made.record, manifest.input
    _same("model", f"{manifest.name} {manifest.version}", f"{stated.model} {stated.version}")
    small_field = pipeline.small_field if made.by == "small_field" else None
    if made.by == "small_field" and small_field is None:
        raise CertificateRefused("by: the bundle has no network of small fields")
    graphs = graphs_of(manifest, made.by, record.precision)
    _same("graphs", graphs, record.graphs_sha256, "are not those that answered")
    _same("label", (stated.index, stated.label), (made.index, made.label))
    if not 0 <= made.index < len(manifest.classes) or manifest.classes[made.index] != made.label:
        raise CertificateRefused(f"label: the bundle has no class {made.index} named {made.label!r}")
    if record.lead < LEADS[record.precision]:
        raise CertificateRefused(f"lead: {record.lead:g} is less than rounding can change")
    # Fewer masks than the gateway's are larger, up to one that hides the whole image and shows nothing of its label.
    fewest = default_k(spec.height, spec.width)
    if not 1 <= made.patch.side <= largest_patch(spec.height, spec.width) or not fewest <= record.masks_per_axis <= 16:
        raise CertificateRefused("patch: no certificate has such a patch, or so many or few masks")
    masks = MaskSet(spec.height, spec.width, made.patch.side, record.masks_per_axis)
    _same("masks", len(masks) if small_field is None else small_field.windows(made.patch.side), made.masks)
    if small_field is not None and made.votes is not None:
        raise CertificateRefused("votes: the network of small fields has none")
    _same("patch share", round(masks.share, 6), made.patch.share)
    return masks


def _check_votes(stated: list[schemas.MaskVote], found: Certificate, classes: list[str]) -> None:
    boxes = [(vote.top, vote.left, vote.height, vote.width) for vote in stated]
    names = dict(enumerate(classes))
    # None of them is missing, since every mask is run for votes.
    named = all(vote.index is not None and names.get(vote.index) == vote.label for vote in stated)
    clear = [None if vote is None or vote.lead < found.lead else vote.index for vote in found.votes]
    same = all(index is None or index == vote.index for index, vote in zip(clear, stated, strict=False))
    if boxes != found.masks.boxes or not named or not same:
        raise CertificateRefused("votes: they are not those of the image")


def _same(what: str, found: Any, stated: Any, otherwise: str | None = None) -> None:
    if found != stated:
        raise CertificateRefused(f"{what}: " + (otherwise or f"the answer states {stated!r}, found is {found!r}"))
