//! A real Caddy and a real HAProxy with the project's configurations, in front of the real programs.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::Outcome;
use crate::support::client::{Client, get};
use crate::support::edge::{Edge, Kind, make_certificate};
use crate::support::fixtures::Embedded;
use crate::support::load::{self, Load};
use crate::support::shell::shell;
use crate::support::wait::wait_until;

/// `pixel` behind the edge, whose word on the client's address it believes.
fn behind(kind: Kind) -> Outcome<(Embedded, Edge)> {
    let system = Embedded::with(|launch| launch.with("trusted-proxies", "127.0.0.1"))?;
    let edge = Edge::start(kind, system.address)?;
    Ok((system, edge))
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
    Kind::all().into_iter().try_for_each(keeps_headers)
}

fn keeps_headers(kind: Kind) -> Outcome {
    println!("{kind:?}");
    let (mut system, edge) = behind(kind)?;
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
        let visit = system.output.wait_for_visit(n + 1)?;
        assert_eq!((&visit[field], &visit["ip"]), (&value.into(), &"127.0.0.2".into()), "{case}");
    }
    system.pixel.stop()
}

#[test]
fn the_edge_keeps_away_what_pixel_can_only_survive() -> Outcome {
    Kind::all().into_iter().try_for_each(keeps_away)
}

fn keeps_away(kind: Kind) -> Outcome {
    println!("{kind:?}");
    let (mut system, edge) = behind(kind)?;
    let head_of = |bytes| format!("GET /track HTTP/1.1\r\nHost: h\r\nX-Large: {}", "x".repeat(bytes));
    let (large_head, huge_head) = (head_of(20_200), head_of(30_000));
    // What is larger than its buffer HAProxy does not understand.
    let by_kind = |caddy, haproxy| if kind.is_caddy() { caddy } else { haproxy };
    for (case, head, status) in [
        ("a hundred terabytes", "POST /track HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000000000", "413"),
        (
            "2^64-1",
            "POST /track HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551615",
            by_kind("400", "413"),
        ),
        ("two lengths", "POST /track HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6", "400"),
        ("HTTP/2 by name", "GET /track HTTP/2.0\r\nHost: h", "505"),
        ("an unknown expectation", "GET /track HTTP/1.1\r\nHost: h\r\nExpect: tea", "417"),
        ("a large head", &large_head, "431"),
        ("a huge head", &huge_head, by_kind("431", "400")),
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
    // What is refused is so by its head: with its body on its way, the answer may get lost.
    for (body, sent, status) in [
        (4_096, 4_096, "204"),
        (4_097, 4_097, "204"),
        (65_536, 65_536, "204"),
        (65_537, 0, "413"),
        (99_999, 0, "413"),
    ] {
        let head =
            format!("POST /track HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {body}\r\n\r\n");
        let answer = ask_from([127, 0, 0, 1], edge.address, &[head.as_bytes(), &vec![b'x'; sent]].concat())?;
        assert_eq!(String::from_utf8_lossy(&answer).split(' ').nth(1), Some(status), "a body of {body}");
    }
    assert_eq!(system.pixel.admin()?.metric("pixel_http_abandoned_connections_total")?, 0.0);
    for (chunks, status) in [(1, "204"), (2, "204"), (10, "204")] {
        let chunk = format!("{:x}\r\n{}\r\n", 4_000, "x".repeat(4_000));
        let request = format!(
            "POST /track HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
            chunk.repeat(chunks)
        );
        let answer = ask_from([127, 0, 0, 1], edge.address, request.as_bytes())?;
        assert_eq!(String::from_utf8_lossy(&answer).split(' ').nth(1), Some(status), "{chunks} chunks");
    }
    system.output.wait_for_lines(7)?;
    system.pixel.stop()?;
    assert_eq!(system.output.lines().len(), 7);
    Ok(())
}

/// Each slow body held one of the edge's 64 connections to the collector until its time was up: visits beside them
/// took 4 s in the middle and 10 s at worst.
#[test]
fn a_hundred_bodies_that_trickle_through_the_edge_hold_no_visit_up() -> Outcome {
    Kind::all().into_iter().try_for_each(holds_no_visit_up)
}

fn holds_no_visit_up(kind: Kind) -> Outcome {
    println!("{kind:?}");
    let (mut system, edge) = behind(kind)?;
    let mut slow = Vec::new();
    for n in 0..100 {
        let mut client = TcpStream::connect(edge.address)?;
        // Some say how long they are, others do not; and of some the first part is there at once.
        let (length, begun) = match n % 3 {
            0 => ("Content-Length: 2000", 0),
            1 => ("Transfer-Encoding: chunked", 0),
            _ => ("Content-Length: 20000", 10_000),
        };
        let begun = "x".repeat(begun);
        client.write_all(
            format!("POST /track?slow HTTP/1.1\r\nHost: h\r\n{length}\r\n\r\n{begun}").as_bytes(),
        )?;
        slow.push(client);
    }
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(8) {
        for (n, client) in slow.iter_mut().enumerate() {
            // It may have been given up.
            let _ = client.write_all(if n % 3 == 1 { b"1\r\nx\r\n" } else { b"x" });
        }
        let asked = Instant::now();
        assert_eq!(get(edge.address, "/track", &[])?.status, 200);
        longest = longest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(500).saturating_sub(asked.elapsed()));
    }
    println!("the slowest visit took {longest:?}");
    assert!(longest < Duration::from_secs(2), "a visit took {longest:?}");
    drop(slow);
    system.pixel.stop()
}

