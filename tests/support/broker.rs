//! A private RabbitMQ: its own folder, ports, cookie, epmd and node name. With `BROKER=4` it is RabbitMQ 4 in a folder
//! that `tests/broker-4` makes, started through chroot; else this machine's.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use amiquip::{AmqpProperties, Connection, Get, Publish};
use rustix::process::{Pid, Signal, kill_process_group};

use super::Outcome;
use super::host::Host;
use super::port::free_port;
use super::wait::wait_until;

/// The address of the broker that listens at `port`.
pub fn url_at(port: u16) -> String {
    url_of("127.0.0.1", port)
}

fn url_of(address: &str, port: u16) -> String {
    format!("amqp://guest:guest@{address}:{port}/%2f")
}

/// An address at which there is no broker: nobody listens on port 1.
pub const NOWHERE: &str = "amqp://127.0.0.1:1/%2f";

/// A broker of one node or several.
pub struct Broker {
    pub nodes: Vec<Node>,
    _folder: tempfile::TempDir,
}

/// One RabbitMQ node.
pub struct Node {
    name: String,
    folder: PathBuf,
    pub port: u16,
    dist_port: u16,
    epmd_port: u16,
    // Lines of its rabbitmq.conf.
    settings: &'static str,
    // Plugins that it starts with, as Erlang has a list of them.
    plugins: &'static str,
    // The address that it listens at, and what starts a program there.
    address: String,
    on: Vec<String>,
    process: Option<Child>,
}

impl Broker {
    /// Starts one node.
    pub fn start() -> Outcome<Broker> {
        Self::cluster(1)
    }

    /// Starts one node with these lines in its rabbitmq.conf.
    pub fn with(settings: &'static str) -> Outcome<Broker> {
        Self::of(1, settings, "", None)
    }

    /// Starts one node with the management plugin and shovels; the port is the plugin's.
    pub fn managed() -> Outcome<(Broker, u16)> {
        let port = free_port();
        let settings = format!("management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n");
        Ok((Self::of(1, settings.leak(), "rabbitmq_management, rabbitmq_shovel", None)?, port))
    }

    /// Starts `size` nodes and joins them.
    pub fn cluster(size: usize) -> Outcome<Broker> {
        Self::of(size, "", "", None)
    }

    /// Starts one node on a host of its own.
    pub fn on(host: &Host) -> Outcome<Broker> {
        Self::of(1, "", "", Some(host))
    }

    fn of(
        size: usize,
        settings: &'static str,
        plugins: &'static str,
        host: Option<&Host>,
    ) -> Outcome<Broker> {
        let folder = tempfile::tempdir()?;
        let epmd_port = free_port();
        fs::write(folder.path().join(".erlang.cookie"), format!("PIXEL{epmd_port}"))?;
        fs::set_permissions(
            folder.path().join(".erlang.cookie"),
            std::os::unix::fs::PermissionsExt::from_mode(0o400),
        )?;
        let mut broker = Broker { nodes: Vec::new(), _folder: folder };
        for n in 0..size {
            let mut node = Node {
                name: format!("pixel{n}-{epmd_port}@localhost"),
                folder: broker._folder.path().to_path_buf(),
                port: free_port(),
                dist_port: free_port(),
                epmd_port,
                settings,
                plugins,
                address: host.map_or_else(|| "127.0.0.1".into(), |host| host.address.clone()),
                on: host.map(Host::command).unwrap_or_default(),
                process: None,
            };
            node.start()?;
            broker.nodes.push(node);
        }
        for n in 1..size {
            let first = broker.nodes[0].name.clone();
            for command in [&["stop_app"][..], &["reset"], &["join_cluster", &first], &["start_app"]] {
                broker.nodes[n].control(command)?;
            }
        }
        Ok(broker)
    }

