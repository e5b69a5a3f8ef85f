//! nginx, Apache and HAProxy as people have them already, with the lines that docs/OPERATIONS.md tells them to add.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Socket, Type};

use crate::Outcome;
use crate::support::fixtures::Embedded;
use crate::support::port::free_address;
use crate::support::wait::wait_until;

/// What the document has in its block of this language, with this machine's addresses.
fn lines_of(language: &str, pixel: SocketAddr) -> Outcome<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/OPERATIONS.md"))?;
    let (_, rest) = document.split_once(&format!("```{language}\n")).ok_or("no such block")?;
    let (lines, _) = rest.split_once("```").ok_or("it does not end")?;
    assert!(lines.contains("127.0.0.1:8080"), "{lines}");
    Ok(lines.replace("127.0.0.1:8080", &pixel.to_string()))
}

/// Debian has servers outside the PATH of ordinary users.
fn server(name: &str) -> Command {
    let mut command = Command::new(format!("/usr/sbin/{name}"));
    command.stdout(Stdio::null());
    command
}

#[test]
fn nginx_with_the_lines_of_the_document_is_an_edge() -> Outcome {
    is_an_edge(12, |folder, address, pixel| {
        let lines = lines_of("nginx", pixel)?.replace("listen 80;", &format!("listen {address};"));
        let path = folder.join("nginx.conf");
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary =
            temporary.map(|kind| format!("{kind}_temp_path {}/{kind};\n", folder.display())).concat();
        fs::write(
            &path,
            format!(
                "daemon off;\nmaster_process off;\npid {0}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{lines}}}\n",
                folder.display()
            ),
        )?;
        Ok(server("nginx").arg("-c").arg(path).spawn()?)
    })
}

#[test]
fn apache_with_the_lines_of_the_document_is_an_edge() -> Outcome {
    is_an_edge(11, |folder, address, pixel| {
        let lines = lines_of("apache", pixel)?;
        let path = folder.join("apache.conf");
        let modules = ["mpm_event", "authz_core", "proxy", "proxy_http", "headers", "env", "reqtimeout"];
        let modules =
            modules.map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"));
        fs::write(
            &path,
            format!(
                "ServerRoot {0}\nPidFile {0}/pid\nDefaultRuntimeDir {0}\nServerName localhost\nErrorLog {0}/log\n{1}\
                 Listen {address}\n<VirtualHost {address}>\n{lines}</VirtualHost>\n",
                folder.display(),
                modules.concat()
            ),
        )?;
        Ok(server("apache2").arg("-D").arg("FOREGROUND").arg("-f").arg(path).spawn()?)
    })
}

#[test]
fn haproxy_with_the_lines_of_the_document_is_an_edge() -> Outcome {
    is_an_edge(11, |folder, address, pixel| {
        let path = folder.join("haproxy.cfg");
        fs::write(
            &path,
            format!(
                "frontend there\n    mode http\n    timeout http-request 10s\n    timeout client 30s\n    \
                 option http-buffer-request\n    bind {address}\n    default_backend pixel\n{}",
                lines_of("haproxy", pixel)?
            ),
        )?;
        Ok(server("haproxy").arg("-db").arg("-f").arg(path).spawn()?)
    })
}

/// A server that runs. It is ended by SIGTERM, at which it ends its children, too.
struct Server(Child);

impl Server {
    fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        // It may have ended already.
        let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
        let _ = wait_until("the server's end", || self.has_ended());
    }
}

/// How a server is started: in a folder of its own, on the address, in front of the other one.
type Start = fn(&Path, SocketAddr, SocketAddr) -> Outcome<Child>;

