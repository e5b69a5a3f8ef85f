"""What the figures were measured on and with."""

import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

SYNCS = 200
BUSY_SECONDS = 2


def describe(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{debian()}, Linux {platform.release().split('-')[0]}",
        "filesystem": first_line(["findmnt", "-n", "-o", "FSTYPE", "-T", str(folder)]),
        "busy": busy_share(),
        "sync_seconds": sync_seconds(folder / "sync"),
        "versions": {
            "rustc": first_line(["rustc", "--version"]).removeprefix("rustc "),
            "RabbitMQ": package("rabbitmq-server"),
            "Erlang": package("erlang-base"),
            "nginx": package("nginx-light") or package("nginx"),
            "HAProxy": package("haproxy"),
            "Caddy": package("caddy"),
            "wrk": package("wrk"),
            "h2load": package("nghttp2-client"),
            "hey": package("hey"),
            "Pixel": commit(),
        },
    }


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def debian():
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def first_line(argv):
    reply = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (reply.stdout.splitlines() or [""])[0]


def package(name):
    return first_line(["dpkg-query", "-W", "-f", "${Version}", name])


def commit():
    hash_ = first_line(["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"])
    return f"commit {hash_}" if hash_ else "not committed"


def sync_seconds(path):
    """The median time of one small append made durable: what every durable answer is made of."""
    taken = []
    with open(path, "ab", buffering=0) as stream:
        for _ in range(SYNCS):
            started = time.monotonic()
            stream.write(b"x" * 4_096)
            os.fdatasync(stream.fileno())
            taken.append(time.monotonic() - started)
    path.unlink()
    return statistics.median(taken)


def busy_share():
    """How much of the processors others use, so that a run on a busy machine says so."""
    def ticks():
        numbers = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
        return sum(numbers), numbers[3] + numbers[4]

    total, idle = ticks()
    time.sleep(BUSY_SECONDS)
    total_after, idle_after = ticks()
    return 1 - (idle_after - idle) / (total_after - total)
