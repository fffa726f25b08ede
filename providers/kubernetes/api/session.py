"""The HTTP session to an API server, with its certificates and the proxy in between, if there is one.

As kubectl does it and not as a web client would: ``~/.netrc`` is not read (its entry would collide with the
bearer token), ``no_proxy`` understands address ranges, and a certificate is verified as Go verifies it.
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
from base64 import b64encode
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode, urlsplit
from urllib.request import getproxies_environment

import aiohttp

from nighttrain.providers.errors import ClusterUnreachableError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aiohttp import ClientResponse, ClientSession, ClientTimeout
    from kubernetes_asyncio.client import Configuration

# One object of a watch is one line; etcd holds objects of up to 1.5 MiB.
READ_BUFFER_BYTES = 2**21


@dataclass(frozen=True)
class Session:
    """One pool of connections to one API server."""

    server: str
    proxy: str | None
    """Its address, without credentials."""
    _http: ClientSession = field(repr=False)
    _extra: dict[str, Any] = field(repr=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._http.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Any,
        limits: ClientTimeout,
    ) -> ClientResponse:
        """Send one request; the caller reads and closes the answer."""
        return await self._http.request(
            method,
            f"{self.server}{path}" + (f"?{urlencode(query)}" if query else ""),
            headers=headers,
            data=None if body is None else json.dumps(body),
            timeout=limits,
            # An API server redirects nobody: what does is a login page, and it must not get the token.
            allow_redirects=False,
            **self._extra,
        )


def open_session(configuration: Configuration, source: str) -> Session:
    """Make the pool; nothing is sent yet.

    :param source: where the configuration comes from, for messages
    :raises ClusterUnreachableError: a certificate or key cannot be used
    :raises ConfigurationError: a proxy of a kind that is not supported
    """
    server = str(configuration.host).rstrip("/")
    proxy = configuration.proxy or environment_proxy(server)
    if proxy and urlsplit(proxy).scheme not in ("http", "https"):
        raise ConfigurationError(
            "proxy-url" if configuration.proxy else "https_proxy",
            urlsplit(proxy).scheme,
            "only http and https proxies are supported on the way to an API server",
        )
    extra: dict[str, Any] = {}
    if proxy:
        proxy, extra = _proxy(proxy)
    # Reading a system's authorities takes longer than ten requests: not where nothing is encrypted.
    encrypted = any(urlsplit(address or "").scheme == "https" for address in (server, proxy))
    try:
        context = _tls(configuration) if encrypted else False
    except OSError as error:  # ssl.SSLError is one: a certificate file that is missing or malformed
        raise ClusterUnreachableError(f"the certificates of {source} cannot be used: {error}") from error
    if configuration.tls_server_name:
        extra["server_hostname"] = configuration.tls_server_name
    # Watches hold a connection each: a bounded pool would let waiting tasks starve short requests.
    connector = aiohttp.TCPConnector(limit=0, ssl=context)
    http = aiohttp.ClientSession(connector=connector, trust_env=False, read_bufsize=READ_BUFFER_BYTES)
    return Session(server, proxy, http, extra)


def _proxy(address: str) -> tuple[str, dict[str, Any]]:
    """The address without its credentials, which errors would show, and what aiohttp needs to use it."""
    parts = urlsplit(address)
    authority = parts.netloc.rpartition("@")[2]
    plain = f"{parts.scheme}://{authority}"
    extra: dict[str, Any] = {"proxy": plain}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        extra["proxy_headers"] = {"Proxy-Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
    return plain, extra


def _tls(configuration: Configuration) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    # From Python 3.13 on the default also demands key identifiers, which the authorities of many clusters
    # have never had; kubectl takes them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def environment_proxy(server: str) -> str | None:
    """The proxy that the environment names for a server, unless ``no_proxy`` excepts it.

    Entries of ``no_proxy`` are hosts, domains (with or without a leading dot), addresses, and ranges such as
    ``10.0.0.0/8``. The machine itself is never reached through a proxy.
    """
    target = urlsplit(server)
    host = (target.hostname or "").lower()
    found = getproxies_environment()
    proxy = found.get(target.scheme)
    if (
        not proxy
        or host == "localhost"
        or _is_loopback(host)
        or _excepted(host, target.port, found.get("no", ""))
    ):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _excepted(host: str, port: int | None, exceptions: str) -> bool:
    return any(_matches(host, port, entry.strip().lower()) for entry in exceptions.split(","))


def _matches(host: str, port: int | None, entry: str) -> bool:
    if entry in ("", "*"):
        return entry == "*"
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:  # one of the two is a name
        pass
    name, _, number = entry.rpartition(":") if entry.count(":") == 1 or "]:" in entry else (entry, "", "")
    if number and number != str(port or 443):
        return False
    name = name.strip("[]").removeprefix("*")
    return host == name.removeprefix(".") or host.endswith("." + name.removeprefix("."))


@dataclass(frozen=True)
class Credentials:
    """Equal while nothing was renewed, whatever the files are called. Holds digests, no secrets."""

    token: str
    certificates: str


def credentials(configuration: Configuration) -> Credentials:
    """The credentials that a configuration would present to the server now."""
    files = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    contents = (Path(name).read_bytes() if name and os.path.isfile(name) else b"" for name in files)
    certificates = b"".join(hashlib.sha256(content).digest() for content in contents)
    token = json.dumps(configuration.api_key, sort_keys=True)
    return Credentials(hashlib.sha256(token.encode()).hexdigest(), hashlib.sha256(certificates).hexdigest())


def explain(error: BaseException, source: str) -> tuple[str, bool]:
    """Say what went wrong on the way to a server.

    :param source: where the configuration comes from
    :return: the sentence, with what to do; and whether trying again may mend it
    """
    # aiohttp's own error is an SSL error as well, but an empty one.
    said = next(filter(None, (getattr(each, "verify_message", "") for each in _causes(error))), "")
    if said:
        if "match" in said:  # Hostname mismatch, IP address mismatch
            remedy = (
                "Use a name that the certificate has as the server's address, or set tls-server-name to one"
            )
        elif "expired" in said or "not yet valid" in said:
            remedy = "Renew the server's certificate, or set this machine's clock"
        else:
            remedy = (
                "Set certificate-authority-data (or certificate-authority) of the cluster in the kubeconfig "
                "to the authority that signed it"
            )
        return f"the server's certificate is not trusted: {said}. {remedy} ({source})", False
    said = str(error) or type(error).__name__
    if "WRONG_VERSION_NUMBER" in said or "RECORD_LAYER_FAILURE" in said:
        return f"{said}. The server does not speak TLS on this port: is http meant?", True
    return f"{said}. Is the cluster up, and is the address reachable from this machine?", True


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        yield from (each for each in error.args if isinstance(each, BaseException))
        error = error.__cause__
