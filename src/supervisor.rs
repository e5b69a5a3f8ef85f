//! Threads whose failure is noticed: whichever ends with an error or a panic, the program hears of it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Receiver, Sender};

/// Starts threads. Clones report to the same receiver.
#[derive(Debug, Clone)]
pub struct Supervisor {
    problems: Sender<String>,
}

impl Supervisor {
    /// A supervisor, and where the problems of its threads arrive.
    pub fn new() -> (Supervisor, Receiver<String>) {
        let (problems, received) = crossbeam_channel::unbounded();
        (Supervisor { problems }, received)
    }

    /// Starts a thread called `name` that does `work`; its error is reported, and so is its panic.
    ///
    /// # Errors
    /// What the system said where no thread is to be had. Then `work` is dropped.
    pub fn start(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        self.start_by(Builder::new(), name, work)
    }

    /// The same, with a stack of `stack_bytes`: for threads that are many.
    ///
    /// # Errors
    /// As for [`Supervisor::start`].
    pub fn start_small(
        &self,
        name: &str,
        stack_bytes: usize,
        work: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        self.start_by(Builder::new().stack_size(stack_bytes), name, work)
    }

    fn start_by(
        &self,
        builder: Builder,
        name: &str,
        work: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let problems = self.problems.clone();
        let thread = name.to_string();
        builder.name(name.into()).spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(work));
            let outcome = outcome.unwrap_or_else(|_| Err(format!("the thread {thread} panicked, see above")));
            if let Err(problem) = outcome {
                // Nobody listens any more where the program is about to end.
                let _ = problems.send(problem);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keeper, the watchdog and the thread for slow clients ended unnoticed when they panicked.
    #[test]
    fn an_error_and_a_panic_are_reported_and_a_good_end_is_not() {
        let (supervisor, problems) = Supervisor::new();
        type Work = fn() -> Result<(), String>;
        let works: [(&str, Work); 3] = [
            ("well", || Ok(())),
            ("failing", || Err("a reason".into())),
            ("panicking", || panic!("on purpose")),
        ];
        for (name, work) in works {
            let thread = supervisor.start(name, work).expect(name);
            thread.join().expect("its panic was caught");
        }
        drop(supervisor);
        let problems: Vec<String> = problems.iter().collect();
        assert_eq!(problems, ["a reason", "the thread panicking panicked, see above"]);
    }
}
