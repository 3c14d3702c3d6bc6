"""Registrations: what a card will be held to, written down and hashed before anything is measured.

A registration states the bounds, the digests of the data, the seed, the numbers of images and the version of the code.
Its SHA-256 (over its JSON with sorted keys and without spaces, without the digest itself) can be published before the
measurement; the card then carries the registration, and whoever kept the digest sees that it is that one.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gateway import __version__
from gateway.core.manifest import Manifest
from training.errors import TrainingError
from training.recipes.evaluation import COUNTS, Evaluation

SPLITS = ("train", "select", "calibrate", "test")
_PREFIX = "registration"


class Registration(BaseModel):
    """What was registered: `data` as a manifest describes them, `evaluation` with bounds, seed and numbers of images.

    `time` is UTC. `code` has the version, and the Git commit where the code is in a repository.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    bundle: str
    version: str
    time: datetime
    code: dict[str, str]
    data: dict[str, Any]
    evaluation: Evaluation
    sha256: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the canonical JSON of everything but the digest."""
        # Of what it states: a setting that a later release adds with a default is no part of an earlier registration.
        content = json.loads(self.model_dump_json(exclude={"sha256"}, exclude_unset=True))
        return hashlib.sha256(canonical(content)).hexdigest()

    def to_json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.model_dump_json(exclude_unset=True))
        return content


def canonical(content: object) -> bytes:
    """JSON in one form: keys sorted, no spaces, UTF-8."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def register(bundle: str, version: str, evaluation: Evaluation, data: Mapping[str, object]) -> Registration:
    """The registration of a bundle that will be measured by `evaluation` on the data that `data` describes."""
    made = Registration(
        bundle=bundle,
        version=version,
        time=datetime.now(UTC).replace(microsecond=0),
        code=code_version(),
        data=json.loads(json.dumps(data)),
        evaluation=evaluation,
    )
    stated = Registration.model_validate_json(made.model_dump_json())  # with every default
    return stated.model_copy(update={"sha256": stated.digest})


def read_registration(path: Path) -> Registration:
    """The registration in a file; `TrainingError` if it is none, or altered."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, UnicodeDecodeError):
        raise TrainingError(f"{_PREFIX}: {path} is not JSON") from None
    return parsed(content)


def parsed(content: object) -> Registration:
    """The registration that a file or a card holds; `TrainingError` if it is none, or its digest is another's."""
    try:
        found = Registration.model_validate(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "content"
        raise TrainingError(f"{_PREFIX}: {where}: {error.errors()[0]['msg']}") from None
    if found.sha256 != found.digest:
        raise TrainingError(f"{_PREFIX}: the digest is not that of its content")
    return found


def differences(
    found: Registration, *, bundle: str, version: str, evaluation: Evaluation, data: Mapping[str, Any]
) -> list[str]:
    """How a measurement differs from what was registered, one phrase each; none where it is the registered one.

    It may have bounds on figures that none was registered for, and numbers of images of units that came later.
    """
    problems = []
    if (bundle, version) != (found.bundle, found.version):
        problems.append(f"it is of {found.bundle} {found.version}, not of {bundle} {version}")
    # Counted: a figure may have several bounds, and the loosest of them stands for none of the others.
    wanted, stated = (
        Counter((bound.figure, bound.kind, bound.bound) for bound in each.bounds)
        for each in (found.evaluation, evaluation)
    )
    registered = {bound.figure for bound in found.evaluation.bounds}
    # A bound on a figure that had none, as of a unit that came later, takes nothing from what was registered.
    added = Counter({key: count for key, count in (stated - wanted).items() if key[0] in registered})
    if changed := sorted({figure for figure, _, _ in (wanted - stated) + added}):
        problems.append(f"bounds are not the registered ones: {', '.join(changed)}")
    if evaluation.seed != found.evaluation.seed:
        problems.append(f"the seed is {evaluation.seed}, registered is {found.evaluation.seed}")
    later = set(COUNTS) - found.evaluation.model_fields_set
    numbers = [
        f"{name} {getattr(evaluation, name)} in place of {getattr(found.evaluation, name)}"
        for name in Evaluation.model_fields
        if name not in {"seed", "bounds", *later} and getattr(evaluation, name) != getattr(found.evaluation, name)
    ]
    if numbers:
        problems.append(f"settings are not the registered ones: {', '.join(numbers)}")
    if other := [split for split in SPLITS if found.data.get(split) != data.get(split)]:
        problems.append(f"data are not the registered ones: {', '.join(other)}")
    return [f"{_PREFIX}: {problem}" for problem in problems]


def measured_before(found: Registration, units: Sequence[Mapping[str, Any]]) -> list[str]:
    """Units of a card that were measured before the registration: by the second, or by the day on older cards."""
    day = found.time.date().isoformat()
    early = [
        row["unit"]
        for row in units
        if (datetime.fromisoformat(row["time"]) < found.time if "time" in row else row["date"] < day)
    ]
    return [f"{_PREFIX}: measured before it was registered: {', '.join(early)}"] if early else []


def card_problems(card: Mapping[str, Any], manifest: Manifest, wanted: Registration | None = None) -> list[str]:
    """How a bundle's card differs from the registration that it carries, and that one from `wanted`.

    A card without a registration has no problem, unless one is wanted.
    """
    content = card.get("registration")
    if content is None:
        return [f"{_PREFIX}: the card carries none"] if wanted is not None else []
    try:
        found = parsed(content)
    except TrainingError as error:
        return [str(error)]
    other = []
    if wanted is not None and found.sha256 != wanted.sha256:
        other.append(f"{_PREFIX}: the card carries {found.sha256}, not {wanted.sha256}")
    stated = [card["settings"], manifest.training.get("evaluation", card["settings"])]
    problems = [
        problem
        for settings in stated
        for problem in differences(
            found,
            bundle=manifest.name,
            version=manifest.version,
            evaluation=Evaluation.model_validate(settings),
            data=manifest.data,
        )
    ]
    return list(dict.fromkeys([*other, *problems, *measured_before(found, card["units"])]))


def code_version() -> dict[str, str]:
    """{palisade, commit}: the version, and the commit where this file is tracked by Git ("-dirty" if files changed)."""
    here = Path(__file__)

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603  # fixed arguments
                ["git", "-C", str(here.parent), *arguments],  # noqa: S607  # the user's Git
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", here.name) is not None else None
    if commit is None:
        return {"palisade": __version__}
    dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
    return {"palisade": __version__, "commit": commit + dirty}
