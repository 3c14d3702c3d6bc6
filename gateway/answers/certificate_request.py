"""Certificates as requests and the gateway's policy ask for them (what they are: `gateway.core.certificate`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.access.keys import Disclosure
from gateway.answers.disclosure import shows
from gateway.core.certificate import RANK, CertificateWanted, Wanted
from gateway.core.decision import Decision
from gateway.core.masks import PATCH_SHARE, MaskSet, default_k, default_patch, largest_patch
from gateway.core.pipeline import Pipeline
from gateway.errors import BadParameter, Forbidden, NotCertified

Certify = Literal["none", "patch", "small_field"]


@dataclass(frozen=True)
class Asked:
    """What a request says of certificates, under the names of its parameters; None where it says nothing."""

    certify: Certify = "none"
    patch_side: int | None = None
    certify_level: Wanted | None = None
    require: Wanted | None = None

    def check(self) -> None:
        """Raise `BadParameter` for parameters of a certificate that is not asked for."""
        if self.certify == "none":
            for name in ("patch_side", "certify_level", "require"):
                if getattr(self, name) is not None:
                    raise BadParameter(f"{name} is of a certificate: send certify=patch, too")
        if self.require == "proved" and self.certify_level == "agreed":
            raise BadParameter("require: proved is not reached at certify_level agreed")


@dataclass(frozen=True)
class CertificatePolicy:
    """What this gateway demands of every answer, and the share of the image under the patch by default."""

    require: Wanted | None = None
    share: float = PATCH_SHARE


def wanted(
    asked: Asked, pipeline: Pipeline, policy: CertificatePolicy, disclosure: Disclosure, *, votes: bool = False
) -> CertificateWanted | None:
    """The certificate that a request gets; None for none. `votes`: of every mask of the first round.

    A policy's patch is the smallest that a request may ask for, and its level the lowest that is tried. At disclosure
    `label` only a policy makes certificates, and always with every mask. Raises `BadParameter`, and `Forbidden` where
    the caller may not see one.
    """
    asked.check()
    if asked.certify != "none" and not shows(disclosure, "verdict"):
        raise Forbidden("certificates are not for callers at disclosure label")
    if asked.certify == "none" and policy.require is None:
        return None
    small_field = asked.certify == "small_field"
    if small_field and pipeline.small_field is None:
        raise BadParameter(f"certify: {pipeline.bundle.name} has no network of small fields; send certify=patch")
    spec = pipeline.bundle.manifest.input
    default, largest = default_patch(spec.height, spec.width, policy.share), largest_patch(spec.height, spec.width)
    side = default if asked.patch_side is None else asked.patch_side
    if not 1 <= side <= largest:
        raise BadParameter(f"patch_side: must be 1 to {largest} pixels of the network's input (got {side})")
    if policy.require is not None:
        side = max(side, default)
    require = _higher(asked.require, policy.require)
    level = asked.certify_level or require or "proved"
    return CertificateWanted(
        MaskSet(spec.height, spec.width, side, default_k(spec.height, spec.width)),
        level=_higher(level, require) or level,
        require=require,
        votes=votes and not small_field,
        thorough=not shows(disclosure, "verdict"),
        # What the gateway demands of every answer may be shown in any way.
        by="small_field" if small_field and policy.require is None else "any",
    )


def _higher(first: Wanted | None, second: Wanted | None) -> Wanted | None:
    return max((level for level in (first, second) if level), key=RANK.__getitem__, default=None)


def uncertified(decision: Decision, disclosure: Disclosure) -> NotCertified:
    """The error of an answer that has not reached the level that was required of it."""
    found = decision.certificate
    if found is None or not shows(disclosure, "verdict"):
        return NotCertified("not answered")
    patch = found.masks.patch
    return NotCertified(
        f"the certificate is {found.level!r}, required is {decision.required!r}, against a patch of {patch} x {patch}"
    )
