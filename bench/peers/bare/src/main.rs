//! The ceiling of tiny_http: four workers answer every request with the GIF and do nothing else.
//!
//! `bare ADDRESS [--unstarved]`. A burst of keep-alive connections leaves most of them without a
//! thread (tiny_http grows its pool by a counter that lags); each further connection frees one.
//! With `--unstarved` a thread opens and closes one every few milliseconds, as Pixel has to.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use std::{env, thread};

use tiny_http::{Header, Response, Server, StatusCode};

/// The transparent pixel that nginx's `empty_gif` serves.
const GIF: [u8; 43] = *b"GIF89a\x01\0\x01\0\x80\x01\0\0\0\0\xff\xff\xff!\xf9\x04\x01\0\0\x01\0,\0\0\0\0\x01\0\x01\0\0\x02\x02L\x01\0;";

const WORKERS: usize = 4;
const NUDGE_EVERY: Duration = Duration::from_millis(5);

fn main() {
    let address = env::args().nth(1).expect("usage: bare ADDRESS [--unstarved]");
    let server = Arc::new(Server::http(&address).expect("the address is free"));
    eprintln!("listening on http://{address}");
    if env::args().any(|argument| argument == "--unstarved") {
        thread::spawn(move || {
            loop {
                drop(TcpStream::connect(&address));
                thread::sleep(NUDGE_EVERY);
            }
        });
    }
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let server = Arc::clone(&server);
            thread::spawn(move || answer(&server))
        })
        .collect();
    for worker in workers {
        worker.join().expect("a worker ends without a panic");
    }
}

fn answer(server: &Server) {
    while let Ok(request) = server.recv() {
        let gif_type = Header::from_bytes("Content-Type", "image/gif").expect("a valid header");
        let response = Response::new(StatusCode(200), vec![gif_type], &GIF[..], Some(GIF.len()), None);
        // A client that has gone away is no reason to stop.
        let _ = request.respond(response);
    }
}
