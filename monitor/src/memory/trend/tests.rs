use proptest::prelude::*;

use super::*;
use crate::memory::{
    Words,
    forecast::{Level, Verdict},
};

const DAY: f64 = 86_400.0;
/// A moment like any other, Unix seconds.
const EPOCH: f64 = 1.7e9;

fn sample(time: f64, start: f64, bytes: f64) -> Sample {
    Sample { time, start, bytes, limit: Some(1e9), cpu: None, pressure: None, build: None }
}

/// Noise that is the same each time.
fn noise(minute: u32) -> f64 {
    f64::from(minute * 7919 % 101) * 1e4
}

/// Minutes of a service that is restarted every `every` days; `bytes` of uptime and time, both in days.
fn minutes(days: f64, every: f64, bytes: impl Fn(f64, f64) -> f64) -> impl Iterator<Item = Sample> {
    (0..(days * 1440.0) as u32).map(move |minute| {
        let time = f64::from(minute) / 1440.0;
        let start = (time / every).floor() * every;
        sample(EPOCH + time * DAY, EPOCH + start * DAY, bytes(time - start, time) + noise(minute))
    })
}

fn judged(samples: impl Iterator<Item = Sample>) -> Trend {
    let mut trend = Trend::new(Pace::default());
    samples.for_each(|sample| {
        trend.observe(&sample);
    });
    trend
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
    assert!(json.len() <= 6144, "{}", json.len());
    let kept: Trend = serde_json::from_str(&json).expect("it is read");
    assert!(kept.size() <= 2048, "{}", kept.size());
}

#[test]
fn a_leak_that_daily_restarts_hide_is_found_and_dated() {
    let forecast = judged(minutes(7.0, 1.0, |uptime, _| 2e8 + uptime * 1e8)).forecast();
    assert_eq!(forecast.verdict, Verdict::MaskedLeak, "{forecast:?}");
    assert_eq!(forecast.level, Some(Level::Warn));
    let growth = forecast.growth_bytes_per_hour.expect("known") * 24.0;
    assert!((growth / 1e8 - 1.0).abs() < 0.05, "{growth}");
    let end = forecast.uptime_at_oom_seconds.expect("known") / DAY;
    assert!((7.0..9.0).contains(&end), "{end}");
    assert!(forecast.severity.expect("known") > 6.0);
    assert!(
        Words(&forecast).to_string().contains("only restarts keep it alive: it is restarted within "),
        "{}",
        Words(&forecast)
    );
}

#[test]
fn the_same_leak_left_alone_is_a_leak_and_then_a_page() {
    let leak = |uptime: f64, _| 2e8 + uptime * 1e8;
    let forecast = judged(minutes(3.0, 1e6, leak)).forecast();
    assert_eq!((forecast.verdict, forecast.level), (Verdict::Leak, Some(Level::Warn)), "{forecast:?}");
    let forecast = judged(minutes(7.9, 1e6, leak)).forecast();
    assert_eq!(forecast.level, Some(Level::Page), "{forecast:?}");
    assert!(forecast.time_to_oom_seconds.expect("known") < 4.0 * 3600.0);
}

#[test]
fn what_fills_up_is_no_leak() {
    let warm_up = |uptime: f64, _| 2e8 + 3e8 * (1.0 - (-uptime * 24.0 / 3.0).exp());
    let cache = |uptime: f64, _| 2e8 + 6e7 * (uptime * 24.0).ln_1p();
    for every in [1.0, 1e6] {
        for forecast in [judged(minutes(9.0, every, warm_up)).forecast(), judged(minutes(9.0, every, cache)).forecast()]
        {
            assert_eq!((forecast.verdict, forecast.level), (Verdict::Steady, None), "{every} {forecast:?}");
        }
    }
}

#[test]
fn a_step_and_a_day_of_load_are_no_leak() {
    let step = judged(minutes(6.0, 1e6, |_, time| if time > 3.3 { 5e8 } else { 3e8 })).forecast();
    assert_eq!(step.verdict, Verdict::Steady, "{step:?}");
    let load = |time: f64| 1.0 + 0.7 * (time * std::f64::consts::TAU).sin();
    let loaded = minutes(9.0, 1.0, |_, time| 3e8 + 2e8 * load(time))
        .map(|sample| Sample { cpu: Some(load((sample.time - EPOCH) / DAY)), ..sample });
    let forecast = judged(loaded).forecast();
    assert_eq!((forecast.verdict, forecast.advisory), (Verdict::Steady, false), "{forecast:?}");
}

#[test]
fn a_leak_that_sets_in_late_is_found() {
    let late = |_, time: f64| 3e8 + (time - 9.0).max(0.0) * 1e8;
    let forecast = judged(minutes(12.5, 1e6, late)).forecast();
    assert_eq!(forecast.verdict, Verdict::Leak, "{forecast:?}");
}

