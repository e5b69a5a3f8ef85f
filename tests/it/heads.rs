//! Heads that no browser sends, alone or pipelined, and the client's address in them.

use std::fs;

use crate::Outcome;
use crate::support::client::Client;
use crate::support::fixtures::Embedded;

#[test]
fn requests_that_are_pipelined_are_answered_in_order() -> Outcome {
    let mut system = Embedded::start()?;
    let mut client = Client::connect(system.address)?;
    let requests = (0..200).map(|n| match n % 3 {
        0 => "GET /track HTTP/1.1\r\nHost: h\r\n\r\n".to_string(),
        1 => format!("POST /track HTTP/1.1\r\nHost: h\r\nContent-Length: 2000\r\n\r\n{}", "x".repeat(2000)),
        _ => "GET /robots.txt HTTP/1.1\r\nHost: h\r\n\r\n".to_string(),
    });
    client.send(requests.collect::<String>().as_bytes())?;
    for n in 0..200 {
        let answer = client.receive(true)?;
        let (status, length) = [(200, 43), (204, 0), (200, 26)][n % 3];
        assert_eq!((answer.status, answer.body.len()), (status, length), "answer {n}");
    }
    system.output.wait_for_lines(134)?;
    system.pixel.stop()
}

#[test]
fn an_odd_head_has_its_defined_answer() -> Outcome {
    let mut system = Embedded::start()?;
    let long = "x".repeat(3000);
    let cut = "x".repeat(2048);
    let long_agent = format!("GET /track HTTP/1.1\r\nHost: h\r\nUser-Agent: {long}\r\n\r\n");
    let long_query = format!("GET /track?{long} HTTP/1.1\r\nHost: h\r\n\r\n");
    let many =
        format!("GET /track HTTP/1.1\r\nHost: h\r\n{}User-Agent: last\r\n\r\n", "A: b\r\n".repeat(2000));
    // What is sent; the status, where there is an answer; whether the connection goes on; a field of
    // the visit, where one is recorded.
    type Row<'a> = (&'a str, &'a [u8], Option<u16>, bool, Option<(&'a str, &'a str)>);
    let rows: &[Row<'_>] = &[
        ("plain", b"GET /track HTTP/1.1\r\nHost: h\r\n\r\n", Some(200), true, Some(("host", "h"))),
        (
            "control characters",
            b"GET /track HTTP/1.1\r\nHost: h\r\nUser-Agent: a\x01\x1b[2J\x7f\0b\r\n\r\n",
            Some(200),
            true,
            Some(("user_agent", "a\x01\x1b[2J\x7f\0b")),
        ),
        (
            "a bare line feed in a value",
            b"GET /track HTTP/1.1\r\nHost: h\r\nUser-Agent: a\nReferer: b\r\n\r\n",
            Some(200),
            true,
            Some(("user_agent", "a\nReferer: b")),
        ),
        (
            "absolute form",
            b"GET http://px.example.com/track?x=1 HTTP/1.1\r\nHost: other\r\n\r\n",
            Some(200),
            true,
            Some(("host", "px.example.com")),
        ),
        ("absolute form, elsewhere", b"GET http://h/other HTTP/1.1\r\nHost: h\r\n\r\n", Some(404), true, None),
        ("asterisk", b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", Some(404), true, None),
        ("HTTP/1.0", b"GET /track HTTP/1.0\r\n\r\n", Some(200), false, Some(("path", "/track"))),
        (
            "HTTP/1.0 with keep-alive",
            b"GET /track HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
            Some(200),
            true,
            Some(("path", "/track")),
        ),
        (
            "close",
            b"GET /track HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
            Some(200),
            false,
            Some(("path", "/track")),
        ),
        ("HEAD", b"HEAD /track HTTP/1.1\r\nHost: h\r\n\r\n", Some(200), true, None),
        ("an odd method", b"G\x01T /track HTTP/1.1\r\nHost: h\r\n\r\n", Some(405), true, None),
        ("an unknown expectation", b"GET /track HTTP/1.1\r\nHost: h\r\nExpect: tea\r\n\r\n", Some(417), false, None),
        (
            "100-continue without a body",
            b"GET /track HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n",
            Some(200),
            true,
            Some(("path", "/track")),
        ),
        (
            "duplicate headers",
            b"GET /track HTTP/1.1\r\nHost: h\r\nUser-Agent: first\r\nuser-agent: second\r\n\r\n",
            Some(200),
            true,
            Some(("user_agent", "first")),
        ),
        (
            "the other spelling",
            b"GET /track HTTP/1.1\r\nHost: h\r\nReferrer: http://r/\r\n\r\n",
            Some(200),
            true,
            Some(("referrer", "http://r/")),
        ),
        ("3,000 bytes of agent", long_agent.as_bytes(), Some(200), true, Some(("user_agent", &cut))),
        ("3,000 bytes of query", long_query.as_bytes(), Some(200), true, Some(("query", &cut))),
        ("2,000 headers", many.as_bytes(), Some(200), true, Some(("user_agent", "last"))),
        (
            "another coding",
            b"POST /track HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            Some(501),
            false,
            None,
        ),
        (
            "chunked twice",
            b"POST /track HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Some(501),
            false,
            None,
        ),
        (
            "chunked in capitals",
            b"POST /track HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked \r\n\r\n0\r\n\r\n",
            Some(204),
            true,
            Some(("path", "/track")),
        ),
        (
            "chunked with HTTP/1.0",
            b"POST /track HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Some(400),
            false,
            None,
        ),
        ("no host", b"GET /track HTTP/1.1\r\nX: y\r\n\r\n", Some(400), false, None),
        ("two hosts", b"GET /track HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Some(400), false, None),
        ("an empty host", b"GET /track HTTP/1.1\r\nHost:\r\n\r\n", Some(200), true, Some(("path", "/track"))),
        ("no version", b"GET /track\r\n\r\n", Some(400), false, None),
        ("an unknown version", b"GET /track HTTP/9.9\r\n\r\n", Some(400), false, None),
        ("no colon", b"GET /track HTTP/1.1\r\nnonsense\r\n\r\n", Some(400), false, None),
        ("a space before the colon", b"GET /track HTTP/1.1\r\nHost : h\r\n\r\n", Some(400), false, None),
        ("an empty line first", b"\r\nGET /track HTTP/1.1\r\n\r\n", Some(400), false, None),
        // tiny_http's: closed unanswered. The edge keeps such heads away.
        ("a byte outside ASCII", b"GET /track HTTP/1.1\r\nHost: h\r\nUser-Agent: \xc5\xbd\r\n\r\n", None, false, None),
        ("half a head", b"GET /track HTTP/1.1\r\nHost: h", None, true, None),
    ];
    let mut visits = 0;
    for (case, sent, status, goes_on, field) in rows {
        let mut client = Client::connect(system.address)?;
        client.send(sent)?;
        if let Some(status) = status {
            let has_body = !sent.starts_with(b"HEAD");
            let answer = client.receive(has_body).map_err(|error| format!("{case}: {error}"))?;
            assert_eq!(answer.status, *status, "{case}");
            if *goes_on {
                let next = client.ask("GET", "/robots.txt", &[]);
                assert_eq!(next.map_err(|error| format!("{case}: {error}"))?.status, 200, "{case}: goes on");
            }
        }
        if !goes_on {
            assert!(client.is_closed(), "{case}: closed");
        }
        if let Some((name, value)) = field {
            visits += 1;
            let visit = system.output.wait_for_visit(visits)?;
            assert_eq!(visit[name], *value, "{case}");
        }
    }
    system.pixel.stop()?;
    assert_eq!(system.output.lines().len(), visits, "nothing but the rows with a field is recorded");
    let raw = fs::read(&system.output.path)?;
    assert!(raw.iter().all(|byte| *byte >= b' ' || *byte == b'\n'), "no control character is written raw");
    Ok(())
}

#[test]
fn no_client_chooses_its_address() -> Outcome {
    let mut trusting =
        Embedded::with(|launch| launch.with("trusted-proxies", "127.0.0.1, 10.0.0.0/8, fd00::/8"))?;
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
    let rows: &[Row<'_>] = &[
        ("none", &[], "127.0.0.1"),
        ("one proxy", &[("X-Forwarded-For", "1.1.1.1")], "1.1.1.1"),
        ("a spoofed entry", &[("X-Forwarded-For", "9.9.9.9, 1.1.1.1")], "1.1.1.1"),
        ("chained", &[("X-Forwarded-For", "9.9.9.9, 1.1.1.1, 10.1.1.1")], "1.1.1.1"),
        ("two headers", &[("X-Forwarded-For", "1.1.1.1"), ("X-Forwarded-For", "10.1.1.1")], "1.1.1.1"),
        ("IPv6", &[("X-Forwarded-For", "2001:db8::1")], "2001:db8::1"),
        ("brackets and a port", &[("X-Forwarded-For", "[2001:db8::1]:47")], "2001:db8::1"),
        ("a port", &[("X-Forwarded-For", "1.1.1.1:47")], "1.1.1.1"),
        ("mapped", &[("X-Forwarded-For", "::ffff:1.1.1.1")], "1.1.1.1"),
        ("unknown", &[("X-Forwarded-For", "9.9.9.9, unknown")], "127.0.0.1"),
        ("nonsense", &[("X-Forwarded-For", "1.1.1.1.1")], "127.0.0.1"),
        ("Forwarded", &[("Forwarded", "for=1.1.1.1;proto=https")], "1.1.1.1"),
        ("Forwarded, IPv6", &[("Forwarded", r#"For="[2001:db8::1]:47""#)], "2001:db8::1"),
        ("Forwarded, chained", &[("Forwarded", "for=9.9.9.9, for=1.1.1.1, for=10.1.1.1")], "1.1.1.1"),
        ("Forwarded, hidden", &[("Forwarded", "for=9.9.9.9, for=_hidden")], "127.0.0.1"),
        ("both", &[("Forwarded", "for=9.9.9.9"), ("X-Forwarded-For", "1.1.1.1")], "1.1.1.1"),
    ];
    let mut client = Client::connect(trusting.address)?;
    for (n, (case, headers, ip)) in rows.iter().enumerate() {
        assert_eq!(client.ask("GET", "/track", headers)?.status, 200, "{case}");
        assert_eq!(trusting.output.wait_for_visit(n + 1)?["ip"], *ip, "{case}");
    }
    trusting.pixel.stop()?;
    assert!(!trusting.pixel.log().contains("PIXEL_TRUSTED_PROXIES"), "{}", trusting.pixel.log());
    // By default nobody is believed, and it is said once: every visit carries the address of such a proxy.
    let mut wary = Embedded::start()?;
    wary.visit(&[])?;
    assert!(!wary.pixel.log().contains("PIXEL_TRUSTED_PROXIES"));
    for n in 2..=4 {
        wary.visit(&[("X-Forwarded-For", "9.9.9.9"), ("Forwarded", "for=9.9.9.9")])?;
        assert_eq!(wary.output.wait_for_visit(n)?["ip"], "127.0.0.1");
    }
    let line = wary.pixel.wait_for_log("PIXEL_TRUSTED_PROXIES")?;
    assert!(line.contains("127.0.0.1") && line.contains("WARN"), "{line}");
    wary.pixel.stop()?;
    assert_eq!(wary.pixel.log().matches("PIXEL_TRUSTED_PROXIES").count(), 1, "{}", wary.pixel.log());
    Ok(())
}
