"""The keyring: envelope encryption, each secret under a data key of its own that a named master key wraps."""

import base64
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from loop.domain.errors import ErrorKind, LoopError
from loop.storage.columns import CIPHERTEXT_VERSION
from loop.storage.tables import SEALED_COLUMNS

NONCE_BYTES: Final = 12
DATA_KEY_BYTES: Final = 32
KEY_ID_CHARACTERS: Final = 8


def is_key_id(text: str) -> bool:
    """Tell whether a text has the form of a master key's id."""
    return len(text) == KEY_ID_CHARACTERS and not set(text) - set("0123456789abcdef")


class Place(NamedTuple):
    """Where a secret is stored: its ciphertext can be opened there and nowhere else."""

    table: str
    column: str
    row_id: str
    merchant_id: str


class DecryptionError(LoopError):
    """A stored secret cannot be read.

    `encryption_key_missing`: the master key that wraps its data key is not loaded. `ciphertext_refused`: it was moved
    here from another row, column or merchant, or was changed.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(ErrorKind.UNAVAILABLE, code, message, retry_after_s=60)


class Keyring:
    """Encrypts under the first master key and reads under any; a key's id is public and derived from the key.

    A ciphertext is `v2.<id of the master key>.<wrapped data key>.<sealed text>`; the latter two are base64url of a
    random nonce and what AES-256-GCM made, authenticated together with the place. Rotating the master key wraps the
    data keys anew and never opens a text.
    """

    def __init__(self, passphrases: Sequence[str]) -> None:
        masters = [_master(passphrase) for passphrase in passphrases]
        self._masters: Mapping[str, AESGCM] = dict(masters)
        self.current_id: Final = masters[0][0]
        """The id of the key that encrypts."""

    @property
    def key_ids(self) -> frozenset[str]:
        """The ids of all keys that are loaded."""
        return frozenset(self._masters)

    def encrypt(self, plaintext: str, *, bound_to: Place) -> str:
        """Return the ciphertext for one place; raises ValueError for a column that is not declared to hold one."""
        if (bound_to.table, bound_to.column) not in SEALED_COLUMNS:
            raise ValueError(f"declare {bound_to.table}.{bound_to.column} as sealed in loop/storage/tables.py")
        data_key = secrets.token_bytes(DATA_KEY_BYTES)
        sealed = _seal(AESGCM(data_key), plaintext.encode(), _bound("text", bound_to))
        return self._envelope(data_key, sealed, bound_to)

    def decrypt(self, ciphertext: str, *, bound_to: Place) -> str:
        """Return the plaintext, or raise `DecryptionError`."""
        data_key, sealed = self._unwrapped(ciphertext, bound_to)
        return _open(AESGCM(data_key), sealed, _bound("text", bound_to)).decode()

    def rewrap(self, ciphertext: str, *, bound_to: Place) -> str:
        """Return the ciphertext with its data key under the current master key; raises `DecryptionError`."""
        data_key, sealed = self._unwrapped(ciphertext, bound_to)
        return self._envelope(data_key, sealed, bound_to)

    def _envelope(self, data_key: bytes, sealed: str, place: Place) -> str:
        wrapped = _seal(self._masters[self.current_id], data_key, _bound("key", place))
        return f"{CIPHERTEXT_VERSION}.{self.current_id}.{wrapped}.{sealed}"

    def _unwrapped(self, ciphertext: str, place: Place) -> tuple[bytes, str]:
        parts = ciphertext.split(".")
        if len(parts) != 4 or parts[0] != CIPHERTEXT_VERSION:
            raise _refused()
        _, key_id, wrapped, sealed = parts
        master = self._masters.get(key_id)
        if master is None:
            raise DecryptionError(
                "encryption_key_missing",
                f"The encryption key {key_id[:KEY_ID_CHARACTERS]!r} is not loaded; add it to encryption_keys_previous.",
            )
        return _open(master, wrapped, _bound("key", place)), sealed

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self._masters)})"


def _master(passphrase: str) -> tuple[str, AESGCM]:
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"loop credentials").derive(passphrase.encode())
    return hashlib.sha256(b"kid" + key).hexdigest()[:KEY_ID_CHARACTERS], AESGCM(key)


def _refused() -> DecryptionError:
    return DecryptionError("ciphertext_refused", "A stored secret does not belong where it is, or was changed.")


def _bound(part: str, place: Place) -> bytes:
    return "\x1f".join((CIPHERTEXT_VERSION, part, *place)).encode()


def _seal(key: AESGCM, content: bytes, bound_to: bytes) -> str:
    nonce = secrets.token_bytes(NONCE_BYTES)
    return base64.urlsafe_b64encode(nonce + key.encrypt(nonce, content, bound_to)).decode("ascii").rstrip("=")


def _open(key: AESGCM, sealed: str, bound_to: bytes) -> bytes:
    try:
        raw = base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
        return key.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], bound_to)
    except (ValueError, InvalidTag) as error:  # ValueError: no base64, or too short for a nonce
        raise _refused() from error
