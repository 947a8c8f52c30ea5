"""Reconciliation: what Loop has written down of an account, and the days that were compared with what differed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from itertools import islice
from typing import Any

from sqlalchemy import Date, and_, bindparam, delete, func, insert, or_, select
from sqlalchemy.dialects import postgresql

from loop.domain.attempts import Attempt
from loop.domain.money import Money
from loop.domain.reconciliation import FINDINGS_KEPT_MAX, CurrencyTotals, Finding, LastRun
from loop.domain.refunds import Refund
from loop.domain.transactions import Transaction, TransactionType
from loop.storage.columns import UtcTime
from loop.storage.database import Reader, Session
from loop.storage.statements import Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import (
    PaymentAttempts,
    ProcessorConfigs,
    ReconciliationFindings,
    ReconciliationRuns,
    Refunds,
    Transactions,
    table,
)

ROWS_PER_PAGE = 1_000
"""Transactions that are read at a time."""

WRITES_TOGETHER = 50
"""Findings that are written at a time."""

LAST_RUNS_MAX = 10_000
"""More than the accounts of one page times the days that are caught up with."""

REFERENCE_CHARS, CURRENCY_CHARS = 255, 12
"""How much is kept of a processor's own words."""

_runs = table(ReconciliationRuns)
_findings = table(ReconciliationFindings)
_transactions = table(Transactions)
_attempts = table(PaymentAttempts)
_refunds = table(Refunds)
_configs = table(ProcessorConfigs)


@dataclass(frozen=True, slots=True)
class Run:
    """One row of reconciliation_runs."""

    id: str
    merchant_id: str
    processor_config_id: str
    processor: str
    day: date
    matched_count: int
    awaited_count: int
    missing_here_count: int
    missing_there_count: int
    amount_differs_count: int
    totals: tuple[CurrencyTotals, ...]
    ran_at: datetime

    @property
    def mismatch_count(self) -> int:
        """How often the two sides differ."""
        return self.missing_here_count + self.missing_there_count + self.amount_differs_count


@dataclass(frozen=True, slots=True)
class WrittenDown:
    """A transaction with the attempt it belongs to, and the refund if it is of one."""

    transaction: Transaction
    attempt: Attempt
    refund: Refund | None


def _written_down(*values: Any) -> WrittenDown:  # noqa: ANN401 - one row of three tables
    cells = iter(values)
    transaction = Transaction(*islice(cells, len(field_names(Transaction))))
    attempt = Attempt(*islice(cells, len(field_names(Attempt))))
    rest = list(cells)
    return WrittenDown(transaction, attempt, None if rest[0] is None else Refund(*rest))


def _run(*values: Any) -> Run:  # noqa: ANN401 - one row of the table
    given: dict[str, Any] = dict(zip(field_names(Run), values, strict=True))
    return Run(**{**given, "totals": tuple(CurrencyTotals(**each) for each in given["totals"])})


_FINDING_FIELDS = [
    "kind", "movement_kind", "reference", "order_id", "refund_id", "here_minor", "here_currency", "there_minor",
    "there_currency", "occurred_at",
]  # fmt: skip


def _finding(*values: Any) -> Finding:  # noqa: ANN401 - one row of the table
    given: dict[str, Any] = dict(zip(_FINDING_FIELDS, values, strict=True))
    here, there = (_money(given.pop(f"{side}_minor"), given.pop(f"{side}_currency")) for side in ("here", "there"))
    return Finding(here=here, there=there, **given)


def _money(amount_minor: int | None, currency: str | None) -> Money | None:
    return None if amount_minor is None or currency is None else Money(amount_minor, currency)


