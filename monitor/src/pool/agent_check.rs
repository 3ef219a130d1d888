//! Answers HAProxy's agent checks: HAProxy sends a line that names a server (`agent-send "be_web/web1\n"`), and gets
//! one line from memory. A client that sends anything else, or sends slowly, gets no answer and is counted. When all
//! places are taken, the peer with the most loses its oldest to each newcomer, so a load balancer, which sends its line
//! at once, is always answered.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use prometheus::{IntCounterVec, Opts, Registry};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    sync::Notify,
    time::{sleep, timeout},
};

use super::Board;
use crate::{crowd::Crowd, host::peer::Peers};

/// A line may be this long; a name is shorter.
const LINE_MAX: usize = 256;
/// Time for a line to come, and for an answer to go: HAProxy sends at once.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections at once; more than a few load balancers with a few servers each ever have.
const CONNECTIONS: usize = 128;
/// After a connection that could not be accepted, for want of file descriptors perhaps.
const PAUSE: Duration = Duration::from_millis(50);

/// What came of connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Answered(IntCounterVec);

impl Answered {
    /// Registers the counter, each of its series at 0.
    pub(crate) fn new(registry: &Registry) -> Result<Self> {
        let help = "Agent checks by what came of them: answered, unknown (a server that nobody here knows, or not yet), \
                    malformed, slow, crowded (lost its place to a later one), failed (the connection).";
        let counters = IntCounterVec::new(Opts::new("defib_pool_agent_checks_total", help), &["result"])?;
        registry.register(Box::new(counters.clone()))?;
        for result in ["answered", "unknown", "malformed", "slow", "crowded", "failed"] {
            counters.with_label_values(&[result]);
        }
        Ok(Self(counters))
    }

