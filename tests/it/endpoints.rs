//! The contract's HTTP table, row by row, and the admin listener.

use crate::Outcome;
use crate::support::broker::NOWHERE;
use crate::support::client::{Client, GIF_HEX, get};
use crate::support::fixtures::{Embedded, Services};
use crate::support::launch::Launch;

#[test]
fn each_request_has_its_answer() -> Outcome {
    let mut system = Embedded::start()?;
    let mut client = Client::connect(system.address)?;
    for (method, target, status, recorded) in [
        ("GET", "/track", 200, true),
        ("GET", "/track.gif", 200, true),
        ("GET", "/track?x=1&y=%20", 200, true),
        ("GET", "http://other.example.com/track", 200, true),
        ("HEAD", "/track", 200, false),
        ("HEAD", "/track.gif?x", 200, false),
        ("POST", "/track", 204, true),
        ("POST", "/track.gif", 204, true),
        ("OPTIONS", "/track", 204, false),
        ("PUT", "/track", 405, false),
        ("DELETE", "/track.gif", 405, false),
        ("BREW", "/track", 405, false),
        ("GET", "/", 200, false),
        ("HEAD", "/", 200, false),
        ("POST", "/", 405, false),
        ("GET", "/robots.txt", 200, false),
        ("GET", "/favicon.ico", 204, false),
        ("GET", "/track/", 404, false),
        ("GET", "/Track", 404, false),
        ("GET", "//track", 404, false),
    ] {
        let before = system.output.lines().len();
        let answer = client.ask(method, target, &[])?;
        assert_eq!(answer.status, status, "{method} {target}");
        assert!(answer.header("Date").is_some_and(|date| date.ends_with(" GMT")), "{method} {target}");
        assert_eq!(answer.header("Content-Length").is_none(), status == 204, "{method} {target}");
        if recorded {
            system.output.wait_for_lines(before + 1)?;
        }
    }
    system.pixel.stop()?;
    assert_eq!(system.output.lines().len(), 6, "nothing but the recorded rows");
    Ok(())
}

#[test]
fn the_pixel_may_have_another_path() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("path", "/p/x"))?;
    for (path, status) in [("/p/x", 200), ("/p/x.gif?y", 200), ("/track", 404), ("/p", 404)] {
        assert_eq!(get(system.address, path, &[])?.status, status, "{path}");
    }
    let page = String::from_utf8(get(system.address, "/", &[])?.body)?;
    assert!(page.contains("https://px.example.com/p/x\"") && !page.contains("/track"), "{page}");
    let lines = system.output.wait_for_lines(2)?;
    assert!(
        lines[0].contains(r#""path":"/p/x","#) && lines[1].contains(r#""path":"/p/x.gif","#),
        "{lines:?}"
    );
    system.pixel.stop()
}

