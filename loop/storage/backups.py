"""Backups: one file with the whole database, its schema's version and a checksum, written while Loop serves."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Final

import asyncpg
from sqlalchemy import make_url

from loop.domain.errors import configuration, unavailable
from loop.storage.sqlite import BUSY_TIMEOUT_S, is_damaged, telling_of

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
CONTENT: Final = "database"
PAGES_AT_ONCE: Final = 1_000
CHUNK: Final = 1 << 20
TOOL_WITHIN_S: Final = 12 * 3600
"""How long pg_dump or pg_restore may take."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself; `size` in bytes."""

    kind: str
    """`sqlite` or `postgres`."""
    schema: str
    created_at: str
    size: int
    sha256: str


def kind_of(database_url: str) -> str:
    """Return which kind of database an address names."""
    return "sqlite" if database_url.startswith("sqlite:") else "postgres"


def back_up(database_url: str, path: Path, *, schema: str, now: datetime, told: Progress) -> Manifest:
    """Write a backup to a new file that its owner alone may read; until it is whole, it has another name.

    Raises `backup_exists`, `backup_unwritable`, `tool_missing`, `tool_failed`.
    """
    if path.exists():
        raise configuration("backup_exists", f"{path} is there already: name another file.")
    draft = path.with_name(f"{path.name}.partial")
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                with archive.open(CONTENT, "w", force_zip64=True) as target:
                    size, digest = _copy_of(database_url, target, path.parent, told=told)
                made = Manifest(kind_of(database_url), schema, now.isoformat(), size, digest)
                archive.writestr(MANIFEST, json.dumps({"format": FORMAT, **_json(made)}))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise configuration("backup_unwritable", f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        draft.unlink(missing_ok=True)
    return made


def _json(manifest: Manifest) -> Mapping[str, object]:
    return {name: getattr(manifest, name) for name in Manifest.__slots__}


def _copy_of(database_url: str, target: IO[bytes], folder: Path, *, told: Progress) -> tuple[int, str]:
    if kind_of(database_url) == "postgres":
        return _dump(database_url, target)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".loop-backup-") as room:  # as large as the database
        copy = Path(room) / "copy.db"
        _copy_sqlite(_sqlite_path(database_url), copy, told)
        with copy.open("rb") as source:
            return _pour(source, target)


def _copy_sqlite(source_path: Path, copy_path: Path, told: Progress) -> None:
    """Copy a SQLite file by its own backup interface, as it is at one moment, beside whoever writes to it."""
    with (
        telling_of(source_path),
        closing(sqlite3.connect(source_path, isolation_level=None, timeout=BUSY_TIMEOUT_S)) as source,
        closing(sqlite3.connect(copy_path, isolation_level=None)) as copy,
    ):
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on nothing that is written is seen
        source.backup(copy, pages=PAGES_AT_ONCE, progress=lambda _, left, total: told(total - left, total))
        source.execute("ROLLBACK")
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, without the log beside it


def _pour(source: IO[bytes], target: IO[bytes], told: Callable[[int], None] = lambda _done: None) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while chunk := source.read(CHUNK):  # ends with the source
        digest.update(chunk)
        size += target.write(chunk)
        told(size)
    return size, digest.hexdigest()


def _dump(database_url: str, target: IO[bytes]) -> tuple[int, str]:
    command, environment = _tool("pg_dump", database_url, "--format=custom", "--no-owner", "--no-privileges")
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=said)  # noqa: S603 - no shell
        with process:
            poured = _pour(process.stdout, target) if process.stdout else (0, "")
        _require_success("pg_dump", process.returncode, said)
    return poured


def _tool(name: str, database_url: str, *options: str) -> tuple[list[str], dict[str, str]]:
    """Return a command of PostgreSQL's and its environment, where the password is: everybody sees arguments."""
    found = shutil.which(name)
    if found is None:
        raise configuration("tool_missing", f"{name} is not there: install PostgreSQL's client programs.")
    url = make_url(database_url)
    password = url.password or url.query.get("password")  # in this order, as asyncpg has it
    environment = {**os.environ, **({} if password is None else {"PGPASSWORD": str(password)})}
    bare = url._replace(password=None).difference_update_query(["password"]).render_as_string()
    return [found, f"--dbname={bare}", *options], environment


