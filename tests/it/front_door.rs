//! Clients that cost the public listener more than a visit does: crowds, bodies, silence, greed.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::client::{Client, get};
use crate::support::fixtures::{Embedded, Services};
use crate::support::launch::Launch;
use crate::support::port::free_address;
use crate::support::program::{CONSUMING, LISTENING, Program, RESTARTING};
use crate::support::wait::wait_until;

const VISIT: &[u8] = b"GET /track HTTP/1.1\r\nHost: px.example.com\r\n\r\n";

/// A number of /proc/PID/status.
fn status(program: &Program, name: &str) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid()?.as_raw_nonzero()))?;
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = value.and_then(|value| value.split_whitespace().next()).ok_or("no such number")?;
    Ok(number.parse()?)
}

/// Opens connections and asks for the pixel on each, without waiting for answers. Those that the
/// server has no room for count, too.
fn crowd(address: SocketAddr, size: usize, request: &[u8]) -> Vec<TcpStream> {
    let connect = |_| {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.write_all(request).ok()?;
        Some(stream)
    };
    (0..size).filter_map(connect).collect()
}

#[test]
fn as_many_workers_take_requests_as_it_is_told_and_there_are_cores() -> Outcome {
    let cores = thread::available_parallelism()?.get().max(2);
    for (told, workers) in [(1, 1), (2, 2), (cores + 5, cores)] {
        let mut system = Embedded::with(|launch| launch.with("workers", told.to_string()))?;
        let tasks = format!("/proc/{}/task", system.pixel.pid()?.as_raw_nonzero());
        let is_worker = |name: &String| {
            name.trim().strip_prefix("http-").is_some_and(|number| number.parse::<u32>().is_ok())
        };
        let count = || {
            let names = fs::read_dir(&tasks).into_iter().flatten();
            let names = names.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
            names.filter(is_worker).count()
        };
        wait_until("the workers", || count() >= workers)?;
        system.visit(&[])?;
        assert_eq!(count(), workers);
        system.pixel.stop()?;
    }
    Ok(())
}

