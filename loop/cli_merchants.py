"""The commands about merchants: who sells through this Loop."""

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import LIST_LIMIT, AsJson, MerchantArgument, find_merchant, print_rows, run_work

if TYPE_CHECKING:
    from loop.storage.merchants import Merchant
    from loop.workflows.context import Context

merchant_app = typer.Typer(help="Who sells through this Loop.", no_args_is_help=True)


def _password_from_outside() -> tuple[bool, str]:
    """Return a merchant's password and whether somebody gave it; without anybody it is made up."""
    import secrets

    given = os.environ.get("LOOP_MERCHANT_PASSWORD") or ("" if sys.stdin.isatty() else sys.stdin.readline().strip())
    return bool(given), given or secrets.token_urlsafe(18)


@merchant_app.command("create")
def create_merchant(
    name: Annotated[str, typer.Option(help="What customers know the shop by.")],
    email: Annotated[str, typer.Option(help="The address to sign in with.")],
    *,
    live: Annotated[bool, typer.Option("--live/--test", help="Whether the key's orders move real money.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a merchant with a first API key.

    The password comes from LOOP_MERCHANT_PASSWORD or a line on standard input; without either one is made up and
    shown once.

    Example: loop merchant create --name 'My shop' --email me@example.com
    """
    from loop.workflows import merchants

    given, password = _password_from_outside()

    async def work(context: "Context") -> "tuple[Merchant, str]":
        profile = await merchants.create(context, merchants.NewMerchant(name, email, password))
        _, key = await merchants.create_api_key(
            context, profile.merchant.id, merchants.NewApiKey("first key", mode="live" if live else "test")
        )
        return profile.merchant, key

    merchant, key = run_work(work)
    shown = {"id": merchant.id, "email": merchant.email, "mode": "live" if live else "test", "apiKey": key}
    if not given:
        shown["password"] = password
    if as_json:
        typer.echo(json.dumps(shown))
        return
    for label, value in shown.items():
        typer.echo(f"{label:10}{value}")
    typer.echo("Keep the key (and the password): they are shown this once.", err=True)


@merchant_app.command("reset-password")
def reset_password(merchant: MerchantArgument, *, as_json: AsJson = False) -> None:
    """Set a merchant's password anew and sign everybody out; API keys stay good.

    The password comes from LOOP_MERCHANT_PASSWORD or a line on standard input; without either one is made up and
    shown once.

    Example: loop merchant reset-password me@example.com
    """
    from loop.workflows import merchants

    given, password = _password_from_outside()

    async def work(context: "Context") -> int:
        return await merchants.reset_password(context, (await find_merchant(context, merchant)).id, password)

    ended = run_work(work)
    shown = {"sessionsEnded": ended, **({} if given else {"password": password})}
    if as_json:
        typer.echo(json.dumps(shown))
        return
    typer.echo(f"The password is set; {ended} sessions were ended.")
    if not given:
        typer.echo(f"{password}\nKeep the password: it is shown this once.")


@merchant_app.command("list")
def list_merchants(*, as_json: AsJson = False) -> None:
    """List the merchants.

    Example: loop merchant list --json
    """
    from loop.storage import merchants

    async def work(context: "Context") -> "list[Merchant]":
        async with context.database.reading() as reader:
            return await merchants.list_all(reader, LIST_LIMIT)

    rows = [(m.id, m.name, m.email, m.created_at) for m in run_work(work)]
    print_rows(("id", "name", "email", "createdAt"), rows, as_json=as_json)
