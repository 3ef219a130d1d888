use super::*;
use crate::pool::{Cause, Standing};
use jiff::Timestamp;
use std::sync::Mutex;
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixListener, UnixStream},
};

/// How it behaves towards one connection.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Well,
    /// Takes the line and says half of its answer.
    Half,
    /// Takes the line and closes.
    Mute,
    /// Takes the line and says nothing.
    Stalls,
}

#[derive(Debug, Default)]
struct Seen {
    lines: Vec<String>,
    admin: u32,
}

async fn serve(listener: UnixListener, manners: Vec<Manner>, seen: Arc<Mutex<Seen>>) {
    let mut manners = manners.into_iter();
    let mut stalled = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await.expect("a client");
        match manners.next().unwrap_or(Manner::Well) {
            Manner::Stalls => stalled.push(stream),
            manner => answer(&mut stream, manner, &seen).await,
        }
    }
}

async fn answer(stream: &mut UnixStream, manner: Manner, seen: &Mutex<Seen>) {
    let mut buffer = [0; 4096];
    let length = stream.read(&mut buffer).await.expect("a line");
    let line = std::str::from_utf8(&buffer[..length]).expect("text").trim_end().to_owned();
    let reply = {
        let mut seen = seen.lock().expect("whole");
        if let Some((_, state)) = line.split(';').next().expect("a command").split_once(" state ")
            && line.starts_with("set")
            && matches!(manner, Manner::Well)
        {
            seen.admin = u32::from(state == "maint");
        }
        let admin = seen.admin;
        seen.lines.push(line);
        format!(
            "\n1\n# be_name srv_name srv_op_state srv_admin_state srv_uweight srv_iweight srv_check_state srv_agent_state\n\
             be_web web1 2 {admin} 1 1 6 0\n\n"
        )
    };
    let part = match manner {
        Manner::Well => reply.len(),
        Manner::Half => reply.len() / 2,
        _ => 0,
    };
    stream.write_all(&reply.as_bytes()[..part]).await.expect("sent");
}

struct Bench {
    directory: tempfile::TempDir,
    board: Arc<Board>,
    seen: Arc<Mutex<Seen>>,
    kept: Arc<Mutex<Vec<bool>>>,
    leave: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<()>>,
    server: tokio::task::JoinHandle<()>,
}

impl Bench {
    async fn start(manners: Vec<Manner>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (board, seen, kept) = (Arc::new(Board::new()), Arc::default(), Arc::new(Mutex::new(Vec::new())));
        board.add(&"web".into(), Some(&"be_web/web1".parse().expect("a name")));
        let endpoint = Endpoint::Unix(directory.path().join("admin.sock"));
        let listener = UnixListener::bind(directory.path().join("admin.sock")).expect("bound");
        let server = tokio::spawn(serve(listener, manners, Arc::clone(&seen)));
        let haproxy = HaProxy {
            spoken: Spoken::new(&Registry::new(), std::slice::from_ref(&endpoint)).expect("registered"),
            endpoint,
            names: ["be_web/web1".parse().expect("a name")].into(),
            claims: Claims::default(),
            board: Arc::clone(&board),
            keep: Box::new({
                let kept = Arc::clone(&kept);
                move |_, claims| kept.lock().expect("whole").push(claims.is_empty())
            }),
        };
        let (leave, left) = oneshot::channel();
        let task = tokio::spawn(haproxy.run(board.wishes(), left));
        Self { directory, board, seen, kept, leave, task, server }
    }

    fn stand(&self, state: State) {
        let standing = Standing { state, cause: Cause::Died, since: Timestamp::UNIX_EPOCH, weight: 100 };
        self.board.stand("web", standing);
    }

    async fn until(&self, admin: u32) {
        for _ in 0..1000 {
            if self.seen.lock().expect("whole").admin == admin {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("never {admin}: {:?}", self.seen.lock());
    }
}

#[tokio::test]
async fn a_wish_is_said_at_once_and_undone_when_it_is_over() {
    let bench = Bench::start(Vec::new()).await;
    bench.stand(State::Out);
    bench.until(1).await;
    assert_eq!(bench.kept.lock().expect("whole").first(), Some(&false), "what is ours to undo is kept");
    bench.stand(State::In);
    bench.until(0).await;
    bench.leave.send(()).expect("it runs");
    bench.task.await.expect("no panic").expect("a clean end");
    assert_eq!(bench.kept.lock().expect("whole").last(), Some(&true));
    assert!(bench.seen.lock().expect("whole").lines[0].ends_with("show servers state be_web"));
}

#[tokio::test]
async fn broken_answers_and_a_server_that_goes_and_comes_are_got_over() {
    let bench = Bench::start(vec![Manner::Half, Manner::Mute, Manner::Stalls]).await;
    bench.stand(State::Out);
    bench.until(1).await;
    // Another HAProxy in its place, which knows nothing.
    bench.server.abort();
    let path = bench.directory.path().join("admin.sock");
    std::fs::remove_file(&path).expect("removed");
    sleep(Duration::from_millis(1200)).await;
    bench.seen.lock().expect("whole").admin = 0;
    let listener = UnixListener::bind(&path).expect("bound");
    tokio::spawn(serve(listener, Vec::new(), Arc::clone(&bench.seen)));
    bench.until(1).await;
    // The service is still dead when the agent ends: HAProxy's own checks take over.
    bench.leave.send(()).expect("it runs");
    bench.task.await.expect("no panic").expect("a clean end");
    let last = bench.seen.lock().expect("whole").lines.last().cloned().expect("lines");
    assert!(last.contains("state ready;set server be_web/web1 health down"), "{last}");
}

#[test]
fn endpoints_are_read_as_they_are_shown() {
    for text in ["/run/haproxy/admin.sock", "tcp://127.0.0.1:9999", "tcp://[::1]:9"] {
        assert_eq!(text.parse::<Endpoint>().expect("valid").to_string(), text);
    }
    for text in ["", "admin.sock", "tcp://localhost", "http://x"] {
        assert!(text.parse::<Endpoint>().expect_err("refused").contains("tcp://ADDRESS:PORT"), "{text:?}");
    }
}
