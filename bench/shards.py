#!/usr/bin/env python3
"""Measures what a visit costs as collectors and shards grow together, for docs/SCALE.md.

    bench/shards.py             4 minutes, and a build; writes bench/shards.json, which bench/scale.py reads
    bench/shards.py --quick     a minute and a half; prints, and writes nothing

Each collector gets the same rate, so N of them with N shards do N times the work, each round on a RabbitMQ of its own.
Costs are user and system time of each program from /proc, from the first request to the last line in the outputs, its
idle time in between included.
"""

import argparse
import json
import signal
import subprocess
import sys
import time

import machine
from broker import Broker
from contenders import PIXEL_BUILD, READY_SECONDS, ROOT, wait_for_port
from load import Hey, answer
from measures import Lines, in_turns, settle
from run import BUSY_MAX, WORK, install_missing
from stage import BenchError, Stage, free_port, say, wait_until

RESULTS = ROOT / "bench" / "shards.json"
SIZES = (1, 2, 4)
RATE = 2_500
"""Visits a second for each collector: four of them, their loads and the rest leave two cores some room. In a round each
collector fills more blocks of 4,096 visits than there are shards, so that each shard gets some."""
DRAIN_SECONDS = 60


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round, no results")
    quick = parser.parse_args().quick
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    install_missing()
    say("building pixel")
    subprocess.run(["cargo", "build", "--release", "--quiet", "--locked", "--bins"], cwd=ROOT, check=True)
    described = machine.describe(WORK)
    if described["busy"] > BUSY_MAX:
        say(f"{described['busy']:.0%} of the machine is busy with something else")
    rounds, seconds = (1, 8) if quick else (3, 12)
    results = measure(rounds, seconds)
    if not quick:
        document = {"machine": described, "rate": RATE, "seconds": seconds, "sizes": results}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
        say("wrote bench/shards.json; bench/scale.py puts it into docs/SCALE.md")


def measure(rounds, seconds):
    """Microseconds of a core a visit by program, a list of rounds for each size."""
    results = {str(size): [] for size in SIZES}
    with Stage(WORK) as stage:
        for turn, size in in_turns(SIZES, rounds):
            settle()
            figures = one(stage, size, seconds)
            results[str(size)].append(figures)
            say(f"round {turn + 1}/{rounds}, {size} collectors and shards: {figures['rate']:,.0f} visits a second, "
                + ", ".join(f"{name} {spent:.1f}" for name, spent in figures["cpu"].items()) + " µs each")
    return results


def one(stage, size, seconds):
    broker = Broker(stage)
    broker.start()
    folder = stage.fresh_folder(f"shards-{size}")
    storages = [start_storage(stage, broker, folder, size, shard) for shard in range(size)]
    collectors, ports = zip(*[start_collector(stage, broker, folder, size) for _ in range(size)])
    programs = {"pixel-http": collectors, "rabbitmq": [broker.node], "pixel-storage": storages}

    def spent():
        return {name: sum(program.cpu_seconds() for program in of) for name, of in programs.items()}

    before, started = spent(), time.monotonic()
    loads = [Hey(port, RATE, seconds) for port in ports]
    timings = [load.finish() for load in loads]
    took = time.monotonic() - started
    if refused := sum(timing.refused for timing in timings):
        raise BenchError(f"{refused} visits were not answered with 200")
    visits = sum(len(timing.answers) for timing in timings)
    outputs = [Lines(path) for path in output_paths(folder, size)]
    wait_until(f"{visits} lines in {size} outputs",
               lambda: sum(lines.update() for lines in outputs) >= visits, DRAIN_SECONDS)
    after = spent()
    for program in [*collectors, *storages]:
        program.check()
        program.stop()
    broker.kill()
    written = [lines.update() for lines in outputs]
    if sum(written) != visits:
        raise BenchError(f"{sum(written)} lines were written of {visits} visits")
    if min(written) == 0:
        raise BenchError(f"a shard got nothing: {written}")
    cpu = {name: (after[name] - before[name]) / visits * 1e6 for name in programs}
    return {"rate": visits / took, "cpu": cpu}


def output_paths(folder, size):
    names = ["visits.log"] if size == 1 else [f"visits.{shard}.log" for shard in range(size)]
    return [folder / name for name in names]


def start_storage(stage, broker, folder, size, shard):
    port = free_port()
    storage = stage.start("pixel-storage", [
        PIXEL_BUILD / "pixel-storage", "--admin-listen", f"127.0.0.1:{port}", "--amqp-url", broker.url,
        "--shards", size, "--shard", shard, "--output", folder / "visits.log"])
    wait_until("ready pixel-storage", lambda: storage.check() and (answer(port, "/readyz") or [0])[0] == 200,
               READY_SECONDS)
    return storage


def start_collector(stage, broker, folder, size):
    port = free_port()
    collector = stage.start("pixel-http", [
        PIXEL_BUILD / "pixel-http", "--listen", f"127.0.0.1:{port}", "--admin-listen", "127.0.0.1:0",
        "--amqp-url", broker.url, "--shards", size, "--spool-slots", size, "--spool-dir", folder / "spool"])
    wait_for_port(collector, port)
    return collector, port


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
