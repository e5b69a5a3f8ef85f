//! What the project keeps to, read off its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::Outcome;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn no_async_runtime_is_in_the_lock_file() -> Outcome {
    let lock = fs::read_to_string(root().join("Cargo.lock"))?;
    for banned in ["tokio", "async-std", "smol", "hyper", "reqwest", "async-io", "actix-rt", "tonic"] {
        assert!(!lock.contains(&format!("name = \"{banned}\"\n")), "{banned} is in Cargo.lock");
    }
    // It runs nothing by itself: OpenTelemetry's SDK waits with it for an export, on the thread that exports.
    let users = lock.split("[[package]]").filter(|package| package.contains("\n \"futures-executor\",\n"));
    let users: Vec<_> = users.filter_map(|package| package.split('"').nth(1)).collect();
    assert_eq!(users, ["opentelemetry_sdk"], "futures-executor is for these");
    Ok(())
}

/// A build wanted OpenSSL's headers, and images its library.
#[test]
fn nothing_in_the_lock_files_links_openssl() -> Outcome {
    for file in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let lock = fs::read_to_string(root().join(file))?;
        for banned in ["native-tls", "openssl", "openssl-sys", "aws-lc-sys", "cmake"] {
            assert!(!lock.contains(&format!("name = \"{banned}\"\n")), "{banned} is in {file}");
        }
    }
    Ok(())
}

/// Newer ones of pest and idna_adapter brought thirty crates with them, among them a reader of object files, for what
/// amiquip and url need of them: templates at build time, and names of hosts that are ASCII.
#[test]
fn a_first_build_is_kept_short_of_what_only_newer_versions_want() -> Outcome {
    for file in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let lock = fs::read_to_string(root().join(file))?;
        for banned in ["object", "psm", "icu_normalizer", "clap_derive"] {
            assert!(
                !lock.contains(&format!("name = \"{banned}\"\n")),
                "{banned} is in {file}: cargo update --precise has pest_derive, pest_generator, pest_meta and pest at 2.8.6, \
                 and idna_adapter at 1.1.0"
            );
        }
    }
    Ok(())
}

/// The folders and files of `src/`, from the floor up. Each may use those of the levels below its own, none beside
/// it: docs/ARCHITECTURE.md says what each is for.
const LEVELS: &[&[&str]] = &[
    &["disk", "health", "limits", "metrics", "stop", "supervisor", "trace"],
    &["connect", "visit"],
    &["queue"],
    &["http", "spool", "relay", "record"],
    &["amqp", "output"],
    &["program"],
];

#[test]
fn imports_point_one_way_between_folders_and_never_in_a_circle_of_files() -> Outcome {
    let imports = Imports::of(&root().join("src"))?;
    let level = |room: &str| LEVELS.iter().position(|level| level.contains(&room));
    for (from, to) in imports.between_rooms() {
        let levels = (level(&from), level(&to));
        assert!(matches!(levels, (Some(above), Some(below)) if above > below), "{from} must not use {to}");
    }
    let circles = imports.circles();
    println!(
        "{} files in {} rooms, {} arrows between files, {} between rooms, {} circles",
        imports.files.len(),
        imports.rooms().len(),
        imports.arrows.len(),
        imports.between_rooms().len(),
        circles.len()
    );
    assert!(circles.is_empty(), "files that import one another: {circles:?}");
    let unused: Vec<_> = LEVELS.iter().flat_map(|level| level.iter()).collect();
    assert_eq!(unused.len(), imports.rooms().len(), "every room has its level");
    Ok(())
}

/// Which file of a source folder imports which. Tests are left out: they put together what programs do.
struct Imports {
    /// Module paths (`http::listener`), by which files are known here.
    files: BTreeSet<String>,
    arrows: BTreeSet<(String, String)>,
}

