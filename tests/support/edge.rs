//! A real Caddy with the project's Caddyfile.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::Outcome;
use super::port::free_port;
use super::wait::wait_until;

/// The edge, on a port of its own.
pub struct Edge {
    pub address: SocketAddr,
    process: Child,
}

impl Edge {
    /// Starts Caddy before `upstream`, with its state in `folder`, and waits until it listens.
    pub fn start(upstream: SocketAddr, folder: &Path) -> Outcome<Edge> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let log = fs::File::create(folder.join("caddy.log"))?;
        let caddyfile = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/Caddyfile");
        let process = Command::new("caddy")
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(caddyfile)
            .env("PIXEL_SITE", format!(":{}", address.port()))
            .env("PIXEL_BIND", "127.0.0.1")
            .env("PIXEL_UPSTREAM", upstream.to_string())
            .env("HOME", folder)
            .env("XDG_DATA_HOME", folder)
            .env("XDG_CONFIG_HOME", folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("caddy: {error}; tests/require-packages installs it"))?;
        let edge = Edge { address, process };
        wait_until("Caddy to listen", || TcpStream::connect(address).is_ok()).map_err(|error| {
            let log = fs::read_to_string(folder.join("caddy.log")).unwrap_or_default();
            format!("{error}\n{log}")
        })?;
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
