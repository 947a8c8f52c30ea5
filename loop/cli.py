"""The commands: parse, call one workflow or read, print. Heavy imports wait until a command needs them."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loop.cli_audit import audit_app
from loop.cli_checkout import checkout_app
from loop.cli_console import AsJson, MerchantArgument, find_merchant, flags, load_settings, print_rows, run_work
from loop.cli_keys import keys_app
from loop.cli_reconcile import reconcile
from loop.cli_routing import routing_app
from loop.domain.errors import ErrorKind, LoopError, invalid
from loop.domain.money import Money
from loop.domain.scopes import ALL

if TYPE_CHECKING:
    from loop.config import Settings
    from loop.storage.merchants import Merchant
    from loop.workflows.context import Context

EXIT_CODES: dict[ErrorKind, int] = {
    ErrorKind.INVALID: 3,
    ErrorKind.TOO_LARGE: 3,
    ErrorKind.UNAUTHENTICATED: 4,
    ErrorKind.FORBIDDEN: 4,
    ErrorKind.NOT_FOUND: 5,
    ErrorKind.CONFLICT: 6,
    ErrorKind.RATE_LIMITED: 7,
    ErrorKind.UNAVAILABLE: 8,
    ErrorKind.CONFIGURATION: 9,
}
"""What kind of error ends a command with which code; 2 is a mistyped command, 1 a mistake of Loop's own.

A command that compares also ends with 1 when what it compares differs.
"""

LIST_LIMIT = 1000
HEALTH_WITHIN_S = 4.0

app = typer.Typer(
    name="loop",
    help="Loop routes payments: one program for the API, the jobs and the pages.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
merchant_app = typer.Typer(help="Who sells through this Loop.", no_args_is_help=True)
key_app = typer.Typer(help="The keys with which merchants' shops call the API.", no_args_is_help=True)
processor_app = typer.Typer(help="Merchants' accounts at payment processors.", no_args_is_help=True)
order_app = typer.Typer(help="Orders and what became of them.", no_args_is_help=True)
app.add_typer(merchant_app, name="merchant")
app.add_typer(key_app, name="api-key")
app.add_typer(processor_app, name="processor")
app.add_typer(order_app, name="order")
app.add_typer(checkout_app, name="checkout")
app.add_typer(routing_app, name="routing")
app.command()(reconcile)
app.add_typer(keys_app, name="keys")
app.add_typer(audit_app, name="audit")


def main() -> None:
    """Run the command line; an expected error is one line and an exit code of its kind."""
    try:
        app()
    except LoopError as error:
        typer.echo(f"{error.code}: {error.message}", err=True)
        for field, problem in error.details:
            typer.echo(f"  {field}: {problem}", err=True)
        sys.exit(EXIT_CODES[error.kind])
    except KeyboardInterrupt:
        sys.exit(130)


@app.callback()
def _options(
    config: Annotated[Path | None, typer.Option(help="The TOML file with the settings.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the SQLite file and the secrets are.")] = None,
) -> None:
    flags.update(config=config, data_dir=data_dir)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed_version

    typer.echo(installed_version("loop"))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    *,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM), to serve HTTPS by TLS 1.3.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's private key (PEM).")] = None,
) -> None:
    """Run the API, the jobs and the pages, until Ctrl-C or SIGTERM."""
    import asyncio
    import signal

    import uvloop

    from loop.runtime import running, spare_collector
    from loop.telemetry import configure

    settings = load_settings(host=host, port=port, tls_cert=tls_cert, tls_key=tls_key)
    configure(level=settings.log_level, log_format=settings.log_format, log_file=settings.log_file)

    async def until_told() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with running(settings) as serving:
            _say_where(settings, serving.url)
            spare_collector()
            await stop.wait()

    uvloop.run(until_told())


def _say_where(settings: "Settings", url: str) -> None:
    where = settings.sqlite_path or settings.database_url.rpartition("@")[2]
    typer.echo(f"Loop serves {url}", err=True)
    typer.echo(f"  database   {where}", err=True)
    if settings.is_sqlite:
        typer.echo(f"  data       {settings.data_dir} (secrets.toml there is worth a backup)", err=True)
    typer.echo("  next       loop merchant create --name 'My shop' --email me@example.com", err=True)


@app.command()
def health() -> None:
    """Ask the `loop serve` that has these settings, on this machine, whether it can serve; ends with 8 if not.

    It asks GET /health/ready, once: what a container's or a supervisor's health check needs.
    """
    import ssl
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    from loop.domain.errors import unavailable

    settings = load_settings()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - asks, does not listen
    if settings.tls_cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname = False  # the certificate names the host that customers know, not this one
        tls.verify_mode = ssl.CERT_NONE
        connection: HTTPConnection = HTTPSConnection(host, settings.port, timeout=HEALTH_WITHIN_S, context=tls)
    else:
        connection = HTTPConnection(host, settings.port, timeout=HEALTH_WITHIN_S)
    try:
        connection.request("GET", "/health/ready")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        raise unavailable("not_ready", f"No answer from {host}:{settings.port} ({type(error).__name__}).") from error
    finally:
        connection.close()
    if status != 200:
        raise unavailable("not_ready", f"{host}:{settings.port} answers {status}; see its log.")
    typer.echo("ready")


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it serving, and print what to try.")] = False,
    port: Annotated[int | None, typer.Option(help="Port to listen on; a free one without it.")] = None,
) -> None:
    """Watch orders go through: charged by a stand-in Stripe, told to a shop, the two ledgers compared."""
    from loop.cli_demo import run_demo

    raise typer.Exit(run_demo(keep=keep, port=port))


@app.command()
def migrate() -> None:
    """Bring the database's schema to this version's."""
    import asyncio

    from loop.storage.migrate import migrate as bring

    state = asyncio.run(bring(load_settings().database_url))
    typer.echo(f"The schema is {state.current}.")


def _secret_from_outside(variable: str, prompt: str) -> str | None:
    """Return a secret from the environment, from a pipe, or from a hidden prompt; never from an argument."""
    if value := os.environ.get(variable):
        return value
    if not sys.stdin.isatty():
        return None
    return str(typer.prompt(prompt, hide_input=True))


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
    """List the merchants."""
    from loop.storage import merchants

    async def work(context: "Context") -> "list[Merchant]":
        async with context.database.reading() as reader:
            return await merchants.list_all(reader, LIST_LIMIT)

    rows = [(m.id, m.name, m.email, m.created_at) for m in run_work(work)]
    print_rows(("id", "name", "email", "createdAt"), rows, as_json=as_json)


@key_app.command("create")
def create_key(
    merchant: MerchantArgument,
    *,
    name: Annotated[str, typer.Option(help="What the key is for.")],
    mode: Annotated[str, typer.Option(help="test or live.")] = "test",
    scope: Annotated[
        list[str] | None, typer.Option(help="What it may do, such as orders:read; all if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and show it this once."""
    from loop.workflows import merchants

    if mode not in {"test", "live"}:
        raise invalid("invalid_mode", "The mode is test or live.")

    async def work(context: "Context") -> tuple[Any, str]:
        owner = await find_merchant(context, merchant)
        new = merchants.NewApiKey(name, mode="live" if mode == "live" else "test", scopes=tuple(scope or (ALL,)))
        return await merchants.create_api_key(context, owner.id, new)

    key, secret = run_work(work)
    typer.echo(json.dumps({"id": key.id, "secret": secret}) if as_json else secret)


