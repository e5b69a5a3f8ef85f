//! What the use cases say of a broker, whichever one it is.

use std::fmt;

/// The name under which health shows the broker.
pub const BROKER: &str = "broker";

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectError {
    /// Nobody answers as a broker should: try again.
    Unavailable(String),
    /// The broker says no, to the login or to the queue: an operator must act.
    Refused(String),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Unavailable(why) | ConnectError::Refused(why) => formatter.write_str(why),
        }
    }
}
