//! Whose address a visit carries when proxies stand in between.
//!
//! The walk starts at the peer and goes outwards as long as the hop that is reached is a trusted
//! proxy and names the one before it. An entry that is no address ends the walk: what stands left
//! of it was written by nobody that is trusted. So no client can choose its own address.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ipnet::IpNet;

/// The longest chain that is followed, in entries from the right.
const HOPS_MAX: usize = 64;

/// The networks whose `X-Forwarded-For` and `Forwarded` are believed.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    has_warned: Arc<AtomicBool>,
}

impl TrustedProxies {
    /// The client's address, from the peer's and what the request says of its way.
    ///
    /// Where both headers came, `X-Forwarded-For` is believed: most proxies write only that one and
    /// hand a client's own `Forwarded` on untouched.
    pub fn client<'a>(&self, peer: IpAddr, x_forwarded_for: &[&'a str], forwarded: &[&'a str]) -> IpAddr {
        let peer = peer.to_canonical();
        type Parts<'a> = fn(&'a str) -> Vec<&'a str>;
        type Entry<'a> = fn(&'a str) -> Option<IpAddr>;
        let (headers, parts, entry): (_, Parts<'a>, Entry<'a>) = if x_forwarded_for.is_empty() {
            (forwarded, |header| split_quoted(header, b','), forwarded_for)
        } else {
            // It knows no quotes: one that a client writes hides nothing of what is appended to it.
            (x_forwarded_for, |header| header.split(',').collect(), address)
        };
        let mut hop = peer;
        let entries = headers.iter().rev().flat_map(|header| parts(header).into_iter().rev());
        for written in entries.take(HOPS_MAX) {
            if !self.trusts(hop) {
                break;
            }
            match entry(written) {
                Some(address) => hop = address,
                None => break,
            }
        }
        hop
    }

    /// Whether anything that `peer` says of others is believed.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&peer))
    }

    /// Says once that a peer speaks of others and is not believed: behind a proxy that is not configured, every visit
    /// carries the proxy's address.
    pub fn warn_of(&self, peer: IpAddr) {
        if !self.has_warned.load(Ordering::Relaxed) && !self.has_warned.swap(true, Ordering::Relaxed) {
            log::warn!(
                "{peer} sends X-Forwarded-For or Forwarded, which is not believed: if it is your proxy, name it in \
                 PIXEL_TRUSTED_PROXIES, or each visit carries its address (said once)"
            );
        }
    }
}

impl std::str::FromStr for TrustedProxies {
    type Err = String;

    /// Reads a comma-separated list of CIDRs or addresses.
    fn from_str(list: &str) -> Result<Self, String> {
        list.split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(|entry| {
                let network = entry.parse::<IpNet>().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from));
                network.map_err(|_| format!("`{entry}` is no CIDR such as 10.0.0.0/8"))
            })
            .collect::<Result<_, _>>()
            .map(|networks| TrustedProxies { networks, ..TrustedProxies::default() })
    }
}

/// The `for` of one element of `Forwarded` (RFC 7239, sections 4 and 6).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    split_quoted(element, b';').into_iter().find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim();
        let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        name.trim().eq_ignore_ascii_case("for").then(|| address(quoted.unwrap_or(value)))?
    })
}

/// An address as proxies write it: bare, with a port, or in brackets with or without one.
fn address(written: &str) -> Option<IpAddr> {
    let written = written.trim();
    let ip = if let Some(bracketed) = written.strip_prefix('[') {
        let (ip, port) = bracketed.split_once(']')?;
        let port = port.strip_prefix(':').map(is_port);
        if port == Some(false) || port.is_none() && !bracketed.ends_with(']') {
            return None;
        }
        IpAddr::V6(ip.parse().ok()?)
    } else if let Ok(ip) = written.parse() {
        ip
    } else {
        let (ip, port) = written.rsplit_once(':')?;
        is_port(port).then_some(IpAddr::V4(ip.parse::<Ipv4Addr>().ok()?))?
    };
    Some(ip.to_canonical())
}

fn is_port(written: &str) -> bool {
    // RFC 7239 section 6.3 allows an obfuscated port too.
    written.parse::<u16>().is_ok() || written.starts_with('_')
}

