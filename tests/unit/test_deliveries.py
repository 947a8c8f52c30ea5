"""Deliveries: two signature schemes over one instant, the retry schedule, and the addresses that are let through."""

import base64
import hashlib
import hmac
import itertools
import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from loop.domain.deliveries import (
    HELD_OFF_S,
    JITTER,
    MAX_TRIES,
    RETRY_STEPS_S,
    Reply,
    SigningSecrets,
    make_secret,
    may_connect,
    parse_retry_after,
    retry_delay_s,
    signature_headers,
)
from loop.domain.events import EventSubject, EventType, body_of, timestamp
from loop.storage.columns import json_text

SECRET = make_secret(b"\xfb\xff" * 16)
NEW_SECRET = make_secret(b"\x01\xfe" * 16)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
REFUSED = Reply(500)
BODY = '{"id":"evt_1","name":"Zoë 🛒"}'.encode()


def test_a_secret_is_the_prefix_and_standard_base64_of_32_bytes() -> None:
    assert base64.b64decode(SECRET.removeprefix("whsec_"), validate=True) == b"\xfb\xff" * 16
    assert SECRET.startswith("whsec_")
    assert "+" in SECRET or "/" in SECRET  # base64url would have neither, and the libraries would take a wrong key


def test_standard_webhooks_own_library_verifies() -> None:
    headers = signature_headers(SigningSecrets(SECRET), "evt_1", body=BODY, now=datetime.now(UTC))  # noqa: TID251 - the library's clock
    assert Webhook(SECRET).verify(BODY, headers) == json.loads(BODY)


@pytest.mark.parametrize("broken", ["body", "id", "time", "secret"])
def test_standard_webhooks_own_library_refuses_what_was_changed(broken: str) -> None:
    now = datetime.now(UTC)  # noqa: TID251 - the library's clock
    headers = signature_headers(SigningSecrets(SECRET), "evt_1", body=BODY, now=now)
    secret = SECRET
    body = BODY
    if broken == "body":
        body += b" "
    elif broken == "id":
        headers["webhook-id"] = "evt_2"
    elif broken == "time":
        headers["webhook-timestamp"] = str(int(headers["webhook-timestamp"]) - 1)
    else:
        secret = make_secret(bytes(32))
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, headers)