def _require_success(name: str, code: int, said: IO[bytes]) -> None:
    if code:
        said.seek(0)
        lines = said.read(4096).decode("utf-8", "replace").strip().splitlines()
        raise configuration("tool_failed", f"{name} ended with {code}: {lines[0] if lines else 'it said nothing'}")


def read_manifest(path: Path) -> Manifest:
    """Return what a backup says of itself; raises `backup_damaged`."""
    with _opened(path) as archive:
        return _manifest(archive, path)


def _manifest(archive: zipfile.ZipFile, path: Path) -> Manifest:
    told = json.loads(archive.read(MANIFEST))
    if told.pop("format") != FORMAT:
        raise configuration("backup_damaged", f"{path} was made by a version of Loop that writes backups differently.")
    return Manifest(**told)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is no whole backup of Loop's"
        raise configuration("backup_damaged", f"{path} cannot be used: {why}.") from error


def unpack(path: Path, target: Path, *, told: Progress = lambda _done, _total: None) -> Manifest:
    """Write a backup's database to a new file; raises `backup_damaged` unless it is what the checksum says."""
    with _opened(path) as archive:
        manifest = _manifest(archive, path)
        with (
            archive.open(CONTENT) as source,
            os.fdopen(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file,
        ):
            size, digest = _pour(source, file, lambda done: told(done, manifest.size))
            file.flush()
            os.fsync(file.fileno())
    if (size, digest) != (manifest.size, manifest.sha256):
        raise configuration("backup_damaged", f"{path} is not as it was written: its checksum differs.")
    return manifest


def is_in_use(path: Path) -> bool:
    """Tell whether a SQLite file holds a merchant already."""
    if not path.exists():
        return False
    with telling_of(path), closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        return "merchants" in tables and connection.execute("SELECT 1 FROM merchants LIMIT 1").fetchone() is not None


def put_in_place(draft: Path, path: Path, *, aside: Path) -> None:
    """Make a SQLite file the database; one that was there is put aside, whole. Only for who holds it alone."""
    for each in (draft, path):
        if each.exists():
            _take_in_log(each)  # what is renamed leaves it behind
    log = path.with_name(f"{path.name}-wal")
    if path.exists():
        path.replace(aside)
        if log.exists():  # a damaged file's, which may yet help whoever mends it
            log.replace(aside.with_name(f"{aside.name}-wal"))
    for suffix in ("-wal", "-shm"):  # the log of another database would be taken for this one's
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    draft.replace(path)


def _take_in_log(path: Path) -> None:
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.DatabaseError as error:
        if not is_damaged(error):
            raise


async def look_at_postgres(database_url: str) -> tuple[bool, int]:
    """Return whether a database holds a merchant or an order already, and how many others are connected to it."""
    try:
        connection = await asyncpg.connect(database_url)
    except (OSError, asyncpg.PostgresError) as error:
        message = "The database did not answer; check DATABASE_URL and the server."
        raise unavailable("database_unavailable", message) from error
    try:
        others = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
        has_rows = False
        for name in ("merchants", "orders"):  # which may be another program's than Loop's
            is_made = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", name)
            has_rows |= bool(is_made and await connection.fetchval(f"SELECT 1 FROM {name} LIMIT 1"))  # noqa: S608 - ours
    finally:
        await connection.close()
    return has_rows, int(others)


def load_postgres(database_url: str, dump: Path) -> None:
    """Load a dump in place of what is there, all of it or nothing; raises `tool_missing`, `tool_failed`."""
    command, environment = _tool(
        "pg_restore", database_url, "--clean", "--if-exists", "--no-owner", "--no-privileges", "--single-transaction",
        "--exit-on-error",
    )  # fmt: skip
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(  # noqa: S603 - no shell
            [*command, str(dump)], env=environment, stderr=said, check=False, timeout=TOOL_WITHIN_S
        )
        _require_success("pg_restore", done.returncode, said)


def _sqlite_path(database_url: str) -> Path:
    return Path(database_url.removeprefix("sqlite:///"))
