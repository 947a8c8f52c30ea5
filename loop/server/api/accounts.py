"""Accounts: register, sign in, take the next pair of tokens, and sign out."""

from typing import Annotated, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.server.auth import acting
from loop.server.dashboard_shapes import MerchantJson, merchant_json
from loop.server.operations import Operation, describes
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


class SignedInJson(TypedDict):
    """A pair of tokens and whose they are."""

    token: str
    refreshToken: str
    merchant: MerchantJson


_WHO: Final = {"email": "ada@shop.example", "password": "seven quiet harbours"}


@describes(
    Operation(
        "register",
        answer=SignedInJson,
        status=201,
        body=Registration,
        errors=("email_exists", "registration_closed", "too_many_sign_ins"),
        example={"name": "Ada's shop", **_WHO},
    )
)
async def register(request: Request) -> Response:
    """Register a merchant and sign it in."""
    sent = await body(request, Registration)
    new = NewMerchant(sent.name, sent.email, sent.password)
    signed_in = await merchants.register(acting(request, None), new, user_agent=header(request, USER_AGENT))
    return json_response(_session_json(signed_in), status=201)


@describes(
    Operation(
        "signIn",
        answer=SignedInJson,
        body=Login,
        errors=("invalid_credentials", "too_many_attempts", "too_many_sign_ins"),
        example=_WHO,
    )
)
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


@describes(
    Operation(
        "refreshTokens",
        answer=SignedInJson,
        body=RefreshToken,
        errors=("invalid_refresh_token",),
        example={"refreshToken": "rt_of_the_last_answer"},
    )
)
async def refresh(request: Request) -> Response:
    """Take a refresh token and answer a new pair; the same one again if it is asked for twice within ten seconds."""
    sent = await body(request, RefreshToken)
    context, user_agent = acting(request, None), header(request, USER_AGENT)
    return json_response(_session_json(await merchants.refresh(context, sent.refresh_token, user_agent=user_agent)))


@describes(
    Operation(
        "signOut",
        status=204,
        body=RefreshToken,
        errors=("invalid_refresh_token",),
        example={"refreshToken": "rt_of_the_last_answer"},
    )
)
async def logout(request: Request) -> Response:
    """End the session of a refresh token; who holds the token needs no other proof."""
    sent = await body(request, RefreshToken)
    await merchants.logout(context_of(request), sent.refresh_token)
    return Response(status_code=204)


def _session_json(signed_in: SignedIn) -> SignedInJson:
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