_AFTER = or_(_transactions.c.created_at > bindparam("since", type_=UtcTime), _transactions.c.id > bindparam("after_id"))
_OF_DAY = Statement(
    select(
        *columns_of(_transactions, Transaction), *columns_of(_attempts, Attempt), *columns_of(_refunds, Refund)
    )
    .select_from(
        _transactions.join(_attempts, _attempts.c.id == _transactions.c.attempt_id).outerjoin(
            _refunds, _refunds.c.id == _transactions.c.refund_id
        )
    )
    .where(
        _transactions.c.merchant_id == bindparam("merchant_id"),
        _attempts.c.processor_config_id == bindparam("config_id"),
        _transactions.c.created_at >= bindparam("since", type_=UtcTime),
        _transactions.c.created_at < bindparam("until", type_=UtcTime),
        or_(_transactions.c.type == TransactionType.CAPTURE, _transactions.c.type == TransactionType.REFUND),
        _AFTER,
    )
    .order_by(_transactions.c.created_at, _transactions.c.id)
    .limit(ROWS_PER_PAGE),
    _written_down,
)  # fmt: skip
_OF_REFUND_REFERENCE = Statement(
    select(*columns_of(_refunds, Refund)).where(
        _refunds.c.processor_reference == bindparam("reference"), _refunds.c.merchant_id == bindparam("merchant_id")
    ),
    Refund,
)
_OWNED = and_(_runs.c.id == bindparam("run_id"), _runs.c.merchant_id == bindparam("merchant_id"))
_new_run = postgresql.insert(_runs).values(parameters_for(_runs, field_names(Run)))
_PUT = Statement(
    _new_run.on_conflict_do_update(
        index_elements=["processor_config_id", "day"],
        set_={
            name: _new_run.excluded[name]
            for name in field_names(Run)
            if name not in ("id", "merchant_id", "processor_config_id", "processor", "day")
        },
    ).returning(_runs.c.id),
    str,
)
_OF_OTHER_MODE = _runs.c.processor_config_id.in_(
    select(_configs.c.id).where(
        _configs.c.merchant_id == bindparam("merchant_id"), _configs.c.is_test_mode != bindparam("is_test")
    )
)
"""A run of an account that is gone for good is of neither mode, and seen in both."""
_GET = {
    has_mode: Statement(select(*columns_of(_runs, Run)).where(_OWNED, *([~_OF_OTHER_MODE] if has_mode else [])), _run)
    for has_mode in (False, True)
}
_LISTED = {
    has_mode: (_runs.c.merchant_id == bindparam("merchant_id"), *([~_OF_OTHER_MODE] if has_mode else []))
    for has_mode in (False, True)
}
_PAGE = {
    has_mode: Statement(
        select(*columns_of(_runs, Run))
        .where(*conditions)
        .order_by(_runs.c.day.desc(), _runs.c.processor, _runs.c.id)
        .limit(bindparam("limit"))
        .offset(bindparam("offset")),
        _run,
    )
    for has_mode, conditions in _LISTED.items()
}
_COUNT = {
    has_mode: Statement(select(func.count()).select_from(_runs).where(*conditions), int)
    for has_mode, conditions in _LISTED.items()
}
_LAST = Statement(
    select(_runs.c.processor_config_id, _runs.c.day, _runs.c.ran_at, _runs.c.awaited_count)
    .where(
        _runs.c.processor_config_id >= bindparam("first_id"),
        _runs.c.processor_config_id <= bindparam("last_id"),
        _runs.c.day >= bindparam("since_day", type_=Date),
    )
    .limit(LAST_RUNS_MAX),
    lambda config_id, day, ran_at, awaited: ((str(config_id), day), LastRun(ran_at, awaited)),
)
_FINDINGS = Statement(
    select(*(_findings.c[name] for name in _FINDING_FIELDS))
    .where(_findings.c.run_id == bindparam("run_id"))
    .order_by(_findings.c.number)
    .limit(FINDINGS_KEPT_MAX),
    _finding,
)
_ADD_FINDING = Write(insert(_findings).values(parameters_for(_findings, ["run_id", "number", *_FINDING_FIELDS])))
_DROP_FINDINGS = Write(delete(_findings).where(_findings.c.run_id == bindparam("of_run")))


