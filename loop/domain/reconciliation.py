"""Reconciliation: a day of an account in Loop's books and in the processor's list, and where the two differ."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum

from loop.domain.attempts import Attempt, AttemptStatus
from loop.domain.money import Money
from loop.domain.movements import Movement, MovementKind
from loop.domain.refunds import Refund, RefundStatus
from loop.domain.transactions import Transaction, TransactionStatus, TransactionType

BORDER_MARGIN = timedelta(hours=2)
"""How far beyond a day's borders movements are looked for: the two sides seldom write at the same instant."""

LOOKBACK_MAX = timedelta(days=8)
"""How far before a day a movement may lie that Loop has written down on that day; no hold lasts longer."""

GRACE_MAX = timedelta(days=14)
"""How long a movement may be absent from a processor's list, whatever the processor says of itself."""

CATCH_UP_DAYS = 16
"""How many past days are compared that were missed, or waited for the processor's list: more than the longest grace."""

RERUN_AFTER = timedelta(days=1)
"""The least time between two looks at a day that waits for the processor's list; the wait doubles."""

FINDINGS_KEPT_MAX = 1_000
"""Findings of one run that are kept and told; its counts are of all."""


class FindingKind(StrEnum):
    """How the two sides differ."""

    MISSING_HERE = "missing_here"
    """The processor moved money, and Loop has not written it down."""
    MISSING_THERE = "missing_there"
    """Loop has written down money that the processor does not list."""
    AMOUNT_DIFFERS = "amount_differs"


@dataclass(frozen=True, slots=True)
class Booking:
    """What Loop has written down of one payment or, with a `refund_id`, of one refund.

    `reference` is the processor's id of the payment, or of the refund.
    """

    order_id: str
    attempt_id: str
    refund_id: str | None
    reference: str | None
    amount: Money
    began_at: datetime
    taken_at: datetime | None
    """When Loop wrote down that the money moved."""
    undone_at: datetime | None
    """When Loop wrote down that it failed, before or after that."""
    is_pending: bool = False
    """Whether the processor has said that it will know later: it may list the money already."""


