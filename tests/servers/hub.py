"""A small Hugging Face Hub on loopback: repositories in memory, over real HTTP.

It answers what huggingface_hub 2.4 asks with Xet switched off: whoami, repository creation, preupload, LFS batch,
upload and verify, commits (all or nothing, with ``parentCommit``), model info, tree, refs, and resolve with ranges.

Left out: authentication, LFS multipart, deletions and copies in commits, several branches, paging, redirects to a
content network, Xet, datasets and Spaces.

Faults to ask for: ``corrupt`` (the last byte of a file is altered, headers stay as they are), ``cut_after`` (the
connection breaks after that many bytes of a file, once for each), ``wrong_range`` (ranges begin one byte late).
Run by itself: ``python tests/servers/hub.py [PORT]``.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server and what it holds."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}  # repository → commit → path → content
        self.heads: dict[str, str] = {}
        self.tags: dict[tuple[str, str], str] = {}  # repository and tag → commit
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.corrupt: set[str] = set()
        self.cut_after: dict[str, int] = {}
        self.wrong_range = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Put files on top of the head, and return the new commit."""
        commits = self.repositories.setdefault(repository, {})
        tree = {**commits.get(self.heads.get(repository, ""), {}), **files}
        seed = repr((self.heads.get(repository), sorted((p, git_oid(d)) for p, d in tree.items())))
        commit = hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()
        commits[commit] = tree
        self.heads[repository] = commit
        return commit

    @contextmanager
    def running(self) -> Iterator["Hub"]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


def is_lfs(path: str, size: int) -> bool:
    return size > 10 * 2**20 or path.endswith((".safetensors", ".bin"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        body = self.body()
        routes = (
            (r"/api/whoami-v2", self.whoami),
            (r"/api/repos/create", self.create),
            (r"/api/models/(?P<id>.+?)/preupload/(?P<rev>[^/]+)", self.preupload),
            (r"/api/models/(?P<id>.+?)/commit/(?P<rev>[^/]+)", self.make_commit),
            (r"/api/models/(?P<id>.+?)/tree/(?P<rev>[^/]+)", self.tree),
            (r"/api/models/(?P<id>.+?)/refs", self.refs),
            (r"/api/models/(?P<id>.+?)(?:/revision/(?P<rev>[^/]+))?", self.info),
            (r"/(?P<id>.+?)\.git/info/lfs/objects/batch", self.batch),
            (r"/lfs/(?P<oid>[0-9a-f]{64})", self.lfs),
            (r"/(?P<id>.+?)/resolve/(?P<rev>[^/]+)/(?P<file>.+)", self.resolve),
        )
        for pattern, handler in routes:
            if match := re.fullmatch(pattern, path):
                values = match.groupdict()
                if "id" in values and values["id"] not in self.server.repositories:
                    return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                if (
                    values.get("rev")
                    and not self.files(values["id"], values["rev"])
                    and handler not in (self.preupload, self.make_commit, self.info, self.tree)
                ):
                    return self.answer(404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"})
                return handler(values, body)
        return self.answer(404, {"error": f"no such route: {path}"})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, value: object = None, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def commit_of(self, repository: str, revision: str | None) -> str:
        if revision in (None, "main"):
            return self.server.heads[repository]
        return self.server.tags.get((repository, str(revision)), str(revision))

    def files(self, repository: str, revision: str | None) -> dict[str, bytes]:
        return self.server.repositories[repository].get(self.commit_of(repository, revision), {})

    def whoami(self, values: dict[str, str], body: bytes) -> None:
        token = {"type": "access_token", "accessToken": {"role": "write"}}
        self.answer(200, {"name": "me", "type": "user", "orgs": [], "auth": token})

    def create(self, values: dict[str, str], body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        value = {"id": name, "url": f"{self.server.url}/{name}"}
        if name in self.server.repositories:
            return self.answer(409, value | {"error": "You already created this model repo"})
        self.server.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.answer(200, value)

    def preupload(self, values: dict[str, str], body: bytes) -> None:
        held = self.files(values["id"], values["rev"])
        files = []
        for file in json.loads(body)["files"]:
            lfs = is_lfs(file["path"], file["size"])
            data = held.get(file["path"])
            oid = None if data is None else hashlib.sha256(data).hexdigest() if lfs else git_oid(data)
            mode = "lfs" if lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": files})

    def batch(self, values: dict[str, str], body: bytes) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.objects:
                place = {"href": f"{self.server.url}/lfs/{wanted['oid']}", "header": {}}
                entry["actions"] = {"upload": place, "verify": place}
            objects.append(entry)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs(self, values: dict[str, str], body: bytes) -> None:
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != values["oid"]:
                return self.answer(400, {"error": "the content is not what its name says"})
            self.server.objects[values["oid"]] = body
        return self.answer(200 if values["oid"] in self.server.objects else 404, {})

    def make_commit(self, values: dict[str, str], body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, self.server.heads[values["id"]]):
            return self.answer(412, {"error": "the head has moved"})
        files = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile" and value["oid"] in self.server.objects:
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                return self.answer(400, {"error": f"cannot commit {line['key']}"})
        commit = self.server.commit(values["id"], files)
        url = f"{self.server.url}/{values['id']}/commit/{commit}"
        return self.answer(
            200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None}
        )

    def info(self, values: dict[str, str], body: bytes) -> None:
        files = self.files(values["id"], values.get("rev"))
        if not files:
            return self.answer(404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": path} for path in files]
        commit = self.commit_of(values["id"], values.get("rev"))
        return self.answer(
            200,
            {"id": values["id"], "modelId": values["id"], "sha": commit, "private": False, "siblings": siblings,
             "tags": [], "downloads": 0, "likes": 0},
        )  # fmt: skip

    def tree(self, values: dict[str, str], body: bytes) -> None:
        entries = []
        for path, data in self.files(values["id"], values["rev"]).items():
            entry = {"type": "file", "oid": git_oid(data), "size": len(data), "path": path}
            if is_lfs(path, len(data)):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        self.answer(200, entries)

    def refs(self, values: dict[str, str], body: bytes) -> None:
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.server.heads[values["id"]]}
        self.answer(200, {"branches": [branch], "tags": [], "converts": []})

    def resolve(self, values: dict[str, str], body: bytes) -> None:
        name = values["file"]
        data = self.files(values["id"], values["rev"]).get(name)
        if data is None:
            return self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        oid = hashlib.sha256(data).hexdigest() if is_lfs(name, len(data)) else git_oid(data)
        size = len(data)
        if name in self.server.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
        sent = data[start:]
        if start and self.server.wrong_range:
            sent = data[start - 1 : -1]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        for header, text in (
            ("ETag", f'"{oid}"'), ("X-Linked-Etag", f'"{oid}"'), ("X-Linked-Size", str(size)),
            ("X-Repo-Commit", self.commit_of(values["id"], values["rev"])), ("Accept-Ranges", "bytes"),
            ("Content-Length", str(len(sent))),
        ):  # fmt: skip
            self.send_header(header, text)
        self.end_headers()
        if self.command == "HEAD":
            return None
        cut = self.server.cut_after.pop(name, None)
        self.wfile.write(sent[:cut])
        if cut is not None:
            self.close_connection = True
        return None


if __name__ == "__main__":
    hub = Hub(int(sys.argv[1]) if len(sys.argv) > 1 else 18910)
    print(hub.url)
    hub.serve_forever()
