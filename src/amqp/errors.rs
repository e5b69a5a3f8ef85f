//! What amiquip's errors mean, fit to be shown.

use amiquip::Error;

/// What to show of an error: amiquip puts the URL, password included, into some of its messages.
pub(super) fn reason(error: &Error) -> String {
    match error {
        Error::FailedToConnect { source, .. } | Error::ResolveUrlToSocketAddr { source, .. } => {
            source.to_string()
        }
        // The greeting over TLS is ours, and says what is wrong with the certificate.
        Error::IoErrorReadingSocket { source } => source.to_string(),
        Error::InvalidCredentials => "it refused the login (or ended the connection during it)".into(),
        Error::ServerClosedChannel { code, message, .. }
        | Error::ServerClosedConnection { code, message } => format!("{message} ({code})"),
        Error::ConnectionTimeout => "no answer within the connection timeout".into(),
        Error::UrlNoSocketAddrs { .. } => "its name has no address".into(),
        other => other.to_string(),
    }
}

/// Whether trying again will not help. AMQP 0-9-1 reply codes: 403 access-refused, 406
/// precondition-failed, 530 not-allowed (RabbitMQ: no such vhost, or none for this user).
pub(super) fn is_refusal(error: &Error) -> bool {
    match error {
        Error::InvalidCredentials => true,
        Error::ServerClosedChannel { code, .. } | Error::ServerClosedConnection { code, .. } => {
            matches!(code, 403 | 406 | 530)
        }
        _ => false,
    }
}
