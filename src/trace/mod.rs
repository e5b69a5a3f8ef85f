//! OpenTelemetry: sampled visits, as spans, from the request to the line in the file, sent over OTLP/HTTP.
//!
//! Like the logger, the tracer is the process's: whoever traces needs nothing else, and where it is off, each of
//! these functions is one look at a word in memory. Spans are sent from a thread of their own. Nothing waits for it:
//! what it cannot send in time is dropped, and counted.
//!
//! A request is sampled by the standard's variables. Its context travels with its visit ([`mark`]), and from there on
//! spans are of messages and batches, linked to what is in them: never one for each visit. The program's numbers go the
//! same way ([`Numbers`]), where that is wanted.

mod address;
mod complaint;
mod context;
mod export;
mod exposition;
mod numbers;
mod resource;
mod settings;
mod spans;
mod tracer;
// What stands for all of these in a build without the feature `otel`.
#[cfg(test)]
#[expect(dead_code, unreachable_pub, reason = "only its tests are run here")]
mod without;

pub use self::context::{Context, LINKS_MAX, mark, marked};
pub use self::export::Counts;
pub use self::numbers::Numbers;
pub use self::settings::Settings;
pub use self::spans::{Caller, Entered, Span, current, enter, process, request, send, settle, step, within};
pub use self::tracer::{finish, is_on, start};
