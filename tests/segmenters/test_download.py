"""Downloads against a server of our own on localhost: whole, resumed, broken off, refused, of another content."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from arrcoc_sam.errors import CheckpointError, InputError, OutputError
from arrcoc_sam.segmenters import download as download_module
from arrcoc_sam.segmenters.download import download, sha256_of

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several blocks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does, and what it was asked."""

    content: bytes = CONTENT
    with_range: bool = True
    statuses: list[int] = field(default_factory=list)  # answered first, one a request
    cut_after: list[int] = field(default_factory=list)  # bytes after which the connection drops, one a request
    wrong_range: bool = False
    framing: str = "length"  # or "close", whose end is that of the connection, or "chunked"
    ranges: list[str | None] = field(default_factory=list)  # the Range header of every request


@pytest.fixture
def server() -> Iterator[tuple[str, Behaviour]]:
    behaviour = Behaviour()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            behaviour.ranges.append(asked)
            if behaviour.statuses:
                self.send_error(behaviour.statuses.pop(0))
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and behaviour.with_range else 0
            if start >= len(behaviour.content):
                self.send_error(416)
                return
            body = behaviour.content[start:]
            self.send_response(206 if start else 200)
            if behaviour.framing == "length":
                self.send_header("Content-Length", str(len(body)))
            elif behaviour.framing == "chunked":
                self.send_header("Transfer-Encoding", "chunked")
            if start:
                first = start + 7 if behaviour.wrong_range else start
                last = len(behaviour.content) - 1
                self.send_header("Content-Range", f"bytes {first}-{last}/{last + 1}")
            self.end_headers()
            cut = behaviour.cut_after.pop(0) if behaviour.cut_after else len(body)
            if behaviour.framing != "chunked":
                self.wfile.write(body[:cut])
                return
            for first in range(0, cut, 100_000):
                chunk = body[first : min(first + 100_000, cut)]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            if cut == len(body):
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/weights.pth", behaviour
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def get(url: str, target: Path, *, sha256: str = DIGEST, attempts: int = 3) -> Path:
    return download(url, target, sha256=sha256, attempts=attempts, wait_s=0.001, timeout_s=5.0)


def test_whole_file_arrives_in_a_folder_that_is_made(server, tmp_path):
    url, behaviour = server
    seen: list[tuple[int, int | None]] = []
    target = download(
        url, tmp_path / "a" / "b" / "w.pth", sha256=DIGEST, advance=lambda done, total: seen.append((done, total))
    )
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) >= 3
    assert not list(target.parent.glob("*.part"))
    assert behaviour.ranges == [None]


def test_existing_file_is_not_asked_for_again(server, tmp_path):
    url, behaviour = server
    (tmp_path / "w.pth").write_bytes(b"mine")
    assert get(url, tmp_path / "w.pth").read_bytes() == b"mine"
    assert behaviour.ranges == []


def test_transfer_that_breaks_off_goes_on_where_it_stopped(server, tmp_path):
    url, behaviour = server
    behaviour.cut_after = [1_500_000, 700_000]
    assert get(url, tmp_path / "w.pth").read_bytes() == CONTENT
    assert behaviour.ranges == [None, "bytes=1500000-", "bytes=2200000-"]


@pytest.mark.parametrize("framing", ["close", "chunked"])
def test_transfer_without_a_length_goes_on_where_it_stopped(server, tmp_path, framing):
    url, behaviour = server
    behaviour.framing, behaviour.cut_after = framing, [1_500_000]
    target = download(url, tmp_path / "w.pth", sha256=DIGEST, size_bytes=len(CONTENT), wait_s=0.001)
    assert target.read_bytes() == CONTENT
    assert behaviour.ranges == [None, "bytes=1500000-"]


def test_file_of_another_size_without_a_length_is_not_kept(server, tmp_path):
    url, behaviour = server
    behaviour.framing = "close"
    with pytest.raises(CheckpointError, match="has SHA-256"):
        download(url, tmp_path / "w.pth", sha256="0" * 64, size_bytes=len(CONTENT) + 1, wait_s=0.001)
    assert not list(tmp_path.glob("*.part"))


def test_digest_in_capital_letters(server, tmp_path):
    url, _ = server
    assert get(url, tmp_path / "w.pth", sha256=DIGEST.upper()).read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["nonsense", "ftp://example.org/w.pth", ""])
def test_no_address(tmp_path, url):
    with pytest.raises(InputError, match=f"url='{url}'; expected an address"):
        get(url, tmp_path / "a" / "w.pth")
    assert not (tmp_path / "a").exists()


