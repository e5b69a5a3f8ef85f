//! What every visit costs: from request facts to its line of JSON, the spool's append by the size of
//! the group, and a batch of the recorder. `cargo bench`.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark that cannot start may end")]

use std::ffi::OsStr;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;
use pixel::disk::folder::RealFolder;
use pixel::health::Health;
use pixel::metrics::Metrics;
use pixel::output::{OutputFile, OutputLock, open_ledger};
use pixel::queue::VisitStore;
use pixel::record::{DeadLetter, Delivered, Inbox, InboxError, Recorder};
use pixel::spool::Spool;
use pixel::stop::Stop;
use pixel::visit::client_ip::TrustedProxies;
use pixel::visit::lines::{LineFormat, Numbered};
use pixel::visit::request::{Target, visit};
use pixel::visit::wire::{Origin, encode};
use uuid::Uuid;

const HEADERS: &[(&str, &str)] = &[
    ("Host", "px.example.com"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("Accept", "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"),
    ("Accept-Language", "en-US,en;q=0.5"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Referer", "https://www.example.com/articles/2026/11/a-page?utm_source=newsletter"),
    ("Connection", "keep-alive"),
    ("DNT", "1"),
];

fn append_line(lines: &mut Vec<u8>) {
    let peer = "192.0.2.7".parse().unwrap();
    let target = Target::parse("/track?campaign=spring&id=12345");
    let headers = HEADERS.iter().copied();
    encode(&visit(Timestamp::now(), peer, &TrustedProxies::default(), "GET", target, headers), lines);
}

fn facts_to_line(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("visit");
    group.bench_function("request facts to JSON", |bencher| {
        let mut lines = Vec::new();
        bencher.iter(|| {
            lines.clear();
            append_line(&mut lines);
            black_box(&lines);
        });
    });
    let mut json = Vec::new();
    append_line(&mut json);
    for format in [LineFormat::Pipe, LineFormat::Combined, LineFormat::Ndjson] {
        group.bench_function(format!("JSON to {format:?}"), |bencher| {
            let mut line = Vec::new();
            bencher.iter(|| {
                line.clear();
                let visit = serde_json::from_slice(&json).unwrap();
                format.write(Numbered { visit: &visit, number: Some((Uuid::nil(), 1)) }, &mut line);
                black_box(&line);
            });
        });
    }
}

fn spool_append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("durable spool append, by visits a group");
    group.measurement_time(Duration::from_secs(3));
    for visits in [1u32, 8, 32, 128, 256] {
        let folder = tempfile::tempdir_in(".").unwrap();
        let spool = Spool::open(folder.path(), 1, 64 << 30).unwrap();
        let mut lines = Vec::new();
        (0..visits).for_each(|_| append_line(&mut lines));
        group.throughput(Throughput::Elements(visits.into()));
        group.bench_with_input(BenchmarkId::from_parameter(visits), &visits, |bencher, visits| {
            bencher.iter(|| spool.append(&lines, *visits).unwrap());
        });
    }
}

/// Delivers one message again and again, each time as new visits, `batches` times.
struct Deliveries {
    body: Vec<u8>,
    visits: u64,
    next: u64,
    batches: u64,
    stop: Stop,
}

impl Inbox for Deliveries {
    fn receive(&mut self, _: Duration) -> Result<Vec<Delivered>, InboxError> {
        let origin = Origin::Spool { producer: Uuid::nil(), first: self.next, count: self.visits };
        self.next += self.visits;
        Ok(vec![Delivered { origin: Ok(origin), body: self.body.clone() }])
    }
    fn acknowledge(&mut self, _: &[DeadLetter<'_>]) -> Result<(), InboxError> {
        self.batches -= 1;
        if self.batches == 0 {
            self.stop.set();
        }
        Ok(())
    }
    fn address(&self) -> &str {
        "the benchmark"
    }
}

fn recorder_batch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("durable recorder batch, by visits");
    group.measurement_time(Duration::from_secs(3));
    for visits in [32u64, 512, 8192] {
        let folder = tempfile::tempdir_in(".").unwrap();
        let output = folder.path().join("visits.log");
        let (_, lock) =
            OutputLock::acquire(&[(Some(&output), &folder.path().join("lock"))], &Stop::default(), |_, _| {})
                .unwrap()
                .unwrap();
        let mut ledger = open_ledger(&folder.path().join("ledger")).unwrap();
        let target = Box::new(RealFolder::new(folder.path()));
        let name = OsStr::new("visits.log");
        let mut visit_log = OutputFile::new(target, name, Box::new(lock), LineFormat::Pipe);
        let (metrics, health) = (Metrics::default(), Health::default());
        let mut recorder = Recorder {
            format: LineFormat::Pipe,
            visit_log: &mut visit_log,
            ledger: &mut ledger,
            metrics: &metrics,
            health: &health,
        };
        let mut body = Vec::new();
        (0..visits).for_each(|_| append_line(&mut body));
        let mut inbox = Deliveries { body, visits, next: 1, batches: 0, stop: Stop::default() };
        group.throughput(Throughput::Elements(visits));
        group.bench_with_input(BenchmarkId::from_parameter(visits), &visits, |bencher, _| {
            bencher.iter_custom(|batches| {
                inbox.batches = batches;
                inbox.stop = Stop::default();
                let stop = inbox.stop.clone();
                let start = std::time::Instant::now();
                recorder.run(&mut inbox, &stop).unwrap();
                start.elapsed()
            });
        });
    }
}

criterion_group!(benches, facts_to_line, spool_append, recorder_batch);
criterion_main!(benches);
