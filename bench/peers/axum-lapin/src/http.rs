//! Answers `GET /track` once the broker has confirmed the visit: one persistent message a visit.
//!
//! Every request waits for its own confirm, so as many are in flight as there are connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::header::{ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_TYPE, HOST, REFERER, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum_lapin::{QUEUE, ROUTING_KEY, Visit, connect, declare, option};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};

const GIF: [u8; 43] = *b"GIF89a\x01\0\x01\0\x80\x01\0\0\0\0\xff\xff\xff!\xf9\x04\x01\0\0\x01\0,\0\0\0\0\x01\0\x01\0\0\x02\x02L\x01\0;";

const PERSISTENT: u8 = 2;

/// Publishing channels, used in turn.
struct Publisher {
    channels: Vec<Channel>,
    next: AtomicUsize,
}

impl Publisher {
    async fn publish(&self, body: &[u8]) -> lapin::Result<bool> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirmation = self.channels[turn]
            .basic_publish(QUEUE.into(), ROUTING_KEY.into(), options, body, properties)
            .await?
            .await?;
        Ok(matches!(confirmation, Confirmation::Ack(None)))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connections: usize = option("--connections").parse()?;
    let channels_each: usize = option("--channels").parse()?;
    let mut channels = Vec::new();
    let mut open = Vec::new();
    for _ in 0..connections {
        let connection = connect().await?;
        for _ in 0..channels_each {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            channels.push(channel);
        }
        open.push(connection);
    }
    declare(&channels[0]).await?;

    let publisher = Arc::new(Publisher { channels, next: AtomicUsize::new(0) });
    let router = Router::new().route("/track", get(track)).with_state(publisher);
    let listener = tokio::net::TcpListener::bind(option("--listen")).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

async fn track(
    State(publisher): State<Arc<Publisher>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let visit = visit(peer, &uri, &headers);
    let confirmed = match serde_json::to_vec(&visit) {
        Ok(body) => publisher.publish(&body).await.unwrap_or(false),
        Err(_) => false,
    };
    let status = if confirmed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(CONTENT_TYPE, "image/gif"), (CACHE_CONTROL, "no-store")], &GIF[..]).into_response()
}

fn visit(peer: SocketAddr, uri: &Uri, headers: &HeaderMap) -> Visit {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let is_set = |name: &str| headers.get(name).is_some_and(|value| value == "1");
    Visit {
        received_at: jiff::Timestamp::now(),
        ip: peer.ip().to_string(),
        referrer: text(REFERER),
        user_agent: text(USER_AGENT),
        host: text(HOST),
        path: uri.path().to_owned(),
        query: uri.query().map(str::to_owned),
        accept_language: text(ACCEPT_LANGUAGE),
        dnt: is_set("dnt"),
        gpc: is_set("sec-gpc"),
    }
}