def test_the_own_scheme_signs_milliseconds_and_the_whole_secret() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    headers = signature_headers(SigningSecrets(SECRET), "evt_1", body=BODY, now=now)
    milliseconds = 1767323045678
    expected = hmac.new(SECRET.encode(), f"{milliseconds}.".encode() + BODY, hashlib.sha256).hexdigest()
    assert headers["X-Loop-Signature"] == f"t={milliseconds},v1={expected}"
    assert headers["X-Loop-Timestamp"] == str(milliseconds)
    assert headers["webhook-timestamp"] == str(milliseconds // 1000)
    assert headers["X-Loop-Event-Id"] == headers["webhook-id"] == "evt_1"


def test_a_pending_secret_signs_beside_the_one_that_counts_and_only_in_the_header_with_room_for_it() -> None:
    now = datetime.now(UTC)  # noqa: TID251 - the library's clock
    before = signature_headers(SigningSecrets(SECRET), "evt_1", body=BODY, now=now)
    headers = signature_headers(SigningSecrets(SECRET, NEW_SECRET), "evt_1", body=BODY, now=now)
    after = signature_headers(SigningSecrets(NEW_SECRET), "evt_1", body=BODY, now=now)
    for secret in (SECRET, NEW_SECRET):
        assert Webhook(secret).verify(BODY, headers) == json.loads(BODY)
    assert headers["webhook-signature"] == f"{after['webhook-signature']} {before['webhook-signature']}"
    assert headers["X-Loop-Signature"] == before["X-Loop-Signature"]
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(BODY, after)


def test_secrets_are_not_in_a_repr() -> None:
    assert "whsec_" not in repr(SigningSecrets(SECRET, NEW_SECRET))


def test_ten_tries_over_three_days() -> None:
    assert MAX_TRIES == 10
    assert sum(RETRY_STEPS_S) == pytest.approx(75.6 * 3600, rel=0.01)
    assert all(shorter < longer for shorter, longer in itertools.pairwise(RETRY_STEPS_S))


@given(st.integers(1, MAX_TRIES - 1), st.floats(0, 1, exclude_max=True))
def test_each_step_is_spread_by_a_fifth_either_way(tries: int, chance: float) -> None:
    delay = retry_delay_s(tries, chance, reply=REFUSED)
    assert delay is not None
    step = RETRY_STEPS_S[tries - 1]
    assert step * (1 - JITTER) <= delay <= step * (1 + JITTER)


def test_the_last_try_is_the_last() -> None:
    assert retry_delay_s(MAX_TRIES - 1, 0.5, reply=REFUSED) is not None
    assert retry_delay_s(MAX_TRIES, 0.5, reply=REFUSED) is None
    assert retry_delay_s(MAX_TRIES + 1, 0.5, reply=Reply(429, retry_after_s=60)) is None


@pytest.mark.parametrize("reply", [Reply(429), Reply(502), Reply(504), Reply(None, "TimeoutError", is_too_late=True)])
def test_who_has_too_much_to_do_is_left_alone_for_a_minute(reply: Reply) -> None:
    assert retry_delay_s(1, 0.5, reply=reply) == HELD_OFF_S
    assert retry_delay_s(2, 0.5, reply=reply) == RETRY_STEPS_S[1]


@pytest.mark.parametrize("reply", [Reply(500), Reply(503), Reply(302), Reply(None, "ClientConnectorError")])
def test_who_failed_otherwise_is_asked_again_soon(reply: Reply) -> None:
    assert retry_delay_s(1, 0.5, reply=reply) == RETRY_STEPS_S[0]


def test_an_endpoint_may_ask_for_twice_the_step_and_not_for_less_than_it() -> None:
    def delay(asked_s: float) -> float | None:
        return retry_delay_s(2, 0.5, reply=Reply(503, retry_after_s=asked_s))

    assert (delay(1), delay(450), delay(600), delay(1e9)) == (300, 450, 600, 600)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120), (" 0 ", 0), ("9" * 50, 999_999_999),
        ("Sun, 01 Mar 2026 12:02:00 GMT", 120), ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        (None, None), ("", None), ("-5", None), ("1.5", None), ("soon", None), ("²", None),
        ("Sun, 99 Mar 2026 12:02:00 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, NOON) == seconds


@given(st.text())
def test_no_retry_after_is_an_error(text: str) -> None:
    found = parse_retry_after(text, NOON)
    assert found is None or found >= 0


@pytest.mark.parametrize(("status", "is_success"), [(199, False), (200, True), (204, True), (299, True), (300, False)])
def test_only_an_answer_of_200_to_299_is_a_success(status: int, is_success: bool) -> None:
    assert Reply(status).is_success is is_success
    assert not Reply(None).is_success


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"])
def test_public_addresses_are_let_through(address: str) -> None:
    assert may_connect(ip_address(address), ())


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104 - an address to refuse
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::10.0.0.1",
        "64:ff9b:1::1.1.1.1",
        "::ffff:0:169.254.169.254",
        "192.88.99.1",
        "3fff::1",
        "5f00::1",
        "fec0::1",
        "2606:4700::1%eth0",
        "2002:a9fe:a9fe::1",
        "2001:0:a9fe:a9fe::5601:5601",
        "2001:0:101:101::5601:5601",
    ],
)
def test_addresses_within_are_refused_however_they_are_wrapped(address: str) -> None:
    assert not may_connect(ip_address(address), ())


@pytest.mark.parametrize(
    ("address", "network"), [("127.0.0.1", "127.0.0.0/8"), ("::ffff:127.0.0.1", "127.0.0.0/8"), ("::1", "::1/128")]
)
def test_the_operator_may_allow_a_network(address: str, network: str) -> None:
    assert may_connect(ip_address(address), [ip_network(network)])
    assert not may_connect(ip_address("10.0.0.1"), [ip_network(network)])


def test_an_event_s_body_keeps_every_character_and_its_order() -> None:
    created = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
    subject = EventSubject("ord_1", "Zoë 🛒\u2028", 1050, "EUR", "captured", "stripe")
    payload = {"metadata": {"b": 1, "a": 2}}
    text = json_text(body_of("evt_1", EventType.PAYMENT_CAPTURED, subject=subject, created_at=created, payload=payload))
    assert list(json.loads(text)) == [
        "id", "eventType", "orderId", "externalId", "amount", "currency", "status", "processor", "createdAt", "seq",
        "testMode", "payload",
    ]  # fmt: skip
    assert json.loads(text)["externalId"] == "Zoë 🛒\u2028"
    assert json.loads(text)["createdAt"] == "2026-01-02T03:04:05.678Z"
    assert '"metadata":{"b":1,"a":2}' in text


def test_times_are_written_in_utc() -> None:
    from_elsewhere = datetime.fromisoformat("2026-01-02T03:04:05+05:30")
    assert timestamp(from_elsewhere) == "2026-01-01T21:34:05.000Z"
    assert datetime.fromisoformat(timestamp(from_elsewhere)) - from_elsewhere == timedelta()
