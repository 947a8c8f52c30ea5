"""The keyring: what is encrypted is read again only with its key, in its own place, and unchanged."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Boolean, Integer

from loop.domain.errors import ErrorKind
from loop.storage.columns import Sealed
from loop.storage.keyring import DecryptionError, Keyring, Place
from loop.storage.statements import SQLITE
from loop.storage.tables import SEALED_COLUMNS, metadata
from loop.telemetry import is_sensitive_name

OLD, NEW = "old-key-".ljust(40, "o"), "new-key-".ljust(40, "n")
PLACE = Place("processor_configs", "credentials", "pcf_1", "mer_1")
RING = Keyring([NEW, OLD])


def refused(ring: Keyring, ciphertext: str, place: Place = PLACE) -> str:
    """Return the code with which a ciphertext is neither opened nor wrapped anew."""
    codes = set()
    for act in (ring.decrypt, ring.rewrap):
        with pytest.raises(DecryptionError) as caught:
            act(ciphertext, bound_to=place)
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        codes.add(caught.value.code)
    (code,) = codes
    return code


def raw(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


@given(st.text())
def test_what_is_encrypted_comes_back(plaintext: str) -> None:
    sealed = RING.encrypt(plaintext, bound_to=PLACE)
    assert RING.decrypt(sealed, bound_to=PLACE) == plaintext


def test_nothing_of_it_shows_and_no_two_ciphertexts_are_alike() -> None:
    one, other = (RING.encrypt("sk_test_canary", bound_to=PLACE) for _ in range(2))
    assert one != other
    assert re.fullmatch(r"v2\.[0-9a-f]{8}\.[\w-]+\.[\w-]+", one)
    _, key_id, *parts = one.split(".")
    assert key_id == RING.current_id
    assert [len(raw(part)) for part in parts] == [12 + 32 + 16, 12 + len("sk_test_canary") + 16]
    assert not any(b"canary" in raw(part) for part in parts)
    assert set(parts).isdisjoint(other.split("."))


@pytest.mark.parametrize(
    "elsewhere",
    [
        PLACE._replace(row_id="pcf_2"),
        PLACE._replace(merchant_id="mer_2"),
        PLACE._replace(table="webhook_endpoints"),
        PLACE._replace(column="secret"),
        PLACE._replace(row_id="pcf_1mer_1", merchant_id=""),
        PLACE._replace(row_id="mer_1", merchant_id="pcf_1"),
    ],
)
def test_a_ciphertext_moved_to_another_row_or_tenant_is_refused(elsewhere: Place) -> None:
    assert refused(RING, RING.encrypt("secret", bound_to=PLACE), elsewhere) == "ciphertext_refused"


def test_a_text_is_not_opened_by_the_data_key_of_another_one() -> None:
    one, other = (RING.encrypt(text, bound_to=PLACE).split(".") for text in ("one", "other"))
    with pytest.raises(DecryptionError):
        RING.decrypt(".".join((*one[:3], other[3])), bound_to=PLACE)


def test_the_first_key_encrypts_and_an_old_one_still_reads() -> None:
    before = Keyring([OLD]).encrypt("secret", bound_to=PLACE)
    assert RING.decrypt(before, bound_to=PLACE) == "secret"
    after = RING.encrypt("secret", bound_to=PLACE)
    assert Keyring([NEW]).decrypt(after, bound_to=PLACE) == "secret"


def test_a_key_that_is_missing_is_named_and_nothing_is_read() -> None:
    after = RING.encrypt("secret", bound_to=PLACE)
    assert refused(Keyring([OLD]), after) == "encryption_key_missing"
    with pytest.raises(DecryptionError, match=f"{RING.current_id}.*encryption_keys_previous"):
        Keyring([OLD]).decrypt(after, bound_to=PLACE)


def test_a_rotation_wraps_the_data_key_anew_and_leaves_the_text_as_it_is() -> None:
    before = Keyring([OLD]).encrypt("secret", bound_to=PLACE)
    after = RING.rewrap(before, bound_to=PLACE)
    assert after.split(".")[1:3] != before.split(".")[1:3]
    assert after.split(".")[3] == before.split(".")[3]
    assert Keyring([NEW]).decrypt(after, bound_to=PLACE) == "secret"
    assert refused(Keyring([OLD]), after) == "encryption_key_missing"


def test_the_ids_of_keys_come_from_the_keys_and_not_from_their_order() -> None:
    assert RING.key_ids == Keyring([OLD, NEW]).key_ids == {Keyring([OLD]).current_id, Keyring([NEW]).current_id}
    assert RING.current_id == Keyring([NEW]).current_id


@given(st.integers(0, 10_000), st.characters(codec="ascii"))
def test_any_changed_character_is_noticed(position: int, replacement: str) -> None:
    sealed = RING.encrypt("a secret that is long enough", bound_to=PLACE)
    at = position % len(sealed)
    changed = sealed[:at] + replacement + sealed[at + 1 :]
    try:
        assert RING.decrypt(changed, bound_to=PLACE) == "a secret that is long enough"
    except DecryptionError:
        return
    # The last character of base64 carries bits that say nothing; all else must be as it was.
    assert [raw(part) for part in changed.split(".")[2:]] == [raw(part) for part in sealed.split(".")[2:]]


@pytest.mark.parametrize("text", ["", "v2", "plain text", "v1.a.b.c", "v2.a.b.c.d", "v2.ä.ü.ö", "v2..."])
def test_what_is_no_ciphertext_is_refused(text: str) -> None:
    assert refused(RING, text)


def test_neither_repr_nor_errors_show_a_key() -> None:
    assert OLD not in repr(RING)
    assert NEW not in repr(RING)
    with pytest.raises(DecryptionError) as caught:
        RING.decrypt("v2.unknown.b.c", bound_to=PLACE)
    assert OLD not in str(caught.value)


# What is encrypted at rest, as the tables declare it.


def test_every_text_that_is_named_like_a_secret_is_sealed_or_a_hash() -> None:
    """A new one is declared with `_sealed()`, or a rotation would leave it behind."""
    secrets = {
        (table.name, column.name)
        for table in metadata.sorted_tables
        for column in table.columns
        if is_sensitive_name(column.name)
        and not column.name.endswith("_hash")
        and not isinstance(column.type, Integer | Boolean)
    }
    assert {("processor_configs", "credentials"), ("webhook_endpoints", "secret")} <= secrets
    assert secrets <= SEALED_COLUMNS


def test_every_sealed_column_has_what_binds_it_to_its_row() -> None:
    for name, _ in SEALED_COLUMNS:
        columns = metadata.tables[name].columns
        assert columns["id"].primary_key
        assert "merchant_id" in columns


def test_nothing_is_encrypted_for_a_column_that_is_not_declared() -> None:
    with pytest.raises(ValueError, match=r"declare merchants\.diary as sealed"):
        RING.encrypt("secret", bound_to=Place("merchants", "diary", "mer_1", "mer_1"))


def test_a_sealed_column_takes_ciphertexts_only() -> None:
    write = Sealed().bind_processor(SQLITE)
    assert write is not None
    assert write(None) is None
    sealed = RING.encrypt("secret", bound_to=PLACE)
    assert write(sealed) == sealed
    with pytest.raises(ValueError, match="ciphertext"):
        write("whsec_plain")
