"""Roles: processes of `loop serve` that share a PostgreSQL and a Redis, each begun as an operator begins it."""

import asyncio
import os
import secrets
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.houses import GONE, TIME_S, free_port


@dataclass
class Part:
    """One process of `loop serve`."""

    process: Process
    url: str
    log: Path

    async def end(self, number: int = signal.SIGTERM, *, within_s: float = TIME_S) -> int:
        """Send a signal and return the exit code; TimeoutError when it does not end in time."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), within_s)

    def said(self) -> str:
        """Return what it has written."""
        return self.log.read_text("utf-8")


@dataclass
class Estate:
    """An installation of several processes, and a client of theirs."""

    folder: Path
    environment: Mapping[str, str]
    session: aiohttp.ClientSession
    parts: list[Part] = field(default_factory=list)

    async def begin(self, *arguments: str, **settings: str) -> Part:
        """Start a process and wait until it is ready."""
        port = free_port()
        log = self.folder / f"{port}.log"
        with log.open("w", encoding="utf-8") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "loop", "serve", "--port", str(port), *arguments),
                env={**self.environment, **settings},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        part = Part(process, f"http://127.0.0.1:{port}", log)
        self.parts.append(part)
        async with asyncio.timeout(TIME_S):
            while await self.status(part, "/health/ready") != 200:
                assert process.returncode is None, part.said()
                await asyncio.sleep(0.05)
        return part

    async def run(self, *arguments: str, piped: str = "", **settings: str) -> tuple[int, str, str]:
        """Run a command to its end; return its exit code and what it wrote on its two outputs."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loop", *arguments),
            env={**self.environment, **settings},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, said = await asyncio.wait_for(process.communicate(piped.encode()), TIME_S)
        assert process.returncode is not None
        return process.returncode, out.decode(), said.decode()

    async def open_shop(self, api: Part, webhook_url: str) -> str:
        """Make a merchant who is paid through the sandbox and told at an address; return an access token."""
        new = {"name": "Shop", "email": "a@example.com", "password": "a long password"}
        token = str((await self.call(api, "", "POST", "/api/auth/register", new))["token"])
        await self.call(api, token, "POST", "/api/processors/sandbox", {"credentials": {"webhookSecret": "whsec_1"}})
        await self.call(api, token, "POST", "/api/webhook-endpoints", {"url": webhook_url})
        return token

    async def call(self, part: Part, token: str, method: str, path: str, content: object = None) -> Any:
        """Return what the API answers."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.session.request(method, f"{part.url}{path}", json=content, headers=headers) as answer:
            body = await answer.json()
            assert answer.status < 300, (path, body)
            return body

    async def status(self, part: Part, path: str) -> int:
        """Return the status of an answer; 0 without one."""
        try:
            async with self.session.get(f"{part.url}{path}", allow_redirects=False) as answer:
                return answer.status
        except GONE:
            return 0


@asynccontextmanager
async def estate(folder: Path, database_url: str, redis_url: str) -> AsyncIterator[Estate]:
    """Yield an installation without processes; end those that it has in the end."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {
        **kept,
        "LOOP_DATA_DIR": str(folder / "loop"),
        "DATABASE_URL": database_url,
        "LOOP_DATABASE_POOL_SIZE": "8",
        "REDIS_URL": redis_url,
        "JWT_SECRET": secrets.token_hex(32),
        "ENCRYPTION_KEY": secrets.token_hex(32),
        "LOOP_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
        "LOOP_LOG_FORMAT": "json",
    }
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIME_S)) as session:
        made = Estate(folder, environment, session)
        try:
            yield made
        finally:
            for part in made.parts:
                if part.process.returncode is None:
                    await part.end(signal.SIGKILL)
