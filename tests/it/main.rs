//! The programs as users meet them: real processes, real sockets, a real RabbitMQ, real files.

#![allow(clippy::print_stdout, reason = "shown where a test fails")]

mod brokered;
mod cluster;
mod disks;
mod edge;
mod embedded;
mod endpoints;
mod failures;
mod front_door;
mod hostile;
mod options;
mod rules;
#[path = "../support/mod.rs"]
mod support;

use support::Outcome;
