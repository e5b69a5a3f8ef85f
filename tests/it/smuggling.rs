//! Requests whose end is unclear: what follows them on the connection is no request (RFC 9112, section 6.3).

use std::io::Write;
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::Outcome;
use crate::support::client::Client;
use crate::support::edge::{Edge, Kind};
use crate::support::fixtures::Embedded;

/// What a smuggler hides behind a request, and wants to see recorded.
const HIDDEN: &str =
    "GET /track?smuggled HTTP/1.1\r\nHost: px.example.com\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";

/// They were answered with 400 or 413, malformed chunks not at all, and the connection went on: whatever stood behind them
/// was answered and recorded.
#[test]
fn nothing_that_follows_a_request_with_unclear_framing_is_answered_or_recorded() -> Outcome {
    let mut system = Embedded::start()?;
    let large = format!("Content-Length: 70000\r\n\r\n{}", "x".repeat(70_000));
    let large_chunks =
        format!("Transfer-Encoding: chunked\r\n\r\n13880\r\n{}\r\n0\r\n\r\n", "x".repeat(80_000));
    let rows: &[(&str, &str, u16)] = &[
        ("chunked and a length", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        ("a length and chunked", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("two lengths, the first none", "Content-Length: 0\r\nContent-Length: 6\r\n\r\n", 400),
        ("two lengths", "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        ("two large lengths", "Content-Length: 5000\r\nContent-Length: 6\r\n\r\nhello", 400),
        ("a plus sign", "Content-Length: +5\r\n\r\nhello", 400),
        ("a minus sign", "Content-Length: -1\r\n\r\n", 400),
        ("an empty length", "Content-Length:\r\n\r\n", 400),
        ("a list of lengths", "Content-Length: 5, 5\r\n\r\nhello", 400),
        ("past the largest number", "Content-Length: 18446744073709551616\r\n\r\n", 400),
        ("a large body", &large, 413),
        ("large chunks", &large_chunks, 413),
        ("a chunk without a number", "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("a chunk too long", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n", 400),
        ("a chunk's number too large", "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
    ];
    for (n, (case, rest, status)) in rows.iter().enumerate() {
        // In one piece with the request, and in one that comes after its answer.
        for is_late in [false, true] {
            let mut client = Client::connect(system.address)?;
            let request = format!("POST /track?{n} HTTP/1.1\r\nHost: px.example.com\r\n{rest}");
            // The connection may be closed before all of it is sent.
            let _ = if is_late {
                client.send(request.as_bytes())
            } else {
                client.send((request + &HIDDEN.repeat(3)).as_bytes())
            };
            let answer = client.receive(true).map_err(|error| format!("{case}, {is_late}: {error}"))?;
            assert_eq!(answer.status, *status, "{case}");
            assert_eq!(answer.header("Connection"), Some("close"), "{case}");
            if is_late {
                thread::sleep(Duration::from_millis(50));
                let _ = client.send(HIDDEN.as_bytes());
            }
            assert!(client.is_closed(), "{case}, late: {is_late}: closed, with no other answer");
        }
        system.visit(&[])?;
    }
    system.output.wait_for_lines(rows.len())?;
    system.pixel.stop()?;
    let lines = system.output.lines();
    assert!(lines.iter().all(|line| line.contains(r#""query":null"#)), "{lines:?}");
    assert_eq!(lines.len(), rows.len(), "nothing but the visits in between");
    Ok(())
}

/// It was taken for the end of the body, answered with 204 and recorded.
#[test]
fn a_chunked_body_that_is_cut_off_is_not_recorded() -> Outcome {
    let mut system = Embedded::start()?;
    for (case, body) in [
        ("nothing of it", ""),
        ("within a number", "5"),
        ("within a chunk", "5\r\nhel"),
        ("within a large chunk", "ffff\r\nhello"),
        ("behind a chunk", "5\r\nhello\r\n"),
        ("within the end", "5\r\nhello\r\n0\r\n"),
    ] {
        let mut client = Client::connect(system.address)?;
        client.send(
            format!("POST /track?cut HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
                .as_bytes(),
        )?;
        client.stream().shutdown(Shutdown::Write)?;
        let answer = client.receive(true).map_err(|error| format!("{case}: {error}"))?;
        assert_eq!(answer.status, 400, "{case}");
        assert!(client.is_closed(), "{case}");
    }
    system.visit(&[])?;
    system.output.wait_for_lines(1)?;
    system.pixel.stop()?;
    assert_eq!(system.output.lines().len(), 1, "nothing but the visit behind them");
    Ok(())
}

/// The body's time was over in the middle of the chunk, and what was left of it was read as requests: nine forged
/// visits, through the edge with an address of the attacker's choice.
#[test]
fn what_is_left_of_a_slow_body_is_no_visit() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("trusted-proxies", "127.0.0.1"))?;
    let edges = Kind::all().into_iter().map(|kind| Edge::start_with_tls(kind, system.address));
    let edges = edges.collect::<Outcome<Vec<Edge>>>()?;
    let through_the_edge = |port: u16| -> Outcome {
        let url = format!("https://localhost:{port}/track?slow");
        let mut curl = Command::new("curl")
            .args(["--silent", "--insecure", "--http2", "--max-time", "30", "--request", "POST"])
            .args(["--upload-file", "-", "--output", "/dev/null", &url])
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|error| format!("curl: {error}; tests/require-packages installs it"))?;
        let mut body = curl.stdin.take().ok_or("it was piped")?;
        trickle(&mut body, "x", &aligned());
        drop(body);
        curl.wait()?;
        Ok(())
    };
    let ports: Vec<u16> = edges.iter().map(|edge| edge.address.port()).collect();
    let through_the_edges = ports.into_iter().map(|port| thread::spawn(move || through_the_edge(port)));
    let through_the_edges: Vec<_> = through_the_edges.collect();
    let client = Client::connect(system.address)?;
    let mut stream = client.stream();
    stream.write_all(
        b"POST /track?slow HTTP/1.1\r\nHost: px.example.com\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let large = aligned();
    trickle(&mut stream, "1\r\nx\r\n", &format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len()));
    through_the_edges.into_iter().try_for_each(|through| through.join().expect("no panic"))?;
    system.visit(&[])?;
    system.pixel.stop()?;
    let lines = system.output.lines();
    assert!(lines.iter().all(|line| !line.contains("smuggled") && !line.contains("6.6.6.6")), "{lines:?}");
    Ok(())
}

/// Sends a body piece by piece for 9.3 s, and the rest when the time for it is over: that is seen only in the
/// middle of it.
fn trickle(body: &mut impl Write, piece: &str, rest: &str) {
    for _ in 0..31 {
        // It may have been refused already.
        let _ = body.write_all(piece.as_bytes());
        thread::sleep(Duration::from_millis(300));
    }
    thread::sleep(Duration::from_millis(1500));
    let _ = body.write_all(rest.as_bytes());
}

/// What tiny_http reads of a large chunk at first, with the chunk's number in front of it, and then requests.
fn aligned() -> String {
    "x".repeat(1018) + &HIDDEN.repeat(200)
}
