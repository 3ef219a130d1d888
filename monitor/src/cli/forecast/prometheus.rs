//! A series from a Prometheus server (HTTP API v1, `query_range`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use axum::body::Bytes;
use hyper::Uri;
use serde::Deserialize;

use crate::{
    http::{self, Bounds},
    memory::trend::Sample,
};

/// Points in an answer at most: Prometheus gives 11,000 a series (`web/api/v1`, "exceeded maximum resolution").
const POINTS: u64 = 10_000;
/// For one query.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer.
const ANSWER_MAX: usize = 64 << 20;
/// A fall of memory to less than this share of what it was is taken for a new incarnation, where starts are not known.
const FALL: f64 = 0.7;

/// Where the series is, if not in a file.
#[derive(clap::Args)]
pub(super) struct Server {
    /// Read from this Prometheus server (http only)
    #[arg(long, value_name = "URL", requires = "query")]
    prometheus: Option<Uri>,
    /// PromQL for memory that cannot be reclaimed, in bytes; one series
    #[arg(long, value_name = "PROMQL", requires = "prometheus")]
    query: Option<String>,
    /// How far back
    #[arg(long, value_name = "TIME", default_value = "14d", value_parser = humantime::parse_duration)]
    range: Duration,
    /// Between two samples
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    step: Duration,
    /// PromQL for the start of the incarnation, Unix seconds, such as process_start_time_seconds; without it, a fall of
    /// memory by three tenths counts as a restart
    #[arg(long, value_name = "PROMQL", requires = "prometheus")]
    start_query: Option<String>,
    /// PromQL for the load, cores in use
    #[arg(long, value_name = "PROMQL", requires = "prometheus")]
    cpu_query: Option<String>,
    /// The limit: bytes (512Mi, 2Gi) or PromQL
    #[arg(long, value_name = "BYTES|PROMQL", requires = "prometheus")]
    limit: Option<String>,
}

/// Times and values, the oldest first.
type Series = Vec<(f64, f64)>;

/// Reads the series.
///
/// # Errors
/// When the server does not answer, refuses the query, or has no such series or several.
pub(super) async fn read(args: &Server) -> Result<Vec<Sample>> {
    let (Some(server), Some(query)) = (&args.prometheus, &args.query) else { bail!("there is no --query") };
    ensure!(server.scheme_str() == Some("http"), "--prometheus: {server} is no http:// URL");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let window = Window { step: args.step.as_secs().max(1), begin: now.saturating_sub(args.range.as_secs()), end: now };
    let memory = server_series(server, query, window).await?;
    let memory = memory.with_context(|| format!("there is no series for {query} in that time"))?;
    let optional = async |query: &Option<String>| match query {
        Some(query) => server_series(server, query, window)
            .await?
            .with_context(|| format!("there is no series for {query}"))
            .map(Some),
        None => Ok(None),
    };
    let (starts, cpu) = (optional(&args.start_query).await?, optional(&args.cpu_query).await?);
    let fixed = args.limit.as_deref().and_then(bytes);
    let limits = if fixed.is_some() { None } else { optional(&args.limit).await? };
    let tolerance = 5.0 * window.step as f64;
    let starts = match &starts {
        Some(starts) => memory.iter().map(|&(time, _)| latest(starts, time, tolerance)).collect(),
        None => guessed(&memory),
    };
    let samples = memory.iter().zip(starts).filter_map(|(&(time, bytes), start)| {
        Some(Sample {
            time,
            start: start?.min(time),
            bytes,
            limit: fixed.or_else(|| latest(limits.as_ref()?, time, tolerance)),
            cpu: cpu.as_ref().and_then(|cpu| latest(cpu, time, tolerance)),
            pressure: None,
            build: None,
        })
    });
    Ok(samples.collect())
}

/// What is asked for, Unix seconds.
#[derive(Clone, Copy)]
struct Window {
    begin: u64,
    end: u64,
    step: u64,
}

impl Window {
    /// In parts that a server answers.
    fn parts(self) -> impl Iterator<Item = Self> {
        let span = POINTS * self.step;
        (0..)
            .map(move |part| self.begin + part * span)
            .take_while(move |begin| *begin <= self.end)
            .map(move |begin| Self { begin, end: (begin + span - self.step).min(self.end), ..self })
    }
}

async fn server_series(server: &Uri, query: &str, window: Window) -> Result<Option<Series>> {
    let mut series = Series::new();
    let mut found: Option<serde_json::Value> = None;
    for part in window.parts() {
        let text = get(server, &path(server, query, part)).await?;
        let Some((labels, values)) = one(&text, query).with_context(|| server.to_string())? else { continue };
        if let Some(before) = found.as_ref().filter(|before| **before != labels) {
            bail!("{query} gives several series, such as {before} and {labels}; narrow it to one");
        }
        found = Some(labels);
        series.extend(values);
    }
    Ok(found.map(|_| series))
}

fn path(server: &Uri, query: &str, part: Window) -> String {
    let prefix = server.path().trim_end_matches('/');
    let Window { begin, end, step } = part;
    format!("{prefix}/api/v1/query_range?query={}&start={begin}&end={end}&step={step}", encoded(query))
}

/// Percent-encoded as RFC 3986 has it.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[derive(Deserialize)]
struct Answer {
    error: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    kind: String,
    result: serde_json::Value,
}

#[derive(Deserialize)]
struct Stream {
    metric: serde_json::Value,
    values: Vec<(f64, String)>,
}

