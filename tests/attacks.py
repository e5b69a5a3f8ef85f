#!/usr/bin/env python3
"""What hostile clients do to `pixel`, directly and through each edge, with a visit every half second beside them.

    make attacks                                every attack by every way: a quarter of an hour
    make attacks WAYS=haproxy ATTACKS=head      a part of it

Prints a row for each: what its clients saw, how many visits it left in the output, how the visits beside it were
answered, and how much memory `pixel` had. Ends with 1 where one of those visits was refused, lost or written twice,
or where a visit was recorded with an address that is not its client's, or smuggled past `pixel` itself: an edge may
find a request where its framing is clear to it. What is only slow is tests/slow_clients.py's.
"""

import argparse
import json
import pathlib
import socket
import threading
import time
from collections import Counter

from slow_clients import Visits, print_rows, wait_until

# No proxy that is trusted, as the edges are, and not who visits.
ATTACKER = "127.0.0.3"
ENOUGH_S = 15
SETTLED_S = 1.0
WRITTEN_S = 30
MIB = 2**20
SMUGGLED = b"GET /track?smuggled HTTP/1.1\r\nHost: px\r\n\r\n"


def head(*fields, method="POST"):
    lines = [f"{method} /track?attack HTTP/1.1", "Host: px", *fields]
    return "".join(line + "\r\n" for line in lines).encode() + b"\r\n"


def talk(port, *pieces, seconds=ENOUGH_S, pause=0.0, reads=True):
    """Sends each piece in turn, and says what came back and when the connection ended."""
    began = time.monotonic()
    received, ended = b"", None
    with socket.create_connection(("127.0.0.1", port), seconds, (ATTACKER, 0)) as client:
        client.settimeout(0.2)
        pieces = iter(pieces)
        while time.monotonic() - began < seconds:
            piece = next(pieces, None)
            try:
                if piece is not None:
                    client.settimeout(seconds)
                    client.sendall(piece)
                    client.settimeout(0.2)
                    time.sleep(pause)
                    if not pause:
                        continue
                if reads:
                    part = client.recv(1 << 16)
                    if not part:
                        ended = time.monotonic() - began
                        break
                    received += part
            except TimeoutError:
                pass
            except OSError:
                ended = time.monotonic() - began
                break
    return said(received, ended)


def said(received, ended):
    statuses = [line.split(b" ")[1].decode() for line in received.split(b"\n") if line.startswith(b"HTTP/1.")]
    counted = [status if count == 1 else f"{count} times {status}" for status, count in Counter(statuses).items()]
    end = "still open" if ended is None else f"closed after {ended:.1f} s"
    return f"{', '.join(counted) or 'no answer'}, {end}"


def many(count, client):
    """Lets so many clients do the same at once, and says what most of them saw."""
    saw = []

    def one():
        try:
            saw.append(client())
        except OSError as error:
            saw.append(type(error).__name__)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Alike but for the moment in which they were closed.
    kinds = Counter(text.split(" after ")[0] for text in saw)
    last = max((float(text.split(" after ")[1].split()[0]) for text in saw if " after " in text), default=None)
    text = "; ".join(f"{number}: {kind}" for kind, number in kinds.most_common(3))
    return text if last is None else f"{text} (the last after {last:.1f} s)"


def repeated(first, piece, times):
    yield first
    for _ in range(times):
        yield piece


def huge_body(port):
    return talk(port, head("Content-Length: 100000000000000"), b"x" * 1000)


def large_body(port):
    return talk(port, head("Content-Length: 200000"), b"x" * 200000)


def endless_chunks(port):
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    return talk(port, head("Transfer-Encoding: chunked"), *[chunk] * 100)


def unclear_ends(port):
    """RFC 9112, section 6.3: what follows must not be taken for a request."""
    ways = [
        head("Content-Length: 4", "Content-Length: 5") + b"abcd",
        head("Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("Content-Length: +4") + b"abcd",
        head("Content-Length: -1"),
        head("Content-Length:"),
        head("Transfer-Encoding: chunked") + b"zz\r\n",
        head("Transfer-Encoding: gzip") + b"abcd",
    ]
    return "; ".join(sorted({talk(port, way + SMUGGLED).split(" after ")[0] for way in ways}))


def trickling_bodies(port):
    return many(256, lambda: talk(port, *[head("Content-Length: 5000")] + [b"x"] * 60, pause=0.5))


def trickling_chunks(port):
    chunks = [head("Transfer-Encoding: chunked")] + [b"1\r\nx\r\n"] * 60
    return many(256, lambda: talk(port, *chunks, pause=0.5))


def endless_chunk_number(port):
    return talk(port, *repeated(head("Transfer-Encoding: chunked"), b"0" * (1 << 20), 2048))


def withheld_bodies(port):
    return many(600, lambda: talk(port, head("Content-Length: 60000")))


def crowd(port):
    return many(200, lambda: talk(port, head("Connection: close", method="GET")))


def silence(port):
    return many(500, lambda: talk(port))


def trickling_heads(port):
    return many(200, lambda: talk(port, *[b"GET /track?attack HTTP/1.1\r\nHost: px\r\n"] + [b"X: y\r\n"] * 60, pause=0.5))


def endless_head(port):
    return talk(port, *repeated(b"GET /track?attack HTTP/1.1\r\nHost: px\r\nX: ", b"x" * (1 << 20), 256))


def unread_answers(count, comes_again):
    requests = head(method="GET") * 1000

    def greedy(port):
        until = time.monotonic() + ENOUGH_S
        text = talk(port, *repeated(b"", requests, 500), reads=False)
        while comes_again and time.monotonic() < until:
            text = talk(port, *repeated(b"", requests, 500), reads=False, seconds=until - time.monotonic())
        return text

    return lambda port: many(count, lambda: greedy(port))


def http2_in_clear(port):
    return talk(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))


