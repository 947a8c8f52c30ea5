"""Schemathesis reads the API's document, makes up requests for each operation, and finds nothing wrong."""

import asyncio
import os
import secrets
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

SEED = 20_260_101
"""Fixed, so that a run can be repeated; Schemathesis prints it too."""

IS_WHOLE = "LOOP_TEST_WHOLE_CONTRACT" in os.environ
"""Whether to take minutes, as `just contract` does; the usual run leaves most of it out."""

EXAMPLES = 50 if IS_WHOLE else 5
"""How many requests are made up for each operation, besides those that each boundary of its schema asks for."""

PHASES = "examples,coverage,fuzzing,stateful" if IS_WHOLE else "examples,fuzzing,stateful"
"""Without `coverage`, the thousands of requests at the boundaries of every field."""

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
    "ignored_auth",
)
"""All but two: what fits the document may still be refused, for a state or an account that is not there; and one
merchant calls, so that nothing can be somebody else's."""

CONFIG = Path(__file__).with_name("schemathesis.toml")
DEADLINE_S = 900.0
STARTED_WITHIN_S = 30.0


@pytest.fixture
async def offline_url(database_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """Run Loop in a process of its own that reaches no other machine, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = ("READ", "WRITE", "PAY", "SIGN_IN", "WEBHOOK", "OPEN")
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        **{f"LOOP_LIMIT_{name}_PER_S": "0" for name in limits},
        "LOOP_DATA_DIR": str(tmp_path),
        "LOOP_DATABASE_URL": database_url,
        "LOOP_DATABASE_POOL_SIZE": "8",
        "LOOP_JWT_SECRET": secrets.token_hex(32),
        "LOOP_ENCRYPTION_KEY": secrets.token_hex(32),
        "LOOP_PORT": str(port),
        "LOOP_LOG_FILE": str(tmp_path / "loop.log"),
    }
    serving = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.api.offline", env=environment)
    url = f"http://127.0.0.1:{port}"
    async with asyncio.timeout(STARTED_WITHIN_S):
        while not await _answers(url):
            assert serving.returncode is None
            await asyncio.sleep(0.1)
    yield url
    serving.terminate()
    await serving.wait()


async def _answers(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/health") as answer:
            return answer.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def _token_of_a_merchant(url: str) -> str:
    """Register a merchant who pays through the sandbox."""
    who = {"name": "shop", "email": "shop@example.com", "password": "correct horse battery"}
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/api/auth/register", json=who) as answer:
            token = str((await answer.json())["token"])
        headers = {"Authorization": f"Bearer {token}"}
        async with session.post(f"{url}/api/processors/sandbox", json={"credentials": {}}, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
    return token


RUNS = {
    "each operation": ("--phases", PHASES),
    "orders by their links": ("--phases", "stateful", "--include-path-regex", "^/v1/(orders|checkout)"),
}
"""The second follows orders only: among all operations, links are chosen too rarely to get far with one."""


@pytest.mark.slow
async def test_made_up_requests_find_nothing_wrong(offline_url: str, tmp_path: Path) -> None:
    token = await _token_of_a_merchant(offline_url)
    failed = []
    for name, options in RUNS.items():
        run = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
            *("run", f"{offline_url}/openapi.json", "--header", f"Authorization: Bearer {token}"),
            *("--checks", ",".join(CHECKS), "--max-examples", str(EXAMPLES), "--seed", str(SEED)),
            *("--workers", "1", "--no-color", "--suppress-health-check", "all", *options),
            cwd=tmp_path,
            stdout=PIPE,
            stderr=STDOUT,
        )
        async with asyncio.timeout(DEADLINE_S):
            said = (await run.communicate())[0].decode()
        print(said)  # noqa: T201 - what a run that fails has to say, with its seed
        if run.returncode != 0:
            failed.append(name)
    assert not failed