/// With as many of the rows below as it takes: a query outside ASCII, HAProxy refuses and Apache hands on.
fn is_an_edge(rows: usize, start: Start) -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("trusted-proxies", "127.0.0.1"))?;
    let (folder, address) = (tempfile::tempdir()?, free_address());
    let started = start(folder.path(), address, system.address);
    let mut server = Server(started.map_err(|error| format!("{error}; tests/require-packages installs it"))?);
    let is_up = || TcpStream::connect(address).is_ok();
    wait_until("the server to listen", || is_up() || server.has_ended())?;
    assert!(!server.has_ended(), "it ended");

    // Each row: what is sent beside the usual, and what is recorded.
    for (n, (case, target, header, field, value)) in [
        ("plain", "/track?x=1", "User-Agent: SomeUserAgent 1.2.3", "user_agent", "SomeUserAgent 1.2.3"),
        ("the query", "/track?x=1", "X: y", "query", "x=1"),
        ("the host", "/track", "X: y", "host", "px.example.com"),
        (
            "the referrer",
            "/track",
            "Referer: https://a.example/?b=%C5%BE",
            "referrer",
            "https://a.example/?b=%C5%BE",
        ),
        ("the language", "/track", "Accept-Language: de, en;q=0.5", "accept_language", "de, en;q=0.5"),
        ("a forged X-Forwarded-For", "/track", "X-Forwarded-For: 9.9.9.9", "ip", "127.0.0.2"),
        ("a forged Forwarded", "/track", "Forwarded: for=9.9.9.9", "ip", "127.0.0.2"),
        ("a forged one in quotes", "/track", "X-Forwarded-For: \"", "ip", "127.0.0.2"),
        ("a user agent outside ASCII", "/track", "User-Agent: Žižkov", "path", "/track"),
        ("a referrer outside ASCII", "/track", "Referer: http://ž/", "path", "/track"),
        ("a cookie outside ASCII", "/track", "Cookie: a=ž", "path", "/track"),
        ("a query outside ASCII", "/track?q=ž", "X: y", "path", "/track"),
    ]
    .into_iter()
    .take(rows)
    .enumerate()
    {
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: px.example.com\r\nConnection: close\r\n{header}\r\n\r\n");
        let answer = ask(address, request.as_bytes())?;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{case}: {answer}");
        let visit = system.output.wait_for_visit(n + 1)?;
        assert_eq!((&visit[field], &visit["ip"]), (&value.into(), &"127.0.0.2".into()), "{case}");
    }
    let visits = rows;

    // Twenty visits, one after the other: the connections to Pixel are kept.
    let before = established_to(system.address.port())?;
    for _ in 0..20 {
        let answer =
            ask(address, b"GET /track HTTP/1.1\r\nHost: px.example.com\r\nConnection: close\r\n\r\n")?;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let after = established_to(system.address.port())?;
    println!("connections to pixel: {before:?}, then {after:?}");
    assert!(
        !after.is_empty() && after.iter().any(|port| before.contains(port)),
        "{before:?}, then {after:?}"
    );

    // A hundred bodies that do not come hold none of them.
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut client = TcpStream::connect(address)?;
        client.write_all(b"POST /track?slow HTTP/1.1\r\nHost: h\r\nContent-Length: 2000\r\n\r\nx")?;
        slow.push(client);
    }
    for _ in 0..5 {
        let answer =
            ask(address, b"GET /track HTTP/1.1\r\nHost: px.example.com\r\nConnection: close\r\n\r\n")?;
        assert!(answer.starts_with("HTTP/1.1 200 "), "beside slow bodies: {answer}");
        std::thread::sleep(Duration::from_millis(300));
    }
    let held = established_to(system.address.port())?.len();
    assert!(held < 50, "{held} connections to pixel are held by slow bodies");
    drop(slow);
    // A whole body is a visit.
    let answer = ask(
        address,
        b"POST /track?beacon HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
    )?;
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    system.output.wait_for_lines(visits + 20 + 5 + 1)?;
    drop(server);
    system.pixel.stop()?;
    assert_eq!(system.output.lines().len(), visits + 20 + 5 + 1);
    Ok(())
}

/// Sends a request from 127.0.0.2, and reads until the connection closes.
fn ask(address: SocketAddr, request: &[u8]) -> Outcome<String> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into())?;
    socket.connect(&address.into())?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The local ports of the connections to a port of this machine that are open.
fn established_to(port: u16) -> Outcome<Vec<String>> {
    let table = fs::read_to_string("/proc/net/tcp")?;
    let remote = format!(":{port:04X}");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let open = rows.filter(|row| row.len() > 3 && row[2].ends_with(&remote) && row[3] == "01");
    Ok(open.map(|row| row[1].to_string()).collect())
}
