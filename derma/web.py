"""Read from web servers that fail now and then: whole files, parts of them, and zips member by member.

urllib3 speaks HTTP; what is added is what thousands of downloads over hours need: every answer is checked for its
length and asked for again, after a pause, if it is short, late, cut off or refused for the moment (429 and 5xx, with
their ``Retry-After``). Proxies come from the environment (``HTTPS_PROXY``, ``NO_PROXY``, ...) or the system's settings,
certificates from the system's store or ``SSL_CERT_FILE``.
"""

from __future__ import annotations

import errno
import io
import lzma
import re
import threading
import zipfile
import zlib
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError, ProxySchemeUnknown
from urllib3.util import Retry, Timeout, make_headers, parse_url

FOR_THE_MOMENT = {408, 429, 500, 502, 503, 504}
LONGEST_PAUSE = 60.0  # seconds, whatever a server's Retry-After says
MOST_BYTES = 2**29  # of one answer
DAMAGED_READS = 3  # of a zip's member, before it is given up
# All that the end record of a zip can take, with the longest comment and zip64's own end record and locator.
TAIL = 22 + 2**16 + 20 + 56


class Unreachable(Exception):
    """A server does not give what is needed, now or at all; the message is one sentence that says what to do."""


class NotThere(Unreachable):
    """A server answers, and says that it does not have the file or does not give it."""


class Damaged(Exception):
    """A member of a zip is not what the zip says it is, however often it is read; the message is a phrase."""


def is_url(location: str) -> bool:
    """Tell ``https://...`` from a path."""
    return "://" in location


