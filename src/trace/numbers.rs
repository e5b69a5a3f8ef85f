//! The program's numbers on their way to a receiver of OTLP: the same that `/metrics` shows, by the same names.

use std::io::Write;
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use prost::Message;

use super::address::Address;
use super::complaint::Complaint;
use super::exposition::{Times, request};
use super::resource::resource;

/// The most that is read of a receiver's answer, in bytes: it says nothing that matters.
const ANSWER_MAX_BYTES: u64 = 64 << 10;

/// Where numbers go, and how often.
#[derive(Debug, Clone)]
pub struct Numbers {
    pub(super) address: Address,
    pub(super) every: Duration,
    pub(super) is_named: bool,
}

impl Numbers {
    /// Sends what `numbers` says, as OpenMetrics text, now and then until `wait` says that it is over, and once more
    /// then. What cannot be sent is said in the log; the next time there is all of it again.
    pub fn run(&self, program: &'static str, numbers: impl Fn() -> String, wait: impl Fn(Duration) -> bool) {
        let attributes = ResourceAttributesWithSchema::from(&resource(program, self.is_named)).attributes.0;
        let since = SystemTime::now();
        let complaint = Complaint::default();
        loop {
            let is_over = wait(self.every);
            let times = Times { since, now: SystemTime::now() };
            let body = request(&numbers(), &attributes, times).encode_to_vec();
            let shown = &self.address.shown;
            match self.send(&body) {
                Ok(()) if complaint.is_over() => log::info!("{shown} takes metrics again"),
                Err(error) if complaint.is_due() => {
                    log::warn!("failed to send metrics to {shown}: {error}; trying again");
                }
                _ => {}
            }
            if is_over {
                return;
            }
        }
    }

    fn send(&self, body: &[u8]) -> Result<(), String> {
        let mut request = self.address.agent.post(&self.address.url);
        for (name, value) in &self.address.headers {
            request = request.header(name, value);
        }
        request = request.header("Content-Type", "application/x-protobuf");
        let sent = if self.address.is_compressed {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
            let compressed = gzip.write_all(body).and_then(|()| gzip.finish());
            let compressed = compressed.map_err(|error| error.to_string())?;
            request.header("Content-Encoding", "gzip").send(&compressed)
        } else {
            request.send(body)
        };
        let mut answer = sent.map_err(|error| error.to_string())?;
        let read = answer.body_mut().with_config().limit(ANSWER_MAX_BYTES).read_to_vec();
        read.map_err(|error| error.to_string())?;
        if answer.status().is_success() { Ok(()) } else { Err(format!("it answers {}", answer.status())) }
    }
}
