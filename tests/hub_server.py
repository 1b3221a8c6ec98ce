"""A server that speaks the paths of the hub that are used: a model's facts, and its files, by range too."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


def facts(name, folder):
    siblings = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            each = {"rfilename": str(path.relative_to(folder)), "size": len(data), "blobId": "b" * 40}
            if path.suffix in (".safetensors", ".bin", ".gguf"):
                each["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(each)
    return {
        "id": name,
        "modelId": name,
        "sha": COMMIT,
        "siblings": siblings,
        "private": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
    }


def tree(folder):
    listed = facts("", folder)["siblings"]
    return [
        {
            "type": "file",
            "path": each["rfilename"],
            "size": each["size"],
            "oid": each["blobId"],
            **({"lfs": {"oid": each["lfs"]["sha256"], **each["lfs"]}} if "lfs" in each else {}),
        }
        for each in listed
    ]


@contextmanager
def serving(name, folder):
    """The endpoint of a hub with one model, and the list of its requests: (method, file or "", first and last byte)."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.partition("?")[0]
            file = re.fullmatch(rf"/{name}/resolve/(?:main|{COMMIT})/(.+)", path)
            if re.fullmatch(rf"/api/models/{name}(/revision/(main|{COMMIT}))?", path):
                data, headers = json.dumps(facts(name, folder)).encode(), {"Content-Type": "application/json"}
            elif re.fullmatch(rf"/api/models/{name}/tree/(main|{COMMIT})", path):
                data, headers = json.dumps(tree(folder)).encode(), {"Content-Type": "application/json"}
            elif file and (folder / file[1]).is_file():
                data = (folder / file[1]).read_bytes()
                headers = {
                    "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                    "X-Repo-Commit": COMMIT,
                    "Accept-Ranges": "bytes",
                }
            else:
                self.send_error(404)
                return
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            requests.append((self.command, file[1] if file else "", span and (int(span[1]), span[2])))
            status = 200
            if span:
                end = min(int(span[2] or len(data) - 1), len(data) - 1)
                headers["Content-Range"] = f"bytes {span[1]}-{end}/{len(data)}"
                data, status = data[int(span[1]) : end + 1], 206
            self.send_response(status)
            for key, value in {**headers, "Content-Length": len(data)}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
