//! Accepts connections, gives each a [place](super::places), and passes their requests to the pages. A slow client
//! loses its place: in the handshake, with its request, between two requests, or in reading the answer; and at once
//! when a peer with fewer places wants it. All of it runs on separate threads, so that work for clients, such as many
//! handshakes, delays no restart.

use std::{future::Future, io, net::SocketAddr, sync::Arc, thread, time::Duration};

use anyhow::{Context as _, Result};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, getrlimit};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime,
    sync::oneshot,
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    gate::Gate,
    places::{Placed, Places, Rooms, Seat},
};
use crate::host::peer::{Peer, Peers};

/// Limits for connections.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Places for connections, by kind.
    rooms: Rooms,
    /// For a TLS handshake.
    handshake: Duration,
    /// For the head of a request, and between two of them.
    head: Duration,
}

/// What was sent must be taken within this time, or the kernel ends the connection; ms (tcp(7), TCP_USER_TIMEOUT).
const TAKEN_MS: u32 = 30_000;
/// Most bytes of a request's head: twice what a browser sends; 256 of them are 4 MiB.
const HEAD_BYTES: usize = 16 << 10;
/// After the system had no descriptor for a connection.
const BREATH: Duration = Duration::from_millis(10);

fn usual() -> Bounds {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    Bounds { rooms: Rooms::of(descriptors), handshake: Duration::from_secs(10), head: Duration::from_secs(30) }
}

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
    let work = move || {
        let pages =
            runtime::Builder::new_multi_thread().worker_threads(1).thread_name("defib-pages").enable_all().build();
        let pages = pages.context("cannot start a runtime for pages")?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
        let handle = pages.handle().clone();
        let ended = runtime.block_on(async move {
            let listener = TcpListener::from_std(listener)?;
            serve(listener, gate, (router, handle), usual(), shutdown).await
        });
        // No connection waits for the answers still being computed.
        pages.shutdown_background();
        ended
    };
    let thread = thread::Builder::new().name("defib-http".to_owned());
    let thread = thread.spawn(move || {
        // Nobody may be there any more to hear of its end.
        end.send(work()).ok();
    });
    thread.context("cannot start a thread")?;
    ended.await.context("its thread failed")?
}

/// The router, and the runtime that computes slow answers.
type Answers = (Router, runtime::Handle);

async fn serve(
    listener: TcpListener,
    gate: Arc<Gate>,
    answers: Answers,
    bounds: Bounds,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    // Dropped, and so ended, with this future.
    let mut connections = JoinSet::new();
    let (places, peers) = (Places::new(bounds.rooms, gate.metrics.clone()), Peers::new());
    let take = async {
        loop {
            while connections.try_join_next().is_some() {}
            let (stream, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Of one connection, or of the whole machine; neither is the end of this server.
                    tracing::debug!("a connection could not be taken: {error}");
                    places.make_room();
                    sleep(BREATH).await;
                    continue;
                }
            };
            let peer = who(&peers, &stream, remote);
            let seat = places.arrive(peer);
            let (gate, places, answers) = (Arc::clone(&gate), Arc::clone(&places), answers.clone());
            connections.spawn(async move {
                let _counted = places.metrics.connected();
                let ended = tokio::select! {
                    ended = attend(stream, (&gate, &places), answers, (Arc::clone(&seat), peer), bounds) => ended,
                    () = seat.lost() => Err(anyhow::anyhow!("another connection has its place")),
                };
                // Its end concerns nobody else.
                if let Err(error) = ended {
                    tracing::debug!("a connection ended: {error:#}");
                }
            });
            // Connections that have lost their places close before the next one is accepted.
            yield_now().await;
        }
    };
    tokio::select! {
        ended = take => ended,
        () = shutdown => Ok(()),
    }
}

fn who(peers: &Peers, stream: &TcpStream, remote: SocketAddr) -> Peer {
    // A connection that has gone by now has no local address and counts by its remote address.
    peers.of(stream.local_addr().unwrap_or(remote), remote)
}

async fn attend(
    stream: TcpStream,
    (gate, places): (&Gate, &Places),
    answers: Answers,
    (seat, peer): (Arc<Seat>, Peer),
    bounds: Bounds,
) -> Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, TAKEN_MS)?;
    let Some(tls) = gate.terms().tls.clone() else { return converse(stream, answers, seat, bounds).await };
    let stream = match timeout(bounds.handshake, shake_hands(stream, tls, places, peer)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            places.metrics.refused("handshake");
            return Err(error).context("TLS handshake");
        }
        Err(late) => {
            places.metrics.refused("handshake");
            return Err(late).context("TLS handshake");
        }
    };
    converse(stream, answers, seat, bounds).await
}

/// Does a TLS handshake. A peer has few at a time, so that its handshakes do not delay those of others.
async fn shake_hands(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    places: &Places,
    peer: Peer,
) -> io::Result<TlsStream<TcpStream>> {
    // A client that sends nothing takes no turn.
    stream.peek(&mut [0]).await?;
    let turns = places.handshakes(peer);
    let _turn = turns.acquire().await.map_err(io::Error::other)?;
    handshake(stream, tls).await
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
    (router, pages): Answers,
    seat: Arc<Seat>,
    bounds: Bounds,
) -> Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), Placed::new(router, seat, pages))
        .await
        .map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path};

    use axum::routing::get;
    use prometheus::Registry;

    use super::*;
    use crate::web::{WebMetrics, hosts::Hosts};

    /// One place of each kind, and short timeouts.
    const NARROW: Bounds = Bounds {
        rooms: Rooms { arrivals: 1, scrapes: 1, streams: 1, pages: 1 },
        handshake: Duration::from_millis(200),
        head: Duration::from_millis(200),
    };

    /// A server that says `here`, behind a gate with this file.
    async fn server(file: Option<&Path>, registry: &Registry) -> (SocketAddr, tokio::task::JoinHandle<Result<()>>) {
        let gate =
            Gate::open(file.map(Path::to_owned), Hosts::default(), WebMetrics::new(registry).expect("registered"));
        let gate = gate.expect("right");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let answers = (Router::new().route("/", get(|| async { "here" })), runtime::Handle::current());
        (address, tokio::spawn(serve(listener, gate, answers, NARROW, std::future::pending())))
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
        drop(silent);
        // Without other connections it still has only its time.
        let mut late = TcpStream::connect(address).await.expect("connected");
        let ended = timeout(Duration::from_secs(30), late.read(&mut [0])).await.expect("in time");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        for reason in ["handshake\"} 2", "evicted\"} 1"] {
            assert!(text.contains(&format!("defib_http_refused_total{{reason=\"{reason}\n")), "{reason}: {text}");
        }
        server.abort();
    }
}
