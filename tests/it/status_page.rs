//! The status page in a real browser, and the same on a terminal.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::Outcome;
use crate::support::admin::Admin;
use crate::support::broker::Broker;
use crate::support::browser::Browser;
use crate::support::client::{Client, get};
use crate::support::fixtures::{Brokered, Embedded, all_programs};
use crate::support::launch::Launch;
use crate::support::wait::wait_until;

fn status(admin: Admin, host: &str) -> Outcome<Value> {
    let mut client = Client::connect(admin.address)?;
    client.send(format!("GET /status.json HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    Ok(serde_json::from_slice(&client.receive(true)?.body)?)
}

#[test]
fn the_status_page_allows_nothing_but_itself() -> Outcome {
    for (name, mut program) in all_programs()? {
        let admin = program.admin()?;
        let [one, other] = [get(admin.address, "/", &[])?, get(admin.address, "/", &[])?];
        let policy = one.header("Content-Security-Policy").ok_or("no policy")?;
        assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
        assert_ne!(Some(policy), other.header("Content-Security-Policy"), "a nonce is used once");
        let page = String::from_utf8(one.body.clone())?;
        assert!(
            !page.contains("NONCE") && !page.contains("http://") && !page.contains("innerHTML"),
            "{page}"
        );
        let state = status(admin, "localhost")?;
        assert_eq!(state["program"], name);
        assert_eq!(state["last_visits"], Value::Array(Vec::new()));
        assert_eq!(state["broker_state"].is_object(), name != "pixel");
        assert_eq!(state["output_state"].is_object(), name != "pixel-http");
        assert_eq!(state["pixel"].is_string(), name != "pixel-storage");
    }
    Ok(())
}

#[test]
fn the_status_has_the_last_visits_for_who_asks_by_address() -> Outcome {
    let broker = Broker::shared()?;
    let mut system = Brokered::start(&broker.url(), "last-visits")?;
    for number in 0..25 {
        assert_eq!(get(system.address, &format!("/track?n={number}"), &[])?.status, 200);
    }
    let programs = [system.http.admin()?, system.storage.admin()?];
    programs[1].wait_for_metric("pixel_visits_written_total", |written| written == 25.0)?;
    for admin in programs {
        let state = status(admin, &admin.address.to_string())?;
        let queries: Vec<&str> = state["last_visits"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|visit| visit["query"].as_str())
            .collect();
        let expected: Vec<String> = (5..25).rev().map(|number| format!("n={number}")).collect();
        assert_eq!(queries, expected);
        // A name that somebody else's DNS has made this machine's.
        let state = status(admin, "somebody.example.com")?;
        assert!(state["last_visits"].is_null(), "{state}");
    }
    system.stop_and_audit()
}

#[test]
fn status_prints_what_the_page_shows() -> Outcome {
    let mut system = Embedded::start()?;
    system.visit(&[("User-Agent", "curl/8 \u{1b}[2J"), ("Referer", "https://example.com/page")])?;
    let admin = system.pixel.admin()?;
    admin.wait_for_metric("pixel_spool_visits", |left| left == 0.0)?;
    let ask = Launch::new("pixel")?.argument("status").with("admin-listen", admin.address.to_string());
    let (code, stdout, stderr) = ask.run()?;
    assert_eq!(code, 0, "{stderr}");
    let lines: Vec<String> =
        stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in ["state ready", "taken 1", "written 1", "in the spool 0"] {
        assert!(lines.iter().any(|shown| shown == line), "{line} is not in\n{stdout}");
    }
    assert!(stdout.contains("https://example.com/page") && !stdout.contains('\u{1b}'), "{stdout}");
    let (code, stdout, _) = ask.clone().argument("--json").run()?;
    let state: Value = serde_json::from_str(&stdout)?;
    assert_eq!((code, &state["totals"]["written"]), (0, &Value::from(1)));
    let mut watch = ask.clone().argument("--watch").argument("--json").before("exec >&2").spawn()?;
    wait_until("two looks", || watch.log().lines().filter(|line| line.starts_with('{')).count() >= 2)?;
    system.pixel.stop()?;
    // Who watches a restart goes on watching.
    watch.wait_for_log("no answer from http://")?;
    assert!(watch.runs(), "{}", watch.log());
    watch.kill()?;
    let (code, _, stderr) = ask.run()?;
    assert!(code == 1 && stderr.contains("no answer from http://"), "{code} {stderr}");
    Ok(())
}

#[test]
fn in_a_browser_a_visit_appears_and_what_it_brings_does_no_harm() -> Outcome {
    let mut system = Embedded::start()?;
    let admin = system.pixel.admin()?;
    let hostile = "<script>document.title='harmed'</script><img src=x onerror=document.title='harmed'>";
    let visitor = Browser::start(hostile)?;
    let page = tempfile::tempdir()?;
    let path = page.path().join("page.html");
    let line = format!(
        "<img src=\"http://{}/track?from=a-page\" alt=\"\" width=\"1\" height=\"1\">",
        system.address
    );
    std::fs::write(&path, format!("<!doctype html><title>a page</title>{line}"))?;
    visitor.open(&format!("file://{}", path.display()))?;
    system.output.wait_for_lines(1)?;

    let operator = Browser::start("an operator")?;
    operator.open(&format!("http://{}/", admin.address))?;
    let shown = |script: &str| operator.run(&format!("return {script}"));
    wait_until("the visit on the page", || {
        shown("document.getElementById('last').rows.length").is_ok_and(|rows| rows == 1)
    })
    .map_err(|error| {
        format!("{error}; {:?} {:?}", shown("document.body.innerText"), operator.complaints())
    })?;
    let row = shown("[...document.getElementById('last').rows[0].cells].map(cell => cell.textContent)")?;
    assert_eq!((&row[1], &row[3], &row[4]), (&"127.0.0.1".into(), &hostile.into(), &"from=a-page".into()));
    assert_eq!(shown("document.querySelectorAll('#last script, #last img').length")?, 0);
    wait_until("the visit in the totals", || {
        shown("document.getElementById('totals').textContent")
            .is_ok_and(|totals| totals == "taken1refused0written1repetitions dropped0dead letters0")
    })?;
    assert_eq!(shown("document.title")?, "pixel");
    assert_eq!(shown("document.getElementById('state').textContent")?, "ready");
    let pasted = shown("document.getElementById('line').textContent")?;
    assert!(pasted.as_str().is_some_and(|line| line.contains(&format!("http://{}/track\"", system.address))));
    shown("document.getElementById('copy').click()")?;
    wait_until("that it was copied", || {
        shown("document.getElementById('copied').textContent").is_ok_and(|said| said == "Copied.")
    })?;
    // The policy holds against a script that gets in all the same.
    shown(
        "(() => { try { document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=1>') } catch (e) { return e.name } })()",
    )
    .map(|thrown| assert_eq!(thrown, "TypeError", "trusted types are required"))?;
    // Chromium asks for an icon by itself.
    let complaints = operator.complaints()?;
    let complaints: Vec<_> =
        complaints.iter().filter(|line| !line.contains("TrustedHTML") && !line.contains("favicon")).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    // One who is gone is told.
    system.pixel.stop()?;
    wait_until("that nobody answers", || {
        shown("document.getElementById('state').textContent")
            .is_ok_and(|said| said == "no answer: it may have ended")
    })
}

/// axe-core, which finds what keeps people out who cannot see a page or use a mouse.
const AXE: &str = "axe_playwright_python/axe.min.js";

/// Its script, where `tests/require-tools test` could bring it.
fn axe() -> Option<String> {
    let packages = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lint/lib")).ok()?;
    packages
        .flatten()
        .find_map(|python| fs::read_to_string(python.path().join("site-packages").join(AXE)).ok())
}

/// Visitors of all kinds, every few milliseconds, until they are dropped.
struct Visitors {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Where they come from, with what, and for what: long values and hostile ones among them.
const VISITORS: [(&str, &str, &str, &str); 5] = [
    (
        "203.0.113.9",
        "https://example.com/",
        "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "",
    ),
    (
        "2001:db8:85a3:8d3:1319:8a2e:370:7348",
        "https://news.example.org/2026/11/a-long-story",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1",
        "?campaign=spring",
    ),
    (
        "198.51.100.23",
        "",
        "curl/8.5.0",
        "?id=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
    ("192.0.2.44", "https://shop.example.net/cart", "<script>alert(1)</script>", "?from=mail"),
    ("2001:db8::17", "", "", ""),
];

impl Visitors {
    fn start(address: SocketAddr) -> Visitors {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let visit = move || -> Outcome {
            let mut client = Client::connect(address)?;
            for n in 0.. {
                let (ip, referrer, agent, query) = VISITORS[n % VISITORS.len()];
                let headers = [("X-Forwarded-For", ip), ("Referer", referrer), ("User-Agent", agent)];
                client.ask("GET", &format!("/track{query}"), &headers)?;
                // More at one time than at another.
                thread::sleep(Duration::from_millis(2 + (n as u64 / 500) % 5));
                if seen.load(Ordering::Relaxed) {
                    break;
                }
            }
            Ok(())
        };
        // A visit that fails is seen by what is missing on the page.
        let thread = thread::spawn(move || drop(visit()));
        Visitors { stop, thread: Some(thread) }
    }
}

impl Drop for Visitors {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What the page looks like in one state, on one screen.
struct View {
    name: &'static str,
    width: u32,
    scheme: &'static str,
}

const DESKTOP: u32 = 1200;
const PHONE: u32 = 390;
const PICTURE_HEIGHT_MAX: u32 = 1_800;

/// Looks at the page in each view: nothing is cut off, axe-core finds nothing, and the picture of it that is kept is
/// no larger than a page should load. With `UPDATE=1` the pictures are made anew; `make images` does so.
fn look(browser: &Browser, views: &[View]) -> Outcome {
    for View { name, width, scheme } in views {
        browser.resize(*width)?;
        browser.prefer(scheme)?;
        let widths = browser
            .run("const page = document.documentElement; return [page.scrollWidth, page.clientWidth]")?;
        assert_eq!(widths[0], widths[1], "{name}: it is wider than the screen");
        if let Some(axe) = axe() {
            let script = format!("{axe}; return axe.run().then(found => found.violations)");
            let found = browser.run(&script)?;
            assert_eq!(found, Value::Array(Vec::new()), "{name}");
        } else {
            println!("NOT TESTED: axe-core is not here; `tests/require-tools test` installs it");
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/images/status-{name}.png"));
        if std::env::var_os("UPDATE").is_some() {
            keep(&browser.picture(PICTURE_HEIGHT_MAX)?, &path)?;
        }
        let bytes = fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?.len();
        assert!(bytes < 100_000, "{name}: {bytes} bytes");
    }
    Ok(())
}

/// Keeps a picture, with no more colours than it needs.
fn keep(picture: &[u8], path: &Path) -> Outcome {
    fs::write(path, picture)?;
    let pngquant =
        Command::new("pngquant").args(["--force", "--strip", "--ext", ".png", "48"]).arg(path).status();
    if pngquant.map_err(|error| format!("pngquant: {error}"))?.success() {
        Ok(())
    } else {
        Err("pngquant".into())
    }
}

/// Waits until the page says so.
fn wait_for_text(browser: &Browser, id: &str, text: &str) -> Outcome {
    let script = format!("return document.getElementById('{id}').textContent");
    let is_said =
        || browser.run(&script).is_ok_and(|said| said.as_str().is_some_and(|said| said.contains(text)));
    wait_until(text, is_said).map_err(|error| format!("{error}; {:?}", browser.run(&script)).into())
}

/// How many seconds are in the plot before it is looked at: more where that is for people.
fn plotted_s() -> u64 {
    if std::env::var_os("UPDATE").is_some() { 60 } else { 2 }
}

#[test]
fn empty_and_under_load_light_and_dark_and_on_a_phone_it_can_be_read_by_everybody() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("trusted-proxies", "127.0.0.1"))?;
    let admin = system.pixel.admin()?;
    let browser = Browser::start("an operator")?;
    browser.resize(DESKTOP)?;
    browser.open(&format!("http://{}/", admin.address))?;
    wait_for_text(&browser, "state", "ready")?;
    look(&browser, &[View { name: "empty", width: DESKTOP, scheme: "light" }])?;
    let visitors = Visitors::start(system.address);
    let accepted = 50.0 * plotted_s() as f64;
    admin.wait_for_metric("pixel_visits_accepted_total", |taken| taken > accepted)?;
    wait_for_text(&browser, "last", "2001:db8::17")?;
    look(
        &browser,
        &[
            View { name: "light", width: DESKTOP, scheme: "light" },
            View { name: "dark", width: DESKTOP, scheme: "dark" },
            View { name: "phone", width: PHONE, scheme: "light" },
        ],
    )?;
    drop(visitors);
    system.stop_and_audit()
}

#[test]
fn with_the_broker_down_it_says_so_and_that_visits_wait() -> Outcome {
    let mut broker = Broker::start()?;
    let mut system = Brokered::start(&broker.url(), "pixel.visits")?;
    let browser = Browser::start("an operator")?;
    browser.resize(DESKTOP)?;
    browser.open(&format!("http://{}/", system.http.admin()?.address))?;
    wait_for_text(&browser, "broker", "connectedyes")?;
    let visitors = Visitors::start(system.address);
    wait_until("visits", || system.output.lines().len() as u64 > 100 * plotted_s())?;
    broker.nodes[0].kill()?;
    wait_for_text(&browser, "broker", "connectedno")?;
    wait_for_text(&browser, "state", "visits wait in the spool: ")?;
    let http = system.http.admin()?;
    http.wait_for_metric("pixel_spool_visits", |waiting| waiting > 50.0 * plotted_s() as f64)?;
    look(
        &browser,
        &[
            View { name: "broker-down", width: DESKTOP, scheme: "light" },
            View { name: "broker-down-phone", width: PHONE, scheme: "dark" },
        ],
    )?;
    drop(visitors);
    broker.nodes[0].start()?;
    wait_for_text(&browser, "broker", "connectedyes")?;
    system.stop_and_audit()
}

#[test]
fn it_can_be_used_with_a_keyboard_alone() -> Outcome {
    let mut system = Embedded::start()?;
    let browser = Browser::start("an operator")?;
    browser.open(&format!("http://{}/", system.pixel.admin()?.address))?;
    wait_for_text(&browser, "state", "ready")?;
    let (tab, enter) = ('\u{e004}', '\u{e007}');
    let mut reached = Vec::new();
    for _ in 0..2 {
        browser.press(tab)?;
        reached.push(browser.run("return document.activeElement.id")?);
    }
    assert_eq!(reached, ["line", "copy"]);
    let outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")?;
    assert_eq!(outline, "solid", "where it is, is seen");
    browser.press(enter)?;
    wait_for_text(&browser, "copied", "Copied.")?;
    system.stop_and_audit()
}
