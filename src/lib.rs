//! Pixel: a self-hosted tracking pixel that writes every visit exactly once.
//!
//! `docs/ARCHITECTURE.md` has the map.

pub mod amqp;
pub mod connect;
pub mod disk;
pub mod health;
pub mod http;
pub mod limits;
pub mod metrics;
pub mod output;
pub mod program;
pub mod queue;
pub mod record;
pub mod relay;
pub mod spool;
pub mod stop;
pub mod supervisor;
pub mod visit;
