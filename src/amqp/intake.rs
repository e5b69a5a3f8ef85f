//! What the broker has sent ahead, bounded in bytes.
//!
//! AMQP bounds it in messages alone (RabbitMQ has no `prefetch-size`), a consumer's prefetch stays as it was when the
//! consumer began (and a quorum queue takes no other), and amiquip's channel of deliveries has no bound: 64 messages
//! of 30 MB are 2 GB. So a thread counts what arrives; where that is too much, it cuts the connection, and the next
//! one takes messages one by one until they have been small for a while.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use amiquip::ConsumerMessage;
use crossbeam_channel::{Receiver, Sender};

use super::session::cut;

/// How many messages the broker sends ahead: at 128 KiB each, 8 MiB.
const PREFETCH_MESSAGES: u16 = 64;
/// How many bytes of bodies are in memory, but for the last one.
const HELD_MAX_BYTES: usize = 32 << 20;
/// After this many messages, each of at most this many bytes, they are taken ahead again.
const SMALL_MESSAGES: u16 = 256;
const SMALL_MAX_BYTES: usize = HELD_MAX_BYTES / PREFETCH_MESSAGES as usize;

/// How messages are to be taken from one connection on. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    is_one_by_one: Arc<AtomicBool>,
}

impl Pace {
    /// How many messages the broker may send ahead.
    pub(super) fn prefetch(&self) -> u16 {
        if self.is_one_by_one.load(Ordering::Relaxed) { 1 } else { PREFETCH_MESSAGES }
    }
}

/// What arrives over one connection.
pub(super) struct Intake {
    /// In the order of arrival. It ends with the connection.
    pub deliveries: Receiver<ConsumerMessage>,
    pace: Pace,
    // As it was when the consumer began.
    prefetch: u16,
    held_bytes: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    small_messages: u16,
}

impl Intake {
    /// Counts `deliveries`, of which the broker sends `prefetch` ahead, and cuts `socket` where they are too much.
    ///
    /// # Errors
    /// What the system said where no thread is to be had.
    pub(super) fn start(
        deliveries: Receiver<ConsumerMessage>,
        prefetch: u16,
        pace: Pace,
        socket: TcpStream,
    ) -> io::Result<Self> {
        let (sender, counted) = crossbeam_channel::unbounded();
        let (held_bytes, is_over) = (Arc::default(), Arc::default());
        let intake = Intake { deliveries: counted, pace, prefetch, held_bytes, is_over, small_messages: 0 };
        let (pace, held_bytes, is_over) =
            (intake.pace.clone(), intake.held_bytes.clone(), intake.is_over.clone());
        thread::Builder::new().name("deliveries".into()).spawn(move || {
            if forward(&deliveries, &sender, &held_bytes) {
                pace.is_one_by_one.store(true, Ordering::Relaxed);
                is_over.store(true, Ordering::Relaxed);
                cut(&socket);
            }
        })?;
        Ok(intake)
    }

    /// How many messages there can be at most.
    pub(super) fn prefetch(&self) -> usize {
        self.prefetch.into()
    }

    /// Why another connection is to be made, should there be a reason; to be asked when nothing is held.
    pub(super) fn reason_to_leave(&self) -> Option<String> {
        if self.is_over.load(Ordering::Relaxed) {
            let mib = HELD_MAX_BYTES >> 20;
            return Some(format!("it sent over {mib} MiB ahead, so messages are taken one by one now"));
        }
        if self.prefetch != self.pace.prefetch() {
            return Some(format!("messages are small again, so {PREFETCH_MESSAGES} are taken ahead"));
        }
        None
    }

    /// Notes that a message of `bytes` is let go of. To be called before the broker hears of it and sends another.
    pub(super) fn let_go(&mut self, bytes: usize) {
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.small_messages = if bytes > SMALL_MAX_BYTES { 0 } else { self.small_messages.saturating_add(1) };
        if self.prefetch == 1 && self.small_messages >= SMALL_MESSAGES {
            self.pace.is_one_by_one.store(false, Ordering::Relaxed);
        }
    }
}

/// Hands on what arrives until the connection ends, or nobody listens; whether it was too much.
fn forward(
    deliveries: &Receiver<ConsumerMessage>,
    counted: &Sender<ConsumerMessage>,
    held_bytes: &AtomicUsize,
) -> bool {
    for message in deliveries {
        if let ConsumerMessage::Delivery(delivery) = &message {
            let bytes = delivery.body.len();
            let before = held_bytes.fetch_add(bytes, Ordering::Relaxed);
            // A single one may be as large as it is.
            if before > 0 && before + bytes > HELD_MAX_BYTES {
                return true;
            }
        }
        if counted.send(message).is_err() {
            return false;
        }
    }
    false
}
