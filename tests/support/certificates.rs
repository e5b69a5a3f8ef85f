//! Certificates for a test, by openssl.

use std::path::Path;
use std::process::Command;

use super::Outcome;

const MAKE: &str = r#"
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key" 2>/dev/null; }
for name in ca other; do
  key $name && openssl req -x509 -key $name.key -days 2 -subj "/CN=$name" -out $name.pem
done
for name in server client; do
  key $name && openssl req -new -key $name.key -subj "/CN=$name" -out $name.csr
  openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out $name.pem \
    -extfile <(printf 'subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n') 2>/dev/null
done
"#;

/// Makes two authorities in `folder`, `ca` and `other`, and by the first the certificates of a `server` called localhost
/// and of a `client`: `.pem` each, and its key in `.key`.
pub fn make(folder: &Path) -> Outcome {
    let made = Command::new("bash").args(["-ec", MAKE]).current_dir(folder).output()?;
    if made.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&made.stderr).into()) }
}
