"""The edge: `pixel` behind each reverse proxy, and what the proxy alone would cost.

All rules of the shipped configurations are in force; only the bounds for one address are raised, as the load comes
from one.
"""

import contextlib
import shutil
import socket
import subprocess
import threading

from contenders import ROOT, BareUnstarved, Contender, Nginx, Pixel
from load import H2load, Hey, Wrk, answer
from measures import Lines, in_turns, settle
from stage import free_port, say, wait_until

CONNECTIONS = 64
# Each is one TLS handshake and one request; all come at once.
NEW_CONNECTIONS = 1_000
SLOW_BODIES = 64
SLOW_BYTE_SECONDS = 0.5
ONE_ADDRESS = 1_000_000_000
READY_SECONDS = 30

NGINX_PROXY_CONF = """
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream pixel {{
        server 127.0.0.1:{upstream};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} {tls};
        ssl_certificate {folder}/certificates/localhost.pem;
        ssl_certificate_key {folder}/certificates/localhost.pem;
        location / {{
            proxy_pass http://pixel;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $remote_addr;
        }}
    }}
}}
"""


class Behind(Contender):
    """A contender behind an edge: the load goes to the edge, the visits are the contender's."""

    inner_kind = Pixel
    has_tls = False

    def __init__(self, stage, broker):
        super().__init__(stage, broker)
        self.inner = self.inner_kind(stage, broker)

    def launch(self):
        self.inner.start()
        self.programs = self.inner.programs
        self.output = self.inner.output
        self.launch_edge()
        wait_until(f"answer from {self.name}",
                   lambda: self.programs[-1].check() and answer(self.port, "/robots.txt", self.has_tls),
                   READY_SECONDS, 0.05)

    def start(self):
        self.launch()

    def launch_edge(self):
        raise NotImplementedError

    def certificates(self):
        """A folder with a certificate for localhost, signed by itself."""
        folder = self.folder / "certificates"
        folder.mkdir()
        key, chain = self.folder / "key", self.folder / "chain"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-days", "2", "-subj", "/CN=localhost", "-keyout", key, "-out", chain],
            check=True, capture_output=True)
        (folder / "localhost.pem").write_bytes(chain.read_bytes() + key.read_bytes())
        return folder

    def stop(self):
        super().stop()
        shutil.rmtree(self.inner.folder)


class Haproxy(Behind):
    name = "haproxy"

    def launch_edge(self):
        listen = "PIXEL_EDGE_TLS_LISTEN" if self.has_tls else "PIXEL_EDGE_LISTEN"
        env = {
            "EDGE": "haproxy",
            "PIXEL_UPSTREAM": f"127.0.0.1:{self.inner.port}",
            "PIXEL_EDGE_LISTEN": f"127.0.0.1:{free_port()}",
            "PIXEL_EDGE_METRICS_LISTEN": f"127.0.0.1:{free_port()}",
            "PIXEL_EDGE_CONNECTIONS_MAX": str(ONE_ADDRESS),
            "PIXEL_EDGE_RATE_MAX": str(ONE_ADDRESS),
            listen: f"127.0.0.1:{self.port}",
        }
        if self.has_tls:
            env["PIXEL_CERTIFICATES"] = str(self.certificates())
        self.run("haproxy", [ROOT / "deploy" / "edge.sh"], env)


