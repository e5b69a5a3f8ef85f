//! The output file and its ledger, as those see them who read what was written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::Outcome;
use super::program::Launch;
use super::wait::wait_until;

/// The lines of an output file; none where it is absent.
pub fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

/// Waits until the output has `count` lines, and returns them.
pub fn wait_for_lines(path: &Path, count: usize) -> Outcome<Vec<String>> {
    wait_until(&format!("{count} lines in {}", path.display()), || lines(path).len() >= count)
        .map_err(|error| format!("{error}; it has {}", lines(path).len()))?;
    Ok(lines(path))
}

/// Runs `pixel audit`: its exit status and its JSON.
pub fn audit(output: &Path) -> Outcome<(i32, serde_json::Value)> {
    let folder = output.parent().ok_or("no folder")?;
    let launch = Launch::new("pixel", folder).argument("audit").argument("--json").with("output", output);
    let (status, stdout, stderr) = launch.output()?;
    Ok((status, serde_json::from_str(&stdout).map_err(|error| format!("{error}: {stdout}{stderr}"))?))
}

/// How often each number of a load stands in an output of format ndjson.
pub fn written(output: &Path) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for line in lines(output) {
        // The last line may be half there while the file is written to.
        let Ok(visit) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        let number = visit["query"].as_str().and_then(|query| query.strip_prefix("n=")?.parse().ok());
        if let Some(number) = number {
            *counts.entry(number).or_insert(0) += 1;
        }
    }
    counts
}

/// Waits until every promised visit is written, then checks that each is there once and that no line
/// is torn.
pub fn all_written_once(promised: &[u64], output: &Path) -> Outcome {
    let missing = || {
        let counts = written(output);
        promised.iter().filter(|number| !counts.contains_key(number)).count()
    };
    wait_until("every promised visit in the output", || missing() == 0)
        .map_err(|error| format!("{error}: {} of {} are missing", missing(), promised.len()))?;
    let twice: Vec<_> = written(output).into_iter().filter(|(_, count)| *count > 1).collect();
    if !twice.is_empty() {
        return Err(format!("written more than once: {twice:?}").into());
    }
    let torn =
        lines(output).into_iter().find(|line| serde_json::from_str::<serde_json::Value>(line).is_err());
    torn.map_or(Ok(()), |line| Err(format!("not a whole line: {line}").into()))
}
