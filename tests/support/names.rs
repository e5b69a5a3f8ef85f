//! Names that one program alone can look up, as containers have them: DNS of a few lines, on a loopback address.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::thread;

use super::Outcome;

/// The part of an answer that is the same for each address: the name that was asked for, A, IN, 5 s, 4 bytes (RFC 1035).
const ADDRESS: &[u8] = &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4];

/// Answers who asks `server` for the addresses of `names` as long as the test runs. Returns what starts a program that
/// asks it and nobody else, by a file in `folder`; that takes root.
pub fn serve(
    server: Ipv4Addr,
    names: &'static [&'static str],
    addresses: impl Fn(&str) -> Vec<Ipv4Addr> + Send + 'static,
    folder: &Path,
) -> Outcome<Vec<String>> {
    let socket = UdpSocket::bind((server, 53)).map_err(|error| format!("DNS at {server}: {error}"))?;
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut question) {
            let found = names.iter().find(|name| question[13..].starts_with(name.as_bytes()));
            let addresses = found.map(|name| addresses(name)).unwrap_or_default();
            let count = u8::try_from(addresses.len()).expect("they are few");
            // Its number, a recursive answer, one question, and nothing but answers.
            let mut answer = [&question[..2], &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]].concat();
            let end = question[12..length].iter().position(|byte| *byte == 0).map_or(length, |end| end + 17);
            answer.extend_from_slice(&question[12..end.min(length)]);
            addresses.iter().for_each(|ip| answer.extend([ADDRESS, &ip.octets()].concat()));
            // Who has not heard it asks again.
            let _ = socket.send_to(&answer, client);
        }
    });
    let path = folder.join("resolv.conf");
    std::fs::write(&path, format!("nameserver {server}\n"))?;
    let start = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;
    let command = ["unshare", "--mount", "--", "sh", "-c", start].map(str::to_string);
    Ok(command.into_iter().chain([path.display().to_string()]).collect())
}