    /// The one broker that tests share which do it no harm. It ends with the test process.
    pub fn shared() -> Outcome<&'static Broker> {
        static SHARED: OnceLock<Result<Broker, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Broker::start().map_err(|error| error.to_string()));
        shared.as_ref().map_err(|error| error.clone().into())
    }

    /// The nodes' addresses.
    pub fn url(&self) -> String {
        self.nodes.iter().map(Node::url).collect::<Vec<_>>().join(",")
    }

    /// Waits until every node would know `queue` again after `kill -9`.
    ///
    /// RabbitMQ 3.10 notes a new quorum queue in `names.dets` some seconds after it has confirmed its
    /// first messages. A node that is killed before skips the queue's entries when it reads its
    /// write-ahead log: they are lost, and the queue never has a leader again.
    pub fn wait_until_durable(&self, queue: &str) -> Outcome {
        let name = format!("2F_{queue}");
        wait_until(&format!("{queue} on the disks of the broker"), || {
            self.nodes.iter().all(|node| {
                let folder = node.folder.join("data").join(&node.name).join("quorum").join(&node.name);
                let names = fs::read(folder.join("names.dets")).unwrap_or_default();
                // Not the name of its dead letters, which starts the same.
                let is_queue = |window: &[u8]| window.starts_with(name.as_bytes()) && !window.ends_with(b".");
                names.windows(name.len() + 1).any(is_queue)
            })
        })
    }

    /// Waits until every node would know the durable exchange `name` again after `kill -9`: Mnesia tells who asks that it
    /// is there before it has handed it to the system.
    pub fn wait_until_noted(&self, name: &str) -> Outcome {
        wait_until(&format!("the exchange {name} on the disks of the broker"), || {
            self.nodes.iter().all(|node| {
                let data = node.folder.join("data").join(&node.name);
                let mut files = fs::read_dir(data).into_iter().flatten().flatten();
                // A folder cannot be read.
                files.any(|file| fs::read(file.path()).is_ok_and(|bytes| has(&bytes, name.as_bytes())))
            })
        })
    }

    /// A connection of another client.
    pub fn connect(&self) -> Outcome<Connection> {
        let url = format!("{}?connection_timeout=10000", self.nodes[0].url());
        Ok(Connection::insecure_open(&url)?)
    }

    /// Publishes as another client does, with `properties`.
    pub fn publish(&self, queue: &str, body: &[u8], properties: AmqpProperties) -> Outcome {
        let mut connection = self.connect()?;
        let channel = connection.open_channel(None)?;
        channel.enable_publisher_confirms()?;
        let confirms = channel.listen_for_publisher_confirms()?;
        channel.basic_publish(queue, Publish::with_properties(body, "visit", properties))?;
        confirms.recv_timeout(Duration::from_secs(30))?;
        Ok(())
    }

    /// How many messages of `queue` wait to be delivered.
    pub fn waiting(&self, queue: &str) -> Outcome<u32> {
        let mut connection = self.connect()?;
        let channel = connection.open_channel(None)?;
        Ok(channel.queue_declare_passive(queue)?.declared_message_count().unwrap_or_default())
    }

    /// How many consumers `queue` has.
    pub fn consumers(&self, queue: &str) -> Outcome<u32> {
        let mut connection = self.connect()?;
        let channel = connection.open_channel(None)?;
        Ok(channel.queue_declare_passive(queue)?.declared_consumer_count().unwrap_or_default())
    }

    /// Takes one message off `queue`, waiting for it.
    pub fn take(&self, queue: &str) -> Outcome<Get> {
        let mut connection = self.connect()?;
        let channel = connection.open_channel(None)?;
        let mut taken = None;
        wait_until(&format!("a message in {queue}"), || {
            taken = channel.basic_get(queue, true).ok().flatten();
            taken.is_some()
        })?;
        Ok(taken.ok_or("none")?)
    }
}

impl Node {
    /// Its address.
    pub fn url(&self) -> String {
        url_of(&self.address, self.port)
    }

    /// What starts a program where it is.
    fn command(&self, program: &[String]) -> Command {
        let mut words = self.on.iter().chain(program);
        let mut command = Command::new(words.next().expect("a program has a name"));
        command.args(words);
        command
    }

