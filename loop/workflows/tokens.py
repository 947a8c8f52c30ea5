"""Access tokens: the signed statement that somebody is signed in as a merchant, made and checked."""

import hashlib
from dataclasses import dataclass
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

_KEY_ID_CHARACTERS: Final = 16


@dataclass(frozen=True, slots=True)
class Claims:
    """Whom a token speaks for, and the sign-in session that it was given to."""

    merchant_id: str
    session_id: str


def key_id(context: Context) -> str:
    """Return the name of the key that signs, which says nothing about it."""
    secret = context.settings.jwt_secret.reveal()
    return hashlib.sha256(b"loop access token key\0" + secret.encode()).hexdigest()[:_KEY_ID_CHARACTERS]


def issue_access_token(context: Context, claims: Claims, issued_at: datetime) -> str:
    """Return a token with which a merchant's person calls the API until `access_token_ttl_s` has passed.

    The same claims and second make the same token. It ends earlier with its session.
    """
    second = int(issued_at.timestamp())
    payload = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": claims.merchant_id,
        "sid": claims.session_id,
        "iat": second,
        "exp": second + context.settings.access_token_ttl_s,
    }
    headers = {"typ": TYPE, "kid": key_id(context)}
    return jwt.encode(payload, context.settings.jwt_secret.reveal(), algorithm=ALGORITHM, headers=headers)


def verify(context: Context, token: str) -> Claims:
    """Return what a token says, which the caller compares with the session; raises `invalid_token`."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise refused()
    try:
        opened = jwt.decode_complete(
            token,
            context.settings.jwt_secret.reveal(),
            algorithms=[ALGORITHM],
            issuer=ISSUER,
            audience=AUDIENCE,
            # The times are compared with the context's clock below.
            options={
                "require": ["exp", "iat", "sub", "sid"],
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
        issued_at = datetime.fromtimestamp(opened["payload"]["iat"], UTC)
        expires_at = datetime.fromtimestamp(opened["payload"]["exp"], UTC)
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, OSError) as error:
        raise refused() from error
    now, header = context.now(), opened["header"]
    is_ours = header.get("typ") == TYPE and header.get("kid") == key_id(context)
    if not is_ours or now >= expires_at or issued_at > now + SKEW:
        raise refused()
    return Claims(str(opened["payload"]["sub"]), str(opened["payload"]["sid"]))


def refused() -> LoopError:
    """Return the one error for a token that does not count, whatever the reason."""
    return unauthenticated("invalid_token", "The access token is invalid or has expired; sign in again.")