#[test]
fn a_service_that_never_lives_long_is_insufficient() {
    let forecast = judged(minutes(5.0, 1.0 / 24.0, |uptime, _| 2e8 + uptime * 9e9)).forecast();
    assert_eq!((forecast.verdict, forecast.level), (Verdict::Insufficient, None), "{forecast:?}");
    assert_eq!(Trend::new(Pace::default()).forecast().verdict, Verdict::Insufficient);
}

#[test]
fn no_limit_is_growth_without_a_time() {
    let unlimited = minutes(7.0, 1.0, |uptime, _| 2e8 + uptime * 1e8).map(|sample| Sample { limit: None, ..sample });
    let forecast = judged(unlimited).forecast();
    assert_eq!(forecast.verdict, Verdict::MaskedLeak, "{forecast:?}");
    assert_eq!((forecast.time_to_oom_seconds, forecast.level), (None, Some(Level::Notice)));
}

#[test]
fn a_limit_that_is_raised_gives_more_time() {
    let mut trend = judged(minutes(3.0, 1e6, |uptime, _| 2e8 + uptime * 1e8));
    let before = trend.forecast().time_to_oom_seconds.expect("known");
    for sample in minutes(3.2, 1e6, |uptime, _| 2e8 + uptime * 1e8).skip(3 * 1440) {
        trend.observe(&Sample { limit: Some(2e9), ..sample });
    }
    assert!(trend.forecast().time_to_oom_seconds.expect("known") > 2.0 * before);
}

#[test]
fn a_new_build_is_compared_with_the_last() {
    let leak = |uptime: f64, time: f64| 2e8 + if time >= 5.0 { uptime * 1e8 } else { 0.0 };
    let built = minutes(10.0, 1.0, leak)
        .map(|sample| Sample { build: Some(if sample.time < EPOCH + 5.0 * DAY { 1 } else { 2 }), ..sample });
    let forecast = judged(built).forecast();
    let builds = forecast.builds.expect("both are known");
    assert!((builds.now * 24.0 / 1e8 - 1.0).abs() < 0.1 && builds.before.abs() * 24.0 < 5e6, "{builds:?}");
    assert_eq!(forecast.verdict, Verdict::MaskedLeak, "{forecast:?}");
}

#[test]
fn exhaustion_within_minutes_pages_and_a_step_does_not() {
    let mut trend = judged(minutes(0.5, 1e6, |_, _| 4e8));
    let start = EPOCH;
    for minute in 0..14 {
        let time = EPOCH + 0.5 * DAY + f64::from(minute) * 60.0;
        trend.observe(&sample(time, start, 4e8 + f64::from(minute) * 4e7));
    }
    let forecast = trend.forecast();
    assert_eq!(forecast.level, Some(Level::Page), "{forecast:?}");
    assert!((60.0..240.0).contains(&forecast.exhausted_in_seconds.expect("known")));

    let mut trend = judged(minutes(0.5, 1e6, |_, _| 4e8));
    for minute in 0..14 {
        let time = EPOCH + 0.5 * DAY + f64::from(minute) * 60.0;
        trend.observe(&sample(time, start, if minute < 5 { 4e8 } else { 9e8 } + noise(minute)));
        assert_eq!(trend.forecast().level, None);
    }
}

#[test]
fn pressure_lets_the_fast_lane_speak_earlier() {
    let rise = |pressure| {
        let mut trend = judged(minutes(0.5, 1e6, |_, _| 3e8));
        for minute in 0..10 {
            let time = EPOCH + 0.5 * DAY + f64::from(minute) * 60.0;
            let rising = sample(time, EPOCH, 3.5e8 + f64::from(minute) * 4.5e7);
            trend.observe(&Sample { pressure, ..rising });
        }
        trend.forecast().exhausted_in_seconds
    };
    assert_eq!(rise(None), None);
    assert!(rise(Some(0.5)).is_some());
}

#[test]
fn senseless_and_old_samples_are_refused() {
    let mut trend = Trend::new(Pace::default());
    assert_eq!(trend.observe(&sample(EPOCH, EPOCH, 1e8)), Seen::Taken);
    for wrong in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
        assert_eq!(trend.observe(&sample(EPOCH + 60.0, EPOCH, wrong)), Seen::Refused);
    }
    assert_eq!(trend.observe(&sample(f64::NAN, EPOCH, 1e8)), Seen::Refused);
    assert_eq!(trend.observe(&sample(EPOCH, EPOCH, 1e8)), Seen::Refused, "twice");
    let odd = Sample { limit: Some(f64::NAN), cpu: Some(-1.0), ..sample(EPOCH + 60.0, EPOCH, 1e8) };
    assert_eq!(trend.observe(&odd), Seen::Taken);
    assert_eq!(trend.limit, None);
}

