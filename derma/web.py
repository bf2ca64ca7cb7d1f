"""Read from web servers that fail now and then: whole files, parts of them, and zips member by member.

httpx speaks HTTP. This module adds what hours of downloads need: the length of every answer is checked, and a request
is repeated after a pause if the answer was short, late, cut off or a temporary refusal (429 and 5xx, with Retry-After).
Proxies come from the environment (``HTTPS_PROXY``, ``NO_PROXY``, ...) or the system's settings, certificates from the
system's store or ``SSL_CERT_FILE``.
"""

import io
import os
import re
import ssl
import struct
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
from tqdm import tqdm

from derma.commands import CommandError

TEMPORARY = {408, 429, 500, 502, 503, 504}
LONGEST_PAUSE = 60.0  # seconds, whatever a server's Retry-After says
READS = 3  # of a zip's member, before it is given up as damaged
NOTE_SECONDS = 30  # how often repeated requests are mentioned


class Refused(Exception):
    """One image that cannot be had, or not be shrunk; the message is the reason, in a phrase."""


def public(url: str) -> str:
    """Return an address without what may be secret: user, password, query (such as ``?sig=...``) and fragment."""
    return str(httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None))


class Web:
    """Get files from servers and repeat what fails; safe to use from several threads.

    ``timeout`` counts the seconds until a connection, and until the next bytes of an answer. A request is repeated
    ``retries`` times, after pauses from half a second to a minute.
    """

    def __init__(self, connections: int, timeout: float = 30.0, retries: int = 6):
        self.connections, self.retries = connections, retries
        self.stopped = threading.Event()  # once it is set, nothing is requested again
        self._address, self._secrets, self._noted = "", {}, float("-inf")
        try:
            self._client = httpx.Client(
                timeout=httpx.Timeout(timeout, pool=None),
                limits=httpx.Limits(max_connections=connections),
                verify=ssl.create_default_context(),
                follow_redirects=True,
                # Some servers refuse clients without a name; a compressed answer would have another length.
                headers={"User-Agent": f"derma httpx/{httpx.__version__}", "Accept-Encoding": "identity"},
            )
        except (ImportError, ValueError, httpx.InvalidURL):  # their messages may hold its password
            raise CommandError("HTTPS_PROXY, HTTP_PROXY or ALL_PROXY: not like http://host:port; correct it.") from None

    def log_in(self, address: str) -> str:
        """Return an address without user, password and query, with which requests below it are sent; or a folder.

        CommandError if it is neither.
        """
        if os.path.isdir(address):  # noqa: PTH112 - Path.is_dir raises where an address is too long for a name
            return address
        with suppress(httpx.InvalidURL):
            url = httpx.URL(address)
            if url.scheme in ("http", "https") and "@" not in str(url.copy_with(userinfo=b"")):
                login = (url.username, url.password) if url.userinfo else None
                self._secrets = {"auth": login, "params": url.params or None}
                self._address = public(address).rstrip("/")
                return self._address
        shown = "--address" if set("@?") & set(address) else address
        raise CommandError(
            f"{shown}: neither a folder nor a web address; check it (in a password, @ is %40 and / is %2F)."
        )

    def get(self, url: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return a file, or its bytes from ``start`` up to, not including, ``stop``.

        Raises:
            Refused: the server does not have the file.
            CommandError: no try succeeded.
        """
        return self._request(url, start, stop)[0]

    def size(self, url: str) -> int:
        """Return a file's size in bytes, by requesting its first one; raises as :meth:`get`."""
        return self._request(url, 0, 1)[1]

    def _request(self, url: str, start: int, stop: int | None) -> tuple[bytes, int]:
        """Return the body and the size of the whole file; repeats what may succeed later."""
        # Whole files are requested as a range too: the answer's Content-Range tells the size a second time.
        headers, shown = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}, public(url)
        secrets = self._secrets if url.startswith(f"{self._address}/") else {}
        for attempt in range(self.retries + 1):
            pause = 0.5 * 2**attempt
            try:
                with self._client.stream("GET", url, headers=headers, **secrets) as response:
                    if response.status_code not in TEMPORARY:
                        return _read_answer(shown, response, start, stop)
                    problem = f"{response.status_code} {response.reason_phrase}"
                    asked = response.headers.get("Retry-After", "")
                    pause = int(asked) if asked.isdecimal() else pause
            except (httpx.HTTPError, OSError) as error:
                problem = str(error) or type(error).__name__
            if attempt < self.retries and time.monotonic() - self._noted > NOTE_SECONDS:
                self._noted = time.monotonic()
                tqdm.write(f"{shown}: {problem}; trying again.")
            if attempt < self.retries and self.stopped.wait(min(pause, LONGEST_PAUSE)):
                break
        raise CommandError(
            f"{shown}: no usable answer (tries: {attempt + 1}; the last: {problem}); check the connection and run the "
            "same command again."
        )


