"""Drafts: what a form holds, as it begins or as it was typed and refused, and what was wrong with which field."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from loop.domain.errors import LoopError
from loop.server.errors import STATUS_OF


@dataclass(frozen=True, slots=True)
class Draft:
    """A form's fields and why it was refused; secrets that were typed are not among the fields."""

    fields: Mapping[str, str] = field(default_factory=dict)
    problem: LoopError | None = None

    @property
    def status(self) -> int:
        """The status that its page is answered with."""
        return 200 if self.problem is None else STATUS_OF[self.problem.kind]

    def value(self, name: str) -> str:
        """Return what a field holds."""
        return self.fields.get(name, "")

    def wrong(self, name: str) -> str | None:
        """Return what was wrong with a field, None when nothing was."""
        return None if self.problem is None else dict(self.problem.details).get(name)