/// Splits at `separator`, but not within double quotes. A part whose quote stays open is taken for an empty one:
/// what a proxy has appended may stand in it, behind what a client wrote.
fn split_quoted(text: &str, separator: u8) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut from, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(if quoted { "" } else { &text[from..] });
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_choose_its_address() {
        const NONE: &[&str] = &[];
        let trusted: TrustedProxies = "10.0.0.0/8, 192.0.2.1,fd00::/8".parse().expect("CIDRs");
        for (case, peer, x_forwarded_for, forwarded, client) in [
            ("no proxy", "1.1.1.1", NONE, NONE, "1.1.1.1"),
            ("an untrusted peer's claim", "1.1.1.1", &["9.9.9.9"][..], NONE, "1.1.1.1"),
            ("an untrusted peer's Forwarded", "1.1.1.1", NONE, &["for=9.9.9.9"][..], "1.1.1.1"),
            ("one proxy", "10.0.0.1", &["1.1.1.1"], NONE, "1.1.1.1"),
            ("a spoofed entry before the real one", "10.0.0.1", &["9.9.9.9, 1.1.1.1"], NONE, "1.1.1.1"),
            ("a chain of proxies", "10.0.0.1", &["9.9.9.9, 1.1.1.1, 10.2.2.2"], NONE, "1.1.1.1"),
            ("a chain over two headers", "10.0.0.1", &["9.9.9.9,1.1.1.1", "192.0.2.1"], NONE, "1.1.1.1"),
            ("all of them trusted", "10.0.0.1", &["10.3.3.3, 10.2.2.2"], NONE, "10.3.3.3"),
            ("a port", "10.0.0.1", &["1.1.1.1:4711"], NONE, "1.1.1.1"),
            ("IPv6", "10.0.0.1", &["2001:db8::1"], NONE, "2001:db8::1"),
            ("IPv6 in brackets", "10.0.0.1", &["[2001:db8::1]"], NONE, "2001:db8::1"),
            ("IPv6 with a port", "10.0.0.1", &["[2001:db8::1]:4711"], NONE, "2001:db8::1"),
            ("IPv6 with a bad port", "10.0.0.1", &["[2001:db8::1]:x"], NONE, "10.0.0.1"),
            ("IPv6 with a tail", "10.0.0.1", &["[2001:db8::1]x"], NONE, "10.0.0.1"),
            ("an IPv6 proxy", "fd00::1", &["2001:db8::1"], NONE, "2001:db8::1"),
            ("mapped IPv4", "::ffff:10.0.0.1", &["::ffff:1.1.1.1"], NONE, "1.1.1.1"),
            ("a mapped peer", "::ffff:1.1.1.1", NONE, NONE, "1.1.1.1"),
            ("unknown", "10.0.0.1", &["unknown"], NONE, "10.0.0.1"),
            ("what stands left of unknown", "10.0.0.1", &["9.9.9.9, unknown"], NONE, "10.0.0.1"),
            ("nonsense", "10.0.0.1", &["1.1.1.1.1"], NONE, "10.0.0.1"),
            ("empty", "10.0.0.1", &[""], NONE, "10.0.0.1"),
            ("an empty entry", "10.0.0.1", &["1.1.1.1,"], NONE, "10.0.0.1"),
            ("Forwarded", "10.0.0.1", NONE, &["for=1.1.1.1;proto=https"], "1.1.1.1"),
            ("Forwarded in capitals", "10.0.0.1", NONE, &["Proto=https; For=1.1.1.1"], "1.1.1.1"),
            ("Forwarded, quoted IPv6", "10.0.0.1", NONE, &[r#"for="[2001:db8::1]:47""#], "2001:db8::1"),
            ("Forwarded, chained", "10.0.0.1", NONE, &["for=9.9.9.9, for=1.1.1.1, for=10.2.2.2"], "1.1.1.1"),
            ("Forwarded, a comma in quotes", "10.0.0.1", NONE, &[r#"for=1.1.1.1;by="a,b""#], "1.1.1.1"),
            ("Forwarded, hidden", "10.0.0.1", NONE, &["for=_hidden"], "10.0.0.1"),
            ("Forwarded, left of hidden", "10.0.0.1", NONE, &["for=9.9.9.9, for=_hidden"], "10.0.0.1"),
            ("Forwarded, no for", "10.0.0.1", NONE, &["proto=https"], "10.0.0.1"),
            ("Forwarded, an open quote", "10.0.0.1", NONE, &["for=\"1.1.1.1"], "10.0.0.1"),
            // A quote that the client opens, and what the proxy appends to it.
            ("a quote", "10.0.0.1", &["\", 1.1.1.1"], NONE, "1.1.1.1"),
            ("a quote, then one more", "10.0.0.1", &["9.9.9.9,\"", "\", 1.1.1.1"], NONE, "1.1.1.1"),
            ("Forwarded, a quote", "10.0.0.1", NONE, &[r#"for=9.9.9.9;x=", for=1.1.1.1"#], "10.0.0.1"),
            (
                "Forwarded, a quote and an escape",
                "10.0.0.1",
                NONE,
                &[r#"for=9.9.9.9;x="\, for="[2001:db8::1]""#],
                "10.0.0.1",
            ),
            (
                "Forwarded, a quote before another",
                "10.0.0.1",
                NONE,
                &[r#"for=9.9.9.9;x=", for="[2001:db8::1]:47";proto=https"#],
                "10.0.0.1",
            ),
            (
                "Forwarded, a quote in a line of its own",
                "10.0.0.1",
                NONE,
                &["for=9.9.9.9;x=\"", "for=1.1.1.1"],
                "1.1.1.1",
            ),
            ("both", "10.0.0.1", &["1.1.1.1"], &["for=9.9.9.9"], "1.1.1.1"),
        ] {
            let peer = peer.parse().expect(case);
            let found = trusted.client(peer, x_forwarded_for, forwarded);
            assert_eq!(found.to_string(), client, "{case}");
        }
    }

    #[test]
    fn a_list_names_its_bad_entry() {
        let refused = "10.0.0.0/8,10.0.0.0/33".parse::<TrustedProxies>().expect_err("bad CIDR");
        assert!(refused.contains("`10.0.0.0/33`"), "{refused}");
        assert!("".parse::<TrustedProxies>().is_ok_and(|trusted| trusted.networks.is_empty()));
    }
}
