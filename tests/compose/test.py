"""The whole system in containers, really run: docker-compose.yml as it is, under load, with kills.

Run by `make test-compose`, which brings the engine and the images. With names of tests as
arguments, only those (and the start of the stack) run. Python's standard library only.
"""

import base64
import contextlib
import http.client
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIF = bytes.fromhex(
    "47494638396101000100800100000000ffffff21f90401000001002c00000000010001000002024c01003b"
)
USER, PASSWORD = "visitor", "s3cret"
SERVICES = ["edge", "pixel-http", "rabbitmq", "pixel-storage"]

HEALTHY_S = 150
WRITTEN_S = 90
LOAD_THREADS = 4
LOAD_PAUSE_S = 0.02


# --- Small helpers -----------------------------------------------------------------------------


def run(*command, env=None, check=True):
    """Runs a command and returns what it printed."""
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.strip()


def wait_until(condition, seconds, what):
    """Waits until `condition()` is true, and returns what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.3)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def caddy_s_word():
    """How the image's Caddy calls the buffering of bodies: a stand-in may be Debian's."""
    version = run("docker", "run", "--rm", "caddy:2.11-alpine", "caddy", "version")
    return "buffer_requests" if version.lstrip("v").startswith(("2.6.0", "2.6.1", "2.6.2")) else "request_buffers"


class Stack:
    """One Compose project with folders and ports of its own."""

    def __init__(self, project, *files):
        self.project = project
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{project}-"))
        self.visits = self.folder / "visits"
        self.port, self.management_port = free_port(), free_port()
        self.env = dict(
            os.environ,
            COMPOSE_PROJECT_NAME=project,
            COMPOSE_FILE=":".join(files or ["docker-compose.yml"]),
            PIXEL_VISITS=str(self.visits),
            PIXEL_PUBLISH=f"127.0.0.1:{self.port}",
            RABBITMQ_PUBLISH=f"127.0.0.1:{self.management_port}",
            RABBITMQ_USER=USER,
            PIXEL_CADDY_BUFFERING=caddy_s_word(),
        )
        # What this machine's user may have set has no part in it.
        for name in ["EDGE", "PIXEL_SITE", "PIXEL_FORMAT", "PIXEL_IMAGES", "PIXEL_TAG", "RABBITMQ_PASSWORD"]:
            self.env.pop(name, None)
        # Visits belong to whoever calls; for root, to someone who is not in the image either.
        self.uid = os.getuid() or 4321
        self.env.update(PIXEL_UID=str(self.uid), PIXEL_GID=str(self.uid))

    def compose(self, *arguments, check=True):
        return run("deploy/compose.sh", *arguments, env=self.env, check=check)

    def containers(self, service):
        return self.compose("ps", "-q", service).split()

    def container(self, service):
        return self.containers(service)[0]

    def inspect(self, *containers):
        return json.loads(run("docker", "inspect", *containers))

    def wait_healthy(self, *services):
        def unhealthy():
            found = [c for service in services or SERVICES for c in self.containers(service)]
            states = [c["State"] for c in self.inspect(*found)]
            return [s for s in states if s.get("Health", {}).get("Status") != "healthy"]

        wait_until(lambda: not unhealthy(), HEALTHY_S, f"{services or 'all'} healthy")

    def forget(self):
        """Removes containers and volumes, those of a run that was killed too: its spools' numbers would go on, and
        look like lost visits."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "20")

    def show_logs(self):
        print(self.compose("logs", "--no-color", "--tail=15", check=False)[-6000:])

    def remove(self):
        try:
            self.forget()
        except AssertionError as error:
            print(f"not removed: {error}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def get(self, path="/track", headers=(), method="GET", timeout=15):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, headers=dict(headers))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def visit(self, referrer, **headers):
        status, body = self.get(headers={"Referer": referrer, **headers})
        assert (status, body) == (200, GIF), (status, body)

    def lines(self):
        """Every line of the output, split into its fields."""
        path = self.visits / "visits.log"
        if not path.exists():
            return []
        return [line.split("|") for line in path.read_text().splitlines()]

    def line_of(self, referrer):
        """The one line of the visit with this referrer, once it is there."""
        found = lambda: [line for line in self.lines() if line[1] == referrer]
        lines = wait_until(found, WRITTEN_S, f"the visit from {referrer} written")
        assert len(lines) == 1, lines
        return lines[0]

    def password(self):
        """The broker's, as a person finds it out."""
        return self.compose("exec", "-T", "rabbitmq", "cat", "/secrets/password")

    def management(self, path, user=USER, password=None):
        password = password or self.password()
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        connection = http.client.HTTPConnection("127.0.0.1", self.management_port, timeout=10)
        connection.request("GET", path, headers={"Authorization": f"Basic {token}"})
        response = connection.getresponse()
        return response.status, response.read()


class Load:
    """Visitors in a closed loop, each visit with a referrer of its own, until the block ends."""

    serial = itertools.count()

    def __init__(self, stack):
        self.stack, self.name = stack, f"https://load.example/{next(self.serial)}"
        self.confirmed, self.failed, self.reasons = [], 0, Counter()
        self.stop = threading.Event()
        self.threads = [
            threading.Thread(target=self.visitor, args=(n,)) for n in range(LOAD_THREADS)
        ]

    def visitor(self, thread):
        for n in itertools.count():
            if self.stop.wait(LOAD_PAUSE_S):
                return
            referrer = f"{self.name}/{thread}/{n}"
            try:
                self.stack.visit(referrer)
                self.confirmed.append(referrer)
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failed += 1
                self.reasons[f"{type(error).__name__} {str(error)[:60]}"] += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def assert_written_once(self, what, twice_at_most=0):
        """Every confirmed visit is in the output; says how many, and how many twice."""
        written, lost = Counter(), set(self.confirmed)

        def all_written():
            written.clear()
            written.update(line[1] for line in self.stack.lines())
            lost.difference_update(written)
            return not lost

        try:
            wait_until(all_written, WRITTEN_S, "all written")
        except AssertionError:
            pass  # The counts below say more.
        twice = [r for r in self.confirmed if written[r] > 1]
        print(
            f"    {what}: {len(self.confirmed)} confirmed, {self.failed} failed, "
            f"{len(lost)} lost, {len(twice)} twice"
        )
        assert len(self.confirmed) > 100, "too little load to mean anything"
        assert not lost, sorted(lost)[:5]
        assert len(twice) <= twice_at_most, twice[:5]


def kill_and_start(stack, container, down_s=2):
    run("docker", "kill", "--signal", "KILL", container)
    time.sleep(down_s)
    run("docker", "start", container)


# --- The tests: one stack, in this order ---------------------------------------------------------


def up_ends_with_every_part_healthy_and_says_where_to_look(stack):
    started = time.monotonic()
    first_pixel = []

    def visit_at_once():
        while not first_pixel and time.monotonic() - started < HEALTHY_S:
            try:
                stack.visit("https://first.example/")
                first_pixel.append(time.monotonic() - started)
            except (OSError, http.client.HTTPException, AssertionError):
                time.sleep(0.1)

    visitor = threading.Thread(target=visit_at_once)
    visitor.start()
    said = run("deploy/up.sh", env=stack.env)
    seconds = time.monotonic() - started
    visitor.join()
    print(f"    first pixel after {first_pixel[0]:.1f} s, all healthy after {seconds:.1f} s")
    print("\n".join("    " + line for line in stack.compose("ps").splitlines()))
    print(run("docker", "images", "--format", "    {{.Repository}}:{{.Tag}} {{.Size}}", "--filter", "reference=pixel-*"))
    assert f"curl -o /dev/null -D - http://127.0.0.1:{stack.port}/track" in said, said
    assert f"{stack.visits}/visits.log" in said, said
    stack.wait_healthy()
    stack.line_of("https://first.example/")
    owner = (stack.visits / "visits.log").stat()
    assert (owner.st_uid, owner.st_mode & 0o777) == (stack.uid, 0o640), owner


def a_visit_from_this_machine_has_its_address_whatever_it_claims(stack):
    network = json.loads(run("docker", "network", "inspect", f"{stack.project}_public"))[0]
    gateway = network["IPAM"]["Config"][0]["Gateway"]
    claims = {"X-Forwarded-For": "6.6.6.6", "Forwarded": "for=6.6.6.6", "X-Real-IP": "6.6.6.6"}
    stack.visit("https://host.example/", **claims, **{"User-Agent": "curl/8"})
    time_, referrer, agent, ip = stack.line_of("https://host.example/")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z", time_), time_
    assert (agent, ip) == ("curl/8", gateway), (agent, ip)


def a_visit_from_another_host_has_that_hosts_address(stack):
    request = r"GET /track HTTP/1.0\r\nReferer: https://other.example/\r\n\r\n"
    address = run(
        *("docker", "run", "--rm", "--network", f"{stack.project}_public", "debian:bookworm-slim"),
        *("bash", "-c", f"exec 3<>/dev/tcp/edge/8080; printf '{request}' >&3; cat <&3 >/dev/null; hostname -i"),
    )
    assert stack.line_of("https://other.example/")[3] == address


def a_user_agent_outside_ascii_is_recorded(stack):
    request = (
        "GET /track?q=é HTTP/1.1\r\nHost: px\r\nConnection: close\r\n"
        "Referer: https://utf8.example/\r\nUser-Agent: Café 1.0\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", stack.port), timeout=10) as client:
        client.sendall(request.encode())
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.endswith(GIF), answer
    assert stack.line_of("https://utf8.example/")[2] == "Caf? 1.0"


