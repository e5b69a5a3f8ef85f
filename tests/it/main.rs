//! The programs as users meet them: real processes, real sockets, a real RabbitMQ, real files.

#![allow(clippy::print_stdout, reason = "shown where a test fails")]

mod broker_faults;
mod cluster;
mod disks;
mod edge;
mod endpoints;
mod front_door;
mod heads;
mod hostile;
mod messages;
mod options;
mod output;
mod rules;
#[path = "../support/mod.rs"]
mod support;

use support::Outcome;
