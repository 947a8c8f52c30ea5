"""The command that looks for what is wrong with an installation, a line for each finding and what to do about it."""

import os
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from loop.cli_console import AsJson, load_settings, print_rows
from loop.domain.errors import LoopError

if TYPE_CHECKING:
    from loop.config import Settings
    from loop.storage.migrate import SchemaState
    from loop.storage.processor_configs import ProcessorConfig
    from loop.workflows.context import Context

BROKEN_EXIT_CODE = 1
ANSWER_WITHIN_S = 5.0
"""How long an address outside may take to answer."""
SKEW_MAX = timedelta(seconds=5)
"""By how much a clock may differ: signatures of webhooks are good for minutes only, leases for half one."""
FREE_LOW, FREE_LEAST = 2 * 2**30, 200 * 2**20
"""Bytes of free disk space below which there is a warning, and below which it is no state to run in."""
MERCHANTS_MAX = 100
"""Merchants whose accounts are tried."""
MOUNTED_SECRETS = Path("/run/secrets")
"""Where Docker mounts files with secrets, with modes of its own."""
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "fuse.glusterfs", "lustre", "afs", "beegfs"}
)
"""File systems whose locks SQLite cannot rely on."""


class Verdict(StrEnum):
    """What a check came to."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it."""

    check: str
    verdict: Verdict
    message: str
    fix: str | None = None


def doctor(*, as_json: AsJson = False) -> None:
    """Look for what is wrong: settings, secrets, disk, database, clock, Redis, addresses, processors, jobs.

    It changes nothing, and asks each processor whether the stored credentials work. Exit code 1 when something is
    broken; a warning is none.

    Example: loop doctor --json
    """
    import asyncio

    from loop.telemetry import configure

    configure(level="error")
    try:
        settings = load_settings(makes=False)
    except LoopError as error:
        found = [
            Finding("settings", Verdict.BROKEN, f"{error.code}: {error.message}", "Mend that, and run this again.")
        ]
    else:
        found = [Finding("settings", Verdict.OK, f"from {settings.config or 'the environment and defaults'}")]
        found += [*_files(settings), *_disk(settings), *asyncio.run(_all_of(_asking(settings)))]
    rows = [(each.check, str(each.verdict), each.message, each.fix) for each in found]
    if as_json:
        print_rows(("check", "verdict", "message", "fix"), rows, as_json=True)
    else:
        for each in found:
            typer.echo(
                f"{each.verdict:8}{each.check:12}{each.message}" + (f"\n{'':20}-> {each.fix}" if each.fix else "")
            )
    if any(each.verdict is Verdict.BROKEN for each in found):
        raise typer.Exit(BROKEN_EXIT_CODE)


async def _all_of(findings: AsyncIterator[Finding]) -> list[Finding]:
    return [each async for each in findings]


def _files(settings: "Settings") -> Iterator[Finding]:
    """Look who may read what: the files with secrets, and the data directory."""
    from loop.config_files import SECRET_NAMES, SECRETS_FILE

    named = [*SECRET_NAMES, *([] if settings.is_sqlite else ["database_url"])]  # whose address holds a password
    sources = {settings.sources[name] for name in named}
    generated, config = settings.data_dir / SECRETS_FILE, settings.config
    holders = [path for path in (generated, config) if path is not None and str(path) in sources]
    for path in holders:
        yield _who_reads(path)
    if not holders:
        is_made = generated.exists() or not any(each.startswith(str(generated)) for each in sources)
        words = "configured from outside" if is_made else f"there are none yet; `loop serve` makes {generated}"
        yield Finding("secrets", Verdict.OK, words)
    if settings.is_sqlite and settings.data_dir.is_dir() and settings.data_dir.stat().st_mode & 0o077:
        message = f"Other users may look into {settings.data_dir}, where payments are kept."
        yield Finding("secrets", Verdict.WARNING, message, f"chmod 700 {settings.data_dir}")


def _who_reads(path: Path) -> Finding:
    """Say who besides Loop may open a file with secrets."""
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if path.is_relative_to(MOUNTED_SECRETS) and not os.access(path, os.W_OK):
        return Finding("secrets", Verdict.OK, f"{path} is mounted for this container")
    if mode & 0o007:
        return Finding("secrets", Verdict.BROKEN, f"Every user may open {path} (mode {mode:o}).", f"chmod o= {path}")
    group = _group(status.st_gid)
    if mode & 0o030:
        return Finding(
            "secrets", Verdict.BROKEN, f"Group {group} may write to {path} (mode {mode:o}).", f"chmod g-wx {path}"
        )
    if not mode & 0o040:
        return Finding("secrets", Verdict.OK, f"{path} is its owner's alone")
    if status.st_uid != os.geteuid() and status.st_gid in {os.getegid(), *os.getgroups()}:
        return Finding("secrets", Verdict.OK, f"{path} is for its owner and group {group}, by which Loop reads it")
    if status.st_uid == os.geteuid() == 0 and status.st_gid:
        message = f"Group {group} may read {path}, which is right if Loop runs in it, and nobody else does."
        return Finding("secrets", Verdict.WARNING, message, "Run this as the user that Loop runs as.")
    return Finding("secrets", Verdict.BROKEN, f"Group {group} may read {path} (mode {mode:o}).", f"chmod g= {path}")