def the_broker_has_a_password_of_its_own_and_no_guest(stack):
    password = stack.password()
    assert re.fullmatch("[0-9a-f]{48}", password), password
    assert stack.management("/api/whoami")[0] == 200
    for user, wrong in [("guest", "guest"), (USER, "pixel"), (USER, USER)]:
        assert stack.management("/api/whoami", user, wrong)[0] == 401, user
    # Another `up` takes no other.
    stack.compose("up", "-d", "secrets")
    assert stack.password() == password


def a_broker_of_an_older_pixel_keeps_its_password_until_it_is_changed(stack):
    """The password was a default, and the broker keeps the user of its first start."""

    def change(password):
        stack.compose("exec", "-T", "rabbitmq", "rabbitmqctl", "change_password", USER, password)

    change("pixel")
    stack.compose("down")
    run("docker", "volume", "rm", f"{stack.project}_secrets")
    run("deploy/up.sh", env=stack.env)
    assert stack.password() == "pixel"
    stack.visit("https://older.example/")
    stack.line_of("https://older.example/")
    # As docs/OPERATIONS.md says.
    change(PASSWORD)
    stack.env["RABBITMQ_PASSWORD"] = PASSWORD
    stack.compose("up", "-d", "secrets")
    stack.compose("restart", "pixel-http", "pixel-storage")
    stack.wait_healthy()
    assert stack.management("/api/whoami", USER, "pixel")[0] == 401
    stack.visit("https://newer.example/")
    stack.line_of("https://newer.example/")


