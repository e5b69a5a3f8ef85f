//! Station "http": requests become durable visits, through tiny_http.
//!
//! [`Listener`] keeps a listening socket answered, whatever clients do; [`Track`] is what the public one
//! answers, [`Admin`] what operators are told.

mod admin;
mod answer;
mod listener;
mod page;
mod report;
mod track;

pub(crate) use self::admin::{Admin, ask_ready, ask_status};
pub(crate) use self::listener::{Handler, Listener, ListenerSettings};
pub(crate) use self::page::Page;
pub use self::report::Facts;
pub(crate) use self::report::Status;
pub(crate) use self::track::{Pixel, Track};
