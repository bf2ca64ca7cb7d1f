"""A web server on loopback for the tests: files with ranges, and faults that are switched on one by one."""

import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Server(ThreadingHTTPServer):
    """Serves ``files`` (path to bytes, or to a function of the request's handler).

    Attributes:
        faults: what goes wrong, by path (a regular expression): ``(fault, times)``; see :class:`Handler`.
        requests: how often each path was asked for.
        sent: bytes of bodies.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests, self.sent = files, {}, Counter(), 0
        self.lock, self.released = threading.Lock(), threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests

    def stop(self):
        self.released.set()
        self.shutdown()
        self.server_close()

    def fault_for(self, path):
        """Return the fault for a request, counting down how often it is still to happen."""
        with self.lock:
            for pattern, (fault, times) in self.faults.items():
                if times > 0 and re.search(pattern, path):
                    self.faults[pattern] = fault, times - 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = urlsplit(self.path)  # a client that takes this for a proxy sends the whole URL
        path, server = parts.path, self.server
        with server.lock:
            server.requests[path] += 1
        fault = None if path.startswith("/elsewhere") else server.fault_for(path)
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", server.address + "/elsewhere" + path)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        path = path.removeprefix("/elsewhere")
        if fault in ("500", "503", "404"):
            self.send_response(int(fault))
            if fault == "503":
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = server.files.get(path)
        if callable(content):
            content = content(parts)
        if content is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_body(content, fault)

    def send_body(self, content, fault):
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span and fault != "no ranges":
            start, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            body = content[start : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        else:
            body = content
            self.send_response(200)
        if fault == "corrupt" and len(body) > 100:
            body = body[:80] + bytes(255 - value for value in body[80:100]) + body[100:]
        length = len(body)
        if fault == "longer":
            length += 1000
        elif fault == "shorter":
            length -= length // 3
        self.send_header("Content-Length", str(length))
        self.end_headers()
        half = body[: len(body) // 2]
        if fault == "reset":
            self.wfile.write(half)
            self.wfile.flush()
            # SO_LINGER 0: close() sends RST, and not a tidy FIN
            self.connection.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")
            self.close_connection = True
            return self.connection.close()
        if fault == "stall":
            self.wfile.write(half)
            self.wfile.flush()
            self.close_connection = True
            return self.server.released.wait(20)
        if fault == "slow":
            time.sleep(0.02)
        self.wfile.write(body)
        with self.server.lock:
            self.server.sent += len(body)
        if fault == "longer":
            self.close_connection = True
