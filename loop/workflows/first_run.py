"""The first run: a link, printed where Loop was started, with which the first merchant is made in a browser."""

import base64
import hmac
from datetime import UTC, datetime, timedelta
from typing import Final

from loop.domain.errors import ErrorKind, LoopError
from loop.storage import merchants
from loop.workflows.context import Context
from loop.workflows.merchants import NewMerchant, SignedIn, register_first

LINK_KEPT: Final = timedelta(hours=1)
"""How long a link is good."""

MAX_TOKEN_CHARACTERS: Final = 128
_PURPOSE: Final = b"loop first run\0"


def make_token(context: Context) -> str:
    """Return the link's secret: when it ends, and a proof that only a process with Loop's own secret can make.

    So every process of one Loop knows it, and nothing of it is kept.
    """
    ends = str(int((context.now() + LINK_KEPT).timestamp()))
    return f"{ends}.{_proof(context, ends)}"


def _proof(context: Context, ends: str) -> str:
    key = context.settings.jwt_secret.reveal().encode()
    digest = hmac.digest(key, _PURPOSE + ends.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).decode("ascii").rstrip("=")


async def is_open(context: Context) -> bool:
    """Tell whether nobody sells through this Loop yet."""
    async with context.database.reading() as reader:
        return not await merchants.list_all(reader, 1)


async def require_open(context: Context, token: str) -> None:
    """Raise `invalid_link` for a token that is not good (any more), and `first_run_over` once there is a merchant."""
    ends, _, proof = token.partition(".")
    is_made_here = len(token) <= MAX_TOKEN_CHARACTERS and ends.isascii() and ends.isdigit()
    if not is_made_here or not hmac.compare_digest(proof.encode(), _proof(context, ends).encode()):
        raise _invalid_link()
    if not await is_open(context):
        raise _over()
    if datetime.fromtimestamp(int(ends), UTC) <= context.now():
        raise _invalid_link()


async def make_merchant(context: Context, token: str, new: NewMerchant, *, user_agent: str | None) -> SignedIn:
    """Make the first merchant and sign it in; the link is used up then. Raises what `require_open` raises."""
    await require_open(context, token)
    signed_in = await register_first(context, new, user_agent=user_agent)
    if signed_in is None:
        raise _over()
    return signed_in


def _invalid_link() -> LoopError:
    minutes = int(LINK_KEPT.total_seconds() // 60)
    return LoopError(
        ErrorKind.FORBIDDEN,
        "invalid_link",
        f"This link is not good: it lasts {minutes} minutes. Start `loop serve` anew, and it prints another one.",
    )


def _over() -> LoopError:
    return LoopError(ErrorKind.FORBIDDEN, "first_run_over", "This Loop has its first merchant already; sign in.")
