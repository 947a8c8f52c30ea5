"""Payment attempts: insert, read, find by the processor's reference, write back."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, func, insert, select, update

from loop.domain.attempts import Attempt, AttemptStatus
from loop.storage.database import Reader
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import PaymentAttempts, table

COUNTED_MAX = 1_000
"""More than a merchant's accounts times the statuses, twice."""

_attempts = table(PaymentAttempts)
_MUTABLE = [
    "status", "processor_reference", "action", "error_code", "error_message", "decline_class", "raw_error_code",
    "is_duplicate", "is_given_up", "asked_count", "unclear_since", "updated_at",
]  # fmt: skip

_INSERT = Write(insert(_attempts).values(parameters_for(_attempts, [*field_names(Attempt), "routing_reasons"])))
_UPDATE = Write(
    update(_attempts).where(_attempts.c.id == bindparam("attempt_id")).values(parameters_for(_attempts, _MUTABLE))
)
_GET = Statement(select(*columns_of(_attempts, Attempt)).where(_attempts.c.id == bindparam("attempt_id")), Attempt)
_BY_REFERENCE = Statement(
    select(*columns_of(_attempts, Attempt)).where(
        _attempts.c.processor_config_id == bindparam("config_id"),
        _attempts.c.processor_reference == bindparam("reference"),
    ),
    Attempt,
)
_AT_ACCOUNT = Statement(
    select(_attempts.c.id)
    .where(
        _attempts.c.processor_config_id == bindparam("config_id"), _attempts.c.merchant_id == bindparam("merchant_id")
    )
    .limit(1),
    str,
)
_OF_ORDER = Statement(
    select(*columns_of(_attempts, Attempt), _attempts.c.routing_reasons)
    .where(_attempts.c.order_id == bindparam("order_id"), _attempts.c.merchant_id == bindparam("merchant_id"))
    .order_by(_attempts.c.number)
    .limit(100),
    lambda *row: (Attempt(*row[:-1]), tuple(row[-1])),
)


@dataclass(frozen=True, slots=True)
class AttemptCount:
    """How many of an account's attempts have a status; `is_declined` is so of those that were declined before, too."""

    processor_config_id: str
    status: AttemptStatus
    is_declined: bool
    count: int


_IS_DECLINED = _attempts.c.decline_class.is_not(None)
_COUNTS = Statement(
    select(_attempts.c.processor_config_id, _attempts.c.status, _IS_DECLINED, func.count())
    .where(_attempts.c.merchant_id == bindparam("merchant_id"), _attempts.c.id >= bindparam("from_attempt"))
    .group_by(_attempts.c.processor_config_id, _attempts.c.status, _IS_DECLINED)
    .limit(COUNTED_MAX),
    AttemptCount,
)


def insertion(attempt: Attempt, routing_reasons: Sequence[str]) -> tuple[Write, Parameters]:
    """Return the write that inserts an attempt with the reasons of its routing, for `Session.run_together`."""
    return _INSERT, {**values_of(attempt), "routing_reasons": list(routing_reasons)}


def updating(attempt: Attempt) -> tuple[Write, Parameters]:
    """Return the write that stores an attempt's changed fields, for `Session.run_together`."""
    return _UPDATE, {"attempt_id": attempt.id, **{name: getattr(attempt, name) for name in _MUTABLE}}


async def get(reader: Reader, attempt_id: str) -> Attempt | None:
    """Return an attempt, or None."""
    return await reader.first(_GET, {"attempt_id": attempt_id})


async def by_reference(reader: Reader, config_id: str, reference: str) -> Attempt | None:
    """Return the attempt that a processor account knows by this reference, or None."""
    return await reader.first(_BY_REFERENCE, {"config_id": config_id, "reference": reference})


async def is_any_at(reader: Reader, merchant_id: str, config_id: str) -> bool:
    """Tell whether a merchant's processor account was ever asked to take a payment."""
    return await reader.first(_AT_ACCOUNT, {"merchant_id": merchant_id, "config_id": config_id}) is not None


async def of_order(reader: Reader, merchant_id: str, order_id: str) -> list[tuple[Attempt, tuple[str, ...]]]:
    """Return an order's attempts, oldest first, each with the reasons of its routing."""
    return await reader.all(_OF_ORDER, {"merchant_id": merchant_id, "order_id": order_id})


async def counts_since(reader: Reader, merchant_id: str, *, from_attempt: str) -> list[AttemptCount]:
    """Return how a merchant's attempts from an id on stand, for each account."""
    return await reader.all(_COUNTS, {"merchant_id": merchant_id, "from_attempt": from_attempt})