def threads(container):
    """How many threads a container's processes have."""
    pid = json.loads(run("docker", "inspect", container))[0]["State"]["Pid"]
    return len(os.listdir(f"/proc/{pid}/task"))


def more_slow_bodies_than_are_read_end_no_collector(stack):
    """Past the edge, as whatever shares its network could. With 256 threads at most, tiny_http panicked for want of one."""
    container = stack.container("pixel-http")
    before = stack.inspect(container)[0]
    address = before["NetworkSettings"]["Networks"][f"{stack.project}_front"]["IPAddress"]
    request = b"POST /track?slow HTTP/1.1\r\nHost: px\r\nContent-Length: 1000\r\n\r\n"
    slow = []
    try:
        for _ in range(300):
            slow.append(socket.create_connection((address, 8080), timeout=10))
            slow[-1].sendall(request)
        most = 0
        for n in range(6):
            for client in slow:
                try:
                    client.sendall(b"x")
                except OSError:
                    pass  # Given up, or answered with 503.
            most = max(most, threads(container))
            stack.visit(f"https://slow.example/{n}")
            time.sleep(0.5)
    finally:
        for client in slow:
            client.close()
    print(f"    {most} threads of {before['HostConfig']['PidsLimit']}")
    for n in range(6):
        stack.line_of(f"https://slow.example/{n}")
    after = stack.inspect(container)[0]
    assert most > 256, "too few bodies to mean anything"
    assert (after["State"]["Pid"], after["RestartCount"]) == (before["State"]["Pid"], before["RestartCount"])


def nothing_runs_with_more_than_it_needs(stack):
    for service in SERVICES:
        container = stack.inspect(stack.container(service))[0]
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["Memory"] > 0 and host["PidsLimit"] > 0, service
        assert host["RestartPolicy"]["Name"] == "unless-stopped", service
        if service != "edge":
            assert container["Config"]["User"] not in ("", "root", "0"), service
        for bindings in (host["PortBindings"] or {}).values():
            assert all(b["HostIp"] == "127.0.0.1" for b in bindings), (service, bindings)
            assert service in ("edge", "rabbitmq"), service