#[test]
fn the_pixel_has_the_contract_s_headers_and_bytes() -> Outcome {
    let mut system = Embedded::start()?;
    let mut client = Client::connect(system.address)?;
    for method in ["GET", "HEAD"] {
        let answer = client.ask(method, "/track", &[])?;
        for (name, value) in [
            ("Content-Type", "image/gif"),
            ("Content-Length", "43"),
            ("Cache-Control", "no-store, no-cache, must-revalidate, max-age=0, private"),
            ("Pragma", "no-cache"),
            ("Expires", "0"),
            ("Access-Control-Allow-Origin", "*"),
            ("Cross-Origin-Resource-Policy", "cross-origin"),
            ("Timing-Allow-Origin", "*"),
            ("X-Content-Type-Options", "nosniff"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{method}");
        }
        for absent in ["Set-Cookie", "ETag", "Last-Modified", "Content-Disposition", "Connection"] {
            assert_eq!(answer.header(absent), None, "{method} {absent}");
        }
        assert_eq!(answer.body_hex(), if method == "GET" { GIF_HEX } else { "" });
    }
    let preflight = client.ask("OPTIONS", "/track", &[("Access-Control-Request-Method", "POST")])?;
    assert_eq!(preflight.header("Access-Control-Allow-Origin"), Some("*"));
    assert!(preflight.header("Access-Control-Allow-Methods").is_some_and(|methods| methods.contains("POST")));
    assert!(preflight.header("Access-Control-Allow-Headers").is_some());
    // A beacon of JSON goes with cookies, and then a browser wants to be told by name (Fetch standard, section 3.2.5).
    let origin = "https://shop.example.com";
    let asked = &[("Origin", origin), ("Access-Control-Request-Method", "POST")];
    let preflight = client.ask("OPTIONS", "/track", asked)?;
    for (name, value) in [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Credentials", "true"),
        ("Access-Control-Allow-Headers", "Content-Type, *"),
        ("Vary", "Origin"),
    ] {
        assert_eq!(preflight.header(name), Some(value));
    }
    // What is no origin is not repeated.
    let split = &[("Origin", "a\nSet-Cookie: b"), ("Access-Control-Request-Method", "POST")];
    let preflight = client.ask("OPTIONS", "/track", split)?;
    assert_eq!(preflight.header("Access-Control-Allow-Origin"), Some("*"));
    assert!(!preflight.head.contains("Set-Cookie"), "{}", preflight.head);
    let refused = client.ask("PUT", "/track", &[])?;
    assert_eq!(refused.header("Allow"), Some("GET, HEAD, POST, OPTIONS"));
    let robots = client.ask("GET", "/robots.txt", &[])?;
    assert_eq!(robots.body, b"User-agent: *\nDisallow: /\n");
    let page = String::from_utf8(client.ask("GET", "/", &[])?.body)?;
    assert!(page.contains("&lt;img src=") && page.contains("/track"));
    system.pixel.stop()
}

#[test]
fn a_body_is_ignored_and_the_connection_goes_on() -> Outcome {
    let mut system = Embedded::start()?;
    let mut client = Client::connect(system.address)?;
    for length in [0, 1, 1000, 1024, 1025, 5000, 65_536] {
        let head = format!("POST /track?l={length} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
        client.send(head.as_bytes())?;
        client.send(&vec![b'x'; length])?;
        assert_eq!(client.receive(true)?.status, 204, "{length} bytes");
    }
    client
        .send(b"POST /track?chunked HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")?;
    assert_eq!(client.receive(true)?.status, 204);
    client
        .send(b"POST /track HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")?;
    assert_eq!(client.receive(true)?.status, 204);
    system.output.wait_for_lines(9)?;
    system.pixel.stop()
}

#[test]
fn a_full_spool_answers_503_with_the_gif_and_goes_on_when_there_is_room() -> Outcome {
    // Without a broker the spool only grows.
    let services = Services::new(NOWHERE, "nobody")?;
    let mut http = services.http.with("spool-max-bytes", "65536").start()?;
    let mut client = Client::connect(http.address()?)?;
    let mut accepted = 0;
    let refused = loop {
        let answer = client.ask("GET", "/track", &[("User-Agent", &"x".repeat(2000))])?;
        match answer.status {
            200 => accepted += 1,
            _ => break answer,
        }
    };
    assert!((10..40).contains(&accepted), "{accepted} visits of 2 KB in 64 KiB");
    assert_eq!((refused.status, refused.body_hex().as_str()), (503, GIF_HEX));
    assert!(refused.header("Retry-After").is_some());
    let admin = http.admin()?;
    assert_eq!(admin.metric("pixel_visits_accepted_total")?, f64::from(accepted));
    assert_eq!(admin.metric("pixel_visits_refused_total")?, 1.0);
    assert_eq!(admin.metric("pixel_spool_visits")?, f64::from(accepted));
    let (status, why) = admin.readiness()?;
    assert!(status == 503 && why.contains("cap of 65536 bytes"), "{status} {why}");
    http.stop()?;

    // Over the same spool, what waits is written, and there is room.
    let spool = http.launch.folder().join("spool");
    let mut system =
        Embedded::with(|launch| launch.with("spool-dir", &spool).with("spool-max-bytes", "65536"))?;
    system.output.wait_for_lines(accepted as usize)?;
    system.visit(&[])?;
    system.pixel.stop()
}

#[test]
fn operators_are_told_how_it_is() -> Outcome {
    let mut system = Embedded::start()?;
    system.visit(&[])?;
    system.output.wait_for_lines(1)?;
    let (public, admin) = (system.address, system.pixel.admin()?);
    assert_eq!(admin.readiness()?.0, 200);
    let mut client = Client::connect(admin.address)?;
    for length in [5, 5000] {
        let head = format!("POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
        client.send((head + &"x".repeat(length)).as_bytes())?;
        let answer = client.receive(true)?;
        assert_eq!((answer.status, answer.header("Date").is_some()), (405, true), "{length} bytes");
    }
    // The line is there a moment before the ledger, the counter and the spool know of it.
    admin.wait_for_metric("pixel_visits_written_total", |written| written == 1.0)?;
    admin.wait_for_metric("pixel_spool_visits", |waiting| waiting == 0.0)?;
    let admin = admin.address;
    assert_eq!(get(admin, "/healthz", &[])?.status, 200);
    assert_eq!(get(admin, "/track", &[])?.status, 404);
    assert_eq!(get(public, "/metrics", &[])?.status, 404, "the public learns nothing");
    let text = String::from_utf8(get(admin, "/metrics", &[])?.body)?;
    for name in [
        "pixel_visits_accepted_total 1",
        "pixel_visits_refused_total 0",
        "pixel_visits_written_total 1",
        "pixel_visits_duplicate_total 0",
        "pixel_messages_dead_lettered_total 0",
        "pixel_spool_visits 0",
        "pixel_spool_bytes ",
        "pixel_track_duration_seconds_bucket",
        "pixel_visit_age_at_write_seconds_count 1",
    ] {
        assert!(text.contains(name), "{name} is not in {text}");
    }
    // It has no broker.
    assert!(!text.contains("pixel_broker_") && !text.contains("pixel_visits_published"), "{text}");
    let health = Launch::new("pixel")?.argument("healthcheck");
    assert_eq!(health.clone().with("admin-listen", admin.to_string()).run()?.0, 0);
    assert_eq!(health.with("admin-listen", "127.0.0.1:1").run()?.0, 1);
    system.pixel.stop()
}
