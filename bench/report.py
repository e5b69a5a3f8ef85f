"""From figures to docs/BENCHMARKS.md: medians with their spread, ratios, and the bounds."""

from dataclasses import dataclass
from statistics import median

import plot

EMBEDDED = "pixel"
BROKERED = "pixel-http + pixel-storage"
ASYNC = "axum-lapin"
# The ceiling: tiny_http that serves every connection it has accepted, as a user would expect.
BARE = "bare-unstarved"
AT_64 = "64 connections, 2 threads"
AT_256 = "256 connections, 2 threads"
UNTRACED, TRACED_SOME = "tracing off", "tracing 1 %"
CLEAR, TLS_HTTP2 = "HTTP/1.1 in clear", "HTTP/2 over TLS"
MIB = 2**20

DURABLE = {EMBEDDED, BROKERED, ASYNC}

EDGES = {
    "direct": "no edge: `pixel` itself",
    "haproxy": "`deploy/haproxy/haproxy.cfg` with all its rules, before `pixel`",
    "caddy": "`deploy/Caddyfile`, before `pixel`",
    "nginx, bare": "a proxy without any rules and without a log, before `pixel`: what a proxy costs",
    "empty_gif behind haproxy": "`haproxy` before the `nginx` of the first table: what Pixel costs behind its edge",
    "bare-unstarved behind haproxy": "`haproxy` before the `bare-unstarved` of the first table: what of that is tiny_http",
}
WHAT = {
    "nginx": "`empty_gif` and a combined access log, unbuffered, two workers: no broker, nothing durable",
    "bare": "tiny_http answers the GIF from four threads and does nothing else; of a burst of connections it leaves "
            "some without a thread, and answers the others the faster",
    "bare-unstarved": "the same, with a connection to itself every 5 ms, so that no connection starves; ratios are "
                      "against this one",
    "axum-lapin": "axum and lapin: a confirmed persistent message a visit to a quorum queue, one channel; "
                  "the consumer appends, syncs and acknowledges up to 500 at once",
    "pixel": "embedded: durable before the answer, appended and synced to the output",
    "pixel-http + pixel-storage": "durable before the answer, through RabbitMQ, appended and synced to the output",
}


@dataclass
class Bound:
    figure: str
    wanted: str
    reached: bool
    value: str
    alone: str | None
    """The same of tiny_http that answers and keeps nothing, where it stands in Pixel's place."""


@dataclass
class Spread:
    """Several rounds of one figure."""
    values: list

    @property
    def middle(self):
        return median(self.values)

    def text(self, form="{:,.0f}", scale=1.0):
        low, middle, high = (form.format(v * scale)
                             for v in (min(self.values), self.middle, max(self.values)))
        return middle if low == high else f"{middle} ({low} to {high})"


def of(rounds, key):
    return Spread([figures[key] for figures in rounds])


def ratio(rounds, others, key):
    """Round by round, because contenders of one round met the same machine."""
    return Spread([mine[key] / theirs[key] for mine, theirs in zip(rounds, others)])


