//! HTTP through tiny_http: the public listener, the admin listener, and what keeps both standing.

mod admin;
mod answer;
mod body;
mod door;
mod generation;
mod hang_up;
mod keeper;
mod slow;
mod track;
mod waiting;

pub use self::admin::{Admin, ask_ready};
pub use self::door::{Door, has_outgrown_memory, raise_open_files_limit};
pub use self::generation::{DoorSettings, Handler};
pub use self::slow::SlowLane;
pub use self::track::{STORE, Track};
pub use self::waiting::Taken;
