//! For people: what was found, and memory by uptime as a small plot.

use anyhow::Result;
use jiff::Timestamp;

use super::{super::output, replay::Replay};
use crate::memory::{Words, trend::Sample};

/// Characters.
const WIDTH: usize = 64;
const HEIGHT: usize = 12;

pub(super) fn print(samples: &[Sample], replay: &Replay) -> Result<()> {
    let forecast = &replay.forecast;
    output::line(Words(forecast))?;
    output::line("")?;
    let row = |name: &str, value: String| output::line(format_args!("{name:<22}{value}"));
    row("verdict", forecast.verdict.as_str().to_owned())?;
    row("first alert", moment(replay.first_alert))?;
    row("first advisory", moment(replay.first_advisory))?;
    let growth =
        forecast.growth_bytes_per_hour.map_or_else(|| "-".to_owned(), |growth| format!("{}/h", signed(growth)));
    row("growth with uptime", growth)?;
    let (low, high) = (forecast.time_to_oom_seconds_low, forecast.time_to_oom_seconds_high);
    let eta = forecast.time_to_oom_seconds.map_or_else(
        || "-".to_owned(),
        |eta| format!("{} ({} to {})", span(eta), low.map_or("?".into(), span), high.map_or("never".into(), span)),
    );
    row("time to out of memory", eta)?;
    row("longest uptime", span(forecast.longest_uptime_seconds))?;
    row("usual uptime", forecast.usual_uptime_seconds.map_or_else(|| "-".to_owned(), span))?;
    if replay.refused > 0 {
        row("samples left out", format!("{} no newer than the one before", replay.refused))?;
    }
    output::line("")?;
    plot(samples).iter().try_for_each(output::line)
}

fn moment(time: Option<f64>) -> String {
    let timestamp = time.and_then(|time| Timestamp::from_second(time as i64).ok());
    timestamp.map_or_else(|| "-".to_owned(), |timestamp| timestamp.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

fn span(seconds: f64) -> String {
    output::span((seconds * 1000.0) as u64)
}

fn signed(bytes: f64) -> String {
    format!("{}{}", if bytes < 0.0 { "-" } else { "+" }, output::bytes(bytes.abs() as u64))
}

/// Memory by uptime: `.` where any incarnation was, `#` the lowest of it.
fn plot(samples: &[Sample]) -> Vec<String> {
    let longest = samples.iter().map(|sample| sample.time - sample.start).fold(1.0, f64::max);
    let limit = samples.iter().rev().find_map(|sample| sample.limit);
    let most = samples.iter().map(|sample| sample.bytes).fold(limit.unwrap_or(1.0), f64::max);
    let mut cells = [[' '; WIDTH]; HEIGHT];
    let mut floors = [usize::MAX; WIDTH];
    let height = |bytes: f64| ((bytes / most * HEIGHT as f64) as usize).min(HEIGHT - 1);
    for sample in samples {
        let column = ((sample.time - sample.start).max(0.0) / longest * WIDTH as f64) as usize;
        let column = column.min(WIDTH - 1);
        cells[height(sample.bytes)][column] = '.';
        floors[column] = floors[column].min(height(sample.bytes));
    }
    for (column, floor) in floors.into_iter().enumerate().filter(|(_, floor)| *floor < HEIGHT) {
        cells[floor][column] = '#';
    }
    let mut lines = vec!["memory by uptime, all incarnations (# lowest)".to_owned()];
    let limit_row = limit.map(height);
    for (index, row) in cells.iter().enumerate().rev() {
        let label = match index {
            _ if limit_row == Some(index) => format!("{} limit", output::bytes(limit.unwrap_or(0.0) as u64)),
            0 => "0 B".to_owned(),
            _ => output::bytes((most / HEIGHT as f64 * index as f64) as u64),
        };
        lines.push(format!("{label:>17} |{}", row.iter().collect::<String>().trim_end()));
    }
    lines.push(format!("{:>17} +{}", "", "-".repeat(WIDTH)));
    lines.push(format!("{:>17}  0{:>width$}", "", span(longest), width = WIDTH - 1));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plot_has_its_size_whatever_comes() {
        let sample =
            |time, bytes, limit| Sample { time, start: 0.0, bytes, limit, cpu: None, pressure: None, build: None };
        for samples in [vec![sample(0.0, 0.0, None)], vec![sample(0.0, 5.0, Some(1.0)), sample(9e9, 1e12, Some(1e9))]] {
            let lines = plot(&samples);
            assert_eq!(lines.len(), HEIGHT + 3);
            assert!(lines.iter().all(|line| line.chars().count() <= WIDTH + 20));
        }
    }
}
