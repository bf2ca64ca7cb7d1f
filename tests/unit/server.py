"""A web server on loopback for the tests: files with ranges, and faults that are switched on one by one."""

import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Server(ThreadingHTTPServer):
    """Serves ``files``: path to bytes, or to a function of the request's URL.

    Attributes:
        faults: path (a regular expression) to ``(fault, times)``; see :class:`Handler`.
        requests, sent: requests of each path, and bytes of bodies.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests, self.sent = files, {}, Counter(), 0
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.lock, self.released = threading.Lock(), threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests

    def stop(self):
        self.released.set()
        self.shutdown()
        self.server_close()

    def fault_for(self, path):
        """Return the fault for a request, and count it."""
        with self.lock:
            self.requests[path] += 1
            for pattern, (fault, times) in self.faults.items():
                if times > 0 and re.search(pattern, path) and not path.startswith("/elsewhere"):
                    self.faults[pattern] = fault, times - 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_GET(self):
        parts, server = urlsplit(self.path), self.server  # a client that takes this for a proxy sends the whole URL
        fault = server.fault_for(parts.path)
        content = server.files.get(parts.path.removeprefix("/elsewhere"))
        if fault == "redirect":
            return self.answer(302, Location=f"{server.address}/elsewhere{parts.path}", Content_Length=0)
        if fault == "503":
            return self.answer(503, Retry_After=1, Content_Length=0)
        if fault in ("500", "404") or content is None:
            return self.answer(int(fault or 404), Content_Length=0)
        content = body = content(parts) if callable(content) else content
        status, headers = 200, {}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span and fault != "no ranges":
            start, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            body, status = content[start : last + 1], 206
            headers["Content_Range"] = f"bytes {start}-{last}/{len(content)}"
        if fault == "corrupt" and len(body) > 100:
            body = body[:80] + bytes(255 - value for value in body[80:100]) + body[100:]
        wrong = {"longer": 1000, "shorter": -(len(body) // 3)}
        self.answer(status, Content_Length=len(body) + wrong.get(fault, 0), **headers)
        if fault in ("reset", "stall"):
            self.close_connection = True
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                return server.released.wait(20)
            self.connection.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SO_LINGER 0: close() sends RST, not FIN
            return self.connection.close()
        if fault == "slow":
            time.sleep(0.02)
        self.close_connection |= fault == "longer"
        self.wfile.write(body)
        with server.lock:
            server.sent += len(body)
