"""Orders with their attempt in hand: create, lock, read, write back, list."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal

from sqlalchemy import (
    Boolean,
    ColumnElement,
    and_,
    bindparam,
    exists,
    func,
    insert,
    literal_column,
    select,
    text,
    union,
    update,
)

from loop.domain.attempts import Attempt
from loop.domain.orders import Order
from loop.storage.columns import UtcTime
from loop.storage.database import Reader, Session
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import Jobs, Orders, PaymentAttempts, ProcessorConfigs, Refunds, table

_orders = table(Orders)
_attempts = table(PaymentAttempts)
_jobs = table(Jobs)
_configs = table(ProcessorConfigs)
_refunds = table(Refunds)
_ORDER_FIELDS = field_names(Order)
_MUTABLE = [
    "status", "processor", "processor_order_id", "amount_authorized_minor", "amount_captured_minor",
    "amount_refunded_minor", "amount_refund_reserved_minor", "amount_disputed_minor", "attempt_count",
    "last_error_code", "last_error_message", "needs_review", "expires_at", "updated_at", "revision",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class OrderInHand:
    """An order and its latest attempt, None before the first."""

    order: Order
    attempt: Attempt | None


def _in_hand(*values: Any) -> OrderInHand:  # noqa: ANN401 - one row of two tables
    cells = iter(values)
    order = Order(*islice(cells, len(_ORDER_FIELDS)))
    rest = list(cells)
    return OrderInHand(order, None if rest[0] is None else Attempt(*rest))


_WITH_LATEST = select(*columns_of(_orders, Order), *columns_of(_attempts, Attempt)).select_from(
    _orders.outerjoin(
        _attempts, and_(_attempts.c.order_id == _orders.c.id, _attempts.c.number == _orders.c.attempt_count)
    )
)
_OWNED = and_(_orders.c.id == bindparam("order_id"), _orders.c.merchant_id == bindparam("merchant_id"))

_INSERT = Write(insert(_orders).values(parameters_for(_orders, _ORDER_FIELDS)))
_GET = Statement(select(*columns_of(_orders, Order)).where(_OWNED), Order)
_FIND = Statement(select(*columns_of(_orders, Order)).where(_orders.c.id == bindparam("order_id")), Order)
_GET_IN_HAND = Statement(_WITH_LATEST.where(_OWNED), _in_hand)
_LOCK = Statement(select(*columns_of(_orders, Order)).where(_OWNED).with_for_update(), Order)
_LATEST = Statement(
    select(*columns_of(_attempts, Attempt)).where(
        _attempts.c.order_id == bindparam("order_id"), _attempts.c.number == bindparam("number")
    ),
    Attempt,
)
_UPDATE = Write(update(_orders).where(_orders.c.id == bindparam("order_id")).values(parameters_for(_orders, _MUTABLE)))
_FLAG = Write(
    update(_orders)
    .where(_OWNED, _orders.c.needs_review.is_(False))
    .values(needs_review=True, updated_at=bindparam("now", type_=UtcTime), revision=_orders.c.revision + 1)
)
_HAS_NO_JOB = ~exists().where(
    _jobs.c.dedupe_key == bindparam("job_key_prefix", type_=_jobs.c.dedupe_key.type) + _attempts.c.id
)
"""What is being worked on is left out, so that a batch of such orders does not hide the others."""
_EXPIRED = Statement(
    _WITH_LATEST.where(
        text("orders.status IN ('pending', 'requires_action', 'failed')"),  # literal, as in the partial index
        _orders.c.expires_at <= bindparam("now", type_=UtcTime),
        _HAS_NO_JOB,
    )
    .order_by(_orders.c.expires_at)
    .limit(bindparam("limit")),
    _in_hand,
)
_STALE = Statement(
    _WITH_LATEST.where(
        text("orders.status = 'processing'"),
        _orders.c.updated_at <= bindparam("before", type_=UtcTime),
        _HAS_NO_JOB,
    )
    .order_by(_orders.c.updated_at)
    .limit(bindparam("limit")),
    _in_hand,
)


def insertion(order: Order) -> tuple[Write, Parameters]:
    """Return the write that inserts an order, for `Session.run_together`."""
    return _INSERT, values_of(order)


def updating(order: Order) -> tuple[Write, Parameters]:
    """Return the write that stores an order's changed fields as its next revision, for `Session.run_together`."""
    changed = {name: getattr(order, name) for name in _MUTABLE}
    return _UPDATE, {"order_id": order.id, **changed, "revision": order.revision + 1}


