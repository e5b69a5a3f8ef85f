//! What the tests launch and talk to: the programs, a broker, clients, and what can fail under them.

pub mod admin;
pub mod broker;
pub mod browser;
pub mod certificates;
pub mod chance;
pub mod client;
pub mod edge;
pub mod faulty_disk;
pub mod fixtures;
pub mod host;
pub mod launch;
pub mod load;
pub mod memory;
pub mod message;
pub mod names;
pub mod output;
pub mod port;
pub mod program;
pub mod prometheus;
pub mod proxy;
pub mod shell;
pub mod small_disk;
pub mod stranger;
pub mod traces;
pub mod visits;
pub mod wait;

/// What can go wrong in the support of a test ends the test, with the reason.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
