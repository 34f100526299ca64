"""The HTTP client of callbacks: it reaches public addresses, and others only where a setting allows them.

A URL is checked where the connection is made, on the resolved address, and that very address is dialled: a name that
resolves differently the second time gains nothing. No redirects, no proxies of the environment, no unix sockets.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpcore2

from app.errors import InvalidRequest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# `is_global` of older Pythons calls some of these global (the table was corrected with CVE-2024-4032), and cloud
# metadata services live in them.
_NEVER_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "100.64.0.0/10", "198.18.0.0/15", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")
)


class Allowance:
    """Which hosts callbacks may reach: every public address, and what CALLBACK_ALLOWED_HOSTS names."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._names: set[str] = set()
        self._networks: list[Network] = []
        for entry in allowed:
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                self._names.add(entry.lower().rstrip("."))

    def host(self, name: str) -> bool:
        """Whether a host is allowed by name, whatever its address."""
        return name.lower().rstrip(".") in self._names

    def address(self, text: str) -> bool:
        """Whether an IP address may be dialled."""
        address: Address = ipaddress.ip_address(text.partition("%")[0])
        if any(address in network for network in self._networks if network.version == address.version):
            return True
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is not None:
            return self.address(str(mapped))
        if any(address in network for network in _NEVER_PUBLIC if network.version == address.version):
            return False
        return address.is_global and not address.is_multicast

    def check_url(self, url: str) -> None:
        """Raises InvalidRequest for a URL that can never be delivered to; names are resolved only when sending."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
            parts = urlsplit("")
        fault = None
        if parts.scheme not in {"http", "https"} or not host:
            fault = "it is no http or https URL with a host"
        elif not url.isascii() or not url.isprintable() or " " in url:
            fault = "it holds a character that must be percent-encoded"
        elif parts.username is not None or parts.password is not None:
            fault, url = "it holds credentials", host
        elif not self.host(host) and (literal := _literal_address(host)) and not self.address(literal):
            fault = "it points at this machine or a private network"
        if fault:
            raise InvalidRequest(
                f"callback_url cannot be used: {fault}",
                expected="an http or https URL of a public host, or of one in CALLBACK_ALLOWED_HOSTS",
                received=url[:200],
                hint="an operator can allow internal receivers: CALLBACK_ALLOWED_HOSTS=10.0.0.0/8,hooks.internal",
                code="CALLBACK_URL_REFUSED",
            )


class _GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Resolves, refuses unless every address is allowed, and dials exactly the address that was checked."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore2.AsyncNetworkStream:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if not self._allowance.host(host):
            for address in addresses:
                if not self._allowance.address(address):
                    raise httpcore2.ConnectError(
                        f"{host} is {address}: this machine or a private network (see CALLBACK_ALLOWED_HOSTS)"
                    )
        return await self._inner.connect_tcp(addresses[0], port, *args, **kwargs)

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.ConnectError("callbacks do not go to unix sockets")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class GuardedClient:
    """Posts callbacks, and does nothing else."""

    def __init__(self, allowance: Allowance) -> None:
        self._pool = httpcore2.AsyncConnectionPool(network_backend=_GuardedBackend(allowance), keepalive_expiry=30)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str]]:
        """Status and headers (lower-case names) of the answer, whose body is not read."""
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        parts = urlsplit(url)
        fields += [(b"host", parts.netloc.encode()), (b"content-length", str(len(body)).encode())]
        async with self._pool.stream("POST", url, headers=fields, content=body) as answer:
            return answer.status, {
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers
            }

    async def close(self) -> None:
        await self._pool.aclose()


def _literal_address(host: str) -> str | None:
    """The address that a host *is*, also in the old forms that resolvers take (2130706433, 0x7f.1)."""
    if host.rstrip(".").lower().endswith("localhost"):
        return "127.0.0.1"  # RFC 6761: always the loopback
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host)) if host[0].isdigit() and " " not in host else None
    except OSError:
        return None
