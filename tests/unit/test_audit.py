"""The audit log's chain: each entry's hash covers all of it and the entry before, so that a change or a gap shows."""

import hashlib
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from loop.domain.audit import GENESIS, OPERATOR_CHAIN, AuditAction, AuditEntry, Head, chain_of, find_fault, hash_of

NOW = datetime(2026, 3, 1, 12, 30, 0, 123456, tzinfo=UTC)


def entry(**changes: object) -> AuditEntry:
    """Return the first entry of a chain, with the hash that fits."""
    usual = AuditEntry(
        id="aud_1",
        seq=1,
        merchant_id="mer_1",
        actor_kind="user",
        actor_id="mer_1",
        address="203.0.113.9",
        action="profile.changed",
        subject="mer_1",
        before={"name": "Zoë"},
        after={"name": "Zoé", "tags": ["a", 1, None, True]},
        correlation_id="abc",
        created_at=NOW,
        prev_hash=GENESIS,
    )
    made = replace(usual, **changes)  # type: ignore[arg-type] # any field
    return made if "hash" in changes else replace(made, hash=hash_of(made))


CHANGED: dict[str, object] = {
    "id": "aud_2",
    "seq": 2,
    "merchant_id": None,
    "actor_kind": "operator",
    "actor_id": None,
    "address": None,
    "action": "profile.removed",
    "subject": "mer_2",
    "before": None,
    "after": {"name": "Zoé", "tags": ["a", 1, None, False]},
    "correlation_id": None,
    "created_at": NOW + timedelta(microseconds=1),
    "prev_hash": "1" * 64,
}


def test_every_field_is_tried() -> None:
    assert set(CHANGED) == {field.name for field in fields(AuditEntry)} - {"hash"}


@pytest.mark.parametrize("name", CHANGED)
def test_a_hash_covers_every_field(name: str) -> None:
    assert hash_of(entry(**{name: CHANGED[name]})) != hash_of(entry())


def test_a_hash_is_of_what_is_said_and_not_of_how() -> None:
    """What a database gives back is equal, but its keys may come in another order and its time in another zone."""
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    other = entry(created_at=elsewhere, after={"tags": ["a", 1, None, True], "name": "Zoé"})
    assert hash_of(other) == hash_of(entry())


def test_the_hash_stays_what_it_is() -> None:
    """Or every entry that was ever written would seem changed."""
    text = (
        r'{"action":"profile.changed","actor":["user","mer_1"],"address":"203.0.113.9",'
        r'"after":{"name":"Zo\u00e9","tags":["a",1,null,true]},"before":{"name":"Zo\u00eb"},"correlation_id":"abc",'
        r'"created_at":"2026-03-01T12:30:00.123456+00:00","id":"aud_1","merchant_id":"mer_1",'
        f'"prev_hash":"{GENESIS}","seq":1,"subject":"mer_1"}}'
    )
    assert hash_of(entry()) == hashlib.sha256(text.encode()).hexdigest()


def test_a_whole_chain_has_no_fault() -> None:
    first = entry()
    second = entry(id="aud_2", seq=2, prev_hash=first.hash)
    assert find_fault(first, Head()) == ""
    assert find_fault(second, Head(1, first.hash)) == ""


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (entry(seq=3), "entry 2 is missing"),
        (entry(seq=1), "entry 1 is there twice"),
        (entry(seq=2, hash="0" * 64), "it was changed"),
        (replace(entry(seq=2), subject="mer_2"), "it was changed"),
        (entry(seq=2, prev_hash="1" * 64), "it does not follow the entry before it"),
    ],
)
def test_a_broken_chain_is_told_of_in_words(broken: AuditEntry, fault: str) -> None:
    assert find_fault(broken, Head(1, entry().hash)) == fault


def test_a_chain_is_of_a_merchant_or_of_the_operator() -> None:
    assert chain_of("mer_1") == "mer_1"
    assert chain_of(None) == OPERATOR_CHAIN


def test_actions_are_told_as_what_happened_to_what() -> None:
    assert all(action.count(".") == 1 and action == action.lower() for action in AuditAction)
