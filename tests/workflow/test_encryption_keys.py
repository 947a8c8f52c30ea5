"""Encryption keys: rotated in batches that may be cut short anywhere, and never dropped while a row is under them."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import astuple
from pathlib import Path

import pytest

from loop import config
from loop.config import Settings
from loop.domain.errors import LoopError
from loop.runtime import Chance, opened
from loop.storage import encryption_keys as rows
from loop.storage import merchants as merchant_rows
from loop.storage.keyring import DecryptionError, Keyring
from loop.storage.tables import SEALED_COLUMNS
from loop.storage.webhooks import first_endpoint
from loop.workflows import encryption_keys, merchants, processor_configs, webhook_endpoints
from loop.workflows.context import Context
from loop.workflows.encryption_keys import Rotation
from loop.workflows.processor_configs import ConfigChange, account_of
from loop.workflows.webhooks import reveal_secret, signing_secrets
from tests.builders import Clock, open_shop, settings_for
from tests.servers import run_sql

OLD = "seals 0123456789abcdef0123456789abcdef"
NEW = "seals anew 0123456789abcdef0123456789ab"
OLD_ID, NEW_ID = Keyring([OLD]).current_id, Keyring([NEW]).current_id
SHOPS = 3


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Callable[..., Settings]:
    def make(key: str, *previous: str) -> Settings:
        return settings_for(
            database_url, tmp_path, encryption_key=key, encryption_keys_previous=",".join(previous) or None
        )

    return make


def open_loop(
    settings: Settings,
    reached: Callable[[str], None] = lambda _: None,
    *,
    is_rotating: bool = False,
    may_lack_keys: bool = False,
) -> AbstractAsyncContextManager[Context]:
    """Open a Loop whose clock stands at midnight, so that no secret expires between two of them."""
    chance = Chance(now=Clock().now, reached=reached)
    return opened(settings, chance, is_rotating=is_rotating, may_lack_keys=may_lack_keys)


def rotating(
    settings: Settings, reached: Callable[[str], None] = lambda _: None
) -> AbstractAsyncContextManager[Context]:
    """Open a Loop that has the keys to itself."""
    return open_loop(settings, reached, is_rotating=True)


async def rotate(context: Context, *, is_new: bool = False) -> Rotation:
    return await encryption_keys.rotate(context, is_new=is_new, progress=lambda _done, _total: None)


async def fill(settings: Settings) -> dict[str, str]:
    """Make merchants who have stored everything that is encrypted; return each one's secrets as they must stay."""
    async with open_loop(settings) as context:
        for number in range(1, SHOPS + 1):
            await open_shop(context, Clock(), number=number, webhook_url=f"http://127.0.0.1:1/{number}")
            for secret in ("whsec_first", f"whsec_{number}"):
                await processor_configs.put(
                    context,
                    f"mer_{number}",
                    "sandbox",
                    credentials={"webhookSecret": secret},
                    change=ConfigChange(),
                )
            for endpoint in await webhook_endpoints.list_endpoints(context, f"mer_{number}"):
                await webhook_endpoints.rotate_secret(context, endpoint.merchant_id, endpoint.id)
        return await secrets_in(context)


async def secrets_in(context: Context) -> dict[str, str]:
    """Open everything that is encrypted."""
    found = {}
    for number in range(1, SHOPS + 1):
        profile = await merchants.get_profile(context, f"mer_{number}")
        assert profile.endpoint is not None
        found[f"endpoint {number}"] = str(astuple(signing_secrets(context, profile.endpoint)))
        (account,) = await processor_configs.list_all(context, f"mer_{number}")
        found[f"account {number}"] = str(account_of(context, account).credentials)
        found[f"secrets {number}"] = str(processor_configs.webhook_secrets(context, account))
    return found


def execute(database_url: str, statement: str) -> None:
    """Run one statement by the bare driver."""
    if database_url.startswith("postgresql:"):
        run_sql(database_url, statement)
        return
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        connection.execute(statement)


async def keys_in_use(context: Context) -> dict[str, int]:
    return {key.key_id: key.count for key in await encryption_keys.status(context)}


