//! Station "http": requests become durable visits, through tiny_http.
//!
//! [`Listener`] keeps a listening socket answered, whatever clients do; [`Track`] is what the public one
//! answers, [`Admin`] what operators are told.

mod admin;
mod answer;
mod listener;
mod track;

pub use self::admin::{Admin, Status, ask_ready};
pub use self::answer::Answer;
pub use self::listener::{Handler, Listener, ListenerSettings, Request};
pub use self::track::{STORE, Track};