def bounds(results):
    """The rows of "what must be reached" that this run has figures for."""
    found = []

    def add(figure, wanted, spread, limit, at_least, form="{:.2f}", scale=1.0, alone=None):
        # No spread: the figure is already the worst of its kind.
        value = spread.middle
        reached = value >= limit if at_least else value <= limit
        found.append(Bound(figure, wanted, reached, spread.text(form, scale), alone and alone.text(form, scale)))

    edge = results.get("edge", {"loads": {}, "slow": []})
    if table := edge["loads"].get(CLEAR):
        add("through `haproxy`, in clear, times direct", "at least 0.45",
            ratio(table["haproxy"], table["direct"], "rate"), 0.45, True)
    if table := edge["loads"].get(TLS_HTTP2):
        add("through `haproxy`, HTTP/2 over TLS, times `empty_gif` behind it", "at least 0.80",
            ratio(table["haproxy"], table["empty_gif behind haproxy"], "rate"), 0.8, True,
            alone=ratio(table[f"{BARE} behind haproxy"], table["empty_gif behind haproxy"], "rate"))
    if rounds := edge["slow"]:
        add("p99 through `haproxy` at 3,000/s, slow bodies beside it, ms", "at most 25",
            of(rounds, "p99"), 0.025, False, "{:.1f}", 1e3)
    for load, table in results.get("throughput", {}).items():
        if load.startswith("64 "):
            add(f"`pixel` embedded, {load}, times `{BARE}`", "at least 0.85",
                ratio(table[EMBEDDED], table[BARE], "rate"), 0.85, True)
            add(f"brokered end to end, {load}, times `{BARE}`", "at least 0.70",
                ratio(table[BROKERED], table[BARE], "rate"), 0.7, True)
        if load in (AT_64, AT_256):
            add(f"brokered end to end, {load}, times `{ASYNC}`", "at least 2.5",
                ratio(table[BROKERED], table[ASYNC], "rate"), 2.5, True,
                alone=ratio(table[BARE], table[ASYNC], "rate"))
        if load == AT_64:
            add("CPU a visit, brokered, all processes, times `axum-lapin`", "at most 0.50",
                ratio(table[BROKERED], table[ASYNC], "cpu_per_million"), 0.5, False)
        if load == AT_256:
            add("peak RSS of `pixel`, 256 connections, MiB", "at most 48",
                Spread([r["peak"]["pixel"] for r in table[EMBEDDED]]), 48 * MIB, False, "{:.1f}", 1 / MIB)
            add("peak RSS of `pixel-http`, 256 connections, MiB", "at most 64",
                Spread([r["peak"]["pixel-http"] for r in table[BROKERED]]), 64 * MIB, False, "{:.1f}", 1 / MIB)
    if table := results.get("tracing"):
        add("`pixel` with 1 % of the visits traced, times the same with tracing off", "at least 0.97",
            ratio(table[TRACED_SOME], table[UNTRACED], "rate"), 0.97, True)
    if figures := results.get("backlogs", {}).get("1000000"):
        drains = figures["drains"][BROKERED]
        add("backlog of a million through RabbitMQ, visits a second", "at least 200,000",
            of(drains, "rate"), 200_000, True, "{:,.0f}")
        add("peak RSS of `pixel-storage` draining a million, MiB", "at most 64",
            Spread([d["peak"]["pixel-storage"] for d in drains]), 64 * MIB, False, "{:.1f}", 1 / MIB)
    if rounds := results.get("latency"):
        add("p99 of `/track` at 5,000/s, broker down, times broker up", "at most 1.20",
            ratio(rounds["pixel-http, broker down"], rounds["pixel-http, broker up"], "p99"),
            1.2, False)
    return found


def bounds_text(found):
    rows = [f"{'reached    ' if b.reached else 'NOT REACHED'}  {b.figure}: {b.value}, {b.wanted}"
            for b in found]
    return "\n".join(rows)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(results, docs):
    sections = [
        head(results), what_must_be_reached(results), throughput(results), edge(results), tracing(results),
        latency(results),
        backlog(results), memory_and_start(results), method(results),
    ]
    (docs / "BENCHMARKS.md").write_text("\n".join(sections))
    (docs / "benchmarks.svg").write_text(plot.throughput(results["throughput"], WHAT))


def head(results):
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"""# Benchmarks

Written by `make bench` from one run on {machine["date"]}; edit the harness, not this file.

- Machine: {machine["cores"]} cores of {machine["processor"]}, {machine["memory"] / 2**30:.0f} GiB, \
{machine["filesystem"]}, a small append and fdatasync takes {machine["sync_seconds"] * 1e6:.0f} µs. \
The load generator, the programs and the broker share it; {machine["busy"]:.0%} of it was busy before.
- {machine["system"]}; {versions}.
- Figures are medians of the rounds, with the least and the greatest in brackets. Ratios are taken \
round by round.

![Visits a second](benchmarks.svg)
"""


def what_must_be_reached(results):
    rows = [(b.figure, b.wanted, b.value, "reached" if b.reached else "**not reached**", b.alone or "")
            for b in bounds(results)]
    return "\n".join((
        "## What must be reached\n",
        table(("figure", "bound", "measured", "", f"`{BARE}` instead"), rows),
        f"In the last column `{BARE}` stands in Pixel's place: tiny_http that answers and keeps nothing.\n"))


