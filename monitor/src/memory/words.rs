//! A forecast in words.

use std::{fmt, time::Duration};

use jiff::Timestamp;

use super::forecast::{Forecast, Verdict};

/// Shows a forecast to people.
pub(crate) struct Words<'a>(pub(crate) &'a Forecast);

/// To two units: `9days 4h`.
fn span(seconds: f64) -> String {
    let seconds = seconds.clamp(0.0, 1e9) as u64;
    let unit = match seconds {
        0..3600 => 1,
        3600..86_400 => 60,
        _ => 3600,
    };
    humantime::format_duration(Duration::from_secs(seconds / unit * unit)).to_string()
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

impl fmt::Display for Words<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forecast = self.0;
        if let Some(seconds) = forecast.exhausted_in_seconds {
            return write!(out, "its memory runs out in {} if it goes on like in the last minutes", span(seconds));
        }
        match (forecast.verdict, forecast.growth_bytes_per_hour) {
            (Verdict::Insufficient, _) => {
                return out.write_str("too little was seen of its memory to say: it takes half a day");
            }
            (Verdict::Steady, Some(growth)) if forecast.advisory => {
                let growth = mib(growth);
                return write!(
                    out,
                    "its memory grows by {growth:.1} MiB an hour of uptime; whether that levels off cannot be told yet"
                );
            }
            (Verdict::Steady, _) => return out.write_str("its memory does not grow with uptime, or levels off"),
            (_, None) => out.write_str("its memory grows with uptime")?,
            (_, Some(growth)) => write!(out, "its memory grows by {:.1} MiB an hour of uptime", mib(growth))?,
        }
        if let Some(seconds) = forecast.time_to_oom_seconds {
            write!(out, "; it runs out in {}", span(seconds))?;
            match (forecast.time_to_oom_seconds_low, forecast.time_to_oom_seconds_high) {
                (Some(low), Some(high)) => write!(out, " (between {} and {})", span(low), span(high))?,
                (Some(low), None) => write!(out, " (not before {})", span(low))?,
                _ => {}
            }
        }
        if let (Verdict::MaskedLeak, Some(usual), Some(at_oom)) =
            (forecast.verdict, forecast.usual_uptime_seconds, forecast.uptime_at_oom_seconds)
        {
            let (usual, at_oom) = (span(usual), span(at_oom));
            write!(out, "; only restarts keep it alive: it is restarted within {usual} and would die after {at_oom}")?;
        }
        if let Some(builds) = forecast.builds {
            let since = builds.since.and_then(|since| Timestamp::from_second(since as i64).ok());
            match since {
                Some(since) => write!(out, "; since the build of {since}: {:+.1} MiB/h", mib(builds.now))?,
                None => write!(out, "; this build: {:+.1} MiB/h", mib(builds.now))?,
            }
            write!(out, ", the one before: {:+.1}", mib(builds.before))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::forecast::Builds;

    const DAY: f64 = 86_400.0;

    fn forecast() -> Forecast {
        Forecast {
            verdict: Verdict::MaskedLeak,
            advisory: true,
            level: None,
            growth_bytes_per_hour: Some(2.1 * 1_048_576.0),
            time_to_oom_seconds: Some(9.0 * DAY + 4.0 * 3600.0 + 59.0),
            time_to_oom_seconds_low: Some(7.0 * DAY),
            time_to_oom_seconds_high: Some(12.0 * DAY),
            uptime_seconds: 3600.0,
            longest_uptime_seconds: DAY,
            usual_uptime_seconds: Some(14.0 * 3600.0),
            uptime_at_oom_seconds: Some(9.0 * DAY),
            severity: Some(15.0),
            builds: Some(Builds { now: 2.1 * 1_048_576.0, before: 0.0, since: None }),
            exhausted_in_seconds: None,
        }
    }

    #[test]
    fn a_hidden_leak_says_what_keeps_it_alive() {
        assert_eq!(
            Words(&forecast()).to_string(),
            "its memory grows by 2.1 MiB an hour of uptime; it runs out in 9days 4h (between 7days and 12days); only \
             restarts keep it alive: it is restarted within 14h and would die after 9days; this build: +2.1 MiB/h, the \
             one before: +0.0"
        );
        let builds = forecast().builds.map(|builds| Builds { since: Some(1_700_000_000.5), ..builds });
        let named = Words(&Forecast { builds, ..forecast() }).to_string();
        assert!(
            named.ends_with("; since the build of 2023-11-14T22:13:20Z: +2.1 MiB/h, the one before: +0.0"),
            "{named}"
        );
        let fast = Forecast { exhausted_in_seconds: Some(754.0), ..forecast() };
        assert!(Words(&fast).to_string().contains("runs out in 12m 34s"));
        let hint = Forecast { verdict: Verdict::Steady, ..forecast() };
        assert!(Words(&hint).to_string().contains("cannot be told yet"));
        let steady = Forecast { advisory: false, ..hint };
        assert_eq!(Words(&steady).to_string(), "its memory does not grow with uptime, or levels off");
    }
}