def _group(group_id: int) -> str:
    import grp

    try:
        return grp.getgrgid(group_id).gr_name
    except KeyError:
        return str(group_id)


def _disk(settings: "Settings") -> Iterator[Finding]:
    import shutil

    path = settings.sqlite_path
    if path is None:
        return
    folder = next(each for each in path.parents if each.is_dir())  # the data directory may not be there yet
    for each in (folder, path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
        if each.exists() and not os.access(each, os.R_OK | os.W_OK):
            fix = "Run this as the user that Loop runs as; if it is that one, make it the owner: chown"
            yield Finding("disk", Verdict.BROKEN, f"This user may not write to {each}.", fix)
    kind = file_system_of(folder, Path("/proc/self/mounts"))
    if kind in NETWORK_FILE_SYSTEMS:
        message = f"{path} is on a network file system ({kind}), where SQLite's locks do not hold."
        yield Finding("disk", Verdict.BROKEN, message, "Move the data directory to a local disk, or use PostgreSQL.")
    free = shutil.disk_usage(folder).free
    words = f"{free / 2**30:.1f} GiB free at {folder}"
    if free < FREE_LOW:
        verdict = Verdict.BROKEN if free < FREE_LEAST else Verdict.WARNING
        yield Finding("disk", verdict, words, "Make room: without it nothing can be written.")
    else:
        yield Finding("disk", Verdict.OK, words)


def file_system_of(folder: Path, mounts: Path) -> str | None:
    """Return the kind of file system that a folder is on, as the system's list of mounts says; None without a list."""
    try:
        lines = mounts.read_text("utf-8").splitlines()
    except OSError:
        return None
    best: tuple[int, str | None] = (-1, None)
    real = folder.resolve()
    for line in lines:
        fields = line.split(" ")
        point = Path(fields[1].replace("\\040", " "))
        if real.is_relative_to(point) and len(point.parts) >= best[0]:
            best = (len(point.parts), fields[2])
    return best[1]


async def _asking(settings: "Settings") -> AsyncIterator[Finding]:
    """Ask the database and, where it can be opened without changing it, all that is known from it."""
    from loop.storage.migrate import schema_state

    try:
        state = await schema_state(settings.database_url)
    except LoopError as error:
        fix = None if settings.is_sqlite else "Start the database, or mend database_url."  # a file's error says it
        yield Finding("database", Verdict.BROKEN, error.message, fix)
        state = None
    if state is not None and state.is_fit:
        newer = "" if state.is_current else ", of a newer version; this one may run on it"
        yield Finding("database", Verdict.OK, f"answers; the schema is {state.current}{newer}")
        try:
            async for each in _inside(settings):
                yield each
        except LoopError as error:
            yield Finding("database", Verdict.BROKEN, error.message)
    elif state is not None:
        yield _unfit(settings, state)
    if settings.redis_url is not None:
        yield await _redis(settings, settings.redis_url)


def _unfit(settings: "Settings", state: "SchemaState") -> Finding:
    """Return what is to be said of a schema that this version may not run on."""
    from loop.storage.migrate import pending

    try:
        pending(state)
    except LoopError as error:
        return Finding("database", Verdict.BROKEN, error.message)
    if not settings.is_sqlite:
        message = f"The schema is {state.current or 'empty'}, this version needs {state.wanted}."
        return Finding("database", Verdict.BROKEN, message, "loop migrate")
    is_new = state.current is None
    words = "There is none yet" if is_new else f"The schema is {state.current}, this version's {state.wanted}"
    verdict = Verdict.OK if is_new else Verdict.WARNING
    return Finding("database", verdict, f"{words}; `loop serve` sees to it.")


async def _inside(settings: "Settings") -> AsyncIterator[Finding]:
    from loop.runtime import opened

    async with opened(settings, may_lack_keys=True) as context:
        yield await _keys(context)
        if not settings.is_sqlite:
            yield await _database_clock(context)
        yield await _dead_jobs(context)
        configs = await _accounts(context)
        yield await _public_address(settings, has_live=any(not each.is_test_mode for each in configs))
        async for each in _processors(context, configs):
            yield each


async def _keys(context: "Context") -> Finding:
    from loop.workflows import encryption_keys

    missing = [key for key in await encryption_keys.status(context) if not key.is_loaded and key.count]
    if missing:
        count = sum(key.count for key in missing)
        names = ", ".join(key.key_id for key in missing)
        message = f"{count} stored secrets are under keys that are not loaded: {names}."
        return Finding("keys", Verdict.BROKEN, message, "Put them into encryption_keys_previous: loop keys status")
    return Finding("keys", Verdict.OK, "every stored secret can be read")


async def _database_clock(context: "Context") -> Finding:
    from loop.runtime import system_now  # the context's own clock is the database's
    from loop.storage.database_clock import read_clock

    async with context.database.reading() as reader:
        before = system_now()
        there = await read_clock(reader)
    return _clock("the database", there, before + (system_now() - before) / 2)


def _clock(whose: str, there: datetime, here: datetime) -> Finding:
    skew = abs(there - here)
    if skew > SKEW_MAX:
        message = f"This machine's clock and that of {whose} differ by {skew.total_seconds():.0f} s."
        return Finding("clock", Verdict.BROKEN, message, "Set both by NTP: timedatectl set-ntp true")
    return Finding("clock", Verdict.OK, f"that of {whose} agrees")


async def _dead_jobs(context: "Context") -> Finding:
    from loop.storage import jobs

    async with context.database.reading() as reader:
        live, dead = await jobs.count(reader)
    if dead:
        message = f"{dead} jobs failed too often and are not tried again."
        return Finding("jobs", Verdict.WARNING, message, "loop jobs list --state dead, then loop jobs revive")
    return Finding("jobs", Verdict.OK, f"{live} to be done, none given up")


async def _redis(settings: "Settings", url: str) -> Finding:
    from loop.server.rate_limits import rates_of
    from loop.server.redis_limits import opened

    async with opened(url, rates_of(settings)) as limiter:
        if await limiter.redis_answers():
            return Finding("redis", Verdict.OK, "answers")
    return Finding(
        "redis", Verdict.BROKEN, "Redis does not answer, or takes no writes.", "Start it, or mend redis_url."
    )


async def _accounts(context: "Context") -> "list[ProcessorConfig]":
    from loop.storage import merchants, processor_configs

    async with context.database.reading() as reader:
        return [
            config
            for owner in await merchants.list_all(reader, MERCHANTS_MAX)
            for config in await processor_configs.of_merchant(reader, owner.id)
        ]


async def _public_address(settings: "Settings", *, has_live: bool) -> Finding:
    """Look whether customers and processors can reach the address that they are given."""
    import asyncio

    url = settings.checkout_base_url
    parts = urlsplit(url)
    if parts.scheme != "https" or settings.sources["checkout_base_url"] == "default":
        message = f"Customers and processors are sent to {url}, which is not public and https."
        verdict = Verdict.BROKEN if has_live else Verdict.WARNING
        fix = "Set checkout_base_url to the address that a proxy with a certificate has: docs/guides/deploy.md"
        return Finding("address", verdict, message, fix)
    try:
        status, _ = await asyncio.to_thread(answer_of, f"{url}/health")
    except (OSError, ValueError) as error:
        message = f"{url} does not lead to Loop from here ({type(error).__name__})."
        return Finding(
            "address", Verdict.WARNING, message, "Start `loop serve`, or mend the proxy, DNS or certificate."
        )
    if status != 200:
        return Finding("address", Verdict.BROKEN, f"{url}/health answers {status}.", "Have the proxy send it to Loop.")
    return Finding("address", Verdict.OK, f"{url} answers")


def answer_of(url: str) -> tuple[int, datetime | None]:
    """Return the status and the time in the `Date` header that an address answers with; raises OSError, ValueError."""
    from email.utils import parsedate_to_datetime
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=ANSWER_WITHIN_S)
    try:
        connection.request("GET", parts.path or "/")
        answer = connection.getresponse()
        date = answer.getheader("Date")
        return answer.status, None if date is None else parsedate_to_datetime(date)
    except HTTPException as error:
        raise ValueError("no HTTP") from error
    finally:
        connection.close()