def a_killed_container_under_load_loses_nothing(stack):
    for service, twice_at_most in [
        ("edge", 0),
        # The edge asks again when a collector dies before its answer: one more visit for each
        # request that was on its way, never one fewer.
        ("pixel-http", LOAD_THREADS),
        ("rabbitmq", 0),
        ("pixel-storage", 0),
    ]:
        with Load(stack) as load:
            time.sleep(2)
            kill_and_start(stack, stack.container(service))
            stack.wait_healthy(service)
            time.sleep(1)
        load.assert_written_once(f"{service} killed", twice_at_most)


def a_collector_that_restarts_costs_its_visitors_a_wait_and_no_error(stack):
    with Load(stack) as load:
        time.sleep(1)
        run("docker", "restart", "--time", "20", stack.container("pixel-http"))
        stack.wait_healthy("pixel-http")
        time.sleep(1)
    load.assert_written_once("pixel-http restarted")
    assert load.failed == 0, load.reasons


def a_collector_that_is_killed_costs_those_whose_request_it_held_an_answer_at_most(stack):
    """HAProxy's tries are over within milliseconds where a dying collector takes each connection and closes it."""
    with Load(stack) as load:
        time.sleep(1)
        kill_and_start(stack, stack.container("pixel-http"), down_s=0)
        stack.wait_healthy("pixel-http")
        time.sleep(1)
    load.assert_written_once("pixel-http killed, and back at once", LOAD_THREADS)
    assert load.failed <= LOAD_THREADS, load.reasons


def a_program_that_dies_is_started_again_by_the_engine(stack):
    for service in ["pixel-http", "pixel-storage"]:
        container = stack.container(service)
        before = stack.inspect(container)[0]
        # Not `docker kill`: what the engine is told to end, it does not start again.
        kill = f"kill -KILL {before['State']['Pid']}"
        run("docker", "run", "--rm", "--pid", "host", "debian:bookworm-slim", "bash", "-c", kill)
        restarted = lambda: stack.inspect(container)[0]["RestartCount"] > before["RestartCount"]
        wait_until(restarted, 30, f"{service} started again")
        stack.wait_healthy(service)
    stack.visit("https://again.example/")
    stack.line_of("https://again.example/")


def a_stopped_program_drains_and_ends_with_status_0(stack):
    for service in ["pixel-http", "pixel-storage"]:
        container = stack.container(service)
        run("docker", "stop", "--time", "20", container)
        assert stack.inspect(container)[0]["State"]["ExitCode"] == 0, service
        run("docker", "start", container)
    stack.wait_healthy()


def a_restart_of_everything_under_load_keeps_every_visit(stack):
    with Load(stack) as load:
        time.sleep(2)
        stack.compose("restart")
        stack.wait_healthy()
        time.sleep(1)
    load.assert_written_once("everything restarted", LOAD_THREADS)


def what_waits_in_queue_and_spool_survives_down_and_up(stack):
    before = len(stack.lines())
    stack.compose("stop", "pixel-storage")
    queued = [f"https://queued.example/{n}" for n in range(50)]
    for referrer in queued:
        stack.visit(referrer)
    stack.compose("stop", "rabbitmq")
    spooled = [f"https://spooled.example/{n}" for n in range(50)]
    for referrer in spooled:
        stack.visit(referrer)
    assert len(stack.lines()) == before
    stack.compose("down")
    run("deploy/up.sh", env=stack.env)
    for referrer in queued + spooled:
        stack.line_of(referrer)
    stack.visit("https://after.example/")
    stack.line_of("https://after.example/")


