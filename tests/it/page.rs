//! The page at `/`, and what a real browser sends when its lines are pasted.

use serde_json::Value;

use crate::Outcome;
use crate::support::broker::NOWHERE;
use crate::support::browser::Browser;
use crate::support::client::{Client, get};
use crate::support::fixtures::{Embedded, Services};
use crate::support::launch::Launch;

#[test]
fn the_page_has_the_line_to_paste_with_its_own_host_and_a_button_that_copies_it() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("privacy-url", "https://example.com/?a=1&b=2"))?;
    let browser = Browser::start("somebody")?;
    browser.open(&format!("http://{}/", system.address))?;
    let shown = |script: &str| browser.run(&format!("return {script}"));
    let line = format!(
        "<img src=\"http://{}/track\" alt=\"\" width=\"1\" height=\"1\" \
         referrerpolicy=\"no-referrer-when-downgrade\">",
        system.address
    );
    assert_eq!(shown("document.getElementById('line').textContent")?, line);
    assert_eq!(shown("document.body.innerText.includes('ORIGIN')")?, false);
    browser.click("#copy")?;
    assert_eq!(shown("document.getElementById('copy').textContent")?, "Copied");
    assert_eq!(shown("getSelection().toString()")?, line);
    assert_eq!(shown("document.links[0].href")?, "https://example.com/?a=1&b=2");
    let background = "getComputedStyle(document.body).backgroundColor";
    let light = shown(background)?;
    browser.prefer("dark")?;
    assert_ne!(shown(background)?, light, "it follows the machine");
    let complaints = browser.complaints()?;
    assert!(complaints.is_empty(), "{complaints:?}");
    drop(browser);
    system.pixel.stop()
}

#[test]
fn the_page_says_the_truth_about_the_query_and_shows_no_host_that_is_none() -> Outcome {
    let services = Services::new(NOWHERE, "nobody")?;
    for (launch, said) in [
        (Embedded::launch()?.with("format", "pipe"), "leave out what stands behind a question mark"),
        (Embedded::launch()?.with("path", "/p"), "is recorded, too: <code>/p?campaign=spring</code>."),
        (services.http, "is recorded, too: <code>/track?campaign=spring</code>; lines of the format"),
    ] {
        let mut program = launch.start()?;
        let address = program.address()?;
        let page = String::from_utf8(get(address, "/", &[])?.body)?;
        assert!(page.contains(said), "{said}: {page}");
        assert!(page.contains("src=\"https://px.example.com/"), "{page}");
        assert!(!page.contains("Privacy"), "{page}");
        let mut client = Client::connect(address)?;
        client.send(b"GET / HTTP/1.1\r\nHost: x\"><script>alert(1)</script>\r\n\r\n")?;
        let page = String::from_utf8(client.receive(true)?.body)?;
        assert!(!page.contains("alert"), "{page}");
        program.stop()?;
    }
    let (status, _, stderr) = Launch::new("pixel")?.with("privacy-url", "javascript:alert(1)").run()?;
    assert!(status == 2 && stderr.contains("--privacy-url (PIXEL_PRIVACY_URL) is `javascript:"), "{stderr}");
    Ok(())
}

/// A beacon of JSON never arrived: it goes with cookies, and the answer to its preflight allowed it to any page, which
/// browsers take for none then.
#[test]
fn beacons_and_lines_on_another_site_s_page_are_recorded() -> Outcome {
    let mut system = Embedded::start()?;
    // Any page of another origin that forbids nothing.
    let elsewhere = format!("http://{}/elsewhere?page", system.pixel.admin()?.address);
    let browser = Browser::start("a visitor")?;
    browser.open(&elsewhere)?;
    let track = format!("http://{}/track", system.address);
    for (n, (name, script)) in [
        ("json", "navigator.sendBeacon(t + '?json', new Blob(['{}'], {type: 'application/json'}))"),
        ("text", "navigator.sendBeacon(t + '?text', 'a')"),
        ("nothing", "navigator.sendBeacon(t + '?nothing')"),
        (
            "fetch",
            "fetch(t + '?fetch', {method: 'POST', keepalive: true, body: '{}', \
             headers: {'Content-Type': 'application/json'}}) && true",
        ),
        (
            "img",
            "Object.assign(document.body.appendChild(new Image()), \
             {referrerPolicy: 'no-referrer-when-downgrade', src: t + '?img'}) && true",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(browser.run(&format!("const t = '{track}'; return {script}"))?, true, "{name}");
        let visit = system
            .output
            .wait_for_visit(n + 1)
            .map_err(|error| format!("{name}: {error}, {:?}", browser.complaints()))?;
        assert_eq!(visit["query"], name);
        if name == "img" {
            assert_eq!(visit["referrer"], Value::from(elsewhere.as_str()), "the whole address");
        }
    }
    drop(browser);
    system.pixel.stop()
}
