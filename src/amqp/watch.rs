//! How much waits in the broker: asked now and then over a connection of its own, which nothing else waits for.

use std::time::Duration;

use super::session::Session;
use super::tls::Tls;
use super::topology::dead_letters;
use super::url::AmqpUrl;
use crate::metrics::Metrics;
use crate::stop::Stop;

/// How often the broker is asked: two small frames.
const EVERY: Duration = Duration::from_secs(5);
/// How long after a failure it is asked again. Each try is a line of the broker's log.
const AGAIN: Duration = Duration::from_secs(15);

/// Keeps the numbers of `queues`, a sum over all shards, and of their dead letters up to date until the word to stop is given. What fails is no
/// problem of anybody's: then they are not known.
pub fn watch_queues(urls: &[AmqpUrl], tls: Option<&Tls>, queues: &[String], metrics: &Metrics, stop: &Stop) {
    let mut wait = EVERY;
    for url in urls.iter().cycle() {
        if stop.wait(wait) {
            return;
        }
        wait = AGAIN;
        let Ok((session, ())) = Session::open(url, tls, |_, _| Ok(())) else { continue };
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
    let count = |queue: String| -> amiquip::Result<f64> {
        let count = session.channel().queue_declare_passive(queue)?.declared_message_count();
        Ok(count.unwrap_or_default().into())
    };
    let (mut ready, mut dead) = (0.0, 0.0);
    for queue in queues {
        ready += count(queue.clone())?;
        dead += count(dead_letters(queue))?;
    }
    metrics.queue_messages.set(ready);
    metrics.queue_dead_messages.set(dead);
    Ok(())
}
