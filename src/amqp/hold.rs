//! Which output holds a queue: noted at the broker, where every pixel-storage sees it, so that two outputs do not share
//! a queue unnoticed.
//!
//! The note is the exchange `<queue>.held`, to which nobody publishes: its `alternate-exchange` names the output.
//! RabbitMQ keeps that with its definitions, durably and on every node of a cluster, has the first who asks make it, and
//! refuses who asks for another value (406), with the value that there is. So one round trip makes the note or proves
//! it, and there is no message that could be lost. (A refusal has 252 bytes: of a long path not all is told.)

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use amiquip::{AmqpValue, Channel, Connection, Error, ExchangeDeclareOptions, ExchangeType, FieldTable};
use uuid::Uuid;

use super::topology::{ACCESS_REFUSED, PRECONDITION_FAILED};
use crate::disk::sibling;

const ARGUMENT: &str = "alternate-exchange";
/// What stands in a refusal in front of the value that there is.
const CURRENT: &str = "current is the value '";
/// How many times somebody else's note is replaced: others may do the same.
const TRIES: usize = 3;

/// An output, as the note names it.
#[derive(Debug, Clone)]
pub struct OutputName {
    /// Its ledger's UUID.
    pub id: Uuid,
    /// The path of the output, or of what stands for it where its state is.
    pub path: PathBuf,
    /// Whether it may take the queue from another output, the first time that it gets it.
    pub takes_over: bool,
}

/// The hold of an output on a queue. Clones share whether it has taken the queue over.
#[derive(Debug, Clone)]
pub(super) struct Hold {
    queue: String,
    exchange: String,
    output: OutputName,
    machine: String,
    may_take: Arc<AtomicBool>,
    // Whether there is a note: the user may not be permitted to make one.
    is_kept: Arc<AtomicBool>,
}

/// Whose a hold is, as far as the broker tells.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    id: String,
    machine: String,
    path: String,
    // It has let go of the queue with everything acknowledged.
    has_left: bool,
    is_whole: bool,
}

impl Hold {
    pub(super) fn new(queue: &str, output: OutputName) -> Self {
        let may_take = Arc::new(AtomicBool::new(output.takes_over));
        let (exchange, machine) = (held(queue), machine());
        Hold {
            queue: queue.into(),
            exchange,
            output,
            machine,
            may_take,
            is_kept: Arc::new(AtomicBool::new(true)),
        }
    }

    fn value(&self, has_left: bool) -> String {
        let (mark, id) = (if has_left { "-" } else { "" }, short(self.output.id));
        format!("{} {mark}{id} {} {}", self.exchange, self.machine, self.output.path.display())
    }

    /// Makes it, or finds it made; the inner error says which output has the queue. Takes the queue over where that
    /// may be.
    pub(super) fn make(&self, connection: &mut Connection) -> amiquip::Result<Result<(), String>> {
        let mut holder = None;
        for _ in 0..TRIES {
            // A refusal closes the channel that it comes on.
            let channel = connection.open_channel(None)?;
            match self.declare(&channel, Some(self.value(false))) {
                Ok(()) => {
                    self.may_take.store(false, Ordering::Relaxed);
                    return channel.close().map(Ok);
                }
                Err(Error::ServerClosedChannel { code: PRECONDITION_FAILED, .. }) => {}
                Err(Error::ServerClosedChannel { code: ACCESS_REFUSED, message, .. }) => {
                    log::warn!(
                        "it cannot be noted which output has the queue, so that another may share its visits unnoticed: {message}"
                    );
                    self.is_kept.store(false, Ordering::Relaxed);
                    return Ok(Ok(()));
                }
                Err(error) => return Err(error),
            }
            if let Some(found) = self.holder(connection)? {
                let Some(reason) = self.reason_to_replace(&found) else {
                    return Ok(Err(self.refusal(&found)));
                };
                if !reason.is_empty() {
                    log::warn!(
                        "taking over the queue {} from {found}: {reason}. `pixel audit` of both outputs tells what is in both",
                        self.queue
                    );
                }
                holder = Some(found);
            }
            connection.open_channel(None)?.exchange_delete(&self.exchange, false)?;
        }
        Ok(Err(holder.map(|holder| self.refusal(&holder)).unwrap_or_default()))
    }

