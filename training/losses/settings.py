"""The penalties that a training stage may add to its task loss: one line for each loss."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.losses.align import Align
from training.losses.jacobian import Jacobian
from training.losses.selective import Selective
from training.losses.sns import Sns
from training.losses.term import MapTerm, NeuronTerm, Term

T = TypeVar("T", bound=Term)


class Terms(BaseModel):
    """Penalties of a stage by the key that a recipe gives them; `fraction` of each batch carries them.

    They are computed in the order of these lines.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    jacobian: Jacobian | None = None
    selective: Selective | None = None
    align: Align | None = None
    sns: Sns | None = None
    fraction: float = Field(0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _shared(self) -> Terms:
        """What the training loop prepares once for all terms has to be the same for all of them."""
        grids = {name: term.grid for name, term in self.of(MapTerm).items()}
        if len(set(grids.values())) > 1:
            named = " and ".join(f"{name}.grid" for name in grids)
            raise ValueError(f"{named} differ: all of them read the same maps of the teacher")
        if len(ranking := self.of(NeuronTerm)) > 1:
            raise ValueError(f"only one of {', '.join(ranking)}: neurons are ranked for one term")
        return self

    def of(self, kind: type[T]) -> dict[str, T]:
        """The terms of a kind that the stage has, by key."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: term for name, term in found.items() if isinstance(term, kind)}

    @property
    def active(self) -> bool:
        return bool(self.of(Term))

    @property
    def grid(self) -> int | None:
        """Cells on a side of the teacher's maps; None where no term reads them."""
        return next((term.grid for term in self.of(MapTerm).values()), None)

    @property
    def neurons(self) -> NeuronTerm | None:
        """The term whose sensitive neurons have to be ranked."""
        return next(iter(self.of(NeuronTerm).values()), None)
