"""Authentication: who calls, by API key or by access token, and when each key was last used."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Final
from weakref import WeakKeyDictionary

from starlette.requests import Request

from loop.domain.api_keys import MODES, hash_of, is_well_formed
from loop.domain.audit import Actor, ActorKind
from loop.domain.errors import ErrorKind, LoopError, invalid, unauthenticated
from loop.domain.scopes import Scope, is_granted
from loop.server.rate_limits import charge_address, charge_caller
from loop.server.request import client_address, context_of, header
from loop.server.scopes import asked_of
from loop.storage import merchants, sessions
from loop.storage.database import Database
from loop.storage.merchants import ApiKey
from loop.workflows.context import Context
from loop.workflows.processor_configs import usual_mode
from loop.workflows.tokens import refused, verify

KEPT_S: Final = 5.0
"""How long a known key is believed without a look: the bound within which a revocation counts everywhere."""

KEPT_KEYS: Final = 10_000

KEPT_CONTEXTS: Final = 1_000
"""How many callers' contexts are kept for their next request, since making one costs as much as knowing the key."""

MODE_HEADER: Final = b"x-loop-mode"
"""In which mode a person works: `test` or `live`. A key has its own."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and whether with test or live orders. A person signed in and holds an access token of a session."""

    merchant_id: str
    is_test: bool
    key_id: str | None = None
    session_id: str | None = None
    has_chosen_mode: bool = True
    """Whether the mode was said, by the key or by the header, and is not only the usual one."""

    @property
    def is_person(self) -> bool:
        """Whether a person calls, and no API key."""
        return self.key_id is None


class KeyCache:
    """Keys that were found a moment ago, and when each key was last used."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._found: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()
        self._used: dict[str, datetime] = {}

    def get(self, secret_hash: str) -> ApiKey | None:
        """Return the key with this hash if it was put here within the last `KEPT_S` seconds."""
        kept = self._found.get(secret_hash)
        return kept[1] if kept is not None and self._clock() - kept[0] < KEPT_S else None

    def put(self, key: ApiKey) -> None:
        """Keep a key that is good; the one put in first makes room."""
        self._found[key.secret_hash] = (self._clock(), key)
        self._found.move_to_end(key.secret_hash)
        if len(self._found) > KEPT_KEYS:
            self._found.popitem(last=False)

    def forget(self, key_id: str) -> None:
        """Drop a key, since it was revoked."""
        for secret_hash, (_, key) in list(self._found.items()):
            if key.id == key_id:
                del self._found[secret_hash]

    def note_use(self, key_id: str, now: datetime) -> None:
        """Remember when a key was used, until it is written down with the others."""
        self._used[key_id] = now

    def take_used(self) -> dict[str, datetime]:
        """Return when each key was last used since the last call."""
        used, self._used = self._used, {}
        return used


# One cache for each open database: keys of one are not good in another.
_caches: WeakKeyDictionary[Database, KeyCache] = WeakKeyDictionary()


def key_cache(context: Context) -> KeyCache:
    """Return the cache of the keys in a context's database."""
    cache = _caches.get(context.database)
    if cache is None:
        cache = _caches[context.database] = KeyCache()
    return cache


async def authenticate(request: Request) -> Caller:
    """Return who calls, by API key or by access token.

    A person may do everything, a key what its scopes grant: see `loop.server.scopes`. Raises `missing_credentials`,
    `invalid_api_key`, `expired_api_key`, `insufficient_scope`, `person_required`, `invalid_token`, `invalid_mode`,
    `rate_limited`.
    """
    key = header(request, b"x-api-key")
    if key is None:
        scheme, _, credentials = (header(request, b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not credentials:
            raise unauthenticated(
                "missing_credentials", "Send an API key in X-API-Key, or Authorization: Bearer with a key or a token."
            )
        key = credentials.strip()
        if not key.startswith("sk_"):
            return await _person(request, key)
    return await _holder(request, key)


async def _person(request: Request, token: str) -> Caller:
    context = context_of(request)
    claims = verify(context, token)
    await charge_caller(request, claims.merchant_id, asked=asked_of(request))
    mode = header(request, MODE_HEADER)
    if mode not in (None, *MODES):
        raise invalid("invalid_mode", "X-Loop-Mode must be test or live.")
    async with context.database.reading() as reader:
        session = await sessions.get(reader, claims.session_id)
        chosen = mode or await usual_mode(reader, claims.merchant_id)
    if session is None or session.merchant_id != claims.merchant_id or session.expires_at <= context.now():
        raise refused()
    return Caller(claims.merchant_id, chosen == "test", session_id=session.id, has_chosen_mode=mode is not None)


async def _holder(request: Request, key: str) -> Caller:
    context = context_of(request)
    cache = key_cache(context)
    secret_hash = hash_of(key)
    found = cache.get(secret_hash)
    if found is None:
        if not is_well_formed(key):
            raise _unknown_key()
        await charge_address(request)
        async with context.database.reading() as reader:
            found = await merchants.key_by_hash(reader, secret_hash)
        if found is None or found.revoked_at is not None:
            raise _unknown_key()
        cache.put(found)
    now = context.now()
    if found.expires_at is not None and found.expires_at <= now:
        raise unauthenticated("expired_api_key", "The API key has expired; use another one.")
    cache.note_use(found.id, now)
    needed = asked_of(request)
    await charge_caller(request, found.id, asked=needed)
    _require_scope(found, needed)
    return Caller(found.merchant_id, found.mode == "test", key_id=found.id)


def _require_scope(key: ApiKey, needed: Scope | None) -> None:
    if needed is None:
        raise LoopError(
            ErrorKind.FORBIDDEN, "person_required", "An API key may not do this; sign in and send the access token."
        )
    if not is_granted(key.scopes, needed):
        raise LoopError(
            ErrorKind.FORBIDDEN, "insufficient_scope", f"The API key lacks the scope {needed}; use one that has it."
        )


def acting(request: Request, caller: Caller | None) -> Context:
    """Return the context in which this caller acts, or somebody who has not signed in.

    The audit log hears who it was, and orders of the other mode are as if they were not there.
    """
    if caller is None:
        kind, actor_id = ActorKind.ANONYMOUS, None
    elif caller.key_id is None:
        kind, actor_id = ActorKind.USER, caller.merchant_id
    else:
        kind, actor_id = ActorKind.API_KEY, caller.key_id
    is_test = None if caller is None else caller.is_test
    return _context_for(context_of(request), Actor(kind, actor_id, client_address(request)), is_test)


@lru_cache(maxsize=KEPT_CONTEXTS)
def _context_for(context: Context, actor: Actor, is_test: bool | None) -> Context:
    return replace(context, actor=actor, is_test=is_test)


def _unknown_key() -> LoopError:
    return unauthenticated("invalid_api_key", "There is no such API key, or it was revoked.")


async def flush_last_used(context: Context) -> None:
    """Write down when keys were last used; what cannot be written is lost, and the next use is noted again."""
    used = key_cache(context).take_used()
    if not used:
        return
    async with context.database.transaction() as session:
        for key_id, used_at in used.items():
            await merchants.touch_key(session, key_id, used_at)