/// With certbot's hook of docs/OPERATIONS.md.
#[test]
fn a_certificate_is_replaced_under_load_without_a_lost_request() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("trusted-proxies", "127.0.0.1"))?;
    let edge = Edge::start_with_tls(Kind::Haproxy, system.address)?;
    let port = edge.address.port();
    let renewed = edge.folder().join("localhost");
    fs::create_dir(&renewed)?;
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATIONS.md"))?;
    let (_, hook) = document.split_once("```sh\n#!/bin/sh\nset -eu\numask 077\n").ok_or("no hook")?;
    let (hook, _) = hook.split_once("```").ok_or("it does not end")?;
    assert!(hook.contains("/etc/pixel/certificates/") && hook.contains("systemctl reload haproxy"), "{hook}");
    let hook = hook
        .replace("/etc/pixel", &edge.folder().to_string_lossy())
        // What Debian's unit does then.
        .replace("systemctl reload haproxy", &format!("kill -USR2 {}", edge.process_id()));

    // Connections that are kept, HTTP/1.1 and HTTP/2, and ones for each request.
    let has_ended = Arc::new(AtomicBool::new(false));
    let loads = ["--http1.1", "--http2", "--header=Connection: close"].map(|kind| {
        let has_ended = has_ended.clone();
        std::thread::spawn(move || -> Outcome<Vec<String>> {
            let mut asked = Vec::new();
            while !has_ended.load(Ordering::Relaxed) {
                let first = load::next_number() * 1000;
                let url = format!("https://localhost:{port}/track?n=[{first}-{}]", first + 99);
                let said = Command::new("curl")
                    .args(["--silent", "--insecure", "--max-time", "20", "--output", "/dev/null"])
                    .args(["--write-out", "%{http_code} %{url_effective}\\n"])
                    .args([kind.split('=').collect::<Vec<_>>(), vec![&url]].concat())
                    .output()?;
                asked.extend(String::from_utf8(said.stdout)?.lines().map(str::to_string));
            }
            Ok(asked)
        })
    });
    for n in 0..4 {
        std::thread::sleep(Duration::from_millis(700));
        make_certificate(&renewed)?;
        shell(edge.folder(), &format!("RENEWED_LINEAGE=\"$0\"\n{hook}"), &renewed.to_string_lossy())?;
        let is_served = || {
            let url = format!("https://localhost:{port}/robots.txt");
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--output", "/dev/null", "--cacert"]).arg(renewed.join("fullchain.pem"));
            curl.arg(&url).status().is_ok_and(|status| status.success())
        };
        wait_until(&format!("the new certificate {n}"), is_served)?;
    }
    std::thread::sleep(Duration::from_millis(700));
    has_ended.store(true, Ordering::Relaxed);
    let mut asked = Vec::new();
    for load in loads {
        let answers = load.join().expect("no panic")?;
        println!("{} requests", answers.len());
        assert!(answers.len() >= 100, "too few to mean anything");
        asked.extend(answers);
    }
    let lost: Vec<_> = asked.iter().filter(|answer| !answer.starts_with("200 ")).collect();
    assert!(lost.is_empty(), "{} of {}: {:?}", lost.len(), asked.len(), &lost[..lost.len().min(5)]);
    system.output.wait_for_lines(asked.len())?;
    system.pixel.stop()?;
    assert_eq!(system.output.lines().len(), asked.len(), "each once");
    Ok(())
}

#[test]
fn a_visitor_waits_at_the_edge_while_pixel_starts_again() -> Outcome {
    Kind::all().into_iter().try_for_each(has_a_visitor_wait)
}

fn has_a_visitor_wait(kind: Kind) -> Outcome {
    println!("{kind:?}");
    let (mut system, edge) = behind(kind)?;
    let address = edge.address;
    let load = Load::start(address, 4);
    for _ in 0..2 {
        load.wait_for(50)?;
        system.pixel.stop()?;
        let asked = std::thread::spawn(move || {
            let mut client = Client::connect(address)?;
            client.stream().set_read_timeout(Some(Duration::from_secs(30)))?;
            client.ask("GET", "/track?waited", &[])
        });
        let down = Instant::now();
        std::thread::sleep(Duration::from_millis(500));
        assert!(!asked.is_finished(), "nobody is there to answer");
        system.pixel.start_again()?;
        assert_eq!(asked.join().expect("no panic")?.status, 200);
        println!("answered {:?} after the program had ended", down.elapsed());
    }
    load.wait_for(50)?;
    system.output.verify(&load.stop())?;
    wait_until("the visits that waited", || {
        let lines = system.output.lines();
        lines.iter().filter(|line| line.contains(r#""query":"waited""#)).count() == 2
    })?;
    system.stop_and_audit()
}
