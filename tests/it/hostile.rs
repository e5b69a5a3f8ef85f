//! A corpus of hostile heads, the same on every run: after each of them a normal visit is answered, and
//! at the end recorded.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::chance::Chance;
use crate::support::client::get;
use crate::support::edge::{Edge, Kind};
use crate::support::fixtures::{Embedded, Services};
use crate::support::program::RESTARTING;

const SEED: u64 = 0x5eed_0f71;
const HEADS: u64 = 330;
/// How many hostile connections are kept open at a time.
const HELD_MAX: usize = 40;

const METHODS: &[&str] =
    &["GET", "POST", "HEAD", "OPTIONS", "get", "G\x01T", "PRI", "CONNECT", "TRACE", "", " GET", "Ž"];
const TARGETS: &[&str] = &[
    "/track",
    "/track?x=1",
    "//track",
    "/track#fragment",
    "http://h/track",
    "http:///track",
    "http://[::1/track",
    "https://user:password@h:99999/track",
    "*",
    "",
    "track",
    "/%00%ff%zz",
    "/../../etc/passwd",
    "/track?\u{1b}[2J",
    "/track?ž",
    "h:443",
    "://",
];
const VERSIONS: &[&str] = &[
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/0.9",
    "HTTP/1.2",
    "HTTP/2.0",
    "HTTP/3.0",
    "http/1.1",
    "HTTP/1.1 x",
    "",
    "ICAP/1.0",
];
const HEADERS: &[&str] = &[
    "Host: h",
    "Host: a\r\nHost: b",
    "Host:",
    "Content-Length: 5",
    "Content-Length: -1",
    "Content-Length: 0x10",
    "Content-Length: 100000000000000",
    "Content-Length: 18446744073709551615",
    "Content-Length: 18446744073709551616",
    "Content-Length: 5\r\nContent-Length: 7",
    "Content-Length: 5, 5",
    "Content-Length : 5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 3",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding:\tchunked",
    "Transfer-Encoding: identity",
    "Expect: 100-continue",
    "Expect: tea",
    "Connection: close",
    "Connection: keep-alive, upgrade",
    "Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x",
    "User-Agent: a|b\\c\x01\x1b[31m",
    "User-Agent: a\nb",
    "User-Agent: a\rb",
    "User-Agent: Žižkov",
    "Referer: |||",
    " folded: line",
    "no colon",
    ": no name",
    "X-Forwarded-For: 9.9.9.9, \"[::1\"",
    "Forwarded: for=\"\\\"\\\\\", for=_x;by=",
    "Range: bytes=0-0,-1",
    "Cookie: a=b",
    "Proxy: http://evil/",
];
const BODIES: &[&str] = &[
    "",
    "hello",
    "5\r\nhello\r\n0\r\n\r\n",
    "ffffffffffffffff\r\nx",
    "-5\r\nhello\r\n",
    "5;extension=\"\r\nhello\r\n",
    "5\nhello\n0\n\n",
    "0\r\nTrailer: x\r\n\r\n",
    "zz\r\n",
    "GET /track HTTP/1.1\r\nHost: smuggled\r\n\r\n",
];
const OTHER_PROTOCOLS: &[&[u8]] = &[
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"PROXY TCP4 9.9.9.9 127.0.0.1 1 2\r\nGET /track HTTP/1.1\r\nHost: h\r\n\r\n",
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\x00\x01\x00\x02",
    b"GET /track\r\n",
    b"AMQP\x00\x00\x09\x01",
    b"EHLO h\r\nMAIL FROM:<a@b>\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"\0\0\0\0",
];