def throughput(results):
    parts = ["## Throughput\n"]
    for load, contenders in results["throughput"].items():
        rows = []
        for name, rounds in sorted(contenders.items(), key=lambda item: list(WHAT).index(item[0])):
            rows.append((
                f"`{name}`",
                f"{of(rounds, 'served').middle:.0f} of {load.split()[0]}",
                of(rounds, "answered").text(),
                of(rounds, "rate").text() if rounds[0]["written"] else "none",
                ratio(rounds, contenders[BARE], "rate").text("{:.2f}"),
                ratio(rounds, contenders[ASYNC], "rate").text("{:.2f}"),
                of(rounds, "cpu_per_million").text("{:.1f}"),
                sum(figures["refused"] for figures in rounds),
            ))
        parts.append(f"{load} of the load generator:\n")
        parts.append(table(
            ("contender", "connections served", "answers/s", "visits written/s, end to end",
             f"times `{BARE}`", f"times `{ASYNC}`", "CPU s per million", "refused or failed"), rows))
    parts.append("CPU seconds per million visits at 64 connections, by program:\n")
    parts.append(table(("contender", "program", "CPU s per million"), [
        (f"`{name}`", f"`{program}`",
         Spread([figures["cpu"][program] for figures in rounds]).text("{:.1f}"))
        for name, rounds in results["throughput"][AT_64].items() if name in DURABLE
        for program in rounds[0]["cpu"]]))
    parts.append("\n".join(f"- `{name}`: {what}." for name, what in WHAT.items()) + "\n")
    return "\n".join(parts)


def edge(results):
    plan, parts = results["plan"], ["## Through an edge\n"]
    for load, contenders in results["edge"]["loads"].items():
        first = next(iter(contenders))
        parts.append(f"{load}:\n")
        parts.append(table(
            ("edge", "answers/s", f"times `{first}`", "CPU s per million, by program", "refused or failed"), [
                (f"`{name}`", of(rounds, "rate").text(), ratio(rounds, contenders[first], "rate").text("{:.2f}"),
                 ", ".join(f"`{program}` {Spread([r['cpu'][program] for r in rounds]).middle:.1f}"
                           for program in rounds[0]["cpu"]),
                 sum(figures["refused"] for figures in rounds))
                for name, rounds in contenders.items()]))
    parts.append(f"Through `haproxy` at {plan['edge_rate']:,} a second, while 64 clients trickle bodies:\n")
    slow = results["edge"]["slow"]
    parts.append(table(
        ("p50, ms", "p99, ms", "p99.9, ms", "refused or failed"),
        [(*(of(slow, q).text("{:.2f}", 1e3) for q in ("p50", "p99", "p999")), sum(f["refused"] for f in slow))]))
    parts.append("\n".join(f"- `{name}`: {what}." for name, what in EDGES.items()) + "\n")
    return "\n".join(parts)


def tracing(results):
    found = results["tracing"]
    rows = [(name, of(rounds, "rate").text(), ratio(rounds, found[UNTRACED], "rate").text("{:.2f}"),
             of(rounds, "cpu_per_million").text("{:.1f}"), of(rounds, "exported").text(), of(rounds, "dropped").text())
            for name, rounds in found.items()]
    head = ("", "visits written/s", "times without", "CPU s per million", "spans sent", "spans dropped")
    return f"""## Traced

`pixel` at 64 connections; its spans go to a receiver on the same machine that takes them and does no more. A queue of
2,048 spans is sent from one thread: what does not fit is dropped, and no visit waits for it.

{table(head, rows)}"""


def latency(results):
    rows = [(name, *(of(rounds, q).text("{:.2f}", 1e3) for q in ("p50", "p99", "p999")),
             f"{of(rounds, 'answers').middle:,.0f}", sum(f["refused"] for f in rounds))
            for name, rounds in results["latency"].items()]
    return f"""## Answers at {results["plan"]["rate"]:,} a second

{table(("", "p50, ms", "p99, ms", "p99.9, ms", "answers a round", "refused or failed"), rows)}
Down: the broker is killed. Booting: RabbitMQ starts on the same cores. Back: from its first greeting \
on, while the backlog of the outage drains.
"""


