#!/usr/bin/env python3
"""Derives docs/SCALE.md, a plan on paper, from the figures of docs/BENCHMARKS.md and of bench/shards.json, where there are
any.

    bench/scale.py            writes it
    bench/scale.py --check    fails where it is another than the figures make it
"""

import json
import math
import re
import statistics
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
SHARDS = Path(__file__).with_name("shards.json")
RATES = (1_000, 100_000, 10_000_000)

# What no benchmark of ours says.
BUSY = 0.5
"""How busy a core is to be: the rest is for peaks and for the machines that are away."""
REPLICAS = 3
"""Nodes of a RabbitMQ cluster, each of which writes every message."""
DISK_BYTES_A_SECOND = 250e6
"""What a broker's disk is asked for at most: half of a plain NVMe disk's."""
CORE_MONTH = 25.0
"""Dollars for a core and 4 GiB of a rented machine."""
TB_MONTH = 20.0
"""Dollars for a terabyte of object storage, where outputs go once they are compressed."""
COMPRESSED = 0.1
"""What zstd leaves of an output."""
MESSAGE_BYTES = 128 * 1024


def section(text, heading):
    """What stands below a heading, or a line, up to the next heading of two marks."""
    start = text.index(heading)
    end = text.find("\n## ", start)
    return text[start:end if end > 0 else None]


def first_number(cell):
    return float(re.sub(r",", "", re.match(r"[\d.,]+", cell.strip()).group()))


def rows(text):
    for line in text.splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.strip("| ").split(" | ")]


def figures(text):
    """Seconds of processor time a visit by program, bytes a visit, and what one process does a second."""
    cpu = section(text, "by program:\n\n| contender")
    by_program = {row[1].strip("`"): first_number(row[2]) / 1e6
                  for row in rows(cpu) if row[0] == "`pixel-http + pixel-storage`" and len(row) == 3}
    edge = next(row for row in rows(section(text, "HTTP/1.1 in clear:")) if row[0] == "`haproxy`")
    edge_cpu = float(re.search(r"`haproxy` ([\d.]+)", edge[3]).group(1)) / 1e6
    greeting = next(row for row in rows(section(text, "a connection each:")) if row[0] == "`haproxy`")
    greeting_cpu = float(re.search(r"`haproxy` ([\d.]+)", greeting[3]).group(1)) / 1e6
    backlog = [row for row in rows(section(text, "## A backlog")) if row[0][0].isdigit()][-1]
    answers = next(row for row in rows(section(text, "## Throughput")) if row[0] == "`pixel-http + pixel-storage`")
    return {
        "pixel-http": by_program["pixel-http"], "pixel-storage": by_program["pixel-storage"],
        "rabbitmq": by_program["rabbitmq"], "edge": edge_cpu, "greeting": greeting_cpu,
        "bytes": first_number(backlog[2]), "drained": first_number(backlog[6]),
        "collected": first_number(answers[2]),
    }


def plan(rate, of):
    cores = {name: max(rate * of[name] / BUSY, 0.0) for name in ("pixel-http", "pixel-storage", "greeting")}
    cores["rabbitmq"] = rate * of["rabbitmq"] / BUSY * REPLICAS
    clusters = math.ceil(rate * of["bytes"] / DISK_BYTES_A_SECOND)
    shards = math.ceil(rate / (of["drained"] * BUSY) / clusters)
    collectors = max(2, math.ceil(rate / (of["collected"] * BUSY)))
    total = sum(math.ceil(one) for one in cores.values())
    terabytes = rate * of["bytes"] * 86_400 * 30 * COMPRESSED / 1e12
    return [
        ("edges (TLS, a new connection each visit), cores", f"{cores['greeting']:,.1f}"),
        ("collectors, processes", f"{collectors:,}"),
        ("collectors, cores", f"{cores['pixel-http']:,.1f}"),
        ("RabbitMQ clusters of three", f"{clusters:,}"),
        ("messages a second", f"{rate * of['bytes'] / MESSAGE_BYTES:,.0f}"),
        ("RabbitMQ, cores of all nodes", f"{cores['rabbitmq']:,.1f}"),
        ("shards of each cluster", f"{shards:,}"),
        ("storages, standbys not counted", f"{shards * clusters:,}"),
        ("storages, cores", f"{cores['pixel-storage']:,.1f}"),
        ("written to each broker's disk, MB/s", f"{rate * of['bytes'] / clusters / 1e6:,.1f}"),
        ("output a day, GB", f"{rate * of['bytes'] * 86_400 / 1e9:,.0f}"),
        ("a month of it, compressed, TB", f"{terabytes:,.2f}"),
        ("machines a month, dollars", f"{total * CORE_MONTH:,.0f}"),
        ("a month's outputs, kept for a month, dollars", f"{terabytes * TB_MONTH:,.0f}"),
    ]


