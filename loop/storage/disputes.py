"""Disputes: insert, read, list, write back."""

from sqlalchemy import bindparam, insert, select, update

from loop.domain.disputes import Dispute
from loop.storage.database import Reader
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import Disputes, table

_disputes = table(Disputes)
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