def outside_ascii(port):
    return talk(port, head("User-Agent: Caf\N{LATIN SMALL LETTER E WITH ACUTE}", "Connection: close", method="GET"))


def bare_line_feeds(port):
    return talk(port, b"GET /track?attack HTTP/1.1\nHost: px\nConnection: close\n\n")


def forged_address(port):
    fields = [f"{name}: 6.6.6.6" for name in ("X-Forwarded-For", "X-Real-IP")]
    return talk(port, head(*fields, "Forwarded: for=6.6.6.6", "Connection: close", method="GET"))


ATTACKS = {
    "a declared body of 100 TB": huge_body,
    "a body of 200 kB": large_body,
    "an endless chunked body": endless_chunks,
    "bodies whose end is unclear, and a request behind": unclear_ends,
    "256 bodies that trickle": trickling_bodies,
    "256 chunked bodies that trickle": trickling_chunks,
    "a chunk's number without an end, up to 2 GiB": endless_chunk_number,
    "600 bodies that are withheld": withheld_bodies,
    "200 connections at the same moment": crowd,
    "500 silent clients": silence,
    "200 heads that trickle": trickling_heads,
    "a head without an end, up to 256 MiB": endless_head,
    "4 clients that send and do not read": unread_answers(4, False),
    "40 clients that send and do not read": unread_answers(40, False),
    "40 clients that send, do not read, and come again": unread_answers(40, True),
    "the beginning of HTTP/2 in clear": http2_in_clear,
    "a byte outside ASCII in a head": outside_ascii,
    "bare line feeds": bare_line_feeds,
    "an address of one's own in X-Forwarded-For, Forwarded": forged_address,
}


def row(ways, name, attack):
    """One attack by one way: the table's cells, and whether the promise is broken."""
    port, restarts = ways.ports[name], ways.restarts()
    before = lines(ways)
    forget_peak(ways)
    visits = Visits(port)
    saw = attack(port)
    time.sleep(SETTLED_S)
    answers = visits.end()
    good = [number for number, (status, _) in answers.items() if status == 200]
    wait_until("the visits beside it are written", WRITTEN_S, lambda: all(ways.written()[n] for n in good))
    written, after = ways.written(), lines(ways)
    refused = Counter(str(status) for status, _ in answers.values() if status != 200)
    slowest = max(ms for _, ms in answers.values())
    recorded = after - before
    forged = recorded["forged"] or name == "direct" and recorded["smuggled"]
    cells = [
        saw, str(recorded["attack"] + recorded["smuggled"]),
        f"{len(good)} of {len(answers)}, slowest {slowest:.0f} ms" + "".join(f", {n} {s}" for s, n in refused.items()),
        f"{peak(ways) / MIB:.0f} MiB", str(ways.restarts() - restarts),
    ]
    return cells, bool(refused or forged) or any(written[number] != 1 for number in good)


def lines(ways):
    """What the output has of attackers, and what of that is forged."""
    counted = Counter()
    for line in ways.output.read_text().splitlines() if ways.output.exists() else []:
        visit = json.loads(line)
        if visit["query"] in ("attack", "smuggled"):
            counted[visit["query"]] += 1
            counted["forged"] += visit["ip"] != ATTACKER
    return counted


def status_file(ways, name):
    return pathlib.Path(f"/proc/{ways.programs['direct'].pid}/{name}")


def forget_peak(ways):
    status_file(ways, "clear_refs").write_text("5")


def peak(ways):
    lines = status_file(ways, "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", default="direct,haproxy,caddy,newer-caddy")
    parser.add_argument("--attacks", default="", help="only those whose name has this in it")
    arguments = parser.parse_args()
    print("| way | attack | its clients saw | recorded of it | visits beside it | peak of pixel | restarts |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    print_rows(arguments, ATTACKS, row)


if __name__ == "__main__":
    main()