def three_collectors_share_the_load_and_a_standby_takes_over(stack):
    stack.compose("up", "-d", "--scale", "pixel-http=3", "--scale", "pixel-storage=2")
    stack.wait_healthy()
    collectors, storages = stack.containers("pixel-http"), stack.containers("pixel-storage")
    assert (len(collectors), len(storages)) == (3, 2), (collectors, storages)
    accepted = {c: accepted_visits(c) for c in collectors}
    with Load(stack) as load:
        time.sleep(4)
    load.assert_written_once("three collectors")
    shares = [accepted_visits(c) - accepted[c] for c in collectors]
    print(f"    accepted by each collector: {shares}")
    assert min(shares) > sum(shares) / 10, shares

    with Load(stack) as load:
        time.sleep(1)
        kill_and_start(stack, collectors[0])
        stack.wait_healthy()
    load.assert_written_once("one of three collectors killed", LOAD_THREADS)
    assert load.failed == 0, load.reasons

    # HAProxy's tries among several take no time, and were over before one was back: 32 to 43 visits of a run got 503.
    with Load(stack) as load:
        time.sleep(1)
        run("docker", "kill", "--signal", "KILL", *collectors)
        run("docker", "start", *collectors)
        stack.wait_healthy()
    load.assert_written_once("all three collectors killed at once", 2 * LOAD_THREADS)
    assert load.failed <= 2 * LOAD_THREADS, load.reasons

    for n, storage in enumerate(storages):
        with Load(stack) as load:
            time.sleep(2)
            run("docker", "kill", "--signal", "KILL", storage)
            time.sleep(1)
        # Written while the killed one is still down, so by the other.
        load.assert_written_once(f"storage {n + 1} of 2 killed")
        run("docker", "start", storage)
        stack.wait_healthy()
    stack.compose("up", "-d", "--scale", "pixel-http=1", "--scale", "pixel-storage=1")


def accepted_visits(container):
    request = r"GET /metrics HTTP/1.0\r\n\r\n"
    metrics = run(
        *("docker", "exec", container, "bash", "-c"),
        f"exec 3<>/dev/tcp/127.0.0.1/8081; printf '{request}' >&3; cat <&3",
    )
    return int(float(re.search(r"^pixel_visits_accepted_total(?:{.*})? (\S+)$", metrics, re.M)[1]))


@contextlib.contextmanager
def caddy_as_the_edge(stack, collectors):
    stack.env["EDGE"] = "caddy"
    stack.compose("up", "-d", "--scale", f"pixel-http={collectors}")
    stack.wait_healthy()
    yield
    del stack.env["EDGE"]
    stack.compose("up", "-d", "--scale", "pixel-http=1")
    stack.wait_healthy()


def caddy_is_an_edge_as_well(stack):
    with caddy_as_the_edge(stack, collectors=2):
        stack.visit("https://caddy.example/", **{"X-Forwarded-For": "9.9.9.9", "Forwarded": "for=9.9.9.9"})
        assert stack.line_of("https://caddy.example/")[3] != "9.9.9.9"
        collectors = stack.containers("pixel-http")
        with Load(stack) as load:
            time.sleep(1)
            # Its visitors, the other takes.
            for collector in collectors:
                kill_and_start(stack, collector, down_s=0)
                stack.wait_healthy("pixel-http")
                time.sleep(1)
        load.assert_written_once("caddy, each of two collectors killed", 2 * LOAD_THREADS)
        assert load.failed == 0, load.reasons


def a_site_name_turns_on_https_and_http_2(stack):
    """For `localhost` Caddy is its own authority; all the rest is as for any name."""
    with caddy_as_the_edge(stack, collectors=1):
        image = stack.inspect(stack.container("edge"))[0]["Config"]["Image"]
    port = free_port()
    container = run(
        *("docker", "create", "--read-only", "--tmpfs", "/data", "--tmpfs", "/config"),
        *("--network", f"{stack.project}_public", "--publish", f"127.0.0.1:{port}:443"),
        *("--volume", f"{ROOT}/deploy/Caddyfile:/etc/caddy/Caddyfile:ro"),
        *("--env", "PIXEL_SITE=localhost", "--env", "PIXEL_UPSTREAM=pixel-http:8080"),
        *("--env", f"PIXEL_CADDY_BUFFERING={stack.env['PIXEL_CADDY_BUFFERING']}", image),
    )
    context = ssl._create_unverified_context()

    def visit():
        connection = http.client.HTTPSConnection("localhost", port, timeout=15, context=context)
        try:
            connection.request("GET", "/track", headers={"Referer": "https://tls.example/"})
            return connection.getresponse().read()
        except OSError:
            return None  # Not up yet.

    try:
        run("docker", "network", "connect", f"{stack.project}_front", container)
        run("docker", "start", container)
        assert wait_until(visit, 30, "an answer over TLS") == GIF
        stack.line_of("https://tls.example/")
        context.set_alpn_protocols(["h2", "http/1.1"])
        with socket.create_connection(("localhost", port), timeout=10) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as client:
                assert client.selected_alpn_protocol() == "h2"
    finally:
        run("docker", "rm", "--force", container)