def _is_other(order: Order | None, is_test: bool | None) -> bool:
    """Tell whether an order is of the other mode than is asked for; a mode never changes, so it may be read first."""
    return order is not None and is_test is not None and order.is_test is not is_test


async def get(reader: Reader, merchant_id: str, order_id: str, *, is_test: bool | None = None) -> Order | None:
    """Return a merchant's order, or None; with `is_test` only one of that mode."""
    order = await reader.first(_GET, {"order_id": order_id, "merchant_id": merchant_id})
    return None if _is_other(order, is_test) else order


async def find(reader: Reader, order_id: str) -> Order | None:
    """Return any merchant's order, or None: for the operator's commands only."""
    return await reader.first(_FIND, {"order_id": order_id})


async def get_in_hand(
    reader: Reader, merchant_id: str, order_id: str, *, is_test: bool | None = None
) -> OrderInHand | None:
    """Return a merchant's order with its latest attempt, or None; with `is_test` only one of that mode."""
    found = await reader.first(_GET_IN_HAND, {"order_id": order_id, "merchant_id": merchant_id})
    return None if found is None or _is_other(found.order, is_test) else found


async def lock(session: Session, merchant_id: str, order_id: str, *, is_test: bool | None = None) -> OrderInHand | None:
    """Return a merchant's order with its latest attempt, its row locked until the transaction ends, or None.

    With `is_test` only one of that mode.
    """
    order = await session.first(_LOCK, {"order_id": order_id, "merchant_id": merchant_id})
    if _is_other(order, is_test):
        return None
    if order is None or order.attempt_count == 0:
        return None if order is None else OrderInHand(order, None)
    # A statement of its own: Postgres takes a locked row as it is now, but whatever is joined to it as it was before
    # the wait for the lock.
    latest = await session.first(_LATEST, {"order_id": order_id, "number": order.attempt_count})
    return OrderInHand(order, latest)


async def flag_for_review(session: Session, merchant_id: str, order_id: str, *, now: datetime) -> bool:
    """Say that a person must look at an order; tell whether nobody had said so yet."""
    return await session.run(_FLAG, {"order_id": order_id, "merchant_id": merchant_id, "now": now}) == 1


async def expired(reader: Reader, now: datetime, *, job_key_prefix: str, limit: int) -> Sequence[OrderInHand]:
    """Return unpaid orders of all merchants whose time is up, oldest first, unless the attempt has such a job."""
    return await reader.all(_EXPIRED, {"now": now, "job_key_prefix": job_key_prefix, "limit": limit})


async def stale(reader: Reader, before: datetime, *, job_key_prefix: str, limit: int) -> Sequence[OrderInHand]:
    """Return orders in `processing` that nothing has touched since `before`, unless the attempt has such a job."""
    return await reader.all(_STALE, {"before": before, "job_key_prefix": job_key_prefix, "limit": limit})


@dataclass(frozen=True, slots=True)
class OrderFilter:
    """Which of a merchant's orders; None leaves a condition out. Amounts in minor units.

    `any_id` is an order's own id, the merchant's, or a processor's for one of its payments or refunds.
    """

    status: str | None = None
    processor: str | None = None
    currency: str | None = None
    external_id: str | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None
    amount_min: int | None = None
    amount_max: int | None = None
    customer_email: str | None = None
    needs_review: Literal[True] | None = None
    any_id: str | None = None
    amount: int | None = None
    is_test: bool | None = None


