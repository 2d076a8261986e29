"""The gateway and plain nginx read the same odd bytes; whatever the gateway lets through that nginx does not is a finding.

    python benchmarks/gateway/fuzz.py [--cases 3000] [--seed 1] [--replay benchmarks/gateway/seeds/findings.txt]

Behind each stands an upstream that reads strictly and notes every request. Checked for every case: nothing reaches the gateway's
upstream that is not well-formed, no request reaches it that nginx did not pass on with the same body, no answer is missing or
torn, and both are alive afterwards. With `--warm` each case comes second on its connection, behind a sound request with the same
head but for session and length: then the gateway reads it by the shape it has learnt. Seeds of findings are added to `seeds/findings.txt`; they are run first the next time.
"""

import argparse
import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import run as bench

from nexus.kit import home, keys

SEEDS = Path(__file__).parent / "seeds" / "findings.txt"
IN_FLIGHT = 48
QUIET_S = 0.25
Mutation = Callable[[random.Random, "Draft"], None]


@dataclass
class Draft:
    """A request being made wrong. `lines` are header lines without their ending; `second` follows on the same connection."""

    start: bytes
    lines: list[bytes]
    body: bytes
    end: bytes = b"\r\n"
    second: bytes = b""
    after: list[Callable[[bytes], bytes]] = field(default_factory=list)

    def render(self) -> bytes:
        data = self.end.join([self.start, *self.lines, b"", b""]) + self.body
        for change in self.after:
            data = change(data)
        return data + self.second


def lines(token: str, key: str, length: int, *, warm: bool) -> list[bytes]:
    """A request's header lines; `token` says which it is, warm ones in a value that changes from request to request."""
    name = b"Nexus-Session-Id: " if warm else b"x-case: "
    return [
        b"Host: 127.0.0.1", b"Authorization: Bearer " + key.encode(), name + token.encode(), b"Content-Length: %d" % length,
    ]  # fmt: skip


def draft(case: str, key: str, path: str, *, second: bool, warm: bool) -> Draft:
    body, more = f"<{case}.1>".encode(), f"<{case}.2>".encode()
    start = f"POST {path} HTTP/1.1".encode()
    follow = b"\r\n".join([start, *lines(f"{case}.2", key, len(more), warm=warm), b"", b""]) + more if second else b""
    return Draft(start, lines(f"{case}.1", key, len(body), warm=warm), body, second=follow)


def primer(key: str, path: str) -> bytes:
    return b"\r\n".join([f"POST {path} HTTP/1.1".encode(), *lines("warm", key, 2, warm=True), b"", b"{}"])


