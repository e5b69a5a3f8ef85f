//! The programs as users meet them: real processes, real sockets, a real RabbitMQ, real files.
//!
//! Where a test goes:
//!
//! - `options`: settings and the command line. `configuration`: the document that lists them.
//! - `page`: the page at `/`, and what a real browser sends.
//! - `first_run`: the first minutes on a machine: folders, terminals, a second start.
//! - `standard_output`: visits that go to whoever reads them.
//! - `endpoints`: each request's answer, and what operators are told.
//! - `heads`: heads that no browser sends, each with its defined answer.
//! - `hostile`: a corpus of them, with a visit after each.
//! - `smuggling`: requests whose end is unclear, and what hides behind them.
//! - `front_door`: clients that cost the listener more than a visit does.
//! - `edge`: the Caddy and the HAProxy in front. `web_servers`: those that people have already.
//! - `messages`: what goes through the queue.
//! - `neighbours`: other systems at the same broker, MassTransit among them.
//! - `replay`: what could not be read, brought back.
//! - `output`: the lines that are written. `convert`: files of them, from each format to each.
//! - `tail`: what `pixel tail` and `pixel report` show of it.
//! - `rotation`: the output under those who rotate it, lock it, append to it and take its name or number.
//! - `rotation_table`: every way of rotation, under load and kills, as a table.
//! - `rotated_files`: what Pixel does with files that it rotated.
//! - `audit`: what `pixel audit` says of files as they were written, and of files that were tampered with.
//! - `processes`: programs that are killed, paused, or there twice.
//! - `tls`: a broker that is spoken with over TLS.
//! - `broker_faults`, `cluster`: a RabbitMQ of one node that fails, and one of three.
//! - `disks`: disks that fill up or fail.
//! - `observe`: what operators see: metrics, the log, the alerts. `status_page`: the page, and `status` on a terminal.
//! - `alerts`: each alert, by the fault that it is for.
//! - `tracing`: spans and numbers as a receiver of OpenTelemetry gets them.
//! - `shards`: several queues with an output each.
//! - `stranded`: slots whose collector is gone.
//! - `two_machines`: storages without a common file system, and the network between them and the broker.
//! - `documents`: what the documents tell people to do, done.
//! - `rules`: what the project keeps to, read off its files.
//!
//! What fails is listed in docs/FAILURES.md, and `rules` checks that the tests it names are here. What they
//! launch and talk to is in tests/support, most of it behind the fixtures `Embedded`, `Services` and
//! `Brokered`.

#![allow(clippy::print_stdout, reason = "shown where a test fails")]

mod alerts;
mod audit;
mod broker_faults;
mod cluster;
mod configuration;
mod convert;
mod disks;
mod documents;
mod edge;
mod endpoints;
mod first_run;
mod front_door;
mod heads;
mod hostile;
mod messages;
mod migration;
mod neighbours;
mod observe;
mod options;
mod output;
mod page;
mod processes;
mod replay;
mod rotated_files;
mod rotation;
mod rotation_table;
mod rules;
mod shards;
mod smuggling;
mod standard_output;
mod status_page;
mod stranded;
#[path = "../support/mod.rs"]
mod support;
mod tail;
mod tls;
mod tracing;
mod two_machines;
mod web_servers;

use support::Outcome;
