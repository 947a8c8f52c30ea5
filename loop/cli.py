"""The commands: parse, call one workflow or read, print. Heavy imports wait until a command needs them."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_api_keys import key_app
from loop.cli_audit import audit_app
from loop.cli_backup import backup, restore
from loop.cli_checkout import checkout_app
from loop.cli_console import LOOK_AFTER, SELL, SET_UP, TELL, AsJson, Panels, flags, load_settings, print_done
from loop.cli_doctor import doctor
from loop.cli_events import event_app
from loop.cli_export import export_app
from loop.cli_init import config_app, init
from loop.cli_jobs import jobs_app
from loop.cli_keys import keys_app
from loop.cli_listen import listen, trigger
from loop.cli_merchants import merchant_app
from loop.cli_migrate import migrate_app
from loop.cli_orders import order_app
from loop.cli_processors import processor_app
from loop.cli_reconcile import reconcile
from loop.cli_routing import routing_app
from loop.cli_webhooks import webhook_app
from loop.domain.errors import ErrorKind, LoopError, invalid
from loop.domain.roles import Role

if TYPE_CHECKING:
    from loop.config import Settings
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

HEALTH_WITHIN_S = 4.0

app = typer.Typer(
    name="loop",
    cls=Panels,
    help="Loop routes payments: one program for the API, the jobs and the pages.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(rich_help_panel=SET_UP)(init)
app.command(rich_help_panel=SET_UP)(doctor)
app.add_typer(config_app, name="config", rich_help_panel=SET_UP)
app.add_typer(merchant_app, name="merchant", rich_help_panel=SELL)
app.add_typer(key_app, name="api-key", rich_help_panel=SELL)
app.add_typer(processor_app, name="processor", rich_help_panel=SELL)
app.add_typer(routing_app, name="routing", rich_help_panel=SELL)
app.add_typer(order_app, name="order", rich_help_panel=SELL)
app.add_typer(checkout_app, name="checkout", rich_help_panel=SELL)
app.command(rich_help_panel=SELL)(reconcile)
app.add_typer(webhook_app, name="webhook", rich_help_panel=TELL)
app.add_typer(event_app, name="event", rich_help_panel=TELL)
app.command(rich_help_panel=TELL)(listen)
app.command(rich_help_panel=TELL)(trigger)
app.add_typer(jobs_app, name="jobs", rich_help_panel=LOOK_AFTER)
app.add_typer(migrate_app, name="migrate", rich_help_panel=LOOK_AFTER)
app.command(rich_help_panel=LOOK_AFTER)(backup)
app.command(rich_help_panel=LOOK_AFTER)(restore)
app.add_typer(export_app, name="export", rich_help_panel=LOOK_AFTER)
app.add_typer(keys_app, name="keys", rich_help_panel=LOOK_AFTER)
app.add_typer(audit_app, name="audit", rich_help_panel=LOOK_AFTER)


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


def _installed_version() -> str:
    from importlib.metadata import version as installed_version

    return installed_version("loop")


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(_installed_version())
        raise typer.Exit


@app.callback()
def _options(
    config: Annotated[Path | None, typer.Option(help="The TOML file with the settings.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the SQLite file and the secrets are.")] = None,
    *,
    is_asked_version: Annotated[  # noqa: ARG001 - its callback answers
        bool, typer.Option("--version", help="Print the version.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    flags.update(config=config, data_dir=data_dir)


@app.command(rich_help_panel=SET_UP)
def version(*, as_json: AsJson = False) -> None:
    """Print the version.

    Example: loop version --json
    """
    told = _installed_version()
    print_done({"version": told}, told, as_json=as_json)


@app.command(rich_help_panel=SET_UP)
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    *,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM), to serve HTTPS by TLS 1.3.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's private key (PEM).")] = None,
    only: Annotated[
        list[Role] | None, typer.Option(help="Run this part and no other, with PostgreSQL; may be given twice.")
    ] = None,
) -> None:
    """Run the API, the jobs and the pages, or some of them, until Ctrl-C or SIGTERM.

    Example: loop serve --only worker
    """
    import asyncio
    import signal

    import uvloop

    from loop.runtime import running, spare_collector
    from loop.telemetry import configure

    settings = load_settings(host=host, port=port, tls_cert=tls_cert, tls_key=tls_key)
    roles = frozenset(only or Role)
    configure(level=settings.log_level, log_format=settings.log_format, log_file=settings.log_file)

    async def until_told() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with running(settings, roles=roles, stopping=stop) as serving:
            _say_where(settings, serving.url, roles)
            await _say_first(serving.context, roles)
            spare_collector()
            await stop.wait()

    uvloop.run(until_told())


def _say_where(settings: "Settings", url: str, roles: Collection[Role]) -> None:
    where = settings.sqlite_path or settings.shown("database_url")
    typer.echo(f"Loop serves {url}", err=True)
    typer.echo(f"  runs       {', '.join(sorted(roles))}", err=True)
    typer.echo(f"  database   {where}", err=True)
    if settings.is_sqlite:
        typer.echo(f"  data       {settings.data_dir} (secrets.toml there is worth a backup)", err=True)


async def _say_first(context: "Context", roles: Collection[Role]) -> None:
    """Say how the first merchant is made, or in a browser: a link that makes it, which only a terminal is told."""
    from loop.server.dashboard.pages.welcome import link_of
    from loop.storage import merchants

    async with context.database.reading() as reader:
        if await merchants.list_all(reader, 1):
            return
    typer.echo("  next       loop merchant create --name 'My shop' --email me@example.com", err=True)
    if Role.DASHBOARD in roles and sys.stderr.isatty() and (link := await link_of(context)):
        typer.echo(f"  or open    {link}", err=True)


@app.command(rich_help_panel=LOOK_AFTER)
def health(*, as_json: AsJson = False) -> None:
    """Ask the `loop serve` that has these settings, on this machine, whether it can serve; ends with 8 if not.

    It asks GET /health/ready, once: what a container's or a supervisor's health check needs.

    Example: loop health
    """
    import ssl
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    from loop.domain.errors import unavailable

    settings = load_settings(makes=False)
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
    print_done({"ready": True, "host": host, "port": settings.port}, "ready", as_json=as_json)


@app.command(rich_help_panel=SET_UP)
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it serving, and print what to try.")] = False,
    port: Annotated[int | None, typer.Option(help="Port to listen on; a free one without it.")] = None,
    *,
    database_url: Annotated[str | None, typer.Option(help="An empty PostgreSQL database to run on.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="A Redis, which goes with it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Watch orders go through: charged by a stand-in Stripe, told to a shop, the two ledgers compared.

    Loop runs in one process on a SQLite file, which is removed in the end. With --database-url and --redis-url it is
    three processes, one for each part, on a database that must hold no merchant yet; its orders stay there. With --json
    the story is on standard error, and how it ended on standard output.

    Example: loop demo --keep
    """
    from loop.cli_demo import Shared, run_demo

    if (database_url is None) is not (redis_url is None):
        raise invalid("validation_failed", "Give both --database-url and --redis-url, or none of them.")
    shared = None if database_url is None or redis_url is None else Shared(database_url, redis_url)
    raise typer.Exit(run_demo(keep=keep, port=port, shared=shared, as_json=as_json))
