"""The load: wrk for throughput, hey for a fixed rate, and which connections got answers."""

import contextlib
import csv
import io
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from stage import BenchError

VISITS = Path(__file__).with_name("visits.lua")
HEY_CONNECTIONS = 50
H2LOAD_THREADS = 2


# What the loads ask that cannot vary their requests.
SAME_TARGET = "/track?site=1&page=2"
SAME_HEADERS = [
    "-H", "Referer: https://www.example.com/products/red-shoes",
    "-H", "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Firefox/127.0",
]


@dataclass
class Answers:
    count: int
    """Answers with the status 200."""
    refused: int
    """Every other answer, and every request that failed."""
    seconds: float
    served: int = 0
    """Connections that got answers in the second half of the load."""


class Wrk:
    """A running wrk; `finish` waits for its end, `interrupt` ends it early."""

    def __init__(self, port, connections, seconds, threads=2, count_served=False):
        self.process = subprocess.Popen(
            ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s",
             "-s", VISITS, f"http://127.0.0.1:{port}/track"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        self.port = port
        self.seconds = seconds
        self.served = 0
        self.counter = threading.Thread(target=self._count_served)
        if count_served:
            self.counter.start()

    def _count_served(self):
        time.sleep(self.seconds * 0.5)
        before = received_by_connection(self.port)
        time.sleep(self.seconds * 0.4)
        after = received_by_connection(self.port)
        self.served = sum(after[name] > before.get(name, 0) for name in after)

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def finish(self):
        text, _ = self.process.communicate(timeout=self.seconds + 60)
        if self.counter.ident:
            self.counter.join()
        total = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", text)
        if not total:
            raise BenchError(f"wrk said:\n{text}")
        other = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
        errors = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
        other = int(other[1]) if other else 0
        failed = sum(map(int, errors.groups())) if errors else 0
        unit = {"ms": 0.001, "s": 1, "m": 60}[total[3]]
        return Answers(int(total[1]) - other, other + failed, float(total[2]) * unit, self.served)


def received_by_connection(port):
    """Bytes each client connection to `port` has received, by its local address (from the kernel)."""
    listing = subprocess.run(
        ["ss", "-tinHO", "state", "established", f"dport = :{port}"],
        capture_output=True, text=True, check=True, timeout=10,
    ).stdout
    received = {}
    for line in listing.splitlines():
        count = re.search(r"bytes_received:(\d+)", line)
        received[line.split()[2]] = int(count[1]) if count else 0
    return received


@dataclass
class Timings:
    """Answers of a fixed-rate load: (seconds since its start, seconds taken), and the failures."""
    answers: list
    refused: int

    def quantiles(self, since=0.0, until=float("inf")):
        taken = sorted(t for at, t in self.answers if since <= at < until)
        if not taken:
            return None
        pick = lambda q: taken[min(len(taken) - 1, int(q * len(taken)))]
        return {"p50": pick(0.5), "p99": pick(0.99), "p999": pick(0.999), "answers": len(taken)}


class Hey:
    """A running hey at `rate` requests a second."""

    def __init__(self, port, rate, seconds):
        self.process = subprocess.Popen(
            ["hey", "-z", f"{seconds}s", "-c", str(HEY_CONNECTIONS),
             "-q", str(rate // HEY_CONNECTIONS), "-o", "csv",
             *SAME_HEADERS, f"http://127.0.0.1:{port}{SAME_TARGET}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        self.seconds = seconds

    def finish(self):
        text, errors = self.process.communicate(timeout=self.seconds + 60)
        rows = list(csv.DictReader(io.StringIO(text)))
        if not rows:
            raise BenchError(f"hey said: {errors}")
        good = [(float(row["offset"]), float(row["response-time"]))
                for row in rows if row["status-code"] == "200"]
        return Timings(good, len(rows) - len(good))


# The private edges sign for themselves.
ANY_CERTIFICATE = ssl.create_default_context()
ANY_CERTIFICATE.check_hostname = False
ANY_CERTIFICATE.verify_mode = ssl.CERT_NONE


class H2load:
    """A running h2load over TLS: for `seconds`, or else one request on each of `connections`."""

    def __init__(self, port, connections, http2, seconds=None):
        amount = ["-D", str(seconds)] if seconds else ["-n", str(connections)]
        self.process = subprocess.Popen(
            ["h2load", "-t", str(H2LOAD_THREADS), "-c", str(connections), *amount,
             *([] if http2 else ["--h1"]), *SAME_HEADERS,
             f"--connect-to=127.0.0.1:{port}", f"https://localhost:{port}{SAME_TARGET}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        self.seconds = seconds or 0

    def finish(self):
        text, _ = self.process.communicate(timeout=self.seconds + 60)
        took = re.search(r"finished in ([\d.]+)(ms|s|us)", text)
        status = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
        failed = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", text)
        if not (took and status and failed):
            raise BenchError(f"h2load said:\n{text}")
        good, *other = map(int, status.groups())
        seconds = float(took[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1}[took[2]]
        return Answers(good, sum(other) + sum(map(int, failed.groups()[1:])), seconds)


def answer(port, path, has_tls=False):
    """The status and body of one `GET`, or `None` when nothing answers."""
    try:
        with contextlib.ExitStack() as open_:
            client = open_.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            client.settimeout(5)
            if has_tls:
                client = open_.enter_context(ANY_CERTIFICATE.wrap_socket(client, server_hostname="localhost"))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
            reply = b""
            while chunk := client.recv(65_536):
                reply += chunk
    except OSError:
        return None
    head, _, body = reply.partition(b"\r\n\r\n")
    words = head.split()
    return (int(words[1]), body) if len(words) > 1 else None
