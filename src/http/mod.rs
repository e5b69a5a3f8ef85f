//! HTTP through tiny_http: the public listener, the admin listener, and what keeps both standing.

mod admin;
mod answer;
mod listener;
mod track;

pub use self::admin::{Admin, ask_ready};
pub use self::listener::server::{DoorSettings, Handler};
pub use self::listener::slow_clients::SlowLane;
pub use self::listener::turns::Taken;
pub use self::listener::{Door, has_outgrown_memory, raise_open_files_limit};
pub use self::track::{STORE, Track};
