"""Answers: what a Kubernetes API server says, decoded; which error means what.  Pure.

Owns: the few fields that are read of an answer; the limits on its size.
Does not know: how it came.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from urllib.parse import urlencode

import msgspec

from tagfs import errors

SIZE_LIMIT = 64 << 20
"""Bytes of one answer, and of one event of a watch.  An object is at most three megabytes, its metadata mostly one or
two kilobytes."""

_MESSAGE_LIMIT = 1000
"""Characters of what a server says that an error repeats."""

PLAIN = "application/json"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""For `Accept`: only metadata is sent, whatever the objects hold."""

_REFUSALS: dict[int, type[errors.ApiRefused]] = {
    401: errors.CredentialsRefused,
    403: errors.RightsMissing,
    404: errors.ResourceMissing,
    410: errors.VersionExpired,
    429: errors.ApiBusy,
    503: errors.ApiBusy,
}


class Metadata(msgspec.Struct, gc=False):
    """What is read of an object."""

    name: str = ""
    namespace: str = ""
    resource_version: str = msgspec.field(name="resourceVersion", default="")


class Object(msgspec.Struct, gc=False):
    metadata: Metadata


class ListMetadata(msgspec.Struct, gc=False):
    resource_version: str = msgspec.field(name="resourceVersion", default="")
    rest: str = msgspec.field(name="continue", default="")


class Page(msgspec.Struct, gc=False):
    """A part of a list; `metadata.rest` asks for the next one."""

    kind: str
    metadata: ListMetadata
    items: list[Object] | None


class _Version(msgspec.Struct):
    version: str


class Group(msgspec.Struct):
    """Which versions of an API group are served."""

    versions: list[_Version]


class _Resource(msgspec.Struct):
    name: str
    namespaced: bool


class Resources(msgspec.Struct):
    """What one version of an API group has."""

    resources: list[_Resource]

    def has(self, name: str) -> bool:
        return any(resource.name == name and resource.namespaced for resource in self.resources)


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Details(msgspec.Struct):
    retry_after: float | None = msgspec.field(name="retryAfterSeconds", default=None)


class _Status(msgspec.Struct):
    message: str = ""
    code: int = 0
    details: _Details | None = None


PAGE = msgspec.json.Decoder(Page)
GROUP = msgspec.json.Decoder(Group)
RESOURCES = msgspec.json.Decoder(Resources)
_OBJECT = msgspec.json.Decoder(Object)
_EVENT = msgspec.json.Decoder(_Event)
_STATUS = msgspec.json.Decoder(_Status)


@dataclass(frozen=True, slots=True)
class Collection:
    """Some objects of one kind: the path of all of them, and selectors as the API server understands them."""

    path: str
    label_selector: str = ""
    field_selector: str = ""

    def target(self, **parameters: str) -> str:
        """What to GET; parameters without a value are left out."""
        parameters |= {"labelSelector": self.label_selector, "fieldSelector": self.field_selector}
        return f"{self.path}?{urlencode({name: value for name, value in parameters.items() if value})}"


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch tells: `metadata` is in the collection (`is_there`) or no longer; None for a bookmark."""

    version: str
    metadata: Metadata | None = None
    is_there: bool = False


def change(line: bytes) -> Change:
    """One line of a watch; raises what it says where it is an error."""
    try:
        event = _EVENT.decode(line)
        if event.type == "ERROR":
            status = _STATUS.decode(event.object)
            raise _refused(status.code, status, None)
        metadata = _OBJECT.decode(event.object).metadata
    except msgspec.MsgspecError as error:
        raise errors.AnswerInvalid(f"an event of a watch: {error}") from None
    if event.type not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK") or not metadata.resource_version:
        raise errors.AnswerInvalid(f"an event of a watch that is {event.type!r} of {metadata}")
    if event.type == "BOOKMARK":
        return Change(metadata.resource_version)
    return Change(metadata.resource_version, metadata, event.type != "DELETED")


def refusal(code: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> errors.ApiRefused:
    """The error that an answer other than 200 is."""
    try:
        status = _STATUS.decode(body)
    except msgspec.MsgspecError:
        status = _Status(body[:200].decode("utf-8", "replace"))
    return _refused(code, status, next((value for name, value in headers if name.lower() == b"retry-after"), None))


def is_passing(error: errors.ApiFailed) -> bool:
    """Whether the same request, some seconds later, may well be answered."""
    if isinstance(error, errors.ApiRefused):
        return isinstance(error, errors.ApiBusy) or (error.status >= 500 and error.status != 501)
    return isinstance(error, errors.ApiUnreachable)


def _refused(code: int, status: _Status, header: bytes | None) -> errors.ApiRefused:
    retry_after = _seconds(header.decode("ascii", "replace").strip()) if header is not None else None
    if retry_after is None and status.details is not None:
        retry_after = status.details.retry_after
    # Of a line that is logged it may be the end.
    message = " ".join(status.message[:_MESSAGE_LIMIT].split())
    return _REFUSALS.get(code, errors.ApiRefused)(code, message or "without a word", retry_after)


def _seconds(retry_after: str) -> float | None:
    """`Retry-After`: seconds or a date (RFC 9110, 10.2.3)."""
    if re.fullmatch(r"[0-9]+", retry_after, re.ASCII):
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except ValueError:
        return None
