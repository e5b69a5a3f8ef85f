#!/usr/bin/env python3
"""Measures Pixel beside what people would use instead; see docs/BENCHMARKS.md.

    bench/run.py            everything, about a quarter of an hour on two cores
    bench/run.py --quick    a small run of the same code, about 3 minutes; writes no document
    FULL=1 bench/run.py     also a backlog of ten million visits
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass

import edge
import machine
import measures
import report
from broker import SERVER, Broker
from contenders import PEERS, ROOT
from stage import BenchError, Stage, say

WORK = ROOT / "bench" / "work"

# Above this share the figures are doubtful, and the run says so.
BUSY_MAX = 0.05

DEBIAN_PACKAGES = {
    "wrk": "wrk", "hey": "hey", "h2load": "nghttp2-client", "nginx": "nginx-light", "ss": "iproute2",
    "haproxy": "haproxy", "caddy": "caddy", "openssl": "openssl",
    "epmd": "erlang-base", SERVER: "rabbitmq-server",
}


@dataclass
class Plan:
    """How much of everything one run does."""
    loads: tuple = ((64, 2, 4), (64, 1, 4), (256, 2, 2))
    """Connections, threads of wrk, rounds."""
    load_seconds: int = 5
    starts: int = 3
    rate: int = 5_000
    latency_rounds: int = 2
    latency_seconds: int = 6
    return_seconds: int = 15
    backlogs: tuple = (100_000, 1_000_000)
    drain_rounds: int = 2
    edge_rounds: int = 3
    edge_seconds: int = 4
    edge_rate: int = 3_000
    tracing_rounds: int = 6


QUICK = Plan(loads=((64, 2, 1), (64, 1, 1), (256, 2, 1)), load_seconds=2, starts=1, latency_rounds=1,
             latency_seconds=2, return_seconds=10, backlogs=(20_000, 100_000), drain_rounds=1, edge_rounds=1,
             edge_seconds=2, tracing_rounds=1)

MEASURES = {
    "edge": edge.edge,
    "throughput": measures.throughput,
    "tracing": measures.tracing,
    "starts": measures.first_answers,
    "latency": measures.latency,
    "backlogs": measures.backlogs,
}


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    plan = QUICK if options.quick else Plan()
    if os.environ.get("FULL") == "1":
        plan.backlogs += (10_000_000,)

    install_missing()
    build(options.locked)
    results = {"machine": machine.describe(WORK), "quick": options.quick, "plan": vars(plan)}
    if results["machine"]["busy"] > BUSY_MAX:
        say(f"{results['machine']['busy']:.0%} of the machine is busy with something else")
    with Stage(WORK) as stage:
        broker = Broker(stage)
        broker.start()
        for name in options.only or MEASURES:
            say(f"measuring {name}")
            results[name] = MEASURES[name](stage, broker, plan)
    (WORK / "results.json").write_text(json.dumps(results, indent=1))
    reached = report.bounds(results)
    print(report.bounds_text(reached))
    if not options.quick and not options.only:
        report.write(results, ROOT / "docs")
        say("wrote docs/BENCHMARKS.md and docs/benchmarks.svg")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small run, no document")
    parser.add_argument("--only", action="append", choices=MEASURES, help="only this measure")
    parser.add_argument("--locked", action="store_true", help="build with the lock files as they are")
    return parser.parse_args()


def install_missing():
    missing = [package for program, package in DEBIAN_PACKAGES.items() if not shutil.which(program)]
    if not missing:
        return
    if os.geteuid() != 0:
        raise BenchError(f"please install: {' '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    # The packages start nothing: only private instances are measured.
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    os.environ["RUNLEVEL"] = "1"
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True)


def build(locked):
    flags = ["--release", "--quiet"] + (["--locked"] if locked else [])
    for folder in (PEERS / "bare", PEERS / "axum-lapin"):
        say(f"building {folder.name}")
        subprocess.run(["cargo", "build", *flags, "--manifest-path", folder / "Cargo.toml",
                        "--target-dir", folder / "target"], check=True)
    say("building pixel")
    subprocess.run(["cargo", "build", *flags, "--bins"], cwd=ROOT, check=True)


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