    /// Why somebody else's note may be replaced; an empty text where it is this output's own.
    fn reason_to_replace(&self, holder: &Holder) -> Option<&'static str> {
        let is_here = holder.is_whole && holder.machine == self.machine;
        let is_gone = || !sibling(Path::new(&holder.path), "ledger").exists();
        match () {
            () if holder.id == short(self.output.id) => Some(""),
            () if self.may_take.load(Ordering::Relaxed) => Some("PIXEL_TAKEOVER says so"),
            () if is_here && holder.has_left => Some("it has let go of it"),
            () if is_here && Path::new(&holder.path) == self.output.path => Some("its ledger was removed"),
            () if is_here && is_gone() => Some("it is gone from this machine"),
            () => None,
        }
    }

    /// Who has the queue; `None` where that is this output, which let go of it, or where the note names nobody.
    fn holder(&self, connection: &mut Connection) -> amiquip::Result<Option<Holder>> {
        // Without a value, more of the other's fits into the answer. Should there be none by now, this makes one, which
        // the caller deletes.
        let Some(refusal) = self.refused(connection, None)? else { return Ok(None) };
        let holder = Holder::read(&refusal, &self.exchange);
        // One of which not even the id is told may be its own: that is asked for by its value.
        let own = short(self.output.id);
        let may_be_own = holder.id.len() < own.len() && own.starts_with(&holder.id);
        let is_own = may_be_own && self.refused(connection, Some(self.value(true)))?.is_none();
        Ok((!is_own).then_some(holder))
    }

    /// Asks for the note with `value`; what the broker says where there is one with another.
    fn refused(&self, connection: &mut Connection, value: Option<String>) -> amiquip::Result<Option<String>> {
        match self.declare(&connection.open_channel(None)?, value) {
            Ok(()) => Ok(None),
            Err(Error::ServerClosedChannel { code: PRECONDITION_FAILED, message, .. }) => Ok(Some(message)),
            Err(error) => Err(error),
        }
    }

    fn refusal(&self, holder: &Holder) -> String {
        format!(
            "the queue {} belongs to {holder}: two outputs would share its visits. Stop this one, or give it that output (a \
             standby has the same folder); where the other is gone for good, or is to end, start this one once with \
             PIXEL_TAKEOVER=1",
            self.queue
        )
    }

    /// Proves that it stands, on a channel that is of no use any more where it does not.
    pub(super) fn check(&self, channel: &Channel) -> amiquip::Result<Result<(), String>> {
        match self.declare(channel, Some(self.value(false))) {
            // The same code ends a channel whose deliveries were held for too long.
            Err(Error::ServerClosedChannel { code: PRECONDITION_FAILED, message, .. })
                if message.contains(ARGUMENT) =>
            {
                Ok(Err(format!(
                    "the queue {} was taken over by another output; what was delivered to this one and is not \
                     written goes to it",
                    self.queue
                )))
            }
            other => other.map(Ok),
        }
    }

    /// Whether there is one to check.
    pub(super) fn is_kept(&self) -> bool {
        self.is_kept.load(Ordering::Relaxed)
    }

    /// Notes that nothing is held any more: another output of this machine may have the queue.
    pub(super) fn leave(&self, channel: &Channel) -> amiquip::Result<()> {
        if self.is_kept() && self.check(channel)?.is_ok() {
            channel.exchange_delete(&self.exchange, false)?;
            self.declare(channel, Some(self.value(true)))?;
        }
        Ok(())
    }

    fn declare(&self, channel: &Channel, value: Option<String>) -> amiquip::Result<()> {
        let mut arguments = FieldTable::new();
        arguments.extend(value.map(|value| (ARGUMENT.to_string(), AmqpValue::LongString(value))));
        let options = ExchangeDeclareOptions {
            durable: true,
            internal: true,
            arguments,
            ..ExchangeDeclareOptions::default()
        };
        channel.exchange_declare(ExchangeType::Fanout, &self.exchange, options).map(drop)
    }
}