async def test_a_rotation_brings_every_encrypted_column_under_the_newest_key(
    settings: Callable[..., Settings],
) -> None:
    secrets = await fill(settings(OLD))
    async with rotating(settings(NEW, OLD)) as context:
        before = await encryption_keys.status(context)
        assert [(key.key_id, key.is_current, key.count) for key in before] == [
            (NEW_ID, True, 0),
            (OLD_ID, False, len(SEALED_COLUMNS) * SHOPS),
        ]
        # A column that this test does not fill would be one whose rotation nobody has watched.
        assert before[1].rows == {f"{table}.{column}": SHOPS for table, column in SEALED_COLUMNS}
        assert await secrets_in(context) == secrets  # the old key still reads
        done = await rotate(context)
        assert (done.key_id, done.rewrapped, done.remaining) == (NEW_ID, len(SEALED_COLUMNS) * SHOPS, 0)
        assert (await rotate(context)).rewrapped == 0
    async with open_loop(settings(NEW)) as context:
        assert await secrets_in(context) == secrets
        assert await keys_in_use(context) == {NEW_ID: len(SEALED_COLUMNS) * SHOPS}


async def test_a_half_finished_rotation_reads_everywhere_and_goes_on_where_it_was(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = await fill(settings(OLD))
    monkeypatch.setattr(encryption_keys, "BATCH", 1)
    total = len(SEALED_COLUMNS) * SHOPS
    batches = 0

    def die(point: str) -> None:
        nonlocal batches
        assert point == "keys.batch_rewrapped"
        batches += 1
        if batches == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with rotating(settings(NEW, OLD), die) as context:
            await rotate(context)
    async with rotating(settings(NEW, OLD)) as context:
        assert await keys_in_use(context) == {NEW_ID: 4, OLD_ID: total - 4}
        assert await secrets_in(context) == secrets
        assert (await rotate(context)).rewrapped == total - 4
    async with open_loop(settings(NEW)) as context:
        assert await secrets_in(context) == secrets


async def test_a_retired_key_that_is_still_needed_is_refused_at_start_with_what_to_do(
    settings: Callable[..., Settings],
) -> None:
    await fill(settings(OLD))
    with pytest.raises(LoopError, match=f"{OLD_ID}.*encryption_keys_previous.*loop keys rotate") as caught:
        async with open_loop(settings(NEW)):
            pass
    assert caught.value.code == "encryption_key_needed"
    async with open_loop(settings(NEW), may_lack_keys=True) as context:
        statuses = await encryption_keys.status(context)
        assert [(key.key_id, key.is_loaded) for key in statuses] == [(NEW_ID, True), (OLD_ID, False)]
        with pytest.raises(DecryptionError) as refused:
            await secrets_in(context)
        assert refused.value.code == "encryption_key_missing"


@pytest.mark.parametrize(("table", "column"), sorted(SEALED_COLUMNS))
async def test_a_ciphertext_moved_to_another_merchant_s_row_is_refused_and_stops_no_rotation(
    settings: Callable[..., Settings], database_url: str, table: str, column: str
) -> None:
    await fill(settings(OLD))
    source = f"SELECT {column} FROM {table} WHERE merchant_id = 'mer_2'"  # noqa: S608 - our own names
    execute(database_url, f"UPDATE {table} SET {column} = ({source}) WHERE merchant_id = 'mer_1'")  # noqa: S608
    async with rotating(settings(NEW, OLD)) as context:
        with pytest.raises(DecryptionError) as refused:
            await secrets_in(context)
        assert refused.value.code == "ciphertext_refused"
        done = await rotate(context)
        assert [(place.table, place.column, place.merchant_id) for place in done.unreadable] == [
            (table, column, "mer_1")
        ]
        assert (done.rewrapped, done.remaining) == (len(SEALED_COLUMNS) * SHOPS - 1, 1)


async def test_a_row_that_names_no_key_keeps_nobody_from_starting(
    settings: Callable[..., Settings], database_url: str
) -> None:
    await fill(settings(OLD))
    execute(database_url, "UPDATE processor_configs SET credentials = 'v2.broken' WHERE merchant_id = 'mer_1'")
    async with open_loop(settings(OLD)) as context:
        (account,) = await processor_configs.list_all(context, "mer_2")
        assert account_of(context, account).credentials


async def test_a_secret_that_is_replaced_meanwhile_stays_the_new_one(settings: Callable[..., Settings]) -> None:
    await fill(settings(OLD))
    names = ("processor_configs", "credentials")
    async with open_loop(settings(NEW, OLD)) as context:
        async with context.database.reading() as reader:
            ((place, before),) = await rows.under_other_keys(reader, names, current_id=NEW_ID, after_id="", limit=1)
        merchant_id = place.merchant_id
        credentials = {"webhookSecret": "whsec_new"}
        await processor_configs.put(context, merchant_id, "sandbox", credentials=credentials, change=ConfigChange())
        after = context.keyring.rewrap(before, bound_to=place)
        async with context.database.transaction() as session:
            assert not await rows.replace(session, place, before=before, after=after)
        (account,) = await processor_configs.list_all(context, merchant_id)
        assert account_of(context, account).credentials == credentials


async def test_who_configures_one_account_at_once_leaves_credentials_that_open(context: Context, clock: Clock) -> None:
    await open_shop(context, clock)
    await asyncio.gather(
        *(
            processor_configs.put(
                context, "mer_1", "stripe", credentials={"secretKey": f"sk_test_{number}"}, change=ConfigChange()
            )
            for number in range(10)
        )
    )
    for config_row in await processor_configs.list_all(context, "mer_1"):
        assert account_of(context, config_row).credentials


# Keys that Loop has made itself, in the data directory.


def own_settings(folder: Path) -> Settings:
    """Return settings without any configuration but the data directory."""
    return config.load({"data_dir": str(folder)}, environ={})


async def open_merchant(settings: Settings) -> str:
    """Make a merchant; return its webhook secret."""
    async with open_loop(settings) as context:
        made = await merchants.create(context, merchants.NewMerchant("Shop", "a@example.com", "correct horse"))
        assert made.endpoint is not None
        return reveal_secret(context, made.endpoint)


async def webhook_secret(settings: Settings) -> str:
    """Return the webhook secret of the only merchant."""
    async with open_loop(settings) as context, context.database.reading() as reader:
        (merchant,) = await merchant_rows.list_all(reader, 10)
        endpoint = await first_endpoint(reader, merchant.id)
        assert endpoint is not None
        return reveal_secret(context, endpoint)


async def test_a_generated_key_is_replaced_and_then_dropped(tmp_path: Path) -> None:
    before = own_settings(tmp_path)
    secret = await open_merchant(before)
    async with rotating(before) as context:
        done = await rotate(context, is_new=True)
    assert (done.rewrapped, done.remaining, done.has_dropped_keys) == (1, 0, True)
    after = own_settings(tmp_path)
    assert after.encryption_key != before.encryption_key
    assert after.encryption_keys_previous == ()
    assert after.jwt_secret == before.jwt_secret
    assert (tmp_path / "secrets.toml").stat().st_mode & 0o777 == 0o600
    assert before.encryption_key.reveal() not in (tmp_path / "secrets.toml").read_text()
    assert await webhook_secret(after) == secret


async def test_a_killed_rotation_of_generated_keys_keeps_the_old_one_until_it_is_finished(tmp_path: Path) -> None:
    before = own_settings(tmp_path)
    secret = await open_merchant(before)

    def die(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with rotating(before, die) as context:
            await rotate(context, is_new=True)
    halfway = own_settings(tmp_path)
    assert halfway.encryption_keys_previous == (before.encryption_key,)
    assert await webhook_secret(halfway) == secret
    async with rotating(halfway) as context:
        done = await rotate(context)
    assert (done.rewrapped, done.has_dropped_keys) == (0, True)
    after = own_settings(tmp_path)
    assert (after.encryption_key, after.encryption_keys_previous) == (halfway.encryption_key, ())
    assert await webhook_secret(after) == secret


async def test_a_generated_key_that_a_broken_row_is_under_is_kept(tmp_path: Path) -> None:
    before = own_settings(tmp_path)
    await open_merchant(before)
    execute(
        before.database_url, "UPDATE webhook_endpoints SET secret = substr(secret, 1, 12) || 'A' || substr(secret, 13)"
    )
    async with rotating(before) as context:
        done = await rotate(context, is_new=True)
    assert (done.remaining, done.has_dropped_keys) == (1, False)
    assert own_settings(tmp_path).encryption_keys_previous == (before.encryption_key,)


async def test_no_new_key_is_made_where_the_keys_are_configured(settings: Callable[..., Settings]) -> None:
    async with rotating(settings(OLD)) as context:
        with pytest.raises(LoopError, match="without --new") as caught:
            await rotate(context, is_new=True)
    assert caught.value.code == "configured_encryption_key"


async def test_on_sqlite_a_rotation_has_the_keys_to_itself(tmp_path: Path) -> None:
    settings = own_settings(tmp_path)
    async with open_loop(settings), open_loop(settings):
        with pytest.raises(LoopError, match="stop it") as caught:
            async with rotating(settings):
                pass
        assert caught.value.code == "already_running"
    async with rotating(settings):
        with pytest.raises(LoopError) as caught:
            async with open_loop(settings):
                pass
        assert caught.value.code == "keys_rotating"
