//! `pixel tail` and `pixel report`: what people see of the output.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use pixel::visit::lines::LineFormat;

use crate::Outcome;
use crate::support::fixtures::Embedded;
use crate::support::launch::Launch;
use crate::support::output::Output;
use crate::support::port::free_address;
use crate::support::shell::{Beside, shell};
use crate::support::visits::{lines_as, varied};
use crate::support::wait::wait_until;

/// A poll sees the last of several names, and a batch may be on its way to a file that has lost its name.
#[test]
fn tail_shows_each_visit_once_whoever_rotates_the_output() -> Outcome {
    let system = Embedded::start()?;
    let output = system.output.clone();
    wait_until("the output", || output.path.exists())?;
    let seen = Output::at(system.pixel.launch.folder().join("seen"));
    let mut tail = Command::new(env!("CARGO_BIN_EXE_pixel"));
    tail.args(["tail", "--json", "--output"]).arg(&output.path).stdout(File::create(&seen.path)?);
    let _tail = Beside::start(&mut tail)?;
    system.visit(&[])?;
    wait_until("tail to show a visit", || !seen.lines().is_empty())?;
    let load = system.load(4);
    for n in 0..9 {
        load.wait_for(60)?;
        wait_until("the output", || output.path.exists())?;
        let old = output.beside(&format!(".{n}"));
        match n % 3 {
            // At once again, so that a name comes and goes between two looks.
            0 => {
                fs::rename(&output.path, &old)?;
                wait_until("a new file", || output.lines().len() > 2)?;
                fs::rename(&output.path, output.beside(&format!(".{n}0")))?;
            }
            1 => {
                fs::rename(&output.path, &old)?;
                wait_until("a new file", || output.path.exists())?;
                let all = output.lines_of_all()?.len() - output.lines().len();
                wait_until("tail to have shown what is compressed", || seen.lines().len() >= all)?;
                shell(output.folder()?, "flock $0 gzip $0", &old.to_string_lossy())?;
            }
            _ => {
                let _reader = output.hold_writer_up()?;
                let shown = output.lines().len();
                fs::copy(&output.path, &old)?;
                let all = output.lines_of_all()?.len() - shown;
                wait_until("tail to have shown what is copied", || seen.lines().len() >= all)?;
                OpenOptions::new().write(true).open(&output.path)?.set_len(0)?;
            }
        }
    }
    load.wait_for(60)?;
    let promised = load.stop().promised;
    output.all_have_each_once(&promised).map_err(|error| format!("the files: {error}"))?;
    Ok(seen.has_each_once(&promised).map_err(|error| format!("tail: {error}"))?)
}

fn tail(launch: &Launch, arguments: &[&str]) -> Outcome<(i32, String, String)> {
    let launch = launch.clone().argument("tail").argument("--no-follow");
    arguments.iter().fold(launch, |launch, argument| launch.argument(argument)).run()
}

