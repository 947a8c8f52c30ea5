"""The registry: finds processors by their entry points and makes each one when it is first used."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from loop.domain.errors import invalid
from loop.processors.base import CredentialField, Processor, ProcessorFactory, ProcessorSetup

GROUP = "loop.processors"
"""The entry-point group: its names are the processors' names, its values classes made with a `ProcessorSetup`."""


class Registry:
    """The installed processors. One module is imported, and one processor made, at its first use."""

    def __init__(self, setup_for: Callable[[str], ProcessorSetup]) -> None:
        self._setup_for = setup_for
        self._made: dict[str, Processor] = {}

    def names(self) -> tuple[str, ...]:
        """Return the names of all installed processors, sorted, without importing any."""
        return tuple(sorted(self._found))

    def get(self, name: str) -> Processor:
        """Return the processor of this name, made at the first call, which must be inside the event loop.

        Raises `invalid_processor` for a name that is not installed, TypeError for a plug-in that is no processor.
        """
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = self._make(name)
        return made

    def credentials_schema(self, name: str) -> tuple[CredentialField, ...]:
        """Return the credentials that a processor asks for; raises `invalid_processor` like `get`."""
        return self.get(name).credentials_schema

    async def close(self) -> None:
        """Close every processor that was made, even when one of them fails to."""
        async with AsyncExitStack() as stack:
            while self._made:
                stack.push_async_callback(self._made.popitem()[1].close)

    @cached_property
    def _found(self) -> dict[str, EntryPoint]:
        return {found.name: found for found in entry_points(group=GROUP)}

    def _make(self, name: str) -> Processor:
        found = self._found.get(name)
        if found is None:
            installed = ", ".join(self.names())
            raise invalid("invalid_processor", f"There is no processor {name!r}; the installed ones are: {installed}.")
        made: object = cast("ProcessorFactory", found.load())(self._setup_for(name))
        if not isinstance(made, Processor):
            raise TypeError(f"{found.value} does not offer what loop.processors.base.Processor asks for")
        return made
