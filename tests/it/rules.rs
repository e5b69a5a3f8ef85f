//! What the project keeps to, read off its files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Outcome;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn no_async_runtime_is_in_the_lock_file() -> Outcome {
    let lock = fs::read_to_string(root().join("Cargo.lock"))?;
    for banned in
        ["tokio", "async-std", "smol", "hyper", "reqwest", "async-io", "futures-executor", "actix-rt"]
    {
        assert!(!lock.contains(&format!("name = \"{banned}\"\n")), "{banned} is in Cargo.lock");
    }
    Ok(())
}

/// The layers of docs/ARCHITECTURE.md: a module may use those of its own layer's list, and nothing else.
const DOMAIN: &[&str] = &["visit", "sequences", "wire", "lines", "client_ip", "written", "audit"];
const LEAVES: &[&str] = &["metrics", "health", "backoff", "broker"];
const USE_CASES: &[&str] = &["collect", "relay", "record"];
const STORAGE: &[&str] = &["disk", "journal"];
const ADAPTERS: &[&str] = &["amqp", "http", "spool", "spool_inbox", "ledger", "visit_log"];
const PROGRAM: &[&str] = &["options", "process"];

#[test]
fn imports_point_inward() -> Outcome {
    let mut uses: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in sources(&root().join("src"))? {
        let relative = file.strip_prefix(root().join("src"))?.with_extension("");
        let module = relative.iter().next().ok_or("no module")?.to_string_lossy().into_owned();
        if file.ends_with("tests.rs") {
            // Tests put together what the programs do.
            continue;
        }
        let text = fs::read_to_string(&file)?;
        let used = text.match_indices("crate::").map(|(at, prefix)| {
            let rest = &text[at + prefix.len()..];
            rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        });
        uses.entry(module).or_default().extend(used);
    }
    uses.remove("lib");
    for (module, used) in uses {
        let is_in = |layer: &[&str]| layer.contains(&module.as_str());
        let allowed: Vec<&[&str]> = if is_in(DOMAIN) {
            vec![DOMAIN]
        } else if is_in(LEAVES) {
            vec![]
        } else if is_in(USE_CASES) {
            vec![DOMAIN, LEAVES]
        } else if is_in(STORAGE) {
            vec![STORAGE]
        } else if is_in(ADAPTERS) {
            // Not one another.
            vec![DOMAIN, LEAVES, USE_CASES, STORAGE]
        } else if is_in(PROGRAM) {
            vec![DOMAIN, ADAPTERS]
        } else {
            return Err(format!("src/{module} is in no layer").into());
        };
        for name in used {
            let inside = name == module || allowed.iter().any(|layer| layer.contains(&name.as_str()));
            assert!(inside, "{module} must not use {name}");
        }
    }
    Ok(())
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
