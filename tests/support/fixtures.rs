//! What most tests begin with: `pixel` by itself, or both services on a queue of their own.
//!
//! They write ndjson, so that each line says which visit it is, and a public listener keeps its address
//! from start to start, so that a load goes on.

use std::net::SocketAddr;

use super::Outcome;
use super::broker::NOWHERE;
use super::client::get;
use super::launch::Launch;
use super::load::Load;
use super::output::Output;
use super::port::free_address;
use super::program::{CONSUMING, Program};
use super::wait::wait_until;

/// `pixel`, started.
pub struct Embedded {
    pub pixel: Program,
    pub address: SocketAddr,
    pub output: Output,
}

impl Embedded {
    /// Starts it with nothing special.
    pub fn start() -> Outcome<Embedded> {
        Self::with(|launch| launch)
    }

    /// Starts it with other options.
    pub fn with(options: impl FnOnce(Launch) -> Launch) -> Outcome<Embedded> {
        Self::of(&options(Self::launch()?))
    }

    /// How it is started, for a test that prepares its folder first.
    pub fn launch() -> Outcome<Launch> {
        Ok(Launch::new("pixel")?.with("listen", free_address().to_string()).with("format", "ndjson"))
    }

    /// Starts it in the folder that was prepared.
    pub fn of(launch: &Launch) -> Outcome<Embedded> {
        let mut pixel = launch.start()?;
        Ok(Embedded { address: pixel.address()?, output: launch.output(), pixel })
    }

    /// A visit that is answered with 200.
    pub fn visit(&self, headers: &[(&str, &str)]) -> Outcome {
        match get(self.address, "/track", headers)?.status {
            200 => Ok(()),
            status => Err(format!("a visit was answered with {status}").into()),
        }
    }

    /// Starts a load of `clients` connections.
    pub fn load(&self, clients: usize) -> Load {
        Load::start(self.address, clients)
    }

    /// Ends the load and the program: every promise is kept, and the audit finds nothing.
    pub fn stop_and_verify(self, load: Load) -> Outcome {
        self.output.verify(&load.stop())?;
        self.stop_and_audit()
    }

    /// The same where the output was rotated: every promise is kept in one of its files.
    pub fn stop_and_verify_all(self, load: Load) -> Outcome {
        let promised = load.stop().promised;
        self.output.all_have_each_once(&promised)?;
        println!("{} answers of 200, each written once in {:?}", promised.len(), self.output.files()?);
        self.stop_and_audit()
    }

    /// Ends the program with SIGTERM; the audit finds nothing.
    pub fn stop_and_audit(mut self) -> Outcome {
        self.pixel.stop()?;
        self.output.audit_finds_nothing().map(drop)
    }
}

/// Both services on a queue of their own, not started.
pub struct Services {
    pub http: Launch,
    pub storage: Launch,
    pub output: Output,
}

impl Services {
    /// With the queue of this name at the broker of this address.
    pub fn new(url: &str, queue: &str) -> Outcome<Services> {
        let launch =
            |program| Launch::new(program).map(|launch| launch.with("amqp-url", url).with("queue", queue));
        let storage = launch("pixel-storage")?.with("format", "ndjson");
        Ok(Services {
            http: launch("pixel-http")?.with("listen", free_address().to_string()),
            output: storage.output(),
            storage,
        })
    }
}

/// Both services, started.
pub struct Brokered {
    pub http: Program,
    pub storage: Program,
    pub address: SocketAddr,
    pub output: Output,
}

impl Brokered {
    /// Starts both on the queue of this name at the broker of this address, and waits until they are ready.
    pub fn start(url: &str, queue: &str) -> Outcome<Brokered> {
        let mut system = Self::spawn(url, queue)?;
        system.storage.wait_for_log(CONSUMING)?;
        Ok(system)
    }

    /// Starts both where the broker need not be there: pixel-http takes visits, pixel-storage tries.
    pub fn spawn(url: &str, queue: &str) -> Outcome<Brokered> {
        let services = Services::new(url, queue)?;
        let mut http = services.http.start()?;
        let storage = services.storage.spawn()?;
        Ok(Brokered { address: http.address()?, http, storage, output: services.output })
    }

    /// Starts a load of `clients` connections.
    pub fn load(&self, clients: usize) -> Load {
        Load::start(self.address, clients)
    }

    /// Waits until both are ready and neither says that anything waits.
    pub fn wait_until_well(&mut self) -> Outcome {
        for program in [&mut self.http, &mut self.storage] {
            let admin = program.admin()?;
            wait_until("a program that is well", || {
                admin.readiness().is_ok_and(|(status, state)| status == 200 && !state.contains("wait"))
            })?;
        }
        Ok(())
    }

    /// Ends the load and both services: every promise is kept, and the audit finds nothing.
    pub fn stop_and_verify(self, load: Load) -> Outcome {
        self.output.verify(&load.stop())?;
        self.stop_and_audit()
    }

    /// Ends both services with SIGTERM; the audit finds nothing.
    pub fn stop_and_audit(mut self) -> Outcome {
        self.http.stop()?;
        self.storage.stop()?;
        self.output.audit_finds_nothing().map(drop)
    }
}

/// All three programs, without a broker.
pub fn all_programs() -> Outcome<Vec<(&'static str, Program)>> {
    let services = Services::new(NOWHERE, "nobody")?;
    Ok(vec![
        ("pixel", Embedded::launch()?.start()?),
        ("pixel-http", services.http.start()?),
        ("pixel-storage", services.storage.spawn()?),
    ])
}
