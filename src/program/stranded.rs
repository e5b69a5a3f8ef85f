//! Slots that hold visits and that no process has: looked for, told, and relayed to their end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::options::{BrokerSettings, SpoolSettings};
use super::process::{Failure, Process};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::relay::Relay;
use crate::spool::{OpenError, Slot, SlotState, Slots, Spool};
use crate::stop::Stop;

/// How often the other slots are looked at. One is taken that was free at two looks: a collector that is started
/// again finds its own.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether a slot that was taken over is empty, or wanted.
const TICK: Duration = Duration::from_millis(100);
/// A slot of which nothing is confirmed for so long is let go, and another is taken.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who looks after the other slots of a folder.
struct Keeper {
    folder: PathBuf,
    max_bytes: u64,
    // `None` where nobody but a person knows which output has some of them already.
    broker: Option<BrokerSettings>,
    metrics: Arc<Metrics>,
    stop: Stop,
    // The slot that was tried last: the next one is another.
    last: Option<PathBuf>,
    // What was wrong with a slot when that was said last.
    said: BTreeMap<PathBuf, String>,
}

/// Starts a part of `process` that looks at the other slots of the folder now and then, and tells what waits in those
/// that no process has. With a `broker` it takes them over, one after the other.
///
/// # Errors
/// What the system said where no thread is to be had.
pub fn look_after_slots(
    settings: &SpoolSettings,
    broker: Option<BrokerSettings>,
    process: &mut Process,
) -> Result<(), Failure> {
    let keeper = Keeper {
        folder: settings.folder.clone(),
        max_bytes: settings.max_bytes,
        broker,
        metrics: process.metrics.clone(),
        stop: process.stop.clone(),
        last: None,
        said: BTreeMap::new(),
    };
    process.part("slots", move || {
        keeper.run();
        Ok(())
    })
}

impl Keeper {
    fn run(mut self) {
        let mut slots = Slots::of(&self.folder);
        let mut free_before = BTreeSet::new();
        loop {
            let found = slots.look().unwrap_or_else(|error| {
                log::warn!("failed to look at the slots of `{}`: {error}", self.folder.display());
                Vec::new()
            });
            self.tell_unknown(&found);
            let is_ripe = |slot: &&Slot| slot.stranded() > 0 && free_before.contains(&slot.folder);
            let next = self.after_last(&found).find(is_ripe).map(|slot| slot.folder.clone());
            let stranded: Vec<Slot> = found.into_iter().filter(|slot| slot.stranded() > 0).collect();
            self.tell(&stranded, &free_before);
            // Without a broker, a slot would be held in vain.
            if let Some(folder) = next.filter(|_| self.metrics.broker_connected.get() == Some(1.0)) {
                self.take_over(&folder);
            }
            free_before = stranded.into_iter().map(|slot| slot.folder).collect();
            if self.stop.wait(LOOK_EVERY) {
                return;
            }
        }
    }

    /// The slots, those behind the one that was tried last first.
    fn after_last<'a>(&self, slots: &'a [Slot]) -> impl Iterator<Item = &'a Slot> {
        let last = slots.iter().position(|slot| Some(&slot.folder) == self.last.as_ref());
        let behind = last.map_or(0, |last| last + 1);
        slots[behind..].iter().chain(&slots[..behind])
    }

    fn tell(&self, stranded: &[Slot], known: &BTreeSet<PathBuf>) {
        let visits: u64 = stranded.iter().map(Slot::stranded).sum();
        self.show(stranded.len(), visits);
        for slot in stranded.iter().filter(|slot| !known.contains(&slot.folder)) {
            let cure = match self.broker {
                Some(_) => "they are taken over unless it comes back",
                None => "start it again, or run `pixel drain` with the output that it had",
            };
            let visits = counted(slot.stranded(), "visit");
            log::warn!("{visits} in `{}`, a slot that no process has: {cure}", slot.folder.display());
        }
    }

    /// Says once which slots cannot be looked at, and why.
    fn tell_unknown(&mut self, found: &[Slot]) {
        // What was wrong with the others may come again.
        let may_stay = |slot: &&Slot| !matches!(slot.state, SlotState::Held(_));
        let here: BTreeSet<&Path> = found.iter().filter(may_stay).map(|slot| &*slot.folder).collect();
        self.said.retain(|folder, _| here.contains(&folder.as_path()));
        for slot in found {
            if let SlotState::Unknown(why) = &slot.state
                && is_news(&mut self.said, &slot.folder, why)
            {
                log::warn!("failed to look at `{}`: {why}", slot.folder.display());
            }
        }
    }

    fn show(&self, slots: usize, visits: u64) {
        self.metrics.stranded_slots.set(slots as f64);
        self.metrics.stranded_visits.set(visits as f64);
    }

    /// Relays what waits in a slot, to its end, until somebody wants it, or until nothing gets on any more.
    fn take_over(&mut self, folder: &Path) {
        let Some(settings) = &self.broker else { return };
        // Also where it fails: the others have their turn.
        self.last = Some(folder.into());
        let shown = folder.display();
        let spool = match Spool::take_over(folder, self.max_bytes) {
            Ok(spool) => spool,
            // Somebody was faster.
            Err(error @ OpenError::Held { .. }) => return log::debug!("{error}"),
            Err(error) => {
                if is_news(&mut self.said, folder, &error.to_string()) {
                    log::warn!("failed to take over `{shown}`: {error}");
                }
                return;
            }
        };
        log::info!("{} in `{shown}`: taking it over", counted(spool.visits(), "visit"));
        let mut gets_on = (spool.visits(), Instant::now());
        let why = relay(&spool, settings, &self.metrics, &self.stop, || {
            let visits = spool.visits();
            self.show(1, visits);
            if visits < gets_on.0 {
                gets_on = (visits, Instant::now());
            }
            match () {
                () if visits == 0 => Some("nothing waits any more"),
                () if spool.is_wanted() => Some("a collector wants it back"),
                () if gets_on.1.elapsed() > PATIENCE => Some("nothing gets on"),
                () => None,
            }
        });
        log::info!("`{shown}`: {why}; letting it go");
        self.show(usize::from(spool.visits() > 0), spool.visits());
    }
}

