"""A certificate authority, and certificates for servers and users."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAMES = ["kubernetes.test", "kubernetes.default.svc"]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes

    def data(self) -> tuple[str, str]:
        """As kubeconfigs hold them."""
        return base64.b64encode(self.certificate).decode(), base64.b64encode(self.key).decode()

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have a server show it."""
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = Path(folder, "crt"), Path(folder, "key")
            certificate.write_bytes(self.certificate)
            key.write_bytes(self.key)
            context.load_cert_chain(certificate, key)


class Authority:
    """A cluster's own certificate authority. Like many, it writes no key identifiers."""

    def __init__(self, name: str = "cluster") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        basic = (x509.BasicConstraints(ca=True, path_length=None), True)
        self.pem = self._sign(self._name, self._key, [basic], days=10)

    def issue(self, name: str, *, addresses: tuple[str, ...] = ("127.0.0.1",), days: int = 1) -> Pair:
        """A certificate for a server or a user."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(each) for each in NAMES]
        names += [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        pem = self._sign(subject, key, [(x509.SubjectAlternativeName(names), False)], days=days)
        plain = serialization.NoEncryption()
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        return Pair(pem, key.private_bytes(*form))

    def data(self) -> str:
        return base64.b64encode(self.pem).decode()

    def _sign(self, subject: x509.Name, key: Any, extensions: list[Any], days: int) -> bytes:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(days=5))
        builder = builder.not_valid_after(now + dt.timedelta(days=days))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
