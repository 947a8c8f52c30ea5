"""The commands about the schema: where it stands, what would change, and bringing it to this version's."""

import typer

from loop.cli_console import AsJson, load_settings, print_done, print_record, print_rows

migrate_app = typer.Typer(help="Bring the database's schema to this version's.", invoke_without_command=True)

OUTDATED_EXIT_CODE = 1


@migrate_app.callback()
def migrate(context: typer.Context) -> None:
    """Bring the database's schema to this version's; with no command after it the same as `loop migrate apply`."""
    if context.invoked_subcommand is None:
        apply()


@migrate_app.command("apply")
def apply(*, as_json: AsJson = False) -> None:
    """Bring the schema to this version's, in one transaction; processes that do it together take turns.

    Example: loop migrate apply
    """
    import asyncio

    from loop.storage.migrate import migrate as bring

    state = asyncio.run(bring(load_settings().database_url))
    print_done({"current": state.current}, f"The schema is {state.current}.", as_json=as_json)


@migrate_app.command("status")
def status(*, as_json: AsJson = False) -> None:
    """Say where the schema stands; the exit code is 1 unless it is this version's.

    Example: loop migrate status --json
    """
    import asyncio

    from loop.storage.migrate import schema_state

    state = asyncio.run(schema_state(load_settings().database_url))
    shown = {"current": state.current, "wanted": state.wanted, "isCurrent": state.is_current}
    print_record(shown, as_json=as_json)
    if not state.is_current:
        raise typer.Exit(OUTDATED_EXIT_CODE)


@migrate_app.command("plan")
def plan(*, as_json: AsJson = False) -> None:
    """List what `loop migrate apply` would run, in its order; nothing is changed.

    Example: loop migrate plan
    """
    import asyncio

    from loop.storage.migrate import pending, schema_state

    steps = pending(asyncio.run(schema_state(load_settings().database_url)))
    if not steps and not as_json:
        typer.echo("Nothing: the schema is this version's.")
        return
    print_rows(("revision", "about"), [(each.revision, each.about) for each in steps], as_json=as_json)
