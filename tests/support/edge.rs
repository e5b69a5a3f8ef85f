//! A real Caddy with the project's Caddyfile.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::Outcome;
use super::port::free_address;
use super::wait::wait_until;

/// The edge, on a port of its own.
pub struct Edge {
    pub address: SocketAddr,
    process: Child,
    _home: tempfile::TempDir,
}

impl Edge {
    /// Starts Caddy before `upstream`, and waits until it listens.
    pub fn start(upstream: SocketAddr) -> Outcome<Edge> {
        let address = free_address();
        Self::serve(address, &format!(":{}", address.port()), upstream)
    }

    /// The same with TLS, and so with HTTP/2, for `localhost`.
    pub fn start_with_tls(upstream: SocketAddr) -> Outcome<Edge> {
        let address = free_address();
        Self::serve(address, &format!("https://localhost:{}", address.port()), upstream)
    }

    fn serve(address: SocketAddr, site: &str, upstream: SocketAddr) -> Outcome<Edge> {
        let home = tempfile::tempdir()?;
        let log_path = home.path().join("caddy.log");
        let log = fs::File::create(&log_path)?;
        let caddyfile = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/Caddyfile");
        let process = Command::new("caddy")
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(caddyfile)
            .env("PIXEL_SITE", site)
            .env("PIXEL_BIND", "127.0.0.1")
            .env("PIXEL_UPSTREAM", upstream.to_string())
            .env("HOME", home.path())
            .env("XDG_DATA_HOME", home.path())
            .env("XDG_CONFIG_HOME", home.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("caddy: {error}; tests/require-packages installs it"))?;
        let edge = Edge { address, process, _home: home };
        wait_until("Caddy to listen", || TcpStream::connect(address).is_ok()).map_err(|error| {
            let log = fs::read_to_string(&log_path).unwrap_or_default();
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
