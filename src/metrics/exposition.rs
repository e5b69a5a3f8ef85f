//! OpenMetrics text as Prometheus' older text format (0.0.4), for those who ask for that one.
//!
//! The samples are the same. There a family is called as its samples are, has no unit, and no type `info`.

/// The text in format 0.0.4.
pub(super) fn plain(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // How the family is called depends on its type, which is in the next line.
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            text += &format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with("# ") {
            // What follows a value there is an exemplar.
            text += line
                .split_once(" # {")
                .filter(|_| line.contains("_bucket{"))
                .map_or(line, |(value, _)| value);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_called_as_their_samples() {
        for (case, from, to) in [
            (
                "a counter",
                "# HELP a b c.\n# TYPE a counter\na_total 1\n# EOF\n",
                "# HELP a_total b c.\n# TYPE a_total counter\na_total 1\n",
            ),
            (
                "a gauge with a unit",
                "# HELP a_bytes b.\n# TYPE a_bytes gauge\n# UNIT a_bytes bytes\na_bytes 1\n",
                "# HELP a_bytes b.\n# TYPE a_bytes gauge\na_bytes 1\n",
            ),
            (
                "an exemplar",
                "# HELP a b.\n# TYPE a histogram\na_bucket{le=\"1.0\"} 2 # {trace_id=\"c\"} 0.5\n",
                "# HELP a b.\n# TYPE a histogram\na_bucket{le=\"1.0\"} 2\n",
            ),
            (
                "an info",
                "# HELP a b.\n# TYPE a info\na_info{c=\"d\"} 1\n",
                "# HELP a_info b.\n# TYPE a_info gauge\na_info{c=\"d\"} 1\n",
            ),
        ] {
            assert_eq!(plain(from), to, "{case}");
        }
    }
}
