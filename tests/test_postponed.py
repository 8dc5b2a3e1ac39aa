"""What a mount seldom uses is loaded when it is used, and is all there then."""

import subprocess
import sys


def python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


BEFORE = "import sys; from tagfs.postponed import postpone; postpone(); import trio, tagfs.mount\n"


def test_a_mount_does_without_openssl() -> None:
    assert python(BEFORE + "print(*sorted({'_ssl', '_hashlib', 'idna.core'} & set(sys.modules)))") == ""


def test_a_mount_does_without_what_the_standard_library_brings_along() -> None:
    seldom = {"_lzma", "_bz2", "pickle", "datetime", "logging.handlers"}
    assert python(BEFORE + f"import tagfs.cli, tagfs.logs; print(*sorted({seldom} & set(sys.modules)))") == ""


def test_a_read_only_mount_does_without_what_writes() -> None:
    writers = {"tagfs.tending", "tagfs.duplex", "tagfs.replacing", "tagfs.sweeper"}
    assert python(BEFORE + f"print(*sorted({writers} & set(sys.modules)))") == ""


def test_what_is_used_is_loaded() -> None:
    checks = """
import hmac, ssl, idna, hashlib, ipaddress, shutil, urllib.parse
assert shutil.disk_usage("/").total > 0
assert str(ipaddress.ip_address("::1")) == "::1"
assert urllib.parse.urlsplit("https://[::1]:443/").hostname == "::1"
from ssl import SSLContext
assert issubclass(trio.SSLStream, trio.abc.Stream)
assert isinstance(ssl.create_default_context(), SSLContext)
assert hmac.compare_digest("a", "a")
assert idna.encode("ü.de") == b"xn--tda.de"
import ssl as again
assert again is sys.modules["ssl"] and again.__file__
assert ssl.SSLError is again.SSLError is trio._ssl._stdlib_ssl.SSLError
print("all there")
"""
    assert python(BEFORE + checks) == "all there"


def test_what_is_there_already_stays() -> None:
    program = "import ssl, sys; from tagfs.postponed import postpone; postpone(); print(sys.modules['ssl'] is ssl)"
    assert python(program) == "True"


def test_resolving_a_name_and_a_connection_by_tls_work() -> None:
    checks = """
import ssl
async def main():
    assert await trio.socket.getaddrinfo("localhost", 80)
    one, other = trio.testing.memory_stream_pair()
    stream = trio.SSLStream(one, ssl.create_default_context(), server_hostname="localhost")
    await other.send_all(b"no handshake at all\\n")
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        print(type(error.__cause__).__name__)
import trio.testing
trio.run(main)
"""
    assert python(BEFORE + checks) == "SSLError"
