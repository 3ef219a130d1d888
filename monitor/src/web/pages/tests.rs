use super::*;
use crate::{control::Status, incident::Sample};

const HOSTILE: &str = "<script>alert(1)</script>\"'&\u{1b}[2J\u{202e}";

fn status(service: &str, down: bool, left: Option<f64>) -> Status {
    let json = serde_json::json!({
        "service": service, "state": if down { "grace" } else { "running" }, "pid": 7,
        "started": "2026-01-01T00:00:00Z", "down_since": down.then_some("2026-01-01T00:00:01Z"), "incident": null,
        "paused_until": null, "memory_bytes": 50 << 20, "memory_limit_bytes": 100 << 20, "pool": "in",
        "forecast": {
            "verdict": "leak", "advisory": true, "level": null, "growth_bytes_per_hour": 1048576.0,
            "time_to_oom_seconds": left, "time_to_oom_seconds_low": null, "time_to_oom_seconds_high": null,
            "uptime_seconds": 1.0, "longest_uptime_seconds": 1.0, "usual_uptime_seconds": null,
            "uptime_at_oom_seconds": null, "severity": null, "builds": null, "exhausted_in_seconds": null
        },
        "forecast_text": "it grows"
    });
    serde_json::from_value(json).expect("a status")
}

fn samples() -> Vec<Sample> {
    let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).expect("a time");
    (0..36_i64).map(|number| Sample { at: at(number * 5), bytes: (number as u64 + 1) << 20 }).collect()
}

fn page(all: &[Status]) -> String {
    let counts = services::Counts { all: all.len(), down: 0, page: 1, pages: 1 };
    let curves = vec![samples(); all.len()];
    services::body(&counts, all, &curves, Some(&[]), Timestamp::now()).into_string()
}

#[test]
fn a_hostile_name_stays_text_and_is_bounded() {
    let long = format!("{HOSTILE}{}", "x".repeat(10_000));
    let text = page(&[status(&long, true, None)]);
    assert!(!text.contains("<script") && text.contains("&lt;script&gt;"), "{text}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
    assert!(text.len() < 6000, "{}", text.len());
}

#[test]
fn those_that_are_down_come_first_then_those_with_the_least_time_left() {
    let mut all = vec![
        status("calm", false, None),
        status("later", false, Some(9e5)),
        status("soon", false, Some(60.0)),
        status("down", true, None),
    ];
    overview::sort(&mut all);
    let order: Vec<_> = all.iter().map(|status| status.service.as_str()).collect();
    assert_eq!(order, ["down", "soon", "later", "calm"]);
}

#[test]
fn a_full_page_fits_into_200_kilobytes() {
    let all: Vec<_> =
        (0..SERVICES).map(|number| status(&format!("app-{number}.service"), number % 3 == 0, Some(1e5))).collect();
    let text = page(&all);
    assert!(text.len() <= 200_000, "{}", text.len());
}

#[test]
fn the_curve_says_in_words_what_it_shows_and_nothing_breaks_it() {
    let text = curve::spark(&samples(), Some(100 << 20)).into_string();
    assert!(
        text.contains("<title>Memory from 1.0 MiB to 36.0 MiB in 175s, at most 36.0 MiB; limit 100.0 MiB</title>"),
        "{text}"
    );
    assert_eq!(curve::spark(&[], None).into_string(), "not measured yet");
    let at = Timestamp::UNIX_EPOCH;
    for bytes in [0, u64::MAX] {
        let text = curve::plot(&[Sample { at, bytes }, Sample { at, bytes }], Some(0)).into_string();
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
