//! A real Caddy or HAProxy with the project's configuration.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::Outcome;
use super::port::free_address;
use super::shell::shell;
use super::wait::wait_until;

/// Which program is the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The one of this machine: Debian's is 2.6.
    Caddy,
    /// The one that the linters came with, of the version that the containers have.
    NewerCaddy,
    Haproxy,
}

/// Where the linters are, and a newer Caddy than this machine's.
const LINTERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/lint/bin");

impl Kind {
    /// Each that is here.
    pub fn all() -> Vec<Kind> {
        if Path::new(LINTERS).join("caddy").exists() {
            return vec![Kind::Caddy, Kind::NewerCaddy, Kind::Haproxy];
        }
        println!("not tried: the containers' Caddy, which `tests/require-tools caddy` brings");
        vec![Kind::Caddy, Kind::Haproxy]
    }

    /// Whether it is a Caddy of any version.
    pub fn is_caddy(self) -> bool {
        self != Kind::Haproxy
    }

    /// How it is started on `address`, in front of `upstream`, with a folder of its own.
    fn command(
        self,
        address: SocketAddr,
        has_tls: bool,
        upstream: SocketAddr,
        home: &Path,
    ) -> Outcome<Command> {
        let port = address.port();
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/edge.sh"));
        match (self, has_tls) {
            (Kind::Caddy | Kind::NewerCaddy, _) => command
                .env("EDGE", "caddy")
                .env("PIXEL_SITE", format!("{}:{port}", if has_tls { "https://localhost" } else { "" }))
                .env("PIXEL_BIND", "127.0.0.1")
                .envs(["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"].map(|name| (name, home))),
            (Kind::Haproxy, false) => command.env("PIXEL_EDGE_LISTEN", address.to_string()),
            (Kind::Haproxy, true) => command
                .env("PIXEL_EDGE_LISTEN", free_address().to_string())
                .env("PIXEL_EDGE_TLS_LISTEN", address.to_string())
                .env("PIXEL_CERTIFICATES", certificates(home)?),
        };
        if self == Kind::NewerCaddy {
            command.env("PATH", format!("{LINTERS}:{}", std::env::var("PATH")?));
        }
        if self == Kind::Haproxy {
            command.env("EDGE", "haproxy").env("PIXEL_EDGE_METRICS_LISTEN", free_address().to_string());
        }
        command.env("PIXEL_UPSTREAM", upstream.to_string());
        Ok(command)
    }
}

/// A folder with a certificate for `localhost`, signed by itself.
fn certificates(home: &Path) -> Outcome<PathBuf> {
    let folder = home.join("certificates");
    fs::create_dir(&folder)?;
    make_certificate(home)?;
    shell(home, "cat fullchain.pem privkey.pem > certificates/localhost.pem", "")?;
    Ok(folder)
}

/// A certificate for `localhost`, as certbot leaves it in a folder.
pub fn make_certificate(folder: &Path) -> Outcome {
    let made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
                -addext subjectAltName=DNS:localhost -keyout privkey.pem -out fullchain.pem 2>&1";
    shell(folder, made, "")
}

/// The edge, on a port of its own.
pub struct Edge {
    pub address: SocketAddr,
    process: Child,
    home: tempfile::TempDir,
}

impl Edge {
    /// Starts one before `upstream`, and waits until it listens.
    pub fn start(kind: Kind, upstream: SocketAddr) -> Outcome<Edge> {
        Self::serve(kind, false, upstream)
    }

    /// The same with TLS, and so with HTTP/2, for `localhost`.
    pub fn start_with_tls(kind: Kind, upstream: SocketAddr) -> Outcome<Edge> {
        Self::serve(kind, true, upstream)
    }

    /// The folder with its files; HAProxy's certificates are in `certificates`.
    pub fn folder(&self) -> &Path {
        self.home.path()
    }

    /// The first process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    fn serve(kind: Kind, has_tls: bool, upstream: SocketAddr) -> Outcome<Edge> {
        let address = free_address();
        let home = tempfile::tempdir()?;
        let log_path = home.path().join("edge.log");
        let log = fs::File::create(&log_path)?;
        let process = kind
            .command(address, has_tls, upstream, home.path())?
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{kind:?}: {error}; tests/require-packages installs it"))?;
        let mut edge = Edge { address, process, home };
        let is_up = || TcpStream::connect(address).is_ok();
        wait_until("the edge to listen", || is_up() || !matches!(edge.process.try_wait(), Ok(None)))?;
        if !is_up() {
            return Err(fs::read_to_string(&log_path)?.into());
        }
        Ok(edge)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
