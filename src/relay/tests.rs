//! The relay over an in-memory backlog and broker: whatever a connection does, the broker gets each visit
//! at least once and in order, and nothing is forgotten that it does not hold.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crossbeam_channel::{Receiver, Sender};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::connect::ConnectError;
use crate::queue::{Reading, Shard};
use crate::visit::wire::Message;

const VISITS: u64 = 400;
/// Large enough that a message holds few, and several are in flight.
const VISIT_BYTES: usize = 20_000;

/// What the broker does after a message.
#[derive(Debug, Clone, Copy)]
enum Deed {
    ConfirmsOldest,
    ConfirmsNewest,
    ConfirmsAll,
    BlocksForAWhile,
    LosesTheConnection,
    LosesTheNewestMessageAndTheConnection,
    SaysNothingAnyMore,
    ForgetsToConfirmTheOldest,
}

#[derive(Default)]
struct World {
    // Numbers that the broker holds, and in which order it got them for the first time.
    held: BTreeSet<u64>,
    order: Vec<u64>,
    forgotten_before: u64,
    deeds: Vec<Deed>,
    connections: usize,
    in_flight_max: usize,
    // How often the visits from the middle on cannot be read.
    failing_readings: usize,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<World>>);

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no panic holds it")
    }
}

struct MemoryBacklog {
    shared: Shared,
    rings: Receiver<()>,
    _bell: Sender<()>,
}

impl Backlog for MemoryBacklog {
    fn confirmed(&self) -> Position {
        Position { sequence: self.shared.world().forgotten_before, segment: 0, offset: 0 }
    }
    fn read(&self, from: Position, max_bytes: usize) -> io::Result<Option<Reading>> {
        let mut world = self.shared.world();
        if world.failing_readings > 0 && from.sequence >= VISITS / 2 {
            world.failing_readings -= 1;
            return Err(io::Error::from_raw_os_error(5));
        }
        drop(world);
        let count = (max_bytes / VISIT_BYTES) as u64;
        let count = count.min(VISITS - from.sequence);
        let body = vec![b'x'; count as usize * VISIT_BYTES];
        let message = Message { producer: Uuid::nil(), first: from.sequence, count, body };
        let end = Position { sequence: from.sequence + count, ..from };
        Ok((count > 0).then_some(Reading { message, end, shard: None }))
    }
    fn visits(&self) -> u64 {
        VISITS - self.shared.world().forgotten_before
    }
    fn bytes_after(&self, from: Position) -> u64 {
        (VISITS - from.sequence) * VISIT_BYTES as u64
    }
    fn forget(&self, up_to: Position) {
        let mut world = self.shared.world();
        assert!((0..up_to.sequence).all(|n| world.held.contains(&n)), "forgotten before the broker has it");
        assert!(up_to.sequence >= world.forgotten_before);
        world.forgotten_before = up_to.sequence;
    }
    fn bell(&self) -> &Receiver<()> {
        &self.rings
    }
}

struct MemoryPublisher {
    shared: Shared,
    last_tag: u64,
    // Tag to the visits of the message.
    in_flight: BTreeMap<u64, std::ops::Range<u64>>,
    is_silent: bool,
    is_blocked: bool,
    forgotten: Option<u64>,
}

impl MemoryPublisher {
    fn hold(&mut self, tags: &[u64]) {
        let mut world = self.shared.world();
        for tag in tags {
            for visit in self.in_flight.remove(tag).expect("it is in flight") {
                if world.held.insert(visit) {
                    world.order.push(visit);
                }
            }
        }
    }
}

impl Publisher for MemoryPublisher {
    fn publish(&mut self, message: &Message, _: Shard) -> Result<u64, Lost> {
        assert!(!self.is_blocked, "nothing is published while the broker takes nothing");
        self.last_tag += 1;
        self.in_flight.insert(self.last_tag, message.first..message.first + message.count);
        let mut world = self.shared.world();
        world.in_flight_max = world.in_flight_max.max(self.in_flight.len());
        Ok(self.last_tag)
    }