class Web:
    """Get things from servers, patiently; safe to use from several threads.

    Args:
        connections: kept open to each server at most.
        timeout: seconds to wait for a connection, and for the next bytes of an answer.
        retries: how often a request is made again; the pauses between grow from half a second to a minute.
    """

    def __init__(self, connections: int = 8, timeout: float = 30.0, retries: int = 6):
        self.retries = retries
        self.stopped = threading.Event()  # once it is set, nothing is asked for again
        self._options = {
            "maxsize": connections,
            "block": True,
            "timeout": Timeout(connect=timeout, read=timeout),
            # urllib3 follows redirects; failures are _get's business, which looks at bodies too.
            "retries": Retry(total=None, connect=0, read=0, status=0, other=0, redirect=5),
        }
        self._managers: dict[str | None, urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def get(self, url: str) -> bytes:
        """Return a whole file.

        Raises:
            Unreachable: it cannot be had.
        """
        return self._get(url, None)[0]

    def get_part(self, url: str, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to, not including, ``stop``.

        Raises:
            Unreachable: they cannot be had, or the server sends whole files only.
        """
        return self._get(url, (start, stop))[0]

    def get_size(self, url: str) -> int:
        """Return a file's size in bytes, by asking for its first one.

        Raises:
            Unreachable: it cannot be had, or the server sends whole files only.
        """
        return self._get(url, (0, 1))[1]

    def _manager(self, url: str) -> urllib3.PoolManager:
        """Return the connections to a URL's server, by way of the proxy that the environment names for it."""
        parts, proxies = urlsplit(url), getproxies()
        proxy = proxies.get(parts.scheme, proxies.get("all"))
        if proxy and proxy_bypass(parts.netloc):
            proxy = None
        with self._lock:
            if proxy not in self._managers:
                if proxy is None:
                    self._managers[proxy] = urllib3.PoolManager(**self._options)
                else:
                    self._managers[proxy] = self._by_proxy(proxy)
            return self._managers[proxy]

    def _by_proxy(self, proxy: str) -> urllib3.ProxyManager:
        try:
            address = parse_url(proxy)
            headers = make_headers(proxy_basic_auth=unquote(address.auth)) if address.auth else None
            return urllib3.ProxyManager(address._replace(auth=None).url, proxy_headers=headers, **self._options)
        except (ProxySchemeUnknown, ValueError):
            raise Unreachable(
                f"{proxy}: the environment names this proxy, and it is none of http:// or https://; correct "
                "http_proxy, https_proxy or all_proxy."
            ) from None

    def _get(self, url: str, part: tuple[int, int] | None) -> tuple[bytes, int]:
        """Return the body and the size of the whole file, trying again while there is hope."""
        for attempt in range(self.retries + 1):
            pause = min(0.5 * 2**attempt, LONGEST_PAUSE)
            try:
                response = self._manager(url).request(
                    "GET", url, headers=_headers(part), preload_content=False, redirect=True
                )
                try:
                    if response.status not in FOR_THE_MOMENT:
                        return _read_answer(url, response, part)
                    problem = f"{response.status} {response.reason}"
                    asked = Retry().get_retry_after(response)
                    pause = min(asked, LONGEST_PAUSE) if asked is not None else pause
                finally:
                    if not response.closed:  # not read to its end: the connection is of no more use
                        response.close()
                    response.release_conn()
            except ValueError:
                raise Unreachable(f"{url}: not a web address; check it.") from None
            except (HTTPError, OSError) as error:
                problem = _in_short(error)
            if attempt < self.retries and self.stopped.wait(pause):
                break
        raise Unreachable(
            f"{url}: no answer that could be used (tries: {attempt + 1}; the last: {problem}); check the connection "
            "and run the same command again."
        )


def _headers(part: tuple[int, int] | None) -> dict[str, str]:
    # Some servers turn away clients without a name; a compressed answer would have another length.
    headers = {"User-Agent": f"derma urllib3/{urllib3.__version__}", "Accept-Encoding": "identity"}
    # Whole files are asked for as a part too: its header tells the size a second time.
    return headers | {"Range": "bytes=0-" if part is None else f"bytes={part[0]}-{part[1] - 1}"}


def _read_answer(url: str, response: urllib3.BaseHTTPResponse, part: tuple[int, int] | None) -> tuple[bytes, int]:
    """Return the body and the size of the whole file; HTTPError says that another try may do better."""
    if response.status not in (200, 206):
        raise NotThere(f"{url}: the server answers {response.status} {response.reason}; check the address.")
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if part is None:
        body = response.read(MOST_BYTES + 1)
        if len(body) > MOST_BYTES:
            raise Unreachable(f"{url}: more than {MOST_BYTES:,} bytes; check the address.")
        if span is not None and len(body) != int(span[2]):
            raise HTTPError(f"{len(body):,} bytes, in place of {int(span[2]):,}")
        return body, len(body)
    if response.status == 200 or span is None:
        raise Unreachable(
            f"{url}: this server sends whole files only, no parts of them (HTTP ranges); download the archives some "
            "other way and name their folder with --address."
        )
    body, length = response.read(part[1] - part[0] + 1), part[1] - part[0]
    if int(span[1]) != part[0] or len(body) != length:
        raise HTTPError(f"{len(body):,} bytes from {int(span[1]):,} on, in place of {length:,} from {part[0]:,} on")
    return body, int(span[2])


def _in_short(error: Exception) -> str:
    """Return what went wrong in a phrase, without urllib3's wrappings."""
    while isinstance(error, MaxRetryError) and error.reason is not None:
        error = error.reason
    text = re.sub(r"^\w*(Connection|Pool)\w*\(.*?\): |<[^>]*>:? ?", "", str(error))
    return text.strip() or type(error).__name__


class RemoteFile(io.RawIOBase):
    """A file on a web server, to read and seek in; each read is one request, unless :meth:`load` has foreseen it."""

    def __init__(self, web: Web, url: str, size: int):
        self._web, self._url, self._size = web, url, size
        self._position = 0
        self.loaded = 0, b""  # where it starts, and what is there

    def load(self, start: int, stop: int) -> None:
        """Fetch a part in one request, for the reads to come; what was loaded before is forgotten."""
        self.loaded = (start, self._web.get_part(self._url, start, min(stop, self._size)))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:  # as files do: zipfile looks for a directory longer than a tiny file
            raise OSError(errno.EINVAL, "before the beginning")
        self._position = position
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, length: int = -1) -> bytes:
        stop = self._size if length < 0 else min(self._position + length, self._size)
        if stop <= self._position:
            return b""
        start, content = self.loaded
        if not start <= self._position <= stop <= start + len(content):
            # Not kept: the end of a zip is read again and again on the way to its directory.
            content, start = self._web.get_part(self._url, self._position, stop), self._position
        part = content[self._position - start : stop - start]
        self._position = stop
        return part


class RemoteZip:
    """A zip on a web server or on disk, from which several threads read members at once.

    Args:
        location: a URL or a path.
        web: to get it with.

    Attributes:
        members: what its directory lists, as ``zipfile.ZipInfo``.

    Raises:
        Unreachable: the server does not give it, or it is no zip.
        FileNotFoundError: no such file.
    """

    def __init__(self, location: str, web: Web):
        self._location, self._web, self._thread = location, web, threading.local()
        self._tail: tuple[int, bytes] | None = None
        self._size = web.get_size(location) if is_url(location) else Path(location).stat().st_size
        try:
            archive, file = self._open()
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            raise Unreachable(f"{location}: not a zip ({error}); check the address.") from None
        self.members = archive.infolist()
        if file is not None:  # the directory comes last: the other threads open the zip without asking the server again
            start, content = file.loaded
            if start > archive.start_dir:
                content = web.get_part(location, archive.start_dir, start) + content
            self._tail = min(start, archive.start_dir), content
        starts = sorted(member.header_offset for member in self.members)
        self._stops = dict(zip(starts, [*starts[1:], archive.start_dir], strict=False))  # an empty zip has none

    def _open(self) -> tuple[zipfile.ZipFile, RemoteFile | None]:
        """Return this thread's own view of the zip."""
        if not hasattr(self._thread, "view"):
            if is_url(self._location):
                file = RemoteFile(self._web, self._location, self._size)
                if self._tail is None:
                    file.load(max(0, self._size - TAIL), self._size)
                else:
                    file.loaded = self._tail
                self._thread.view = zipfile.ZipFile(file), file
            else:
                self._thread.view = zipfile.ZipFile(self._location), None
        return self._thread.view

    def read(self, member: zipfile.ZipInfo) -> bytes:
        """Return a member, unpacked and checked.

        Raises:
            Damaged: it is not what the directory says it is.
            Unreachable: the server does not give it.
        """
        reads = DAMAGED_READS if is_url(self._location) else 1
        for _ in range(reads):
            archive, file = self._open()
            try:
                if file is not None:
                    file.load(member.header_offset, self._stops[member.header_offset])
                return archive.read(member)
            # bzip2's errors are OSErrors; those of the network are Unreachable.
            except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
                problem = str(error) or "cut short"
            except (NotImplementedError, RuntimeError) as error:
                raise Damaged(str(error)) from None
        raise Damaged(f"{problem}, read {reads} times" if reads > 1 else problem)