#[test]
fn no_declared_body_ends_or_blocks_it() -> Outcome {
    // With one worker, whatever blocks a worker blocks everything.
    let mut system = Embedded::with(|launch| launch.with("workers", "1"))?;
    let (public, admin) = (system.address, system.pixel.admin()?);
    let mut held = Vec::new();
    let mut visits = 0;
    for (case, head, answer) in [
        ("sixteen megabytes", "Content-Length: 16777216", Some(413)),
        ("a hundred terabytes", "Content-Length: 100000000000000", Some(413)),
        ("the largest number", "Content-Length: 18446744073709551615", Some(413)),
        ("past the largest number", "Content-Length: 18446744073709551616", Some(400)),
        ("a plus sign", "Content-Length: +5", None),
        ("a large one with a plus sign", "Content-Length: +100000000000000", Some(400)),
        ("a minus sign", "Content-Length: -1", Some(400)),
        ("two lengths", "Content-Length: 5\r\nContent-Length: 100000000000000", None),
        ("two lengths, the large one first", "Content-Length: 70000\r\nContent-Length: 5", Some(400)),
        ("a byte too much", "Content-Length: 65537", Some(413)),
        ("withheld, 1", "Content-Length: 1", None),
        ("withheld, 1024", "Content-Length: 1024", None),
        ("withheld, 5000", "Content-Length: 5000", None),
        ("withheld, 65536", "Content-Length: 65536", None),
        ("withheld after 100-continue", "Expect: 100-continue\r\nContent-Length: 5", None),
        (
            "too large after 100-continue",
            "Expect: 100-continue\r\nContent-Length: 100000000000000",
            Some(413),
        ),
        ("chunked, nothing of it", "Transfer-Encoding: chunked", None),
        ("chunked and a length", "Transfer-Encoding: chunked\r\nContent-Length: 100000000000000", Some(400)),
        ("upgrade", "Connection: upgrade\r\nContent-Length: 100000000000000", Some(204)),
    ] {
        let mut client = Client::connect(public)?;
        client.send(format!("POST /track HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\n").as_bytes())?;
        if let Some(status) = answer {
            let answer = client.receive(true).map_err(|error| format!("{case}: {error}"))?;
            assert_eq!(answer.status, status, "{case}");
            assert_eq!((answer.header("Upgrade"), answer.header("Server")), (None, None), "{case}");
            visits += usize::from(status == 204);
        }
        // Half of a connection's end is what tiny_http's reader takes for the end of the body.
        client.stream().shutdown(Shutdown::Write)?;
        held.push(client);
        let normal = get(public, "/track", &[]).map_err(|error| format!("after {case}: {error}"))?;
        assert_eq!(normal.status, 200, "{case}");
        visits += 1;
        // The admin listener has nothing to do with bodies, and must not fall for them either.
        let mut client = Client::connect(admin.address)?;
        client.send(format!("POST /metrics HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\n").as_bytes())?;
        held.push(client);
        assert_eq!(get(admin.address, "/healthz", &[])?.status, 200, "admin, {case}");
    }
    // A chunked body without an end is cut off.
    let mut client = Client::connect(public)?;
    client.send(b"POST /track HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    let chunk = [b"1000\r\n".to_vec(), vec![b'x'; 4096], b"\r\n".to_vec()].concat();
    for _ in 0..17 {
        client.send(&chunk)?;
    }
    assert_eq!(client.receive(true)?.status, 413);
    drop(client);
    drop(held);
    // What tiny_http would allocate to drop is never dropped.
    admin.wait_for_metric("pixel_http_abandoned_connections_total", |abandoned| abandoned >= 4.0)?;
    system.visit(&[])?;
    system.output.wait_for_lines(visits + 1)?;
    system.pixel.stop()
}

#[test]
fn too_many_abandoned_connections_restart_it_and_lose_nothing() -> Outcome {
    // An eighth of the descriptors is the bound: 32 connections.
    let options =
        |launch: Launch| launch.with("admin-listen", free_address().to_string()).before("ulimit -n 256");
    let mut system = Embedded::with(options)?;
    let load = system.load(4);
    load.wait_for(50)?;
    let head = b"POST /track HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000000000\r\n\r\n";
    wait_until("a restart", || {
        drop(crowd(system.address, 40, head));
        system.pixel.log().matches(LISTENING).count() >= 2
    })?;
    assert!(system.pixel.log().contains(RESTARTING), "{}", system.pixel.log());
    load.wait_for(50)?;
    system.output.verify(&load.stop())?;
    assert!(system.pixel.runs(), "it is the same process");
    system.stop_and_audit()
}

/// Whoever connected while it started again was refused.
#[test]
fn a_restart_refuses_nobody() -> Outcome {
    // 64 connections may be abandoned, and there is room for all of the crowd.
    let mut system = Embedded::with(|launch| launch.before("ulimit -n 512"))?;
    let (address, admin) = (system.address, system.pixel.admin()?);
    let stop = AtomicBool::new(false);
    let (answered, refused, broken) = <(AtomicUsize, AtomicUsize, AtomicUsize)>::default();
    let ask = || match TcpStream::connect(address) {
        Ok(mut stream) => {
            let mut answer = [0; 12];
            let asked = stream
                .set_read_timeout(Some(Duration::from_secs(30)))
                .and_then(|()| stream.write_all(b"GET /track HTTP/1.0\r\nHost: h\r\n\r\n"))
                .and_then(|()| stream.read_exact(&mut answer));
            if asked.is_ok() { &answered } else { &broken }
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => &refused,
        Err(_) => &broken,
    };
    let head = b"POST /track HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000000000\r\n\r\n";
    thread::scope(|scope| -> Outcome {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                ask().fetch_add(1, Ordering::Relaxed);
            }
        });
        // All at once they would fill the backlog, and the program that starts anew would have them to begin with.
        let restarted = (1..=3).try_for_each(|round| {
            drop(crowd(address, 40, head));
            wait_until("abandoned connections, or a restart", || {
                let abandoned = admin.metric("pixel_http_abandoned_connections_total").unwrap_or_default();
                system.pixel.log().matches(LISTENING).count() >= 2
                    || round < 3 && abandoned >= 30.0 * f64::from(round)
            })
        });
        let before = answered.load(Ordering::Relaxed);
        let goes_on = wait_until("answers", || answered.load(Ordering::Relaxed) > before + 50);
        stop.store(true, Ordering::Relaxed);
        restarted.and(goes_on)
    })?;
    println!("answered, refused, broken: {:?}", (&answered, &refused, &broken));
    assert_eq!(refused.into_inner(), 0);
    assert!(answered.into_inner() > 50, "most are answered");
    system.stop_and_audit()
}

