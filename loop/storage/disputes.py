"""Disputes: insert, read, list, write back."""

from dataclasses import dataclass

from sqlalchemy import bindparam, insert, select, update

from loop.domain.disputes import Dispute, DisputeStatus
from loop.storage.database import Reader
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import Disputes, Orders, table

_disputes = table(Disputes)
_orders = table(Orders)
_MUTABLE = ["status", "amount_minor", "currency", "counted_minor", "reason", "due_by", "updated_at"]

_INSERT = Write(insert(_disputes).values(parameters_for(_disputes, field_names(Dispute))))
_UPDATE = Write(
    update(_disputes).where(_disputes.c.id == bindparam("dispute_id")).values(parameters_for(_disputes, _MUTABLE))
)
_GET = Statement(select(*columns_of(_disputes, Dispute)).where(_disputes.c.id == bindparam("dispute_id")), Dispute)
_OF_ORDER = Statement(
    select(*columns_of(_disputes, Dispute))
    .where(_disputes.c.order_id == bindparam("order_id"), _disputes.c.merchant_id == bindparam("merchant_id"))
    .order_by(_disputes.c.created_at.desc(), _disputes.c.id.desc())
    .limit(1000),
    Dispute,
)


@dataclass(frozen=True, slots=True)
class ListedDispute:
    """A dispute with the merchant's own id of its order."""

    dispute: Dispute
    external_id: str

    @property
    def id(self) -> str:
        """The dispute's id."""
        return self.dispute.id


_LISTS = {
    (has_status, has_cursor): Statement(
        select(_orders.c.external_id, *columns_of(_disputes, Dispute))
        .select_from(_disputes.join(_orders, _orders.c.id == _disputes.c.order_id))
        .where(
            _disputes.c.merchant_id == bindparam("merchant_id"),
            _orders.c.is_test == bindparam("is_test"),
            *([_disputes.c.status == bindparam("status")] if has_status else []),
            *([_disputes.c.id < bindparam("before_id")] if has_cursor else []),
        )
        .order_by(_disputes.c.id.desc())
        .limit(bindparam("limit")),
        lambda external_id, *row: ListedDispute(Dispute(*row), external_id),
    )
    for has_status in (False, True)
    for has_cursor in (False, True)
}


def insertion(dispute: Dispute) -> tuple[Write, Parameters]:
    """Return the write that inserts a dispute, for `Session.run_together`."""
    return _INSERT, values_of(dispute)


def updating(dispute: Dispute) -> tuple[Write, Parameters]:
    """Return the write that stores a dispute's changed fields, for `Session.run_together`."""
    return _UPDATE, {"dispute_id": dispute.id, **{name: getattr(dispute, name) for name in _MUTABLE}}


async def get(reader: Reader, dispute_id: str) -> Dispute | None:
    """Return a dispute, or None."""
    return await reader.first(_GET, {"dispute_id": dispute_id})


async def of_order(reader: Reader, merchant_id: str, order_id: str) -> list[Dispute]:
    """Return an order's disputes, newest first."""
    return await reader.all(_OF_ORDER, {"merchant_id": merchant_id, "order_id": order_id})


async def list_after(
    reader: Reader, merchant_id: str, *, is_test: bool, status: DisputeStatus | None, before_id: str | None, limit: int
) -> list[ListedDispute]:
    """Return a cursor page of a merchant's disputes of one mode: those after `before_id`, newest first."""
    given = {"is_test": is_test, "status": status, "before_id": before_id, "limit": limit}
    statement = _LISTS[status is not None, before_id is not None]
    return await reader.all(statement, {"merchant_id": merchant_id, **given})