def measured(results):
    """The section of what N collectors with N shards cost, from what bench/shards.py has written."""
    machine = results["machine"]

    def cell(rounds, cost):
        costs = sorted(map(cost, rounds))
        return f"{statistics.median(costs):.1f} ({costs[0]:.1f} to {costs[-1]:.1f})"

    programs = list(next(iter(results["sizes"].values()))[0]["cpu"])
    table = "| collectors and shards | visits a second | " + " | ".join(programs) + " | all |\n"
    table += "| --- |" + " --- |" * (len(programs) + 2) + "\n"
    for size, rounds in results["sizes"].items():
        rate = statistics.median(one["rate"] for one in rounds)
        costs = [cell(rounds, lambda one, name=name: one["cpu"][name]) for name in programs]
        costs.append(cell(rounds, lambda one: sum(one["cpu"].values())))
        table += f"| {size} | {rate:,.0f} | " + " | ".join(costs) + " |\n"
    rounds = len(next(iter(results["sizes"].values())))
    return f"""
## Measured: what a visit costs as collectors and shards grow together

`make bench-scale`, {machine["date"]}, Pixel {machine["versions"]["Pixel"]}, {machine["cores"]} cores ({machine["processor"]}), {machine["busy"]:.0%} busy before:
everything and the load on one machine, {results["rate"]:,} visits a second for {results["seconds"]} s to each collector, in
turns, on a RabbitMQ of its own each. Microseconds of a core a visit by program, the median of {rounds} rounds (lowest to
highest), idle time included; at so small a rate a visit costs more than in the plan, as groups, messages and batches are small.

{table}"""


def document(of, results=None):
    columns = [plan(rate, of) for rate in RATES]
    head = "| visits a second | " + " | ".join(f"{rate:,}" for rate in RATES) + " |\n"
    head += "| --- |" + " --- |" * len(RATES) + "\n"
    table = head + "".join(
        "| " + " | ".join([lines[0][0], *(value for _, value in lines)]) + " |\n" for lines in zip(*columns)
    )
    micro = {name: of[name] * 1e6 for name in ("edge", "greeting", "pixel-http", "rabbitmq", "pixel-storage")}
    return f"""# On paper: from a thousand to ten million visits a second

Derived by `bench/scale.py` from [BENCHMARKS.md](BENCHMARKS.md), which was measured on two cores with everything on one
machine. A plan to start from: nobody has run the third column.

{table}
A visit costs, in microseconds of a core: HAProxy {micro["edge"]:.1f} over a kept connection and {micro["greeting"]:.0f} over a new one with TLS,
pixel-http {micro["pixel-http"]:.1f}, RabbitMQ {micro["rabbitmq"]:.1f}, pixel-storage {micro["pixel-storage"]:.1f}; and {of["bytes"]:.0f} bytes each of spool, broker and output. One pixel-http
took {of["collected"]:,.0f} visits a second, one pixel-storage wrote {of["drained"]:,.0f}.

Assumed: a core is {BUSY:.0%} busy, a process does {BUSY:.0%} of what was measured, each of {REPLICAS} broker nodes costs what the one did, a
broker's disk takes {DISK_BYTES_A_SECOND / 1e6:.0f} MB/s, a core costs {CORE_MONTH:.0f} dollars a month, zstd leaves {COMPRESSED:.0%} of an output, a terabyte costs {TB_MONTH:.0f} dollars a month.
Traffic is not counted: an answer has some 500 bytes, and its price differs by a factor of a hundred.

- **Where one cluster ends** is its disk: every node writes every visit, messages are few. So past that there are several
  clusters, each with collectors, storages and a queue of its own that know nothing of the others: a group is a whole Pixel,
  and there is nothing between groups that could become narrow. The edge spreads visits over all.
- **Within a cluster** shards share the visits (OPERATIONS.md, Several storages). A storage is one thread of writing; give
  each an output disk of its own before you give it a shard more.
- **Greetings cost more than everything else.** A browser that keeps its connection to the edge costs a tenth, and
  one that comes with its first request has none: so the first row is the one to measure with your own visitors.
- **Read back** with `pixel audit` a shard, and `pixel merge` where one file is wanted.
""" + (measured(results) if results else "")


def main():
    results = json.loads(SHARDS.read_text()) if SHARDS.exists() else None
    text = document(figures((DOCS / "BENCHMARKS.md").read_text()), results)
    path = DOCS / "SCALE.md"
    if "--check" in sys.argv[1:]:
        if not path.exists() or path.read_text() != text:
            sys.exit("docs/SCALE.md is not what docs/BENCHMARKS.md and bench/shards.json make of it: run bench/scale.py")
        return
    path.write_text(text)


if __name__ == "__main__":
    main()
