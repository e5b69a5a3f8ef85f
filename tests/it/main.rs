//! The programs as users meet them: real processes, real sockets, a real RabbitMQ, real files.

#![allow(clippy::print_stdout, reason = "shown where a test fails")]

mod broker;
mod brokered;
mod chance;
mod client;
mod cluster;
mod crashes;
mod disks;
mod edge;
mod embedded;
mod endpoints;
mod failures;
mod front_door;
mod hostile;
mod options;
mod program;
mod proxy;
mod rules;
mod shim;

/// What can go wrong in a helper ends the test, with the reason.
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
