//! A small HTTP/1.1 client: one request a connection, to servers that are asked now and then. Every answer is bounded in
//! bytes and in time.

use std::{fmt, time::Duration};

use anyhow::{Context as _, Result};
use axum::body::{Body, Bytes};
use hyper::{
    Request, StatusCode, Uri,
    header::{self, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    host: String,
    port: u16,
}

impl Server {
    /// Of a URL; port 80 where it names none. `None`: it names no host.
    pub(crate) fn of(uri: &Uri) -> Option<Self> {
        // A literal IPv6 address stands in brackets in a URL, and without them everywhere else.
        let host = uri.host()?.trim_matches(['[', ']']).to_owned();
        Some(Self { host, port: uri.port_u16().unwrap_or(80) })
    }

    /// What `Host:` says: the port that is meant anyway is left out (RFC 9110, section 7.2).
    fn authority(&self) -> String {
        let text = self.to_string();
        text.strip_suffix(":80").map_or_else(|| text.clone(), str::to_owned)
    }
}

/// As a URL's authority has it.
impl fmt::Display for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(out, "[{}]:{}", self.host, self.port)
        } else {
            write!(out, "{}:{}", self.host, self.port)
        }
    }
}

/// What an exchange may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// From the connection to the end of the answer.
    pub(crate) patience: Duration,
    /// Bytes of the answer's body; at 0 it is not waited for.
    pub(crate) body: usize,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its body; an error when it does not fit, or breaks off.
    pub(crate) body: Result<Bytes>,
}

/// Asks a server: `POST` with this JSON, `GET` without.
///
/// # Errors
/// When there is no connection, or no answer in time. An answer of any status is none.
pub(crate) async fn ask(server: &Server, path: &str, json: Option<String>, bounds: Bounds) -> Result<Answer> {
    let exchange = async {
        let stream = TcpStream::connect((server.host.as_str(), server.port)).await;
        let stream = stream.with_context(|| format!("cannot connect to {server}"))?;
        exchange(stream, &server.authority(), path, json, bounds.body).await
    };
    let answer = timeout(bounds.patience, exchange).await;
    answer.with_context(|| format!("no answer from {server} within {:?}", bounds.patience))?
}

/// Likewise, over a connection that stands; `authority` names the server in the request and in errors.
///
/// # Errors
/// As [`ask`], but for time.
pub(crate) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    authority: &str,
    path: &str,
    json: Option<String>,
    body_max: usize,
) -> Result<Answer> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Dropped, and so ended, with this future.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = match json {
        Some(json) => Request::post(path).header(header::CONTENT_TYPE, "application/json").body(json),
        None => Request::get(path).body(String::new()),
    };
    let mut request = request?;
    request.headers_mut().insert(header::HOST, authority.parse()?);
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static("defib"));
    let answer = sender.send_request(request).await.with_context(|| format!("no HTTP answer from {authority}"))?;
    let status = answer.status();
    let body = match body_max {
        0 => Ok(Bytes::new()),
        _ => axum::body::to_bytes(Body::new(answer.into_body()), body_max)
            .await
            .with_context(|| format!("cannot read the answer from {authority}")),
    };
    Ok(Answer { status, body })
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    const BOUNDS: Bounds = Bounds { patience: Duration::from_secs(10), body: 16 };

    /// Answers one client, and returns what that has sent.
    async fn server(answer: &'static str) -> (Server, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("[::1]:0").await.expect("a free port");
        let uri: Uri = format!("http://{}/", listener.local_addr().expect("bound")).parse().expect("a URL");
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = vec![0; 4096];
            let len = stream.read(&mut request).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("sent");
            request.truncate(len);
            String::from_utf8(request).expect("text")
        });
        (Server::of(&uri).expect("a host"), task)
    }

    #[tokio::test]
    async fn json_is_posted_and_the_answer_is_read_whatever_its_status() {
        let (server, task) = server("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope").await;
        let answer = ask(&server, "/v3/x?y=1", Some("{}".to_owned()), BOUNDS).await.expect("answered");
        assert_eq!((answer.status, &answer.body.expect("whole")[..]), (StatusCode::NOT_FOUND, &b"nope"[..]));
        let request = task.await.expect("served").to_ascii_lowercase();
        assert!(request.starts_with("post /v3/x?y=1 http/1.1\r\n") && request.ends_with("\r\n\r\n{}"), "{request}");
        assert!(request.contains(&format!("host: {server}\r\n")), "{request}");
    }

    #[tokio::test]
    async fn a_body_that_does_not_fit_is_an_error_of_the_body_alone() {
        let (server, _task) = server("HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n12345678901234567").await;
        let answer = ask(&server, "/", None, BOUNDS).await.expect("answered");
        assert!(answer.status.is_success() && answer.body.is_err());
    }

    #[tokio::test]
    async fn a_server_that_is_silent_or_absent_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let uri: Uri = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("a URL");
        let server = Server::of(&uri).expect("a host");
        let soon = Bounds { patience: Duration::from_millis(50), ..BOUNDS };
        let silent = ask(&server, "/", None, soon).await.expect_err("silent").to_string();
        assert!(silent.contains(&server.to_string()) && silent.contains("50ms"), "{silent}");
        drop(listener);
        let absent = ask(&server, "/", None, BOUNDS).await.expect_err("absent").to_string();
        assert!(absent.contains(&format!("cannot connect to {server}")), "{absent}");
    }
}
