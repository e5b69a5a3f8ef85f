//! The command lines of the programs, from which help, man pages, completions and docs/CONFIGURATION.md are made.

use clap::Command;

use super::options::{
    ADMIN, BROKER, HTTP, LOGS, OUTPUTS, SHARD_CHOICE, SPOOL, STORAGE_ADMIN, check_command, with_settings,
};
use super::{
    convert_command, drain_command, drain_to_broker_command, merge_command, replay_broker_command,
    replay_command, report_command, status_command, tail_command, with_audit_arguments,
};

/// The command line of pixel.
pub fn pixel() -> Command {
    let all: &[_] = &[HTTP, SPOOL, OUTPUTS, ADMIN, LOGS];
    let command = Command::new("pixel")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A tracking pixel that writes every visit exactly once: GET /track, answered with a transparent GIF")
        .args_conflicts_with_subcommands(true)
        .subcommand(with_settings(Command::new("run").about("Take visits and write them; what plain `pixel` does"), all))
        .subcommand(with_audit_arguments(with_settings(Command::new("audit"), &[OUTPUTS])))
        .subcommand(replay_command())
        .subcommand(drain_command())
        .subcommand(merge_command())
        .subcommand(convert_command())
        .subcommand(report_command())
        .subcommand(tail_command())
        .subcommand(check_command(all))
        .subcommand(status_command(ADMIN))
        .subcommand(
            with_settings(Command::new("healthcheck"), &[ADMIN])
                .about("Ask the running program whether it is ready; exit status 1 when it is not"),
        );
    with_settings(command, all)
}

/// The command line of pixel-http.
pub fn pixel_http() -> Command {
    let all: &[_] = &[HTTP, BROKER, SPOOL, ADMIN, LOGS];
    let command = Command::new("pixel-http")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Answers GET /track with a transparent GIF, makes every visit durable and publishes it to RabbitMQ")
        .args_conflicts_with_subcommands(true)
        .subcommand(drain_to_broker_command())
        .subcommand(check_command(all))
        .subcommand(status_command(ADMIN))
        .subcommand(
            with_settings(Command::new("healthcheck"), &[ADMIN])
                .about("Ask the running program whether it is ready; exit status 1 when it is not"),
        );
    with_settings(command, all)
}

/// The command line of pixel-storage.
pub fn pixel_storage() -> Command {
    let all: &[_] = &[BROKER, SHARD_CHOICE, OUTPUTS, STORAGE_ADMIN, LOGS];
    let command = Command::new("pixel-storage")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Consumes visits from RabbitMQ and appends each to a file, exactly once")
        .args_conflicts_with_subcommands(true)
        .subcommand(with_audit_arguments(with_settings(Command::new("audit"), &[OUTPUTS])))
        .subcommand(replay_broker_command())
        .subcommand(check_command(all))
        .subcommand(status_command(STORAGE_ADMIN))
        .subcommand(
            with_settings(Command::new("healthcheck"), &[STORAGE_ADMIN])
                .about("Ask the running program whether it is ready; exit status 1 when it is not"),
        );
    with_settings(command, all)
}
