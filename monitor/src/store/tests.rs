use std::fs;

use super::{left::read, *};
use crate::{
    host::process::Identity,
    incident::{Before, Book},
    memory::Pace,
};

fn incidents(count: usize) -> Vec<Incident> {
    let mut book = Book::new(Vec::new(), 1);
    for number in 0..count {
        let service: Arc<str> = format!("service-{number}").into();
        book.open(&service, Timestamp::now(), Before::default());
    }
    book.take_changed()
}

fn memory() -> Memory {
    Memory {
        process: Some(Identity { tgid: 7, start_ns: 5 }),
        attempts: 2,
        spent_ns: [1, 2].into(),
        ..Memory::default()
    }
}

fn draft(incidents: Vec<Incident>) -> Draft {
    Draft { services: [("web".into(), memory())].into(), incidents, ..Draft::default() }
}

async fn written(directory: &Path, count: usize) {
    let (store, left) = Store::open(directory).expect("a store");
    assert_eq!((left.next_id, left.trouble), (1, None));
    store.keep(draft(incidents(count)));
    store.keep_follower(&"web".into(), Follower::new(Pace::default()));
    store.close().await;
}

#[tokio::test]
async fn what_was_kept_is_there_again() {
    let directory = tempfile::tempdir().expect("a directory");
    written(directory.path(), 3).await;
    let (_, left) = Store::open(directory.path()).expect("a store");
    assert_eq!(left.services["web"], memory());
    assert!(left.followers["web"].keeps(Pace::default()));
    assert_eq!((left.open.len(), left.next_id), (3, 4));
    let reader = Reader::open(directory.path()).expect("a reader beside it");
    let ids = |incidents: Vec<Incident>| incidents.iter().map(|incident| incident.id).collect::<Vec<_>>();
    assert_eq!(ids(reader.incidents(None, 2).expect("listed")), [3, 2]);
    assert_eq!(ids(reader.incidents(Some("service-0"), 9).expect("listed")), [1]);
    assert!(reader.incident(9).expect("looked up").is_none());
}

#[tokio::test]
async fn a_closed_store_is_one_file() {
    let directory = tempfile::tempdir().expect("a directory");
    written(directory.path(), 3).await;
    let files = fs::read_dir(directory.path()).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    assert_eq!(files.collect::<Vec<_>>(), [FILE]);
}

#[tokio::test]
async fn an_alert_is_kept_until_it_is_over_and_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let alert = |alert: &str| {
        let text = format!(
            "{{\"alert\":\"{alert}\",\"scope\":null,\"service\":\"web\",\"since\":\"2026-01-01T00:00:00Z\",\
             \"until\":\"2026-01-01T00:00:00Z\",\"text\":\"x\",\"holds\":true,\"delivered\":true,\"ended\":false}}"
        );
        serde_json::from_str::<alert::Kept>(&text).expect("an alert")
    };
    let (store, left) = Store::open(directory.path()).expect("a store");
    assert_eq!(left.alerts, []);
    for name in ["A", "B"] {
        store.keep_alert(name.to_owned(), Some(alert(name)));
    }
    store.flush().await;
    store.keep_alert("A".to_owned(), None);
    store.close().await;
    let (store, left) = Store::open(directory.path()).expect("a store");
    assert_eq!((left.alerts, left.trouble), (vec![alert("B")], None));
    store.close().await;
    // One of another version costs that alert, not the file.
    let connection = Connection::open(directory.path().join(FILE)).expect("opened");
    connection.execute("INSERT INTO alert VALUES ('C', '{}')", []).expect("written");
    let (_, left) = Store::open(directory.path()).expect("a store");
    assert_eq!((left.alerts.len(), left.trouble), (1, None));
}

#[tokio::test]
async fn a_kill_after_the_flush_loses_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = Store::open(directory.path()).expect("a store");
    store.keep(draft(Vec::new()));
    store.flush().await;
    // Not closed: another process would find the same.
    let copy = tempfile::tempdir().expect("a directory");
    for entry in fs::read_dir(directory.path()).expect("listed").flatten() {
        fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copied");
    }
    let (_, left) = Store::open(copy.path()).expect("a store");
    assert_eq!(left.services["web"], memory());
}

#[tokio::test]
async fn a_corrupt_file_is_set_aside_and_said() {
    for broken in ["no database at all, and long enough to be taken for one, if anybody looked at sizes only", ""] {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join(FILE), broken).expect("written");
        let (store, left) = Store::open(directory.path()).expect("a store");
        store.keep(draft(Vec::new()));
        store.close().await;
        let aside = fs::read_dir(directory.path())
            .expect("listed")
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().contains("corrupt"));
        // An empty file is an empty database.
        assert_eq!(aside.is_some(), !broken.is_empty());
        assert_eq!(left.trouble.is_some(), !broken.is_empty());
        if let Some(aside) = aside {
            assert_eq!(fs::read(aside.path()).expect("kept"), broken.as_bytes());
        }
        let (_, left) = Store::open(directory.path()).expect("a store");
        assert_eq!(left.services.len(), 1);
    }
}