def backlog(results):
    rows = []
    for figures in results["backlogs"].values():
        brokered, embedded = (figures["drains"][name] for name in (BROKERED, EMBEDDED))
        rows.append((
            f"{figures['visits']:,}", f"{figures['accept_rate']:,.0f}",
            f"{figures['bytes_a_visit']:.0f}", f"{figures['peak'] / MIB:.1f}", f"{figures['held'] / MIB:.1f}",
            of(brokered, "first_answer").text("{:.0f}", 1e3),
            of(brokered, "rate").text(), of(brokered, "cpu_per_million").text("{:.1f}"),
            of(embedded, "rate").text(), of(embedded, "cpu_per_million").text("{:.1f}"),
        ))
    return f"""## A backlog

Collected by `pixel-http` at 64 connections while no broker answers. Drains run from the start of the \
program that has the backlog until its last line is in the output, RabbitMQ and `pixel-storage` being \
up; the embedded drain is `pixel` started on the same spool.

{table(("visits", "accepted/s while it grew", "bytes of spool a visit", "peak RSS, MiB", "RSS with it, MiB",
        "first answer with it, ms", "drained/s through RabbitMQ", "CPU s per million",
        "drained/s embedded", "CPU s per million"), rows)}"""


def memory_and_start(results):
    def programs(rounds, key):
        return {name: Spread([figures[key][name] for figures in rounds]) for name in rounds[0][key]}

    mib = lambda spread: spread.text("{:.1f}", 1 / MIB) if spread else ""
    at_256 = results["throughput"][AT_256]
    drains = max(results["backlogs"].values(), key=lambda f: f["visits"] <= 2_000_000 and f["visits"])
    rows = []
    for name, rounds in results["starts"].items():
        rest, busy = programs(rounds, "rest"), programs(at_256[name], "peak")
        draining = programs(drains["drains"].get(name, [{"peak": {}}]), "peak")
        for program, spread in rest.items():
            rows.append((f"`{name}`", f"`{program}`", mib(spread), mib(busy.get(program)),
                         mib(draining.get(program))))
    starts = [(f"`{name}`", of(rounds, "seconds").text("{:.0f}", 1e3))
              for name, rounds in results["starts"].items()]
    return f"""## Memory

RSS in MiB; the broker is not counted. A program of several processes is the sum of them. Holding \
{drains["visits"]:,} visits, `pixel-http` peaked at {drains["peak"] / MIB:.1f} MiB.

{table(("contender", "program", "at rest", "peak, 256 connections", "peak, draining a million"), rows)}
## From start to first answer

{table(("contender", "ms"), starts)}"""


def method(results):
    plan = results["plan"]
    rounds = ", ".join(f"{rounds} at {connections} connections with {threads}"
                       for connections, threads, rounds in plan["loads"])
    return f"""## How it is measured

`make bench` (`bench/run.py`) does all of this in one run; `make bench-quick` is a small run of the same \
code, and `FULL=1 make bench` adds a backlog of ten million visits. Nothing leaves the loopback, and \
every program, RabbitMQ and nginx included, is a private instance with a private folder.

- Load: wrk with one thread or two, keep-alive, {plan["load_seconds"]} seconds, in rounds ({rounds}) in \
which the contenders take turns, each with fresh processes. User agent, referrer, language and query vary \
(`bench/visits.lua`).
- Edges: {plan["edge_rounds"]} rounds of {plan["edge_seconds"]} seconds; wrk in clear, h2load over TLS (its requests \
are all alike), 64 connections with a request at a time, and 1,000 connections at once with one request each. The \
bounds for one address are raised, as the load comes from one.
- A visit counts when it is a line of the output file: end to end is lines by the time from the start of \
the load until the last line was written, by the file's modification time. `nginx` and `bare` write no \
visits: theirs are answers.
- Connections served are counted by the kernel: those that received bytes in the second half of the \
load. tiny_http may leave most of a burst of connections without a thread and still look fast, which is \
why there are two `bare`.
- CPU is user and system time of all processes, RabbitMQ included, from the start of the load until the \
last line.
- The rate runs are hey with {plan["rate"]:,} requests a second over 50 connections. hey waits for each \
answer before its connection's next request.
"""
