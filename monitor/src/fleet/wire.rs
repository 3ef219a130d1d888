//! etcd's JSON gateway (API version 3, since etcd 3.4): the requests that are sent, and what is read in answers. Pure.
//!
//! Keys and values are base64, and 64-bit numbers are strings; fields that are zero are left out
//! (<https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/>).

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    NAMED,
    claim::{Answer, Ask, Holder, Lease, Seen, Slot},
};

/// gRPC's code for what does not exist (google.rpc.Code).
const NOT_FOUND: u32 = 5;
/// In a key, between the pool and the number of the slot.
const SLOTS: &str = "/slots/";

/// A question to the gateway.
#[derive(Debug)]
pub(super) struct Query {
    /// Of the URL.
    pub(super) path: &'static str,
    /// JSON.
    pub(super) body: String,
}

/// Which keys a pool's slots have.
pub(super) fn slots_of(prefix: &str, pool: &str) -> String {
    format!("{prefix}{pool}{SLOTS}")
}

/// `slots`: where the pool's slots are.
pub(super) fn query(ask: Ask, slots: &str, ttl: Duration, holder: &Holder) -> Query {
    match ask {
        Ask::Look => range(slots, NAMED as u32),
        Ask::Grant => Query { path: "/v3/lease/grant", body: json!({ "TTL": ttl.as_secs().to_string() }).to_string() },
        Ask::Take { slot, lease } => {
            let key = encoded(&format!("{slots}{slot}"));
            // Strings and times always serialize.
            let value = encoded(&serde_json::to_string(holder).unwrap_or_default());
            let body = json!({
                "compare": [{ "target": "CREATE", "result": "EQUAL", "key": key, "create_revision": "0" }],
                "success": [{ "request_put": { "key": key, "value": value, "lease": lease.to_string() } }],
                "failure": [{ "request_range": span(slots) }],
            });
            Query { path: "/v3/kv/txn", body: body.to_string() }
        }
        Ask::Renew { lease } => {
            Query { path: "/v3/lease/keepalive", body: json!({ "ID": lease.to_string() }).to_string() }
        }
    }
}

/// Keys below a prefix, up to `limit`, and how many there are.
pub(super) fn range(prefix: &str, limit: u32) -> Query {
    let mut body = span(prefix);
    body["limit"] = limit.to_string().into();
    Query { path: "/v3/kv/range", body: body.to_string() }
}

/// Ends a lease, and what goes with it.
pub(super) fn revoke(lease: Lease) -> Query {
    Query { path: "/v3/lease/revoke", body: json!({ "ID": lease.to_string() }).to_string() }
}

/// How long a lease has to live.
pub(super) fn time_to_live(lease: Lease) -> Query {
    Query { path: "/v3/lease/timetolive", body: json!({ "ID": lease.to_string() }).to_string() }
}

/// What an answer of the gateway is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The answer.
    Said(Value),
    /// What was asked about does not exist: any member would say so.
    NotFound,
    /// This member cannot answer; another may.
    Failed(String),
}

/// Reads an answer.
pub(super) fn reply(status: StatusCode, body: &[u8]) -> Reply {
    let text = || String::from_utf8_lossy(&body[..body.len().min(200)]).trim().to_owned();
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        let hint = if status == StatusCode::NOT_FOUND { "; is --enable-grpc-gateway off there?" } else { "" };
        return Reply::Failed(format!("{status}: {}{hint}", text()));
    };
    if value["code"].as_u64() == Some(NOT_FOUND.into()) {
        return Reply::NotFound;
    }
    // A stream's answers come each in a `result`, and its failure with a status of 200.
    match value.get("result") {
        Some(result) if status.is_success() => Reply::Said(result.clone()),
        None if status.is_success() && value.get("error").is_none() => Reply::Said(value),
        _ => Reply::Failed(format!("{status}: {}", text())),
    }
}

/// What a reply says to a claim.
pub(super) fn answer(ask: Ask, slots: &str, reply: Reply) -> Answer {
    let value = match reply {
        Reply::Said(value) => value,
        Reply::NotFound => return Answer::Gone,
        Reply::Failed(why) => return Answer::Failed(why),
    };
    let read = match ask {
        Ask::Look => parsed(value).map(|range: Range| Answer::Slots(seen(range, slots))),
        Ask::Grant => parsed(value).map(|granted: Granted| granted.answer()),
        Ask::Take { .. } => parsed(value).map(|done: Done| done.answer(slots)),
        Ask::Renew { .. } => parsed(value).map(|granted: Granted| granted.answer()),
    };
    read.unwrap_or_else(|error| Answer::Failed(format!("an answer that is not etcd's: {error}")))
}

