//! The file of settings: TOML, the variables' names without `PIXEL_`.

use std::collections::BTreeMap;
use std::fs;

use toml::{Table, Value};

/// Reads the file at `path`: texts by the variables' names.
///
/// # Errors
/// What the system said, where it is no TOML, or which of its values is no text or number.
pub(super) fn read(path: &str) -> Result<BTreeMap<String, String>, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    parse(&text)
}

fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        // Its own text quotes the line, and that may hold a password.
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        format!("line {line}: {}", error.message())
    })?;
    let mut texts = BTreeMap::new();
    for (key, value) in table {
        let text = plain(&key, value)?;
        if texts.insert(format!("PIXEL_{}", key.to_uppercase().replace('-', "_")), text).is_some() {
            return Err(format!("`{key}` is there twice, with - and with _"));
        }
    }
    Ok(texts)
}

fn plain(key: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        // Of what may be given several times, with commas.
        Value::Array(values) => {
            let texts: Result<Vec<_>, _> = values.into_iter().map(|value| plain(key, value)).collect();
            Ok(texts?.join(","))
        }
        other => {
            Err(format!("`{key}` is a {}: expected a text, a number or a list of texts", other.type_str()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_variables_names_and_values_are_texts() {
        let text = "listen = '[::]:8080'\nspool_max_bytes = 5\ntrusted-proxies = ['10.0.0.0/8', '::1']\n";
        let expected =
            [("LISTEN", "[::]:8080"), ("SPOOL_MAX_BYTES", "5"), ("TRUSTED_PROXIES", "10.0.0.0/8,::1")];
        let expected = expected.map(|(name, text)| (format!("PIXEL_{name}"), text.to_string()));
        assert_eq!(parse(text), Ok(BTreeMap::from(expected)));
        for (bad, said) in [
            ("listen", "1"),
            ("listen = true", "`listen` is a boolean"),
            ("[http]\na = 1", "table"),
            ("spool-dir = 'a'\nspool_dir = 'b'", "twice"),
        ] {
            assert!(parse(bad).is_err_and(|problem| problem.contains(said)), "{bad}: {:?}", parse(bad));
        }
    }
}
