#!/usr/bin/env python3
"""Slow clients against `pixel`, directly and through each edge, with a visit every half second beside them.

    make slow-clients                                  1,000 connections, 60 s each: about half an hour
    make slow-clients CONNECTIONS=200 SECONDS=15       a small run
    make slow-clients WAYS=direct,haproxy ATTACKS=-X   a part of it

The clients are Debian's slowhttptest: heads that trickle (-H), bodies that trickle (-B, under and over 1 KiB),
answers that nobody reads (-X). The visits come from an address of their own, each on a new connection, and the
output says which were written. Ends with 1 where a visit was refused, lost, written twice or slow.
"""

import argparse
import http.client
import json
import os
import pathlib
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter

ROOT = pathlib.Path(__file__).resolve().parents[1]
PIXEL = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "pixel"
NEWER_CADDY = ROOT / "target" / "lint" / "bin"

VISITOR, VISIT_PAUSE_S, VISIT_TIMEOUT_S = "127.0.0.2", 0.5, 10
SLOWEST_MS = 250
START_S = WRITTEN_S = 30

# What slowhttptest is told; each trickles a piece every second, and has its connections within five.
ATTACKS = {
    "-H, heads of a GET": "-H -t GET -x 24",
    "-H, heads of a POST": "-H -t POST -x 24",
    "-B, bodies of 500 B": "-B -s 500 -x 8",
    "-B, bodies of 8 KiB": "-B -s 8192 -x 8",
    "-B, bodies of 8 KiB, GET": "-B -t GET -s 8192 -x 8",
    "-X, answers not read": "-X -k 50 -n 5 -z 4 -w 1 -y 64",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what, seconds, condition):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"not within {seconds} s: {what}")
        time.sleep(0.1)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Ways:
    """`pixel` and the edges in front of it, each with a log in the folder."""

    def __init__(self, folder):
        self.folder, self.ports, self.programs = folder, {}, {}
        self.output = folder / "visits.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PIXEL_")}
        self.direct = free_port()
        self.start("direct", self.direct, [PIXEL], clean, {
            "PIXEL_LISTEN": f"127.0.0.1:{self.direct}", "PIXEL_ADMIN_LISTEN": f"127.0.0.1:{free_port()}",
            "PIXEL_TRUSTED_PROXIES": "127.0.0.1", "PIXEL_FORMAT": "ndjson", "PIXEL_OUTPUT": str(self.output),
            "PIXEL_SPOOL_DIR": str(folder / "spool"),
        })
        self.clean = clean

    def start_edge(self, name):
        port, home = free_port(), str(self.folder)
        settings = {"PIXEL_UPSTREAM": f"127.0.0.1:{self.direct}", "EDGE": "caddy", "HOME": home,
                    "XDG_DATA_HOME": home, "XDG_CONFIG_HOME": home, "PIXEL_SITE": f":{port}",
                    "PIXEL_BIND": "127.0.0.1"}
        if name == "haproxy":
            settings |= {"EDGE": "haproxy", "PIXEL_EDGE_LISTEN": f"127.0.0.1:{port}",
                         "PIXEL_EDGE_METRICS_LISTEN": f"127.0.0.1:{free_port()}"}
        if name == "newer-caddy":
            settings["PATH"] = f"{NEWER_CADDY}:{os.environ['PATH']}"
        self.start(name, port, [ROOT / "deploy" / "edge.sh"], self.clean, settings)

    def start(self, name, port, command, environment, settings):
        with open(self.folder / f"{name}.log", "ab") as log:
            self.programs[name] = subprocess.Popen(
                command, env={**environment, **settings}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.ports[name] = port
        wait_until(f"{name} listens", START_S, lambda: self.programs[name].poll() is not None or listens(port))
        if self.programs[name].poll() is not None:
            sys.exit(f"{name} ended: {self.log(name)[-2000:]}")

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def restarts(self):
        return self.log("direct").count("then restarting")

    def written(self):
        """How often each numbered visit stands in the output."""
        numbers = Counter()
        for line in self.output.read_text().splitlines():
            query = json.loads(line)["query"] or ""
            if query.startswith("n="):
                numbers[query] += 1
        return numbers

    def stop(self):
        for program in reversed(self.programs.values()):
            program.terminate()
            try:
                program.wait(20)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


class Visits:
    """A visit every half second, each on a connection of its own, whether the one before is answered or not."""

    serial = 0

    def __init__(self, port):
        self.port, self.answers, self.threads, self.ended = port, {}, [], threading.Event()
        self.pacer = threading.Thread(target=self.pace)
        self.pacer.start()

    def pace(self):
        while not self.ended.wait(VISIT_PAUSE_S):
            Visits.serial += 1
            self.threads.append(threading.Thread(target=self.visit, args=(f"n={Visits.serial}",)))
            self.threads[-1].start()

    def visit(self, number):
        began = time.monotonic()
        client = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=VISIT_TIMEOUT_S, source_address=(VISITOR, 0))
        try:
            client.request("GET", f"/track?{number}")
            answer = client.getresponse()
            answer.read()
            status = answer.status
        except (OSError, http.client.HTTPException) as error:
            status = type(error).__name__
        finally:
            client.close()
        self.answers[number] = (status, (time.monotonic() - began) * 1000)

    def end(self):
        self.ended.set()
        self.pacer.join()
        for thread in self.threads:
            thread.join()
        return self.answers


