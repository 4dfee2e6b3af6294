"""Connections over all addresses of a host, and not over those that are dead. Runs in a worker.

libcurl alone would take the first address for every connection, as long as that one answers; and connections are kept
for days. Here each new connection begins its search at another address, and goes on with the next where that one does
not answer, as ever: both families, certificates and names are libcurl's business. Knows addresses and moments.
"""

from __future__ import annotations

DEAD_S = 60.0
"""For so long an address where a connection failed comes last."""


class Spread:
    """The addresses of one host and port."""

    def __init__(self, host: str, port: int, first: int) -> None:
        """
        Args:
            first: where to begin; best another number in each worker.
        """
        self._place = f"{host}:{port}"
        self._next = first
        self._addresses: tuple[str, ...] = ()
        self._dead_until_s: dict[str, float] = {}

    def set(self, addresses: tuple[str, ...]) -> None:
        """What the host has now."""
        if addresses != self._addresses:
            self._addresses = addresses
            self._dead_until_s = {at: until_s for at, until_s in self._dead_until_s.items() if at in addresses}

    def order(self, now_s: float) -> list[str]:
        """The addresses, in the order in which the next connection shall try them."""
        self._next += 1
        known = self._addresses
        begin = self._next % len(known)
        turned = known[begin:] + known[:begin]
        return sorted(turned, key=lambda at: max(0.0, self._dead_until_s.get(at, 0.0) - now_s))

    def entry(self, order: list[str]) -> str:
        """The order in libcurl's words (CURLOPT_RESOLVE); the plus lets it be forgotten as any other."""
        return f"+{self._place}:{','.join(f'[{at}]' if ':' in at else at for at in order)}"

    def on_connected(self, order: list[str], address: str, now_s: float) -> None:
        """A new connection stands, to this address: those that came before it do not answer."""
        for at in order[: order.index(address)] if address in order else ():
            self._dead_until_s[at] = now_s + DEAD_S
        self._dead_until_s.pop(address, None)

    def on_failed(self, order: list[str], address: str, now_s: float) -> None:
        """A transfer failed: on a connection to this address, or, where it is "", before there was one."""
        self._dead_until_s[address or order[0]] = now_s + DEAD_S
