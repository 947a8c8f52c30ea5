"""The commands about backups: the whole database into one file, and from it into a new home."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import AsJson, load_settings, print_record, progress
from loop.domain.errors import configuration

if TYPE_CHECKING:
    from loop.config import Settings
    from loop.workflows.context import Context

FileArgument = Annotated[Path, typer.Argument(help="The backup.", metavar="FILE", dir_okay=False)]


def backup(file: FileArgument, *, as_json: AsJson = False) -> None:
    """Write the whole database, as it is at one moment, to a new file; Loop may serve meanwhile.

    The encryption keys are not in it, and without them the stored credentials cannot be read: keep them as well, and
    elsewhere. With PostgreSQL it needs pg_dump.

    Example: loop backup /backups/loop-2026-03-01.backup
    """
    import asyncio

    from loop.runtime import system_now
    from loop.storage import backups
    from loop.storage.migrate import schema_state

    settings = load_settings(makes=False)
    state = asyncio.run(schema_state(settings.database_url))
    if state.current is None:
        raise configuration("nothing_to_back_up", "There is no database yet: run `loop serve` or `loop migrate` first.")
    with progress("copying") as told:
        made = backups.back_up(
            settings.database_url, file.absolute(), schema=state.current, now=system_now(), told=told
        )
    shown = {"file": file.absolute(), "schema": made.schema, "bytes": made.size, "sha256": made.sha256}
    print_record({**shown, "keys": where_keys_are(settings)}, as_json=as_json)
    typer.echo("The encryption keys are not in it: keep a copy of them elsewhere.", err=True)


def where_keys_are(settings: "Settings") -> str:
    """Return in words where the encryption keys come from."""
    return str(settings.generated_keys_path or settings.sources["encryption_key"])


def restore(
    file: FileArgument,
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a database with merchants.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a backup the database, once its checksum proves it whole; Loop must not be running.

    Bring the encryption keys first: secrets.toml of that time into the data directory, or the settings as they were.
    Without them it ends with 9 once it is done. A SQLite file that is replaced is put aside. With PostgreSQL it needs
    pg_restore.

    Example: loop --data-dir /srv/new restore /backups/loop-2026-03-01.backup
    """
    import asyncio

    from loop.runtime import only_process, opened
    from loop.storage import backups

    settings = load_settings()
    manifest = backups.read_manifest(file)
    if manifest.kind != backups.kind_of(settings.database_url):
        message = f"{file} is of {manifest.kind}, and database_url names another kind: change one of them."
        raise configuration("backup_mismatch", message)
    with only_process(settings):
        aside = None
        if settings.sqlite_path is None:
            _to_postgres(settings, file, replace=replace)
        else:
            aside = _to_sqlite(settings.sqlite_path, file, replace=replace)

    async def look() -> str | None:
        async with opened(settings, may_lack_keys=True) as context:
            return await _missing_keys(context)

    missing = asyncio.run(look())
    made_at = datetime.fromisoformat(manifest.created_at)
    print_record(
        {"restored": file.absolute(), "createdAt": made_at, "putAside": aside, "missingKeys": missing}, as_json=as_json
    )
    if missing is not None:
        raise configuration(
            "encryption_key_needed",
            f"The backup is in place, but secrets in it are under keys that are not loaded ({missing}), and `loop "
            f"serve` refuses to start without them: put them back ({where_keys_are(settings)}).",
        )


def _to_sqlite(path: Path, file: Path, *, replace: bool) -> Path | None:
    """Put the backup in the place of a SQLite file; return where one that was there is now."""
    import asyncio
    import tempfile

    from loop.runtime import system_now
    from loop.storage import backups
    from loop.storage.migrate import migrate

    if not replace and backups.is_in_use(path):
        raise _in_use(str(path))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".loop-restore-") as room, progress("restoring") as told:
        draft = Path(room) / "restored.db"
        backups.unpack(file, draft, told=told)
        asyncio.run(migrate(f"sqlite:///{draft}"))  # or a newer Loop made it, and nothing has happened yet
        aside = path.with_name(f"{path.name}.{system_now():%Y%m%dT%H%M%S}") if path.exists() else None
        backups.put_in_place(draft, path, aside=aside or path)
    return aside


def _to_postgres(settings: "Settings", file: Path, *, replace: bool) -> None:
    import asyncio
    import tempfile

    from loop.storage import backups
    from loop.storage.migrate import migrate

    has_rows, others = asyncio.run(backups.look_at_postgres(settings.database_url))
    if has_rows and not replace:
        raise _in_use("the database")
    if others:
        raise configuration(
            "already_running", f"{others} others are connected to the database: stop every Loop, and run this again."
        )
    with tempfile.TemporaryDirectory(prefix="loop-restore-") as room, progress("restoring") as told:
        dump = Path(room) / "dump"
        backups.unpack(file, dump, told=told)
        told(0, None)  # how far pg_restore is nobody knows
        backups.load_postgres(settings.database_url, dump)
    asyncio.run(migrate(settings.database_url))


def _in_use(what: str) -> Exception:
    return configuration("database_in_use", f"There are merchants in {what}: --replace puts the backup in its place.")


async def _missing_keys(context: "Context") -> str | None:
    from loop.workflows import encryption_keys

    missing = [each.key_id for each in await encryption_keys.status(context) if not each.is_loaded and each.count]
    return ", ".join(missing) or None
