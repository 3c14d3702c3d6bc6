"""The case file of a group of queries: who asked what, from when to when, how close it came, and what it looks like."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from gateway.campaigns.behaviour import Pattern, Resembles

MAX_KEYS = 64
MAX_TOOK_PART = 2_000
"""Keys that a reaction can meet, of one campaign."""
MAX_STEPS = 32
MAX_LABELS = 32


class Step(BaseModel):
    """One query on the path of a group that is worth a look: the first, a lower p-value than before, another label."""

    model_config = ConfigDict(frozen=True)

    number: int = Field(description="Number of the query in its group, from 1.")
    request: str = Field(description="Id of the request, and of its event where the audit trail kept one.")
    time: datetime
    label: str
    p_value: float
    flagged: bool


class Case(BaseModel):
    """A group of near-duplicate queries; a campaign where `pattern` is `search`."""

    model_config = ConfigDict(frozen=True)

    id: str
    pattern: Pattern = Field(
        description="`search`: many small changes around one image, a campaign. The others are none: `video` (gradual "
        "change along a curve), `still_camera` (noise alone), `stuck_camera` (one image for long), `retries`."
    )
    resembles: Resembles | None = Field(description="The kind of attack that a search resembles.")
    model: str
    first_seen: datetime
    last_seen: datetime
    queries: int
    different: int = Field(description="Queries whose image differed from those that it was compared with.")
    flagged: int
    label_flips: int = Field(description="Queries with another label than the image most like them before.")
    lowest_p_value: float
    keys: dict[str, int] = Field(description="Queries by id of the caller's key; `(none)` is callers without one.")
    took_part: dict[str, int] | None = Field(
        None,
        description="Of a campaign: different images by id of the caller's key, among those that it was known by and "
        "since. Null of other groups, and in case files of earlier gateways.",
    )
    labels: dict[str, int] = Field(description="Queries by label.")
    dimension: float | None = Field(description="Local dimension of the newest different images; motion has about 2.")
    step: float | None = Field(description="Median distance to the image before, in levels of 255.")
    known_after: int | None = Field(description="Queries of the group until its pattern was known.")
    path: list[Step]
    last_request: str