#[test]
fn a_clock_that_is_put_back_is_followed_after_a_few_samples() {
    let mut trend = judged(minutes(1.0, 1e6, |_, _| 3e8));
    let uptime = trend.forecast().uptime_seconds;
    let back = EPOCH + DAY - 7200.0;
    let seen: Vec<Seen> =
        (0..4).map(|minute| trend.observe(&sample(back + f64::from(minute) * 60.0, EPOCH, 3e8))).collect();
    assert_eq!(seen[..2], [Seen::Refused; 2]);
    assert!(seen[2..].iter().all(|seen| *seen != Seen::Refused));
    let later = trend.forecast().uptime_seconds;
    assert!((60.0..=180.0).contains(&(later - uptime)), "{uptime} {later}");
}

#[test]
fn a_clock_that_leaps_ahead_or_a_long_hole_does_not_end_the_leak() {
    let leak = |uptime: f64, _| 2e8 + uptime * 5e7;
    let mut trend = judged(minutes(3.0, 1e6, leak));
    trend.observe(&sample(EPOCH + 4000.0 * DAY, EPOCH, 3.5e8));
    assert!(trend.size() <= 2048);
    let hole = minutes(7.0, 1e6, leak).filter(|sample| !(2.0..4.5).contains(&((sample.time - EPOCH) / DAY)));
    assert_eq!(judged(hole).forecast().verdict, Verdict::Leak);
}

#[test]
fn another_pace_gives_the_same_verdict_in_its_own_time() {
    let scale = 0.1 / 60.0;
    let mut quick = Trend::new(Pace { sample_seconds: 0.1 });
    let mut slow = Trend::new(Pace::default());
    for sample in minutes(7.0, 1.0, |uptime, _| 2e8 + uptime * 1e8) {
        slow.observe(&sample);
        let (time, start) = ((sample.time - EPOCH) * scale + EPOCH, (sample.start - EPOCH) * scale + EPOCH);
        quick.observe(&Sample { time, start, ..sample });
    }
    let (quick, slow) = (quick.forecast(), slow.forecast());
    assert_eq!((quick.verdict, quick.level), (slow.verdict, slow.level), "{quick:?}");
    let times = quick.time_to_oom_seconds.zip(slow.time_to_oom_seconds).expect("known");
    assert!((times.0 / (times.1 * scale) - 1.0).abs() < 0.05, "{times:?}");
}

#[test]
fn what_is_kept_goes_on_where_it_was() {
    let all: Vec<Sample> = minutes(6.0, 1.0, |uptime, _| 2e8 + uptime * 1e8).collect();
    let (first, rest) = all.split_at(all.len() / 2 + 77);
    let whole = judged(all.iter().copied());
    let json = serde_json::to_string(&judged(first.iter().copied())).expect("it serialises");
    let mut kept: Trend = serde_json::from_str(&json).expect("it is read");
    rest.iter().for_each(|sample| {
        kept.observe(sample);
    });
    assert_eq!(kept.forecast(), whole.forecast());
}

fn any_sample() -> impl Strategy<Value = Sample> {
    let number = prop_oneof![
        4 => 0.0..1e10,
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => any::<f64>(),
    ];
    let time = prop_oneof![6 => 1.7e9..1.71e9, 1 => any::<f64>()];
    let maybe = proptest::option::of(number.clone());
    (time.clone(), time, number, maybe.clone(), maybe.clone(), maybe, any::<Option<u64>>()).prop_map(
        |(time, start, bytes, limit, cpu, pressure, build)| Sample { time, start, bytes, limit, cpu, pressure, build },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_makes_it_panic_or_grow(samples in proptest::collection::vec(any_sample(), 0..300)) {
        let mut trend = Trend::new(Pace::default());
        for sample in &samples {
            trend.observe(sample);
            let forecast = trend.forecast();
            prop_assert!(trend.size() <= 2048);
            prop_assert!(forecast.time_to_oom_seconds.is_none_or(|eta| eta >= 0.0));
        }
    }

    #[test]
    fn whatever_was_kept_is_read_again(samples in proptest::collection::vec(any_sample(), 0..200)) {
        let trend = judged(samples.into_iter());
        let json = serde_json::to_string(&trend).expect("it serialises");
        let kept: Trend = serde_json::from_str(&json).expect("it is read");
        prop_assert_eq!((kept.past.len(), kept.hold), (trend.past.len(), trend.hold));
        prop_assert!(kept.size() <= 2048);
    }

    #[test]
    fn doubles_change_nothing(every in 0.2_f64..3.0, twice in proptest::collection::vec(0_usize..4000, 0..50)) {
        let once: Vec<Sample> = minutes(3.0, every, |uptime, _| 2e8 + uptime * 7e7).collect();
        let mut doubled = once.clone();
        let mut twice = twice;
        twice.sort_unstable();
        for &index in twice.iter().rev() {
            doubled.insert(index + 1, once[index]);
        }
        prop_assert_eq!(judged(doubled.into_iter()).forecast(), judged(once.into_iter()).forecast());
    }
}
