//! What the documents tell people to do, done: their commands, links, and steps on a server.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::error::ErrorKind;
use pixel::program::commands;

use crate::Outcome;
use crate::support::client::get;
use crate::support::fixtures::Embedded;
use crate::support::output::Output;
use crate::support::port::free_address;
use crate::support::program::Program;
use crate::support::wait::wait_until;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every document, with its text.
fn documents() -> Outcome<Vec<(PathBuf, String)>> {
    let mut paths: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
        .iter()
        .map(|name| root().join(name))
        .collect();
    paths.push(root().join("deploy/kubernetes/README.md"));
    for entry in fs::read_dir(root().join("docs"))? {
        paths.push(entry?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.into_iter().map(|path| Ok((path.clone(), fs::read_to_string(path)?))).collect()
}

/// The block of a document in this language, the first one being 0, without what it is indented by.
fn block(document: &str, language: &str, number: usize) -> Outcome<String> {
    let text = fs::read_to_string(root().join("docs").join(document))?;
    let start = format!("```{language}\n");
    let block =
        text.split(&start).nth(number + 1).ok_or_else(|| format!("{document}: no {number} {language}"))?;
    let (block, _) = block.split_once("```").ok_or("it does not end")?;
    Ok(block.lines().map(|line| format!("{}\n", line.trim())).collect())
}

/// Flags and subcommands that were renamed would stay in the documents.
#[test]
fn every_command_line_in_the_documents_is_one_that_the_programs_take() -> Outcome {
    let mut taken = BTreeSet::new();
    let mut refused = Vec::new();
    for (path, text) in documents()? {
        let mut language = None;
        let lines = text.lines().map(|line| {
            if let Some(named) = line.trim_start().strip_prefix("```") {
                language = Some(named).filter(|named| language.is_none() && !named.is_empty());
            }
            (line, language == Some("sh"))
        });
        let spans = text.split('`').skip(1).step_by(2).map(|span| (span, false));
        for (said, is_in_block) in lines.chain(spans) {
            let said = said.trim().trim_start_matches("target/release/");
            // Up to where the shell begins something else, or a comment.
            let words: Vec<&str> = said
                .split_whitespace()
                .take_while(|word| !["|", "#", "&&", "||", ";"].contains(word) && !word.contains('>'))
                .map(|word| word.trim_end_matches(';'))
                .collect();
            let command = match words.first() {
                Some(&"pixel") => commands::pixel(),
                Some(&"pixel-http") => commands::pixel_http(),
                Some(&"pixel-storage") => commands::pixel_storage(),
                _ => continue,
            };
            let is_command = command.get_subcommands().any(|known| words.get(1) == Some(&known.get_name()));
            let is_flag = words.get(1).is_some_and(|word| word.starts_with("--"));
            // Anything else that begins so is a sentence.
            if !(is_in_block || is_command || is_flag) || said.contains('…') {
                continue;
            }
            let line = words.join(" ");
            match command.try_get_matches_from(&words) {
                Ok(_) => drop(taken.insert(line)),
                // A flag is only named, without its value.
                Err(error)
                    if error.kind() == ErrorKind::InvalidValue
                        && words.last().is_some_and(|word| word.starts_with("--")) => {}
                // It is only named.
                Err(error) if error.kind() == ErrorKind::MissingRequiredArgument && words.len() == 2 => {}
                Err(error) => refused.push(format!("{}: {line}: {}", path.display(), error.kind())),
            }
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
    assert!(taken.len() > 20, "{taken:#?}");
    Ok(())
}

/// How GitHub names a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

#[test]
fn every_link_between_documents_leads_somewhere() -> Outcome {
    let mut broken = Vec::new();
    let mut followed = 0;
    for (path, text) in documents()? {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().ok_or("no folder")?.join(file),
            };
            let has_heading = || {
                let text = fs::read_to_string(&target).unwrap_or_default();
                let headings = text.lines().filter(|line| line.starts_with('#'));
                headings.map(|line| anchor(line.trim_start_matches('#').trim())).any(|name| name == fragment)
            };
            if !target.exists() || !fragment.is_empty() && !has_heading() {
                broken.push(format!("{}: {link}", path.display()));
            }
            followed += 1;
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(followed > 40, "{followed}");
    Ok(())
}

/// Does what a block of docs/BACKUP.md says, line by line, with a folder for the server's own. What systemd does there,
/// `pixel` is told itself; tests/package does it as it stands, in a machine with systemd.
fn follow(block: &str, server: &Path, pixel: &mut Program) -> Outcome<String> {
    let mut said = String::new();
    let own = Path::new(env!("CARGO_BIN_EXE_pixel")).parent().ok_or("no folder")?;
    let path = format!("{}:{}", own.display(), std::env::var("PATH")?);
    for line in block.lines() {
        match line {
            "systemctl stop pixel" => pixel.stop()?,
            "systemctl start pixel" => pixel.start_again()?,
            _ => {
                let folder = server.display();
                let line = line
                    .replace("--directory /", &format!("--directory {folder}"))
                    .replace(" /var/", &format!(" {folder}/var/"))
                    .replace(" /etc/", &format!(" {folder}/etc/"));
                let mut shell = Command::new("sh");
                shell.args(["-c", &line]).env("PATH", &path).current_dir(server.parent().ok_or("no folder")?);
                let output = shell.output()?;
                let complaint = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{line}: {complaint}");
                said += &String::from_utf8_lossy(&output.stdout);
            }
        }
    }
    Ok(said)
}

/// `pixel` with the settings of the package, below a folder of the server's own, started.
fn packaged(server: &Path) -> Outcome<Embedded> {
    fs::create_dir_all(server.join("etc/pixel"))?;
    let settings = fs::read_to_string(root().join("deploy/systemd/pixel.toml"))?;
    let settings = settings.replace("\"/var/", &format!("\"{}/var/", server.display()));
    let settings = settings.replace("log-format = \"journal\"\n", "");
    fs::write(server.join("etc/pixel/pixel.toml"), settings)?;
    for folder in ["var/lib/pixel", "var/log/pixel"] {
        fs::create_dir_all(server.join(folder))?;
    }
    let launch = Embedded::launch()?.without("spool-dir").without("output").without("format");
    let mut pixel = launch.with("config", server.join("etc/pixel/pixel.toml")).start()?;
    let output = Output::at(server.join("var/log/pixel/visits.log"));
    Ok(Embedded { address: pixel.address()?, output, pixel })
}

#[test]
fn a_backup_as_the_document_has_it_is_restored_elsewhere_and_proved_and_goes_on() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let mut system = packaged(&old)?;
    for _ in 0..3 {
        system.visit(&[])?;
    }
    follow(&block("BACKUP.md", "sh", 0)?, &old, &mut system.pixel)?;
    system.visit(&[])?;
    system.output.wait_for_lines(4)?;
    system.pixel.stop()?;

    // The archive has the paths of the old machine in its settings: they are the same ones on a real server.
    let mut system = packaged(&new)?;
    let restore = block("BACKUP.md", "sh", 1)?;
    let renamed =
        format!("sed -i 's|{}|{}|' {}/etc/pixel/pixel.toml\n", old.display(), new.display(), new.display());
    let restore = restore.replace("pixel audit", &format!("{renamed}pixel audit"));
    let said = follow(&restore, &new, &mut system.pixel)?;
    assert!(said.contains("verified; 3 lines") && said.ends_with("proved\n"), "{said}");
    system.visit(&[])?;
    system.output.wait_for_lines(4)?;
    system.pixel.stop()?;
    let (status, said) =
        system.output.audit_says(&["--state-dir", &new.join("var/lib/pixel").to_string_lossy()])?;
    assert!(status == 0 && said.contains("sequences 1-4\n"), "{said}");
    Ok(())
}

#[test]
fn the_settings_and_the_edge_of_online_in_ten_minutes_record_the_visitor_and_the_query() -> Outcome {
    let folder = tempfile::tempdir()?;
    let settings = folder.path().join("pixel.toml");
    fs::write(&settings, block("ONLINE.md", "toml", 0)?)?;
    let mut system = Embedded::with(|launch| launch.without("format").with("config", &settings))?;
    let edge = free_address();
    let lines = block("ONLINE.md", "caddy", 0)?
        .replace("px.example.com", &format!("http://:{}", edge.port()))
        .replace("127.0.0.1:8080", &system.address.to_string());
    let file = folder.path().join("Caddyfile");
    fs::write(&file, format!("{{\n admin off\n}}\n{lines}"))?;
    let mut caddy = Command::new("caddy");
    let caddy = caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(&file);
    let mut caddy = caddy.env("HOME", folder.path()).stdout(Stdio::null()).spawn()?;
    let forged = ("X-Forwarded-For", "203.0.113.7");
    let answered = wait_until("Caddy's answer", || {
        get(edge, "/track?campaign=spring", &[forged]).is_ok_and(|answer| answer.status == 200)
    });
    caddy.kill()?;
    caddy.wait()?;
    answered?;
    let lines = system.output.wait_for_lines(1)?;
    assert!(
        lines[0].starts_with("127.0.0.1 - - [") && lines[0].contains("GET /track?campaign=spring "),
        "{lines:?}"
    );
    system.pixel.stop()
}
