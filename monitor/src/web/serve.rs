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

/// Connections at a time; the next waits with the kernel until one has ended.
const CONNECTIONS: usize = 256;
/// For a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the head of a request, and between two of them.
const HEAD: Duration = Duration::from_secs(30);
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
    let work = async move { serve(TcpListener::from_std(listener)?, gate, router, shutdown).await };
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
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    // Dropped, and so ended, with this future.
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
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
                if let Err(error) = attend(stream, &gate, router).await {
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

async fn attend(stream: TcpStream, gate: &Gate, router: Router) -> Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, TAKEN_MS)?;
    match gate.terms().tls.clone() {
        None => converse(stream, router).await,
        Some(tls) => match timeout(HANDSHAKE, handshake(stream, tls)).await {
            Ok(Ok(stream)) => converse(stream, router).await,
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

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) -> Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
        .map_err(Into::into)
}