    fn wait(&mut self, _: &Receiver<()>, _: Duration) -> Result<News, Lost> {
        if std::mem::take(&mut self.is_blocked) {
            return Ok(News::Unblocked);
        }
        let deed =
            if self.is_silent { Some(Deed::SaysNothingAnyMore) } else { self.shared.world().deeds.pop() };
        let tags: Vec<u64> =
            self.in_flight.keys().copied().filter(|tag| Some(*tag) != self.forgotten).collect();
        let oldest = tags.first().copied().into_iter().collect::<Vec<_>>();
        let newest = tags.last().copied().into_iter().collect::<Vec<_>>();
        let lost = || Err(Lost("gone".into()));
        let confirmed = match deed.unwrap_or(Deed::ConfirmsAll) {
            Deed::ConfirmsOldest => oldest,
            Deed::ConfirmsNewest => newest,
            Deed::ConfirmsAll => tags,
            Deed::BlocksForAWhile => {
                self.is_blocked = true;
                return Ok(News::Blocked("memory".into()));
            }
            Deed::LosesTheConnection => {
                self.hold(&tags);
                return lost();
            }
            Deed::LosesTheNewestMessageAndTheConnection => {
                self.hold(&tags[..tags.len().saturating_sub(1)]);
                return lost();
            }
            Deed::ForgetsToConfirmTheOldest => {
                self.forgotten = self.forgotten.or(oldest.first().copied());
                return Ok(News::Nothing);
            }
            Deed::SaysNothingAnyMore => {
                self.is_silent = true;
                std::thread::sleep(Duration::from_millis(5));
                return Ok(News::Nothing);
            }
        };
        self.hold(&confirmed);
        if confirmed.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            return Ok(News::Nothing);
        }
        Ok(News::Confirmed(confirmed))
    }

    fn address(&self) -> &str {
        "memory"
    }
}

struct MemoryConnector {
    shared: Shared,
    stop: Stop,
}

impl Connect<dyn Publisher> for MemoryConnector {
    fn connect(&mut self) -> Result<Box<dyn Publisher>, ConnectError> {
        let mut world = self.shared.world();
        world.connections += 1;
        if world.deeds.is_empty() {
            // The next session only drains, and ends.
            self.stop.set();
        }
        if world.connections.is_multiple_of(3) {
            return Err(ConnectError::Unavailable("not now".into()));
        }
        drop(world);
        Ok(Box::new(MemoryPublisher {
            shared: self.shared.clone(),
            last_tag: 0,
            in_flight: BTreeMap::new(),
            is_silent: false,
            is_blocked: false,
            forgotten: None,
        }))
    }
}

fn relay(deeds: Vec<Deed>) -> World {
    relay_in(World { deeds, ..World::default() })
}

fn relay_in(world: World) -> World {
    let shared = Shared(Arc::new(Mutex::new(world)));
    let (bell, rings) = crossbeam_channel::bounded(1);
    let backlog = MemoryBacklog { shared: shared.clone(), rings, _bell: bell };
    let (metrics, health) = (Metrics::default(), Health::default());
    while shared.world().forgotten_before < VISITS {
        let stop = Stop::default();
        let relay = Relay { backlog: &backlog, metrics: &metrics, health: &health };
        std::thread::scope(|scope| {
            let mut connector = MemoryConnector { shared: shared.clone(), stop: stop.clone() };
            scope.spawn(|| {
                // A relay whose connection goes well has no reason to end.
                while shared.world().forgotten_before < VISITS && !stop.is_set() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                stop.set();
            });
            relay.run(&mut connector, &stop);
        });
    }
    std::mem::take(&mut *shared.world())
}

fn any_deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        8 => Just(Deed::ConfirmsOldest),
        8 => Just(Deed::ConfirmsNewest),
        2 => Just(Deed::ConfirmsAll),
        2 => Just(Deed::BlocksForAWhile),
        2 => Just(Deed::LosesTheConnection),
        2 => Just(Deed::LosesTheNewestMessageAndTheConnection),
        1 => Just(Deed::SaysNothingAnyMore),
        1 => Just(Deed::ForgetsToConfirmTheOldest),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn whatever_a_connection_does_the_broker_gets_everything(
        deeds in proptest::collection::vec(any_deed(), 0..60),
    ) {
        let world = relay(deeds);
        prop_assert_eq!(world.held.len() as u64, VISITS);
        prop_assert!(world.in_flight_max <= WINDOW_MESSAGES);
    }
}

/// It waited for ever for a confirm that a broker had forgotten, while the spool filled up.
#[test]
fn a_broker_that_says_nothing_any_more_is_left() {
    for deed in [Deed::SaysNothingAnyMore, Deed::ForgetsToConfirmTheOldest] {
        // The last one is done first.
        let world = relay(vec![Deed::ConfirmsOldest, Deed::ConfirmsNewest, deed]);
        assert!(world.connections >= 2, "{deed:?}");
        assert_eq!(world.held.len() as u64, VISITS, "{deed:?}");
    }
}

/// The connection was given up, and with it the confirms of what had been read before: the same visits were published
/// over and over, and none was ever forgotten.
#[test]
fn a_spool_that_cannot_be_read_is_read_again_over_the_same_connection() {
    let world = relay_in(World {
        deeds: vec![Deed::ConfirmsAll; VISITS as usize],
        failing_readings: 20,
        ..World::default()
    });
    assert_eq!((world.failing_readings, world.connections), (0, 1));
    assert_eq!(world.order, (0..VISITS).collect::<Vec<_>>());
}

#[test]
fn visits_arrive_in_order_when_confirms_do() {
    let deeds = [Deed::ConfirmsOldest, Deed::LosesTheConnection, Deed::ConfirmsOldest];
    let world = relay(deeds.repeat(5));
    assert!(world.order.is_sorted());
}
