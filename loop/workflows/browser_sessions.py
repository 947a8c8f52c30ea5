"""Browser sessions: who is signed in on the dashboard, known by the refresh token that their cookie holds.

A browser's token is never refreshed, so that two tabs cannot take it from each other; it is good until it ends with
its session, or is used up elsewhere.
"""

import hashlib

from loop.storage import merchants, sessions
from loop.storage.database import Reader
from loop.storage.merchants import Merchant
from loop.storage.sessions import Holder
from loop.workflows.context import Context

MAX_TOKEN_CHARACTERS = 128


async def holder(context: Context, refresh_token: str) -> Merchant | None:
    """Return the merchant who is signed in with a token, None when nobody is (any more)."""
    async with context.database.reading() as reader:
        found = await _holder(context, reader, refresh_token)
        return None if found is None else await merchants.get(reader, found.merchant_id)


async def session_id(context: Context, refresh_token: str) -> str | None:
    """Return the session that a token keeps open, None when it is over."""
    async with context.database.reading() as reader:
        found = await _holder(context, reader, refresh_token)
    return None if found is None else found.session_id


async def _holder(context: Context, reader: Reader, refresh_token: str) -> Holder | None:
    if len(refresh_token) > MAX_TOKEN_CHARACTERS:
        return None
    token_hash = hashlib.sha256(refresh_token.encode()).hexdigest()
    return await sessions.holder(reader, token_hash, context.now())
