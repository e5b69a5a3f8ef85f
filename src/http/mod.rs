//! HTTP through tiny_http: the public listener, the admin listener, and what keeps both standing.

mod admin;
mod answer;
mod body;
mod door;
mod slow;
mod track;

pub use self::admin::{Admin, ask_ready};
pub use self::door::{Door, DoorSettings, Handler, raise_open_files_limit};
pub use self::slow::SlowLane;
pub use self::track::{STORE, Track};
