//! docs/CONFIGURATION.md, which is made from the command lines.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use clap::{Arg, Command};
use pixel::program::commands;

use crate::Outcome;

const HEAD: &str = "# Every option of every program

Made from the command lines: `UPDATE=1 cargo test --test it configuration::` writes it anew. A flag goes before a
variable, and that before the file that `--config` (`PIXEL_CONFIG`) names, which has the variables' names without
`PIXEL_`. A secret, which `PIXEL_AMQP_URL` is, may be in a file that `PIXEL_AMQP_URL_FILE` names. `check` prints what
counts and where it is from. Where nothing stands under \"default\", nothing is set.
";

fn row(argument: &Arg) -> String {
    let flag = match (argument.get_long(), argument.get_value_names()) {
        (Some(long), Some(values)) if argument.get_action().takes_values() => {
            format!("`--{long} {}`", values.join(" "))
        }
        (Some(long), _) => format!("`--{long}`"),
        (None, values) => format!("`{}`", values.unwrap_or_default().join(" ")),
    };
    let code = |text: String| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let variable =
        code(argument.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default());
    let defaults = argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned());
    // Whether a switch is off is no value of anybody's.
    let takes_values = argument.get_action().takes_values();
    let default = code(if takes_values { defaults.collect() } else { String::new() });
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    format!("| {flag} | {variable} | {default} | {} |\n", help.replace('|', "\\|"))
}

fn section(document: &mut String, command: &Command, title: &str, known: &[&Arg]) -> Outcome {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    write!(document, "\n## {title}\n\n{about}.\n\n")?;
    let is_standard = |argument: &Arg| ["help", "version"].contains(&argument.get_id().as_str());
    let arguments: Vec<&Arg> = command.get_arguments().filter(|one| !is_standard(one)).collect();
    let (same, own): (Vec<&Arg>, Vec<&Arg>) = arguments
        .into_iter()
        .partition(|argument| known.iter().any(|known| known.get_id() == argument.get_id()));
    if !own.is_empty() {
        document.push_str("| flag | variable | default | what it is |\n| --- | --- | --- | --- |\n");
        own.iter().for_each(|argument| document.push_str(&row(argument)));
    }
    if !same.is_empty() {
        let flags = same.iter().filter_map(|argument| Some(format!("`--{}`", argument.get_long()?)));
        let lead = if own.is_empty() { "" } else { "\n" };
        writeln!(document, "{lead}Of the program's: {}.", flags.collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}

#[test]
fn the_document_of_all_options_is_what_the_programs_have() -> Outcome {
    let mut document = HEAD.to_string();
    for program in [commands::pixel(), commands::pixel_http(), commands::pixel_storage()] {
        let name = program.get_name();
        section(&mut document, &program, name, &[])?;
        let known: Vec<&Arg> = program.get_arguments().collect();
        for subcommand in program.get_subcommands() {
            let title = format!("{name} {}", subcommand.get_name());
            section(&mut document, subcommand, &title, &known)?;
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/CONFIGURATION.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &document)?;
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == document,
        "docs/CONFIGURATION.md is older than the options: run the test with UPDATE=1"
    );
    Ok(())
}
