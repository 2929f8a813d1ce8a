"""A server that is a proxy too."""

from http.server import BaseHTTPRequestHandler
from typing import Any


class Recorder(BaseHTTPRequestHandler):
    """Answers every request, as a proxy and as a server, and records it."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_CONNECT(self) -> None:
        self.asked.append(f"CONNECT {self.path}")
        self.send_error(502)

    def log_message(self, *_: Any) -> None:
        return
