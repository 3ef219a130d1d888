use axum::body::{Body, to_bytes};
use serde_json::Value;

use super::*;
use crate::{
    incident::{Before, Book},
    store::{Draft, Store},
    timeline::Timeline,
};

/// Asks as a client would; status and body.
async fn ask(api: &Api, path: &str) -> (u16, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let router = Router::new().nest("/api/v1", api.clone().router());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP");
    let connection = tokio::spawn(connection);
    let request = hyper::Request::get(format!("/api/v1{path}")).header("host", "localhost").body(String::new());
    let answer = sender.send_request(request.expect("a request")).await.expect("an answer");
    let status = answer.status().as_u16();
    let body = to_bytes(Body::new(answer.into_body()), 1 << 20).await.expect("a body");
    connection.abort();
    server.abort();
    (status, String::from_utf8(body.to_vec()).expect("UTF-8"))
}

async fn kept(services: &[&str]) -> (tempfile::TempDir, Api, mpsc::Receiver<Command>) {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = Store::open(directory.path()).expect("a store");
    let mut book = Book::new(Vec::new(), 1);
    for service in services {
        book.open(&Arc::from(*service), jiff::Timestamp::now(), Before::default());
    }
    store.keep(Draft { incidents: book.take_changed(), ..Draft::default() });
    store.close().await;
    let (commands_in, commands) = mpsc::channel(1);
    let api = Api::new(commands_in, directory.path().to_owned(), Timeline::new());
    (directory, api, commands)
}

#[tokio::test]
async fn incidents_are_listed_found_and_bounded() {
    let (_directory, api, _commands) = kept(&["web", "a b/ü"]).await;
    let list = |text: &str| {
        let all: Vec<Value> = serde_json::from_str(text).expect("JSON");
        all.iter().map(|incident| incident["service"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    let (status, text) = ask(&api, "/incidents").await;
    assert_eq!((status, list(&text)), (200, vec!["a b/ü".to_owned(), "web".to_owned()]));
    let (_, text) = ask(&api, "/incidents?limit=1").await;
    assert_eq!(list(&text).len(), 1);
    let (_, text) = ask(&api, "/incidents?service=a+b%2F%C3%BC").await;
    assert_eq!(list(&text), ["a b/ü"]);
    let (status, text) = ask(&api, "/incidents/1").await;
    let one: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, &one["id"]), (200, &1.into()));
    for (path, wants) in [
        ("/incidents/99", (404, "no incident 99")),
        ("/incidents/x", (400, "")),
        ("/incidents?limit=1001", (400, "up to 1000")),
        ("/incidents?limit=-1", (400, "")),
        ("/incidents?order=up", (400, "order")),
    ] {
        let (status, text) = ask(&api, path).await;
        assert_eq!(status, wants.0, "{path}: {text}");
        assert!(text.contains(wants.1), "{path}: {text}");
    }
}

#[tokio::test]
async fn services_come_from_the_agent_and_a_store_that_is_not_there_is_said() {
    let (directory, api, mut commands) = kept(&[]).await;
    let agent = tokio::spawn(async move {
        let Some(Command::Status(reply)) = commands.recv().await else { panic!("another question") };
        reply.send(Vec::new()).expect("awaited");
    });
    assert_eq!(ask(&api, "/services").await, (200, "[]".to_owned()));
    agent.await.expect("asked once");
    assert_eq!(ask(&api, "/services").await, (503, "the agent is stopping\n".to_owned()));
    std::fs::remove_file(directory.path().join("defib.db")).expect("removed");
    let (status, text) = ask(&api, "/incidents").await;
    assert!(status == 503 && text.contains("there is no"), "{text}");
}
