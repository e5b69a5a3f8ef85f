//! A real Caddy with the project's Caddyfile, in front of the real programs.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::Outcome;
use crate::support::client::{Client, Load, all_written_once, get, metric};
use crate::support::program::{Launch, free_port, lines, wait_for_lines, wait_until};

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

/// Sends `request` from a local address of one's own choice, and reads until the connection closes.
fn ask_from(source: [u8; 4], address: SocketAddr, request: &[u8]) -> Outcome<Vec<u8>> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&address.into())?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_visit_through_the_edge_has_the_client_s_address_and_what_can_be_kept_of_its_headers() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let launch = Launch::new("pixel", folder.path()).with("format", "ndjson");
    let mut pixel = launch.with("trusted-proxies", "127.0.0.1").start()?;
    let edge = Edge::start(pixel.address()?, folder.path())?;
    // Each row: what is sent beside the usual, and what is recorded.
    for (n, (case, target, header, field, value)) in [
        ("plain", "/track", "User-Agent: SomeUserAgent 1.2.3", "user_agent", "SomeUserAgent 1.2.3"),
        ("not ASCII", "/track", "User-Agent: Žižkov", "user_agent", "?i?kov"),
        ("not ASCII, the referrer", "/track", "Referer: http://ž/", "referrer", "http://?/"),
        ("not ASCII, a header nobody reads", "/track", "X-Other: ž", "path", "/track"),
        ("not ASCII, the query", "/track?q=ž", "X: y", "query", "q%3D%C5%BE"),
        ("a spoofed X-Forwarded-For", "/track", "X-Forwarded-For: 9.9.9.9", "ip", "127.0.0.2"),
        ("a spoofed Forwarded", "/track", "Forwarded: for=9.9.9.9", "ip", "127.0.0.2"),
        ("the host", "/track", "X: y", "host", "px.example.com"),
    ]
    .into_iter()
    .enumerate()
    {
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: px.example.com\r\nConnection: close\r\n{header}\r\n\r\n");
        let answer = ask_from([127, 0, 0, 2], edge.address, request.as_bytes())?;
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{case}: {}", String::from_utf8_lossy(&answer));
        let line = wait_for_lines(&output, n + 1)?.pop().ok_or("no line")?;
        let visit: serde_json::Value = serde_json::from_str(&line)?;
        assert_eq!((&visit[field], &visit["ip"]), (&value.into(), &"127.0.0.2".into()), "{case}");
    }
    pixel.stop()
}

#[test]
fn the_edge_keeps_away_what_pixel_can_only_survive() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut pixel = Launch::new("pixel", folder.path()).with("trusted-proxies", "127.0.0.1").start()?;
    let edge = Edge::start(pixel.address()?, folder.path())?;
    for (case, head, status) in [
        ("a hundred terabytes", "POST /track HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000000000", "413"),
        ("2^64-1", "POST /track HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551615", "400"),
        ("two lengths", "POST /track HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6", "400"),
        ("HTTP/2 by name", "GET /track HTTP/2.0\r\nHost: h", "505"),
        ("an unknown expectation", "GET /track HTTP/1.1\r\nHost: h\r\nExpect: tea", "417"),
        ("no host", "GET /track HTTP/1.1\r\nX: y", "400"),
        ("an odd method", "BREW /track HTTP/1.1\r\nHost: h", "405"),
    ] {
        let answer = ask_from(
            [127, 0, 0, 1],
            edge.address,
            format!("{head}\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let shown = String::from_utf8_lossy(&answer).into_owned();
        println!("{case}: {}", shown.lines().next().unwrap_or_default());
        assert_eq!(shown.split(' ').nth(1), Some(status), "{case}: {shown}");
    }
    assert_eq!(get(edge.address, "/track", &[])?.status, 200);
    assert_eq!(metric(pixel.admin()?, "pixel_http_abandoned_connections_total")?, 0.0);
    wait_for_lines(&folder.path().join("visits.log"), 1)?;
    pixel.stop()?;
    assert_eq!(lines(&folder.path().join("visits.log")).len(), 1);
    Ok(())
}

#[test]
fn a_visitor_waits_at_the_edge_while_pixel_starts_again() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let upstream = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let launch = Launch::new("pixel", folder.path()).with("format", "ndjson");
    let launch = launch.with("listen", upstream.to_string()).with("trusted-proxies", "127.0.0.1");
    let mut pixel = launch.start()?;
    let edge = Edge::start(upstream, folder.path())?;
    let address = edge.address;
    let load = Load::start(&[address], 4);
    for _ in 0..2 {
        load.wait_for(50)?;
        pixel.stop()?;
        let asked = std::thread::spawn(move || {
            let mut client = Client::connect(address)?;
            client.stream().set_read_timeout(Some(Duration::from_secs(30)))?;
            client.ask("GET", "/track?waited", &[])
        });
        let down = Instant::now();
        std::thread::sleep(Duration::from_millis(500));
        assert!(!asked.is_finished(), "nobody is there to answer");
        pixel = launch.start()?;
        assert_eq!(asked.join().expect("no panic")?.status, 200);
        println!("answered {:?} after the program had ended", down.elapsed());
    }
    load.wait_for(50)?;
    let promised = load.stop();
    all_written_once(&promised, &output)?;
    wait_until("the visits that waited", || {
        lines(&output).iter().filter(|line| line.contains(r#""query":"waited""#)).count() == 2
    })?;
    pixel.stop()
}
