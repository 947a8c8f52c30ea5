"""Merchants and their API keys."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import bindparam, insert, select, update

from loop.domain.failover import LateSuccess
from loop.storage.columns import UtcTime
from loop.storage.database import Reader, Session
from loop.storage.statements import Parameters, Statement, Write, columns_of, field_names, parameters_for, values_of
from loop.storage.tables import ApiKeys, Merchants, table

_merchants = table(Merchants)
_keys = table(ApiKeys)


@dataclass(frozen=True, slots=True)
class Merchant:
    """One row of merchants."""

    id: str
    name: str
    email: str = field(repr=False)
    password_hash: str = field(repr=False)
    created_at: datetime
    updated_at: datetime
    late_success: LateSuccess = LateSuccess.ACCEPT


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One row of api_keys; the key itself is not kept."""

    id: str
    merchant_id: str
    name: str
    prefix: str
    secret_hash: str = field(repr=False)
    mode: str
    scopes: Sequence[str]
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


_INSERT = Write(insert(_merchants).values(parameters_for(_merchants, field_names(Merchant))))
_UPDATE = Write(
    update(_merchants)
    .where(_merchants.c.id == bindparam("merchant_id"))
    .values(parameters_for(_merchants, ["name", "password_hash", "late_success", "updated_at"]))
)
_GET = Statement(select(*columns_of(_merchants, Merchant)).where(_merchants.c.id == bindparam("merchant_id")), Merchant)
_LOCK = Statement(  # not FOR UPDATE, which new orders of the merchant would have to wait for
    select(_merchants.c.id).where(_merchants.c.id == bindparam("merchant_id")).with_for_update(key_share=True), str
)
_BY_EMAIL = Statement(
    select(*columns_of(_merchants, Merchant)).where(_merchants.c.email == bindparam("email")), Merchant
)
_LIST = Statement(
    select(*columns_of(_merchants, Merchant)).order_by(_merchants.c.id).limit(bindparam("limit")), Merchant
)
_INSERT_KEY = Write(insert(_keys).values(parameters_for(_keys, field_names(ApiKey))))
_KEY_BY_HASH = Statement(
    select(*columns_of(_keys, ApiKey)).where(_keys.c.secret_hash == bindparam("secret_hash")), ApiKey
)
_KEYS = Statement(
    select(*columns_of(_keys, ApiKey))
    .where(_keys.c.merchant_id == bindparam("merchant_id"), _keys.c.revoked_at.is_(None))
    .order_by(_keys.c.id.desc())
    .limit(1000),
    ApiKey,
)
_REVOKE_KEY = Write(
    update(_keys)
    .where(
        _keys.c.id == bindparam("key_id"),
        _keys.c.merchant_id == bindparam("merchant_id"),
        _keys.c.revoked_at.is_(None),
    )
    .values(revoked_at=bindparam("now", type_=UtcTime))
)
_LOCK_KEY = Statement(
    select(*columns_of(_keys, ApiKey))
    .where(
        _keys.c.id == bindparam("key_id"),
        _keys.c.merchant_id == bindparam("merchant_id"),
        _keys.c.revoked_at.is_(None),
    )
    .with_for_update(),
    ApiKey,
)
_EXPIRE_KEY = Write(
    update(_keys).where(_keys.c.id == bindparam("key_id")).values(expires_at=bindparam("at", type_=UtcTime))
)
_TOUCH_KEY = Write(
    update(_keys).where(_keys.c.id == bindparam("key_id")).values(last_used_at=bindparam("used_at", type_=UtcTime))
)


def insertion(merchant: Merchant) -> tuple[Write, Parameters]:
    """Return the write that inserts a merchant, for `Session.run_together`."""
    return _INSERT, values_of(merchant)


async def update_profile(session: Session, merchant: Merchant) -> None:
    """Store a merchant's changed name, password or policy."""
    await session.run(
        _UPDATE,
        {
            "merchant_id": merchant.id,
            "name": merchant.name,
            "password_hash": merchant.password_hash,
            "late_success": merchant.late_success,
            "updated_at": merchant.updated_at,
        },
    )


async def get(reader: Reader, merchant_id: str) -> Merchant | None:
    """Return a merchant, or None."""
    return await reader.first(_GET, {"merchant_id": merchant_id})


async def lock(session: Session, merchant_id: str) -> bool:
    """Let nobody else change what a merchant has set up until the transaction ends; tell whether there is such a one.

    Held by whoever must read rules or configs before changing them; orders do not wait for it.
    """
    return await session.first(_LOCK, {"merchant_id": merchant_id}) is not None


async def by_email(reader: Reader, email: str) -> Merchant | None:
    """Return the merchant with this (lower-case) address, or None."""
    return await reader.first(_BY_EMAIL, {"email": email})


async def list_all(reader: Reader, limit: int) -> list[Merchant]:
    """Return merchants, oldest first."""
    return await reader.all(_LIST, {"limit": limit})


def key_insertion(key: ApiKey) -> tuple[Write, Parameters]:
    """Return the write that inserts an API key, for `Session.run_together`."""
    return _INSERT_KEY, {**values_of(key), "scopes": list(key.scopes)}


async def key_by_hash(reader: Reader, secret_hash: str) -> ApiKey | None:
    """Return the API key with this hash, revoked and expired ones too, or None."""
    return await reader.first(_KEY_BY_HASH, {"secret_hash": secret_hash})


async def keys_of(reader: Reader, merchant_id: str) -> list[ApiKey]:
    """Return a merchant's API keys that are not revoked, newest first."""
    return await reader.all(_KEYS, {"merchant_id": merchant_id})


async def revoke_key(session: Session, merchant_id: str, key_id: str, *, now: datetime) -> bool:
    """Revoke a key; tell whether the merchant had it."""
    return await session.run(_REVOKE_KEY, {"merchant_id": merchant_id, "key_id": key_id, "now": now}) == 1


async def lock_key(session: Session, merchant_id: str, key_id: str) -> ApiKey | None:
    """Return a merchant's API key that is not revoked, its row locked, or None."""
    return await session.first(_LOCK_KEY, {"merchant_id": merchant_id, "key_id": key_id})


async def expire_key(session: Session, key_id: str, expires_at: datetime) -> None:
    """Store when a key expires."""
    await session.run(_EXPIRE_KEY, {"key_id": key_id, "at": expires_at})


async def touch_key(session: Session, key_id: str, used_at: datetime) -> None:
    """Store when a key was last used."""
    await session.run(_TOUCH_KEY, {"key_id": key_id, "used_at": used_at})