def attack(options, port, arguments):
    """Keeps up one attack for its time; one whose connections were all closed begins again."""
    until = time.monotonic() + arguments.seconds
    while (left := until - time.monotonic()) > 1:
        began = time.monotonic()
        command = ["slowhttptest", *options.split(), "-i", "1", "-p", "3", "-c", str(arguments.connections),
                   "-r", str(max(arguments.connections // 5, 1)), "-l", str(int(left)),
                   "-u", f"http://127.0.0.1:{port}/track?slow"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
                       timeout=arguments.seconds + 60)
        time.sleep(max(0, 1 - (time.monotonic() - began)))


def row(ways, name, options, arguments):
    """One attack by one way: the table's cells, and what of it breaks the promise."""
    restarts = ways.restarts()
    visits = Visits(ways.ports[name])
    attack(options, ways.ports[name], arguments)
    answers = visits.end()
    good = {number: ms for number, (status, ms) in answers.items() if status == 200}
    bad = Counter(str(status) for status, _ in answers.values() if status != 200)
    deadline = time.monotonic() + WRITTEN_S
    while (written := ways.written()) and any(not written[number] for number in good):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    once = sum(written[number] == 1 for number in good)
    times = sorted(good.values()) or [float("inf")]
    at = lambda share: times[min(int(len(times) * share), len(times) - 1)]
    refused = ", ".join(f"{count} {status}" for status, count in bad.items()) or "0"
    cells = [f"{len(good)} of {len(answers)}", f"{at(0.5):.0f} ms", f"{at(0.99):.0f} ms", f"{times[-1]:.0f} ms",
             refused, f"{once} of {len(good)}", str(ways.restarts() - restarts)]
    return cells, bool(bad) or once != len(good) or at(0.99) > SLOWEST_MS or not good


def print_rows(arguments, attacks, row):
    """Prints what `row` says of each attack by each way, and ends the program where one breaks the promise."""
    # A connection through the edge is one descriptor here and four there; the programs take over the limit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    broken = []
    with tempfile.TemporaryDirectory(prefix="pixel-attacked-") as folder:
        ways = Ways(pathlib.Path(folder))
        try:
            for name in arguments.ways.split(","):
                if name == "newer-caddy" and not (NEWER_CADDY / "caddy").exists():
                    print("newer-caddy: `tests/require-tools caddy` brings it", file=sys.stderr)
                    continue
                if name != "direct":
                    ways.start_edge(name)
                for title, attack in attacks.items():
                    if arguments.attacks in title:
                        cells, is_broken = row(ways, name, attack)
                        print(f"| {name} | {title} | {' | '.join(cells)} |", flush=True)
                        broken += [f"{name}, {title}"] * is_broken
        finally:
            ways.stop()
    if broken:
        sys.exit("not kept: " + "; ".join(broken))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--ways", default="direct,haproxy,caddy,newer-caddy")
    parser.add_argument("--attacks", default="", help="only those whose name has this in it")
    arguments = parser.parse_args()
    print(f"{arguments.connections} connections, {arguments.seconds} s each, a visit every {VISIT_PAUSE_S} s\n")
    print("| way | attack | answered | median | p99 | slowest | refused or timed out | in the file once | restarts |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    print_rows(arguments, ATTACKS, lambda ways, name, options: row(ways, name, options, arguments))


if __name__ == "__main__":
    main()
