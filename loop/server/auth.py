"""Authentication: who calls, by API key or by access token, and when each key was last used."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from weakref import WeakKeyDictionary

from starlette.requests import Request

from loop.domain.api_keys import hash_of, is_well_formed
from loop.domain.audit import Actor, ActorKind
from loop.domain.errors import ErrorKind, LoopError, unauthenticated
from loop.server.request import context_of, header
from loop.storage import merchants
from loop.storage.database import Database
from loop.storage.merchants import ApiKey
from loop.workflows.context import Context
from loop.workflows.tokens import verify

KEPT_S: Final = 5.0
"""How long a known key is believed without a look: the bound within which a revocation counts everywhere."""

KEPT_KEYS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `key_id` is None for a person, who signed in and holds an access token."""

    merchant_id: str
    key_id: str | None
    is_person: bool
    mode: str


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

    Raises `missing_credentials`, `invalid_api_key`, `expired_api_key`, `invalid_token`.
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
            return await _person(context_of(request), key)
    return await _holder(context_of(request), key)


async def authenticate_person(request: Request) -> Caller:
    """Return who calls, by access token only; an API key is refused with `person_required` (403)."""
    caller = await authenticate(request)
    if not caller.is_person:
        raise LoopError(
            ErrorKind.FORBIDDEN, "person_required", "An API key may not do this; sign in and send the access token."
        )
    return caller


async def _person(context: Context, token: str) -> Caller:
    merchant_id = verify(context, token)
    async with context.database.reading() as reader:
        merchant = await merchants.get(reader, merchant_id)
    if merchant is None:  # a token outlives a database that was made anew
        raise unauthenticated("invalid_token", "The access token is of a merchant who is not here; sign in again.")
    return Caller(merchant_id, None, is_person=True, mode="live")


async def _holder(context: Context, key: str) -> Caller:
    cache = key_cache(context)
    secret_hash = hash_of(key)
    found = cache.get(secret_hash)
    if found is None:
        if not is_well_formed(key):
            raise _unknown_key()
        async with context.database.reading() as reader:
            found = await merchants.key_by_hash(reader, secret_hash)
        if found is None or found.revoked_at is not None:
            raise _unknown_key()
        cache.put(found)
    now = context.now()
    if found.expires_at is not None and found.expires_at <= now:
        raise unauthenticated("expired_api_key", "The API key has expired; use another one.")
    cache.note_use(found.id, now)
    return Caller(found.merchant_id, found.id, is_person=False, mode=found.mode)


def acting(request: Request, caller: Caller | None) -> Context:
    """Return the context in which this caller acts, or somebody who has not signed in: for what is audited."""
    if caller is None:
        kind, actor_id = ActorKind.ANONYMOUS, None
    elif caller.key_id is None:
        kind, actor_id = ActorKind.USER, caller.merchant_id
    else:
        kind, actor_id = ActorKind.API_KEY, caller.key_id
    address = None if request.client is None else request.client.host
    return replace(context_of(request), actor=Actor(kind, actor_id, address))


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
