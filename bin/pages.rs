//! Writes man pages and completions of the three programs: `cargo run --features pages --bin pages -- FOLDER`.

use std::fs;
use std::path::PathBuf;

use clap_complete::{Shell, generate_to};
use pixel::program::commands;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("target/pages"), PathBuf::from);
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    for mut command in [commands::pixel(), commands::pixel_http(), commands::pixel_storage()] {
        let name = command.get_name().to_string();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            generate_to(shell, &mut command, &name, &completions)?;
        }
        // What `help` does is said where each subcommand is.
        clap_mangen::generate_to(command.disable_help_subcommand(true), &man)?;
    }
    Ok(())
}
