//! A real Prometheus.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::Outcome;
use super::port::free_address;
use super::wait::wait_until;

/// A file of the project's.
pub fn file(path: &str) -> Outcome<String> {
    Ok(std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))?)
}

/// One that scrapes every second, with the project's rules.
pub struct Prometheus {
    process: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that asks these admin listeners.
    pub fn start(targets: &[SocketAddr]) -> Outcome<Prometheus> {
        Self::start_with(targets, "")
    }

    /// The same, with more jobs, as in its file of settings.
    pub fn start_with(targets: &[SocketAddr], jobs: &str) -> Outcome<Prometheus> {
        let folder = tempfile::tempdir()?;
        let targets: Vec<String> = targets.iter().map(|target| format!("'{target}'")).collect();
        let config = file("deploy/prometheus/prometheus.yml")?
            .replace("15s", "1s")
            .replace("[pixel-http:8081, pixel-storage:8082]", &format!("[{}]", targets.join(", ")))
            + jobs;
        std::fs::write(folder.path().join("prometheus.yml"), config)?;
        // What lasts minutes there does so for seconds here, for a test's sake.
        let mut rules = file("deploy/prometheus/pixel.rules.yml")?;
        for (minutes, seconds) in [
            ("for: 2m", "for: 1s"),
            ("for: 10m", "for: 1s"),
            ("for: 1m", "for: 1s"),
            ("for: 1h", "for: 1s"),
            ("> 300", "> 3"),
            ("pixel_visits_accepted_total[30m]", "pixel_visits_accepted_total[4s]"),
            ("offset 1d", "offset 6s"),
        ] {
            assert!(rules.contains(minutes), "{minutes} is in no rule");
            rules = rules.replace(minutes, seconds);
        }
        std::fs::write(folder.path().join("pixel.rules.yml"), rules)?;
        Self::serve(folder, &[])
    }

    /// Starts one on the settings in `folder`, by the program and arguments of `starter`, if any.
    pub fn serve(folder: tempfile::TempDir, starter: &[String]) -> Outcome<Prometheus> {
        let address = free_address();
        let mut words = starter.iter().map(String::as_str).chain(["prometheus"]);
        let process = Command::new(words.next().unwrap_or_default())
            .args(words)
            .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--enable-feature=exemplar-storage")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("prometheus: {error}"))?;
        Ok(Prometheus { process, address, folder })
    }

    /// Waits until an alert fires.
    pub fn wait_for_alert(&self, name: &str) -> Outcome {
        let firing = format!("ALERTS{{alertname=\"{name}\",alertstate=\"firing\"}}");
        wait_until(name, || self.ask(&firing).is_ok_and(|alerts| !alerts.is_empty()))
            .map_err(|error| format!("{error}; firing: {:?}", self.ask("ALERTS")).into())
    }

    /// Checks that an alert neither fires nor is about to, where there are numbers to tell by.
    pub fn is_quiet(&self, name: &str) -> Outcome {
        wait_until("every target", || self.ask("min(up)").is_ok_and(|up| up == [1.0]))?;
        let alerts = self.ask(&format!("ALERTS{{alertname=\"{name}\"}}"))?;
        if alerts.is_empty() { Ok(()) } else { Err(format!("{name} fires already").into()) }
    }

    /// What it answers at `path`.
    pub fn get(&self, path: &str) -> Outcome<Value> {
        // What is long comes in chunks.
        let output =
            Command::new("curl").args(["-sS", &format!("http://{}{path}", self.address)]).output()?;
        serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    /// The values that a query has right now.
    pub fn ask(&self, query: &str) -> Outcome<Vec<f64>> {
        let query = percent_encoding::utf8_percent_encode(query, percent_encoding::NON_ALPHANUMERIC);
        let answer = self.get(&format!("/api/v1/query?query={query}"))?;
        let result = answer["data"]["result"].as_array().ok_or_else(|| format!("{query}: {answer}"))?;
        Ok(result.iter().filter_map(|row| row["value"][1].as_str()?.parse().ok()).collect())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = &self.folder;
    }
}
