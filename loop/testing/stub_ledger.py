"""The stand-in processor's memory: one append-only JSON-lines file of money rows and objects, synced before answers."""

import asyncio
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
EntryKind: TypeAlias = Literal[
    "authorization", "charge", "capture", "void", "refund", "refund_reversal", "dispute", "dispute_reversal"
]

EVENTS_KEPT = 5_000
"""Event objects remembered per account; older ones are forgotten, as a real processor forgets after 30 days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One movement of money at the processor, in minor units of its currency.

    `charge` is an authorization and capture in one step. `refund_reversal` and `dispute_reversal` give money back
    to the merchant: a refund that failed later, a dispute that was won.
    """

    at_ms: int
    account: str
    kind: EntryKind
    intent: str
    object_id: str
    amount_minor: int
    currency: str
    metadata: dict[str, str]


def read_ledger(path: Path | str) -> list[LedgerEntry]:
    """Return every money row of the ledger file, oldest first; a line still being written is left out."""
    file = Path(path)
    if not file.exists():
        return []
    return [LedgerEntry(**row) for line in _whole_lines(file.read_bytes()) for row in line["entries"]]


def new_object_id(prefix: str) -> str:
    """Return a fresh unguessable id such as `pi_…`."""
    return f"{prefix}_{secrets.token_hex(12)}"


def _whole_lines(content: bytes) -> Iterator[JsonObject]:
    end = content.rfind(b"\n") + 1
    for line in content[:end].splitlines():
        yield json.loads(line)


@dataclass(slots=True)
class Work:
    """What one request does to one account: read through it, and nothing is kept until `Store.commit`.

    `target` is the id of the object the request is about, where it names one; `origin` the URL the stub was asked at.
    """

    store: "Store"
    account: str
    origin: str
    target: str = ""
    request_id: str | None = None
    idempotency_key: str | None = None
    livemode: bool = False
    entries: list[LedgerEntry] = field(default_factory=list)
    objects: dict[tuple[str, str], JsonObject] = field(default_factory=dict)
    events: list[JsonObject] = field(default_factory=list)

    @property
    def now_s(self) -> int:
        """The stub's clock in whole seconds since the epoch."""
        return self.store.now_ms() // 1000

    def new_id(self, prefix: str) -> str:
        """Return a fresh id from the stub's own source."""
        return self.store.new_id(prefix)

    def get(self, kind: str, object_id: str) -> JsonObject | None:
        """Return this account's object as this work left it, or None when the account has no such object."""
        pending = self.objects.get((kind, object_id))
        return pending if pending is not None else self.store.get(self.account, kind, object_id=object_id)

    def must(self, kind: str, object_id: str) -> JsonObject:
        """Return an object the stub itself referred to; LookupError would be the stub's own mistake."""
        found = self.get(kind, object_id)
        if found is None:
            raise LookupError(f"the stub lost {kind} {object_id}")
        return found

    def put(self, kind: str, item: JsonObject) -> None:
        """Keep an object under its own `id` when the work is committed."""
        self.objects[(kind, item["id"])] = item

    def enter(self, kind: EntryKind, amount_minor: int, *, charge: JsonObject, object_id: str) -> None:
        """Add a money row for a charge object, carrying the metadata of the payment it belongs to."""
        self.entries.append(
            LedgerEntry(
                at_ms=self.store.now_ms(),
                account=self.account,
                kind=kind,
                intent=charge["payment_intent"],
                object_id=object_id,
                amount_minor=amount_minor,
                currency=charge["currency"],
                metadata=dict(charge["metadata"]),
            )
        )


class Store:
    """All objects of all accounts in memory, and the file they come back from after a restart.

    One committed work is one line, so it is on disk whole or not at all. Objects are held as JSON text: what is
    read is always the reader's own copy.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        new_id: Callable[[str], str] = new_object_id,
    ) -> None:
        self.path = Path(path)
        self.new_id = new_id
        self.entries: list[LedgerEntry] = []
        self._clock_ns = clock_ns
        self._objects: dict[tuple[str, str], dict[str, str]] = {}
        self._appended = 0
        self._durable = 0
        self._syncing = asyncio.Lock()
        self._file = self._open()

    def now_ms(self) -> int:
        """Return the stub's clock in milliseconds since the epoch."""
        return self._clock_ns() // 1_000_000

    def get(self, account: str, kind: str, *, object_id: str) -> JsonObject | None:
        """Return a copy of one object, or None."""
        text = self._objects.get((account, kind), {}).get(object_id)
        return None if text is None else json.loads(text)

    def newest_first(self, account: str, kind: str) -> Iterator[JsonObject]:
        """Walk copies of an account's objects of one kind, last created first."""
        for text in reversed(self._objects.get((account, kind), {}).values()):
            yield json.loads(text)

    def owner_of(self, kind: str, object_id: str) -> str | None:
        """Return the account that has this object, for control calls that name only the object."""
        for (account, held), objects in self._objects.items():
            if held == kind and object_id in objects:
                return account
        return None

    def commit(self, work: Work) -> None:
        """Apply a work in memory and append its line; `sync` then waits for the disk."""
        if not (work.objects or work.entries):
            return
        kept = [[work.account, kind, key, _text(item)] for (kind, key), item in work.objects.items()]
        line = _text({"entries": [asdict(entry) for entry in work.entries], "objects": kept}) + "\n"
        self._write(line.encode())
        self._apply(work.entries, kept)

    async def sync(self) -> None:
        """Return once everything appended so far is on the disk; callers that wait together share one fsync."""
        mine = self._appended
        async with self._syncing:
            if self._durable < mine:
                upto = self._appended
                await asyncio.to_thread(os.fsync, self._file)
                self._durable = upto

    def close(self) -> None:
        """Close the file; the store is not used after this."""
        os.close(self._file)

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        content = self.path.read_bytes()
        # A line cut by a crash was never answered, so it never happened.
        os.ftruncate(file, content.rfind(b"\n") + 1)
        for line in _whole_lines(content):
            self._apply([LedgerEntry(**row) for row in line["entries"]], line["objects"])
        os.fsync(file)
        return file

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._file, line) :]
        self._appended += 1

    def _apply(self, entries: list[LedgerEntry], kept: list[list[str]]) -> None:
        self.entries.extend(entries)
        for account, kind, key, text in kept:
            objects = self._objects.setdefault((account, kind), {})
            objects[key] = text
            if kind == "events" and len(objects) > EVENTS_KEPT:
                del objects[next(iter(objects))]


def _text(value: JsonObject) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