/// Pool, slot, and who has it, of every slot below the prefix.
pub(super) fn listed(value: Value, prefix: &str) -> Result<Vec<(String, Slot)>, serde_json::Error> {
    let range: Range = serde_json::from_value(value)?;
    let parts = |pair: &Pair| {
        let key = decoded(&pair.key)?;
        let (pool, index) = key.strip_prefix(prefix)?.rsplit_once(SLOTS)?;
        Some((pool.to_owned(), pair.slot(index.parse().ok())))
    };
    Ok(range.kvs.iter().filter_map(parts).collect())
}

/// Seconds, of a lease that exists.
pub(super) fn seconds_left(value: &Value) -> Option<u64> {
    value["TTL"].as_str()?.parse().ok()
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<Pair>,
    /// Of all, also beyond the limit of what was asked for.
    #[serde(default)]
    count: String,
}

#[derive(Deserialize)]
struct Pair {
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    lease: String,
}

impl Pair {
    fn slot(&self, index: Option<u32>) -> Slot {
        let holder = decoded(&self.value).and_then(|text| serde_json::from_str(&text).ok());
        Slot { index, lease: self.lease.parse().unwrap_or(0), holder }
    }
}

#[derive(Deserialize)]
struct Granted {
    #[serde(rename = "ID")]
    lease: String,
    #[serde(rename = "TTL", default)]
    ttl: String,
}

impl Granted {
    /// Without a time to live, it has none.
    fn answer(&self) -> Answer {
        match (self.lease.parse(), self.ttl.parse()) {
            (Ok(lease), Ok(seconds)) if seconds > 0 => Answer::Lease { lease, ttl: Duration::from_secs(seconds) },
            _ => Answer::Gone,
        }
    }
}

#[derive(Deserialize)]
struct Done {
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<Response>,
}

#[derive(Deserialize)]
struct Response {
    response_range: Option<Range>,
}

impl Done {
    fn answer(self, slots: &str) -> Answer {
        if self.succeeded {
            return Answer::Taken;
        }
        match self.responses.into_iter().find_map(|response| response.response_range) {
            Some(range) => Answer::Slots(seen(range, slots)),
            None => Answer::Failed("a transaction without its answer".to_owned()),
        }
    }
}

/// Whatever lies below `slots` counts as taken: what we cannot read, somebody may have put there on purpose.
fn seen(range: Range, slots: &str) -> Seen {
    let index = |pair: &Pair| decoded(&pair.key)?.strip_prefix(slots)?.parse().ok();
    Seen {
        taken: range.count.parse().unwrap_or(range.kvs.len()),
        slots: range.kvs.iter().map(|pair| pair.slot(index(pair))).collect(),
    }
}

fn parsed<T: DeserializeOwned>(value: Value) -> Result<T, serde_json::Error> {
    serde_json::from_value(value)
}

/// The keys that begin with `prefix`: up to the prefix with its last byte one higher, as etcdctl's `--prefix` has it.
fn span(prefix: &str) -> Value {
    let mut end = prefix.as_bytes().to_vec();
    // A prefix ends with a slash, so there is a byte, and one that is no 0xff.
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    json!({ "key": encoded(prefix), "range_end": BASE64_STANDARD.encode(end) })
}

