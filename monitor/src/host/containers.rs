//! Names of containers: cgroups carry ids, people and configurations use names, which stay over restarts.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    net::UnixStream,
    time::{error::Elapsed, sleep, timeout},
};

/// One question may take this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// A name is asked for so often, with this time in between: an engine that is being restarted, or is busy, answers later.
const ASKED: u32 = 5;
const ASKED_AGAIN: Duration = Duration::from_secs(2);
/// An answer about one container is a few kilobytes; more is not read.
const ANSWER_MAX: usize = 1024 * 1024;
/// Where Podman keeps names when its service, and so its socket, is not running.
const PODMAN_STORE: &str = "/var/lib/containers/storage/overlay-containers/containers.json";

/// The name of a container by its full id; `None` when the engine has no such way to ask (containerd, CRI-O).
///
/// # Errors
/// When the engine does not answer for half a minute, or does not know the container.
pub(crate) async fn name(engine: &str, id: &str) -> Result<Option<String>> {
    for _ in 1..ASKED {
        let name = name_at_once(engine, id).await;
        // A name that the engine does not know will not come.
        if !name.as_ref().is_err_and(|error| error.is::<Elapsed>() || error.is::<std::io::Error>()) {
            return name;
        }
        sleep(ASKED_AGAIN).await;
    }
    name_at_once(engine, id).await
}

async fn name_at_once(engine: &str, id: &str) -> Result<Option<String>> {
    let name = match engine {
        "docker" => {
            let socket = socket("DOCKER_HOST", "/run/docker.sock");
            timeout(PATIENCE, ask(&socket, id)).await.context("Docker does not answer")??
        }
        "podman" => match timeout(PATIENCE, ask(&socket("CONTAINER_HOST", "/run/podman/podman.sock"), id)).await {
            Ok(Ok(name)) => name,
            Ok(Err(_)) | Err(_) => stored(Path::new(PODMAN_STORE), id)?,
        },
        _ => return Ok(None),
    };
    Ok(Some(name))
}

/// Where an engine listens: the variable that its own client honours, else its usual place.
fn socket(variable: &str, usual: &str) -> PathBuf {
    let named = std::env::var(variable).ok();
    named.as_deref().and_then(|url| url.strip_prefix("unix://")).unwrap_or(usual).into()
}

/// The last lines that a container wrote.
///
/// # Errors
/// When its engine does not answer, or has no such way to ask (containerd, CRI-O).
pub(crate) async fn output(engine: &str, id: &str, lines: usize) -> Result<String> {
    let socket = match engine {
        "docker" => socket("DOCKER_HOST", "/run/docker.sock"),
        "podman" => socket("CONTAINER_HOST", "/run/podman/podman.sock"),
        _ => bail!("{engine} cannot be asked for what a container wrote"),
    };
    let path = format!("/containers/{id}/logs?stdout=1&stderr=1&tail={lines}");
    let body = timeout(PATIENCE, get(&socket, &path)).await.with_context(|| format!("{engine} does not answer"))??;
    Ok(String::from_utf8_lossy(&unframed(&body)).into_owned())
}

/// Output without the frames that engines put around it: stream (0 to 2), three zero bytes, length in network order. A
/// container with a terminal has none.
fn unframed(mut bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    while let Some((&[0..=2, 0, 0, 0, a, b, c, d], rest)) = bytes.split_first_chunk() {
        let (content, next) = rest.split_at(rest.len().min(u32::from_be_bytes([a, b, c, d]) as usize));
        text.extend_from_slice(content);
        bytes = next;
    }
    text.extend_from_slice(bytes);
    text
}

/// Asks the engine for a container's name.
async fn ask(socket: &Path, id: &str) -> Result<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Container {
        name: String,
    }
    let shown = socket.display();
    let body = get(socket, &format!("/containers/{id}/json")).await?;
    // The API puts a slash before names.
    let Container { name } =
        serde_json::from_slice(&body).with_context(|| format!("{shown} answers with something else"))?;
    let name = name.strip_prefix('/').unwrap_or(&name);
    ensure!(!name.is_empty(), "{shown} gives container {id} no name");
    Ok(name.to_owned())
}

/// Asks the engine's HTTP API, which Docker and Podman share.
async fn get(socket: &Path, path: &str) -> Result<Vec<u8>> {
    let shown = socket.display();
    let stream = UnixStream::connect(socket).await.with_context(|| format!("cannot connect to {shown}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::get(path).header(hyper::header::HOST, "localhost").body(String::new())?;
    let answer = async {
        let answer = sender.send_request(request).await.with_context(|| format!("no answer from {shown}"))?;
        ensure!(answer.status().is_success(), "{shown} answers {} to {path}", answer.status());
        let body = axum::body::Body::new(answer.into_body());
        let body = axum::body::to_bytes(body, ANSWER_MAX).await;
        body.with_context(|| format!("cannot read the answer from {shown}"))
    }
    .await;
    connection.abort();
    Ok(answer?.into())
}

/// Looks into Podman's own list.
fn stored(path: &Path, id: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Container {
        id: String,
        #[serde(default)]
        names: Vec<String>,
    }
    let shown: PathBuf = path.to_owned();
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", shown.display()))?;
    let list: Vec<Container> =
        serde_json::from_slice(&text).with_context(|| format!("{} is no list of containers", shown.display()))?;
    match list.into_iter().find(|container| container.id == id).and_then(|container| container.names.into_iter().next())
    {
        Some(name) => Ok(name),
        None => bail!("{} does not name container {id}", shown.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixListener,
    };

    #[test]
    fn frames_around_output_are_taken_off() {
        let framed = b"\x01\0\0\0\0\0\0\x03one\x02\0\0\0\0\0\0\x04 two";
        assert_eq!(unframed(framed), b"one two");
        assert_eq!(unframed(b"from a terminal"), b"from a terminal");
        assert_eq!(unframed(b"\x01\0\0\0\0\0\xff\xffcut"), b"cut");
        assert_eq!(unframed(b""), b"");
    }

    /// An engine of a test's own; the live test with Docker itself stands beside it.
    async fn engine(answer: &'static str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("engine.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = [0; 1024];
            let len = stream.read(&mut request).await.expect("a request");
            assert!(request[..len].starts_with(b"GET /containers/abc/json HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.expect("sent");
        });
        (directory, socket)
    }

    #[tokio::test]
    async fn the_engine_s_name_comes_without_its_slash() {
        let body = "HTTP/1.1 200 OK\r\ncontent-length: 28\r\n\r\n{\"Id\":\"abc\",\"Name\":\"/web-1\"}";
        let (_directory, socket) = engine(body).await;
        assert_eq!(ask(&socket, "abc").await.expect("named"), "web-1");
    }

    #[tokio::test]
    async fn an_engine_that_knows_nothing_or_talks_nonsense_is_an_error_that_says_so() {
        for (answer, want) in [
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "404"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", "something else"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"Name\":\"/\"}", "no name"),
        ] {
            let (_directory, socket) = engine(answer).await;
            let error = format!("{:#}", ask(&socket, "abc").await.expect_err("refused"));
            assert!(error.contains(want), "{error}");
        }
        assert!(ask(Path::new("/nonexistent.sock"), "abc").await.is_err());
    }

    #[test]
    fn podman_s_own_list_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("containers.json");
        std::fs::write(&path, r#"[{"id":"x"},{"id":"abc","names":["db"],"other":1}]"#).expect("written");
        assert_eq!(stored(&path, "abc").expect("named"), "db");
        assert!(stored(&path, "x").is_err());
    }
}
