//! The admin listener of a program, as operators and their monitoring ask it.

use std::net::SocketAddr;

use super::Outcome;
use super::client::get;
use super::wait::wait_until;

/// The listener at an address.
#[derive(Debug, Clone, Copy)]
pub struct Admin {
    pub address: SocketAddr,
}

impl Admin {
    /// The value of a metric without labels.
    pub fn metric(self, name: &str) -> Outcome<f64> {
        let text = String::from_utf8(get(self.address, "/metrics", &[])?.body)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.ok_or_else(|| format!("no {name} in\n{text}"))?.parse()?)
    }

    /// Waits until the value of a metric is as wanted.
    pub fn wait_for_metric(self, name: &str, is_wanted: impl Fn(f64) -> bool) -> Outcome {
        wait_until(name, || self.metric(name).is_ok_and(&is_wanted))
            .map_err(|error| format!("{error}; it is {:?}", self.metric(name)).into())
    }

    /// What `/readyz` says.
    pub fn readiness(self) -> Outcome<(u16, String)> {
        let answer = get(self.address, "/readyz", &[])?;
        Ok((answer.status, String::from_utf8(answer.body)?))
    }

    /// Waits until the program is ready.
    pub fn wait_until_ready(self) -> Outcome {
        wait_until("a ready program", || self.readiness().is_ok_and(|(status, _)| status == 200))
    }

    /// Waits until the program is not ready.
    pub fn wait_until_unready(self) -> Outcome {
        wait_until("an unready program", || self.readiness().is_ok_and(|(status, _)| status == 503))
    }
}
