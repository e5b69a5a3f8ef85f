//! How much waits in the broker: asked now and then over a connection of its own, which nothing else waits for.

use std::time::Duration;

use super::session::Session;
use super::topology::dead_letters;
use super::url::AmqpUrl;
use crate::metrics::Metrics;
use crate::stop::Stop;

/// How often the broker is asked: two small frames.
const EVERY: Duration = Duration::from_secs(5);
/// How long after a failure it is asked again. Each try is a line of the broker's log.
const AGAIN: Duration = Duration::from_secs(15);

/// Keeps the numbers of `queues`, all together, and of their dead letters up to date until the word to stop is given.
/// What fails is no problem of anybody's: then they are not known.
pub fn watch_queues(urls: &[AmqpUrl], queues: &[String], metrics: &Metrics, stop: &Stop) {
    let mut wait = EVERY;
    for url in urls.iter().cycle() {
        if stop.wait(wait) {
            return;
        }
        wait = AGAIN;
        let Ok((session, ())) = Session::open(url, |_, _| Ok(())) else { continue };
        while ask(&session, queues, metrics).is_ok() {
            if stop.wait(EVERY) {
                return;
            }
        }
        metrics.queue_messages.clear();
        metrics.queue_dead_messages.clear();
    }
}

fn ask(session: &Session, queues: &[String], metrics: &Metrics) -> amiquip::Result<()> {
    let [mut ready, mut dead] = [0.0; 2];
    for queue in queues {
        for (queue, count) in [(queue.clone(), &mut ready), (dead_letters(queue), &mut dead)] {
            let declared = session.channel().queue_declare_passive(queue)?;
            *count += f64::from(declared.declared_message_count().unwrap_or_default());
        }
    }
    metrics.queue_messages.set(ready);
    metrics.queue_dead_messages.set(dead);
    Ok(())
}
