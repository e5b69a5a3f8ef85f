"""The measures: each plays its contenders in turns and returns plain figures, one a round."""

import os
import shutil
import sys
import time

from contenders import (
    CONTENDERS, ROOT, TRACED, AxumLapin, BareUnstarved, Nginx, Pixel, PixelBrokered, PixelCollecting, PixelTraced,
    wait_for_port,
)
from load import Hey, Wrk, answer
from stage import BenchError, free_port, say, wait_until

DRAIN_SECONDS = 300
STILL_SECONDS = 1.0
BUILD_SECONDS = 1_200
BUILD_CONNECTIONS = 64
SETTLE_SECONDS = 0.5


class Lines:
    """Counts the lines of a growing file, reading each byte once."""

    def __init__(self, path):
        self.path = path
        self.offset = 0
        self.count = 0

    def update(self):
        if not self.path.exists():
            return self.count
        with open(self.path, "rb") as stream:
            stream.seek(self.offset)
            while chunk := stream.read(1 << 20):
                self.offset += len(chunk)
                self.count += chunk.count(b"\n")
        return self.count

    def wait_for(self, wanted, programs):
        """Waits until at least `wanted` lines are there and no more come; when the last was written,
        by the file's own clock: reading it takes longer than the last batch."""
        last = time.monotonic()
        deadline = last + DRAIN_SECONDS
        while True:
            before, now = self.count, time.monotonic()
            if self.update() > before:
                last = now
            elif self.count >= wanted and now - last > STILL_SECONDS:
                return self.path.stat().st_mtime
            elif now > deadline:
                raise BenchError(f"{self.count} of {wanted} lines after {DRAIN_SECONDS} s")
            for program in programs:
                program.check()
            time.sleep(0.01)


def settle():
    """Lets the disk finish what the run before has left."""
    os.sync()
    time.sleep(SETTLE_SECONDS)


def in_turns(kinds, rounds):
    """Every kind once a round, each round beginning with another one."""
    for turn in range(rounds):
        for step in range(len(kinds)):
            yield turn, kinds[(step + turn) % len(kinds)]


def throughput(stage, broker, plan):
    """Answers and written visits a second, with what they cost."""
    results = {}
    for connections, threads, rounds in plan.loads:
        load = f"{connections} connections, {'one thread' if threads == 1 else f'{threads} threads'}"
        table = results.setdefault(load, {})
        for turn, kind in in_turns(CONTENDERS, rounds):
            settle()
            figures = one_throughput(stage, broker, kind, connections, threads, plan.load_seconds)
            table.setdefault(kind.name, []).append(figures)
            say(f"{load}, round {turn + 1}/{rounds}, {kind.name}: "
                f"{figures['rate']:,.0f}/s, {figures['served']} connections served, "
                f"{figures['cpu_per_million']:.1f} CPU s per million")
    return results


def one_throughput(stage, broker, kind, connections, threads, seconds):
    contender = kind(stage, broker)
    contender.start()
    cpu_before = contender.cpu_seconds()
    started = time.time()
    answers = Wrk(contender.port, connections, seconds, threads, count_served=True).finish()
    if contender.output:
        lines = Lines(contender.output)
        took = lines.wait_for(answers.count, contender.programs) - started
        visits = lines.count
    else:
        took, visits = answers.seconds, answers.count
    cpu = {name: after - cpu_before[name] for name, after in contender.cpu_seconds().items()}
    figures = {
        "rate": visits / took,
        "answered": answers.count / answers.seconds,
        "refused": answers.refused,
        "served": answers.served,
        "cpu_per_million": sum(cpu.values()) / visits * 1e6,
        "cpu": {name: spent / visits * 1e6 for name, spent in cpu.items()},
        "peak": contender.memory(),
        "written": contender.output is not None,
        **contender.more(),
    }
    contender.stop()
    shutil.rmtree(contender.folder)
    return figures


def tracing(stage, broker, plan):
    """What spans cost: of no visit, of one in a hundred, of each."""
    port = PixelTraced.receiver_port = free_port()
    receiver = stage.start("receiver", [sys.executable, ROOT / "bench" / "receiver.py", port])
    wait_for_port(receiver, port)
    results = {}
    for turn, kind in in_turns(TRACED, plan.tracing_rounds):
        settle()
        figures = one_throughput(stage, broker, kind, 64, 2, plan.load_seconds)
        results.setdefault(kind.name, []).append(figures)
        say(f"{kind.name}, round {turn + 1}/{plan.tracing_rounds}: {figures['rate']:,.0f}/s, "
            f"{figures['cpu_per_million']:.1f} CPU s per million, {figures['exported']:,.0f} spans sent, "
            f"{figures['dropped']:,.0f} dropped")
    receiver.stop()
    return results


def first_answers(stage, broker, plan):
    """Seconds from the start of the answering program to its first pixel, and memory at rest."""
    results = {}
    for turn, kind in in_turns(CONTENDERS, plan.starts):
        contender = kind(stage, broker)
        contender.launch()
        # The programs that are not measured are ready by now: begin again with the last one.
        last = contender.programs.pop()
        wait_until("answer", lambda: last.check() and answer(contender.port, "/track"), 30)
        last.stop()
        results.setdefault(kind.name, []).append(one_start(contender, last))
        shutil.rmtree(contender.folder)
    for name, rounds in results.items():
        say(f"start of {name}: {min(r['seconds'] for r in rounds) * 1000:.0f} ms at best")
    return results


