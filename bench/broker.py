"""A private RabbitMQ: its own ports, cookie, data and epmd, loopback only."""

import socket

from stage import free_port, wait_until

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
BOOT_SECONDS = 90
LOOPBACK_ERLANG = "{127,0,0,1}"


class Broker:
    def __init__(self, stage):
        self.stage = stage
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/%2f"
        self.node = None
        folder = stage.fresh_folder("broker")
        self.log = folder / "log"
        epmd_port = free_port()
        (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\n")
        (folder / "plugins").write_text("[].\n")
        (folder / "none").write_text("")
        self.env = {
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "pixel-bench@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.log),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS":
                f"-kernel inet_dist_use_interface {LOOPBACK_ERLANG}",
        }
        stage.start("epmd", ["epmd", "-port", epmd_port, "-address", "127.0.0.1"])

    def start(self, wait=True):
        self.node = self.stage.start("rabbitmq", [SERVER], self.env)
        if wait:
            self.wait()

    def wait(self):
        wait_until("answer from RabbitMQ",
                   lambda: self.node.check() and self.answers(), BOOT_SECONDS)

    def answers(self):
        """Whether a client would get as far as the broker's greeting."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as client:
                client.settimeout(1)
                client.sendall(b"AMQP\0\0\x09\x01")
                return client.recv(1) == b"\x01"
        except OSError:
            return False

    def kill(self):
        self.node.stop(kill=True)
