"""Reconciliation: compare a day of a processor account with the processor's own list, keep it, tell what differs."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from loop import metrics
from loop.domain.attempts import Attempt, Unknown
from loop.domain.errors import invalid, not_found, unavailable
from loop.domain.events import EventType, timestamp
from loop.domain.ids import PREFIX_RECONCILIATION_RUN
from loop.domain.movements import Movement, MovementKind
from loop.domain.reconciliation import (
    FINDINGS_KEPT_MAX,
    Booking,
    Comparison,
    Day,
    Finding,
    FindingKind,
    LastRun,
    booking_of,
    books_of,
    compare,
    is_due,
    past_days,
    searched_from,
    unclaimed,
)
from loop.domain.refunds import Refund, RefundStatus
from loop.metrics import of
from loop.processors.base import Account, ListsMovements, MovementPage, MovementQuery
from loop.storage import attempts, jobs, orders, processor_configs, reconciliation, refunds, transactions
from loop.storage.database import Reader, Session
from loop.storage.jobs import Job
from loop.storage.keyring import DecryptionError
from loop.storage.processor_configs import ProcessorConfig
from loop.storage.reconciliation import ROWS_PER_PAGE, Run, WrittenDown
from loop.storage.statements import Parameters, Write
from loop.telemetry import correlation_id, get_logger
from loop.traces import carried
from loop.workflows.context import Context
from loop.workflows.processor_configs import account_of
from loop.workflows.runs import finish
from loop.workflows.webhooks import recording_without_order

log = get_logger(__name__)

RECONCILE = "reconcile"
"""The kind of the jobs that compare one day of one account."""

PAGES_MAX = 2_000
"""Pages that are read of either side for one day of one account; a day that needs more is given up, not cut short."""

ACCOUNTS_PER_PAGE = 200
ACCOUNTS_MAX = 100_000
"""Accounts that one run of the schedule looks at, and more than one Loop has."""

LIVE_MAX = 8
"""Jobs that compare at the same time: they may take minutes, and payments must not wait for them."""

FINDINGS_TOLD_MAX = 100
"""Findings that one event names; the run has them all."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An account whose processor lists what moved."""

    config: ProcessorConfig
    account: Account
    lister: ListsMovements
    listed_within: timedelta


@dataclass(frozen=True, slots=True)
class Report:
    """A comparison as it was kept."""

    run: Run
    findings: Sequence[Finding]


def lister_of(context: Context, config: ProcessorConfig) -> Listed | None:
    """Return what a comparison of an account needs, or None when its processor does not list what moved.

    Raises `DecryptionError`.
    """
    if config.processor not in context.processors.names():
        return None
    processor: object = context.processors.get(config.processor)
    if not isinstance(processor, ListsMovements):
        return None
    account = account_of(context, config)
    within = processor.listed_within(account)
    return None if within is None else Listed(config, account, processor, within)


