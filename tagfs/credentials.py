"""Credentials: who asks an API server, and whom the asker trusts.  Blocking.

Owns: tokens and certificates, read again from their files each time, because both rotate; TLS contexts.
Does not know: where a kubeconfig is, HTTP.
Invariant: a secret is neither logged, nor part of an error, nor written to a disk.
"""

import base64
import os
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from tagfs.errors import CredentialsMissing


@dataclass(frozen=True, slots=True)
class Identity:
    """What is shown to the server: an Authorization header, a client certificate with its key (PEM), or nothing."""

    authorization: str | None = field(default=None, repr=False)
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


class Credentials(ABC):
    """Where an identity comes from."""

    is_slow = False
    """Whether `identity` may take longer than reading a file, so belongs into a thread."""

    @abstractmethod
    def identity(self, renew: bool = False) -> Identity:
        """The identity to show now.

        Args:
            renew: the last one was refused: do not answer from memory.

        Raises:
            CredentialsMissing: there is none.
        """


@dataclass(frozen=True, slots=True)
class Material:
    """Bytes that a configuration holds itself, or names the file of; `origin` is what to call them in an error."""

    origin: str
    data: bytes | None = field(default=None, repr=False)
    path: str | None = None

    def read(self) -> bytes:
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            with open(self.path, "rb") as file:
                found = file.read()
        except OSError as error:
            raise CredentialsMissing(f"{self.origin}: {self.path}: {error.strerror}") from error
        if not found.strip():
            raise CredentialsMissing(f"{self.origin}: {self.path} is empty")
        return found


@dataclass(frozen=True, slots=True)
class Presented(Credentials):
    """A token or a user and password, and a client certificate: each where it was given."""

    token: Material | None = None
    basic: tuple[str, str] | None = field(default=None, repr=False)
    certificate: Material | None = None
    key: Material | None = None

    def identity(self, renew: bool = False) -> Identity:
        authorization = None
        if self.token is not None:
            authorization = bearer(self.token.read(), self.token.origin)
        elif self.basic is not None:
            authorization = "Basic " + base64.b64encode(":".join(self.basic).encode()).decode()
        return Identity(
            authorization,
            self.certificate.read() if self.certificate is not None else None,
            self.key.read() if self.key is not None else None,
        )


@dataclass(frozen=True, slots=True)
class Trust:
    """Which server is the right one: by whose authority, under which name.

    Args:
        authority: the cluster's certificate authority (PEM); None trusts those of this machine.
        server_name: the name in the server's certificate, where it is not the one in the address.
        is_blind: anybody is believed.
    """

    authority: Material | None = None
    server_name: str | None = None
    is_blind: bool = False

    def context(self, identity: Identity) -> ssl.SSLContext:
        """The TLS context for connections that show `identity`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.is_blind:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.authority is not None:
            try:
                context.load_verify_locations(cadata=self.authority.read().decode("ascii", "ignore"))
            except (ssl.SSLError, ValueError) as error:
                raise CredentialsMissing(f"{self.authority.origin}: no certificate in PEM: {error}") from None
            # As Go has it: what is named as authority is trusted, though something else may have issued it.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        else:
            context.load_default_certs()
        if identity.certificate is not None and identity.key is not None:
            _show(context, identity.certificate, identity.key)
        return context


def bearer(token: bytes, origin: str) -> str:
    """The header of a bearer token; CredentialsMissing where it cannot stand in a header."""
    text = token.strip().decode("ascii", "replace")
    if not text or not text.isascii() or not text.isprintable():
        raise CredentialsMissing(f"{origin}: no token that can be sent: empty, or bytes outside of ASCII")
    return f"Bearer {text}"


def _show(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Have `context` show a client certificate.  OpenSSL reads it from files only: these are in memory."""
    with _in_memory(certificate) as certificate_path, _in_memory(key) as key_path:
        try:
            context.load_cert_chain(certificate_path, key_path, _no_password)
        except (ssl.SSLError, OSError) as error:
            raise CredentialsMissing(f"the client certificate or its key cannot be used: {error}") from None


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _no_password() -> NoReturn:
    """Instead of OpenSSL's question on the terminal."""
    raise CredentialsMissing("the client's key is encrypted, and nobody is there to be asked for its password")