/// It logged that it starts again, and ended with 0: nobody wrote any more.
#[test]
fn pixel_storage_starts_again_too_when_its_admin_listener_was_abandoned_too_often() -> Outcome {
    let broker = Broker::shared()?;
    let services = Services::new(&broker.url(), "abandoned")?;
    let admin = free_address();
    let launch = services.storage.with("admin-listen", admin.to_string()).before("ulimit -n 256");
    let mut storage = launch.start()?;
    let head = b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000000000\r\n\r\n";
    wait_until("a restart", || {
        // It looks at them once a second, and has descriptors for some more than it abandons in one.
        if !storage.log().contains(RESTARTING) {
            drop(crowd(admin, 20, head));
            thread::sleep(Duration::from_secs(1));
        }
        storage.log().matches(CONSUMING).count() >= 2 || !storage.runs()
    })?;
    assert!(storage.log().contains(RESTARTING) && storage.runs(), "{}", storage.log());
    let mut http = services.http.start()?;
    assert_eq!(get(http.address()?, "/track", &[])?.status, 200);
    services.output.wait_for_lines(1)?;
    http.stop()?;
    storage.stop()
}

/// Of 12 fresh connections opened at once, tiny_http leaves 8 without a thread until another one closes.
#[test]
fn a_burst_is_answered_with_all_connections_still_open() -> Outcome {
    let mut system = Embedded::start()?;
    let address = system.address;
    for (case, size) in [("fresh", 200), ("idle", 200), ("small", 12)] {
        let started = Instant::now();
        let mut clients = (0..size).map(|_| Client::connect(address)).collect::<Outcome<Vec<_>>>()?;
        clients.iter_mut().try_for_each(|client| client.send(VISIT))?;
        for client in &mut clients {
            assert_eq!(client.receive(true).map_err(|error| format!("{case}: {error}"))?.status, 200);
        }
        // It takes 0.1 to 0.5 s; the room is for a machine that is busy with other tests.
        let took = started.elapsed();
        println!("a {case} burst of {size}: {took:?}");
        assert!(took < Duration::from_secs(5), "{case}: {took:?}");
        for client in &mut clients {
            assert_eq!(client.ask("GET", "/track", &[])?.status, 200, "{case}: still open");
        }
        drop(clients);
        // tiny_http falls back to a few threads, and the next burst finds no more than on a fresh start.
        wait_until("idle threads to end", || {
            status(&system.pixel, "Threads").is_ok_and(|threads| threads < 90)
        })?;
    }
    system.pixel.stop()
}

/// With too few descriptors, tiny_http's accept thread ends or panics: each parity of the limit has
/// its own way. Then nobody was let in any more, for ever.
#[test]
fn running_out_of_descriptors_is_no_deafness() -> Outcome {
    let limits = [64, 65, 66].map(|limit| thread::spawn(move || crowded_out(limit)));
    limits.into_iter().try_for_each(|limit| limit.join().expect("no panic"))
}