#[test]
fn tail_shows_what_is_asked_for_and_from_when_on() -> Outcome {
    let launch = Launch::new("pixel")?;
    let line =
        |time: &str, agent: &str, ip: &str| format!("2026-11-23T{time}:00.0000000Z|null|{agent}|{ip}\n");
    let old = [line("10:00", "curl/8", "1.1.1.1"), line("11:00", "wget", "2.2.2.2")].concat();
    fs::write(launch.folder().join("visits-2026-11-23T10.log"), old)?;
    shell(launch.folder(), "gzip visits-2026-11-23T10.log", "")?;
    fs::write(launch.folder().join("visits.log.1"), line("12:00", "curl/8", "3.3.3.3"))?;
    let live = [
        &line("13:00", "wget", "4.4.4.4"),
        "a line of others\n",
        &line("14:00", "curl/7", "5.5.5.5"),
        "torn",
    ];
    fs::write(launch.folder().join("visits.log"), live.concat())?;
    let last = |text: &str| -> Vec<String> {
        let agent_and_ip = |line: &str| line.split_whitespace().nth(1).unwrap_or_default().to_string();
        text.lines().map(agent_and_ip).collect()
    };
    for (arguments, addresses) in [
        (&[][..], &["4.4.4.4", "5.5.5.5"][..]),
        (&["--since", "2026-11-23T10:30:00Z"], &["2.2.2.2", "3.3.3.3", "4.4.4.4", "5.5.5.5"]),
        (&["--since", "2026-11-23T12:30:00Z", "--grep", "user_agent=^curl"], &["5.5.5.5"]),
        (
            &["--since", "2026-11-23T00:00:00Z", "--grep", "user_agent=^curl", "--grep", "ip=^[13]"],
            &["1.1.1.1", "3.3.3.3"],
        ),
        (&["--grep", "query=x"], &[]),
    ] {
        let (status, shown, said) = tail(&launch, arguments)?;
        assert_eq!(
            (status, last(&shown)),
            (0, addresses.iter().map(|ip| ip.to_string()).collect()),
            "{arguments:?} {said}"
        );
        assert!(!shown.contains('\x1b'), "no colours where no terminal is");
    }
    let (_, shown, _) = tail(&launch, &["--json", "--grep", "ip=4"])?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    assert_eq!((&shown["user_agent"], &shown["schema"]), (&"wget".into(), &2.into()));
    for (arguments, problem) in [
        (["--since", "yesterday"], "--since is `yesterday`: expected a time such as"),
        (["--grep", "curl"], "--grep is `curl`: expected FIELD=REGEX, with a field of received_at, ip"),
        (["--grep", "agent=curl"], "--grep is `agent=curl`: expected FIELD=REGEX"),
        (["--grep", "ip=("], "--grep is `ip=(`: regex parse error"),
    ] {
        let (status, _, said) = tail(&launch, &arguments)?;
        assert!(status == 2 && said.contains(problem), "{arguments:?}: {status} {said}");
    }
    Ok(())
}

#[test]
fn tail_is_aligned_and_in_colour_on_a_terminal() -> Outcome {
    let launch = Launch::new("pixel")?;
    fs::write(launch.folder().join("visits.log"), "2026-11-23T10:00:00.0000000Z|null|curl/8|1.1.1.1\n")?;
    // script(1) gives it a terminal.
    let command = format!("{} tail --no-follow --output visits.log", env!("CARGO_BIN_EXE_pixel"));
    let shown =
        Command::new("script").args(["-qec", &command, "/dev/null"]).current_dir(launch.folder()).output()?;
    let shown = String::from_utf8(shown.stdout)?;
    assert!(shown.contains("\x1b[36m1.1.1.1\x1b[0m          \x1b[32m-\x1b[0m"), "{shown:?}");
    Ok(())
}

/// Hostile visits among them were entries that GoAccess could not read, or counted as others.
#[test]
fn a_report_counts_10000_valid_and_0_failed_in_each_format() -> Outcome {
    let launch = Launch::new("pixel")?;
    let visits = varied(10_000);
    for (name, format) in [
        ("pipe", LineFormat::Pipe),
        ("combined", LineFormat::Combined),
        ("vcombined", LineFormat::Vcombined),
        ("ndjson", LineFormat::Ndjson),
    ] {
        fs::write(launch.folder().join("visits"), lines_as(format, &visits))?;
        let report =
            launch.clone().argument("report").argument("--report").argument("report.json").argument("visits");
        let (status, stdout, stderr) = report.run()?;
        assert_eq!((status, stdout.trim()), (0, "10000 visits in `report.json`"), "{name}: {stderr}");
        let report: serde_json::Value =
            serde_json::from_slice(&fs::read(launch.folder().join("report.json"))?)?;
        let general = &report["general"];
        println!("{name}: {general}");
        assert_eq!(
            (&general["total_requests"], &general["valid_requests"], &general["failed_requests"]),
            (&10_000.into(), &10_000.into(), &0.into()),
            "{name}"
        );
        let pages = report["requests"]["data"].to_string();
        assert!(
            pages.contains("\"/a\"") && (pages.contains("\"/track\"") || name == "pipe"),
            "{name}: {pages}"
        );
        let campaigns = report["referring_sites"]["data"].to_string();
        assert_eq!(campaigns.contains("\"mail\""), name != "pipe", "{name}: {campaigns}");
        // What logs hold in this format GoAccess reads by itself, too.
        let native = match name {
            "combined" => "COMBINED",
            "vcombined" => "VCOMBINED",
            _ => continue,
        };
        let arguments =
            ["visits", &format!("--log-format={native}"), "--no-global-config", "--output=native.json"];
        let goaccess = Command::new("goaccess")
            .args(arguments)
            .current_dir(launch.folder())
            .stdin(Stdio::null())
            .output()?;
        let native: serde_json::Value =
            serde_json::from_slice(&fs::read(launch.folder().join("native.json"))?)?;
        let said = String::from_utf8_lossy(&goaccess.stderr);
        assert_eq!(
            (&native["general"]["valid_requests"], &native["general"]["failed_requests"]),
            (&10_000.into(), &0.into()),
            "{name}: {said}"
        );
    }
    Ok(())
}