    fn count(&self, result: &str) {
        self.0.with_label_values(&[result]).inc();
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct AgentCheck {
    listener: TcpListener,
    board: Arc<Board>,
    answered: Answered,
}

impl AgentCheck {
    /// Listens, so that a taken port is known before anything else begins.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub(crate) async fn bind(address: SocketAddr, board: Arc<Board>, answered: Answered) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (choose another address with [pool] agent_check)"))?;
        Ok(Self { listener, board, answered })
    }

    /// Answers until it is dropped.
    ///
    /// # Errors
    /// Never; for the agent, whose parts can fail.
    pub(crate) async fn serve(self) -> Result<()> {
        // A connection without a line can lose its place at any time.
        let (crowd, peers) = (Arc::new(Mutex::new(Crowd::new(CONNECTIONS, Duration::ZERO))), Peers::new());
        loop {
            let (stream, remote) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!("an agent check could not be accepted: {error}");
                    self.answered.count("failed");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let peer = peers.of(stream.local_addr().unwrap_or(remote), remote);
            let lost = Arc::new(Notify::new());
            let entered = lock(&crowd).enter(peer, Arc::clone(&lost), Duration::ZERO);
            let Some(entered) = entered else { continue };
            if let Some(evicted) = entered.evicted {
                evicted.notify_one();
            }
            let (board, answered, crowd) = (Arc::clone(&self.board), self.answered.clone(), Arc::clone(&crowd));
            tokio::spawn(async move {
                let result = tokio::select! {
                    result = converse(stream, &board) => result,
                    () = lost.notified() => "crowded",
                };
                answered.count(result);
                lock(&crowd).leave(entered.number);
            });
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection; what came of it.
async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, board: &Board) -> &'static str {
    let mut line = [0; LINE_MAX];
    let name = match timeout(PATIENCE, read_line(&mut stream, &mut line)).await {
        Err(_) => return "slow",
        Ok(Err(_)) => return "failed",
        Ok(Ok(None)) => return "malformed",
        Ok(Ok(Some(length))) => std::str::from_utf8(&line[..length]),
    };
    let Ok(name) = name else { return "malformed" };
    let Some(answer) = board.answer(name.trim_end_matches('\r')) else { return "unknown" };
    match timeout(PATIENCE, stream.write_all(answer.as_bytes())).await {
        Err(_) => "slow",
        Ok(Err(_)) => "failed",
        Ok(Ok(())) => {
            // What was sent is whole; how the other side leaves is its own affair.
            stream.shutdown().await.ok();
            "answered"
        }
    }
}

/// The length of the line without its end; `None` when there is none, or it is too long.
async fn read_line(stream: &mut (impl AsyncRead + Unpin), line: &mut [u8; LINE_MAX]) -> std::io::Result<Option<usize>> {
    let mut filled = 0;
    while filled < LINE_MAX {
        let count = stream.read(&mut line[filled..]).await?;
        if count == 0 {
            return Ok(None);
        }
        if let Some(end) = line[filled..filled + count].iter().position(|&byte| byte == b'\n') {
            return Ok(Some(filled + end));
        }
        filled += count;
    }
    Ok(None)
}

/// Has any bytes come over a connection.
#[cfg(any(test, fuzzing))]
pub(crate) async fn fuzz(bytes: &[u8]) {
    use crate::pool::{Cause, Standing, State};
    let board = Board::new();
    board.add(&"web".into(), "be_web/web1".parse().ok().as_ref());
    let since = jiff::Timestamp::UNIX_EPOCH;
    board.stand("web", Standing { state: State::In, cause: Cause::Healthy, since, weight: 100 });
    let (mut client, server) = tokio::io::duplex(LINE_MAX);
    let send = async {
        // The server hangs up on a line that is too long.
        client.write_all(bytes).await.ok();
        client.shutdown().await.ok();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.ok();
        answer
    };
    let (answer, result) = tokio::join!(send, converse(server, &board));
    assert_eq!(answer.is_empty(), result != "answered", "{result}: {answer:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{Cause, Standing, State};
    use jiff::Timestamp;
    use tokio::net::TcpStream;

    async fn listening() -> (SocketAddr, Answered) {
        let board = Arc::new(Board::new());
        board.add(&"web".into(), Some(&"be_web/web1".parse().expect("a name")));
        let standing = Standing { state: State::In, cause: Cause::Healthy, since: Timestamp::UNIX_EPOCH, weight: 100 };
        board.stand("web", standing);
        let answered = Answered::new(&Registry::new()).expect("registered");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let check = AgentCheck::bind(any, board, answered.clone()).await.expect("a free port");
        let address = check.listener.local_addr().expect("bound");
        tokio::spawn(check.serve());
        (address, answered)
    }

    async fn ask(address: SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(bytes).await.expect("sent");
        stream.shutdown().await.expect("sent all");
        let mut answer = Vec::new();
        // A reset after garbage is an answer too.
        stream.read_to_end(&mut answer).await.ok();
        String::from_utf8(answer).expect("text")
    }

    #[tokio::test]
    async fn a_name_gets_its_line_and_all_else_nothing() {
        let (address, answered) = listening().await;
        assert_eq!(ask(address, b"be_web/web1\n").await, "up ready 100%\n");
        assert_eq!(ask(address, b"be_web/web1\r\nmore").await, "up ready 100%\n");
        let garbage: [&[u8]; 7] =
            [b"be_web/web2\n", b"\n", b"be_web/web1", b"\xff\xfe\n", &[b'x'; 4096], b"GET / HTTP/1.1\r\n\r\n", b""];
        for bytes in garbage {
            assert_eq!(ask(address, bytes).await, "", "{:?}", String::from_utf8_lossy(bytes));
        }
        let count = |result: &str| answered.0.with_label_values(&[result]).get();
        assert_eq!((count("answered"), count("unknown") + count("malformed") + count("failed")), (2, 7));
    }

    #[tokio::test]
    async fn crowds_and_slow_senders_do_not_keep_others_out() {
        let (address, answered) = listening().await;
        let mut slow = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            stream.write_all(b"be_web").await.expect("sent");
            slow.push(stream);
        }
        let count = |result: &str| answered.0.with_label_values(&[result]).get();
        for _ in 0..10 {
            assert_eq!(ask(address, b"be_web/web1\n").await, "up ready 100%\n", "at once, amid the crowd");
        }
        assert!(count("crowded") > 0, "the first of them had a place of the crowd");
        while count("slow") + count("crowded") < CONNECTIONS as u64 {
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(ask(address, b"be_web/web1\n").await, "up ready 100%\n");
    }
}
