"""API keys: their form, their checksum, and what is kept of one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.domain.api_keys import ALPHABET, hash_of, is_well_formed, make_api_key, prefix_of


@given(st.sampled_from(["test", "live"]), st.binary(min_size=32, max_size=32))
def test_a_made_key_is_well_formed_and_any_slip_shows(mode: str, chance: bytes) -> None:
    key = make_api_key(mode, lambda count: chance[:count])
    assert len(key) == 8 + 32 + 6
    assert key.startswith(f"sk_{mode}_")
    assert is_well_formed(key)
    assert prefix_of(key) == key[:12]
    assert len(hash_of(key)) == 64
    for place in range(8, len(key)):
        other = ALPHABET[(ALPHABET.index(key[place]) + 1) % len(ALPHABET)]
        assert not is_well_formed(key[:place] + other + key[place + 1 :])
    assert not is_well_formed(key.replace(mode, "live" if mode == "test" else "test"))


def test_keys_differ_with_chance_only() -> None:
    def key_of(chance: bytes) -> str:
        return make_api_key("test", lambda count: chance * count)

    assert key_of(b"\1") == key_of(b"\1") != key_of(b"\2")


@pytest.mark.parametrize("text", ["", "sk_test_", "sk_test_" + "é" * 38, "pk_test_" + "a" * 38, "sk_test_" + "a" * 38])
def test_other_text_is_no_key(text: str) -> None:
    assert not is_well_formed(text)


def test_a_key_has_a_known_mode() -> None:
    with pytest.raises(ValueError, match="test, live"):
        make_api_key("prod", lambda count: b"\0" * count)
