"""Refunds: insert, read, list, write back."""

from dataclasses import dataclass

from sqlalchemy import bindparam, insert, select, update

from loop.domain.refunds import Refund, RefundStatus
from loop.storage.database import Reader
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import Orders, Refunds, table

_refunds = table(Refunds)
_orders = table(Orders)
_MUTABLE = ["status", "processor_reference", "error_code", "error_message", "asked_count", "updated_at"]

_INSERT = Write(insert(_refunds).values(parameters_for(_refunds, field_names(Refund))))
_UPDATE = Write(
    update(_refunds).where(_refunds.c.id == bindparam("refund_id")).values(parameters_for(_refunds, _MUTABLE))
)
_GET = Statement(select(*columns_of(_refunds, Refund)).where(_refunds.c.id == bindparam("refund_id")), Refund)
_BY_REFERENCE = Statement(
    select(*columns_of(_refunds, Refund)).where(
        _refunds.c.attempt_id == bindparam("attempt_id"), _refunds.c.processor_reference == bindparam("reference")
    ),
    Refund,
)
_OF_ORDER = Statement(
    select(*columns_of(_refunds, Refund))
    .where(_refunds.c.order_id == bindparam("order_id"), _refunds.c.merchant_id == bindparam("merchant_id"))
    .order_by(_refunds.c.created_at.desc(), _refunds.c.id.desc())
    .limit(1000),
    Refund,
)


@dataclass(frozen=True, slots=True)
class ListedRefund:
    """A refund with the merchant's own id of its order."""

    refund: Refund
    external_id: str

    @property
    def id(self) -> str:
        """The refund's id."""
        return self.refund.id


_LISTS = {
    (has_status, has_cursor): Statement(
        select(_orders.c.external_id, *columns_of(_refunds, Refund))
        .select_from(_refunds.join(_orders, _orders.c.id == _refunds.c.order_id))
        .where(
            _refunds.c.merchant_id == bindparam("merchant_id"),
            _orders.c.is_test == bindparam("is_test"),
            *([_refunds.c.status == bindparam("status")] if has_status else []),
            *([_refunds.c.id < bindparam("before_id")] if has_cursor else []),
        )
        .order_by(_refunds.c.id.desc())
        .limit(bindparam("limit")),
        lambda external_id, *row: ListedRefund(Refund(*row), external_id),
    )
    for has_status in (False, True)
    for has_cursor in (False, True)
}


def insertion(refund: Refund) -> tuple[Write, Parameters]:
    """Return the write that inserts a refund, for `Session.run_together`."""
    return _INSERT, values_of(refund)


def updating(refund: Refund) -> tuple[Write, Parameters]:
    """Return the write that stores a refund's changed fields, for `Session.run_together`."""
    return _UPDATE, {"refund_id": refund.id, **{name: getattr(refund, name) for name in _MUTABLE}}


async def get(reader: Reader, refund_id: str) -> Refund | None:
    """Return a refund, or None."""
    return await reader.first(_GET, {"refund_id": refund_id})


async def by_reference(reader: Reader, attempt_id: str, reference: str) -> Refund | None:
    """Return an attempt's refund that its processor knows by this reference, or None."""
    return await reader.first(_BY_REFERENCE, {"attempt_id": attempt_id, "reference": reference})


async def of_order(reader: Reader, merchant_id: str, order_id: str) -> list[Refund]:
    """Return an order's refunds, newest first."""
    return await reader.all(_OF_ORDER, {"merchant_id": merchant_id, "order_id": order_id})


async def list_after(
    reader: Reader, merchant_id: str, *, is_test: bool, status: RefundStatus | None, before_id: str | None, limit: int
) -> list[ListedRefund]:
    """Return a cursor page of a merchant's refunds of one mode: those after `before_id`, newest first."""
    given = {"is_test": is_test, "status": status, "before_id": before_id, "limit": limit}
    statement = _LISTS[status is not None, before_id is not None]
    return await reader.all(statement, {"merchant_id": merchant_id, **given})
