//! TLS towards the broker: whom to believe, who we are, and a stream that amiquip's loop can poll.
//!
//! amiquip's own TLS is OpenSSL's, which a build would need the headers of. Its loop reads and writes until a stream
//! would block, which [`TlsStream`] keeps to on top of rustls.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amiquip::IoStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// Where systems keep the authorities that they trust: Debian and Alpine, Fedora, openSUSE, BSD.
const SYSTEM_AUTHORITIES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// How much is encrypted at once, in bytes: what a TLS record holds.
const RECORD_MAX_BYTES: usize = 16 << 10;

/// How a connection to the broker is made safe.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

impl Tls {
    /// Believes the authorities in the file `authorities`, else the system's, and shows the certificate of `identity`, a
    /// chain and its key, to brokers that ask for one. All files are PEM.
    ///
    /// # Errors
    /// Which file is of no use, and why.
    pub fn new(authorities: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<Tls, String> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots(authorities)?);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let read = PrivateKeyDer::from_pem_file(key);
                let read =
                    read.map_err(|error| format!("failed to read a key of `{}`: {error}", key.display()))?;
                let built = builder.with_client_auth_cert(certificates(chain)?, read);
                built.map_err(|error| {
                    format!("`{}` and `{}` do not belong together: {error}", chain.display(), key.display())
                })?
            }
        };
        Ok(Tls(Arc::new(config)))
    }

    /// Greets the broker called `host`, and makes sure that it is the one. To be cut by shutting `socket` down.
    ///
    /// # Errors
    /// What is wrong with its certificate, or the connection.
    pub(super) fn greet(&self, host: &str, mut socket: TcpStream) -> io::Result<TlsStream> {
        let name = ServerName::try_from(host.to_string()).map_err(io::Error::other)?;
        let mut connection = ClientConnection::new(self.0.clone(), name).map_err(io::Error::other)?;
        while connection.is_handshaking() || connection.wants_write() {
            connection.complete_io(&mut socket)?;
        }
        Ok(TlsStream { connection, socket: mio::net::TcpStream::from_stream(socket)?, unreported: 0 })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Tls")
    }
}

fn roots(authorities: Option<&Path>) -> Result<RootCertStore, String> {
    let system = || {
        let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
        named.or_else(|| SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists()))
    };
    let path = authorities.map(PathBuf::from).or_else(system);
    let path = path.ok_or("there is no file of authorities on this system: name one")?;
    let mut roots = RootCertStore::empty();
    // A system's list may have some that are too old for rustls.
    let (added, _) = roots.add_parsable_certificates(certificates(&path)?);
    match added {
        0 => Err(format!("`{}` has no authority that can be used", path.display())),
        _ => Ok(roots),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: String| format!("failed to read certificates of `{}`: {error}", path.display());
    let pem = fs::read(path).map_err(|error| failed(error.to_string()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates.map_err(|error| failed(error.to_string()))? {
        none if none.is_empty() => Err(failed("there is none in it".into())),
        certificates => Ok(certificates),
    }
}

/// A connection whose greeting is done, on a socket that does not block.
pub(super) struct TlsStream {
    connection: ClientConnection,
    socket: mio::net::TcpStream,
    // How many bytes were encrypted of which the caller does not know yet, as the socket was full.
    unreported: usize,
}

impl Read for TlsStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            self.connection.read_tls(&mut self.socket)?;
            let processed = self.connection.process_new_packets();
            processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }
}

impl Write for TlsStream {
    /// Encrypts of `buffer` and hands it to the socket. Where that is full, the same bytes have to be given again.
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.unreported == 0 {
            let some = &buffer[..buffer.len().min(RECORD_MAX_BYTES)];
            self.unreported = self.connection.writer().write(some)?;
        }
        self.flush()?;
        Ok(std::mem::take(&mut self.unreported))
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.socket)?;
        }
        Ok(())
    }
}

impl Evented for TlsStream {
    fn register(&self, poll: &Poll, token: Token, interest: Ready, opts: PollOpt) -> io::Result<()> {
        self.socket.register(poll, token, interest, opts)
    }

    fn reregister(&self, poll: &Poll, token: Token, interest: Ready, opts: PollOpt) -> io::Result<()> {
        self.socket.reregister(poll, token, interest, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.socket.deregister(poll)
    }
}

impl IoStream for TlsStream {}
