"""A web server on loopback for the tests: files with ranges, and faults that are switched on one by one."""

import base64
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Server(ThreadingHTTPServer):
    """Serves ``files``: path to bytes, or to a function of the request's URL; ``requests`` counts those of each path.

    ``faults`` maps a path (a regular expression) to an iterator over the faults of the requests to come, None for none.
    ``login`` is the user:password and the query that a request must have, None for any.
    """

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests, self.login = files, {}, Counter(), None
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_):
        pass  # clients that hang up are part of the tests

    def server_close(self):
        self.shutdown()
        super().server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms

    def log_message(self, *_):
        pass

    def answer(self, status, **headers):
        self.send_response(int(status))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_GET(self):
        parts, server = urlsplit(self.path), self.server
        with server.lock:
            server.requests[parts.path] += 1
            faults = [each for pattern, each in server.faults.items() if re.search(pattern, parts.path)]
            fault = next(faults[0], None) if faults else None
        password = base64.b64decode(self.headers.get("Authorization", "")[len("Basic ") :]).decode()
        if server.login not in (None, (password, parts.query)):
            fault = "401"
        content = server.files.get(parts.path)
        if content is None or fault in ("401", "500", "503"):
            return self.answer(fault or 404, Retry_After=1, Content_Length=0)
        content = body = content(parts) if callable(content) else content
        status, headers = 200, {}
        time.sleep(0.02 if fault == "slow" else 0)
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span and fault != "no ranges":
            start, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            body, status = content[start : last + 1], 206
            headers["Content_Range"] = f"bytes {start}-{last}/{len(content)}"
        if fault == "corrupt":
            body = body[:80] + bytes(255 - value for value in body[80:100]) + body[100:]
        self.answer(status, Content_Length=len(body) - (len(body) // 3 if fault == "shorter" else 0), **headers)
        if fault in ("reset", "stall"):
            self.close_connection = True
            body = body[: len(body) // 2]
        self.wfile.write(body)
        if fault == "stall":
            time.sleep(1)
