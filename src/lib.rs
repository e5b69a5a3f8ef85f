//! Pixel: a self-hosted tracking pixel that writes every visit exactly once.
//!
//! The folders are the stations of a visit, in the order of its way:
//!
//! 1. [`visit`]: what a visit is, how it is read off a request, how it travels and how its line looks.
//! 2. [`http`]: requests become durable visits; a listener that stays open whatever clients do.
//! 3. [`spool`]: the durable, numbered queue on disk. An answer of 200 means that the visit is in it.
//! 4. [`relay`]: from the spool to the broker, at least once and in order.
//! 5. [`amqp`]: RabbitMQ, to publish and to consume.
//! 6. [`record`]: what was delivered becomes lines, each visit once; and the audit of what was written.
//! 7. [`output`]: the file, its locks and its ledger, on disk.
//!
//! The embedded program `pixel` leaves 4 and 5 out: its recorder reads the spool.
//!
//! They stand on a floor that knows none of them: [`disk`], [`queue`] (the spool's two sides, as ports),
//! [`connect`], [`health`], [`metrics`], [`limits`], [`stop`], [`supervisor`] and [`trace`]. [`program`] composes, and the
//! three mains in `bin/` show what is plugged into what.
//!
//! The promise rests on these types, from the answer to the file: [`queue::VisitStore`], [`queue::Backlog`],
//! [`record::Inbox`], [`record::Ledger`], [`record::VisitLog`]; each says what its `Ok` means.
//!
//! `docs/ARCHITECTURE.md` has the invariants, the decisions and what is deliberately absent.

#![warn(unreachable_pub)]
#![allow(rustdoc::private_intra_doc_links, reason = "the documentation is built with private items")]

pub mod amqp;
mod connect;
pub mod disk;
pub mod health;
mod http;
mod limits;
pub mod metrics;
pub mod output;
pub mod program;
pub mod queue;
pub mod record;
pub mod relay;
pub mod spool;
pub mod stop;
mod supervisor;
#[cfg_attr(not(feature = "otel"), path = "trace/without.rs")]
pub mod trace;
pub mod visit;
