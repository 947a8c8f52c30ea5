"""Scoped queries: what reads a merchant's rows says whose, and every exception has its reason."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from sqlalchemy import BindParameter, Table, bindparam, select
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression
from sqlmodel import SQLModel

import loop.storage
from loop.storage import deliveries, orders, transactions
from loop.storage.orders import OrderFilter
from loop.storage.statements import Clause, Statement, Write
from loop.storage.tables import Orders, Refunds, table

OWNED = frozenset(
    {each.name for each in SQLModel.metadata.tables.values() if "merchant_id" in each.c}
    | {"reconciliation_findings", "audit_heads", "merchants"}
)
"""Tables whose rows belong to one merchant each."""

BY_OUR_OWN_ID = "the id comes from a row that was read for its merchant, or from a job; never from a caller"
BY_HASH = "it is found by the hash of a secret that only its holder has, and says itself whose it is"
BY_SIGNATURE = "asked for before anybody is known: the account's own secret must then have signed what came"
BY_ACCOUNT = "an account is one merchant's, and which one comes from a row that was read or from a verified signature"
ONE_LOOK = "one look for all open pages, each of which is told of its own merchant's alone"
EVERYBODY_S = "the process looks after every merchant's rows, and answers nobody"
OPERATOR_S = "the command line's, which is the operator's; no address leads to it"

EXCEPTIONS: Mapping[str, str] = {
    "attempts._BY_REFERENCE": BY_ACCOUNT,
    "attempts._GET": "the id is the customer's address (/return), or the caller compares the account or the order",
    "audit._CHAINS": OPERATOR_S,
    "audit._FOLLOWING[True]": OPERATOR_S,
    "audit._GET": OPERATOR_S,
    "audit._LOCK_HEAD": "a chain is named by its merchant: the condition is the merchant's id under another name",
    "audit._NEWEST_OF_ALL": OPERATOR_S,
    "audit._READ_HEAD": OPERATOR_S,
    "backlogs._IN_REVIEW": EVERYBODY_S,
    "backlogs._NEW": EVERYBODY_S,
    "backlogs._QUEUED": EVERYBODY_S,
    "changes._EVENTS": ONE_LOOK,
    "changes._TRIES": ONE_LOOK,
    "checkout._DUE": EVERYBODY_S,
    "checkout._GET": "the page's id is the customer's address; for the merchant's own calls it is compared after",
    "checkout._OF_ORDER": BY_OUR_OWN_ID,
    "deliveries._DUE": EVERYBODY_S,
    "deliveries._GET": BY_OUR_OWN_ID,
    "deliveries._NEXT_DUE": EVERYBODY_S,
    "disputes._GET": BY_OUR_OWN_ID,
    "jobs._TAKE_NEW": EVERYBODY_S,
    "merchants._BY_EMAIL": "signing in: nobody is known yet, and the password must fit",
    "merchants._GET": "the id is the caller's own",
    "merchants._KEY_BY_HASH": BY_HASH,
    "merchants._LIST": OPERATOR_S,
    "merchants._LOCK": "the id is the caller's own",
    "orders._EXPIRED": EVERYBODY_S,
    "orders._FIND": OPERATOR_S,
    "orders._LATEST": BY_OUR_OWN_ID,
    "orders._STALE": EVERYBODY_S,
    "processor_configs._AFTER": EVERYBODY_S,
    "processor_configs._GET": BY_ACCOUNT,
    "processor_configs._IN_USE": EVERYBODY_S,
    "processor_configs._OF_PROCESSOR": BY_SIGNATURE,
    "processor_events._GET": BY_OUR_OWN_ID,
    "processor_events._OLD": EVERYBODY_S,
    "reconciliation._FINDINGS": "of a run that was read for its merchant",
    "reconciliation._LAST": EVERYBODY_S,
    "reconciliation._PUT": "returns the id of the row that it has just written for its merchant",
    "refunds._BY_REFERENCE": "within an attempt that was read for its merchant",
    "refunds._GET": "the id comes from a job or a row of ours; from a processor's list, the merchant is compared after",
    "sessions._GET": "the id is from a token that we signed, and the merchant is compared with the token's",
    "sessions._HOLDER": BY_HASH,
    "sessions._LOCK": "the merchant is compared after",
    "sessions._TOKEN": BY_HASH,
    "webhooks._FIND_ENDPOINT": BY_OUR_OWN_ID,
    "webhooks._OLD_EVENTS": EVERYBODY_S,
}
"""Reads of merchants' rows that do not say whose, by name, and why that is right."""


