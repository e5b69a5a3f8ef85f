//! Pixel: a self-hosted tracking pixel that writes every visit exactly once.
//!
//! `docs/ARCHITECTURE.md` has the map.

pub mod amqp;
pub mod broker;
pub mod connect;
pub mod disk;
pub mod health;
pub mod http;
pub mod metrics;
pub mod output;
pub mod program;
pub mod record;
pub mod relay;
pub mod spool;
pub mod visit;
