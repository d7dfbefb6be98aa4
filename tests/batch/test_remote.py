"""Slides and outputs by URL, against a real S3 server and a web server on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from doubles import make_slides

from mupd_wsi.batch import remote
from mupd_wsi.errors import SlideError, UsageError
from mupd_wsi.validation import validate_slide

COMMON = ["--target", "CD8", "--mpp", "0.5", "--no-tissue-mask"]


class Bucket:
    """A bucket of its own on the S3 server."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.name = name
        self.environment = os.environ | {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._client: Any = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        self._client.create_bucket(Bucket=name)

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=content)

    def keys(self) -> dict[str, int]:
        listed = self._client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {entry["Key"]: entry["Size"] for entry in listed}

    def get(self, key: str) -> bytes:
        content: bytes = self._client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return content

    def fetch(self, prefix: str, folder: Path) -> None:
        for key in self.keys():
            if key.startswith(prefix):
                (folder / key).parent.mkdir(parents=True, exist_ok=True)
                (folder / key).write_bytes(self.get(key))

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while True:
        try:
            Bucket(f"http://127.0.0.1:{port}", "probe").close()
            break
        except (EndpointConnectionError, ClientError):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def bucket(server: str, tmp_path: Path) -> Iterator[Bucket]:
    bucket = Bucket(server, f"slides-{abs(hash(tmp_path)) % 10**9}")
    yield bucket
    bucket.close()


def mupd(*arguments: str | Path, here: Path, environment: dict[str, str], code: int = 0) -> tuple[dict[str, Any], str]:
    """Run the command; its JSON, and what it said to people. Copies go to a folder that must be empty afterwards."""
    scratch = here / "scratch"
    scratch.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "mupd_wsi", *map(str, arguments), "--json"],
        cwd=here,
        env=environment | {"TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert [p.name for p in scratch.iterdir() if "mupd" in p.name] == []
    return (json.loads(done.stdout) if done.stdout else {}), done.stderr


@pytest.mark.parametrize("ending", [".ome.tiff", ".ome.zarr"])
def test_a_slide_from_s3_to_s3(ending: str, bucket: Bucket, tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "in", ["a.png"])
    bucket.put("in/a.png", (slides / "a.png").read_bytes())
    base = f"s3://{bucket.name}"
    arguments = ["stain", f"{base}/in/a.png", *COMMON, "-o", f"{base}/out/a{ending}"]
    values, _ = mupd(*arguments, here=tmp_path, environment=bucket.environment)
    assert values["output"] == f"{base}/out/a{ending}"
    bucket.fetch("out/", tmp_path)
    assert validate_slide(tmp_path / "out" / f"a{ending}").ok
    record = json.loads((tmp_path / "out" / f"a{ending}.json").read_text())
    assert record["slide_path"] == f"{base}/in/a.png"
    assert record["slide_source"]["size"] == str((slides / "a.png").stat().st_size)
    assert record["output"]["path"] == values["output"]
    assert (tmp_path / "out" / "a.preview.png").read_bytes().startswith(b"\x89PNG")
    if ending == ".ome.tiff":
        _, shown = mupd(*arguments, here=tmp_path, environment=bucket.environment, code=3)
        assert "--overwrite" in shown
        mupd(*arguments, "--overwrite", here=tmp_path, environment=bucket.environment)


def test_a_batch_from_s3_to_s3_does_nothing_twice(bucket: Bucket, tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "in", ["a.png", "b.png"])
    for name in ("a.png", "b.png"):
        bucket.put(f"in/{name}", (slides / name).read_bytes())
    bucket.put("in/bad.png", b"no picture")
    base = f"s3://{bucket.name}"
    arguments = ["batch", f"{base}/in/*.png", *COMMON, "-o", f"{base}/out"]
    first, _ = mupd(*arguments, here=tmp_path, environment=bucket.environment, code=1)
    assert (first["done"], first["skipped"], [f["slide"] for f in first["failed"]]) == (2, 0, [f"{base}/in/bad.png"])
    before = bucket.keys()
    assert {"out/a.CD8.ome.tiff", "out/b.CD8.preview.png", "out/summary.csv", "out/batch.jsonl"} <= set(before)
    bucket.put("in/bad.png", (slides / "a.png").read_bytes())
    second, _ = mupd(*arguments, here=tmp_path, environment=bucket.environment)
    assert (second["done"], second["skipped"]) == (1, 2)
    assert all(bucket.keys()[name] == size for name, size in before.items() if name.startswith("out/a."))
    state, _ = mupd("status", f"{base}/out", here=tmp_path, environment=bucket.environment)
    assert state["counts"]["done"] == 3
    bucket.put("in/a.png", (slides / "b.png").read_bytes())
    changed, _ = mupd(*arguments, here=tmp_path, environment=bucket.environment, code=1)
    assert "its data has changed" in changed["failed"][0]["reason"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "in")))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_slide_from_the_web_is_stained_here(web: str, tmp_path: Path) -> None:
    make_slides(tmp_path / "in", ["a b.png"])
    environment = dict(os.environ)
    values, _ = mupd("stain", f"{web}/a%20b.png", *COMMON, "-o", "out.ome.tiff", here=tmp_path, environment=environment)
    assert values["output"] == str(tmp_path / "out.ome.tiff")
    assert validate_slide(tmp_path / "out.ome.tiff").ok
    assert json.loads((tmp_path / "out.ome.tiff.json").read_text())["slide_path"] == f"{web}/a%20b.png"
    _, shown = mupd("stain", f"{web}/none.png", *COMMON, here=tmp_path, environment=environment, code=3)
    assert f"{web}/none.png cannot be read" in shown
    assert shown.count("\n") == 1


def test_local_urls_and_unknown_ones(tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "x").write_bytes(b"12345")
    (tmp_path / "tree" / "zarr.json").write_bytes(b"{}")
    url = f"file://{tmp_path}/copy.zarr"
    remote.upload(tmp_path / "tree", url)
    assert remote.exists(url)
    assert remote.size_of(url) == 7
    (tmp_path / "tree" / "deep" / "x").rename(tmp_path / "tree" / "deep" / "y")
    remote.upload(tmp_path / "tree", url)
    assert sorted(p.name for p in (tmp_path / "copy.zarr").rglob("*") if p.is_file()) == ["y", "zarr.json"]
    back = remote.download(url, tmp_path / "back") if (tmp_path / "back").mkdir() is None else None
    assert back is not None
    assert (back / "deep" / "y").read_bytes() == b"12345"
    with pytest.raises(UsageError, match=r"mupd-wsi\[cloud\]"):
        remote.size_of("carrier-pigeon://loft/slide.svs")
    with pytest.raises(SlideError, match="cannot be read"):
        remote.size_of(f"file://{tmp_path}/none.svs")
