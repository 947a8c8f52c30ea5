"""Proxies: connections between programs that are slowed, frozen, broken off, cut in the middle, refused."""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Address: TypeAlias = tuple[str, int] | Path
"""Host and port, or the path of a Unix socket."""

Spoil: TypeAlias = Literal["drop before", "drop after", "cut"]
"""A request that is not passed on, an answer that is not passed on, an answer of which one half is."""

HOST = "127.0.0.1"
PIECE_BYTES = 1 << 16
CONNECTED_WITHIN_S = 5.0
GONE = (OSError, EOFError, TimeoutError)
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER so that closing says "reset" and not "the end"."""


@dataclass(eq=False)
class Pair:
    """The two connections that are one to the programs at their ends."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter

    def reset(self) -> None:
        """Break off both ends at once."""
        for each in (self.client, self.server):
            if each.transport.is_closing():
                continue
            with suppress(OSError):
                each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            each.transport.abort()

    def close(self) -> None:
        """End both ends when what was written is sent."""
        for each in (self.client, self.server):
            with suppress(*GONE):
                each.close()


class Proxy:
    """Passes every connection on to where `target` says, and what goes over it as it was told to last."""

    def __init__(self, target: Callable[[], Address]) -> None:
        self.port = 0
        self.delay_s = 0.0
        """How long each piece of a request or of an answer waits."""
        self._target = target
        self._spoils: Counter[Spoil] = Counter()
        self._passing = asyncio.Event()
        self._passing.set()
        self._pairs: set[Pair] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def accept(self) -> None:
        """Listen, from the second time on at the port of the first."""
        self._server = await asyncio.start_server(self._begin, HOST, self.port, reuse_address=True, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Break off every connection and refuse new ones, until `accept`."""
        if self._server is not None:
            self._server.close()
        self.reset()

    def reset(self) -> None:
        """Break off every connection; whoever wants it may come again."""
        for pair in list(self._pairs):
            pair.reset()

    def freeze(self) -> None:
        """Pass nothing on, until `thaw`."""
        self._passing.clear()

    def thaw(self) -> None:
        """Pass everything on that has come meanwhile."""
        self._passing.set()

    def spoil(self, how: Spoil, times: int) -> None:
        """Have this happen to the next pieces that come, so many times."""
        self._spoils[how] += times

    @property
    def is_spoiling(self) -> bool:
        """Whether something is still to be spoilt."""
        return self._spoils.total() > 0

    def unspoil(self) -> int:
        """Let what has not been spoilt yet go well; return how much that was."""
        left = self._spoils.total()
        self._spoils.clear()
        return left

    async def close(self) -> None:
        """Stop, and end every connection."""
        self.refuse()
        self.thaw()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECTED_WITHIN_S):
                answers, onwards = await _connect(self._target())
        except BaseException as error:
            writer.transport.abort()
            if isinstance(error, GONE):
                return
            raise
        pair = Pair(writer, onwards)
        self._pairs.add(pair)
        try:
            await asyncio.gather(
                self._pump(reader, onwards, pair, is_answer=False), self._pump(answers, writer, pair, is_answer=True)
            )
        finally:
            self._pairs.discard(pair)
            pair.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: Pair, *, is_answer: bool
    ) -> None:
        try:
            while piece := await reader.read(PIECE_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._passing.wait()
                how = self._next_spoil(is_answer=is_answer)
                if how == "cut":
                    writer.write(piece[: len(piece) // 2])
                    pair.close()
                    return
                if how is not None:
                    pair.reset()
                    return
                writer.write(piece)
                await writer.drain()
        except GONE:
            pair.reset()
        else:
            pair.close()

    def _next_spoil(self, *, is_answer: bool) -> Spoil | None:
        kinds: tuple[Spoil, ...] = ("drop after", "cut") if is_answer else ("drop before",)
        how = next((each for each in kinds if self._spoils[each] > 0), None)
        if how is not None:
            self._spoils[how] -= 1
        return how


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, Path):
        return await asyncio.open_unix_connection(str(address))
    return await asyncio.open_connection(*address)