impl Holder {
    /// What a refusal tells of it.
    fn read(refusal: &str, exchange: &str) -> Self {
        let value = refusal.split_once(CURRENT).map_or("", |(_, value)| value);
        let is_whole = value.contains("' of type");
        let value = value.rsplit_once("' of type").map_or(value.trim_end_matches("..."), |(value, _)| value);
        let value = value.strip_prefix(exchange).unwrap_or_default().trim_start();
        let mut parts = value.splitn(3, ' ').map(str::to_string);
        let mut part = || parts.next().unwrap_or_default();
        let (id, machine, path) = (part(), part(), part());
        let has_left = id.starts_with('-');
        Holder { id: id.trim_start_matches('-').into(), machine, path, has_left, is_whole }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.id.is_empty() {
            return write!(formatter, "another output");
        }
        let host = self.machine.split('#').next().unwrap_or_default();
        let more = if self.is_whole { "" } else { "…" };
        write!(formatter, "the output `{}{more}` of the host {host:?} (id {})", self.path, self.id)
    }
}

/// The exchange that is the note.
pub(super) fn held(queue: &str) -> String {
    format!("{queue}.held")
}

/// 60 random bits of an id are enough to tell outputs apart.
fn short(id: Uuid) -> String {
    id.simple().to_string().split_off(16)
}

/// This machine's name, and a few bits of its id, as names are given twice.
fn machine() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().replace([' ', '#', '\''], "");
    let id = fs::read("/etc/machine-id").unwrap_or_default();
    format!("{name}#{:04x}", crc32fast::hash(&id) & 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_whose_a_queue_is_as_far_as_it_goes() {
        let exchange = "pixel.visits.held";
        let refusal = |value: &str| {
            format!(
                "PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange '{exchange}' in vhost '/': \
                 received none but current is the value '{value}"
            )
        };
        for (case, said, shown, has_left, is_whole) in [
            (
                "whole",
                "pixel.visits.held 0a host#12 /var/a b's.log' of type 'longstr'",
                "`/var/a b's.log` of the host \"host\" (id 0a)",
                false,
                true,
            ),
            (
                "let go",
                "pixel.visits.held -0a host#12 /v.log' of type 'longstr'",
                "`/v.log` of the host",
                true,
                true,
            ),
            ("cut", "pixel.visits.held 0a host#12 /var/lib/p...", "`/var/lib/p…` of the host", false, false),
            ("cut in front", "pixel.visi...", "another output", false, false),
            ("somebody's exchange", "unseen' of type 'longstr'", "another output", false, true),
        ] {
            let holder = Holder::read(&refusal(said), exchange);
            assert!(holder.to_string().contains(shown), "{case}: {holder}");
            assert_eq!((holder.has_left, holder.is_whole), (has_left, is_whole), "{case}");
        }
        assert_eq!(Holder::read("inequivalent arg 'type'", exchange).to_string(), "another output");
    }

    #[test]
    fn what_may_be_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("visits.log");
        let there = path.display().to_string();
        fs::write(sibling(&path, "ledger"), "").expect("there is room");
        let output = |takes_over| OutputName { id: Uuid::max(), path: "/mine".into(), takes_over };
        let hold = Hold::new("q", output(false));
        let (here, own) = (hold.machine.clone(), short(Uuid::max()));
        for (case, id, machine, path, has_left, is_whole, may) in [
            ("its own", &*own, "other#1", &*there, false, false, true),
            ("another's here", "1", &*here, &*there, false, true, false),
            ("one that has let go", "1", &*here, &*there, true, true, true),
            ("elsewhere", "1", "other#1", &*there, true, true, false),
            ("gone", "1", &*here, "/nowhere/visits.log", false, true, true),
            ("the same path with another ledger", "1", &*here, "/mine", false, true, true),
            ("gone, maybe", "1", &*here, "/nowhere/vis", false, false, false),
        ] {
            let holder =
                Holder { id: id.into(), machine: machine.into(), path: path.into(), has_left, is_whole };
            assert_eq!(hold.reason_to_replace(&holder).is_some(), may, "{case}");
            assert!(Hold::new("q", output(true)).reason_to_replace(&holder).is_some(), "{case}");
        }
    }
}