def one_start(contender, last):
    started = time.monotonic()
    program = contender.run(last.name, last.process.args)
    wait_until("answer", lambda: program.check() and answer(contender.port, "/track"), 30, 0.0005)
    seconds = time.monotonic() - started
    time.sleep(1)
    rest = contender.memory("VmRSS")
    contender.stop()
    return {"seconds": seconds, "rest": rest}


def latency(stage, broker, plan):
    """Quantiles of the answer at a fixed rate; `broker` is down for a while in each round."""
    results = {}

    def note(name, figures, refused):
        figures["refused"] = refused
        results.setdefault(name, []).append(figures)
        say(f"{name}: p50 {figures['p50'] * 1e3:.2f} ms, p99 {figures['p99'] * 1e3:.2f} ms, "
            f"p99.9 {figures['p999'] * 1e3:.2f} ms, {refused} refused")

    for _ in range(plan.latency_rounds):
        for kind in (Nginx, BareUnstarved, AxumLapin, Pixel):
            settle()
            contender = kind(stage, broker)
            contender.start()
            timings = Hey(contender.port, plan.rate, plan.latency_seconds).finish()
            note(kind.name, timings.quantiles(), timings.refused)
            contender.stop()
        settle()
        through_an_outage(stage, broker, plan, note)
    return results


def through_an_outage(stage, broker, plan, note):
    contender = PixelBrokered(stage, broker)
    contender.start()
    timings = Hey(contender.port, plan.rate, plan.latency_seconds).finish()
    note("pixel-http, broker up", timings.quantiles(), timings.refused)

    broker.kill()
    settle()
    timings = Hey(contender.port, plan.rate, plan.latency_seconds).finish()
    note("pixel-http, broker down", timings.quantiles(), timings.refused)

    hey = Hey(contender.port, plan.rate, plan.return_seconds)
    started = time.monotonic()
    broker.start()
    back = time.monotonic() - started
    timings = hey.finish()
    say(f"the broker took {back:.1f} s to come back")
    note("pixel-http, broker booting", timings.quantiles(until=back), timings.refused)
    if back < plan.return_seconds - 1:
        note("pixel-http, broker back", timings.quantiles(since=back), timings.refused)
    accepted = int(contender.metric("pixel_visits_accepted_total"))
    Lines(contender.output).wait_for(accepted, contender.programs)
    contender.stop()


def backlogs(stage, broker, plan):
    """What a backlog costs while it grows, at the next start, and how fast it drains."""
    results = {}
    for visits in plan.backlogs:
        settle()
        figures, spool = grow_backlog(stage, broker, visits)
        say(f"backlog of {figures['visits']:,} visits: took {figures['accept_rate']:,.0f}/s, "
            f"peak {figures['peak'] / 2**20:.1f} MiB")
        for turn, kind in in_turns([PixelBrokered, Pixel], plan.drain_rounds):
            settle()
            drained = drain(stage, broker, kind, spool, figures["visits"])
            figures["drains"].setdefault(kind.name, []).append(drained)
            say(f"drain of {figures['visits']:,} by {kind.name}: {drained['rate']:,.0f}/s, "
                f"first answer after {drained['first_answer'] * 1e3:.0f} ms")
        shutil.rmtree(spool)
        results[str(visits)] = figures
    return results


def grow_backlog(stage, broker, visits):
    """Collects `visits` visits while no broker answers; leaves the spool for the drains."""
    contender = PixelCollecting(stage, broker)
    contender.start()
    started = time.monotonic()
    wrk = Wrk(contender.port, BUILD_CONNECTIONS, BUILD_SECONDS)
    wait_until(f"backlog of {visits}",
               lambda: contender.metric("pixel_spool_visits") >= visits, BUILD_SECONDS, 0.05)
    seconds = time.monotonic() - started
    wrk.interrupt()
    wrk.finish()
    # What wrk left unanswered may still be on its way into the spool.
    time.sleep(SETTLE_SECONDS)
    held = int(contender.metric("pixel_spool_visits"))
    peak = sum(contender.memory().values())
    rest = sum(contender.memory("VmRSS").values())
    contender.stop()
    spool_bytes = sum(file.stat().st_blocks * 512 for file in contender.spool.rglob("*"))
    return {
        "visits": held, "accept_rate": held / seconds, "peak": peak, "held": rest,
        "bytes_a_visit": spool_bytes / held, "drains": {},
    }, contender.spool


def drain(stage, broker, kind, template, visits):
    """From the start of the program that holds the backlog until its last line is written."""
    spool = stage.fresh_folder("spool") / "spool"
    shutil.copytree(template, spool)
    settle()
    contender = kind(stage, broker, spool)
    if kind is PixelBrokered:
        # All is up but the one with the backlog.
        contender.launch_storage()
    cpu_before = sum(contender.cpu_seconds().values())
    started = time.time()
    if kind is PixelBrokered:
        contender.collector("pixel-http", "--amqp-url", broker.url)
    else:
        contender.launch()
    wait_until("answer", lambda: answer(contender.port, "/robots.txt"), 60, 0.001)
    first_answer = time.time() - started
    lines = Lines(contender.output)
    took = lines.wait_for(visits, contender.programs) - started
    cpu = sum(contender.cpu_seconds().values()) - cpu_before
    if lines.count != visits:
        raise BenchError(f"{lines.count} lines were written of {visits} visits")
    figures = {
        "rate": visits / took, "first_answer": first_answer,
        "cpu_per_million": cpu / visits * 1e6, "peak": contender.memory(),
    }
    contender.stop()
    shutil.rmtree(spool.parent)
    shutil.rmtree(contender.folder)
    return figures