def the_audit_finds_no_gap(stack):
    stack.compose("stop")
    run("docker", "build", "--quiet", "--target", "pixel", "--tag", "pixel:local", ".")
    said = run(
        *("docker", "run", "--rm", "--network", "none", "--volume", f"{stack.visits}:/visits:ro"),
        *("--user", str(stack.uid), "pixel:local", "audit", "--output", "/visits/visits.log"),
    )
    print("\n".join("    " + line for line in said.splitlines()))


def another_folder_of_visits_gets_the_queue_when_it_is_told_so(stack):
    """Containers are machines to each other: without its ledger, an output is not known to be the queue's."""
    stack.visits = stack.folder / "moved"
    stack.env["PIXEL_VISITS"] = str(stack.visits)
    stack.compose("up", "-d")
    stack.visit("https://moved.example/")
    refused = lambda: "PIXEL_TAKEOVER=1" in stack.compose("logs", "--no-color", "pixel-storage")
    wait_until(refused, HEALTHY_S, "the queue refused to another folder")
    assert not stack.lines()
    stack.env["PIXEL_TAKEOVER"] = "true"
    stack.compose("up", "-d")
    stack.line_of("https://moved.example/")
    # Only that start needs it.
    del stack.env["PIXEL_TAKEOVER"]
    stack.compose("up", "-d")
    stack.visit("https://again.moved.example/")
    stack.line_of("https://again.moved.example/")
    stack.compose("stop")


def the_embedded_image_runs_alone(stack):
    port = free_port()
    container = run(
        *("docker", "run", "--detach", "--read-only", "--cap-drop", "ALL", "--tmpfs", "/spool:uid=10001"),
        *("--tmpfs", "/visits:uid=10001", "--publish", f"127.0.0.1:{port}:8080", "pixel:local"),
    )
    try:
        health = lambda: json.loads(run("docker", "inspect", container))[0]["State"]["Health"]
        wait_until(lambda: health()["Status"] == "healthy", 30, "pixel healthy")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/track", headers={"Referer": "https://alone.example/"})
        assert connection.getresponse().read() == GIF
        written = lambda: run("docker", "exec", container, "cat", "/visits/visits.log")
        wait_until(lambda: "https://alone.example/" in written(), 30, "written")
    finally:
        run("docker", "rm", "--force", container)


def amqps_works_in_the_image(stack):
    """A broker that speaks only TLS, under an authority that the container is told to trust."""
    folder = stack.folder / "tls"
    folder.mkdir()
    run(
        *("docker", "run", "--rm", "--user", str(os.getuid()), "--volume", f"{folder}:/tls"),
        *("--entrypoint", "openssl", "pixel-storage:local", "req", "-x509", "-days", "2", "-nodes"),
        # An authority itself would not be taken for a broker.
        *("-extensions", "v3_req"),
        *("-newkey", "rsa:2048", "-subj", "/CN=broker", "-addext", "subjectAltName=DNS:broker"),
        *("-keyout", "/tls/key.pem", "-out", "/tls/cert.pem"),
    )
    (folder / "tls.conf").write_text(
        "listeners.tcp = none\nlisteners.ssl.default = 5671\n"
        "ssl_options.certfile = /tls/cert.pem\nssl_options.keyfile = /tls/key.pem\n"
        "ssl_options.cacertfile = /tls/cert.pem\nssl_options.verify = verify_none\n"
    )
    for path in folder.iterdir():
        path.chmod(0o644)
    network = f"{stack.project}_tls"
    run("docker", "network", "create", "--internal", network)
    containers = []
    try:
        containers.append(
            run(
                *("docker", "run", "--detach", "--network", network, "--network-alias", "broker"),
                *("--env", f"RABBITMQ_DEFAULT_USER={USER}", "--env", f"RABBITMQ_DEFAULT_PASS={PASSWORD}"),
                *("--volume", f"{folder}:/tls:ro"),
                *("--volume", f"{folder}/tls.conf:/etc/rabbitmq/conf.d/20-tls.conf:ro"),
                *("--user", "rabbitmq", "--hostname", "broker", "rabbitmq:4-management"),
            )
        )
        containers.append(
            run(
                *("docker", "run", "--detach", "--network", network, "--tmpfs", "/visits:uid=10001"),
                *("--env", f"PIXEL_AMQP_URL=amqps://{USER}:{PASSWORD}@broker:5671/%2f"),
                *("--env", "PIXEL_AMQP_CA_FILE=/tls/cert.pem", "--volume", f"{folder}:/tls:ro"),
                *("--restart", "unless-stopped", "pixel-storage:local"),
            )
        )
        health = lambda: json.loads(run("docker", "inspect", containers[1]))[0]["State"]["Health"]
        wait_until(lambda: health()["Status"] == "healthy", HEALTHY_S, "storage ready over amqps")
    finally:
        for container in reversed(containers):
            run("docker", "rm", "--force", "--volumes", container)
        run("docker", "network", "rm", network)