class Caddy(Behind):
    name = "caddy"

    def launch_edge(self):
        scheme = "https://localhost" if self.has_tls else ""
        self.run("caddy", [ROOT / "deploy" / "edge.sh"], {
            "EDGE": "caddy",
            "PIXEL_UPSTREAM": f"127.0.0.1:{self.inner.port}",
            "PIXEL_SITE": f"{scheme}:{self.port}",
            "PIXEL_BIND": "127.0.0.1",
            **{name: str(self.folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")},
        })


class NginxProxy(Behind):
    name = "nginx, bare"

    def launch_edge(self):
        conf = self.folder / "nginx.conf"
        self.certificates()
        conf.write_text(NGINX_PROXY_CONF.format(
            folder=self.folder, port=self.port, upstream=self.inner.port,
            tls="ssl http2" if self.has_tls else ""))
        self.folder.chmod(0o755)
        self.run("nginx-proxy", ["nginx", "-p", self.folder, "-e", self.folder / "error.log", "-c", conf])


class GifBehindHaproxy(Haproxy):
    name = "empty_gif behind haproxy"
    inner_kind = Nginx


class BareBehindHaproxy(Haproxy):
    name = "bare-unstarved behind haproxy"
    inner_kind = BareUnstarved


class Direct(Pixel):
    name = "direct"


def with_tls(kind):
    return type(kind.__name__, (kind,), {"has_tls": True})


def in_clear(contender, seconds):
    return Wrk(contender.port, CONNECTIONS, seconds).finish()


def tls_http1(contender, seconds):
    return H2load(contender.port, CONNECTIONS, http2=False, seconds=seconds).finish()


def tls_http2(contender, seconds):
    return H2load(contender.port, CONNECTIONS, http2=True, seconds=seconds).finish()


def new_http1(contender, _):
    return H2load(contender.port, NEW_CONNECTIONS, http2=False).finish()


def new_http2(contender, _):
    return H2load(contender.port, NEW_CONNECTIONS, http2=True).finish()


EDGES = [Haproxy, Caddy, NginxProxy]
LOADS = {
    "HTTP/1.1 in clear": (in_clear, [Direct, *EDGES]),
    "HTTP/1.1 over TLS": (tls_http1, [with_tls(kind) for kind in EDGES]),
    "HTTP/2 over TLS": (tls_http2, [with_tls(kind) for kind in [*EDGES, GifBehindHaproxy, BareBehindHaproxy]]),
    "HTTP/1.1 over TLS, a connection each": (new_http1, [with_tls(kind) for kind in EDGES]),
    "HTTP/2 over TLS, a connection each": (new_http2, [with_tls(kind) for kind in EDGES]),
}


def edge(stage, broker, plan):
    """Answers a second and their cost by process through each edge, and the answers beside slow bodies."""
    results = {"loads": {}, "slow": []}
    for load, (send, kinds) in LOADS.items():
        table = results["loads"].setdefault(load, {})
        for turn, kind in in_turns(kinds, plan.edge_rounds):
            settle()
            figures = one_load(stage, broker, kind, send, plan.edge_seconds)
            table.setdefault(kind.name, []).append(figures)
            say(f"{load}, round {turn + 1}/{plan.edge_rounds}, {kind.name}: {figures['rate']:,.0f}/s, "
                f"{sum(figures['cpu'].values()):.1f} CPU s per million, {figures['refused']} refused")
    for _ in range(plan.latency_rounds):
        settle()
        results["slow"].append(beside_slow_bodies(stage, broker, plan))
    return results


def one_load(stage, broker, kind, send, seconds):
    contender = kind(stage, broker)
    contender.start()
    cpu_before = contender.cpu_seconds()
    answers = send(contender, seconds)
    if contender.output:
        Lines(contender.output).wait_for(answers.count, contender.programs)
    cpu = {name: after - cpu_before[name] for name, after in contender.cpu_seconds().items()}
    contender.stop()
    shutil.rmtree(contender.folder)
    return {
        "rate": answers.count / answers.seconds,
        "refused": answers.refused,
        "cpu": {name: spent / answers.count * 1e6 for name, spent in cpu.items()},
    }


def beside_slow_bodies(stage, broker, plan):
    """Quantiles of the answer through HAProxy at a fixed rate, while bodies trickle in on connections of their own."""
    contender = Haproxy(stage, broker)
    contender.start()
    slow = SlowBodies(contender.port)
    timings = Hey(contender.port, plan.edge_rate, plan.latency_seconds).finish()
    slow.stop()
    figures = {**timings.quantiles(), "refused": timings.refused}
    say(f"beside {SLOW_BODIES} slow bodies: p50 {figures['p50'] * 1e3:.2f} ms, p99 {figures['p99'] * 1e3:.2f} ms, "
        f"{figures['refused']} refused")
    contender.stop()
    return figures


class SlowBodies:
    """Clients that send a byte of their body now and then, and begin again when they are given up."""

    def __init__(self, port):
        self.port = port
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.trickle) for _ in range(SLOW_BODIES)]
        for thread in self.threads:
            thread.start()

    def trickle(self):
        while not self.stopped.is_set():
            # The edge ends them at its own time.
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as client:
                client.sendall(b"POST /track HTTP/1.1\r\nHost: bench\r\nContent-Length: 1000\r\n\r\n")
                while not self.stopped.wait(SLOW_BYTE_SECONDS):
                    client.sendall(b"x")

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join()