impl Imports {
    fn of(folder: &Path) -> Outcome<Imports> {
        let mut texts = BTreeMap::new();
        for path in sources(folder)? {
            let relative = path.strip_prefix(folder)?.with_extension("");
            let mut module: Vec<String> =
                relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if module.last().is_some_and(|last| last == "mod") {
                module.pop();
            }
            let text = fs::read_to_string(&path)?;
            let tests = text
                .match_indices("#[cfg(test)]")
                .find(|(at, _)| text[*at..].lines().nth(1).is_some_and(|line| line.ends_with("mod tests {")));
            let code = text[..tests.map_or(text.len(), |(at, _)| at)].lines();
            let text: String = code.filter(|line| !line.trim_start().starts_with("//")).collect();
            if !["lib", "tests", "fake", "fake_folder"].contains(&module.last().map_or("", String::as_str)) {
                texts.insert(module.join("::"), text);
            }
        }
        let files: BTreeSet<String> = texts.keys().cloned().collect();
        let mut arrows = BTreeSet::new();
        for (from, text) in &texts {
            // Where a path ends in braces, each name in them is one of its own.
            for path in paths(text) {
                let absolute = match path.split_once("::") {
                    Some(("crate", rest)) => rest.to_string(),
                    Some(("self", rest)) => format!("{from}::{rest}"),
                    Some(("super", rest)) => match from.rsplit_once("::") {
                        Some((parent, _)) => format!("{parent}::{rest}"),
                        None => rest.to_string(),
                    },
                    _ => continue,
                };
                let names: Vec<&str> = absolute.split("::").collect();
                let prefixes = (1..=names.len()).rev().map(|length| names[..length].join("::"));
                if let Some(to) = prefixes.into_iter().find(|prefix| files.contains(prefix))
                    && to != *from
                {
                    arrows.insert((from.clone(), to));
                }
            }
        }
        Ok(Imports { files, arrows })
    }

    fn rooms(&self) -> BTreeSet<String> {
        self.files.iter().map(|file| room(file)).collect()
    }

    fn between_rooms(&self) -> BTreeSet<(String, String)> {
        let arrows = self.arrows.iter().map(|(from, to)| (room(from), room(to)));
        arrows.filter(|(from, to)| from != to).collect()
    }

    /// Files from which imports lead back to themselves.
    fn circles(&self) -> Vec<&String> {
        let leads_back = |start: &&String| {
            let (mut seen, mut left) = (BTreeSet::new(), vec![*start]);
            while let Some(file) = left.pop() {
                let next = self.arrows.iter().filter(|(from, _)| from == file).map(|(_, to)| to);
                left.extend(next.filter(|to| seen.insert(*to)));
            }
            seen.contains(*start)
        };
        self.files.iter().filter(leads_back).collect()
    }
}

/// The folder of `src/` that a module is in, or its file.
fn room(module: &str) -> String {
    module.split("::").next().unwrap_or_default().to_string()
}

/// Every path that starts at the crate, the module itself or its parent, with braces spread out.
fn paths(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for line in text.split(';').map(str::trim_start) {
        for start in ["crate::", "self::", "super::"] {
            for (at, _) in line.match_indices(start) {
                let rest = &line[at..];
                let end = rest.find(|c: char| !(c.is_alphanumeric() || "_:".contains(c)));
                let path = &rest[..end.unwrap_or(rest.len())];
                match rest[path.len()..].strip_prefix('{') {
                    Some(names) if path.ends_with("::") => {
                        let names = names.split('}').next().unwrap_or_default().split(',');
                        paths.extend(names.map(|name| format!("{path}{}", name.trim())));
                    }
                    _ => paths.push(path.to_string()),
                }
            }
        }
    }
    paths
}

#[test]
fn every_file_opens_with_what_it_is_for() -> Outcome {
    for folder in ["src", "bin", "tests"] {
        for file in sources(&root().join(folder))? {
            let text = fs::read_to_string(&file)?;
            let first = text.lines().find(|line| !line.starts_with("#!["));
            assert!(first.is_some_and(|line| line.starts_with("//! ")), "{}", file.display());
        }
    }
    Ok(())
}

