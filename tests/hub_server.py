"""A small Hub on 127.0.0.1, in memory: what huggingface_hub, transformers and datasets ask of it.

Repositories of models and data sets with commits, branches, tags, private ones and range requests.
No user management: whoever knows the token is the one user. As a script it runs a command whose
Hub this is, empty at the start and with its user logged in:

    python hub_server.py COMMAND ...
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER = "chemist"
TOKEN = "hf_local_test_token"
DATE = "2026-01-01T00:00:00.000Z"
# what the tests publish
MODEL, PARTS = f"{USER}/tiny-rmat", f"{USER}/tiny-parts"
PRIVATE, DATA = f"{USER}/tiny-secret", f"{USER}/tiny-data"


@dataclass
class Commit:
    """All files of a repository at one moment."""

    sha: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """A repository with its history; `main` exists from the start."""

    repo_id: str
    kind: str
    is_private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add_commit("main", {})

    def add_commit(self, branch: str, files: dict[str, bytes]) -> Commit:
        seed = f"{self.kind} {self.repo_id} {len(self.commits)}"
        commit = Commit(hash_content(seed.encode()), files)
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit

    def find_commit(self, revision: str) -> Commit:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[sha]


class HubError(Exception):
    """An answer with an error code that the client turns into an exception."""

    def __init__(self, status: int, code: str, message: str, **body: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **body}
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


def hash_content(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def describe_file(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": hash_content(content), "size": len(content)}


def list_tree(files: dict[str, bytes], folder: str, *, is_recursive: bool) -> list[dict[str, Any]]:
    """The files and folders below a folder, as the Hub lists them."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, content in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        folders = [prefix + "/".join(parts[:depth]) for depth in range(1, len(parts))]
        for name in folders if is_recursive else folders[:1]:
            entries[name] = {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        if is_recursive or len(parts) == 1:
            entries[path] = describe_file(path, content)
    return list(entries.values())


class Hub:
    """The state of the server: its repositories, and large files on their way into one."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.endpoint = ""

    def find(self, kind: str, repo_id: str, *, is_known: bool) -> Repository:
        """A private repository looks to strangers like one that is not there."""
        repository = self.repositories.get((kind, repo_id))
        if repository is None or (repository.is_private and not is_known):
            status = 404 if is_known else 401
            raise HubError(status, "RepoNotFound", "Repository not found")
        return repository

    def create(self, request: dict[str, Any]) -> dict[str, Any]:
        kind = f"{request.get('type') or 'model'}s"
        repo_id = f"{request.get('organization') or USER}/{request['name']}"
        answer = {"url": f"{self.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}
        if (kind, repo_id) in self.repositories:
            raise HubError(409, "RepoExists", "You already created this repo", **answer)
        is_private = bool(request.get("private")) or request.get("visibility") == "private"
        self.repositories[kind, repo_id] = Repository(repo_id, kind, is_private)
        return answer

    def describe(self, repository: Repository, revision: str) -> dict[str, Any]:
        commit = repository.find_commit(revision)
        return {
            "_id": hash_content(repository.repo_id.encode())[:24],
            "id": repository.repo_id,
            "author": USER,
            "sha": commit.sha,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            "private": repository.is_private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "lastModified": DATE,
            "createdAt": DATE,
        }

    def commit(self, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> Commit:
        files = dict(repository.find_commit(branch).files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.uploads[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif line["key"] != "header":
                raise HubError(400, "BadRequest", f"unknown operation {line['key']}")
        return repository.add_commit(branch, files)


# Files that are uploaded before their commit; datasets deletes its own copies in between.
LARGE_FILES = (".parquet", ".safetensors")

# What a stranger may post: questions. Everything else that is posted needs the token.
QUESTIONS = ("/paths-info/", "/validate-yaml")

Answer = dict[str, Any] | list[Any]
REPO = r"/api/(?P<kind>models|datasets)/(?P<repo_id>[^/]+/[^/]+)"
RESOLVE = re.compile(
    r"/(?P<kind>datasets/)?(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)


class Handler(BaseHTTPRequestHandler):
    """Finds the function behind a request; a table of patterns, first match wins."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the base class's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Tests want silence."""

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        path = unquote(url.path)
        try:
            with self.hub.lock:
                if match := RESOLVE.fullmatch(path):
                    self.resolve(**match.groupdict())
                else:
                    self.send_json(self.route(path))
        except HubError as error:
            content = json.dumps(error.body).encode()
            self.send_content(error.status, content, headers=error.headers)

    def route(self, path: str) -> Answer:
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                # the address of an upload is the permission, as on the Hub
                is_free = method in ("GET", "PUT") or any(part in path for part in QUESTIONS)
                if not is_free and not self.is_known:
                    raise HubError(401, "Unauthorized", "Invalid username or password.")
                groups = match.groupdict()
                if "repo_id" not in groups:
                    return function(self, **groups)
                kind, repo_id = groups.pop("kind"), groups.pop("repo_id")
                repository = self.hub.find(kind, repo_id, is_known=self.is_known)
                return function(self, repository, **groups)
        raise HubError(404, "NotFound", f"{self.command} {path}")

    @property
    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def send_json(self, content: Answer, status: int = 200) -> None:
        headers = {"Content-Type": "application/json"}
        self.send_content(status, json.dumps(content).encode(), headers=headers)

    def send_content(self, status: int, content: bytes, *, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def resolve(self, kind: str | None, repo_id: str, revision: str, path: str) -> None:
        """A file, whole or the part that a Range header names."""
        repository = self.hub.find(
            "datasets" if kind else "models", repo_id, is_known=self.is_known
        )
        commit = repository.find_commit(revision)
        if path not in commit.files:
            raise HubError(404, "EntryNotFound", "Entry not found")
        content = commit.files[path]
        headers = {
            "ETag": f'"{hash_content(content)}"',
            "X-Repo-Commit": commit.sha,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        status = 200
        if part := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = part.groups()
            size = len(content)
            start = int(first) if first else max(0, size - int(last))
            end = min(int(last), size - 1) if first and last else size - 1
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
            content, status = content[start : end + 1], 206
        self.send_content(status, content, headers=headers)

    def read_json(self) -> Any:
        return json.loads(self.body or b"{}")

    def get_whoami(self) -> Answer:
        if not self.is_known:
            raise HubError(401, "Unauthorized", "Invalid username or password.")
        token = {"role": "write", "displayName": "test"}
        auth = {"type": "access_token", "accessToken": token}
        return {"type": "user", "name": USER, "orgs": [], "auth": auth}

    def post_create(self) -> Answer:
        return self.hub.create(self.read_json())

    def delete_repository(self) -> Answer:
        request = self.read_json()
        repo_id = f"{request.get('organization') or USER}/{request['name']}"
        del self.hub.repositories[f"{request.get('type') or 'model'}s", repo_id]
        return {}

    def post_validate_yaml(self) -> Answer:
        return {"errors": [], "warnings": []}

    def get_info(self, repository: Repository, revision: str = "main") -> Answer:
        return self.hub.describe(repository, revision)

    def get_tree(self, repository: Repository, revision: str, path: str | None = None) -> Answer:
        commit = repository.find_commit(revision)
        is_recursive = self.query.get("recursive", [""])[0].lower() == "true"
        entries = list_tree(commit.files, path or "", is_recursive=is_recursive)
        if path and not entries:
            raise HubError(404, "EntryNotFound", f"{path} does not exist")
        return entries

    def get_refs(self, repository: Repository) -> Answer:
        found = {
            kind: [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha}
                for name, sha in names.items()
            ]
            for kind, names in (("branches", repository.branches), ("tags", repository.tags))
        }
        return {**found, "converts": []}

    def post_tag(self, repository: Repository, revision: str) -> Answer:
        name = self.read_json()["tag"]
        if name in repository.tags:
            raise HubError(409, "RefExists", f"Tag {name} already exists")
        repository.tags[name] = repository.find_commit(revision).sha
        return {}

    def post_paths_info(self, repository: Repository, revision: str) -> Answer:
        files = repository.find_commit(revision).files
        if "json" in self.headers.get("Content-Type", ""):
            paths = self.read_json()["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        paths = [paths] if isinstance(paths, str) else paths
        return [describe_file(path, files[path]) for path in paths if path in files]

    def post_preupload(self, repository: Repository, revision: str) -> Answer:
        files = repository.find_commit(revision).files
        answers = []
        for file in self.read_json()["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LARGE_FILES) else "regular"
            oid = hash_content(files[path]) if path in files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers, "commitOid": repository.find_commit(revision).sha}

    def post_large_files(self) -> Answer:
        """Where to put the content of large files, by the batch protocol of Git LFS."""
        objects = []
        for file in self.read_json()["objects"]:
            action = {"upload": {"href": f"{self.hub.endpoint}/lfs/{file['oid']}"}}
            objects.append({"oid": file["oid"], "size": file["size"], "actions": action})
        return {"transfer": "basic", "objects": objects}

    def put_large_file(self, oid: str) -> Answer:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "BadRequest", "the content does not have this checksum")
        self.hub.uploads[oid] = self.body
        return {}

    def post_commit(self, repository: Repository, revision: str) -> Answer:
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        commit = self.hub.commit(repository, revision, lines)
        url = f"{self.hub.endpoint}/{repository.repo_id}/commit/{commit.sha}"
        return {"success": True, "commitUrl": url, "commitOid": commit.sha}


ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", "/api/whoami-v2", Handler.get_whoami),
    ("POST", "/api/repos/create", Handler.post_create),
    ("DELETE", "/api/repos/delete", Handler.delete_repository),
    ("POST", "/api/validate-yaml", Handler.post_validate_yaml),
    ("POST", r"/.+\.git/info/lfs/objects/batch", Handler.post_large_files),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]+)", Handler.put_large_file),
    ("GET", REPO, Handler.get_info),
    ("GET", REPO + "/revision/(?P<revision>[^/]+)", Handler.get_info),
    ("GET", REPO + "/tree/(?P<revision>[^/]+)(/(?P<path>.+?))?/?", Handler.get_tree),
    ("GET", REPO + "/refs", Handler.get_refs),
    ("POST", REPO + "/tag/(?P<revision>[^/]+)", Handler.post_tag),
    ("POST", REPO + "/paths-info/(?P<revision>[^/]+)", Handler.post_paths_info),
    ("POST", REPO + "/preupload/(?P<revision>[^/]+)", Handler.post_preupload),
    ("POST", REPO + "/commit/(?P<revision>[^/]+)", Handler.post_commit),
]


@contextmanager
def run_hub(handler_class: type[Handler] = Handler) -> Iterator[Hub]:
    """Run a Hub on a free port in a thread of this process; `endpoint` is its address."""
    hub = Hub()
    handler = type("BoundHandler", (handler_class,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run_command(command: list[str]) -> int:
    """Run a command, logged in to a Hub of its own and with empty caches; return its exit code."""
    with run_hub() as hub, tempfile.TemporaryDirectory() as folder:
        cached = ("HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN_PATH")
        inherited = {name: value for name, value in os.environ.items() if name not in cached}
        online = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": folder,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return subprocess.run(command, env=inherited | online, check=False).returncode


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:]))