@key_app.command("list")
def list_keys(merchant: MerchantArgument, *, as_json: AsJson = False) -> None:
    """List a merchant's API keys; the keys themselves are not kept."""
    from loop.workflows import merchants

    async def work(context: "Context") -> list[Any]:
        return await merchants.list_api_keys(context, (await find_merchant(context, merchant)).id)

    rows = [(k.id, k.name, k.prefix, k.mode, ", ".join(k.scopes), k.last_used_at, k.expires_at) for k in run_work(work)]
    print_rows(("id", "name", "prefix", "mode", "scopes", "lastUsedAt", "expiresAt"), rows, as_json=as_json)


@key_app.command("rotate")
def rotate_key(
    merchant: MerchantArgument,
    key_id: Annotated[str, typer.Argument(help="The key's id, from the list.")],
    *,
    overlap_hours: Annotated[int, typer.Option(min=0, max=168, help="How long the old one stays good.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Replace an API key by one that may do the same, and show that this once."""
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
    merchant: MerchantArgument, key_id: Annotated[str, typer.Argument(help="The key's id, from the list.")]
) -> None:
    """Revoke an API key for good; a running Loop stops accepting it within five seconds."""
    from loop.workflows import merchants

    async def work(context: "Context") -> None:
        await merchants.revoke_api_key(context, (await find_merchant(context, merchant)).id, key_id)

    run_work(work)
    typer.echo(f"{key_id} is revoked.")


def _credentials(context: "Context", processor: str) -> dict[str, str]:
    """Read credentials: one JSON object from a pipe, else each field from its variable or a hidden prompt."""
    schema = context.processors.credentials_schema(processor)
    named = {each.name: os.environ.get(_variable(processor, each.name), "") for each in schema}
    if schema and not any(named.values()) and not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        if not text and not any(each.is_required for each in schema):
            return {}
        try:
            given = json.loads(text)
        except ValueError:
            given = None
        if not isinstance(given, dict):
            expected = ", ".join(each.name for each in schema)
            raise invalid("invalid_credentials", f"Pipe in one JSON object with: {expected}.")
        return {str(name): str(value) for name, value in given.items()}
    for each in schema:
        if not named[each.name] and sys.stdin.isatty():
            named[each.name] = str(typer.prompt(each.label, hide_input=each.is_secret, default="", show_default=False))
    return {name: value for name, value in named.items() if value}


def _variable(processor: str, field: str) -> str:
    words = "".join(f"_{letter}" if letter.isupper() else letter for letter in field)
    return f"LOOP_{processor}_{words}".upper()


@processor_app.command("set")
def set_processor(
    merchant: MerchantArgument,
    processor: Annotated[str, typer.Argument(help="Such as sandbox or stripe.")],
    *,
    priority: Annotated[int, typer.Option(min=1, max=100, help="1 comes first.")] = 1,
    live: Annotated[bool, typer.Option("--live/--test", help="Whether the account moves real money.")] = False,
    enabled: Annotated[bool, typer.Option("--enabled/--disabled", help="Whether it takes orders.")] = True,
) -> None:
    """Store a merchant's credentials for a processor, encrypted.

    They come as one JSON object on standard input, or from variables such as LOOP_STRIPE_SECRET_KEY, or are asked for.
    A webhook secret that is replaced goes on counting for 48 hours.

    Example: loop processor set me@example.com sandbox < /dev/null
    """
    from loop.workflows import processor_configs
    from loop.workflows.processor_configs import ConfigChange

    async def work(context: "Context") -> Any:  # noqa: ANN401 - a row, printed below
        owner = await find_merchant(context, merchant)
        change = ConfigChange(is_enabled=enabled, priority=priority, is_test_mode=not live)
        credentials = _credentials(context, processor)
        config = await processor_configs.put(context, owner.id, processor, credentials=credentials, change=change)
        return config, processor_configs.warnings_about(context, config)

    config, warnings = run_work(work)
    typer.echo(f"{config.processor} is set ({config.id}).")
    for warning in warnings:
        typer.echo(warning, err=True)


@processor_app.command("list")
def list_processors(merchant: MerchantArgument, *, as_json: AsJson = False) -> None:
    """List a merchant's processors, without their credentials."""
    from loop.workflows import processor_configs

    async def work(context: "Context") -> list[Any]:
        return await processor_configs.list_all(context, (await find_merchant(context, merchant)).id)

    rows = [(c.id, c.processor, c.is_enabled, c.priority, c.is_test_mode) for c in run_work(work)]
    print_rows(("id", "processor", "enabled", "priority", "testMode"), rows, as_json=as_json)


@order_app.command("list")
def list_orders(
    merchant: MerchantArgument,
    *,
    status: Annotated[str | None, typer.Option(help="Only orders of this status.")] = None,
    live: Annotated[bool | None, typer.Option("--live/--test", help="Live once there is a live account.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=LIST_LIMIT, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List a merchant's orders of one mode, newest first."""
    from loop.storage import orders
    from loop.workflows.processor_configs import usual_mode

    async def work(context: "Context") -> list[Any]:
        owner = await find_merchant(context, merchant)
        async with context.database.reading() as reader:
            is_test = await usual_mode(reader, owner.id) == "test" if live is None else not live
            wanted = orders.OrderFilter(status=status, is_test=is_test)
            return await orders.list_after(reader, owner.id, wanted, before_id=None, limit=limit)

    rows = [(o.id, o.external_id, str(o.amount), str(o.status), o.processor, o.created_at) for o in run_work(work)]
    print_rows(("id", "externalId", "amount", "status", "processor", "createdAt"), rows, as_json=as_json)


@order_app.command("show")
def show_order(order_id: str, *, as_json: AsJson = False) -> None:
    """Show what became of an order: attempts and why they were routed so, money, events and deliveries."""
    from loop.workflows import timeline

    async def work(context: "Context") -> Any:  # noqa: ANN401 - printed below
        return await timeline.find(context, order_id)

    order, entries = run_work(work)
    if not as_json:
        disputed = Money(order.amount_disputed_minor, order.currency)
        besides = f"  {disputed} disputed" if disputed.amount_minor else ""
        typer.echo(f"{order.id}  {order.amount}  {order.status}{besides}")
    rows = [(entry.at, entry.kind, entry.title, dict(entry.details)) for entry in entries]
    print_rows(("at", "kind", "what", "details"), rows, as_json=as_json)
