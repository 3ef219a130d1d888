//! Proof of health: asked again and again until it is given, the process dies, or the time is up.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use axum::http::Uri;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    config::Health,
    host::{
        clock,
        process::{self, Identity},
    },
    http::{self, Bounds, Server},
};

/// A service without a health check is healthy when it has lived for this long.
const SURVIVAL: Duration = Duration::from_secs(10);
/// One try may take this long.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// Between the first tries. Short, because the outage lasts until the first that succeeds.
const PAUSE: Duration = Duration::from_millis(20);
/// The pause grows by a quarter each time up to this: a check that starts a program must not become a load of its own.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// After this, an incarnation that has proven nothing is unhealthy.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why there is no proof.
#[derive(Debug)]
pub(crate) enum Unproven {
    /// It has died.
    Dead,
    /// It lives, and was not healthy for a minute; the last failure.
    Sick(anyhow::Error),
}

/// Waits for proof.
///
/// # Errors
/// [`Unproven`].
pub(crate) async fn prove(health: &Health, process: Identity) -> Result<(), Unproven> {
    let begin = Instant::now();
    let mut pause = PAUSE;
    loop {
        if !process::is_alive(process) {
            return Err(Unproven::Dead);
        }
        let result = match health {
            // While the core is written, the socket still takes connections.
            _ if process::dumps_core(process.tgid) => Err(anyhow::anyhow!("it is dumping core")),
            Health::Survival if begin.elapsed() >= SURVIVAL => Ok(()),
            Health::Survival => Err(anyhow::anyhow!("it has not lived for {} s", SURVIVAL.as_secs())),
            other => try_once(other).await,
        };
        match result {
            Ok(()) => return Ok(()),
            Err(error) if begin.elapsed() >= DEADLINE => {
                return Err(Unproven::Sick(error.context(format!("{health} failed for {} s", DEADLINE.as_secs()))));
            }
            Err(_) => {
                sleep(pause).await;
                pause = pause.mul_f64(1.25).min(PAUSE_MAX);
            }
        }
    }
}

/// Whether it is healthy now; one that has no health check is when it has lived for long enough.
pub(crate) async fn is_healthy(health: &Health, process: Identity) -> bool {
    // The socket of a process that dumps its core still takes connections.
    if !process::is_alive(process) || process::dumps_core(process.tgid) {
        return false;
    }
    match health {
        Health::Survival => clock::boot_ns().saturating_sub(process.start_ns) >= SURVIVAL.as_nanos() as u64,
        other => try_once(other).await.is_ok(),
    }
}

async fn try_once(health: &Health) -> Result<()> {
    timeout(TRY_TIMEOUT, ask(health)).await.unwrap_or_else(|_| bail!("no answer within {TRY_TIMEOUT:?}"))
}

async fn ask(health: &Health) -> Result<()> {
    match health {
        Health::Survival => Ok(()),
        Health::Tcp(address) => connect(*address).await.map(drop),
        Health::Http(uri) => get(uri).await,
        Health::Exec(program) => exec(program).await,
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))
}

async fn get(uri: &Uri) -> Result<()> {
    let server = Server::of(uri).context("the health check names no host")?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    // Only the status counts.
    let answer = http::ask(&server, path, None, Bounds { patience: TRY_TIMEOUT, body: 0 }).await?;
    ensure!(answer.status.is_success(), "{uri} answers {}", answer.status);
    Ok(())
}

/// Runs a program directly, never through a shell.
async fn exec(program: &Path) -> Result<()> {
    let status = tokio::process::Command::new(program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(status.success(), "{} failed with {status}", program.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    fn own() -> Identity {
        process::identity(std::process::id()).expect("readable").expect("alive")
    }

    async fn server(answers: Vec<&'static str>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut request = [0; 1024];
                let len = stream.read(&mut request).await.expect("a request");
                assert!(request[..len].starts_with(b"GET /ready?x=1 HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.expect("sent");
            }
        });
        address
    }

    #[tokio::test]
    async fn http_health_is_proven_by_the_first_2xx_after_failures() {
        let bad = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        let good = "HTTP/1.1 204 No Content\r\n\r\n";
        let address = server(vec![bad, "garbage\r\n\r\n", good]).await;
        let health: Health = format!("http://{address}/ready?x=1").parse().expect("valid");
        prove(&health, own()).await.expect("healthy at the third try");
    }

    #[tokio::test]
    async fn an_ipv6_address_in_brackets_is_reached() {
        let listener = TcpListener::bind("[::1]:0").await.expect("loopback");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("sent");
        });
        let health: Health = format!("http://[::1]:{port}/").parse().expect("valid");
        ask(&health).await.expect("healthy");
    }

    #[tokio::test]
    async fn a_dead_process_cannot_be_healthy() {
        let gone = Identity { start_ns: 1, ..own() };
        assert!(matches!(prove(&Health::Exec("/bin/true".into()), gone).await, Err(Unproven::Dead)));
    }

    #[tokio::test]
    async fn programs_and_ports_that_fail_say_which() {
        let error = ask(&Health::Exec("/bin/false".into())).await.expect_err("fails").to_string();
        assert!(error.contains("/bin/false"), "{error}");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        ask(&Health::Tcp(address)).await.expect("accepts");
        drop(listener);
        let error = ask(&Health::Tcp(address)).await.expect_err("closed").to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