/// The only series of an answer; `None`: there is none.
fn one(text: &[u8], query: &str) -> Result<Option<(serde_json::Value, Series)>> {
    let answer: Answer = serde_json::from_slice(text).context("the answer is not Prometheus'")?;
    if let Some(error) = answer.error {
        bail!("{error}");
    }
    let data = answer.data.context("the answer has no data")?;
    ensure!(data.kind == "matrix", "{query} gives a {} and no series", data.kind);
    let mut streams: Vec<Stream> = serde_json::from_value(data.result).context("the answer is not Prometheus'")?;
    if let [one, other, ..] = streams.as_slice() {
        bail!("{query} gives {} series, such as {} and {}; narrow it to one", streams.len(), one.metric, other.metric);
    }
    Ok(streams.pop().map(|stream| {
        let values = stream.values.iter().filter_map(|(time, text)| Some((*time, text.parse::<f64>().ok()?)));
        (stream.metric, values.filter(|(_, value)| value.is_finite()).collect())
    }))
}

async fn get(server: &Uri, path: &str) -> Result<Bytes> {
    let at = http::Server::of(server).with_context(|| format!("{server} names no host"))?;
    let http::Answer { status, body } =
        http::ask(&at, path, None, Bounds { patience: PATIENCE, body: ANSWER_MAX }).await?;
    let body = body?;
    // A refused query comes with its reason in the same form.
    ensure!(status.is_success() || body.starts_with(b"{"), "{at} answers {status}");
    Ok(body)
}

/// The last value at or before `time` that is not too old.
fn latest(series: &[(f64, f64)], time: f64, tolerance: f64) -> Option<f64> {
    let index = series.partition_point(|(at, _)| *at <= time);
    let (at, value) = series.get(index.checked_sub(1)?)?;
    (time - at <= tolerance).then_some(*value)
}

/// Starts from falls of memory.
fn guessed(memory: &[(f64, f64)]) -> Vec<Option<f64>> {
    let mut start = memory.first().map_or(0.0, |(time, _)| *time);
    let mut before = f64::INFINITY;
    let starts = memory.iter().map(|&(time, bytes)| {
        if before.is_finite() && bytes < FALL * before {
            start = time;
        }
        before = bytes;
        Some(start)
    });
    starts.collect()
}

/// A number of bytes, with a binary or decimal unit.
fn bytes(text: &str) -> Option<f64> {
    let digits = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().trim_end_matches(['B', 'b']) {
        "" => 1.0,
        "K" | "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * factor).filter(|bytes| *bytes > 0.0)
}

/// See the module above.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    let Ok(Some((_, series))) = one(bytes, "up") else { return };
    assert_eq!(guessed(&series).len(), series.len(), "each has its start");
    latest(&series, 0.0, 1.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_range_is_asked_for_in_parts_that_meet() {
        let parts: Vec<_> =
            Window { begin: 0, end: 14 * 86_400, step: 60 }.parts().map(|part| (part.begin, part.end)).collect();
        assert_eq!(parts, [(0, 599_940), (600_000, 1_199_940), (1_200_000, 1_209_600)]);
    }

    #[test]
    fn answers_of_one_of_none_of_several_and_of_an_error() {
        let matrix =
            |result: &str| format!(r#"{{"status":"success","data":{{"resultType":"matrix","result":{result}}}}}"#);
        let one = |text: &str| one(text.as_bytes(), "q");
        let stream = r#"{"metric":{"a":"b"},"values":[[1,"5"],[61.5,"NaN"],[121,"7"]]}"#;
        let (_, series) = one(&matrix(&format!("[{stream}]"))).expect("right").expect("there");
        assert_eq!(series, [(1.0, 5.0), (121.0, 7.0)]);
        assert!(one(&matrix("[]")).expect("right").is_none());
        let several = one(&matrix(&format!("[{stream},{stream}]"))).expect_err("two").to_string();
        assert!(several.contains("2 series") && several.contains("narrow"), "{several}");
        let error = one(r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#).expect_err("refused");
        assert_eq!(error.to_string(), "parse error");
        assert!(one("<html>").is_err());
    }

    #[test]
    fn queries_are_encoded_and_a_prefix_is_kept() {
        let server: Uri = "http://h:1/prom/".parse().expect("a URL");
        let path = path(&server, "a{b=\"c\"}", Window { begin: 1, end: 2, step: 3 });
        assert_eq!(path, "/prom/api/v1/query_range?query=a%7Bb%3D%22c%22%7D&start=1&end=2&step=3");
    }

    #[test]
    fn starts_limits_and_sizes() {
        let starts = guessed(&[(0.0, 10.0), (60.0, 11.0), (120.0, 5.0), (180.0, 6.0)]);
        assert_eq!(starts, [Some(0.0), Some(0.0), Some(120.0), Some(120.0)]);
        assert_eq!(latest(&[(0.0, 1.0), (60.0, 2.0)], 59.0, 300.0), Some(1.0));
        assert_eq!(latest(&[(0.0, 1.0)], 301.0, 300.0), None);
        assert_eq!(latest(&[(5.0, 1.0)], 4.0, 300.0), None);
        assert_eq!(
            (bytes("1024"), bytes("512Mi"), bytes("2GiB")),
            (Some(1024.0), Some(536_870_912.0), Some(2_147_483_648.0))
        );
        assert_eq!((bytes("container_limit"), bytes("0"), bytes("5m")), (None, None, None));
    }
}