_OF_MERCHANT = _orders.c.merchant_id == bindparam("merchant_id")
# Each part has an index of its own, where one OR over all of them would read every order.
_KNOWN_AS = union(
    select(_orders.c.id).where(_OF_MERCHANT, _orders.c.id == bindparam("any_id")),
    select(_orders.c.id).where(_OF_MERCHANT, _orders.c.external_id == bindparam("any_id")),
    select(_attempts.c.order_id)
    .join(_configs, _configs.c.id == _attempts.c.processor_config_id)
    .where(
        _configs.c.merchant_id == bindparam("merchant_id"),
        _attempts.c.merchant_id == bindparam("merchant_id"),
        _attempts.c.processor_reference == bindparam("any_id"),
    ),
    select(_refunds.c.order_id).where(
        _refunds.c.merchant_id == bindparam("merchant_id"), _refunds.c.processor_reference == bindparam("any_id")
    ),
)
_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "is_test": _orders.c.is_test == bindparam("is_test"),
    "status": _orders.c.status == bindparam("status"),
    "processor": _orders.c.processor == bindparam("processor"),
    "currency": _orders.c.currency == bindparam("currency"),
    "external_id": _orders.c.external_id == bindparam("external_id"),
    "created_from": _orders.c.created_at >= bindparam("created_from", type_=UtcTime),
    "created_to": _orders.c.created_at < bindparam("created_to", type_=UtcTime),
    "amount_min": _orders.c.amount_minor >= bindparam("amount_min"),
    "amount_max": _orders.c.amount_minor <= bindparam("amount_max"),
    "customer_email": _orders.c.customer_email == bindparam("customer_email"),
    "needs_review": literal_column("orders.needs_review", Boolean),  # as in the partial index
    "any_id": _orders.c.id.in_(_KNOWN_AS),
    "amount": _orders.c.amount_minor == bindparam("amount"),
}
_LISTS: dict[tuple[str, ...], Statement[Order]] = {}
_PAGES: dict[tuple[str, ...], Statement[Order]] = {}
_COUNTS: dict[tuple[str, ...], Statement[int]] = {}


def _given(order_filter: OrderFilter) -> tuple[dict[str, object], list[ColumnElement[bool]]]:
    given = {name: value for name, value in values_of(order_filter).items() if value is not None}
    # What the parts of `any_id` find is of the merchant already; said again, it would have SQLite read all its orders.
    owned = [] if "any_id" in given else [_OF_MERCHANT]
    conditions = [*owned, *(_CONDITIONS[name] for name in given)]
    return given, conditions


async def list_after(
    reader: Reader, merchant_id: str, order_filter: OrderFilter, *, before_id: str | None, limit: int
) -> list[Order]:
    """Return a merchant's orders, newest first, that come after `before_id` in that order: a cursor page."""
    given, conditions = _given(order_filter)
    key = (*given, "before_id" if before_id else "")
    if key not in _LISTS:
        if before_id:
            conditions.append(_orders.c.id < bindparam("before_id"))
        _LISTS[key] = Statement(
            select(*columns_of(_orders, Order))
            .where(*conditions)
            .order_by(_orders.c.id.desc())
            .limit(bindparam("limit")),
            Order,
        )
    return await reader.all(_LISTS[key], {"merchant_id": merchant_id, "before_id": before_id, "limit": limit, **given})


async def list_any_after(
    reader: Reader, merchant_id: str, filters: Iterable[OrderFilter], *, before_id: str | None, limit: int
) -> list[Order]:
    """Return a cursor page of what any of a few filters finds, of which no two find the same order."""
    found = [
        order
        for each in filters
        for order in await list_after(reader, merchant_id, each, before_id=before_id, limit=limit)
    ]
    return sorted(found, key=lambda order: order.id, reverse=True)[:limit]


async def list_page(
    reader: Reader, merchant_id: str, order_filter: OrderFilter, *, offset: int, limit: int
) -> tuple[list[Order], int]:
    """Return a numbered page of a merchant's orders, newest first, and how many there are in all."""
    given, conditions = _given(order_filter)
    key = tuple(given)
    if key not in _PAGES:
        _PAGES[key] = Statement(
            select(*columns_of(_orders, Order))
            .where(*conditions)
            .order_by(_orders.c.id.desc())
            .limit(bindparam("limit"))
            .offset(bindparam("offset")),
            Order,
        )
        _COUNTS[key] = Statement(select(func.count()).select_from(_orders).where(*conditions), int)
    parameters = {"merchant_id": merchant_id, **given}
    rows = await reader.all(_PAGES[key], {"offset": offset, "limit": limit, **parameters})
    return rows, await reader.first(_COUNTS[key], parameters) or 0
