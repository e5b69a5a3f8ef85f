//! From the facts of a request to a visit.

use std::net::IpAddr;

use jiff::Timestamp;

use crate::visit::client_ip::TrustedProxies;
use crate::visit::{Text, Visit};

/// The target of a request, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The scheme of an absolute-form target.
    pub scheme: Option<&'a str>,
    /// The authority of an absolute-form target.
    pub host: Option<&'a str>,
    /// The path, `/` at least.
    pub path: &'a str,
    /// What follows the first question mark.
    pub query: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Takes an origin-form or absolute-form target apart (RFC 9112, section 3.2).
    pub fn parse(target: &'a str) -> Self {
        let scheme_end = if target.starts_with('/') { None } else { target.find("://") };
        let (scheme, host, rest) = match scheme_end {
            None => (None, None, target),
            Some(end) => {
                let rest = &target[end + 3..];
                let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                (Some(&target[..end]), Some(host), path)
            }
        };
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        Target { scheme, host, path: if path.is_empty() { "/" } else { path }, query }
    }
}

/// Makes a visit of a request's facts. Whether it was asked for by TLS is known where a proxy that is trusted says so
/// (`X-Forwarded-Proto`), or the target. `headers` are names and values in their order; of a repeated
/// header the first counts, but of those that name the way here, which add up.
pub fn visit<'a>(
    received_at: Timestamp,
    peer: IpAddr,
    proxies: &TrustedProxies,
    method: &'a str,
    target: Target<'a>,
    headers: impl Iterator<Item = (&'a str, &'a str)>,
) -> Visit<'a> {
    let mut visit = Visit {
        received_at,
        ip: peer.to_canonical(),
        referrer: None,
        user_agent: None,
        host: target.host.and_then(Text::new),
        path: Text::new(target.path),
        query: target.query.and_then(Text::new),
        accept_language: None,
        dnt: false,
        gpc: false,
        method: Text::new(method),
        scheme: target.scheme.and_then(scheme),
    };
    let believed = proxies.trusts(visit.ip);
    let (mut x_forwarded_for, mut forwarded) = (Vec::new(), Vec::new());
    let mut misspelt_referrer = None;
    for (name, value) in headers {
        let is = |field: &str| name.eq_ignore_ascii_case(field);
        // The length sorts out nearly all names before any is compared.
        match name.len() {
            3 if is("dnt") => visit.dnt |= value == "1",
            4 if is("host") => set(&mut visit.host, value),
            7 if is("referer") => set(&mut visit.referrer, value),
            7 if is("sec-gpc") => visit.gpc |= value == "1",
            8 if is("referrer") => set(&mut misspelt_referrer, value),
            9 | 15 if !believed && (is("forwarded") || is("x-forwarded-for")) => proxies.warn_of(visit.ip),
            9 if is("forwarded") => forwarded.push(value),
            10 if is("user-agent") => set(&mut visit.user_agent, value),
            15 if is("accept-language") => set(&mut visit.accept_language, value),
            15 if is("x-forwarded-for") => x_forwarded_for.push(value),
            17 if believed && is("x-forwarded-proto") => visit.scheme = scheme(value).or(visit.scheme),
            _ => {}
        }
    }
    visit.referrer = visit.referrer.or(misspelt_referrer);
    visit.ip = proxies.client(peer, &x_forwarded_for, &forwarded);
    visit
}

/// A scheme that the pixel can be asked for by. Of several, the nearest proxy's is the last.
fn scheme(value: &str) -> Option<Text<'static>> {
    let last = value.rsplit(',').next().unwrap_or_default().trim();
    let known = ["https", "http"].into_iter().find(|known| known.eq_ignore_ascii_case(last));
    known.and_then(Text::new)
}

fn set<'a>(slot: &mut Option<Text<'a>>, value: &'a str) {
    if slot.is_none() {
        *slot = Text::new(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_taken_apart() {
        for (case, target, whole_host, path, query) in [
            ("plain", "/track", None, "/track", None),
            ("query", "/track?x=1&y=2", None, "/track", Some("x=1&y=2")),
            ("two question marks", "/track?x=?", None, "/track", Some("x=?")),
            ("empty query", "/track?", None, "/track", Some("")),
            ("absolute", "http://px.example.com/track?x", Some("px.example.com"), "/track", Some("x")),
            ("absolute, no path", "http://px.example.com?x", Some("px.example.com"), "/", Some("x")),
            ("a URL in the query", "/track?u=http://a/b", None, "/track", Some("u=http://a/b")),
            ("asterisk", "*", None, "*", None),
        ] {
            let scheme = whole_host.map(|_: &str| "http");
            assert_eq!(Target::parse(target), Target { scheme, host: whole_host, path, query }, "{case}");
        }
    }

    #[test]
    fn headers_become_values() {
        let made = |headers: &[(&'static str, &'static str)]| {
            let target = Target::parse("/track");
            let peer = "::ffff:1.2.3.4".parse().expect("an address");
            let headers = headers.iter().copied();
            visit(Timestamp::UNIX_EPOCH, peer, &TrustedProxies::default(), "GET", target, headers)
        };
        let referrer = |headers| made(headers).referrer.map(|text| text.as_str().to_string());
        for (case, headers, expected) in [
            ("none", &[][..], None),
            ("Referer", &[("Referer", "a")], Some("a")),
            ("misspelt the other way", &[("Referrer", "b")], Some("b")),
            ("both", &[("referrer", "b"), ("REFERER", "a")], Some("a")),
            ("twice", &[("Referer", "a"), ("Referer", "b")], Some("a")),
            ("an empty one first", &[("Referer", ""), ("Referrer", "b")], Some("b")),
        ] {
            assert_eq!(referrer(headers).as_deref(), expected, "{case}");
        }
        let visit = made(&[("DNT", "1"), ("Sec-GPC", "1"), ("Host", "h"), ("X-Forwarded-For", "9.9.9.9")]);
        assert!(visit.dnt && visit.gpc);
        assert_eq!(visit.ip.to_string(), "1.2.3.4");
        assert!(!made(&[("DNT", "0"), ("Sec-GPC", "null")]).dnt);
    }

    #[test]
    fn the_scheme_is_a_trusted_proxy_s_word_or_the_target_s() {
        let proxies: TrustedProxies = "10.0.0.0/8".parse().expect("a network");
        for (case, peer, target, header, expected) in [
            ("nobody says", "1.2.3.4", "/track", None, None),
            ("a proxy", "10.0.0.1", "/track", Some("https"), Some("https")),
            ("in capitals", "10.0.0.1", "/track", Some("HTTPS"), Some("https")),
            ("a chain of them", "10.0.0.1", "/track", Some("http, https"), Some("https")),
            ("anybody", "1.2.3.4", "/track", Some("https"), None),
            ("no scheme of the web", "10.0.0.1", "/track", Some("wss"), None),
            ("the target", "1.2.3.4", "http://h/track", None, Some("http")),
            ("a proxy, and the target", "10.0.0.1", "http://h/track", Some("https"), Some("https")),
        ] {
            let headers = header.map(|value| ("X-Forwarded-Proto", value)).into_iter();
            let (peer, target) = (peer.parse().expect("an address"), Target::parse(target));
            let made = visit(Timestamp::UNIX_EPOCH, peer, &proxies, "POST", target, headers);
            assert_eq!(made.scheme.as_ref().map(Text::as_str), expected, "{case}");
            assert_eq!(made.method.as_ref().map(Text::as_str), Some("POST"), "{case}");
        }
    }
}
