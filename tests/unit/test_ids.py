"""Ids: a noun's prefix, then 26 characters that sort by time; and the idempotency keys that processors get."""

import secrets
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from loop.domain.idempotency import processor_key
from loop.domain.ids import ALPHABET, PREFIX_ORDER, RANDOM_BYTES, make_id

MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - made aware


def id_at(moment: datetime, random: bytes = bytes(RANDOM_BYTES)) -> str:
    return make_id(PREFIX_ORDER, moment, random_bytes=lambda count: random[:count])


@given(MOMENTS, st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES))
def test_an_id_is_its_prefix_and_26_characters(moment: datetime, random: bytes) -> None:
    prefix, _, rest = id_at(moment, random).partition("_")
    assert prefix == "ord"
    assert len(rest) == 26
    assert set(rest) <= set(ALPHABET)


@given(
    st.lists(MOMENTS, min_size=2, max_size=2, unique_by=lambda moment: int(moment.timestamp() * 1000)),
    st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES),
    st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES),
)
def test_ids_sort_by_the_millisecond_they_were_made_in(moments: list[datetime], one: bytes, other: bytes) -> None:
    earlier, later = sorted(moments)
    assert id_at(earlier, one) < id_at(later, other)


@given(MOMENTS, st.sets(st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES), min_size=2, max_size=2))
def test_every_random_bit_is_in_the_id(moment: datetime, two: set[bytes]) -> None:
    assert len({id_at(moment, random) for random in two}) == 2


def test_time_and_chance_are_where_the_decision_record_says() -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=32)
    assert id_at(moment) == "ord_00000000" + "10" + "0" * 16
    assert id_at(moment, b"\xff" * RANDOM_BYTES) == "ord_00000000" + "10" + "z" * 16


def test_many_ids_of_one_instant_differ() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert len({make_id("evt", now, random_bytes=secrets.token_bytes) for _ in range(10_000)}) == 10_000


def test_a_key_is_the_same_for_the_same_operation_and_another_for_any_other() -> None:
    key = processor_key("pcf_1", "att_1", operation="authorize")
    assert key == processor_key("pcf_1", "att_1", operation="authorize")
    others = {
        processor_key("pcf_2", "att_1", operation="authorize"),
        processor_key("pcf_1", "att_2", operation="authorize"),
        processor_key("pcf_1", "att_1", operation="void"),
        processor_key("pcf_1att_1", "", operation="authorize"),
    }
    assert len(others | {key}) == 5


def test_a_key_fits_every_processor() -> None:
    key = processor_key("pcf_1", "att_1", operation="authorize")
    assert key.startswith("lpi_")
    assert len(key) == 36  # Razorpay asks for 10 at least, Stripe for 255 at most
    assert key.isascii()
    assert key.replace("_", "").isalnum()
