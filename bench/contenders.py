"""The contenders: how each is started, where its visits end up, and what runs for it."""

import os
from pathlib import Path

from load import answer
from stage import free_port, wait_until

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "bench" / "peers"
PIXEL_BUILD = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"

READY_SECONDS = 60
SPOOL_MAX_BYTES = 32 << 30

# Up to eight connections or sixteen channels were tried: none was faster than one of each.
AXUM_CONNECTIONS = 1
AXUM_CHANNELS = 1

NGINX_CONF = """
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log {folder}/access.log combined;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /track {{ empty_gif; }}
    }}
}}
"""


def wait_for_port(program, port):
    """Ready: something other than the pixel is asked for, so that no visit is counted."""
    wait_until(f"answer from {program.name}",
               lambda: program.check() and answer(port, "/robots.txt"), READY_SECONDS, 0.01)


class Contender:
    """One way to do the job. `written` is `None` where answers are all there is to count."""

    name = None
    uses_broker = False
    output = None

    def __init__(self, stage, broker):
        self.stage = stage
        self.broker = broker
        self.port = free_port()
        self.programs = []
        self.folder = stage.fresh_folder(self.name.split()[0])

    def run(self, name, argv, env=None):
        program = self.stage.start(name, argv, env)
        self.programs.append(program)
        return program

    def start(self):
        """Starts everything and waits until it is ready."""
        self.launch()
        wait_for_port(self.programs[-1], self.port)

    def launch(self):
        """Starts all programs, the one that answers last; all others are ready on return."""
        raise NotImplementedError

    def cpu_seconds(self):
        programs = self.programs + ([self.broker.node] if self.uses_broker else [])
        return {program.name: program.cpu_seconds() for program in programs}

    def memory(self, field="VmHWM"):
        return {program.name: program.memory(field) for program in self.programs}

    def more(self):
        """Figures that only this contender has."""
        return {}

    def stop(self):
        for program in reversed(self.programs):
            program.check()
            program.stop()


class Bare(Contender):
    name = "bare"
    flags = []

    def launch(self):
        program = PEERS / "bare" / "target" / "release" / "bare"
        self.run(self.name, [program, f"127.0.0.1:{self.port}", *self.flags])


class BareUnstarved(Bare):
    name = "bare-unstarved"
    flags = ["--unstarved"]


class Nginx(Contender):
    name = "nginx"

    def launch(self):
        conf = self.folder / "nginx.conf"
        conf.write_text(NGINX_CONF.format(folder=self.folder, port=self.port))
        self.folder.chmod(0o755)
        self.run("nginx", ["nginx", "-p", self.folder, "-e", self.folder / "error.log", "-c", conf])


class AxumLapin(Contender):
    name = "axum-lapin"
    uses_broker = True

    def launch(self):
        programs = PEERS / "axum-lapin" / "target" / "release"
        self.output = self.folder / "visits.log"
        storage = self.run("axum-lapin-storage", [
            programs / "axum-lapin-storage",
            "--amqp-url", self.broker.url, "--output", self.output])
        wait_until("consumer", lambda: storage.check() and "writing" in storage.log.read_text(),
                   READY_SECONDS)
        self.run("axum-lapin-http", [
            programs / "axum-lapin-http", "--listen", f"127.0.0.1:{self.port}",
            "--amqp-url", self.broker.url,
            "--connections", AXUM_CONNECTIONS, "--channels", AXUM_CHANNELS])


class Pixel(Contender):
    """The embedded one; `spool` may be given with visits already in it."""

    name = "pixel"
    environment = None

    def __init__(self, stage, broker, spool=None):
        super().__init__(stage, broker)
        self.admin_port = free_port()
        self.spool = spool or self.folder / "spool"

    def collector(self, program, *options):
        return self.run(program, [
            PIXEL_BUILD / program, "--listen", f"127.0.0.1:{self.port}",
            "--admin-listen", f"127.0.0.1:{self.admin_port}",
            "--spool-dir", self.spool, "--spool-max-bytes", SPOOL_MAX_BYTES, *options], self.environment)

    def launch(self):
        self.output = self.folder / "visits.log"
        self.collector("pixel", "--output", self.output)


    def metric(self, name):
        """A number from the collector's own metrics, 0 while it does not answer."""
        reply = answer(self.admin_port, "/metrics")
        for line in (reply[1].decode() if reply else "").splitlines():
            if line.startswith(name) and line[len(name):len(name) + 1] in (" ", "{"):
                return float(line.split()[-1])
        return 0


class PixelBrokered(Pixel):
    name = "pixel-http + pixel-storage"
    uses_broker = True

    def __init__(self, stage, broker, spool=None):
        super().__init__(stage, broker, spool)
        self.storage_port = free_port()

    def launch(self):
        self.launch_storage()
        self.collector("pixel-http", "--amqp-url", self.broker.url)

    def launch_storage(self):
        self.output = self.folder / "visits.log"
        storage = self.run("pixel-storage", [
            PIXEL_BUILD / "pixel-storage", "--admin-listen", f"127.0.0.1:{self.storage_port}",
            # The output of the round before had the queue.
            "--amqp-url", self.broker.url, "--output", self.output, "--takeover"])
        wait_until("ready pixel-storage", lambda: storage.check() and self.storage_ready(),
                   READY_SECONDS)

    def storage_ready(self):
        reply = answer(self.storage_port, "/readyz")
        return reply and reply[0] == 200


class PixelCollecting(Pixel):
    """pixel-http alone: no broker answers, the spool takes every visit."""

    name = "pixel-http"

    def launch(self):
        self.collector("pixel-http", "--amqp-url", f"amqp://guest:guest@127.0.0.1:{free_port()}/%2f")


CONTENDERS = [Nginx, Bare, BareUnstarved, AxumLapin, Pixel, PixelBrokered]


class PixelTraced(Pixel):
    """The embedded one, with spans of a share of the visits sent to a receiver on `receiver_port`."""

    ratio = None
    receiver_port = None

    def launch(self):
        if self.ratio is not None:
            self.environment = {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{self.receiver_port}/v1/traces",
                "OTEL_TRACES_SAMPLER": "traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": str(self.ratio),
            }
        super().launch()

    def more(self):
        return {name: self.metric(f"pixel_trace_spans_{name}_total") for name in ("exported", "dropped")}


class TracedNever(PixelTraced):
    name = "tracing off"


class TracedSome(PixelTraced):
    name = "tracing 1 %"
    ratio = 0.01


class TracedAll(PixelTraced):
    name = "tracing 100 %"
    ratio = 1


TRACED = [TracedNever, TracedSome, TracedAll]
