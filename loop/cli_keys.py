"""The commands about encryption keys: which are in use, and wrapping what is stored under the newest."""

from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import AsJson, print_json, print_rows, progress, run_work

if TYPE_CHECKING:
    from loop.workflows.context import Context
    from loop.workflows.encryption_keys import KeyStatus, Rotation

keys_app = typer.Typer(help="The keys that encrypt what is stored.", no_args_is_help=True)


@keys_app.command("status")
def show_status(*, as_json: AsJson = False) -> None:
    """Show how many rows are under which encryption key, and which keys are loaded.

    Example: loop keys status --json
    """
    from loop.workflows import encryption_keys

    async def work(context: "Context") -> "list[KeyStatus]":
        return await encryption_keys.status(context)

    found = run_work(work, may_lack_keys=True)
    rows = [(key.key_id, key.is_current, key.is_loaded, key.count, dict(key.rows)) for key in found]
    print_rows(("keyId", "current", "loaded", "rows", "details"), rows, as_json=as_json)


@keys_app.command("rotate")
def rotate(
    *,
    new: Annotated[bool, typer.Option("--new", help="Make a new key first, where Loop keeps its own.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring every stored secret under the current encryption key; killed half-way, run it again.

    Where the keys are configured, set encryption_key to a new one, put the one before into encryption_keys_previous,
    restart Loop, and run this; then the earlier key may go. Where Loop has made its own, stop it and run this with
    --new.

    Example: loop keys rotate --new
    """
    from loop.workflows import encryption_keys

    with progress("rotating") as told:

        async def work(context: "Context") -> "Rotation":
            return await encryption_keys.rotate(context, is_new=new, progress=told)

        done = run_work(work, is_rotating=True)
    if as_json:
        shown = {
            "keyId": done.key_id,
            "rewrapped": done.rewrapped,
            "remaining": done.remaining,
            "unreadable": [place._asdict() for place in done.unreadable],
            "droppedKeys": done.has_dropped_keys,
        }
        print_json(shown)
    else:
        typer.echo(f"{done.rewrapped} secrets were brought under the key {done.key_id}.")
        typer.echo(_what_next(done))
    for place in done.unreadable:
        typer.echo(f"cannot be read: {place.table}.{place.column} of {place.row_id}", err=True)
    raise typer.Exit(1 if done.remaining else 0)


def _what_next(done: "Rotation") -> str:
    if done.unreadable:
        return f"{done.remaining} are under other keys still: set anew those that cannot be read, and run this again."
    if done.remaining:
        return f"{done.remaining} are under other keys still: run this again."
    if done.has_dropped_keys:
        return (
            "What is stored needs no earlier key any more, and the secrets file has none. Keep a copy of it. Backups "
            "made before this still need the earlier keys: keep the copy of the secrets file that goes with them."
        )
    return "No other key is needed: encryption_keys_previous may be empty."