def a_cluster_outlives_the_broker_that_leads_its_queue(_):
    stack = Stack("pixel-test-cluster", "docker-compose.yml", "deploy/cluster/docker-compose.yml")
    brokers = ["rabbitmq", "rabbitmq-2", "rabbitmq-3"]
    stack.env["RABBITMQ_PASSWORD"] = PASSWORD
    stack.env["RABBITMQ_ERLANG_COOKIE"] = ""
    try:
        stack.compose("config")
        raise SystemError("it would start with no cookie")
    except AssertionError as error:
        assert "put a line RABBITMQ_ERLANG_COOKIE= with a long random word into .env" in str(error), error
    stack.env["RABBITMQ_ERLANG_COOKIE"] = "a-long-random-word"
    try:
        stack.forget()
        stack.compose("up", "-d")
        stack.wait_healthy(*SERVICES, *brokers[1:])
        print("\n".join("    " + line for line in stack.compose("ps").splitlines()))
        for service in ["pixel-http", "pixel-storage"]:
            assert len(stack.containers(service)) == 2, service
        replicas = {q["name"]: len(q["members"]) for q in json.loads(stack.management("/api/queues")[1])}
        assert replicas == {"pixel.visits": 3, "pixel.visits.dead": 3}, replicas
        queue = json.loads(stack.management("/api/queues/%2f/pixel.visits")[1])
        leader = queue["leader"].removeprefix("rabbit@")
        with Load(stack) as load:
            time.sleep(2)
            run("docker", "kill", "--signal", "KILL", stack.container(leader))
            time.sleep(2)
        # Written while it is still down, so through the other two.
        load.assert_written_once(f"{leader}, the queue's leader, killed")
    except Exception:
        stack.show_logs()
        raise
    finally:
        stack.remove()


TESTS = [
    up_ends_with_every_part_healthy_and_says_where_to_look,
    a_visit_from_this_machine_has_its_address_whatever_it_claims,
    a_visit_from_another_host_has_that_hosts_address,
    a_user_agent_outside_ascii_is_recorded,
    the_broker_has_a_password_of_its_own_and_no_guest,
    nothing_runs_with_more_than_it_needs,
    more_slow_bodies_than_are_read_end_no_collector,
    a_killed_container_under_load_loses_nothing,
    a_collector_that_restarts_costs_its_visitors_a_wait_and_no_error,
    a_collector_that_is_killed_costs_those_whose_request_it_held_an_answer_at_most,
    a_program_that_dies_is_started_again_by_the_engine,
    a_stopped_program_drains_and_ends_with_status_0,
    a_restart_of_everything_under_load_keeps_every_visit,
    what_waits_in_queue_and_spool_survives_down_and_up,
    a_broker_of_an_older_pixel_keeps_its_password_until_it_is_changed,
    three_collectors_share_the_load_and_a_standby_takes_over,
    caddy_is_an_edge_as_well,
    a_site_name_turns_on_https_and_http_2,
    the_audit_finds_no_gap,
    another_folder_of_visits_gets_the_queue_when_it_is_told_so,
    the_embedded_image_runs_alone,
    amqps_works_in_the_image,
    a_cluster_outlives_the_broker_that_leads_its_queue,
]


def main(names):
    sys.stdout.reconfigure(line_buffering=True)
    # So that being ended cleans up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    stack = Stack("pixel-test")
    passed = failed = 0
    try:
        stack.forget()
        stack.compose("build")
        for test in TESTS:
            if names and test is not TESTS[0] and test.__name__ not in names:
                continue
            started = time.monotonic()
            try:
                test(stack)
                passed, result = passed + 1, "ok"
            except Exception:
                traceback.print_exc(file=sys.stdout)
                stack.show_logs()
                failed, result = failed + 1, "FAILED"
            print(f"{test.__name__} ... {result} ({time.monotonic() - started:.0f} s)")
    finally:
        stack.remove()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
