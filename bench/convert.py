#!/usr/bin/env python3
"""Converts a million visits from ndjson to Parquet and back, and prints what each way took: `make bench-convert`."""

import filecmp
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VISITS = 1_000_000
PIXEL = Path(__file__).parent.parent / "target/release/pixel"
AGENTS = [f"Mozilla/5.0 (X11; Linux x86_64; rv:{n}.0) Gecko/20100101 Firefox/{n}.0" for n in range(100, 150)]


def visit(n: int) -> dict:
    """The visit with the number n: a day's, from 256 addresses, of 5,000 pages."""
    second = n * 86_400 // VISITS
    return {
        "received_at": f"2026-11-23T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{n % 1_000_000:06}Z",
        "ip": f"192.0.2.{n * 37 % 256}",
        "referrer": f"https://example.com/page/{n * 7919 % 5000}" if n % 5 else None,
        "user_agent": AGENTS[n * 31 % len(AGENTS)],
        "host": "px.example.com",
        "path": "/track",
        "query": f"n={n}",
        "accept_language": ("en", "de", "fr", None)[n % 4],
        "dnt": n % 9 == 0,
        "gpc": n % 7 == 0,
        "method": "GET",
        "scheme": "https",
        "producer": "00000000-0000-0000-0000-000000000007",
        "sequence": n + 1,
        "schema": 2,
    }


def convert(source: Path, source_format: str, target: Path, target_format: str) -> None:
    """Converts, and prints a row: the way, its seconds, the megabytes of both files, and the most memory."""
    arguments = ["convert", "--from", source_format, "--to", target_format, "--output", str(target), str(source)]
    started = time.monotonic()
    process = subprocess.Popen([PIXEL, *arguments], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status != 0:
        sys.exit(f"pixel {' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
    sizes = [path.stat().st_size / 1e6 for path in (source, target)]
    print(
        f"| {source_format} to {target_format} | {seconds:.1f} s | {usage.ru_utime + usage.ru_stime:.1f} s "
        f"| {sizes[0]:.0f} to {sizes[1]:.0f} MB | {usage.ru_maxrss / 1024:.0f} MiB |"
    )


def main() -> None:
    """Makes the visits, converts them both ways, and compares."""
    with tempfile.TemporaryDirectory() as folder:
        source, parquet, back = (Path(folder) / name for name in ("visits.ndjson", "visits.parquet", "back.ndjson"))
        with source.open("w") as file:
            file.writelines(json.dumps(visit(n), separators=(",", ":")) + "\n" for n in range(VISITS))
        print("| a million visits | time | processor time | size | memory at most |")
        print("| --- | ---: | ---: | ---: | ---: |")
        convert(source, "ndjson", parquet, "parquet")
        convert(parquet, "parquet", back, "ndjson")
        if not filecmp.cmp(source, back, shallow=False):
            sys.exit("what came back is not what was there")
    print("\nwhat came back is the same, byte for byte")


if __name__ == "__main__":
    main()