async def written_down(
    reader: Reader, merchant_id: str, config_id: str, *, since: datetime, until: datetime, after_id: str
) -> list[WrittenDown]:
    """Return a page of an account's captures and refunds from `since` on, oldest first.

    The next page is from the last row's time on, after its id.
    """
    page = {"since": since, "until": until, "after_id": after_id}
    return await reader.all(_OF_DAY, {"merchant_id": merchant_id, "config_id": config_id, **page})


async def refund_known_as(reader: Reader, merchant_id: str, reference: str) -> Refund | None:
    """Return the refund of a merchant that its processor knows by this reference, or None."""
    return await reader.first(_OF_REFUND_REFERENCE, {"merchant_id": merchant_id, "reference": reference})


async def put(session: Session, run: Run, findings: Sequence[Finding]) -> tuple[str, list[Finding]]:
    """Keep a day's comparison instead of the one before, under its id; return that and the findings it had.

    Whoever keeps the same day at once waits for this transaction.
    """
    row = {**values_of(run), "totals": [asdict(each) for each in run.totals]}
    run_id = await session.first(_PUT, row) or run.id
    before = await findings_of(session, run_id)
    await session.run(_DROP_FINDINGS, {"of_run": run_id})
    rows = [{"run_id": run_id, "number": number, **_row(each)} for number, each in enumerate(findings, start=1)]
    for start in range(0, len(rows), WRITES_TOGETHER):
        await session.run_together([(_ADD_FINDING, row) for row in rows[start : start + WRITES_TOGETHER]])
    return run_id, before


def _row(finding: Finding) -> Mapping[str, object]:
    here, there = finding.here, finding.there
    apart: dict[str, object] = {
        # What a processor lists need not be of a form that Loop would take itself.
        "reference": None if finding.reference is None else finding.reference[:REFERENCE_CHARS],
        "here_minor": None if here is None else here.amount_minor,
        "here_currency": None if here is None else here.currency,
        "there_minor": None if there is None else there.amount_minor,
        "there_currency": None if there is None else there.currency[:CURRENCY_CHARS],
    }
    return {name: apart[name] if name in apart else getattr(finding, name) for name in _FINDING_FIELDS}


async def get(reader: Reader, merchant_id: str, run_id: str, *, is_test: bool | None = None) -> Run | None:
    """Return a merchant's run, or None; with `is_test` none of an account of the other mode."""
    return await reader.first(
        _GET[is_test is not None], {"merchant_id": merchant_id, "run_id": run_id, "is_test": is_test}
    )


async def list_page(
    reader: Reader, merchant_id: str, *, offset: int, limit: int, is_test: bool | None = None
) -> tuple[list[Run], int]:
    """Return a page of a merchant's runs as `listed` does, and how many there are in all."""
    rows = await listed(reader, merchant_id, offset=offset, limit=limit, is_test=is_test)
    count = await reader.first(_COUNT[is_test is not None], {"merchant_id": merchant_id, "is_test": is_test})
    return rows, count or 0


async def listed(
    reader: Reader, merchant_id: str, *, offset: int, limit: int, is_test: bool | None = None
) -> list[Run]:
    """Return a page of a merchant's runs, newest day first; with `is_test` none of accounts of the other mode."""
    asked = {"merchant_id": merchant_id, "is_test": is_test, "offset": offset, "limit": limit}
    return await reader.all(_PAGE[is_test is not None], asked)


async def findings_of(reader: Reader, run_id: str) -> list[Finding]:
    """Return what differed in a run; its counts say whether more did than is kept."""
    return await reader.all(_FINDINGS, {"run_id": run_id})


async def last_runs(
    reader: Reader, first_id: str, last_id: str, *, since_day: date
) -> Mapping[tuple[str, date], LastRun]:
    """Return the latest runs of accounts whose ids lie between two, by account and day."""
    rows = await reader.all(_LAST, {"first_id": first_id, "last_id": last_id, "since_day": since_day})
    return dict(rows)