#[tokio::test]
async fn a_state_that_makes_no_sense_is_set_aside_too() {
    let directory = tempfile::tempdir().expect("a directory");
    written(directory.path(), 1).await;
    let connection = Connection::open(directory.path().join(FILE)).expect("opened");
    connection.execute("UPDATE service SET memory = '{\"process\":7}'", []).expect("changed");
    drop(connection);
    let (_, left) = Store::open(directory.path()).expect("a store");
    assert!(left.trouble.is_some_and(|trouble| trouble.contains("the state of web")));
    assert!(left.services.is_empty());
}

#[tokio::test]
async fn without_a_directory_the_agent_goes_on_from_memory() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    fs::write(&file, "").expect("written");
    let (store, left) = Store::open(&file.join("below")).expect("a store");
    assert!(left.trouble.is_some_and(|trouble| trouble.contains("memory only")));
    store.keep(draft(Vec::new()));
    store.flush().await;
    assert!(store.trouble().is_some(), "still said after a write");
}

#[tokio::test]
async fn a_newer_layout_is_left_as_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    written(directory.path(), 1).await;
    let path = directory.path().join(FILE);
    let connection = Connection::open(&path).expect("opened");
    connection.pragma_update(None, "user_version", 99).expect("changed");
    drop(connection);
    let (_, left) = Store::open(directory.path()).expect("a store");
    assert!(left.trouble.is_some_and(|trouble| trouble.contains("newer defib")));
    let connection = Connection::open(&path).expect("opened");
    let layout: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).expect("read");
    assert_eq!(layout, 99);
}

#[test]
fn old_incidents_go_and_open_ones_stay() {
    let mut connection = prepare(Connection::open_in_memory().expect("memory")).expect("prepared");
    let old = Timestamp::now() - jiff::SignedDuration::from_hours(24 * 500);
    let mut batch = Waiting::default();
    for (number, mut incident) in incidents(3).into_iter().enumerate() {
        if number < 2 {
            incident.began = old;
        }
        incident.ended = (number != 1).then(Timestamp::now);
        batch.incidents.insert(incident.id, incident);
    }
    write(&mut connection, &batch).expect("written");
    let left = read(&connection).expect("read");
    assert_eq!((left.open.len(), left.next_id), (1, 4));
    let count: i64 = connection.query_row("SELECT count(*) FROM incident", [], |row| row.get(0)).expect("counted");
    assert_eq!(count, 2, "the old one that has ended is gone");
}

#[test]
fn what_waits_for_a_full_disk_is_bounded_and_counted() {
    let store = Store { shared: Arc::default() };
    for incident in incidents(MAX_WAITING + 5) {
        store.keep(draft(vec![incident]));
    }
    assert_eq!(lock(&store.shared.waiting).incidents.len(), MAX_WAITING);
    assert_eq!(store.losses(), (0, 5));
}

#[tokio::test]
async fn a_memory_that_is_not_understood_or_long_gone_begins_anew_and_costs_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    written(directory.path(), 1).await;
    let connection = Connection::open(directory.path().join(FILE)).expect("opened");
    let now_ms = Timestamp::now().as_millisecond();
    let insert =
        "INSERT INTO follower SELECT ?1, ?2, CASE WHEN ?3 = '' THEN follower ELSE ?3 END FROM follower LIMIT 1";
    for (name, age_days, text) in [("odd", 0, "{\"pace\":7}"), ("old", 91, ""), ("seen", 89, "")] {
        connection.execute(insert, params![name, now_ms - age_days * 86_400_000, text]).expect("inserted");
    }
    drop(connection);
    let (_, left) = Store::open(directory.path()).expect("a store");
    let mut names: Vec<_> = left.followers.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!((names, left.trouble, left.open.len()), (vec!["seen", "web"], None, 1));
}

#[tokio::test]
async fn where_services_stood_in_their_pools_is_there_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = Store::open(directory.path()).expect("a store");
    let memory = pool::Memory { state: pool::State::Out, cause: pool::Cause::OomKill, process: None, flaps: 3 };
    store.keep_member(&"web".into(), memory.clone());
    store.keep_claims("/run/haproxy/admin.sock", pool::Claims::default());
    store.close().await;
    let path = directory.path().join(FILE);
    let connection = Connection::open(&path).expect("opened");
    let odd = "INSERT INTO pool VALUES ('member', 'odd', 9e15, '{\"state\":\"sideways\"}'), ('later', 'x', 9e15, '')";
    connection.execute(odd, []).expect("changed");
    drop(connection);
    let (_, left) = Store::open(directory.path()).expect("a store");
    assert_eq!(left.trouble, None, "what cannot be read begins anew");
    assert_eq!(left.pool.members, [("web".to_owned(), memory)].into());
    assert_eq!(left.pool.claims.keys().collect::<Vec<_>>(), ["/run/haproxy/admin.sock"]);
}
