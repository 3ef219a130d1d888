//! Connections: taken, bounded, and handed to the pages. Whoever is slow loses its place: in the handshake, with its request,
//! between two requests, and in taking what was answered. All of it happens on a thread of its own: what strangers have it
//! compute, as in a crowd of handshakes, is no delay of a restart.

use std::{future::Future, io, sync::Arc, thread, time::Duration};

use anyhow::{Context as _, Result};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime,
    sync::{Semaphore, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::gate::Gate;

/// What those who come may use up.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Connections at a time; the next waits with the kernel until one has ended.
    connections: usize,
    /// For a TLS handshake.
    handshake: Duration,
    /// For the head of a request, and between two of them.
    head: Duration,
}

const USUAL: Bounds = Bounds { connections: 256, handshake: Duration::from_secs(10), head: Duration::from_secs(30) };
/// What was sent must be taken within this time, or the kernel ends the connection; ms (tcp(7), TCP_USER_TIMEOUT).
const TAKEN_MS: u32 = 30_000;
/// Bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;
/// After the system had no descriptor for a connection.
const BREATH: Duration = Duration::from_millis(200);

/// Serves until `shutdown` completes, on a thread of its own.
///
/// # Errors
/// When there is no thread, or it fails.
pub(super) async fn apart(
    listener: TcpListener,
    gate: Arc<Gate>,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    // What it is told by belongs to the runtime that it was made in.
    let listener = listener.into_std().context("the listener cannot be handed over")?;
    let (end, ended) = oneshot::channel();
    let work = async move { serve(TcpListener::from_std(listener)?, gate, router, USUAL, shutdown).await };
    let thread = thread::Builder::new().name("defib-http".to_owned());
    let thread = thread.spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime");
        // Nobody may be there any more to hear of its end.
        end.send(runtime.and_then(|runtime| runtime.block_on(work))).ok();
    });
    thread.context("cannot start a thread")?;
    ended.await.context("its thread failed")?
}

async fn serve(
    listener: TcpListener,
    gate: Arc<Gate>,
    router: Router,
    bounds: Bounds,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    // Dropped, and so ended, with this future.
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(bounds.connections));
    let take = async {
        loop {
            let place = Arc::clone(&places).acquire_owned().await.context("no more places")?;
            while connections.try_join_next().is_some() {}
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Of one connection, or of the whole machine; neither is the end of this server.
                    tracing::debug!("a connection could not be taken: {error}");
                    sleep(BREATH).await;
                    continue;
                }
            };
            let (gate, router) = (Arc::clone(&gate), router.clone());
            connections.spawn(async move {
                let _counted = gate.metrics.connected();
                // Its end concerns nobody else.
                if let Err(error) = attend(stream, &gate, router, bounds).await {
                    tracing::debug!("a connection ended: {error:#}");
                }
                drop(place);
            });
        }
    };
    tokio::select! {
        ended = take => ended,
        () = shutdown => Ok(()),
    }
}

async fn attend(stream: TcpStream, gate: &Gate, router: Router, bounds: Bounds) -> Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, TAKEN_MS)?;
    match gate.terms().tls.clone() {
        None => converse(stream, router, bounds).await,
        Some(tls) => match timeout(bounds.handshake, handshake(stream, tls)).await {
            Ok(Ok(stream)) => converse(stream, router, bounds).await,
            Ok(Err(error)) => {
                gate.metrics.refused_handshake();
                Err(error).context("TLS handshake")
            }
            Err(late) => {
                gate.metrics.refused_handshake();
                Err(late).context("TLS handshake")
            }
        },
    }
}

async fn handshake(mut stream: TcpStream, tls: Arc<ServerConfig>) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    // A method's name, where a record of TLS begins with its type, 22 (RFC 8446, section 5.1).
    if first[0].is_ascii_uppercase() {
        let answer = "HTTP/1.0 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\n\r\n\
                      this port speaks TLS: ask by https://\n";
        // What was sent is taken first: else the connection would be reset, and the answer with it.
        let _request = stream.read(&mut [0; 4096]).await?;
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        return Err(io::Error::other("plain HTTP"));
    }
    TlsAcceptor::from(tls).accept(stream).await
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    bounds: Bounds,
) -> Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
        .map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path};

    use axum::routing::get;
    use prometheus::Registry;

    use super::*;
    use crate::web::WebMetrics;

    /// Room for one, and little patience with it.
    const NARROW: Bounds =
        Bounds { connections: 1, handshake: Duration::from_millis(200), head: Duration::from_millis(200) };

    /// A server that says `here`, behind a gate with this file.
    async fn server(file: Option<&Path>, registry: &Registry) -> (SocketAddr, tokio::task::JoinHandle<Result<()>>) {
        let gate = Gate::open(file.map(Path::to_owned), WebMetrics::new(registry).expect("registered")).expect("right");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let router = Router::new().route("/", get(|| async { "here" }));
        (address, tokio::spawn(serve(listener, gate, router, NARROW, std::future::pending())))
    }

    async fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n").await.expect("sent");
        let mut text = String::new();
        timeout(Duration::from_secs(30), stream.read_to_string(&mut text)).await.expect("in time").expect("an answer");
        text
    }

    #[tokio::test]
    async fn whoever_sends_nothing_or_asks_nothing_more_makes_room_for_the_next() {
        let (address, server) = server(None, &Registry::new()).await;
        let silent = TcpStream::connect(address).await.expect("connected");
        assert!(ask(address).await.ends_with("here"));
        let mut kept = TcpStream::connect(address).await.expect("connected");
        kept.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
        assert!(kept.read(&mut [0; 512]).await.expect("an answer") > 0);
        let mut half = TcpStream::connect(address).await.expect("connected");
        half.write_all(b"GET / HTTP/1.1\r\nHo").await.expect("sent");
        assert!(ask(address).await.ends_with("here"));
        drop((silent, kept, half));
        server.abort();
    }

    #[tokio::test]
    async fn a_handshake_that_does_not_come_makes_room_and_plain_http_is_told() {
        let home = tempfile::tempdir().expect("a directory");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let yml = "tls_server_config: { cert_file: crt, key_file: key }\n".to_owned();
        for (name, text) in [("crt", made.cert.pem()), ("key", made.signing_key.serialize_pem()), ("yml", yml)] {
            fs::write(home.path().join(name), text).expect("written");
            fs::set_permissions(home.path().join(name), fs::Permissions::from_mode(0o600)).expect("set");
        }
        let registry = Registry::new();
        let (address, server) = server(Some(&home.path().join("yml")), &registry).await;
        let silent = TcpStream::connect(address).await.expect("connected");
        let told = ask(address).await;
        assert!(told.starts_with("HTTP/1.0 400 ") && told.ends_with("https://\n"), "{told}");
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        assert!(text.contains("defib_http_refused_total{reason=\"handshake\"} 2\n"), "{text}");
        drop(silent);
        server.abort();
    }
}
