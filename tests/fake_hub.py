"""A small Hugging Face Hub on localhost: it serves folders as models, takes uploads, and refuses as the real Hub refuses.

What huggingface_hub goes by is the status and a few headers, see `hf_raise_for_status` and `get_hf_file_metadata` there:
``X-Error-Code`` (RepoNotFound, GatedRepo, EntryNotFound), ``X-Error-Message``, ``X-Repo-Commit`` and ``ETag``. Somebody without a
token gets 401 for a gated model and for one that doesn't exist, somebody with a token 403 and 404, and a token that is not valid 401
for everything. (Over https the library takes a 401 without a code for a missing model too; over http it wants the code.)

An upload has five steps, see `create_commit` there: make the repository, ask which files are large, ask where a large file goes,
send it there, and commit: one request with the small files themselves and the checksums of the large ones. The library's newer
protocol for large files, Xet, is not spoken here: a client sets HF_HUB_DISABLE_XET=1.

>>> with FakeHub({}) as hub:
...     hub.url.startswith("http://127.0.0.1:")
True
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "f" * 40


class FakeHub:
    """Serves ``models`` while its ``with`` block lasts; ``requests`` keeps every request as (method, path, status).

    ``tokens`` names the valid ones and says of each whether it has access to the ``gated`` models, and may upload. What is uploaded
    is kept under ``storage``, a folder for each model, and served like the others. ``failing`` gives some models a status that answers
    every request for them, and of the models in ``breaking_off`` the weights are sent by half before the connection is closed.
    """

    def __init__(
        self,
        models: dict[str, Path],
        gated: tuple[str, ...] = (),
        tokens: dict[str, bool] | None = None,
        storage: Path | None = None,
        failing: dict[str, int] | None = None,
        breaking_off: tuple[str, ...] = (),
    ) -> None:
        self.models = models
        self.gated = gated
        self.tokens = tokens or {}
        self.storage = storage
        self.failing = failing or {}
        self.breaking_off = breaking_off
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        is_api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        repo, rest = "/".join(parts[:2]), parts[2:]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo in self.hub.failing:
            self.answer(self.hub.failing[repo], {})
        elif token and token not in self.hub.tokens:
            self.answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo in self.hub.gated and not self.hub.tokens.get(token):
            self.answer(403 if token else 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {repo} is restricted."})
        elif repo not in self.hub.models:
            self.answer(404 if token else 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif is_api and rest[:1] != ["tree"]:
            self.answer_json({"id": repo, "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": self.siblings(repo)})
        elif is_api:
            self.answer_json([{"type": "file", "path": s["rfilename"], "size": s["size"], "oid": s["etag"]} for s in self.siblings(repo)])
        elif rest[:1] == ["resolve"] and (file := self.hub.models[repo].joinpath(*rest[2:])).is_file():
            break_off = repo in self.hub.breaking_off and file.suffix == ".safetensors"
            self.answer(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag(file)}"'}, file.read_bytes(), break_off)
        else:
            self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        body = self.body()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if path == "api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif token not in self.hub.tokens:
            self.answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif self.hub.storage is None or not self.hub.tokens[token]:
            self.answer(403, {"X-Error-Message": "This token may not write."})
        elif path == "api/repos/create":
            self.create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            address = f"{self.hub.url}/large"
            wanted = json.loads(body)["objects"]
            objects = [{**one, "actions": {"upload": {"href": f"{address}/{one['oid']}"}}} for one in wanted]
            self.answer_json({"transfer": "basic", "objects": objects})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "lfs" if n.endswith(".safetensors") else "regular", "shouldIgnore": False} for n in names]
            self.answer_json({"files": modes})
        elif "/commit/" in path:
            self.commit("/".join(path.removeprefix("api/models/").split("/")[:2]), [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404, {"X-Error-Message": "Not found"})

    def do_PUT(self) -> None:
        """A large file, at the address that was given for its checksum."""
        content, oid = self.body(), self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() == oid:
            self.hub.large_files[oid] = content
            self.answer(200, {})
        else:
            self.answer(400, {"X-Error-Message": "The checksum is another."})

    def create(self, wanted: dict[str, str]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        known = repo in self.hub.models
        self.hub.models.setdefault(repo, self.hub.storage / repo)
        self.hub.models[repo].mkdir(parents=True, exist_ok=True)
        content = json.dumps({"url": f"{self.hub.url}/{repo}", "name": repo}).encode()
        self.answer(409 if known else 200, {"Content-Type": "application/json"}, content)

    def commit(self, repo: str, lines: list[dict]) -> None:
        """All files of a commit, or none."""
        files: dict[str, bytes] = {}
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                if line["value"]["oid"] not in self.hub.large_files:
                    return self.answer(400, {"X-Error-Message": f"{line['value']['path']} was not uploaded."})
                files[line["value"]["path"]] = self.hub.large_files[line["value"]["oid"]]
        for name, content in files.items():
            (self.hub.models[repo] / name).write_bytes(content)
        self.answer_json({"commitUrl": f"{self.hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

    def body(self) -> bytes:
        """What a request brings, sent in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline().strip(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def siblings(self, repo: str) -> list[dict[str, str | int]]:
        folder = self.hub.models[repo]
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return [{"rfilename": f.relative_to(folder).as_posix(), "size": f.stat().st_size, "etag": etag(f)} for f in files]

    def answer_json(self, content: object) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"", break_off: bool = False) -> None:
        self.hub.requests.append((self.command, self.path, status))
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if break_off else body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def etag(file: Path) -> str:
    """The name of a file's content, as git gives it."""
    return hashlib.sha1(f"blob {file.stat().st_size}\0".encode() + file.read_bytes()).hexdigest()
