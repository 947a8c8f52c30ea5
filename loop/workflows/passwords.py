"""Passwords: hashed with Argon2id in a few threads of their own, and verified at the same cost for everybody."""

import asyncio
import base64
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from loop.domain.errors import unavailable
from loop.workflows.context import Context

Result = TypeVar("Result")

MEMORY_KIB: Final = 19 * 1024
PASSES: Final = 2
LANES: Final = 1
SALT_BYTES: Final = 16
HASH_BYTES: Final = 32

MAX_AT_ONCE: Final = 2
"""Hashes made at the same time: each takes 19 MiB and most of a core for some 25 ms."""

MAX_WAITING: Final = 100
"""Hashes asked for and not made yet, about two seconds' worth; more are refused."""

_PARAMETERS: Final = f"$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}$"


def _phc_text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii").rstrip("=")


NOBODYS_HASH: Final = f"{_PARAMETERS}{_phc_text(bytes(SALT_BYTES))}${_phc_text(bytes(HASH_BYTES))}"
"""Verified for an unknown user, so that the answer takes as long as for a known one; no password fits it."""


class _Hashers:
    """The threads that hash. They belong to the process, because it is the process's memory that they bound."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=MAX_AT_ONCE, thread_name_prefix="loop-passwords")
        self._waiting = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run one hash in a thread; raises `unavailable` when too many wait already."""
        if self._waiting >= MAX_WAITING:
            raise unavailable("too_many_sign_ins", "Too many people sign in at this moment; try again.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


_hashers = _Hashers()


async def hash_password(context: Context, password: str) -> str:
    """Return the PHC text to store for a password; raises `unavailable` under a flood."""
    salt = context.random_bytes(SALT_BYTES)
    argon = Argon2id(salt=salt, length=HASH_BYTES, iterations=PASSES, lanes=LANES, memory_cost=MEMORY_KIB)
    return await _hashers.run(lambda: argon.derive_phc_encoded(_as_typed(password)))


async def verify_password(password: str, stored: str | None) -> bool:
    """Tell whether a password is the one stored; None, for an unknown user, takes as long and never is."""
    phc = NOBODYS_HASH if stored is None else stored
    return await _hashers.run(lambda: _is_password(password, phc))


def is_outdated(stored: str) -> bool:
    """Tell whether a stored hash was made with other parameters than today's."""
    return not stored.startswith(_PARAMETERS)


def _is_password(password: str, phc: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(_as_typed(password), phc)
    except InvalidKey:
        return False
    return True


def _as_typed(password: str) -> bytes:
    """Return the same bytes for the same letters, however a keyboard composes them."""
    return unicodedata.normalize("NFC", password).encode()
