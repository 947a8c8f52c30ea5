"""Throttling of guesses: how long a caller waits after failed tries, remembered in a table of bounded size."""

import ipaddress
import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

MAX_ENTRIES: Final = 10_000
"""How many keys a table remembers; the one that was quiet longest is forgotten first."""

MAX_DELAY_S: Final = 60
"""The longest wait: nobody is locked out for good, and a guesser gets at most 1,440 tries a day."""

FORGOTTEN_AFTER: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class _Tries:
    failures: int
    last_at: datetime
    is_told: bool = False


class Throttle:
    """Failed tries by key: the first `free` ones cost nothing, then the wait doubles from one second.

    A try counts as failed when it begins, so that tries made at once count as well; who succeeds takes it back.
    """

    def __init__(self, free: int) -> None:
        self._free = free
        self._tries: OrderedDict[str, _Tries] = OrderedDict()

    def wait_s(self, key: str, now: datetime) -> int:
        """Return the whole seconds until the key may try again, 0 when it may now."""
        tries = self._tries.get(key)
        if tries is None or tries.failures < self._free:
            return 0
        delay_s = min(MAX_DELAY_S, 1 << min(tries.failures - self._free, 16))
        return max(0, math.ceil(delay_s - (now - tries.last_at).total_seconds()))

    def tell_once(self, key: str, now: datetime) -> bool:
        """Tell whether the key waits and this was not said yet since its last try."""
        tries = self._tries.get(key)
        if tries is None or tries.is_told or not self.wait_s(key, now):
            return False
        self._tries[key] = replace(tries, is_told=True)
        return True

    def begin(self, key: str, now: datetime) -> None:
        """Count a try."""
        tries = self._tries.pop(key, None)
        is_fresh = tries is None or now - tries.last_at >= FORGOTTEN_AFTER
        self._tries[key] = _Tries(1 if tries is None or is_fresh else tries.failures + 1, now)
        if len(self._tries) > MAX_ENTRIES:
            self._tries.popitem(last=False)

    def take_back(self, key: str) -> None:
        """Uncount one try that did not fail."""
        tries = self._tries.get(key)
        if tries is not None and tries.failures > 1:
            self._tries[key] = _Tries(tries.failures - 1, tries.last_at)
        else:
            self.forget(key)

    def forget(self, key: str) -> None:
        """Forget all tries of a key."""
        self._tries.pop(key, None)


def address_key(address: str) -> str:
    """Return the key under which a network address is counted: an IPv6 one by its /64, which one site owns."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
