"""Accounts: register, sign in, take the next pair of tokens, and sign out."""

from typing import Annotated, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.server.auth import acting
from loop.server.dashboard_shapes import merchant_json
from loop.server.request import Body, body, client_address, context_of, header, json_response
from loop.workflows import merchants
from loop.workflows.merchants import NewMerchant, SignedIn

USER_AGENT: Final = b"user-agent"

# What is sent may be any text up to this; what may be stored is decided in loop.domain.accounts.
_Text = Annotated[str, Field(max_length=1024)]


class Registration(Body):
    """Who registers."""

    name: _Text
    email: _Text
    password: _Text


class Login(Body):
    """Who signs in."""

    email: _Text
    password: _Text


class RefreshToken(Body):
    """A refresh token, to be used or to be ended."""

    refresh_token: _Text


async def register(request: Request) -> Response:
    """Register a merchant and sign it in."""
    sent = await body(request, Registration)
    new = NewMerchant(sent.name, sent.email, sent.password)
    signed_in = await merchants.register(acting(request, None), new, user_agent=header(request, USER_AGENT))
    return json_response(_session_json(signed_in), status=201)


async def login(request: Request) -> Response:
    """Sign a merchant in."""
    sent = await body(request, Login)
    signed_in = await merchants.login(
        context_of(request),
        email=sent.email,
        password=sent.password,
        address=client_address(request),
        user_agent=header(request, USER_AGENT),
    )
    return json_response(_session_json(signed_in))


async def refresh(request: Request) -> Response:
    """Take a refresh token and answer a new pair; the same one again if it is asked for twice within ten seconds."""
    sent = await body(request, RefreshToken)
    context, user_agent = acting(request, None), header(request, USER_AGENT)
    return json_response(_session_json(await merchants.refresh(context, sent.refresh_token, user_agent=user_agent)))


async def logout(request: Request) -> Response:
    """End the session of a refresh token; who holds the token needs no other proof."""
    sent = await body(request, RefreshToken)
    await merchants.logout(context_of(request), sent.refresh_token)
    return Response(status_code=204)


def _session_json(signed_in: SignedIn) -> dict[str, object]:
    return {
        "token": signed_in.access_token,
        "refreshToken": signed_in.refresh_token,
        "merchant": merchant_json(signed_in.profile),
    }


routes: Final = [
    Route("/api/auth/register", register, methods=["POST"]),
    Route("/api/auth/login", login, methods=["POST"]),
    Route("/api/auth/refresh", refresh, methods=["POST"]),
    Route("/api/auth/logout", logout, methods=["POST"]),
]
