"""The keyring: what is encrypted is read again only with its key, in its own place, and unchanged."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.storage.keyring import DecryptionError, Keyring

OLD, NEW = "old-key-".ljust(40, "o"), "new-key-".ljust(40, "n")
PLACE = ("processor_configs", "credentials", "mer_1", "stripe")
RING = Keyring([NEW, OLD])


@given(st.text())
def test_what_is_encrypted_comes_back(plaintext: str) -> None:
    sealed = RING.encrypt(plaintext, bound_to=PLACE)
    assert RING.decrypt(sealed, bound_to=PLACE) == plaintext


def test_nothing_of_it_shows_and_no_two_ciphertexts_are_alike() -> None:
    one, other = (RING.encrypt("sk_test_canary", bound_to=PLACE) for _ in range(2))
    assert one != other
    assert "canary" not in one
    version, kid, nonce, sealed = one.split(".")
    assert version == "v1"
    assert len(kid) == 8
    assert len(base64.urlsafe_b64decode(nonce + "==")) == 12
    assert b"canary" not in base64.urlsafe_b64decode(sealed + "==")


@pytest.mark.parametrize(
    "elsewhere",
    [
        ("processor_configs", "credentials", "mer_2", "stripe"),
        ("webhook_endpoints", "credentials", "mer_1", "stripe"),
        ("processor_configs", "credentials", "mer_1"),
        ("processor_configs", "credentials", "mer_1", "stripe", ""),
        ("processor_configs", "credentials", "mer_1stripe", ""),
    ],
)
def test_a_ciphertext_is_of_no_use_in_another_place(elsewhere: tuple[str, ...]) -> None:
    sealed = RING.encrypt("secret", bound_to=PLACE)
    with pytest.raises(DecryptionError, match="does not belong here"):
        RING.decrypt(sealed, bound_to=elsewhere)


def test_the_first_key_encrypts_and_every_key_decrypts() -> None:
    before = Keyring([OLD]).encrypt("secret", bound_to=PLACE)
    assert RING.decrypt(before, bound_to=PLACE) == "secret"
    after = RING.encrypt("secret", bound_to=PLACE)
    assert Keyring([NEW]).decrypt(after, bound_to=PLACE) == "secret"
    with pytest.raises(DecryptionError, match="encryption_keys_previous"):
        Keyring([OLD]).decrypt(after, bound_to=PLACE)


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
    assert [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in changed.split(".")[2:]] == [
        base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in sealed.split(".")[2:]
    ]


@pytest.mark.parametrize("text", ["", "v1", "plain text", "v2.a.b.c", "v1.a.b.c.d", "v1.ä.ü.ö"])
def test_what_is_no_ciphertext_is_refused(text: str) -> None:
    with pytest.raises(DecryptionError):
        RING.decrypt(text, bound_to=PLACE)


def test_neither_repr_nor_errors_show_a_key() -> None:
    assert OLD not in repr(RING)
    assert NEW not in repr(RING)
    with pytest.raises(DecryptionError) as refused:
        RING.decrypt("v1.unknown.b.c", bound_to=PLACE)
    assert OLD not in str(refused.value)
