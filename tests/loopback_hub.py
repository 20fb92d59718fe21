"""
An in-memory Hugging Face Hub on this machine's loopback address, for the real clients. It has repositories of models,
data sets and Spaces with commits, branches, tags and large files, tokens with permissions, and faults on demand.

The requests are those that huggingface_hub 0.36 to 2.4 send; `log` has each as (method, path, status).
"""

import base64
import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import RLock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from . import hub_rules


LARGE = (".safetensors", ".onnx", ".parquet", ".png")  # what is stored as a large file


class Refused(Exception):
    """Turned into an answer with an error status, in the Hub's format."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: str) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, body


@dataclass
class Repository:
    id: str
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # sha -> path -> content
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        listing = "".join(f"{path} {hashlib.sha1(files[path]).hexdigest()}\n" for path in sorted(files))
        sha = hashlib.sha1(f"{len(self.commits)} {self.id} {listing}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        for names in (self.branches, self.tags):
            if revision in names:
                return names[revision]
        if revision in self.commits:
            return revision
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class LoopbackHub(ThreadingHTTPServer):
    """
    `tokens` maps a token to (user, role), the role being "read" or "write"; a user may write under the own name. Use
    it as a context manager, and give `environment` to the processes that are to talk to it.
    """

    daemon_threads = True

    def __init__(self, tokens: dict[str, tuple[str, str]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = tokens
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.log: list[tuple[str, str, int]] = []
        self.faults: list[dict[str, Any]] = []
        self.lock = RLock()

    def __enter__(self) -> "LoopbackHub":
        Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """For a client of this Hub with its own caches in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "NO_PROXY": "127.0.0.1",
            "HF_TOKEN": token or "",  # not one that the developer is logged in with
        }

    def add(self, kind: str, repo_id: str, files: dict[str, bytes] | Path) -> str:
        """A repository with one commit of `files`, or of a folder's; returns the commit."""
        if isinstance(files, Path):
            files = {str(p.relative_to(files)): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        repository = self.repositories.setdefault((kind, repo_id), Repository(repo_id))
        return repository.commit(files)

    @contextmanager
    def fault(self, method: str, path: str, what: int | str, times: int = 10**9) -> Iterator[None]:
        """Answer requests whose path matches with the status `what`, or "cut" them in the middle of their body."""
        fault = {"method": method, "path": path, "what": what, "times": times}
        self.faults.append(fault)
        try:
            yield
        finally:
            self.faults.remove(fault)

    def due_fault(self, method: str, path: str) -> int | str | None:
        with self.lock:
            for fault in self.faults:
                if fault["method"] == method and re.search(fault["path"], path) and fault["times"] > 0:
                    fault["times"] -= 1
                    return fault["what"]
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def do(self) -> None:
        self.path, _, query = self.path.partition("?")
        self.query = parse_qs(query)
        fault = self.server.due_fault(self.command, self.path)
        length = int(self.headers.get("Content-Length", 0))
        if fault == "cut":
            self.rfile.read(length // 2)
            self.server.log.append((self.command, self.path, 0))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        self.body = self.chunks() if chunked else self.rfile.read(length)
        try:
            if fault is not None:
                raise Refused(fault, "Internal Error")
            with self.server.lock:
                self.route()
        except Refused as refusal:
            headers = {"X-Error-Message": str(refusal)}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.answer({"error": str(refusal), **refusal.body}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do

    def chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, content: Any = b"", status: int = 200, headers: dict[str, Any] | None = None) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.server.log.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""

    # --- Who may do what ---------------------------------------------------------------------------------------------

    def user(self, write_to: str | None = None) -> str | None:
        """The token's user; with `write_to`, one who may write to repositories of that name."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        user, role = self.server.tokens.get(token, (None, "read"))
        if write_to is not None and user is None:
            raise Refused(401, "Invalid username or password.")
        if write_to is not None and (role != "write" or write_to.split("/")[0] != user):
            raise Refused(403, f"Forbidden: you must use a write token with rights on {write_to}")
        return user

    def repository(self, kind: str, repo_id: str) -> Repository:
        repository = self.server.repositories.get((kind, repo_id))
        if repository is None or (repository.private and self.user() != repo_id.split("/")[0]):
            raise Refused(404, "Repository not found", "RepoNotFound")
        return repository

    # --- The routes --------------------------------------------------------------------------------------------------

    def route(self) -> None:
        for (method, pattern), handle in ROUTES.items():
            match = re.fullmatch(pattern, urlsplit(self.path).path)
            if match and (self.command == method or (self.command == "HEAD" and method == "GET")):
                return handle(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
        raise Refused(404, f"{self.command} {self.path}: no such route")

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        role = self.server.tokens[self.headers["Authorization"].removeprefix("Bearer ")][1]
        access = {"displayName": "test", "role": role}
        self.answer(
            {"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token", "accessToken": access}}
        )

    def create(self) -> None:
        body = json.loads(self.body)
        kind = body.get("type") or "model"
        repo_id = f"{body.get('organization') or self.user('')}/{body['name']}"
        self.user(write_to=repo_id)
        url = f"{self.server.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if (kind + "s", repo_id) in self.server.repositories:
            raise Refused(409, "You already created this repo", url=url)
        private = body.get("visibility") == "private" or bool(body.get("private"))  # newer and older clients
        repository = Repository(repo_id, private)
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.server.repositories[(kind + "s", repo_id)] = repository
        self.answer({"url": url, "id": repo_id})

    def validate(self) -> None:
        body = json.loads(self.body)
        found = hub_rules.errors(body["content"], body["repoType"])
        errors = [{"message": message} for message in found]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, kind: str, id: str, revision: str) -> None:
        self.user(write_to=id)
        repository = self.repository(kind, id)
        files = repository.commits[repository.resolve(revision)]
        modes = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            modes.append(
                {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
            )
            if path in files:  # for a client that leaves out what is there already
                entry = self.entry(path, files[path])
                modes[-1]["oid"] = entry.get("lfs", entry)["oid"]
        self.answer({"files": modes})

    def large_file_batch(self, kind: str, id: str) -> None:
        self.user(write_to=id)
        objects = []
        for item in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.server.endpoint}/large/{item['oid']}"}}
            known = item["oid"] in self.server.large_files
            objects.append({**item, "authenticated": True, **({} if known else {"actions": upload})})
        self.answer({"transfer": "basic", "objects": objects})

    def put_large_file(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "the content has another hash")
        self.server.large_files[oid] = self.body
        self.answer()

    def commit(self, kind: str, id: str, revision: str) -> None:
        self.user(write_to=id)
        repository = self.repository(kind, id)
        parent = repository.resolve(revision)
        files = dict(repository.commits[parent])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit") not in (None, parent):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files, branch=revision)
        self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.server.endpoint}/{id}/commit/{sha}"})

    def branch(self, kind: str, id: str, revision: str) -> None:
        self.user(write_to=id)
        repository = self.repository(kind, id)
        if revision in repository.branches:
            raise Refused(409, "Reference already exists")
        repository.branches[revision] = repository.branches["main"]
        self.answer()

    def tag(self, kind: str, id: str, revision: str) -> None:
        self.user(write_to=id)
        repository, name = self.repository(kind, id), json.loads(self.body)["tag"]
        if name in repository.tags:
            raise Refused(409, "Tag reference exists already")
        repository.tags[name] = repository.resolve(revision)
        self.answer()

    def refs(self, kind: str, id: str) -> None:
        repository = self.repository(kind, id)
        self.answer(
            {
                key: [{"name": name, "ref": f"refs/{path}/{name}", "targetCommit": sha} for name, sha in names.items()]
                for key, path, names in (
                    ("branches", "heads", repository.branches),
                    ("tags", "tags", repository.tags),
                    ("converts", "convert", {}),
                )
            }
        )

    def info(self, kind: str, id: str, revision: str = "main") -> None:
        repository = self.repository(kind, id)
        sha = repository.resolve(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        about = {"id": id, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
        self.answer({**about, "downloads": 0, "likes": 0, "gated": False, "disabled": False})

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        if not path.endswith(LARGE):
            return {"type": "file", "path": path, "size": len(content), "oid": git_blob(content)}
        oid = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()
        large = {"oid": oid, "size": len(content), "pointerSize": len(pointer)}
        return {"type": "file", "path": path, "size": len(content), "oid": git_blob(pointer), "lfs": large}

    def directory(self, path: str) -> dict[str, Any]:
        return {"type": "directory", "path": path, "size": 0, "oid": git_blob(b"")}

    def tree(self, kind: str, id: str, revision: str, folder: str = "") -> None:
        repository = self.repository(kind, id)
        files = repository.commits[repository.resolve(revision)]
        prefix = f"{folder}/" if folder else ""
        inside = {path: content for path, content in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        entries, folders = [], set()
        for path, content in sorted(inside.items()):
            first, *rest = path.removeprefix(prefix).split("/")
            if rest:
                folders.add(prefix + first)
            if not rest or self.query.get("recursive", ["False"])[0].lower() in ("true", "1"):
                entries.append(self.entry(path, content))
        self.answer([self.directory(name) for name in folders] + entries)

    def paths_info(self, kind: str, id: str, revision: str) -> None:
        repository = self.repository(kind, id)
        files = repository.commits[repository.resolve(revision)]
        if self.headers["Content-Type"] == "application/json":
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        folders = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
        entries = [self.entry(path, files[path]) for path in paths if path in files]
        entries += [self.directory(path) for path in paths if path in folders]
        self.answer(entries)

    def download(self, kind: str, id: str, revision: str, path: str) -> None:
        repository = self.repository(kind or "models", id)
        sha = repository.resolve(revision)
        if path not in repository.commits[sha]:
            error = json.dumps({"error": "Entry not found"}).encode()
            return self.answer(error, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        content = repository.commits[sha][path]
        entry = self.entry(path, content)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": len(content)}
        start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-")).groups()
        part = content[int(start) : int(end) + 1 if end else None]
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
        return self.answer(part, 206 if "Range" in self.headers else 200, headers)


ID = r"(?P<id>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{ID}"
REVISION = "(?P<revision>[^/]+)"
ROUTES: dict[tuple[str, str], Callable[..., None]] = {
    ("GET", "/api/whoami-v2"): Handler.whoami,
    ("POST", "/api/repos/create"): Handler.create,
    ("POST", "/api/validate-yaml"): Handler.validate,
    ("POST", f"{API}/preupload/{REVISION}"): Handler.preupload,
    ("POST", rf"/(?P<kind>(?:datasets|spaces)/)?{ID}\.git/info/lfs/objects/batch"): Handler.large_file_batch,
    ("PUT", "/large/(?P<oid>[0-9a-f]{64})"): Handler.put_large_file,
    ("POST", f"{API}/commit/{REVISION}"): Handler.commit,
    ("POST", f"{API}/branch/{REVISION}"): Handler.branch,
    ("POST", f"{API}/tag/{REVISION}"): Handler.tag,
    ("GET", f"{API}/refs"): Handler.refs,
    ("GET", API): Handler.info,
    ("GET", f"{API}/revision/{REVISION}"): Handler.info,
    ("GET", f"{API}/tree/{REVISION}(?:/(?P<folder>.+))?"): Handler.tree,
    ("POST", f"{API}/paths-info/{REVISION}"): Handler.paths_info,
    ("GET", rf"/(?:(?P<kind>datasets|spaces)/)?{ID}/resolve/{REVISION}/(?P<path>.+)"): Handler.download,
}
