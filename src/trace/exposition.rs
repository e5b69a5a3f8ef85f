//! OpenMetrics text as a request of OTLP: the text is our own, so what is not in it is not read.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;

/// OTLP: since the start.
const CUMULATIVE: i32 = 2;

/// What the numbers are of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// When counters were 0.
    pub(super) since: SystemTime,
    /// When they were read.
    pub(super) now: SystemTime,
}

/// A family of the text.
struct Family<'t> {
    name: &'t str,
    help: &'t str,
    kind: &'t str,
    unit: &'t str,
    // Name, labels, value.
    samples: Vec<(&'t str, Vec<KeyValue>, f64)>,
}

/// The request that has every number of `text`, of a program with these attributes.
pub(super) fn request(text: &str, attributes: &[KeyValue], times: Times) -> ExportMetricsServiceRequest {
    let metrics = families(text).into_iter().map(|family| metric(family, times)).collect();
    let scope = InstrumentationScope { name: "pixel".into(), ..InstrumentationScope::default() };
    let of_scope = ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() };
    let resource = Resource { attributes: attributes.to_vec(), ..Resource::default() };
    let of_resource = ResourceMetrics {
        resource: Some(resource),
        scope_metrics: vec![of_scope],
        ..ResourceMetrics::default()
    };
    ExportMetricsServiceRequest { resource_metrics: vec![of_resource] }
}

fn families(text: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.push(Family { name, help, kind: "", unit: "", samples: Vec::new() });
            continue;
        }
        let Some(family) = families.last_mut() else { continue };
        if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            family.kind = kind;
        } else if let Some((_, unit)) = line.strip_prefix("# UNIT ").and_then(|rest| rest.split_once(' ')) {
            // OpenTelemetry's are UCUM's.
            family.unit = if unit == "seconds" { "s" } else { "By" };
        } else if !line.starts_with('#') {
            family.samples.extend(sample(line));
        }
    }
    families
}

/// A line `name{label="value",…} 1.5`, maybe with an exemplar behind it. No label of ours holds a comma, a brace or a
/// quote.
fn sample(line: &str) -> Option<(&str, Vec<KeyValue>, f64)> {
    let line = line.split(" # ").next()?;
    let (head, value) = line.rsplit_once(' ')?;
    let (name, labels) = match head.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (head, ""),
    };
    let labels = labels.split(',').filter_map(|label| {
        let (key, value) = label.split_once('=')?;
        let value = any_value::Value::StringValue(value.trim_matches('"').into());
        let value = Some(AnyValue { value: Some(value) });
        Some(KeyValue { key: key.into(), value, ..KeyValue::default() })
    });
    Some((name, labels.collect(), value.parse().ok()?))
}

fn metric(family: Family<'_>, times: Times) -> Metric {
    let [start_time_unix_nano, time_unix_nano] = [times.since, times.now].map(|time| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    });
    let points = || {
        let point = |(_, attributes, value): &(&str, Vec<KeyValue>, f64)| NumberDataPoint {
            attributes: attributes.clone(),
            start_time_unix_nano,
            time_unix_nano,
            value: Some(Value::AsDouble(*value)),
            ..NumberDataPoint::default()
        };
        family.samples.iter().map(point).collect()
    };
    let data = match family.kind {
        "counter" => {
            Data::Sum(Sum { data_points: points(), aggregation_temporality: CUMULATIVE, is_monotonic: true })
        }
        "histogram" => {
            let point = HistogramDataPoint { start_time_unix_nano, time_unix_nano, ..histogram(&family) };
            Data::Histogram(Histogram { data_points: vec![point], aggregation_temporality: CUMULATIVE })
        }
        _ => Data::Gauge(Gauge { data_points: points() }),
    };
    let name = if family.kind == "info" { format!("{}_info", family.name) } else { family.name.into() };
    Metric {
        name,
        description: family.help.into(),
        unit: family.unit.into(),
        data: Some(data),
        ..Metric::default()
    }
}

/// The one histogram of a family. Its buckets there count what those before them do, too; here each its own.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts, which are whole and not negative"
)]
fn histogram(family: &Family<'_>) -> HistogramDataPoint {
    let mut point = HistogramDataPoint::default();
    let mut before = 0;
    for (name, labels, value) in &family.samples {
        let bound = labels.iter().find(|label| label.key == "le").and_then(|label| label.value.as_ref());
        match (&name[family.name.len()..], bound.and_then(|bound| bound.value.as_ref())) {
            ("_bucket", Some(any_value::Value::StringValue(bound))) => {
                let below = *value as u64;
                point.bucket_counts.push(below.saturating_sub(before));
                before = below;
                point.explicit_bounds.extend(bound.parse::<f64>().ok().filter(|bound| bound.is_finite()));
            }
            ("_sum", _) => point.sum = Some(*value),
            ("_count", _) => point.count = *value as u64,
            _ => {}
        }
    }
    point
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a What is counted.\n# TYPE a counter\na_total{code=\"200\"} 3\na_total{code=\"503\"} 1\n\
                        # HELP b_bytes Room.\n# TYPE b_bytes gauge\n# UNIT b_bytes bytes\nb_bytes 1.5\n\
                        # HELP c_seconds How long.\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\n\
                        c_seconds_sum 2.5\nc_seconds_count 4\nc_seconds_bucket{le=\"0.1\"} 1 # {trace_id=\"x\"} 0.05\n\
                        c_seconds_bucket{le=\"1.0\"} 3\nc_seconds_bucket{le=\"+Inf\"} 4\n\
                        # HELP d Which.\n# TYPE d info\nd_info{version=\"1\"} 1\n# EOF\n";

    #[test]
    fn every_number_of_the_text_is_in_the_request() {
        let now = SystemTime::now();
        let request = request(TEXT, &[], Times { since: now, now });
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let names: Vec<_> =
            metrics.iter().map(|metric| (metric.name.as_str(), metric.unit.as_str())).collect();
        assert_eq!(names, [("a", ""), ("b_bytes", "By"), ("c_seconds", "s"), ("d_info", "")]);
        let Some(Data::Sum(sum)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        let values: Vec<_> = sum.data_points.iter().map(|point| point.value).collect();
        assert_eq!(values, [Some(Value::AsDouble(3.0)), Some(Value::AsDouble(1.0))]);
        assert!(sum.is_monotonic && sum.data_points[1].attributes[0].key == "code");
        let Some(Data::Histogram(histogram)) = &metrics[2].data else { panic!("{:?}", metrics[2]) };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum), (4, Some(2.5)));
        assert_eq!((&point.bucket_counts[..], &point.explicit_bounds[..]), (&[1, 2, 1][..], &[0.1, 1.0][..]));
    }
}