def booking_of(attempt: Attempt, refund: Refund | None, *, transactions: Iterable[Transaction]) -> Booking:
    """Return what is written down of a payment, or of a refund, given its transactions; others are left out."""
    kind = TransactionType.CAPTURE if refund is None else TransactionType.REFUND
    own = [each for each in transactions if each.attempt_id == attempt.id]
    own = [each for each in own if each.refund_id == (None if refund is None else refund.id)]
    taken = [each for each in own if each.type is kind and each.status is TransactionStatus.SUCCESS]
    undone = [each for each in own if each.status is TransactionStatus.FAILED or each.type is TransactionType.VOID]
    what = attempt if refund is None else refund
    return Booking(
        order_id=attempt.order_id,
        attempt_id=attempt.id,
        refund_id=None if refund is None else refund.id,
        reference=what.processor_reference,
        amount=Money(sum(each.amount_minor for each in taken) or what.amount_minor, what.currency),
        began_at=what.created_at,
        taken_at=max((each.created_at for each in taken), default=None),
        undone_at=max((each.created_at for each in undone), default=None),
        is_pending=what.status in (AttemptStatus.PENDING, RefundStatus.PENDING),
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. `here` is Loop's side and `there` the processor's, None where that side has nothing."""

    kind: FindingKind
    movement_kind: MovementKind
    reference: str | None
    """The processor's id of the charge, the payment or the refund."""
    order_id: str | None
    refund_id: str | None
    here: Money | None
    there: Money | None
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class CurrencyTotals:
    """What moved in one currency, in its minor units; what failed afterwards is taken off."""

    currency: str
    charged_here: int = 0
    charged_there: int = 0
    refunded_here: int = 0
    refunded_there: int = 0
    fees: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a day's comparison came to. `awaited` counts what the processor may still list or decide."""

    matched: int
    awaited: int
    findings: tuple[Finding, ...]
    totals: tuple[CurrencyTotals, ...]

    def count(self, kind: FindingKind) -> int:
        """Return how many findings are of one kind."""
        return sum(finding.kind is kind for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Day:
    """A UTC day of an account, looked at from a moment after its end.

    `listed_within` is how long after it moved money may be missing from the processor's list. What moved before
    `opened_at`, when the account came to Loop, need not be known here.
    """

    day: date
    now: datetime
    listed_within: timedelta
    opened_at: datetime

    @property
    def start(self) -> datetime:
        """The first instant of the day."""
        return datetime.combine(self.day, time.min, UTC)

    @property
    def end(self) -> datetime:
        """The first instant after the day."""
        return self.start + timedelta(days=1)

    @property
    def listed_from(self) -> datetime:
        """From when movements are listed."""
        return self.start - BORDER_MARGIN

    @property
    def listed_until(self) -> datetime:
        """Until when movements are listed, exclusive."""
        return self.end + BORDER_MARGIN

    def has(self, moment: datetime) -> bool:
        """Tell whether a moment belongs to this day."""
        return self.start <= moment < self.end

    def may_be_listed_later(self, moment: datetime) -> bool:
        """Tell whether money that moved at a moment may still be missing from the processor's list."""
        return self.now < moment + min(self.listed_within, GRACE_MAX)


@dataclass(frozen=True, slots=True)
class LastRun:
    """When a day was last compared, and how much of it the processor still had to list or decide."""

    ran_at: datetime
    awaited: int


def is_due(day: Day, last: LastRun | None) -> bool:
    """Tell whether a day is to be compared: for the first time, or again for what was awaited.

    The wait between two looks doubles; one look comes after the grace, when what is still missing is reported.
    """
    if day.now < day.listed_until or day.end <= day.opened_at:
        return False
    if last is None:
        return True
    decided_at = day.end + min(day.listed_within, GRACE_MAX)
    if not last.awaited or last.ran_at >= decided_at:
        return False
    return day.now >= min(decided_at, last.ran_at + max(RERUN_AFTER, last.ran_at - day.end))


def past_days(now: datetime) -> list[date]:
    """Return the days that may be due, oldest first."""
    today = now.astimezone(UTC).date()
    return [today - timedelta(days=back) for back in range(CATCH_UP_DAYS, 0, -1)]


_REFUNDS = frozenset({MovementKind.REFUND, MovementKind.REFUND_REVERSAL})
_FORWARD = frozenset({MovementKind.CHARGE, MovementKind.REFUND})


@dataclass(frozen=True, slots=True)
class Books:
    """Bookings by all that a movement may know them by; of two for the same thing the later one counts."""

    bookings: Mapping[tuple[str, str | None], Booking]
    payments: Mapping[str, Booking]
    refunds: Mapping[str, Booking]

    def claimant(self, movement: Movement) -> Booking | None:
        """Return the booking of what moved, or None."""
        if movement.kind in _REFUNDS:
            return self.refunds.get(movement.reference) or self.refunds.get(movement.refund_id or "")
        return self.payment_of(movement)

    def payment_of(self, movement: Movement) -> Booking | None:
        """Return the booking of the payment that a movement is about, or None."""
        known = self.payments.get(movement.payment_reference or "")
        return known or self.payments.get(movement.attempt_id or "")


def books_of(bookings: Iterable[Booking]) -> Books:
    """Return bookings with their indexes."""
    by_subject = {(booking.attempt_id, booking.refund_id): booking for booking in bookings}
    payments: dict[str, Booking] = {}
    refunds: dict[str, Booking] = {}
    for booking in by_subject.values():
        index = payments if booking.refund_id is None else refunds
        index[booking.refund_id or booking.attempt_id] = booking
        if booking.reference is not None:
            index[booking.reference] = booking
    return Books(by_subject, payments, refunds)


def unclaimed(day: Day, books: Books, *, movements: Iterable[Movement]) -> list[Movement]:
    """Return the day's movements without a booking: Loop may have written them down on another day."""
    return [each for each in movements if day.has(each.occurred_at) and books.claimant(each) is None]


def searched_from(day: Day, books: Books, *, movements: Iterable[Movement]) -> datetime | None:
    """Return from when movements have to be listed besides before anything is called missing, or None.

    What Loop wrote down late (an answer that was lost, a bank that took its time) the processor lists when it happened.
    """
    seen = {_subject(booking) for each in movements if (booking := books.claimant(each)) is not None}
    began = [
        booking.began_at - BORDER_MARGIN
        for subject, booking in books.bookings.items()
        if subject not in seen and (taken_at := _owed_since(day, booking)) and not day.may_be_listed_later(taken_at)
    ]
    earliest = max(min(began, default=day.listed_from), day.start - LOOKBACK_MAX)
    return earliest if earliest < day.listed_from else None


def compare(day: Day, books: Books, *, movements: Iterable[Movement]) -> Comparison:
    """Compare what Loop has written down of a day with what the processor lists.

    A movement belongs to the day on which it happened, whenever Loop wrote it down; a booking that no movement
    belongs to, to the day on which it was written.
    """
    tally = _Tally(day)
    claimed: dict[tuple[str, str | None], list[Movement]] = {}
    for movement in movements:
        booking = books.claimant(movement)
        if booking is not None:
            claimed.setdefault(_subject(booking), []).append(movement)
        elif day.has(movement.occurred_at) and movement.occurred_at >= day.opened_at:
            payment = books.payment_of(movement)
            tally.find_missing_here([movement], None if payment is None else payment.order_id)
    for subject, booking in books.bookings.items():
        own = sorted(claimed.get(subject, []), key=lambda each: each.occurred_at)
        forward = [each for each in own if each.kind in _FORWARD]
        back = [each for each in own if each.kind not in _FORWARD]
        _compare_forward(tally, booking, forward, back)
        _compare_back(tally, booking, back)
    totals = tuple(CurrencyTotals(currency, **sums) for currency, sums in sorted(tally.sums.items()))
    return Comparison(tally.matched, tally.awaited, tuple(tally.findings), totals)


def _subject(booking: Booking) -> tuple[str, str | None]:
    return booking.attempt_id, booking.refund_id


def _owed_since(day: Day, booking: Booking) -> datetime | None:
    """Return when on this day Loop wrote down what the processor has to list, or None."""
    taken_at = booking.taken_at
    return taken_at if taken_at is not None and booking.undone_at is None and day.has(taken_at) else None


@dataclass(slots=True)
class _Tally:
    """What has been counted and found so far."""

    day: Day
    matched: int = 0
    awaited: int = 0
    findings: list[Finding] = field(default_factory=list)
    sums: dict[str, dict[str, int]] = field(default_factory=dict)
    """Currency -> field of `CurrencyTotals` -> its sum so far."""

    def find_missing_here(
        self, movements: Sequence[Movement], order_id: str | None, *, refund_id: str | None = None
    ) -> None:
        """Report movements of one thing that only the processor has."""
        kind, first = FindingKind.MISSING_HERE, movements[0]
        self.findings.append(
            Finding(kind, first.kind, first.reference, order_id, refund_id, None, _sum(movements), first.occurred_at)
        )
        self.add_there(movements)

    def add_here(self, kind: MovementKind, amount: Money) -> None:
        """Add what Loop has written down to the totals."""
        self._add(amount.currency, "refunded_here" if kind in _REFUNDS else "charged_here", _signed(kind, amount))

    def add_there(self, movements: Iterable[Movement]) -> None:
        """Add what the processor lists to the totals."""
        for each in movements:
            name = "refunded_there" if each.kind in _REFUNDS else "charged_there"
            self._add(each.amount.currency, name, _signed(each.kind, each.amount))
            if each.fee is not None:
                self._add(each.fee.currency, "fees", each.fee.amount_minor)

    def _add(self, currency: str, name: str, amount_minor: int) -> None:
        sums = self.sums.setdefault(currency, {})
        sums[name] = sums.get(name, 0) + amount_minor


def _signed(kind: MovementKind, amount: Money) -> int:
    return amount.amount_minor if kind in _FORWARD else -amount.amount_minor


def _compare_forward(tally: _Tally, booking: Booking, forward: Sequence[Movement], back: Sequence[Movement]) -> None:
    day = tally.day
    kind = MovementKind.CHARGE if booking.refund_id is None else MovementKind.REFUND
    if not forward:
        if taken_at := _owed_since(day, booking):
            tally.add_here(kind, booking.amount)
            _miss(tally, booking, kind, taken_at)
        return
    first, there = forward[0], _sum(forward)
    if not day.has(first.occurred_at):
        return
    if booking.taken_at is None:
        is_cancelled_out = bool(back) and _sum(back) == there
        if booking.is_pending:
            tally.awaited += 1
        elif is_cancelled_out or (booking.undone_at is not None and booking.undone_at >= day.listed_until):
            tally.matched += 1
        else:
            tally.find_missing_here(forward, booking.order_id, refund_id=booking.refund_id)
            return
        tally.add_there(forward)
        return
    tally.add_there(forward)
    tally.add_here(kind, booking.amount)
    is_of_payout = first.is_as_settled and there.currency != booking.amount.currency
    if there == booking.amount or is_of_payout:
        tally.matched += 1
        return
    tally.findings.append(
        Finding(
            FindingKind.AMOUNT_DIFFERS, kind, first.reference, booking.order_id, booking.refund_id, booking.amount,
            there, first.occurred_at,
        )
    )  # fmt: skip


def _miss(tally: _Tally, booking: Booking, kind: MovementKind, taken_at: datetime) -> None:
    if tally.day.may_be_listed_later(taken_at):
        tally.awaited += 1
        return
    tally.findings.append(
        Finding(
            FindingKind.MISSING_THERE, kind, booking.reference, booking.order_id, booking.refund_id, booking.amount,
            None, taken_at,
        )
    )  # fmt: skip


def _compare_back(tally: _Tally, booking: Booking, back: Sequence[Movement]) -> None:
    """Compare what went back. Not every processor lists it, so it is never missed there."""
    if not back or not tally.day.has(back[0].occurred_at):
        return
    first = back[0]
    if booking.undone_at is None and not booking.is_pending:
        tally.find_missing_here(back, booking.order_id, refund_id=booking.refund_id)
        return
    tally.add_there(back)
    if booking.taken_at is not None:
        tally.add_here(first.kind, booking.amount)
    if booking.is_pending:
        tally.awaited += 1
    else:
        tally.matched += 1


def _sum(movements: Sequence[Movement]) -> Money:
    currency = movements[0].amount.currency
    return Money(sum(each.amount.amount_minor for each in movements if each.amount.currency == currency), currency)
