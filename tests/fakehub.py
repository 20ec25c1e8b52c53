"""A hub on loopback: as much of its HTTP interface as huggingface_hub needs to publish and to fetch, kept in memory."""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".onnx", ".bin")
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "llama2", "other")
WRITE, READ = "hf_writes_things", "hf_reads_things"


def digest_blob(content: bytes) -> str:
    """The id that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """Files of every branch, and what was said of them."""

    private: bool = False
    gated: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: dict[str, list[str]] = field(default_factory=lambda: {"main": ["created"]})

    def sha(self, branch: str) -> str:
        return hashlib.sha1(f"{branch} {len(self.commits[branch])} {id(self)}".encode()).hexdigest()

    def find(self, revision: str) -> str | None:
        """The branch that a name, or the id of its last commit, means."""
        return next((name for name in self.branches if revision in (name, self.sha(name))), None)


class FakeHub:
    """The server, what it holds, and what was asked of it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.lock = threading.Lock()
        self.cut_after: int | None = None
        """So many uploads get through; then the connection is cut."""
        self.forbidden: set[str] = set()
        """Repositories that may not be written to, whatever the token."""
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.answer({"error": message}, status, **({"X_Error_Code": code} if code else {}), X_Error_Message=message)

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def open_repository(self, name: str) -> Repository | None:
        """Find a repository that the token may see; answers where there is none."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.token not in (WRITE, READ)):
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif found.gated:
            self.refuse(403, "GatedRepo", "Access to this model is restricted")
        else:
            return found
        return None

    def may_write(self, name: str) -> bool:
        if self.token == WRITE and name not in self.hub.forbidden:
            return True
        self.refuse(403, message="Forbidden: you must have write access")
        return False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts == ["api", "whoami-v2"]:
            role = {WRITE: "write", READ: "read"}.get(self.token or "")
            if role is None:
                return self.refuse(401, message="Invalid credentials in Authorization header")
            return self.answer({"name": "me", "orgs": [{"name": "ours"}], "auth": {"accessToken": {"role": role}}})
        if parts[:1] == ["api"] and parts[1] in ("models", "datasets") and len(parts) >= 3:
            end = 3 if parts[3:4] in ([], ["revision"]) else 4  # some of the oldest have no owner
            name = "/".join(parts[2:end])
            found = self.open_repository(name if parts[1] == "models" else f"datasets/{name}")
            return None if found is None else self.tell(name, found, parts[end:])
        if "resolve" in parts:
            place = parts.index("resolve")
            found = self.open_repository("/".join(parts[:place]))
            return None if found is None else self.give(found, parts[place + 1], "/".join(parts[place + 2 :]))
        return self.refuse(404, "EntryNotFound", f"no {self.path}")

    def tell(self, name: str, found: Repository, rest: list[str]) -> None:
        branch = found.find(rest[1] if len(rest) > 1 else "main")
        if branch is None:
            return self.refuse(404, "RevisionNotFound", "Revision not found")
        files = found.branches[branch]
        if rest[:1] == ["tree"]:
            return self.answer([_describe(path, content) for path, content in sorted(files.items())])
        siblings = [{"rfilename": path} for path in sorted(files)]
        told = {"id": name, "sha": found.sha(branch), "private": found.private, "siblings": siblings}
        return self.answer({**told, "cardData": found.card, "tags": [], "downloads": 0, "likes": 0})

    def give(self, found: Repository, revision: str, path: str) -> None:
        branch = found.find(revision)
        if branch is None:
            return self.refuse(404, "RevisionNotFound", "Revision not found")
        if path not in found.branches[branch]:
            return self.refuse(404, "EntryNotFound", f"no {path}")
        content = found.branches[branch][path]
        return self.answer(content, ETag=f'"{_id(path, content)}"', X_Repo_Commit=found.sha(branch))

    def do_POST(self) -> None:
        body = self.read()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts == ["api", "validate-yaml"]:
            return self.validate(json.loads(body)["content"])
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            if name in self.hub.repositories:
                return self.refuse(409, message="You already created this model repo")
            if self.may_write(name):
                private = asked.get("visibility") == "private" or asked.get("private") is True
                self.hub.repositories[name] = Repository(private=private)
                return self.answer({"url": f"{self.hub.url}/{name}"})
            return None
        if parts[-1] == "batch":
            return self.plan_uploads(json.loads(body))
        name = f"{parts[2]}/{parts[3]}"
        if not self.may_write(name):
            return None
        found = self.open_repository(name)
        if found is None:
            return None
        if parts[4] == "branch":
            if parts[5] in found.branches:
                return self.refuse(409, message="Reference already exists")
            found.branches[parts[5]], found.commits[parts[5]] = dict(found.branches["main"]), [*found.commits["main"]]
            return self.answer({})
        branch = found.find(parts[5]) or "main"
        if parts[4] == "preupload":
            return self.plan_commit(found.branches[branch], json.loads(body)["files"])
        return self.commit(name, found, branch, [json.loads(line) for line in body.splitlines()])

    def validate(self, card: str) -> None:
        """Refuse a card whose licence is none that the hub knows, in the two forms that huggingface_hub asks for."""
        licence = yaml.safe_load(card.split("---")[1])["license"]
        if licence in LICENCES:
            return self.answer({"errors": [], "warnings": []})
        told = f'"license" must be one of [{", ".join(LICENCES)}]'
        plain = self.headers.get("Accept") == "text/plain"
        content = f"- Error: {told}".encode() if plain else {"errors": [{"message": told}], "warnings": []}
        return self.answer(content, 400)

    def plan_commit(self, files: dict[str, bytes], asked: list[dict[str, Any]]) -> None:
        told = []
        for one in asked:
            path = one["path"]
            old = {"oid": _id(path, files[path])} if path in files else {}
            mode = "lfs" if path.endswith(LARGE) else "regular"
            told.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **old})
        self.answer({"files": told})

    def plan_uploads(self, asked: dict[str, Any]) -> None:
        told = []
        for one in asked["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}"}}
            told.append({**one, **({} if one["oid"] in self.hub.objects else {"actions": action})})
        self.answer({"objects": told, "transfer": "basic"})

    def commit(self, name: str, found: Repository, branch: str, lines: list[dict[str, Any]]) -> None:
        files = found.branches[branch]
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        found.commits[branch].append(lines[0]["value"]["summary"])
        sha = found.sha(branch)
        self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def do_PUT(self) -> None:
        content, oid = self.read(), self.path.rpartition("/")[2]
        with self.hub.lock:  # files come at once
            if self.hub.cut_after is not None and len(self.hub.uploads) >= self.hub.cut_after:
                self.close_connection = True
                self.connection.close()
                return
            assert hashlib.sha256(content).hexdigest() == oid
            self.hub.objects[oid] = content
            self.hub.uploads.append(oid)
        self.answer({})


def _id(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else digest_blob(content)


def _describe(path: str, content: bytes) -> dict[str, Any]:
    told = {"type": "file", "path": path, "size": len(content), "oid": digest_blob(content)}
    if not path.endswith(LARGE):
        return told
    return {**told, "lfs": {"oid": _id(path, content), "size": len(content), "pointerSize": 134}}