def _named(name: str, value: object) -> Iterator[tuple[str, Statement[Any]]]:
    """Yield the statements in a module's variable: itself, or what a mapping or an object of ours holds."""
    if isinstance(value, Statement):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _named(f"{name}[{key}]", each)
    elif type(value).__module__.startswith("loop.storage") and hasattr(value, "__dict__"):
        for attribute, each in vars(value).items():
            yield from _named(f"{name}.{attribute}", each)


def statements() -> dict[str, Statement[Any]]:
    """Return every statement of the storage room by its name: the module's, and the variable's in it."""
    found: dict[str, Statement[Any]] = {}
    for module in pkgutil.iter_modules(loop.storage.__path__):
        if module.name not in ("migrate", "migrations"):
            for name, value in vars(importlib.import_module(f"loop.storage.{module.name}")).items():
                found.update(_named(f"{module.name}.{name}", value))
    return found


def unscoped(clause: Clause) -> set[str]:
    """Return the merchants' tables that a clause reads when it nowhere says whose rows it wants."""
    read = {each.name for each in visitors.iterate(clause) if isinstance(each, Table)} & OWNED
    is_said = any(
        isinstance(each, BinaryExpression)
        and each.operator is operators.eq
        and getattr(each.left, "name", "") == "merchant_id"
        and isinstance(each.right, BindParameter)
        for each in visitors.iterate(clause)
    )
    return set() if is_said else read


def test_what_reads_a_merchant_s_rows_says_whose() -> None:
    found = statements()
    assert len(found) > 80, "the walk finds too few"
    loose = {
        name
        for name, each in found.items()
        if not isinstance(each, Write) and unscoped(each.clause) and not name.startswith("encryption_keys.")
    }
    assert loose - set(EXCEPTIONS) == set(), "say whose rows it reads, or give the reason in EXCEPTIONS"
    assert set(EXCEPTIONS) - loose == set(), "an exception that is none any more"


def test_the_orders_lists_are_the_merchant_s_whatever_is_asked_for() -> None:
    """Those statements are made when they are first used; all of them are made of these conditions."""
    for wanted in (OrderFilter(), OrderFilter(external_id="x"), OrderFilter(any_id="x")):
        _, conditions = orders._given(wanted)
        assert unscoped(select(table(Orders)).where(*conditions)) == set()
    assert unscoped(transactions._listing(()).clause) == set()


@pytest.mark.parametrize("has_cursor", [True, False])
def test_so_are_the_lists_of_deliveries(has_cursor: bool) -> None:
    for names in ((), ("endpoint_id",), tuple(deliveries._CONDITIONS)):
        assert unscoped(deliveries._listing(names, has_cursor=has_cursor)) == set()


@pytest.mark.parametrize(
    "clause",
    [
        select(table(Refunds)).where(table(Refunds).c.id == bindparam("refund_id")),
        select(table(Refunds)).where(table(Refunds).c.merchant_id != bindparam("merchant_id")),
        select(table(Refunds)).join(table(Orders), table(Refunds).c.merchant_id == table(Orders).c.merchant_id),
    ],
)
def test_a_read_that_does_not_say_whose_is_noticed(clause: Clause) -> None:
    assert "refunds" in unscoped(clause)
    said = select(table(Refunds)).where(table(Refunds).c.merchant_id == bindparam("merchant_id"))
    assert unscoped(said) == set()
