"""A hub on 127.0.0.1 for tests: it makes repositories and takes commits, and remembers what it was sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What the server was sent.

    Attributes:
        url: its address.
        repositories: name -> its visibility, None for the default.
        commits: for each commit its repository, revision, message, and path -> content.
        authorizations: the tokens of all requests.
        refuses_commits: answer every commit with an error.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, str | None] = {}
        self.commits: list[tuple[str, str, str, dict[str, bytes]]] = []
        self.authorizations: set[str | None] = set()
        self.refuses_commits = False


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that runs until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.authorizations.add(self.headers["Authorization"])
            parts = self.path.strip("/").split("/")
            if parts[:2] == ["api", "models"] and parts[4] == "commit":
                self.reply(*self.commit("/".join(parts[2:4]), parts[5], body))
            elif parts[:2] == ["api", "models"] and parts[4] == "preupload":
                paths = [file["path"] for file in json.loads(body)["files"]]
                files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
                self.reply(200, {"files": files})
            elif parts == ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                hub.repositories[name] = asked.get("visibility")
                self.reply(200, {"url": f"{hub.url}/{name}", "id": name})
            else:
                self.reply(200, {"errors": [], "warnings": []})  # of the front matter of a card

        def commit(self, repository: str, revision: str, body: bytes) -> tuple[int, dict]:
            if hub.refuses_commits:
                return 403, {"error": "no room"}
            lines = [json.loads(line) for line in body.splitlines()]
            message = next(line["value"]["summary"] for line in lines if line["key"] == "header")
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            hub.commits.append((repository, revision, message, files))
            return 200, {"commitUrl": f"{hub.url}/{repository}/commit/abc", "commitOid": "abc", "success": True}

        def do_GET(self) -> None:
            self.reply(200, {"id": "/".join(self.path.split("/")[3:5]), "sha": "abc", "siblings": []})

        def reply(self, status: int, content: dict) -> None:
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
