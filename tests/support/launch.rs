//! How the programs are started: with which options, in a folder of their own, on free ports.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::Outcome;
use super::host::Host;
use super::output::Output;
use super::program::{CONSUMING, LISTENING, Program};

/// How a program is to be started.
#[derive(Clone)]
pub struct Launch {
    program: &'static str,
    arguments: Vec<String>,
    // Its clones share it, and it goes with the last of them.
    folder: Arc<tempfile::TempDir>,
    environment: BTreeMap<String, String>,
    before: String,
    // What starts it on another host.
    on: Vec<String>,
}

impl Launch {
    /// `program` with its files in a folder of its own and its listeners on free ports.
    pub fn new(program: &'static str) -> Outcome<Self> {
        let launch = Launch {
            program,
            arguments: Vec::new(),
            folder: Arc::new(tempfile::tempdir()?),
            environment: BTreeMap::new(),
            before: String::new(),
            on: Vec::new(),
        };
        let (spool, output) = (launch.folder().join("spool"), launch.folder().join("visits.log"));
        let launch = launch.with("admin-listen", "127.0.0.1:0");
        let launch = match program {
            "pixel-storage" => launch,
            _ => launch.with("listen", "127.0.0.1:0").with("spool-dir", spool),
        };
        Ok(match program {
            "pixel-http" => launch,
            _ => launch.with("output", output),
        })
    }

    /// The folder that it runs in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file that it writes to.
    pub fn output(&self) -> Output {
        Output::at(&self.environment["PIXEL_OUTPUT"])
    }

    /// Sets an option by its flag's name; the last one given counts.
    pub fn with(mut self, flag: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        let variable = format!("PIXEL_{}", flag.to_uppercase().replace('-', "_"));
        self.environment.insert(variable, value.as_ref().to_string_lossy().into_owned());
        self
    }

    /// Leaves an option at its default.
    pub fn without(mut self, flag: &str) -> Self {
        self.environment.remove(&format!("PIXEL_{}", flag.to_uppercase().replace('-', "_")));
        self
    }

    /// Sets a variable of the environment.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Adds an argument.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Runs a shell command in the process first, such as `ulimit -n 64`.
    pub fn before(mut self, command: &str) -> Self {
        self.before = command.into();
        self
    }

    /// Starts it on a host of its own, whose name it sees.
    pub fn on(mut self, host: &Host) -> Self {
        self.on = host.named_command();
        self
    }

    fn command(&self) -> Command {
        let path = match self.program {
            "pixel" => env!("CARGO_BIN_EXE_pixel"),
            "pixel-http" => env!("CARGO_BIN_EXE_pixel-http"),
            _ => env!("CARGO_BIN_EXE_pixel-storage"),
        };
        let mut command = if let Some(program) = self.on.first() {
            let mut command = Command::new(program);
            command.args(&self.on[1..]).arg(path);
            command
        } else if self.before.is_empty() {
            Command::new(path)
        } else {
            let mut shell = Command::new("bash");
            shell.arg("-c").arg(format!("{} && exec \"$0\" \"$@\"", self.before)).arg(path);
            shell
        };
        let is_setting = |name: &str| name.starts_with("PIXEL_") || name.starts_with("OTEL_");
        let inherited = std::env::vars_os().filter(|(name, _)| is_setting(&name.to_string_lossy()));
        inherited.for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.env_remove("RUST_LOG").args(&self.arguments).envs(&self.environment);
        command.current_dir(self.folder()).stdin(Stdio::null());
        command
    }

    /// Starts it.
    pub fn spawn(&self) -> Outcome<Program> {
        let child = self.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        Program::new(child, self.clone())
    }

    /// Starts it and waits until it is ready.
    pub fn start(&self) -> Outcome<Program> {
        let mut program = self.spawn()?;
        let ready = if self.program == "pixel-storage" { CONSUMING } else { LISTENING };
        program.wait_for_log(ready)?;
        Ok(program)
    }

    /// Runs it to its end: exit status, stdout and stderr.
    pub fn run(&self) -> Outcome<(i32, String, String)> {
        let output = self.command().output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
    }
}