LENGTHS = [
    b"Content-Length: +%d", b"Content-Length: 0x%x", b"Content-Length: %d ", b"Content-Length:\t%d", b"Content-Length : %d",
    b"Content-Length: %d,%d", b"Content-Length: %d\x0b", b"Content-Length: 0%d", b"content-length:%d", b"Content-Length: -%d",
    b"Content-Length: %d 1", b"Content-Length: ", b"Content_Length: %d", b"Content-Length: %d\r\nContent-Length: %d",
    b"Content-Length: %d\r\nContent-Length: 1", b"Content-Length: 99999999999999999999", b"Content-Length: %d;a",
]  # fmt: skip
CODINGS = [
    b"chunked", b"Chunked", b"chunKed", b"xchunked", b" chunked", b"\tchunked", b"chunked ", b"chunked, identity", b"identity",
    b"identity, chunked", b"gzip, chunked", b"chunked\r\nTransfer-Encoding: chunked", b"chunked\r\nTransfer-Encoding: x",
    b'"chunked"', b"chunked;q=1", b",chunked", b"chunked,", b"\x0bchunked", b"chunked\x00", b"",
]  # fmt: skip
CODING_NAMES = [
    b"Transfer-Encoding: ",
    b"Transfer-Encoding:",
    b"Transfer-Encoding : ",
    b"transfer-encoding: ",
    b"Transfer_Encoding: ",
]
SIZES = [
    b"%x", b"0%x", b"%x;a=b", b"%x ;a", b"%x\t", b" %x", b"+%x", b"0x%x", b"-%x", b"%xg", b"%x;\n", b"%x;a=\"b\r\n\"",
    b"fffffffffffffffff%x", b"%x\r", b"%X", b"000000000000000000000%x",
]  # fmt: skip
ODD_LINES = [
    b"x: a\x00b", b"x: a\rb", b"x: a\nb", b" x: folded", b"\tx: folded", b"x y: z", b"x\x7f: z", b": empty", b"novalue",
    b"x:" + b"y" * 9000, b"\x80: z", b"x: \x80\xff", b"Host: other", b"Host:", b"Host: a b", b"Host: a/b",
    b"Host: 127.0.0.1:99999999", b"Connection: close", b"Connection: keep-alive, x-case", b"Connection: content-length",
    b"Expect: 100-continue", b"Expect: x", b"TE: trailers", b"Upgrade: h2c", b"Connection: Upgrade\r\nUpgrade: websocket",
    b"Trailer: Host", b"Keep-Alive: timeout=5", b"X-Forwarded-For: a", b"Content-Type: a\r\nContent-Type: b",
    b"Nexus-Tenant: other", b"Content-Encoding: gzip", b"Proxy-Connection: close",
]  # fmt: skip
STARTS = [
    b"POST %b HTTP/1.0", b"POST %b HTTP/0.9", b"POST %b HTTP/2.0", b"POST %b HTTP/1.2", b"POST %b HTTP/1.10", b"POST %b http/1.1",
    b"POST %b", b"POST  %b HTTP/1.1", b"POST %b  HTTP/1.1", b"POST\t%b HTTP/1.1", b" POST %b HTTP/1.1", b"post %b HTTP/1.1",
    b"PO ST %b HTTP/1.1", b"P\x00ST %b HTTP/1.1", b"POST %b HTTP/1.1 ", b"POST %b#x HTTP/1.1", b"POST %b?a=%%00 HTTP/1.1",
    b"POST http://127.0.0.1%b HTTP/1.1", b"POST http://other%b HTTP/1.1", b"POST *%b HTTP/1.1", b"POST %b\x7f HTTP/1.1",
    b"POST %b\x80 HTTP/1.1", b"GET %b HTTP/1.1", b"TRACE %b HTTP/1.1", b"CONNECT 127.0.0.1:1 HTTP/1.1", b"\r\nPOST %b HTTP/1.1",
    b"\nPOST %b HTTP/1.1", b"\r\n\r\n\r\nPOST %b HTTP/1.1", b"POST %b?\" HTTP/1.1",
]  # fmt: skip


def length_line(rng: random.Random, it: Draft) -> None:
    pattern = rng.choice(LENGTHS)
    size = len(it.body) if rng.random() < 0.7 else rng.randrange(0, 60)
    it.lines[3] = pattern % ((size,) * pattern.count(b"%"))


def coding_line(rng: random.Random, it: Draft) -> None:
    if rng.random() < 0.7:
        del it.lines[3]
    it.lines.insert(rng.randrange(1, len(it.lines) + 1), rng.choice(CODING_NAMES) + rng.choice(CODINGS))
    chunk_body(rng, it, odd=rng.random() < 0.3)


def chunked(rng: random.Random, it: Draft) -> None:
    it.lines[3] = b"Transfer-Encoding: chunked"
    chunk_body(rng, it, odd=True)


