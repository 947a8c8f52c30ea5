"""Access tokens: the signed statement that somebody signed in as a merchant, made and checked."""

from datetime import UTC, datetime, timedelta
from typing import Final

import jwt

from loop.domain.errors import LoopError, unauthenticated
from loop.workflows.context import Context

ALGORITHM: Final = "HS256"
ISSUER: Final = "loop"
AUDIENCE: Final = "loop-api"
TYPE: Final = "at+jwt"
"""RFC 9068: says that this is an access token, so that no other signed text of ours passes for one."""

MAX_TOKEN_CHARACTERS: Final = 2048
SKEW: Final = timedelta(seconds=30)
"""How far the clocks of two of our machines may be apart."""


def issue_access_token(context: Context, merchant_id: str) -> str:
    """Return a token with which a merchant's person calls the API until `access_token_ttl_s` has passed."""
    now = context.now()
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": merchant_id,
        "iat": int(now.timestamp()),
        "exp": int(now.timestamp()) + context.settings.access_token_ttl_s,
    }
    return jwt.encode(claims, context.settings.jwt_secret.reveal(), algorithm=ALGORITHM, headers={"typ": TYPE})


def verify(context: Context, token: str) -> str:
    """Return the id of the merchant whom a token speaks for; raises `invalid_token`."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise _refused()
    try:
        opened = jwt.decode_complete(
            token,
            context.settings.jwt_secret.reveal(),
            algorithms=[ALGORITHM],
            issuer=ISSUER,
            audience=AUDIENCE,
            # The times are compared with the context's clock below.
            options={"require": ["exp", "iat", "sub"], "verify_exp": False, "verify_iat": False, "verify_nbf": False},
        )
        issued_at = datetime.fromtimestamp(opened["payload"]["iat"], UTC)
        expires_at = datetime.fromtimestamp(opened["payload"]["exp"], UTC)
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, OSError) as error:
        raise _refused() from error
    now = context.now()
    if opened["header"].get("typ") != TYPE or now >= expires_at or issued_at > now + SKEW:
        raise _refused()
    return str(opened["payload"]["sub"])


def _refused() -> LoopError:
    return unauthenticated("invalid_token", "The access token is invalid or has expired; sign in again.")