fn crowded_out(limit: u32) -> Outcome {
    let mut system = Embedded::with(|launch| launch.before(&format!("ulimit -n {limit}")))?;
    let (public, admin) = (system.address, system.pixel.admin()?.address);
    assert!(system.pixel.log().contains("raise `ulimit -n`"), "a limit too low is a warning");
    for round in 0..3 {
        let mut clients = crowd(public, 120, VISIT);
        clients.extend(crowd(admin, 20, b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"));
        wait_until("a shortage", || {
            let descriptors = fs::read_dir(format!("/proc/{}/fd", status(&system.pixel, "Pid").unwrap_or(0)));
            descriptors.is_ok_and(|all| all.count() as u32 >= limit - 12)
        })?;
        drop(clients);
        let left = Instant::now();
        for (listener, address, target) in [("public", public, "/track"), ("admin", admin, "/healthz")] {
            wait_until(&format!("an answer of the {listener} listener at a limit of {limit}"), || {
                get(address, target, &[]).is_ok_and(|answer| answer.status == 200)
            })?;
        }
        let took = left.elapsed();
        println!("limit {limit}, round {round}: answers {took:?} after the crowd left");
        // Mostly within a second.
        assert!(took < Duration::from_secs(8), "limit {limit}: {took:?}");
    }
    system.pixel.stop()
}

#[test]
fn clients_that_say_nothing_are_closed_and_cost_others_nothing() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("read-timeout-ms", "1000"))?;
    let address = system.address;
    let threads = status(&system.pixel, "Threads")?;
    let mut silent = crowd(address, 250, b"");
    silent.extend(crowd(address, 250, b"GET /track HTTP/1.1\r\nHost: px.exa"));
    assert_eq!(silent.len(), 500);
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(get(address, "/track", &[])?.status, 200);
        slowest = slowest.max(asked.elapsed());
    }
    println!("the slowest of 20 visits beside 500 silent clients: {slowest:?}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let closed = match stream.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        };
        assert!(closed, "nothing is said to a silent client, and it is closed");
    }
    // Each poke of the keeper's keeps an idle thread of the pool from ending for a while.
    wait_until("their threads to end", || {
        status(&system.pixel, "Threads").is_ok_and(|now| now < threads + 90)
    })?;
    system.pixel.stop()
}

/// Sends request upon request and reads nothing, until the server has had enough.
fn ask_without_reading(address: SocketAddr, head: &[u8], patience: Duration) -> Outcome<usize> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    socket2::SockRef::from(&stream).set_recv_buffer_size(4096)?;
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    let many = head.repeat(1000);
    let (mut sent, until) = (0, Instant::now() + patience);
    while Instant::now() < until {
        match (&stream).write(&many) {
            Ok(bytes) => sent += bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    Ok(sent / head.len())
}

#[test]
fn a_client_that_does_not_read_is_closed_and_cannot_make_memory_grow() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("write-timeout-ms", "1000").with("workers", "2"))?;
    let (address, admin) = (system.address, system.pixel.admin()?);
    let greedy: Vec<_> = (0..4)
        .map(|_| thread::spawn(move || ask_without_reading(address, VISIT, Duration::from_secs(8))))
        .collect();
    while !greedy.iter().all(|client| client.is_finished()) {
        assert_eq!(get(address, "/track", &[])?.status, 200, "others are served");
        thread::sleep(Duration::from_millis(50));
    }
    let mut sent = 0;
    for client in greedy {
        sent += client.join().expect("no panic")?;
    }
    let peak_mib = status(&system.pixel, "VmHWM")? >> 10;
    println!("{sent} requests sent by 4 clients that read nothing: {peak_mib} MiB at most");
    assert!(peak_mib < 512, "{peak_mib} MiB");
    admin.wait_for_metric("pixel_http_stalled_connections_total", |stalled| stalled >= 4.0)?;
    // Given up with a body that must not be dropped.
    let head = [
        &VISIT.repeat(20_000)[..],
        b"POST /track HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000000000\r\n\r\n",
    ];
    ask_without_reading(address, &head.concat(), Duration::from_secs(2))?;
    assert_eq!(get(address, "/track", &[])?.status, 200);
    let threads = status(&system.pixel, "Threads")?;
    assert!(threads < 100, "{threads} threads");
    system.pixel.stop()
}

