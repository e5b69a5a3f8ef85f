//! Whatever the headers say: an untrusted peer is the client, and one that is trusted hands on only an
//! address that the headers hold.

#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use pixel::visit::client_ip::TrustedProxies;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let headers: Vec<&str> = text.split('\n').collect();
    // Lists that the operator writes, too.
    let _ = headers[0].parse::<TrustedProxies>();
    let (x_forwarded_for, forwarded) = headers.split_at(headers.len() / 2);
    let trusted: TrustedProxies = "10.0.0.0/8,fd00::/8".parse().expect("CIDRs");
    let (stranger, proxy) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([10, 0, 0, 1]));
    for (first, second) in [(x_forwarded_for, forwarded), (forwarded, x_forwarded_for), (&[], forwarded)] {
        assert_eq!(trusted.client(stranger, first, second), stranger);
        let client = trusted.client(proxy, first, second);
        assert_eq!(client, client.to_canonical());
        let believed = if first.is_empty() { second } else { first };
        assert!(client == proxy || believed.iter().any(|header| header.contains(['.', ':'])));
        // Left of the client stands nothing that counts.
        assert_eq!(trusted.client(client, &[], &[]), client);
    }
});