fn encoded(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

fn decoded(text: &str) -> Option<String> {
    String::from_utf8(BASE64_STANDARD.decode(text).ok()?).ok()
}

/// Takes any bytes for etcd's answer to each question.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    const SLOTS_OF_WEB: &str = "/defib/web/slots/";
    for status in [StatusCode::OK, StatusCode::NOT_FOUND] {
        for ask in [Ask::Look, Ask::Grant, Ask::Take { slot: 0, lease: 1 }, Ask::Renew { lease: 1 }] {
            drop(answer(ask, SLOTS_OF_WEB, reply(status, bytes)));
        }
    }
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    seconds_left(&value);
    drop(listed(value, "/defib/"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS_OF_WEB: &str = "/defib/web/slots/";

    fn holder() -> Holder {
        Holder { host: "h".into(), service: "web".into(), since: jiff::Timestamp::UNIX_EPOCH }
    }

    fn said(ask: Ask, text: &str) -> Answer {
        answer(ask, SLOTS_OF_WEB, reply(StatusCode::OK, text.as_bytes()))
    }

    #[test]
    fn a_slot_is_taken_only_if_its_key_does_not_exist() {
        let take = Ask::Take { slot: 2, lease: 77 };
        let query = query(take, &slots_of("/defib/", "web"), Duration::from_secs(30), &holder());
        let body: Value = serde_json::from_str(&query.body).expect("JSON");
        let key = decoded(body["compare"][0]["key"].as_str().expect("a key")).expect("base64");
        assert_eq!(key, "/defib/web/slots/2");
        assert_eq!(body["compare"][0]["create_revision"], "0");
        let put = &body["success"][0]["request_put"];
        assert_eq!((&put["key"], put["lease"].as_str()), (&body["compare"][0]["key"], Some("77")));
        let value = decoded(put["value"].as_str().expect("a value")).expect("base64");
        assert_eq!(value, r#"{"host":"h","service":"web","since":"1970-01-01T00:00:00Z"}"#);
    }

    #[test]
    fn answers_of_etcd_3_4_are_understood() {
        let take = Ask::Take { slot: 0, lease: 7 };
        assert!(matches!(said(take, r#"{"succeeded":true,"responses":[{"response_put":{}}]}"#), Answer::Taken));
        let key = encoded("/defib/web/slots/0");
        let value = encoded(&serde_json::to_string(&holder()).expect("JSON"));
        let lost = format!(
            r#"{{"header":{{}},"responses":[{{"response_range":{{"kvs":[{{"key":"{key}","value":"{value}","lease":"9"}}]}}}}]}}"#
        );
        let Answer::Slots(seen) = said(take, &lost) else { panic!("somebody has it") };
        assert_eq!(
            (seen.taken, &seen.slots[..]),
            (1, &[Slot { index: Some(0), lease: 9, holder: Some(holder()) }][..])
        );
        let Answer::Slots(none) = said(Ask::Look, r#"{"header":{"revision":"3"}}"#) else { panic!("nobody has one") };
        assert_eq!(none, Seen { taken: 0, slots: Vec::new() });
        let renew = Ask::Renew { lease: 7 };
        let Answer::Lease { lease, ttl } = said(renew, r#"{"result":{"ID":"7","TTL":"30"}}"#) else {
            panic!("renewed")
        };
        assert_eq!((lease, ttl), (7, Duration::from_secs(30)));
        assert!(matches!(said(renew, r#"{"result":{"ID":"7"}}"#), Answer::Gone), "no time to live is left");
    }

    #[test]
    fn failures_are_told_from_what_does_not_exist() {
        let gone = r#"{"error":"etcdserver: requested lease not found","code":5}"#;
        assert_eq!(reply(StatusCode::NOT_FOUND, gone.as_bytes()), Reply::NotFound);
        let off = reply(StatusCode::NOT_FOUND, b"404 page not found");
        assert!(matches!(off, Reply::Failed(why) if why.contains("--enable-grpc-gateway")));
        let stream = br#"{"error":{"grpc_code":14,"message":"etcdserver: no leader"}}"#;
        assert!(matches!(reply(StatusCode::OK, stream), Reply::Failed(why) if why.contains("no leader")));
        let error = said(Ask::Grant, "[]");
        assert!(matches!(error, Answer::Failed(_)), "{error:?}");
    }

    #[test]
    fn what_cannot_be_read_is_taken_all_the_same() {
        let foreign = encoded("/defib/web/slots/by hand");
        let text = format!(r#"{{"kvs":[{{"key":"{foreign}","value":"{}"}}],"count":"12"}}"#, encoded("busy"));
        let Answer::Slots(seen) = said(Ask::Look, &text) else { panic!("slots") };
        let slots = vec![Slot { index: None, lease: 0, holder: None }];
        assert_eq!(seen, Seen { taken: 12, slots }, "more than are named");
    }

    #[test]
    fn a_listing_names_pools_that_have_slashes_too() {
        let pair = |key: &str| format!(r#"{{"key":"{}","lease":"5"}}"#, encoded(key));
        let text = format!(r#"{{"kvs":[{},{},{}]}}"#, pair("/d/a/slots/0"), pair("/d/b/c/slots/me"), pair("/d/other"));
        let listed = listed(serde_json::from_str(&text).expect("JSON"), "/d/").expect("understood");
        let short: Vec<_> = listed.iter().map(|(pool, slot)| (pool.as_str(), slot.index, slot.lease)).collect();
        assert_eq!(short, [("a", Some(0), 5), ("b/c", None, 5)]);
    }
}
