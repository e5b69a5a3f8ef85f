//! What spans and numbers are of: this program, by the name that it is given.

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

/// The program. What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say counts.
pub(super) fn resource(program: &'static str, is_named: bool) -> Resource {
    let mut own = vec![
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ];
    if !is_named {
        own.push(KeyValue::new("service.name", program));
    }
    Resource::builder().with_attributes(own).build()
}