/// Whether something else was wrong with the slot when that was said last.
fn is_news(said: &mut BTreeMap<PathBuf, String>, folder: &Path, why: &str) -> bool {
    said.insert(folder.into(), why.into()).is_none_or(|said| said != why)
}

/// Relays `spool` until the word to stop is given, or `look`, which is asked again and again, says why it is to end.
pub(super) fn relay(
    spool: &Spool,
    settings: &BrokerSettings,
    metrics: &Metrics,
    stop: &Stop,
    mut look: impl FnMut() -> Option<&'static str>,
) -> &'static str {
    let done = Stop::default();
    // The shards that its own collector had.
    let mut broker = settings.publishing(&spool.shards());
    // Its broker is the collector's, which tells of it by itself.
    let (health, metrics) = (Health::default(), metrics.aside());
    thread::scope(|scope| {
        let relaying = scope.spawn(|| {
            Relay { backlog: spool, metrics: &metrics, health: &health }.run(&mut broker, &done);
        });
        let mut why = None;
        while !relaying.is_finished() {
            why = why.or_else(&mut look).or_else(|| stop.is_set().then_some("stopping"));
            if why.is_some() {
                done.set();
            }
            thread::sleep(TICK);
        }
        why.unwrap_or("the relay has ended")
    })
}

pub(super) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::amqp::AmqpUrl;
    use crate::queue::VisitStore;

    fn keeper(folder: &Path) -> Keeper {
        Keeper {
            folder: folder.into(),
            max_bytes: 1 << 20,
            broker: Some(BrokerSettings {
                urls: AmqpUrl::list("amqp://127.0.0.1:1").expect("an address"),
                tls: None,
                queue: "visits".into(),
                shards: 1,
                declares: true,
            }),
            metrics: Arc::default(),
            stop: Stop::default(),
            last: None,
            said: BTreeMap::new(),
        }
    }

    /// By their paths as text, "10" stands before "2", and the first one came again.
    #[test]
    fn the_slot_behind_the_one_that_was_tried_last_is_the_next_by_number() {
        let folder = tempfile::tempdir().expect("a folder");
        for slot in ["2", "10"] {
            let spool = Spool::open(&folder.path().join(slot), 1, 1 << 20).expect("there is room");
            spool.append(b"{}\n", 1).expect("there is room");
        }
        let mut keeper = keeper(folder.path());
        let slots = Slots::of(folder.path()).look().expect("the folder can be read");
        for (last, next) in [(None, "2"), (Some("2"), "10"), (Some("10"), "2"), (Some("7"), "2")] {
            keeper.last = last.map(|last| folder.path().join(last));
            let found = keeper.after_last(&slots).next().map(|slot| slot.folder.clone());
            assert_eq!(found, Some(folder.path().join(next)), "behind {last:?}");
        }
    }

    /// It was tried for ever, unseen, and no other slot had its turn.
    #[test]
    fn a_slot_that_cannot_be_taken_over_is_told_once_and_makes_room_for_the_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let slot = folder.path().join("2");
        Spool::open(&slot, 1, 1 << 20).expect("there is room").append(b"{}\n", 1).expect("there is room");
        fs::write(slot.join("shards"), "damaged").expect("there is room");
        let mut keeper = keeper(folder.path());
        keeper.take_over(&slot);
        assert_eq!(keeper.last.as_ref(), Some(&slot));
        let why = Spool::take_over(&slot, 1 << 20).map(drop).expect_err("it is damaged").to_string();
        assert!(!is_news(&mut keeper.said, &slot, &why), "{why}");
        // It comes again, where somebody had it meanwhile.
        let has_it = SlotState::Held("7".into());
        keeper.tell_unknown(&[Slot { folder: slot.clone(), state: has_it }]);
        assert!(is_news(&mut keeper.said, &slot, &why));
    }
}
