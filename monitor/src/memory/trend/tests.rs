use super::*;
use crate::memory::forecast::Verdict;

fn sample(time: f64, start: f64, bytes: f64) -> Sample {
    Sample { time, start, bytes, limit: Some(1e9), cpu: None, pressure: None, build: None }
}

#[test]
fn state_stays_below_two_kibibytes() {
    let mut trend = Trend::new(Pace::default());
    for minute in 0..60 * 24 * 40 {
        let time = f64::from(minute) * 60.0;
        let start = (time / 30_000.0).floor() * 30_000.0;
        trend.observe(&Sample { cpu: Some(1.5), build: Some(u64::MAX), ..sample(time, start, 3.3e8 + time % 977.0) });
        assert!(trend.size() <= 2048, "{}", trend.size());
    }
    let json = serde_json::to_string(&trend).expect("it serialises");
    assert!(json.len() < 8192, "{}", json.len());
}

#[test]
fn a_leak_that_daily_restarts_hide() {
    let mut trend = Trend::new(Pace::default());
    for minute in 0..60 * 24 * 7 {
        let time = f64::from(minute) * 60.0;
        let start = (time / 86_400.0).floor() * 86_400.0;
        trend.observe(&sample(time, start, 2e8 + (time - start) * 1157.0 + f64::from(minute * 7919 % 101) * 1e4));
    }
    let forecast = trend.forecast();
    assert_eq!(forecast.verdict, Verdict::MaskedLeak, "{forecast:?}");
}
