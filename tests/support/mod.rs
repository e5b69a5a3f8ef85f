//! What the tests launch and talk to: the programs, a broker, clients, and what can fail under them.

pub mod broker;
pub mod chance;
pub mod client;
pub mod faulty_disk;
pub mod program;
pub mod proxy;

/// What can go wrong in a helper ends the test, with the reason.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