def chunk_body(rng: random.Random, it: Draft, *, odd: bool) -> None:
    size = len(it.body)
    line = (rng.choice(SIZES) if odd else b"%x") % size
    ending = rng.choice([b"\r\n", b"\r\n", b"\n", b"\r", b"", b"\r\n\r\n", b"X\r\n"]) if odd else b"\r\n"
    last = rng.choice(
        [b"0\r\n\r\n", b"0\r\n\r\n", b"0\n\n", b"00\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"0;a\r\n\r\n", b"0\r\n", b"0\r\n\n", b""]
    )
    it.body = line + b"\r\n" + it.body + ending + (last if odd else b"0\r\n\r\n")


def odd_line(rng: random.Random, it: Draft) -> None:
    it.lines.insert(rng.randrange(0, len(it.lines) + 1), rng.choice(ODD_LINES))


def start_line(rng: random.Random, it: Draft) -> None:
    it.start = rng.choice(STARTS).replace(b"%b", it.start.split(b" ")[1]).replace(b"%%", b"%")


def endings(rng: random.Random, it: Draft) -> None:
    it.end = rng.choice([b"\n", b"\r", b"\n\r", b"\r\r\n"])


def one_ending(rng: random.Random, it: Draft) -> None:
    wrong, place = rng.choice([b"\n", b"\r", b"\x0b\r\n", b" \r\n", b"\r\n "]), rng.randrange(0, 6)

    def change(data: bytes) -> bytes:
        parts = data.split(b"\r\n")
        at = min(place, len(parts) - 2)
        return b"\r\n".join(parts[: at + 1]) + wrong + b"\r\n".join(parts[at + 1 :])

    it.after.append(change)


def flip(rng: random.Random, it: Draft) -> None:
    places = [(rng.random(), rng.randrange(256)) for _ in range(rng.randrange(1, 4))]

    def change(data: bytes) -> bytes:
        new = bytearray(data)
        for place, byte in places if new else ():
            new[int(place * len(new))] = byte
        return bytes(new)

    it.after.append(change)


def cut(rng: random.Random, it: Draft) -> None:
    place = rng.random()
    it.after.append(lambda data: data[: int(place * len(data))])


def double(rng: random.Random, it: Draft) -> None:
    place, length = rng.random(), rng.randrange(1, 40)

    def change(data: bytes) -> bytes:
        at = int(place * len(data))
        return data[:at] + data[at : at + length] + data[at:]

    it.after.append(change)


MUTATIONS: list[Mutation] = [
    length_line, coding_line, coding_line, chunked, odd_line, odd_line, start_line, endings, one_ending, flip, cut, double
]  # fmt: skip


def make(seed: int, case: str, key: str, path: str, *, warm: bool) -> tuple[bytes, list[int]]:
    """The bytes of a case, the same for both sides but for the path, and where they are cut into writes."""
    rng = random.Random(seed)
    it = draft(case, key, path, second=rng.random() < 0.6, warm=warm)
    for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 2, 3])):
        rng.choice(MUTATIONS)(rng, it)
    cuts = sorted(rng.random() for _ in range(rng.choice([0, 0, 1, 3])))
    data = it.render()
    return data, [int(place * len(data)) for place in cuts]