/// Browsers that have the report open are told of each visit as it is written, across rotations, and the end of it is
/// GoAccess' end, too.
#[test]
fn a_live_report_goes_on_with_what_is_written() -> Outcome {
    let system = Embedded::with(|launch| launch.with("format", "pipe").with("rotate-bytes", "1"))?;
    let (output, address) = (system.output.clone(), free_address());
    system.visit(&[])?;
    system.visit(&[])?;
    wait_until("two files", || output.lines_with_rotated().is_ok_and(|lines| lines.len() == 2))?;
    let launch = Launch::new("pixel")?.argument("report").argument("--live").argument(&address.to_string());
    let page = launch.folder().join("report.html");
    let mut report = launch.with("output", &output.path).spawn()?;
    let told = |visits: usize| {
        wait_until(&format!("{visits} visits in the report"), || {
            told_by_goaccess(address)
                .is_ok_and(|told| told.contains(&format!("\"valid_requests\": {visits},")))
        })
    };
    told(2).map_err(|error| format!("{error}: {}", report.log()))?;
    for visits in 3..=5 {
        system.visit(&[])?;
        told(visits)?;
    }
    assert!(fs::read_to_string(page)?.contains(&address.port().to_string()));
    report.stop()?;
    wait_until("GoAccess to end", || TcpStream::connect(address).is_err())?;
    let bad = Launch::new("pixel")?.argument("report").argument("--live").argument("1:1");
    let (status, _, said) = bad.run()?;
    assert!(status == 2 && said.contains("--live"), "{status}: {said}");
    system.stop_and_audit()
}

/// It hung for ever where the output could not be followed, and where GoAccess had ended and no visit came.
#[test]
fn a_live_report_ends_with_what_is_wrong() -> Outcome {
    let launch = Launch::new("pixel")?.argument("report").argument("--live").argument("127.0.0.1:1");
    let programs = launch.folder().join("programs");
    fs::create_dir(&programs)?;
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let launch = launch.variable("PATH", &path);
    for (goaccess, output, told) in [
        // As GoAccess does, it goes on when nobody writes any more.
        (
            "trap 'exit 0' TERM; cat > /dev/null; while :; do sleep 0.1; done",
            "programs/goaccess/visits.log",
            "Not a directory",
        ),
        ("echo no port >&2; exit 3", "visits.log", "goaccess ended with exit status: 3: no port"),
        ("exit 0", "visits.log", "goaccess has ended"),
    ] {
        let script = programs.join("goaccess");
        fs::write(&script, format!("#!/bin/sh\n{goaccess}\n"))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let mut report = launch.clone().with("output", launch.folder().join(output)).spawn()?;
        let status = report.wait()?;
        wait_until("its last words", || report.log().contains(told))
            .map_err(|error| format!("{error}: {status} {}", report.log()))?;
        assert_eq!(status, 1, "{goaccess}");
    }
    Ok(())
}

