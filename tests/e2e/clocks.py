"""The clock that a test sets forward for every process at once: Loop, the stand-in processors, the customers."""

import mmap
import struct
import time
from datetime import UTC, datetime
from pathlib import Path

_AHEAD_NS = struct.Struct("q")


class SharedClock:
    """The machine's clock, and by how much it was set forward: a number in a file that all processes have open."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.exists():
            self.path.write_bytes(_AHEAD_NS.pack(0))
        with self.path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _AHEAD_NS.size)

    def time_ns(self) -> int:
        """Return nanoseconds since 1970."""
        (ahead_ns,) = _AHEAD_NS.unpack(self._page)
        return time.time_ns() + int(ahead_ns)

    def now(self) -> datetime:
        """Return the time, aware, in UTC."""
        return datetime.fromtimestamp(self.time_ns() / 1e9, UTC)

    def forward(self, seconds: float) -> None:
        """Set the clock forward, for everybody and at once."""
        (ahead_ns,) = _AHEAD_NS.unpack(self._page)
        self._page[:] = _AHEAD_NS.pack(ahead_ns + int(seconds * 1e9))

    def seconds_until(self, moment: str) -> float:
        """Return how far away a time is that was written down as ISO 8601; negative when it is past."""
        return (datetime.fromisoformat(moment) - self.now()).total_seconds()