def _read_answer(shown: str, response: httpx.Response, start: int, stop: int | None) -> tuple[bytes, int]:
    """Return the body and the size of the whole file; raises HTTPError if another try may do better."""
    if response.status_code not in (200, 206):
        raise Refused(f"{shown}: the server says {response.status_code} {response.reason_phrase}; check the address.")
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if span is None and stop is not None:
        raise CommandError(
            f"{shown}: this server sends whole files only, no parts of them (HTTP ranges); download the archives some "
            "other way and name their folder with --address."
        )
    body = response.read()
    if span is None:
        return body, len(body)
    first, size = int(span[1]), int(span[2])
    length = (size if stop is None else stop) - start
    if first != start or len(body) != length:
        raise httpx.ReadError(f"{len(body):,} bytes from {first:,} on, instead of {length:,} from {start:,} on")
    return body, size


def _read_part(path: str | Path, start: int, stop: int) -> bytes:
    with Path(path).open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


class _Directory:
    """A file as far as zipfile needs one to read a zip's directory; ``read_part`` returns its bytes [start, stop)."""

    def __init__(self, read_part: Callable[[int, int], bytes], size: int):
        self._read_part, self._size, self._place = read_part, size, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + (0, self._place, self._size)[whence])
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, count: int | None = None) -> bytes:
        start, stop = self._place, self._size if count is None else min(self._place + count, self._size)
        self._place = stop
        return self._read_part(start, stop) if start < stop else b""


class Zip:
    """A zip at a path, or at a URL of a ``web``, from which several threads read members at the same time.

    ``members`` lists them as ``zipfile.ZipInfo``. CommandError or OSError if it is no zip or missing.
    """

    def __init__(self, location: str | Path, web: Web | None):
        remote = "://" in str(location)
        self._read_part = partial(web.get if remote else _read_part, location)
        size = web.size(location) if remote else Path(location).stat().st_size
        try:
            with zipfile.ZipFile(_Directory(self._read_part, size)) as archive:
                self.members = [member for member in archive.infolist() if not member.is_dir()]
                starts = sorted(member.header_offset for member in archive.infolist())
                self._stops = dict(zip(starts, [*starts[1:], archive.start_dir], strict=False))  # an empty zip has none
        except (zipfile.BadZipFile, UnicodeDecodeError) as error:  # the latter of a name
            raise CommandError(f"{location}: not a zip that can be read ({error}); fetch or zip it again.") from None

    def read(self, member: zipfile.ZipInfo) -> bytes:
        """Return a member, unpacked; Refused if it is not what the directory says, CommandError if it does not come."""
        start, stop = member.header_offset, self._stops[member.header_offset]
        for _ in range(READS):
            content = self._read_part(start, stop)
            try:
                packed = content[30 + sum(struct.unpack_from("<HH", content, 26)) :]  # after name and extra field
                with zipfile.ZipExtFile(io.BytesIO(packed[: member.compress_size]), "r", member) as unpacked:
                    return unpacked.read()
            except Exception as error:  # each method of compression has its own errors
                problem = str(error) or type(error).__name__
        raise Refused(f"damaged in the zip ({problem})")