/// The first message of GoAccess to a browser that has just opened the report (RFC 6455).
fn told_by_goaccess(address: SocketAddr) -> Outcome<String> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        socket,
        "GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )?;
    let (mut told, mut piece) = (Vec::new(), [0; 4096]);
    while !told.windows(15).any(|word| word == b"failed_requests") {
        match socket.read(&mut piece)? {
            0 => return Err("it says nothing".into()),
            read => told.extend_from_slice(&piece[..read]),
        }
    }
    Ok(String::from_utf8_lossy(&told).into_owned())
}

#[test]
fn a_report_says_what_is_missing() -> Outcome {
    let launch = Launch::new("pixel")?;
    let report = |launch: &Launch, arguments: &[&str]| {
        let launch = launch.clone().argument("report");
        arguments.iter().fold(launch, |launch, argument| launch.argument(argument)).run()
    };
    let (status, _, said) = report(&launch, &[])?;
    assert!(status == 1 && said.contains("visits.log`: name a file of visits"), "{status} {said}");
    let good = "2026-11-23T10:00:00.0000000Z|https://example.com/a|curl/8|1.1.1.1\n";
    fs::write(launch.folder().join("visits.log"), format!("{good}a line of others\n{good}"))?;
    fs::write(launch.folder().join("visits-2026-11-23T09.log"), good)?;
    let (status, stdout, said) = report(&launch, &[])?;
    assert_eq!((status, stdout.trim()), (0, "3 visits in `report.html`"), "{said}");
    assert!(said.contains("left out: ") && said.contains("visits.log:2: it has 1 fields"), "{said}");
    let page = fs::read_to_string(launch.folder().join("report.html"))?;
    assert!(page.contains("goaccess"), "{} bytes", page.len());
    let (status, _, said) = report(&launch, &["absent"])?;
    assert!(status == 1 && said.contains("failed to read `absent`: No such file"), "{status} {said}");
    let (status, _, said) = report(&launch, &["--report", "x.pdf"])?;
    assert!(
        status == 2 && said.contains("--report is `x.pdf`: expected a file that ends in"),
        "{status} {said}"
    );
    let (status, _, said) = report(&launch.variable("PATH", "/nowhere"), &[])?;
    assert!(status == 1 && said.contains("apt-get install goaccess"), "{status} {said}");
    Ok(())
}

/// Every command of the document prints what the document says.
#[test]
fn the_commands_of_the_formats_document_print_what_it_says() -> Outcome {
    let root = env!("CARGO_MANIFEST_DIR");
    let document = fs::read_to_string(format!("{root}/docs/FORMATS.md"))?;
    let launch = Launch::new("pixel")?;
    let own = std::path::Path::new(env!("CARGO_BIN_EXE_pixel")).parent().ok_or("no folder")?;
    let path = format!("{}:{root}/target/lint/bin:{}", own.display(), std::env::var("PATH")?);
    let has = |module: &str| {
        let import =
            Command::new("python3").env("PATH", &path).args(["-c", &format!("import {module}")]).output();
        import.is_ok_and(|import| import.status.success())
    };
    let absent: Vec<&str> = ["duckdb", "chdb"].into_iter().filter(|module| !has(module)).collect();
    let mut commands = 0;
    let blocks: Vec<&str> = document.split("```").collect();
    for (at, block) in blocks.iter().enumerate() {
        if let Some(lines) = block.strip_prefix("json\n") {
            fs::write(launch.folder().join("visits.ndjson"), lines)?;
        }
        let Some(command) = block.strip_prefix("sh\n") else { continue };
        if let Some(module) = absent.iter().find(|module| command.contains(**module)) {
            println!("NOT TESTED: {module} is not here; `tests/require-tools test` installs it");
            continue;
        }
        let shell = Command::new("sh")
            .args(["-c", command])
            .env("PATH", &path)
            .current_dir(launch.folder())
            .output()?;
        let expected =
            blocks.get(at + 2).and_then(|block| block.strip_prefix("text\n")).ok_or("no answer")?;
        let said = String::from_utf8_lossy(&shell.stderr);
        assert_eq!(String::from_utf8_lossy(&shell.stdout), expected, "{command}{said}");
        commands += 1;
    }
    assert!(commands >= 8, "{commands}");
    Ok(())
}