    /// Starts the node, or starts it again, and waits until it talks AMQP.
    pub fn start(&mut self) -> Outcome {
        let none = self.folder.join("none");
        fs::write(&none, "")?;
        let config = self.folder.join(format!("{}.conf", self.port));
        // What RabbitMQ 3 has by default; RabbitMQ 4 has 16 MiB.
        let has_own = self.settings.contains("max_message_size");
        let longest = if has_own { "" } else { "max_message_size = 134217728\n" };
        let (address, port, more) = (&self.address, self.port, self.settings);
        let settings = format!("listeners.tcp.1 = {address}:{port}\nloopback_users = none\n{longest}{more}");
        fs::write(&config, settings)?;
        // The shell ends the group when this process has ended, however it did.
        let script = r#""$@" & read -r _; kill -KILL -- -$$"#;
        let log = fs::File::create(self.folder.join(format!("{}.out", self.port)))?;
        let mut command = self.command(&["bash", "-c", script, "node"].map(str::to_string));
        command.args(program("rabbitmq-server")?).process_group(0);
        self.environment(&mut command);
        command
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", self.folder.join("data"))
            .env("RABBITMQ_LOG_BASE", self.folder.join("log"))
            .env("RABBITMQ_CONFIG_FILE", &config)
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", &none)
            .env("RABBITMQ_GENERATED_CONFIG_DIR", self.folder.join("generated"));
        fs::write(&none, format!("[{}].\n", self.plugins))?;
        let process = command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).spawn()?;
        self.process = Some(process);
        let address = SocketAddr::new(self.address.parse()?, self.port);
        let url = format!("{}?connection_timeout=3000", self.url());
        wait_until(&format!("RabbitMQ at {address}"), || {
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
                && Connection::insecure_open(&url).is_ok()
        })
        .map_err(|error| {
            let log = fs::read_to_string(self.folder.join(format!("{}.out", self.port)));
            format!("{error}\n{}", log.unwrap_or_default()).into()
        })
    }

    /// Ends the node at once, as `kill -9` does.
    pub fn kill(&mut self) -> Outcome {
        self.signal(Signal::KILL)?;
        if let Some(mut process) = self.process.take() {
            process.wait()?;
        }
        Ok(())
    }

    /// Sends a signal to the node and its helpers.
    pub fn signal(&self, signal: Signal) -> Outcome {
        let process = self.process.as_ref().ok_or("the node does not run")?;
        let group = Pid::from_raw(i32::try_from(process.id())?).ok_or("no process id")?;
        Ok(kill_process_group(group, signal)?)
    }

    /// Runs a command of rabbitmqctl.
    pub fn control(&self, arguments: &[&str]) -> Outcome<Output> {
        let output = self.rabbitmqctl()?.args(arguments).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(output);
        }
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        Err(format!("rabbitmqctl {arguments:?}: {said}").into())
    }

    /// Its rabbitmqctl, to be given a command.
    pub fn rabbitmqctl(&self) -> Outcome<Command> {
        let mut command = self.command(&program("rabbitmqctl")?);
        command.args(["--node", &self.name]);
        self.environment(&mut command);
        Ok(command)
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn environment(&self, command: &mut Command) {
        command
            .env("HOME", &self.folder)
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", &self.name)
            .env("ERL_CRASH_DUMP", self.folder.join("erl_crash.dump"))
            .env("RABBITMQ_CONF_ENV_FILE", self.folder.join("none.env"));
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // It may have ended already.
            let _ = node.kill();
        }
        if let Some(node) = self.nodes.first() {
            let mut stop = node.command(&["epmd".into()]);
            let _ = stop.args(["-port", &node.epmd_port.to_string(), "-kill"]).stdout(Stdio::null()).status();
        }
    }
}

/// What starts a program of RabbitMQ's.
fn program(name: &str) -> Outcome<Vec<String>> {
    // Debian's programs in the PATH change the user; these do not.
    let debian = Path::new("/usr/lib/rabbitmq/bin").join(name);
    if std::env::var("BROKER").is_ok_and(|version| version == "4") {
        let root = root_of_4()?;
        return Ok(vec!["chroot".into(), root, debian.to_string_lossy().into_owned()]);
    }
    Ok(vec![if debian.exists() { debian.to_string_lossy().into_owned() } else { name.into() }])
}

/// The folder that has RabbitMQ 4, and this machine's `/tmp`.
fn root_of_4() -> Outcome<String> {
    static ROOT: OnceLock<Result<String, String>> = OnceLock::new();
    let made = ROOT.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broker-4");
        let output = Command::new(script).stderr(Stdio::inherit()).output();
        let output = output.map_err(|error| format!("tests/broker-4: {error}"))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().into()),
            false => Err("tests/broker-4 has failed, see above".into()),
        }
    });
    made.clone().map_err(Into::into)
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