async def _processors(context: "Context", configs: "list[ProcessorConfig]") -> AsyncIterator[Finding]:
    import asyncio

    from loop.runtime import system_now
    from loop.workflows import processor_configs

    for config in configs:
        mode = "test" if config.is_test_mode else "live"
        whose = f"{config.processor} ({mode}) of {config.merchant_id}"
        problem = await processor_configs.check(
            context, config.merchant_id, config.processor, is_test=config.is_test_mode
        )
        if problem is not None:
            fix = f"Mend the credentials: loop processor set {config.merchant_id} {config.processor} --{mode}"
            yield Finding("processor", Verdict.BROKEN, f"{whose}: {problem}", fix)
            continue
        warnings = processor_configs.warnings_about(context, config)
        for warning in warnings:
            fix = f"loop processor set {config.merchant_id} {config.processor} --{mode}"
            yield Finding("processor", Verdict.WARNING, f"{whose}: {warning}", fix)
        if not warnings:
            yield Finding("processor", Verdict.OK, f"{whose}: the credentials work")
    bases = {"stripe": context.settings.stripe_api_base, "razorpay": context.settings.razorpay_api_base}
    for name in sorted({each.processor for each in configs} & bases.keys()):
        try:
            before = system_now()
            _, there = await asyncio.to_thread(answer_of, bases[name])
        except (OSError, ValueError):
            continue  # said above, since its credentials could not be tried either
        if there is not None:
            yield _clock(name, there, before)
