"""The commands about the schema: where it stands, what would change, and bringing it to this version's."""

from typing import TYPE_CHECKING

import typer

from loop.cli_console import AsJson, load_settings, print_done, print_record, print_rows, progress
from loop.domain.errors import LoopError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loop.storage.migrate import SchemaState, Step

migrate_app = typer.Typer(help="Bring the database's schema to this version's.", invoke_without_command=True)

OUTDATED_EXIT_CODE = 1
NEW, ROLLING, STOP_ALL_FIRST = "new", "rolling", "stop all first"
"""Whether processes of the version before go on while a migration is applied, and after it; of a new database none."""


@migrate_app.callback()
def migrate(context: typer.Context) -> None:
    """Bring the database's schema to this version's; with no command after it the same as `loop migrate apply`."""
    if context.invoked_subcommand is None:
        apply()


@migrate_app.command("apply")
def apply(*, as_json: AsJson = False) -> None:
    """Bring the schema to this version's, in one transaction; processes that do it together take turns.

    A schema of a newer version is left as it is: the command ends well if this version may run on it, else with
    schema_newer. Tables that others use are waited for, a minute at most.

    Example: loop migrate apply
    """
    import asyncio

    from loop.storage.migrate import migrate as bring
    from loop.telemetry import configure

    settings = load_settings()
    configure(level="warning", log_format=settings.log_format)
    with progress("migrating"):
        state = asyncio.run(bring(settings.database_url))
    newer = "" if state.is_current else ", of a newer version; this one may run on it"
    print_done({"current": state.current}, f"The schema is {state.current}{newer}.", as_json=as_json)


@migrate_app.command("status")
def status(*, as_json: AsJson = False) -> None:
    """Say where the schema stands, and whether to stop all processes first; the exit code is 1 unless it fits.

    It fits when it is this version's, or a newer version's that has only been expanded since (mayRun).

    Example: loop migrate status --json
    """
    import asyncio

    from loop.storage.migrate import pending, schema_state

    state = asyncio.run(schema_state(load_settings(makes=False).database_url))
    shown = {"current": state.current, "wanted": state.wanted, "isCurrent": state.is_current, "mayRun": state.is_fit}
    try:
        steps = pending(state)
    except LoopError:  # a newer version's, which this one cannot bring anywhere
        steps = []
    print_record({**shown, "upgrade": _upgrade(state, steps)}, as_json=as_json)
    if not state.is_fit:
        raise typer.Exit(OUTDATED_EXIT_CODE)


def _upgrade(state: "SchemaState", steps: "Sequence[Step]") -> str | None:
    """Return how to apply migrations, None without any."""
    if not steps:
        return None
    if state.current is None:
        return NEW
    return ROLLING if all(step.is_expanding for step in steps) else STOP_ALL_FIRST


@migrate_app.command("plan")
def plan(*, as_json: AsJson = False) -> None:
    """List what `loop migrate apply` would run, in its order; nothing is changed.

    Each is "rolling" if processes of the version before go on while it is applied and after it, or "stop all first"; of
    a database that has no schema yet it is "new".

    Example: loop migrate plan
    """
    import asyncio

    from loop.storage.migrate import pending, schema_state

    state = asyncio.run(schema_state(load_settings(makes=False).database_url))
    steps = pending(state)
    if not steps and not as_json:
        typer.echo("Nothing: this version may run on the schema as it is.")
        return
    rows = [(each.revision, _upgrade(state, [each]), each.about) for each in steps]
    print_rows(("revision", "upgrade", "about"), rows, as_json=as_json)
