"""Serves the labelling page to this machine, and takes its answers.

Four fixed routes and no path is ever looked up on the disk. What protects a labeler's file:

- it binds to 127.0.0.1, so that no other machine reaches it;
- the Host header must be its own address, so that a foreign name that is made to resolve to
  127.0.0.1 (DNS rebinding) is refused;
- a write must be JSON, from its own origin, and carry a token of this start, which another site
  can neither read nor guess;
- a body has a declared length of at most a mebibyte, and a client ten seconds a read;
- the page may run its own script and nothing else, whatever a completion says.
"""

import hmac
import json
import secrets
import socketserver
import sys
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stages.lib.labelling import book, page, plan
from stages.lib.labelling.book import Book, ElsewhereError
from stages.lib.labelling.page import Sheet
from stages.lib.runtime.schema import Refusal

ADDRESS = "127.0.0.1"
LIMIT = 1 << 20  # bytes of a request's body
TOKEN = "X-Plumbline-Token"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Denied(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Server(ThreadingHTTPServer):
    """The page of one labeler."""

    daemon_threads = True  # a browser's idle connection must not keep Ctrl-C waiting

    def __init__(self, port: int, sheet: Sheet, kept: Book) -> None:
        """Bind to the loopback address.

        Args:
            port: 0 takes a free one.
            sheet: what the page shows.
            kept: where answers go.

        Raises:
            Refusal: the port is taken or not allowed.
        """
        self.sheet, self.book = sheet, kept
        self.token = secrets.token_urlsafe(32)
        self.tasks = {task.id: task for task in sheet.tasks}
        try:
            super().__init__((ADDRESS, port), Handler)
        except (OSError, OverflowError) as error:
            raise Refusal(
                f"port {port} of {ADDRESS}: {error}; another page may be open there, and "
                f"PORT={port + 1 if 1024 <= port < 65535 else 8766} would be another port"
            ) from None

    def server_bind(self) -> None:
        """Bind without asking a name server who this is, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/"

    @property
    def hosts(self) -> set[str]:
        """The names that a request may call this server."""
        return {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away, and what it was of anything else."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def page(self) -> str:
        """Return the page as it stands now."""
        return page.live(self.sheet, self.book.labels(), token=self.token)

    def answer(self, message: Any) -> dict[str, Any]:
        """Write one answer down and return it as it was written.

        Args:
            message: {task, seen, label}: id of the task, highest revision that the page knew of,
                and the label without revision and time.

        Raises:
            Denied: it answers no task of this page, is no label, or was answered elsewhere.
        """
        task, seen, fields = _parts(message)
        if task not in self.tasks:
            raise Denied(
                HTTPStatus.BAD_REQUEST,
                f"task {str(task)[:40]!r} is none of this page; reload it",
            )
        try:
            label = book.parse({**fields, "submitted": None, "revision": 1})
            digest = self.sheet.instructions.sha256
            plan.require_answers(label, self.tasks[task], self.book.labeler, digest)
            written = self.book.append(fields, seen=seen)
        except Refusal as refusal:
            raise Denied(HTTPStatus.BAD_REQUEST, str(refusal)) from None
        return {"label": written.model_dump(mode="json")}


def _parts(message: Any) -> tuple[str, int, Mapping[str, Any]]:
    """Take a message apart."""
    if isinstance(message, dict) and message.keys() == {"task", "seen", "label"}:
        task, seen, fields = message["task"], message["seen"], message["label"]
        if isinstance(task, str) and type(seen) is int and isinstance(fields, dict):
            return task, seen, fields
    raise Denied(
        HTTPStatus.BAD_REQUEST,
        "an answer is {task: text, seen: whole number, label: object} and nothing else",
    )


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = 10  # seconds a read may take: what is slower is no browser on this machine

    def do_GET(self) -> None:
        """Give the page, its style, its script, or the lines written so far."""
        self._answered(self._get)

    def do_POST(self) -> None:
        """Take an answer."""
        self._answered(self._post)

    def _answered(self, work: Any) -> None:
        try:
            self._require_host()
            work()
        except Denied as denied:
            self._json(denied.status, {"error": denied.why})
        except ElsewhereError as elsewhere:
            label = elsewhere.label.model_dump(mode="json")
            why = "this task was answered in another window"
            self._json(HTTPStatus.CONFLICT, {"error": why, "label": label})
        except (Refusal, OSError) as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Say what kept a line from being written; a client that left hears nothing."""
        if isinstance(error, TimeoutError | ConnectionError):
            self.close_connection = True
            return
        print(f"not written: {error}", file=sys.stderr, flush=True)
        self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"not written: {error}"})

    def _get(self) -> None:
        if self.path == "/":
            self._send(HTTPStatus.OK, "text/html", self.server.page())
        elif self.path == "/page.css":
            self._send(HTTPStatus.OK, "text/css", page.STYLE)
        elif self.path == "/page.js":
            self._send(HTTPStatus.OK, "text/javascript", page.SCRIPT)
        elif self.path == "/labels":
            self._require_token()
            lines = [label.model_dump(mode="json") for label in self.server.book.labels()]
            self._json(HTTPStatus.OK, {"lines": lines})
        else:
            raise Denied(HTTPStatus.NOT_FOUND, f"there is nothing here but {self.server.url}")

    def _post(self) -> None:
        if self.path != "/labels":
            raise Denied(HTTPStatus.NOT_FOUND, "answers go to /labels")
        content = self._content()  # before any refusal: unread bytes would reset the connection
        self._require_own_origin()
        self._require_token()
        if self.headers.get_content_type() != "application/json":
            kind = self.headers.get("Content-Type")
            raise Denied(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type is {kind}, not application/json"
            )
        self._json(HTTPStatus.OK, self.server.answer(_plain(content)))

    def _require_host(self) -> None:
        host = self.headers.get("Host")
        if host not in self.server.hosts:
            raise Denied(
                HTTPStatus.FORBIDDEN, f"Host is {host}; this page is {self.server.url} only"
            )

    def _require_own_origin(self) -> None:
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        if origin != f"http://{self.headers.get('Host')}" or site not in (None, "same-origin"):
            raise Denied(
                HTTPStatus.FORBIDDEN,
                f"Origin is {origin} and Sec-Fetch-Site {site}; only this page may write",
            )

    def _require_token(self) -> None:
        given = self.headers.get(TOKEN, "")
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            raise Denied(
                HTTPStatus.FORBIDDEN,
                "this page is of an earlier start of `make label`; reload it, the draft stays",
            )

    def _content(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Denied(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing or no number")
        if len(length) > 9 or int(length) > LIMIT:
            raise Denied(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the answer has {length[:20]} bytes, and {LIMIT} are allowed; shorten it",
            )
        return self.rfile.read(int(length))

    def _json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value))

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def version_string(self) -> str:
        """Name the server without the versions of its parts."""
        return "plumbline"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal for what matters: idle connections of browsers time out often."""


def _plain(content: bytes) -> Any:
    try:
        return json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Denied(HTTPStatus.BAD_REQUEST, f"the answer is not JSON: {error}") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def serve(server: Server, said: Sequence[str] = ()) -> None:
    """Serve until Ctrl-C; an answer that is being written is written to its end.

    Args:
        server: bound, not yet serving.
        said: lines that are printed once it can be reached.
    """
    try:
        for text in said:
            print(text, flush=True)
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.book.labels()  # waits for the line that is being written
        server.server_close()
