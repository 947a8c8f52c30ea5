"""The tables of the audit log, which is only ever added to: triggers refuse to change or delete what is in it."""

from datetime import datetime
from typing import Any

from sqlalchemy import Column, Index, text
from sqlmodel import Field, SQLModel

from loop.storage import fields
from loop.storage.columns import Document


class AuditLog(SQLModel, table=True):
    """What was done and by whom, chained by hashes: one chain for each merchant, and the operator's without one."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("uq_audit_log_merchant_id_seq", "merchant_id", "seq", unique=True),
        Index(
            "uq_audit_log_operator_seq",
            "seq",
            unique=True,
            sqlite_where=text("merchant_id IS NULL"),
            postgresql_where=text("merchant_id IS NULL"),
        ),
    )
    id: str = Field(primary_key=True, max_length=40)
    seq: int = fields.big()
    merchant_id: str | None = Field(default=None, max_length=40)
    actor_kind: str = Field(max_length=20)
    actor_id: str | None = Field(default=None, max_length=80)
    address: str | None = Field(default=None, max_length=64)
    action: str = Field(max_length=60)
    subject: str = Field(max_length=120)
    before: dict[str, Any] | None = Field(sa_column=Column(Document, nullable=True))
    after: dict[str, Any] | None = Field(sa_column=Column(Document, nullable=True))
    correlation_id: str | None = Field(default=None, max_length=128)
    created_at: datetime = fields.time()
    prev_hash: str = Field(max_length=64)
    hash: str = Field(max_length=64)


class AuditHeads(SQLModel, table=True):
    """Where each chain of the audit log ends; its row is locked by whoever adds to the chain."""

    __tablename__ = "audit_heads"
    chain: str = Field(primary_key=True, max_length=40)
    seq: int = fields.big()
    hash: str = Field(max_length=64)