/// One head, and perhaps something after it.
fn head(chance: &mut Chance, n: u64) -> Vec<u8> {
    let method = chance.one(METHODS);
    let mut text = match n % 11 {
        0 => return chance.one(OTHER_PROTOCOLS).to_vec(),
        1 => {
            return (0..1 + chance.below(600)).map(|_| chance.byte()).collect();
        }
        // Long ones: a target, a value, a name, many headers.
        2 => {
            let long = "x".repeat(1 << (8 + chance.below(9)));
            match chance.below(4) {
                0 => format!("GET /track?{long} HTTP/1.1\r\nHost: h\r\n"),
                1 => format!("GET /track HTTP/1.1\r\nHost: h\r\nUser-Agent: {long}\r\n"),
                2 => format!("GET /track HTTP/1.1\r\nHost: h\r\n{long}: x\r\n"),
                _ => format!("GET /track HTTP/1.1\r\nHost: h\r\n{}", "A: b\r\n".repeat(long.len() / 16)),
            }
        }
        // Nothing odd about the first line.
        3..=7 => {
            let method = chance.one(&["GET", "POST", "HEAD", "PUT"]);
            format!("{method} /track HTTP/{} \r\n", chance.one(&["1.1", "1.0"])).replace(" \r", "\r")
        }
        _ => format!("{method} {} {}\r\n", chance.one(TARGETS), chance.one(VERSIONS)),
    };
    for _ in 0..chance.below(5) {
        text += chance.one(HEADERS);
        text += "\r\n";
    }
    text += "\r\n";
    text += chance.one(BODIES);
    let mut bytes = match chance.below(8) {
        0 => text.replace("\r\n", "\n"),
        1 => text.replace("\r\n", "\r"),
        2 => text.replace(": ", ":\t\x0b "),
        _ => text,
    }
    .into_bytes();
    match chance.below(6) {
        0 => bytes.truncate(1 + chance.below(bytes.len() as u64) as usize),
        1 => {
            for _ in 0..1 + chance.below(8) {
                let at = chance.below(bytes.len() as u64) as usize;
                bytes[at] = chance.byte();
            }
        }
        _ => {}
    }
    bytes
}

/// Sends the corpus to `address`; after each head, a visit. The numbers of the visits.
fn attack(address: SocketAddr) -> Outcome<Vec<u64>> {
    let mut chance = Chance(SEED);
    let mut held = Vec::new();
    let mut visits = Vec::new();
    for n in 0..HEADS {
        let head = head(&mut chance, n);
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        // The server may close before all of it is sent.
        let _ = stream.write_all(&head);
        match chance.below(4) {
            0 => drop(stream),
            1 => {
                let _ = stream.shutdown(Shutdown::Write);
                held.push(stream);
            }
            2 => {
                let _ = stream.read(&mut [0; 512]);
                held.push(stream);
            }
            _ => held.push(stream),
        }
        if held.len() > HELD_MAX {
            held.remove(0);
        }
        let shown = String::from_utf8_lossy(&head[..head.len().min(300)]).into_owned();
        let answer = get(address, &format!("/track?n={n}"), &[]);
        let answer = answer.map_err(|error| format!("after head {n}, {shown:?}: {error}"))?;
        assert_eq!(answer.status, 200, "after head {n}, {shown:?}");
        visits.push(n);
    }
    Ok(visits)
}

#[test]
fn after_each_hostile_head_a_visit_is_answered_and_recorded() -> Outcome {
    let mut system = Embedded::start()?;
    let visits = attack(system.address)?;
    system.output.has_each_once(&visits)?;
    let log = system.pixel.log();
    assert!(system.pixel.runs() && !log.contains(RESTARTING), "{log}");
    system.stop_and_audit()
}

#[test]
fn through_the_edge_no_hostile_head_costs_pixel_http_anything() -> Outcome {
    Kind::all().into_iter().try_for_each(attack_through)
}

fn attack_through(kind: Kind) -> Outcome {
    println!("{kind:?}");
    let services = Services::new(&Broker::shared()?.url(), &format!("hostile-{kind:?}"))?;
    let mut http = services.http.with("trusted-proxies", "127.0.0.1").start()?;
    let mut storage = services.storage.start()?;
    let edge = Edge::start(kind, http.address()?)?;
    let visits = attack(edge.address)?;
    services.output.has_each_once(&visits)?;
    let admin = http.admin()?;
    for name in ["pixel_http_abandoned_connections_total", "pixel_http_stalled_connections_total"] {
        assert_eq!(admin.metric(name)?, 0.0, "{name}");
    }
    assert!(http.runs() && !http.log().contains(RESTARTING), "{}", http.log());
    http.stop()?;
    storage.stop()
}
