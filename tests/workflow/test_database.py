"""The database, on both kinds: what the schema refuses, what a transaction leaves behind, and what readers see."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from loop.domain.attempts import LIVE_STATUSES, AttemptStatus
from loop.domain.orders import Order, OrderStatus
from loop.storage import attempts, merchants, orders, refunds, transactions
from loop.storage.database import ConstraintError, Database, Reader
from loop.storage.merchants import Merchant
from loop.storage.statements import Parameters, Write
from tests.builders import attempt, merchant, order, refund


async def stored(database: Database, *writes: tuple[Write, Parameters]) -> None:
    """Write one thing after the other, each in a transaction of its own."""
    for write in writes:
        await database.write_at_once([write])


async def names(database: Database) -> set[str]:
    async with database.reading() as reader:
        return {each.name for each in await merchants.list_all(reader, 1_000)}


async def read(reader: Reader, order_id: str = "ord_1") -> Order | None:
    return await orders.get(reader, "mer_1", order_id)


@pytest.fixture
async def shelf(database: Database) -> Database:
    """Return the database with a merchant and an order in it."""
    await stored(database, merchants.insertion(merchant()), orders.insertion(order()))
    return database


CAPTURED = order(status=OrderStatus.CAPTURED, amount_captured_minor=1_000)

REFUSED: list[tuple[str, tuple[Write, Parameters]]] = [
    ("amount", orders.insertion(order(id="ord_2", amount_minor=0))),
    ("refunds_within_captured", orders.updating(replace(CAPTURED, amount_refund_reserved_minor=1_001))),
    ("orders_refund", orders.updating(replace(CAPTURED, amount_refund_reserved_minor=-1))),
    ("refunded_within_reserved", orders.updating(replace(CAPTURED, amount_refunded_minor=1))),
    ("refunded_within_reserved", orders.updating(replace(CAPTURED, amount_refunded_minor=-1))),
    ("orders", orders.insertion(order())),
    ("(?i)foreign key|fkey", orders.insertion(order(id="ord_2", merchant_id="mer_of_nobody"))),
    ("(?i)foreign key|fkey", attempts.insertion(attempt(order_id="ord_of_nobody"), [])),
    ("email", merchants.insertion(replace(merchant(2), email=merchant(1).email))),
]


@pytest.mark.parametrize(("constraint", "write"), REFUSED)
async def test_the_schema_refuses_what_must_not_be(
    shelf: Database, constraint: str, write: tuple[Write, Parameters]
) -> None:
    with pytest.raises(ConstraintError, match=constraint):
        await shelf.write_at_once([write])
    async with shelf.reading() as reader:
        assert await read(reader) == order()
        assert await read(reader, "ord_2") is None


@pytest.mark.parametrize("first", sorted(LIVE_STATUSES))
async def test_an_order_has_one_live_attempt_at_most(shelf: Database, first: AttemptStatus) -> None:
    await stored(shelf, attempts.insertion(attempt(status=first), []))
    second = attempt(id="att_2", number=2)
    with pytest.raises(ConstraintError):
        await stored(shelf, attempts.insertion(second, []))
    await stored(shelf, attempts.updating(attempt(status=AttemptStatus.FAILED)), attempts.insertion(second, []))
    with pytest.raises(ConstraintError):  # nor does a dead one come to life beside it
        await stored(shelf, attempts.updating(attempt(status=first)))


async def test_two_attempts_do_not_share_a_number(shelf: Database) -> None:
    failed = attempt(status=AttemptStatus.FAILED)
    await stored(shelf, attempts.insertion(failed, []))
    with pytest.raises(ConstraintError):
        await stored(shelf, attempts.insertion(replace(failed, id="att_2"), []))


async def test_refunds_are_of_something(shelf: Database) -> None:
    await stored(shelf, attempts.insertion(attempt(), []))
    with pytest.raises(ConstraintError, match="amount"):
        await stored(shelf, refunds.insertion(refund(amount_minor=0)))
    await stored(shelf, refunds.insertion(refund()))


async def test_joined_writes_are_one_and_tell_how_many_rows_each_changed(shelf: Database) -> None:
    async with shelf.transaction() as session:
        counts = await session.run_together(
            [
                orders.updating(replace(order(), status=OrderStatus.PROCESSING, attempt_count=1)),
                attempts.insertion(attempt(), ["it is the only one"]),
                orders.updating(order(id="ord_of_nobody")),
            ]
        )
        assert await session.run_together([]) == []
    assert counts == [1, 1, 0]
    async with shelf.reading() as reader:
        in_hand = await orders.get_in_hand(reader, "mer_1", "ord_1")
        assert in_hand is not None
        assert in_hand.attempt == attempt()
        assert await attempts.of_order(reader, "mer_1", "ord_1") == [(attempt(), ("it is the only one",))]


async def test_of_joined_writes_all_or_none_are_there(shelf: Database) -> None:
    writes = [
        merchants.insertion(merchant(2)),
        orders.updating(replace(order(), status=OrderStatus.CANCELLED)),
        attempts.insertion(attempt(order_id="ord_of_nobody"), []),
    ]
    with pytest.raises(ConstraintError):
        await shelf.write_at_once(writes)
    with pytest.raises(ConstraintError):
        async with shelf.transaction() as session:
            await session.run_together(writes)
    assert await names(shelf) == {"Shop 1"}
    async with shelf.reading() as reader:
        assert await read(reader) == order()


class OutOfPaperError(Exception):
    """What goes wrong in the middle of a transaction."""


async def test_a_transaction_that_raises_leaves_nothing(shelf: Database) -> None:
    async def fail() -> None:
        async with shelf.transaction() as session:
            await session.run_together([merchants.insertion(merchant(2))])
            await session.run_together([orders.updating(replace(order(), status=OrderStatus.CANCELLED))])
            raise OutOfPaperError

    with pytest.raises(OutOfPaperError):
        await fail()
    assert await names(shelf) == {"Shop 1"}
    async with shelf.reading() as reader:
        assert await read(reader) == order()


async def test_a_transaction_that_is_cancelled_leaves_nothing_and_holds_up_nobody(shelf: Database) -> None:
    written = asyncio.Event()

    async def hang() -> None:
        async with shelf.transaction() as session:
            await session.run_together([merchants.insertion(merchant(2))])
            written.set()
            await asyncio.Event().wait()

    hanging = asyncio.create_task(hang())
    await written.wait()
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    await stored(shelf, merchants.insertion(merchant(2)), merchants.insertion(merchant(3)))
    assert await names(shelf) == {"Shop 1", "Shop 2", "Shop 3"}


async def test_of_many_at_once_exactly_the_good_ones_are_there(database: Database) -> None:
    async def add(number: int) -> None:
        async with database.transaction() as session:
            await session.run_together([merchants.insertion(merchant(number))])
            await asyncio.sleep(0)  # others come between
            if number % 3 == 0:
                raise OutOfPaperError
            if number % 3 == 1:
                await session.run_together([merchants.insertion(merchant(number))])  # refused: it is there already

    outcomes = await asyncio.gather(*(add(number) for number in range(60)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OutOfPaperError, ConstraintError, type(None)] * 20
    assert await names(database) == {f"Shop {number}" for number in range(60) if number % 3 == 2}


async def test_many_writes_of_one_statement_at_once(database: Database) -> None:
    async def add(number: int) -> None:
        await database.write_at_once([merchants.insertion(merchant(number // 2))])

    outcomes = await asyncio.gather(*(add(number) for number in range(40)), return_exceptions=True)
    assert sum(isinstance(outcome, ConstraintError) for outcome in outcomes) == 20
    assert len(await names(database)) == 20


async def test_readers_see_what_is_committed_and_nothing_else(shelf: Database, same_database: Database) -> None:
    cancelled = replace(order(), status=OrderStatus.CANCELLED)
    for reading_side in (shelf, same_database):
        async with shelf.transaction() as session:
            await session.run_together([orders.updating(cancelled)])
            assert await read(session) == cancelled
            async with reading_side.reading() as reader:
                assert await read(reader) == order()
        async with reading_side.reading() as reader:
            assert await read(reader) == cancelled
        await stored(shelf, orders.updating(order()))


async def test_a_locked_order_is_read_with_the_attempt_that_the_lock_s_last_holder_left(
    shelf: Database, same_database: Database
) -> None:
    paid = replace(order(), status=OrderStatus.CAPTURED, attempt_count=1)
    captured = attempt(status=AttemptStatus.CAPTURED)
    await stored(shelf, orders.updating(replace(order(), attempt_count=1)), attempts.insertion(attempt(), []))
    is_locked, has_seen = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with shelf.transaction() as session:
            await orders.lock(session, "mer_1", "ord_1")
            is_locked.set()
            await has_seen.wait()
            await session.run_together([orders.updating(paid), attempts.updating(captured)])

    async def come_second() -> orders.OrderInHand | None:
        await is_locked.wait()
        asyncio.get_running_loop().call_later(0.05, has_seen.set)  # by when the second one waits for the lock
        async with same_database.transaction() as session:
            return await orders.lock(session, "mer_1", "ord_1")

    _, in_hand = await asyncio.gather(hold(), come_second())
    assert in_hand == orders.OrderInHand(paid, captured)


async def test_an_error_inside_a_transaction_is_not_read_over(shelf: Database, database_url: str) -> None:
    async def swallow() -> None:
        async with shelf.transaction() as session:
            await session.run_together([merchants.insertion(merchant(2))])
            with suppress(ConstraintError):
                await session.run_together([orders.insertion(order())])

    if database_url.startswith("sqlite"):
        await swallow()
        assert await names(shelf) == {"Shop 1", "Shop 2"}
        return
    with pytest.raises(RuntimeError, match="swallowed"):  # Postgres has undone all of it
        await swallow()
    assert await names(shelf) == {"Shop 1"}


AWKWARD = [
    "Zoë",
    "🛒👩‍👩‍👧‍👦",
    "שלום عليكم",
    "a\u202eb",
    "line\u2028break\u2029",
    'it\'s "quoted" \\ and 100 %',
    "'; DROP TABLE orders; --",
    "tab\tnew\nreturn\r",
    "\ufeffmark",
    "\x01\x7f",
    "\U0010ffff",
    "e\u0301 is not \u00e9",
    " spaces ",
    "",
]


async def test_every_character_comes_back(shelf: Database) -> None:
    for number, text in enumerate(AWKWARD):
        made = order(
            id=f"ord_u{number}",
            external_id=text,
            description=text,
            metadata={text: [text, {"nested": text}], "number": 12345678901234567890, "share": 0.1, "none": None},
            customer_email=text,
        )
        await stored(shelf, orders.insertion(made))
        async with shelf.reading() as reader:
            assert await read(reader, made.id) == made
            found = await orders.list_after(
                reader, "mer_1", orders.OrderFilter(external_id=text), before_id=None, limit=10
            )
        assert [each.id for each in found] == [made.id]


async def test_times_come_back_to_the_microsecond_and_sort(shelf: Database) -> None:
    moment = merchant().created_at.replace(microsecond=123_456)
    await stored(shelf, orders.updating(replace(order(), updated_at=moment, expires_at=moment)))
    async with shelf.reading() as reader:
        found = await read(reader)
    assert found is not None
    assert (found.updated_at, found.expires_at) == (moment, moment)
    assert found.updated_at.utcoffset() is not None


async def test_large_amounts_come_back(shelf: Database) -> None:
    large = order(id="ord_2", amount_minor=10**12)
    await stored(shelf, orders.insertion(large))
    async with shelf.reading() as reader:
        assert await read(reader, "ord_2") == large


async def test_another_merchant_finds_nothing(shelf: Database) -> None:
    async with shelf.transaction() as session:
        assert await orders.get(session, "mer_2", "ord_1") is None
        assert await orders.get_in_hand(session, "mer_2", "ord_1") is None
        assert await orders.lock(session, "mer_2", "ord_1") is None
        assert await attempts.of_order(session, "mer_2", "ord_1") == []
        assert await refunds.of_order(session, "mer_2", "ord_1") == []
        assert await transactions.of_order(session, "mer_2", "ord_1") == []


async def test_lists_filter_page_and_count(shelf: Database) -> None:
    made = [
        order(
            id=f"ord_{number:03}",
            amount_minor=number + 1,
            currency="USD" if number % 2 else "EUR",
            status=OrderStatus.CAPTURED if number % 5 == 0 else OrderStatus.FAILED,
        )
        for number in range(100, 130)
    ]
    await asyncio.gather(*(shelf.write_at_once([orders.insertion(each)]) for each in made))
    newest_first = made[::-1]
    wanted = orders.OrderFilter(currency="USD", amount_min=110, amount_max=125)
    expected = [each.id for each in newest_first if each.currency == "USD" and 110 <= each.amount_minor <= 125]
    async with shelf.reading() as reader:
        seen: list[str] = []
        before: str | None = None
        while page := await orders.list_after(reader, "mer_1", wanted, before_id=before, limit=3):
            seen += [each.id for each in page]
            before = page[-1].id
        assert seen == expected
        paid = orders.OrderFilter(status="captured")
        rows, count = await orders.list_page(reader, "mer_1", paid, offset=2, limit=2)
    expected = [each.id for each in newest_first if each.status is OrderStatus.CAPTURED]
    assert ([each.id for each in rows], count) == (expected[2:4], len(expected))


def test_a_merchant_s_repr_is_discreet() -> None:
    shown = repr(Merchant("mer_1", "Shop", "zoe@example.com", "hash", merchant().created_at, merchant().created_at))
    assert "zoe" not in shown
    assert "hash'" not in shown