def test_partial_file_of_an_earlier_run_is_continued(server, tmp_path):
    url, behaviour = server
    (tmp_path / "w.pth.part").write_bytes(CONTENT[:1_000_000])
    assert get(url, tmp_path / "w.pth").read_bytes() == CONTENT
    assert behaviour.ranges == ["bytes=1000000-"]


def test_complete_partial_file_needs_no_more_bytes(server, tmp_path):
    url, behaviour = server
    (tmp_path / "w.pth.part").write_bytes(CONTENT)  # the server answers 416
    assert get(url, tmp_path / "w.pth").read_bytes() == CONTENT
    assert behaviour.ranges == [f"bytes={len(CONTENT)}-"]


def test_server_without_range_sends_all_again(server, tmp_path):
    url, behaviour = server
    behaviour.with_range = False
    behaviour.cut_after = [1_500_000]
    assert get(url, tmp_path / "w.pth").read_bytes() == CONTENT
    assert behaviour.ranges == [None, "bytes=1500000-"]


@pytest.mark.parametrize("wrong", [b"x" * 1_000_000, CONTENT + b"longer than it should be"])
def test_partial_file_of_another_content_is_thrown_away(server, tmp_path, wrong):
    url, behaviour = server
    (tmp_path / "w.pth.part").write_bytes(wrong)
    assert get(url, tmp_path / "w.pth").read_bytes() == CONTENT
    assert behaviour.ranges == [f"bytes={len(wrong)}-", None]


def test_answer_of_another_range_is_not_appended(server, tmp_path):
    url, behaviour = server
    behaviour.wrong_range = True
    (tmp_path / "w.pth.part").write_bytes(CONTENT[:1_000_000])
    assert get(url, tmp_path / "w.pth").read_bytes() == CONTENT
    assert behaviour.ranges == ["bytes=1000000-", None]


def test_wrong_digest_leaves_nothing(server, tmp_path):
    url, _ = server
    with pytest.raises(CheckpointError, match=rf"has SHA-256 {DIGEST}; expected {'0' * 64}"):
        get(url, tmp_path / "w.pth", sha256="0" * 64)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_missing_file_on_the_server_is_said_at_once(server, tmp_path):
    url, behaviour = server
    behaviour.statuses = [404, 404]
    with pytest.raises(CheckpointError, match="answers 404 Not Found"):
        get(url, tmp_path / "w.pth")
    assert len(behaviour.ranges) == 1
    assert not (tmp_path / "w.pth").exists()


def test_passing_trouble_of_the_server_is_waited_for(server, tmp_path):
    url, behaviour = server
    behaviour.statuses = [503, 429]
    assert get(url, tmp_path / "w.pth").read_bytes() == CONTENT
    assert len(behaviour.ranges) == 3


def test_giving_up_keeps_what_came(server, tmp_path):
    url, behaviour = server
    behaviour.cut_after = [1_000_000, 0, 0, 0]
    with pytest.raises(
        CheckpointError, match=r"broke off: 1,000,000 of 3,072,000 bytes came \(1,000,000 bytes are kept\)"
    ):
        get(url, tmp_path / "w.pth")
    assert (tmp_path / "w.pth.part").read_bytes() == CONTENT[:1_000_000]
    assert get(url, tmp_path / "w.pth").read_bytes() == CONTENT


def test_progress_starts_the_count_of_attempts_anew(server, tmp_path):
    url, behaviour = server
    behaviour.cut_after = [0, 0, 500_000, 0, 0, 500_000, 0, 0]
    assert get(url, tmp_path / "w.pth").read_bytes() == CONTENT


def test_no_server(tmp_path, server):
    url, _ = server
    with pytest.raises(CheckpointError, match=r"broke off.*nothing came"):
        get(url.replace(url.split(":")[2].split("/")[0], "1"), tmp_path / "w.pth", attempts=2)


def test_folder_that_cannot_be_made(server, tmp_path):
    url, behaviour = server
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"can't be written.*ARRCOC_SAM_CACHE"):
        get(url, tmp_path / "file" / "w.pth")
    assert behaviour.ranges == []


def test_full_disk_is_seen_before_the_download(server, tmp_path, monkeypatch):
    url, _ = server
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OutputError, match="has 1,000 bytes free; expected 3,072,000"):
        get(url, tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


def test_two_at_once_download_once(server, tmp_path):
    url, behaviour = server
    threads = [threading.Thread(target=get, args=(url, tmp_path / "w.pth")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert behaviour.ranges == [None]


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "f").write_bytes(CONTENT)
    assert sha256_of(tmp_path / "f") == DIGEST
