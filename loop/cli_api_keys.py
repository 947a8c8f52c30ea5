"""The commands about API keys: those with which merchants' shops call the API."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loop.cli_console import AsJson, MerchantArgument, as_sent, find_merchant, print_done, print_rows, run_work
from loop.domain.scopes import ALL

if TYPE_CHECKING:
    from loop.workflows.context import Context

key_app = typer.Typer(help="The keys with which merchants' shops call the API.", no_args_is_help=True)


@key_app.command("create")
def create_key(
    merchant: MerchantArgument,
    *,
    name: Annotated[str, typer.Option(help="What the key is for.")],
    live: Annotated[bool, typer.Option("--live/--test", help="Whether it moves real money.")] = False,
    mode: Annotated[str | None, typer.Option(hidden=True)] = None,  # its former way to say it
    scope: Annotated[
        list[str] | None, typer.Option(help="What it may do, such as orders:read; all if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and show it this once.

    Example: loop api-key create me@example.com --name shop --live --scope orders:read --scope orders:write
    """
    from loop.server.api.api_keys import NewKey
    from loop.workflows import merchants

    wanted = {"name": name, "mode": mode or ("live" if live else "test"), "scopes": scope or [ALL]}
    sent = as_sent(NewKey, wanted, options={"scopes": "--scope"})

    async def work(context: "Context") -> tuple[Any, str]:
        owner = await find_merchant(context, merchant)
        new = merchants.NewApiKey(sent.name, mode=sent.mode, scopes=tuple(sent.scopes))
        return await merchants.create_api_key(context, owner.id, new)

    key, secret = run_work(work)
    typer.echo(json.dumps({"id": key.id, "secret": secret}) if as_json else secret)


@key_app.command("list")
def list_keys(merchant: MerchantArgument, *, as_json: AsJson = False) -> None:
    """List a merchant's API keys; the keys themselves are not kept.

    Example: loop api-key list me@example.com
    """
    from loop.workflows import merchants

    async def work(context: "Context") -> list[Any]:
        return await merchants.list_api_keys(context, (await find_merchant(context, merchant)).id)

    rows = [(k.id, k.name, k.prefix, k.mode, list(k.scopes), k.last_used_at, k.expires_at) for k in run_work(work)]
    print_rows(("id", "name", "prefix", "mode", "scopes", "lastUsedAt", "expiresAt"), rows, as_json=as_json)


@key_app.command("rotate")
def rotate_key(
    merchant: MerchantArgument,
    key_id: Annotated[str, typer.Argument(help="The key's id, from the list.", metavar="KEY_ID")],
    *,
    overlap_hours: Annotated[int, typer.Option(min=0, max=168, help="How long the old one stays good.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Replace an API key by one that may do the same, and show that this once.

    Example: loop api-key rotate me@example.com key_01hx… --overlap-hours 1
    """
    from datetime import timedelta

    from loop.workflows import merchants

    async def work(context: "Context") -> tuple[Any, Any, str]:
        owner = await find_merchant(context, merchant)
        overlap = timedelta(hours=overlap_hours)
        return await merchants.rotate_api_key(context, owner.id, key_id, overlap=overlap)

    _, key, secret = run_work(work)
    typer.echo(json.dumps({"id": key.id, "secret": secret}) if as_json else secret)


@key_app.command("revoke")
def revoke_key(
    merchant: MerchantArgument,
    key_id: Annotated[str, typer.Argument(help="The key's id, from the list.", metavar="KEY_ID")],
    *,
    as_json: AsJson = False,
) -> None:
    """Revoke an API key for good; a running Loop stops accepting it within five seconds.

    Example: loop api-key revoke me@example.com key_01hx…
    """
    from loop.workflows import merchants

    async def work(context: "Context") -> None:
        await merchants.revoke_api_key(context, (await find_merchant(context, merchant)).id, key_id)

    run_work(work)
    print_done({"id": key_id, "revoked": True}, f"{key_id} is revoked.", as_json=as_json)
