use std::sync::Arc;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::alert::{
    board::{Board, Standing},
    outbox::{Next, Outbox},
};

fn postings(service: &str, text: &str, now: u64) -> Vec<Posting> {
    let mut board = Board::default();
    board.oom_kill(service, "memcg", now, text, now);
    board.stands(service, Standing { down_since_ns: Some(now), ..Standing::default() }, now);
    board.advance(now);
    let Next::Post(batch) = Outbox::default().next(&board, now) else { panic!("nothing to tell") };
    batch
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("instance".to_owned(), "a:9669".to_owned()), ("site".to_owned(), "nord".to_owned())])
}

#[test]
fn an_alert_has_the_labels_of_the_rules_and_the_agent_s_own() {
    let now = clock::boot_ns();
    let all: Value =
        serde_json::from_str(&body(&postings("web", "leaky was killed", now), &labels(), now)).expect("JSON");
    let [down, oom] = all.as_array().map(Vec::as_slice).expect("an array") else { panic!("{all}") };
    let want = serde_json::json!({ "alertname": "DefibServiceDown", "severity": "page", "service": "web",
        "instance": "a:9669", "site": "nord" });
    assert_eq!(down["labels"], want);
    assert_eq!((&oom["labels"]["scope"], &oom["labels"]["severity"]), (&"memcg".into(), &"warn".into()));
    assert_eq!(oom["annotations"]["summary"], "web was OOM-killed on a:9669");
    assert_eq!(oom["annotations"]["description"], "leaky was killed");
    assert_eq!(oom["annotations"]["runbook"], "docs/alerts.md#defiboomkill");
    let time = |name: &str| oom[name].as_str().and_then(|text| text.parse::<Timestamp>().ok()).expect("a time");
    let lasts = time("endsAt").duration_since(time("startsAt")).as_secs();
    assert!((299..=301).contains(&lasts), "{lasts}");
}

#[test]
fn hostile_names_are_shown_and_bounded() {
    let (now, long) = (clock::boot_ns(), "\u{1b}[2J\"}],\n\u{202e}".to_owned() + &"ü".repeat(5000));
    let all: Value = serde_json::from_str(&body(&postings(&long, &long, now), &labels(), now)).expect("JSON");
    for alert in all.as_array().expect("an array") {
        let texts =
            ["labels", "annotations"].into_iter().flat_map(|part| alert[part].as_object().expect("a map").values());
        for text in texts.map(|text| text.as_str().expect("text")) {
            assert!(text.len() <= ANNOTATION_MAX && !text.chars().any(char::is_control), "{text}");
        }
        let service = alert["labels"]["service"].as_str().expect("text");
        assert!(
            service.len() <= LABEL_MAX && service.starts_with("\\x1b[2J\"}],\\x0a\\x202e") && service.ends_with('…')
        );
    }
}

/// A peer that answers each connection with the next of `answers`; what it was asked.
async fn peer(answers: Vec<&'static str>) -> (Peer, Arc<tokio::sync::Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let peer = format!("http://{}/am/", listener.local_addr().expect("bound")).parse().expect("a peer");
    let asked: Arc<tokio::sync::Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&asked);
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = vec![0; 4096];
            let len = stream.read(&mut request).await.expect("a request");
            kept.lock().await.push(String::from_utf8_lossy(&request[..len]).into_owned());
            stream.write_all(answer.as_bytes()).await.expect("sent");
        }
    });
    (peer, asked)
}

#[tokio::test]
async fn answers_are_told_apart() {
    let (peer, asked) = peer(vec![
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 9\r\n\r\nbad\x1blabel",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
        "nonsense",
    ])
    .await;
    assert_eq!(post(&peer, "[]".to_owned()).await, Answer::Accepted);
    let Answer::Refused(why) = post(&peer, "[]".to_owned()).await else { panic!("a refusal") };
    assert_eq!(why, "it answers 400 Bad Request: bad\\x1blabel");
    for _ in 0..3 {
        assert!(matches!(post(&peer, "[]".to_owned()).await, Answer::Failed(_)));
    }
    let asked = asked.lock().await;
    assert!(
        asked[0].starts_with("POST /am/api/v2/alerts HTTP/1.1\r\n") && asked[0].ends_with("\r\n\r\n[]"),
        "{asked:?}"
    );
    assert!(asked[0].contains(&format!("host: {peer}\r\n")), "{asked:?}");
}

#[tokio::test]
async fn nobody_there_is_a_failure_that_names_the_peer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let peer: Peer = format!("http://{address}").parse().expect("a peer");
    let Answer::Failed(why) = post(&peer, String::new()).await else { panic!("a failure") };
    assert!(why.contains(&address.to_string()), "{why}");
}