class Upstream:
    """Reads strictly, notes (token, body) of every request, answers 200 with its count."""

    def __init__(self) -> None:
        self.seen: dict[str, list[bytes]] = {}
        self.malformed: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except asyncio.IncompleteReadError as error:
                    if error.partial:
                        self.malformed.append(error.partial)
                    return
                named = self._parse(head)
                if named is None:
                    self.malformed.append(head)
                    return
                try:
                    body = await self._body(reader, named)
                except (ValueError, asyncio.IncompleteReadError):
                    return  # the request was broken off by its sender: never complete, never acted on
                self.seen.setdefault(named.get("x-case") or named.get("nexus-session-id", "?"), []).append(body)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok")
        except (ConnectionError, asyncio.LimitOverrunError, asyncio.CancelledError):
            return  # cancelled: the hunt is over
        finally:
            writer.close()

    @staticmethod
    def _parse(head: bytes) -> dict[str, str] | None:
        first, *lines = head[:-4].split(b"\r\n")
        if b"\n" in head.replace(b"\r\n", b"") or b"\r" in head.replace(b"\r\n", b"") or first.count(b" ") != 2:
            return None
        named: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.decode("latin-1").partition(":")
            if (
                not colon
                or not name
                or name != name.strip()
                or (name.lower() in ("content-length", "transfer-encoding") and name.lower() in named)
            ):
                return None
            named[name.lower()] = value.strip()
        return None if "content-length" in named and "transfer-encoding" in named else named

    @staticmethod
    async def _body(reader: asyncio.StreamReader, named: dict[str, str]) -> bytes:
        if "transfer-encoding" not in named:
            return await reader.readexactly(int(named.get("content-length") or 0))
        body = b""
        while size := int((await reader.readline()).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        while (await reader.readline()).strip():
            pass
        return body


async def send(port: int, data: bytes, cuts: list[int], first: bytes) -> tuple[bytes, bool]:
    """All that comes back until the other side closes (True) or is quiet; the answer to `first`, sent before it, left out."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        if first:
            writer.write(first)
            await reader.readuntil(b"\r\n\r\nok")
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            writer.write(data[start:end])
            await writer.drain()
            await asyncio.sleep(0)
        while True:
            part = await asyncio.wait_for(reader.read(65536), QUIET_S if got else 4 * QUIET_S)
            if not part:
                return got, True
            got += part
    except TimeoutError:
        return got, False
    except (ConnectionError, asyncio.IncompleteReadError):
        return got, True
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


EXPLAINED = {
    "a tab after a colon is white space (RFC 9110, section 5.6.3); nginx takes it for a part of the value": re.compile(
        rb":[ ]*\t"
    ),
    "nginx closes after TRACE and CONNECT, the gateway refuses them and reads on": re.compile(rb"(?:TRACE|CONNECT) "),
}


def judge(case: str, ours: Upstream, theirs: Upstream, answer: bytes, other: bytes) -> str:
    """What is wrong with how the gateway took a case; empty when nothing is."""
    for number in (1, 2):
        token = f"{case}.{number}"
        mine, reference = ours.seen.get(token, []), theirs.seen.get(token, [])
        if len(mine) > len(reference):
            return f"request {number} was passed on {len(mine)} times, by nginx {len(reference)} times"
        if mine != reference[: len(mine)]:
            return f"request {number} had another body: {mine!r}, nginx {reference!r}"
    if other and not answer:
        return f"the connection was closed without an answer, nginx gave {other[:40]!r}"
    if answer and not answer.startswith(b"HTTP/1.1 "):
        return f"the answer does not begin with a status line: {answer[:60]!r}"
    if b"HTTP/1.1 500 " in answer:
        return "the gateway answered 500"
    return ""


async def hunt(given: argparse.Namespace, key: str, ports: tuple[int, int], ours: Upstream, theirs: Upstream) -> int:
    kept = [int(line.split()[0]) for line in SEEDS.read_text().splitlines() if line and line[0] != "#"] if SEEDS.exists() else []
    seeds = [given.only] if given.only is not None else kept + [given.seed * 1_000_003 + n for n in range(given.cases)]
    findings: list[tuple[int, str, bytes]] = []
    counts = {"both passed on": 0, "only nginx": 0, "neither": 0}
    explained: dict[str, int] = {}
    gate = asyncio.Semaphore(IN_FLIGHT)

    sent: dict[str, bytes] = {}

    def excused(body: bytes) -> bool:
        found = re.search(rb"<(c\d+)\.", body)
        data = sent.get(found[1].decode(), b"") if found else b""
        return any(pattern.search(data) for pattern in EXPLAINED.values())

    async def play(seed: int, number: int) -> None:
        case = f"c{number}"
        async with gate:
            data, cuts = make(seed, case, key, "/agents/echo/run", warm=given.warm)
            first = primer(key, "/agents/echo/run") if given.warm else b""
            sent[case] = data
            (answer, closed), (other, _) = await asyncio.gather(
                send(ports[0], data, cuts, first), send(ports[1], data, cuts, first)
            )
        mine, reference = (sum(len(side.seen.get(f"{case}.{n}", [])) for n in (1, 2)) for side in (ours, theirs))
        counts["both passed on" if mine and mine == reference else "only nginx" if reference else "neither"] += 1
        wrong = judge(case, ours, theirs, answer, other if closed else b"")
        reason = next((text for text, pattern in EXPLAINED.items() if wrong.startswith("request") and pattern.search(data)), None)
        if reason is not None:
            explained[reason] = explained.get(reason, 0) + 1
        elif wrong:
            findings.append((seed, wrong, data))
        if given.only is not None:
            print(data, cuts, answer, other, sep="\n")

    async with asyncio.TaskGroup() as group:
        for number, seed in enumerate(seeds):
            group.create_task(play(seed, number))
    if ours.malformed:
        findings.append((0, f"{len(ours.malformed)} malformed requests reached the upstream: {ours.malformed[0]!r}", b""))
    passed_by_nginx = {body for bodies in theirs.seen.values() for body in bodies}
    stray = [body for body in ours.seen.get("?", []) if body not in passed_by_nginx and not excused(body)]
    if stray:
        findings.append((0, f"{len(stray)} requests without their token that nginx did not pass on: {stray[0]!r}", b""))
    for seed, wrong, data in findings:
        print(f"FINDING seed {seed}: {wrong}\n  {data[:400]!r}")
    fresh = [(seed, wrong) for seed, wrong, _ in findings if seed and seed not in kept]
    if fresh and not given.dry:
        SEEDS.parent.mkdir(exist_ok=True)
        with SEEDS.open("a", encoding="ascii") as file:
            file.writelines(f"{seed} {wrong.encode('ascii', 'replace').decode()[:120]}\n" for seed, wrong in fresh)
    for text, count in explained.items():
        print(f"{count} times: {text}")
    print(f"{len(seeds)} cases ({len(kept)} kept seeds first): {counts}; findings: {len(findings)}")
    return 1 if findings else 0


async def compare(given: argparse.Namespace, folder: Path, children: list["subprocess.Popen[bytes]"]) -> int:
    node = home.Home(folder)
    node.run.mkdir(mode=0o700)
    ours, theirs = Upstream(), Upstream()
    paths = folder / "ours.sock", folder / "theirs.sock"
    for side, path in zip((ours, theirs), paths, strict=True):
        await asyncio.start_unix_server(side.serve, str(path), limit=1 << 20)
    key = keys.new_key()
    bench.serve_feed(node, key, paths[0])
    ports = bench.free_port(), bench.free_port()
    environ = {"PATH": os.environ["PATH"], "NEXUS_HOME": str(folder), "NEXUS_PORT": str(ports[0]), "NEXUS_ALLOWED_HOSTS": "*"}
    gateway = subprocess.Popen([sys.executable, "-m", "nexus.apps.gateway"], env=environ, stderr=(folder / "log").open("ab"))
    children.append(gateway)
    user = "user root; " if os.geteuid() == 0 else ""
    text = bench.NGINX.format(user=user, processes=1, folder=folder, upstream=paths[1], port=ports[1])
    (folder / "nginx.conf").write_text(text)
    children.append(
        subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "nginx.log")])
    )
    await asyncio.to_thread(bench.wait_for, lambda: bench.healthy(node.door_socket(0)) and bench.listens(ports[1]))
    code = await hunt(given, key, ports, ours, theirs)
    log = (folder / "log").read_text()
    if gateway.poll() is not None or "Traceback" in log:
        print("FINDING the gateway ended or logged a traceback:\n" + log[-2000:])
        return 1
    return code


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=3000)
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 30))
    options.add_argument("--only", type=int, help="play this one seed and show everything")
    options.add_argument("--warm", action="store_true", help="each case behind a sound request that it resembles")
    options.add_argument("--dry", action="store_true", help="do not keep the seeds of findings")
    given = options.parse_args()
    if shutil.which("nginx") is None:
        print("nginx not installed: apt-get install nginx-light")
        return 2
    print(f"seed {given.seed}")
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="nx-fuzz-", dir="/tmp") as name:
        try:
            return asyncio.run(compare(given, Path(name), children))
        finally:
            for child in children:
                child.send_signal(signal.SIGTERM)
            for child in children:
                try:
                    child.wait(5)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


if __name__ == "__main__":
    sys.exit(main())