async def schedule_due(context: Context) -> int:
    """Insert the jobs of days that were not compared yet, or have to be again, oldest first; return how many.

    No more than `LIVE_MAX` are live at once, so that many accounts take turns.
    """
    now = context.now()
    async with context.database.reading() as reader:
        room = LIVE_MAX - await jobs.live_of_kind(reader, RECONCILE)
    inserted, after_id = 0, ""
    for _ in range(ACCOUNTS_MAX // ACCOUNTS_PER_PAGE):
        if inserted >= room:
            break
        async with context.database.reading() as reader:
            page = await processor_configs.all_after(reader, after_id, ACCOUNTS_PER_PAGE)
            if not page:
                break
            first, after_id = page[0].id, page[-1].id
            last_runs = await reconciliation.last_runs(reader, first, after_id, since_day=past_days(now)[0])
        due = [job for config in page for job in _due_jobs(context, config, last_runs, now)]
        # One at a time: those whose job is live (or dead) already must not use up the room.
        for job in due:
            if inserted < room:
                inserted += sum(await context.database.write_at_once([jobs.insertion(job)]))
    if inserted:
        context.runner.wake()
    return inserted


def _due_jobs(
    context: Context, config: ProcessorConfig, last_runs: Mapping[tuple[str, date], LastRun], now: datetime
) -> list[Job]:
    days = [each for each in past_days(now) if _may_be_due(config, each, last_runs.get((config.id, each)), now)]
    if not days:
        return []
    try:
        listed = lister_of(context, config)
    except DecryptionError:
        log.exception("processor_config.unreadable", config_id=config.id)
        return []
    if listed is None:
        return []
    return [
        _job(context, config, each, now)
        for each in days
        if is_due(_day(listed, each, now), last_runs.get((config.id, each)))
    ]


def _may_be_due(config: ProcessorConfig, day: date, last: LastRun | None, now: datetime) -> bool:
    """Tell whether it is worth opening an account's credentials to see whether a day of it is due."""
    widest = Day(day, now, timedelta.max, config.created_at)
    has_been_in_use = config.is_enabled or widest.start <= config.updated_at
    return has_been_in_use and now >= widest.listed_until and (last is None or last.awaited > 0)


def _day(listed: Listed, day: date, now: datetime) -> Day:
    return Day(day, now, listed.listed_within, listed.config.created_at)


def _job(context: Context, config: ProcessorConfig, day: date, now: datetime) -> Job:
    key = f"{RECONCILE}:{config.id}:{day}"
    return Job(context.new_id("job"), RECONCILE, config.id, {"day": str(day)}, key, config.id, now, 0, 0, False, False,
               None, correlation_id(), now, carried())  # fmt: skip


async def run(context: Context, job: Job) -> Report | None:
    """Compare the day that a job is about; what fails is tried again with nothing written."""
    async with context.database.reading() as reader:
        config = await processor_configs.get(reader, job.subject)
    listed = None if config is None else lister_of(context, config)
    if listed is None:
        await finish(context, job)
        return None
    return await _reconcile(context, listed, date.fromisoformat(str(job.arguments["day"])), job)


async def reconcile(context: Context, config_id: str, day: date) -> Report:
    """Compare one day of one account now, and keep what came of it instead of what did before.

    Raises `not_found`, `movements_not_listed`, `day_not_over`, and `processor_unavailable` when the processor does not
    list; then nothing is written.
    """
    async with context.database.reading() as reader:
        config = await processor_configs.get(reader, config_id)
    if config is None:
        raise not_found("processor account")
    listed = lister_of(context, config)
    if listed is None:
        raise invalid("movements_not_listed", f"{config.processor} does not list what moved at this account.")
    return await _reconcile(context, listed, day, None)


async def _reconcile(context: Context, listed: Listed, day: date, job: Job | None) -> Report:
    looked_at = _day(listed, day, context.now())
    if looked_at.now < looked_at.end:
        raise invalid("day_not_over", f"{day} is not over yet in UTC; ask for a day before it.")
    bookings = await _bookings_of_day(context, listed.config, looked_at)
    moved = await _movements(context, listed, looked_at.listed_from, looked_at.listed_until)
    books = books_of(bookings)
    books = books_of(
        [*bookings, *await _bookings_behind(context, listed.config, unclaimed(looked_at, books, movements=moved))]
    )
    earlier = searched_from(looked_at, books, movements=moved)
    if earlier is not None:
        moved = [*await _movements(context, listed, earlier, looked_at.listed_from), *moved]
    # On a thread: comparing a great many takes long enough for requests to notice.
    comparison = await asyncio.to_thread(compare, looked_at, books, movements=moved)
    return await _record(context, listed.config, looked_at, comparison, job)


async def _movements(context: Context, listed: Listed, since: datetime, until: datetime) -> list[Movement]:
    found: dict[Movement, None] = {}  # a list that grows while its pages are read may show a row twice
    query = MovementQuery(since, until, context.now())
    for _ in range(PAGES_MAX):
        if context.lease is not None:
            await context.lease.cover_call()
        page = await _page(listed, query)
        found.update(dict.fromkeys(page.movements))
        if page.next_cursor is None:
            return list(found)
        query = replace(query, cursor=page.next_cursor)
    raise unavailable("too_many_movements", f"{listed.config.processor} lists more than {PAGES_MAX} pages for a day.")


async def _page(listed: Listed, query: MovementQuery) -> MovementPage:
    name = listed.config.processor
    try:
        page = await listed.lister.movements(listed.account, query)
    except Exception as error:
        log.exception("processor.raised")
        raise unavailable("processor_unavailable", f"{name} did not list what moved; try again.") from error
    if isinstance(page, Unknown):
        raise unavailable("processor_unavailable", f"{name} did not list what moved: {page.reason}")
    return page


async def _bookings_of_day(context: Context, config: ProcessorConfig, day: Day) -> list[Booking]:
    """Return what is written down on a day, each payment and refund with all that is known of it."""
    rows: list[WrittenDown] = []
    since, after_id = day.start, ""
    async with context.database.reading() as reader:
        for _ in range(PAGES_MAX):
            page = await reconciliation.written_down(
                reader, config.merchant_id, config.id, since=since, until=day.end, after_id=after_id
            )
            rows += page
            if len(page) < ROWS_PER_PAGE:
                return [await _booking(reader, own) for own in _by_subject(rows)]
            since, after_id = page[-1].transaction.created_at, page[-1].transaction.id
    raise unavailable("too_many_transactions", f"More than {PAGES_MAX} pages are written down on {day.day}.")


def _by_subject(rows: Sequence[WrittenDown]) -> list[list[WrittenDown]]:
    subjects: dict[tuple[str, str | None], list[WrittenDown]] = {}
    for row in rows:
        subjects.setdefault((row.transaction.attempt_id, row.transaction.refund_id), []).append(row)
    return list(subjects.values())


async def _booking(reader: Reader, rows: Sequence[WrittenDown]) -> Booking:
    """Return the booking of one payment or refund; of a failed refund a part may be written down on another day."""
    attempt, refund = rows[0].attempt, rows[0].refund
    if refund is not None and refund.status is RefundStatus.FAILED:
        return await _whole(reader, attempt, refund)
    return booking_of(attempt, refund, transactions=[row.transaction for row in rows])


async def _whole(reader: Reader, attempt: Attempt, refund: Refund | None) -> Booking:
    known = await transactions.of_order(reader, attempt.merchant_id, attempt.order_id)
    return booking_of(attempt, refund, transactions=known)


async def _bookings_behind(context: Context, config: ProcessorConfig, moved: Sequence[Movement]) -> list[Booking]:
    """Return what is written down, on whatever day, of movements and of the payments that they are about."""
    found: list[Booking] = []
    async with context.database.reading() as reader:
        for movement in moved:
            attempt = await _attempt_of(reader, config, movement)
            refund = await _refund_of(reader, config, movement)
            if refund is not None:
                attempt = await attempts.get(reader, refund.attempt_id)
            if attempt is None or attempt.processor_config_id != config.id:
                continue
            found.append(await _whole(reader, attempt, None))
            if refund is not None:
                found.append(await _whole(reader, attempt, refund))
    return found


async def _attempt_of(reader: Reader, config: ProcessorConfig, movement: Movement) -> Attempt | None:
    if movement.payment_reference is not None:
        found = await attempts.by_reference(reader, config.id, movement.payment_reference)
        if found is not None:
            return found
    return None if movement.attempt_id is None else await attempts.get(reader, movement.attempt_id)


async def _refund_of(reader: Reader, config: ProcessorConfig, movement: Movement) -> Refund | None:
    if movement.kind not in (MovementKind.REFUND, MovementKind.REFUND_REVERSAL):
        return None
    found = await reconciliation.refund_known_as(reader, config.merchant_id, movement.reference)
    if found is None and movement.refund_id is not None:
        found = await refunds.get(reader, movement.refund_id)
    return found if found is not None and found.merchant_id == config.merchant_id else None


async def _record(
    context: Context, config: ProcessorConfig, day: Day, comparison: Comparison, job: Job | None
) -> Report:
    """Keep a comparison, flag the orders that differ and tell the merchant of what is new, in one commit."""
    kept = comparison.findings[:FINDINGS_KEPT_MAX]
    row = _row(context, config, day, comparison)
    async with context.database.transaction() as session:
        run_id, before = await reconciliation.put(session, row, kept)
        row = replace(row, id=run_id)
        news = [each for each in kept if each not in set(before)]
        await _flag_orders(session, config.merchant_id, news, now=context.now())
        ending = [] if job is None else [jobs.finishing(job)]
        counts = await session.run_together([*(_telling(context, config, row, news) if news else []), *ending])
        if job is not None:
            jobs.require_held(counts[-1])
    of(metrics.RECONCILED, row.processor).inc()
    of(metrics.MISMATCHES, row.processor).inc(len(news))  # also by nothing, so that the first is seen as an increase
    about = {"run_id": row.id, "processor": row.processor, "day": str(row.day), "matched": row.matched_count}
    if news:
        log.error(
            "reconciliation.mismatch",
            **about,
            missing_here=row.missing_here_count,
            missing_there=row.missing_there_count,
            amount_differs=row.amount_differs_count,
        )
        context.runner.wake()
    else:
        log.info("reconciliation.done", **about, mismatches=row.mismatch_count, awaited=row.awaited_count)
    return Report(row, kept)


def _row(context: Context, config: ProcessorConfig, day: Day, comparison: Comparison) -> Run:
    return Run(
        id=context.new_id(PREFIX_RECONCILIATION_RUN),
        merchant_id=config.merchant_id,
        processor_config_id=config.id,
        processor=config.processor,
        day=day.day,
        matched_count=comparison.matched,
        awaited_count=comparison.awaited,
        missing_here_count=comparison.count(FindingKind.MISSING_HERE),
        missing_there_count=comparison.count(FindingKind.MISSING_THERE),
        amount_differs_count=comparison.count(FindingKind.AMOUNT_DIFFERS),
        totals=comparison.totals,
        ran_at=day.now,
    )


async def _flag_orders(session: Session, merchant_id: str, news: Sequence[Finding], *, now: datetime) -> None:
    # In one order, so that two comparisons never wait for each other.
    for order_id in sorted({each.order_id for each in news if each.order_id is not None}):
        await orders.flag_for_review(session, merchant_id, order_id, now=now)


def _telling(
    context: Context, config: ProcessorConfig, row: Run, news: Sequence[Finding]
) -> list[tuple[Write, Parameters]]:
    payload = {
        "runId": row.id,
        "processor": row.processor,
        "day": str(row.day),
        "missingHere": row.missing_here_count,
        "missingThere": row.missing_there_count,
        "amountDiffers": row.amount_differs_count,
        "findings": [told(each) for each in news[:FINDINGS_TOLD_MAX]],
    }
    event_type = EventType.RECONCILIATION_MISMATCH
    return recording_without_order(context, row.merchant_id, event_type, payload=payload, is_test=config.is_test_mode)


def told(finding: Finding) -> dict[str, object]:
    """Return a finding as merchants and operators read it; amounts in minor units."""
    here, there = finding.here, finding.there
    return {
        "kind": finding.kind,
        "movement": finding.movement_kind,
        "reference": finding.reference,
        "orderId": finding.order_id,
        "refundId": finding.refund_id,
        "amountHere": None if here is None else here.amount_minor,
        "currencyHere": None if here is None else here.currency,
        "amountThere": None if there is None else there.amount_minor,
        "currencyThere": None if there is None else there.currency,
        "occurredAt": timestamp(finding.occurred_at),
    }
