"""Read from web servers that fail now and then: whole files, parts of them, and zips member by member.

httpx speaks HTTP. This module adds what hours of downloads need: the length of every answer is checked, and a request
is repeated after a pause if the answer was short, late, cut off or a temporary refusal (429 and 5xx, with Retry-After).
Proxies come from the environment (``HTTPS_PROXY``, ``NO_PROXY``, ...) or the system's settings, certificates from the
system's store or ``SSL_CERT_FILE``.
"""

from __future__ import annotations

import io
import lzma
import re
import ssl
import struct
import threading
import zipfile
import zlib
from pathlib import Path

import httpx

TEMPORARY = {408, 429, 500, 502, 503, 504}
LONGEST_PAUSE = 60.0  # seconds, whatever a server's Retry-After says
MOST_BYTES = 2**29  # of one answer
DAMAGED_READS = 3  # of a zip's member on a server, before it is given up
TAILS = (2**20, 2**24)  # bytes at the end of a zip that are read for its directory: the second if it needs more


class Unreachable(Exception):
    """A server does not give what is needed; the message is one sentence that says what to do."""


class NotThere(Unreachable):
    """A server answers that it does not have the file or does not give it."""


class Damaged(Exception):
    """A zip's member is not what the zip's directory says it is; the message is a phrase."""


def is_url(location: str) -> bool:
    """Tell ``https://...`` from a path."""
    return "://" in location


class Web:
    """Get files from servers and repeat what fails; safe to use from several threads.

    ``timeout`` counts the seconds until a connection, and until the next bytes of an answer. A request is repeated
    ``retries`` times, after pauses from half a second to a minute.
    """

    def __init__(self, connections: int = 8, timeout: float = 30.0, retries: int = 6):
        self.connections, self.retries = connections, retries
        self.stopped = threading.Event()  # once it is set, nothing is requested again
        try:
            self._client = httpx.Client(
                timeout=httpx.Timeout(timeout, pool=None),
                limits=httpx.Limits(max_connections=connections),
                verify=ssl.create_default_context(),
                follow_redirects=True,
                # Some servers refuse clients without a name; a compressed answer would have another length.
                headers={"User-Agent": f"derma httpx/{httpx.__version__}", "Accept-Encoding": "identity"},
            )
        except (ImportError, ValueError) as error:
            raise Unreachable(
                f"The environment's proxy cannot be used ({error}); correct http_proxy, https_proxy or all_proxy."
            ) from None

    def get(self, url: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return a file, or its bytes from ``start`` up to, not including, ``stop``; Unreachable if that fails."""
        return self._get(url, start, stop)[0]

    def get_size(self, url: str) -> int:
        """Return a file's size in bytes, by requesting its first one; Unreachable if that fails."""
        return self._get(url, 0, 1)[1]

    def _get(self, url: str, start: int, stop: int | None) -> tuple[bytes, int]:
        """Return the body and the size of the whole file; repeats what may succeed later."""
        # Whole files are requested as a range too: the answer's Content-Range tells the size a second time.
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        for attempt in range(self.retries + 1):
            pause = 0.5 * 2**attempt
            try:
                with self._client.stream("GET", url, headers=headers) as response:
                    if response.status_code not in TEMPORARY:
                        return _read_answer(url, response, start, stop)
                    problem = f"{response.status_code} {response.reason_phrase}"
                    asked = response.headers.get("Retry-After", "")
                    pause = int(asked) if asked.isdecimal() else pause
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError):
                raise Unreachable(f"{url}: not a web address; check it.") from None
            except (httpx.HTTPError, OSError) as error:
                problem = str(error) or type(error).__name__
            if attempt < self.retries and self.stopped.wait(min(pause, LONGEST_PAUSE)):
                break
        raise Unreachable(
            f"{url}: no usable answer (tries: {attempt + 1}; the last: {problem}); check the connection and run the "
            "same command again."
        )


def _read_answer(url: str, response: httpx.Response, start: int, stop: int | None) -> tuple[bytes, int]:
    """Return the body and the size of the whole file; raises HTTPError if another try may do better."""
    if response.status_code not in (200, 206):
        raise NotThere(f"{url}: the server answers {response.status_code} {response.reason_phrase}; check the address.")
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if stop is not None and (response.status_code == 200 or span is None):
        raise Unreachable(
            f"{url}: this server sends whole files only, no parts of them (HTTP ranges); download the archives some "
            "other way and name their folder with --address."
        )
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > MOST_BYTES:
            raise Unreachable(f"{url}: more than {MOST_BYTES:,} bytes; check the address.")
    if span is None:
        return bytes(body), len(body)
    first, size = int(span[1]), int(span[2])
    length = (size if stop is None else stop) - start
    if first != start or len(body) != length:
        raise httpx.ReadError(f"{len(body):,} bytes from {first:,} on, instead of {length:,} from {start:,} on")
    return bytes(body), size


class _Tail(io.BytesIO):
    """The bytes of a file from ``start`` on, at their places in it, for zipfile to read a directory from."""

    def __init__(self, content: bytes, start: int):
        super().__init__(content)
        self._start = start

    def tell(self) -> int:
        return super().tell() + self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return super().seek(offset - (self._start if whence == io.SEEK_SET else 0), whence) + self._start


class RemoteZip:
    """A zip at a URL or a path, from which several threads read members at the same time.

    ``members`` lists them as ``zipfile.ZipInfo``. Unreachable, or FileNotFoundError, if it is no zip or missing.
    """

    def __init__(self, location: str, web: Web):
        self._location, self._web = location, web
        size = web.get_size(location) if is_url(location) else Path(location).stat().st_size
        for length in TAILS:
            start = max(0, size - length)
            try:
                archive = zipfile.ZipFile(_Tail(self._read_part(start, size) if size else b"", start))
                break
            except (zipfile.BadZipFile, ValueError) as error:  # ValueError: the directory begins before the tail
                problem = error
        else:
            raise Unreachable(f"{location}: not a zip ({problem}); check the address.")
        self.members = archive.infolist()
        starts = sorted(member.header_offset for member in self.members)
        self._stops = dict(zip(starts, [*starts[1:], archive.start_dir], strict=False))  # an empty zip has none

    def _read_part(self, start: int, stop: int) -> bytes:
        if is_url(self._location):
            return self._web.get(self._location, start, stop)
        with Path(self._location).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def read(self, member: zipfile.ZipInfo) -> bytes:
        """Return a member, unpacked; Damaged if it is not what the directory says, Unreachable if it does not come."""
        reads = DAMAGED_READS if is_url(self._location) else 1
        for _ in range(reads):
            content = self._read_part(member.header_offset, self._stops[member.header_offset])
            try:
                if content[:4] != b"PK\3\4":
                    raise zipfile.BadZipFile("no header")
                packed = content[30 + sum(struct.unpack_from("<HH", content, 26)) :]  # after name and extra field
                with zipfile.ZipExtFile(io.BytesIO(packed[: member.compress_size]), "r", member) as file:
                    return file.read()
            # Each method of compression has its own errors; bzip2's are OSErrors.
            except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError) as error:
                problem = str(error) or "cut short"
            except (NotImplementedError, RuntimeError) as error:
                raise Damaged(str(error)) from None
        raise Damaged(f"{problem}, read {reads} times" if reads > 1 else problem)
