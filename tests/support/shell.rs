//! Commands of the shell, as those use them who look after the files.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::Outcome;

/// Runs a script in `folder`, which must succeed; `$0` in it is `argument`.
pub fn shell(folder: &Path, script: &str, argument: &str) -> Outcome {
    let output = Command::new("sh").args(["-c", script, argument]).current_dir(folder).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("`{script}` ended with {}: {}", output.status, String::from_utf8_lossy(&said)).into())
}

/// A command that runs beside the test, and ends with its value.
pub struct Beside(pub Child);

impl Beside {
    /// Starts it.
    pub fn start(command: &mut Command) -> Outcome<Beside> {
        Ok(Beside(command.stdin(Stdio::null()).spawn()?))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
