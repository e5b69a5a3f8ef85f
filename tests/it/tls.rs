//! A broker that is spoken with over TLS: who is believed, and who is let in.

use std::net::TcpStream;
use std::path::Path;

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::certificates;
use crate::support::fixtures::Services;
use crate::support::launch::Launch;
use crate::support::load::Load;
use crate::support::port::free_port;
use crate::support::wait::wait_until;

/// A broker that wants certificates of its clients, and its TLS port.
fn start(folder: &Path) -> Outcome<(Broker, u16)> {
    certificates::make(folder)?;
    let (port, folder) = (free_port(), folder.display());
    let settings = format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {folder}/ca.pem\n\
         ssl_options.certfile = {folder}/server.pem\nssl_options.keyfile = {folder}/server.key\n\
         ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n"
    );
    let broker = Broker::with(settings.leak())?;
    // It opens its ports one after another.
    wait_until("the port for TLS", || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
    Ok((broker, port))
}

#[test]
fn visits_go_over_tls_to_a_broker_that_is_who_it_says_and_wants_to_know_who_we_are() -> Outcome {
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name);
    let (_broker, port) = start(folder.path())?;
    let url = format!("amqps://guest:guest@localhost:{port}/%2f");
    let services = Services::new(&url, "tls")?;
    let known = |launch: &Launch| {
        let launch = launch.clone().with("amqp-ca-file", file("ca.pem"));
        launch.with("amqp-cert-file", file("client.pem")).with("amqp-key-file", file("client.key"))
    };

    let by_address = url.replace("localhost", "127.0.0.1");
    for (case, launch, said) in [
        ("another authority", known(&services.http).with("amqp-ca-file", file("other.pem")), "UnknownIssuer"),
        ("the system's authorities", known(&services.http).with("amqp-ca-file", ""), "UnknownIssuer"),
        ("another name", known(&services.http).with("amqp-url", &by_address), "not valid for name"),
        (
            "no certificate",
            services.http.clone().with("amqp-ca-file", file("ca.pem")),
            "the broker at amqps://guest:***@localhost",
        ),
    ] {
        let mut http = launch.start()?;
        let line = http.wait_for_log("visits wait in the spool, trying again")?;
        assert!(line.contains(said), "{case}: {line}");
        http.stop()?;
    }

    let mut http = known(&services.http).start()?;
    let mut storage = known(&services.storage).start()?;
    let load = Load::start(http.address()?, 8);
    load.wait_for(2000)?;
    services.output.verify(&load.stop())?;
    http.stop()?;
    storage.stop()
}