/// Forty of them made it 1.49 GiB large, as their connections were closed one after another, each after a look
/// through all of them: it started again and again, and served a third of the visits.
#[test]
fn forty_clients_that_do_not_read_are_closed_as_soon() -> Outcome {
    let mut system = Embedded::start()?;
    let address = system.address;
    let greedy: Vec<_> = (0..40)
        .map(|_| thread::spawn(move || ask_without_reading(address, VISIT, Duration::from_secs(5))))
        .collect();
    let (mut slowest, mut visits) = (Duration::ZERO, 0);
    while !greedy.iter().all(|client| client.is_finished()) {
        let asked = Instant::now();
        assert_eq!(get(address, "/track", &[])?.status, 200, "others are served");
        slowest = slowest.max(asked.elapsed());
        visits += 1;
        thread::sleep(Duration::from_millis(50));
    }
    let peak_mib = status(&system.pixel, "VmHWM")? >> 10;
    println!("{visits} visits beside them, the slowest in {slowest:?}: {peak_mib} MiB at most");
    assert!(peak_mib < 512, "{peak_mib} MiB");
    let threads = fs::read_dir(format!("/proc/{}/task", system.pixel.pid()?.as_raw_nonzero()))?;
    let names: Vec<_> =
        threads.map(|thread| fs::read_to_string(thread?.path().join("comm"))).collect::<Result<_, _>>()?;
    assert!(names.iter().any(|name| name == "http-client\n"), "who is put last has a name: {names:?}");
    assert!(!system.pixel.log().contains(RESTARTING), "{}", system.pixel.log());
    system.pixel.stop()
}

/// A byte now and then of a chunk's number kept a reader past its deadline, and with all readers taken every
/// honest body was dropped unanswered.
#[test]
fn bodies_that_trickle_are_ended_by_the_clock_and_until_then_others_are_told_to_come_back() -> Outcome {
    let mut system = Embedded::start()?;
    let address = system.address;
    let started = Instant::now();
    let head = b"POST /track HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    // More than there are readers.
    let slow = crowd(address, 300, head);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let outcome = thread::scope(|scope| -> Outcome {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                slow.iter().for_each(|mut stream| drop(stream.write_all(b"0")));
                thread::sleep(Duration::from_secs(1));
            }
        });
        let post = || -> Outcome<u16> {
            let mut client = Client::connect(address)?;
            client.send(b"POST /track HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n")?;
            client.send(&[b'x'; 5000])?;
            let answer = client.receive(true)?;
            assert_eq!(answer.header("Retry-After").is_some(), answer.status == 503);
            Ok(answer.status)
        };
        let outcome = (|| {
            wait_until("some of them to be told to come back", || slow.iter().any(is_turned_away))?;
            assert_eq!(get(address, "/track", &[])?.status, 200, "a visit without a body needs none");
            wait_until("the readers to be free", || post().is_ok_and(|status| status == 204))
        })();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome
    });
    outcome?;
    println!("free after {:?}", started.elapsed());
    assert_eq!(system.pixel.admin()?.metric("pixel_http_abandoned_connections_total")?, 0.0);
    system.pixel.stop()
}

/// Whether a 503 has come.
fn is_turned_away(stream: &TcpStream) -> bool {
    let mut answer = [0; 512];
    let waited = stream.set_read_timeout(Some(Duration::from_millis(1)));
    let answer = waited.and_then(|()| stream.peek(&mut answer)).map_or(&[][..], |read| &answer[..read]);
    let answer = String::from_utf8_lossy(answer);
    answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: ")
}

/// The beginning of HTTP/2 leaves tiny_http's thread, and two descriptors, waiting for itself for ever:
/// with enough of them nobody is let in any more.
#[test]
fn a_listener_that_stays_deaf_ends_the_process() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("read-timeout-ms", "500").before("ulimit -n 64"))?;
    let started = Instant::now();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut clients = Vec::new();
    wait_until("the process to end", || {
        clients.extend(crowd(system.address, 8, preface));
        clients.truncate(100);
        thread::sleep(Duration::from_millis(200));
        !system.pixel.runs()
    })?;
    println!("it ended after {:?}", started.elapsed());
    assert_eq!(system.pixel.wait()?, 1);
    assert!(system.pixel.log().contains("has answered nobody new for"), "{}", system.pixel.log());
    Ok(())
}
