//! A real Chromium without a window, driven by WebDriver (W3C) through Debian's chromedriver.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use super::Outcome;
use super::client::Client;
use super::port::free_address;
use super::wait::wait_until;

/// A browser with one page.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts one that calls itself `user_agent` to every site.
    pub fn start(user_agent: &str) -> Outcome<Browser> {
        let address = free_address();
        let profile = tempfile::tempdir()?;
        let driver = Command::new("chromedriver")
            .arg(format!("--port={}", address.port()))
            .env("HOME", profile.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("chromedriver: {error}"))?;
        let mut browser = Browser { driver, address, session: String::new(), _profile: profile };
        wait_until("chromedriver", || Client::connect(address).is_ok())?;
        let folder = browser._profile.path().join("profile");
        // As root, Chromium has no sandbox of its own.
        let arguments = json!([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            format!("--user-data-dir={}", folder.display()),
            format!("--user-agent={user_agent}"),
        ]);
        let wanted = json!({
            "capabilities": {"alwaysMatch": {
                "goog:chromeOptions": {"args": arguments},
                "goog:loggingPrefs": {"browser": "ALL"},
            }}
        });
        let session = browser.ask("POST", "", &wanted)?;
        browser.session = format!("/{}", session["sessionId"].as_str().ok_or("no session")?);
        Ok(browser)
    }

    /// Opens a page, and returns when it is loaded.
    pub fn open(&self, url: &str) -> Outcome {
        self.ask("POST", "/url", &json!({ "url": url })).map(drop)
    }

    /// What a script returns in the page.
    pub fn run(&self, script: &str) -> Outcome<Value> {
        self.ask("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Clicks on the element that `selector` finds, as a person does.
    pub fn click(&self, selector: &str) -> Outcome {
        let found = self.ask("POST", "/element", &json!({"using": "css selector", "value": selector}))?;
        let element =
            found.as_object().and_then(|found| found.values().next()?.as_str()).ok_or("no element")?;
        self.ask("POST", &format!("/element/{element}/click"), &json!({})).map(drop)
    }

    /// Has pages look as on a machine that is set to this: `light` or `dark`.
    pub fn prefer(&self, scheme: &str) -> Outcome {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.command("Emulation.setEmulatedMedia", json!({ "features": features })).map(drop)
    }

    /// Has pages look as on a screen of this width, in CSS pixels; up to 600 it is a phone's.
    pub fn resize(&self, width: u32) -> Outcome {
        let screen = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width <= 600});
        self.command("Emulation.setDeviceMetricsOverride", screen).map(drop)
    }

    /// Presses a key, by WebDriver's code for it.
    pub fn press(&self, key: char) -> Outcome {
        let strokes = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
        let keyboard = json!({"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]});
        self.ask("POST", "/actions", &keyboard).map(drop)
    }

    /// The page as it looks, a PNG, down to `height_max` CSS pixels.
    pub fn picture(&self, height_max: u32) -> Outcome<Vec<u8>> {
        let page =
            self.run("const page = document.documentElement; return [page.clientWidth, page.scrollHeight]")?;
        let height = page[1].as_u64().ok_or("no height")?.min(height_max.into());
        let clip = json!({"x": 0, "y": 0, "width": page[0], "height": height, "scale": 1});
        let parameters = json!({"captureBeyondViewport": true, "clip": clip});
        let picture = self.command("Page.captureScreenshot", parameters)?;
        Ok(BASE64_STANDARD.decode(picture["data"].as_str().ok_or("no picture")?)?)
    }

    /// A command of Chromium's own protocol.
    fn command(&self, name: &str, parameters: Value) -> Outcome<Value> {
        self.ask("POST", "/goog/cdp/execute", &json!({"cmd": name, "params": parameters}))
    }

    /// What the page has complained about: errors, and what its policy forbade.
    pub fn complaints(&self) -> Outcome<Vec<String>> {
        let log = self.ask("POST", "/se/log", &json!({"type": "browser"}))?;
        let lines = log.as_array().into_iter().flatten();
        Ok(lines.filter_map(|line| Some(line["message"].as_str()?.to_string())).collect())
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Outcome<Value> {
        let body = body.to_string();
        let mut client = Client::connect(self.address)?;
        client.stream().set_read_timeout(Some(std::time::Duration::from_secs(60)))?;
        let head = format!(
            "{method} /session{}{path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.session,
            self.address,
            body.len()
        );
        client.send((head + &body).as_bytes())?;
        let answer = client.receive(true)?;
        let value: Value = serde_json::from_slice(&answer.body)?;
        match answer.status {
            200 => Ok(value["value"].clone()),
            status => Err(format!("chromedriver {path}: {status} {value}").into()),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium ends with its session.
        let _ = self.ask("DELETE", "", &json!({}));
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
