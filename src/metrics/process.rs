//! What this process uses, by the names that Prometheus' client libraries share.

use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// The numbers of this process, read when they are asked for.
#[derive(Debug, Clone)]
pub struct ProcessNumbers {
    started_at: SystemTime,
}

impl Default for ProcessNumbers {
    fn default() -> Self {
        ProcessNumbers { started_at: SystemTime::now() }
    }
}

impl ProcessNumbers {
    /// When the program started, in Unix seconds. One that starts again in the same process begins anew.
    pub fn started_at_s(&self) -> f64 {
        self.started_at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }
}

impl Collector for ProcessNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = ConstCounter::new(used.tv_sec as f64 + used.tv_nsec as f64 / 1e9);
        let name = "process_cpu_seconds";
        let help = "Processor time that was used.";
        cpu.encode(encoder.encode_descriptor(name, help, None, cpu.metric_type())?)?;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let files = fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as f64);
        let files_max = getrlimit(Resource::Nofile).current.map(|most| most as f64);
        let memory = |name| number_of(&status, name).map(|kib| kib * 1024.0);
        for (name, help, value) in [
            ("process_open_fds", "Descriptors that are open.", files),
            ("process_max_fds", "Descriptors that may be open.", files_max),
            ("process_virtual_memory_bytes", "Memory that is reserved.", memory("VmSize:")),
            ("process_resident_memory_bytes", "Memory that is used.", memory("VmRSS:")),
            ("process_start_time_seconds", "When the program started.", Some(self.started_at_s())),
            ("process_threads", "Threads.", number_of(&status, "Threads:")),
        ] {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
            }
        }
        Ok(())
    }
}

/// The number behind `name` in what /proc/self/status says (proc(5)).
fn number_of(status: &str, name: &str) -> Option<f64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}
