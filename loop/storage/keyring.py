"""The keyring: AES-256-GCM under named keys, each ciphertext bound to the table, column, row and merchant it is for."""

import base64
import hashlib
import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VERSION = "v1"
NONCE_BYTES = 12


class DecryptionError(Exception):
    """A stored secret cannot be read: its key is not loaded, or it was moved or changed."""


class Keyring:
    """Encrypts with the first key and decrypts with any; `kid` is public and derived from the key."""

    def __init__(self, passphrases: Sequence[str]) -> None:
        self._keys: dict[str, AESGCM] = {}
        for passphrase in passphrases:
            key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"loop credentials").derive(passphrase.encode())
            self._keys[hashlib.sha256(b"kid" + key).hexdigest()[:8]] = AESGCM(key)
        self._current = next(iter(self._keys))

    def encrypt(self, plaintext: str, *, bound_to: Sequence[str]) -> str:
        """Return `v1.kid.nonce.ciphertext`; `bound_to` must be the same when it is read."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._keys[self._current].encrypt(nonce, plaintext.encode(), _additional(bound_to))
        return ".".join((VERSION, self._current, _text(nonce), _text(sealed)))

    def decrypt(self, ciphertext: str, *, bound_to: Sequence[str]) -> str:
        """Return the plaintext, or raise `DecryptionError`."""
        try:
            version, kid, nonce, sealed = ciphertext.split(".")
            if version != VERSION:
                raise DecryptionError(f"unknown format {version!r}")
            key = self._keys[kid]
            return key.decrypt(_raw(nonce), _raw(sealed), _additional(bound_to)).decode()
        except KeyError as error:
            raise DecryptionError(
                f"the encryption key {error} is not loaded; add it to encryption_keys_previous"
            ) from error
        except (ValueError, InvalidTag) as error:
            raise DecryptionError("the ciphertext does not belong here or was changed") from error

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self._keys)})"


def _additional(bound_to: Sequence[str]) -> bytes:
    return "\x1f".join((VERSION, *bound_to)).encode()


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def _raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
