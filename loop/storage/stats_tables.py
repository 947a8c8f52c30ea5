"""The table of statistics: what the orders of a day add up to, kept for as long as it is true."""

from typing import Any

from sqlalchemy import Column
from sqlmodel import Field, SQLModel

from loop.storage import fields
from loop.storage.columns import Document


class OrderDays(SQLModel, table=True):
    """The orders that a merchant made on one UTC day, summed.

    A trigger raises `revision` whenever one of them changes on a later day; the figures count while it is the one that
    they were summed at.
    """

    __tablename__ = "order_days"
    merchant_id: str = Field(primary_key=True, max_length=40)
    is_test: bool = Field(primary_key=True)
    day: str = Field(primary_key=True, max_length=10)
    revision: int = fields.big()
    figures: list[Any] | None = Field(sa_column=Column(Document, nullable=True))
    figures_revision: int | None = fields.big(is_nullable=True)