#[test]
fn every_failure_is_shown_by_a_test_that_exists() -> Outcome {
    let document = fs::read_to_string(root().join("docs/FAILURES.md"))?;
    let rows = document.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let mut missing = Vec::new();
    for row in rows {
        let tests = row.rsplit(" | ").next().unwrap_or_default();
        // The head of a table, and the one row that says so.
        if ["test", "---", "none"].contains(&tests) {
            continue;
        }
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            missing.push(format!("no test in: {row}"));
        }
        missing.extend(names.into_iter().filter_map(|name| find_test(name).err()));
    }
    assert!(missing.is_empty(), "docs/FAILURES.md:\n{}", missing.join("\n"));
    Ok(())
}

#[test]
fn every_warning_and_error_of_the_log_is_in_the_operators_table() -> Outcome {
    let document = fs::read_to_string(root().join("docs/OPERATIONS.md"))?;
    let rows = document.lines().filter_map(|line| {
        let (level, rest) = line.strip_prefix("| ")?.split_once(" | `")?;
        let is_level = level == "warn" || level == "error";
        is_level.then(|| format!("{level}: {}", rest.split("` | ").next().unwrap_or_default()))
    });
    let rows: BTreeSet<String> = rows.collect();
    let mut said = BTreeSet::new();
    for file in sources(&root().join("src"))? {
        let text = fs::read_to_string(&file)?;
        for level in ["warn", "error"] {
            let macro_call = format!("log::{level}!(");
            let calls = text.match_indices(&macro_call).map(|(at, call)| &text[at + call.len()..]);
            said.extend(calls.map(|call| format!("{level}: {}", without_values(call))));
        }
    }
    let missing: Vec<_> = said.difference(&rows).collect();
    assert!(missing.is_empty(), "not in docs/OPERATIONS.md: {missing:#?}");
    let gone: Vec<_> = rows.difference(&said).collect();
    assert!(gone.is_empty(), "in docs/OPERATIONS.md, and said by nobody: {gone:#?}");
    Ok(())
}

/// The format string that `call` begins with, `…` for each value, without the marks around them, and without how long
/// something lasts.
fn without_values(call: &str) -> String {
    let literal = call.trim_start().trim_start_matches('"').split('"').next().unwrap_or_default();
    let joined = literal.split("\\\n").map(str::trim_start).collect::<String>();
    let mut text = String::new();
    let mut rest = joined.as_str();
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, after) = behind.split_once('}').unwrap_or_default();
        text += before;
        text += if name == "lasting" { "" } else { "…" };
        rest = after;
    }
    (text + rest).replace('`', "")
}

/// A tag can be moved to another commit, and what runs there has the release's rights.
#[test]
fn every_action_of_the_workflows_is_pinned_by_its_commit() -> Outcome {
    for workflow in fs::read_dir(root().join(".github/workflows"))? {
        let text = fs::read_to_string(workflow?.path())?;
        for (_, action) in text.lines().filter_map(|line| line.split_once("uses: ")) {
            let (_, version) = action.split_once('@').ok_or("no version")?;
            let (commit, comment) =
                version.split_once(" # v").ok_or_else(|| format!("{action}: no version"))?;
            let is_hash = commit.len() == 40 && commit.chars().all(|digit| digit.is_ascii_hexdigit());
            assert!(is_hash && !comment.is_empty(), "{action}");
        }
    }
    Ok(())
}

/// Finds `module::name` in tests/it, `file: name` anywhere. A name may be cut short with `…`.
fn find_test(test: &str) -> Result<(), String> {
    let (file, name) = match test.split_once("::") {
        Some((module, name)) => (format!("tests/it/{module}.rs"), name),
        None => {
            let (file, name) = test.split_once(": ").ok_or_else(|| format!("no test: {test}"))?;
            (file.to_string(), name)
        }
    };
    let text = fs::read_to_string(root().join(&file)).map_err(|error| format!("{file}: {error}"))?;
    let declaration = name.strip_suffix('…').map_or(format!("fn {name}("), |start| format!("fn {start}"));
    if text.contains(&declaration) { Ok(()) } else { Err(format!("{file} has no {name}")) }
}

fn sources(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}
