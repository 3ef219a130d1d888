//! The picture: memory by the clock, where a leak under restarts is a sawtooth, and by uptime, where it is a line.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::replay::Replay;
use crate::memory::trend::Sample;

const SIZE: (u32, u32) = (1100, 760);
/// Points drawn of a series at most: what lies between two of them is shown by its least and its most.
const POINTS: usize = 1500;
const MIB: f64 = 1_048_576.0;
const HOUR: f64 = 3600.0;

const MEMORY: RGBColor = RGBColor(31, 119, 180);
const LIMIT: RGBColor = RGBColor(200, 30, 30);
const FORECAST: RGBColor = RGBColor(240, 130, 20);
const ALERT: RGBColor = RGBColor(120, 60, 160);

/// Writes it to `path`.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn draw(path: &Path, samples: &[Sample], replay: &Replay) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("cannot write {}: {error}", path.display());
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let (clock, uptime) = area.split_vertically(SIZE.1 / 2);
    by_clock(&clock, samples, replay).map_err(|error| failed(&error))?;
    by_uptime(&uptime, samples, replay).map_err(|error| failed(&error))?;
    area.present().map_err(|error| failed(&error))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn by_clock(area: &Area<'_>, samples: &[Sample], replay: &Replay) -> Drawn {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Ok(()) };
    let days = |time: f64| (time - first.time) / 86_400.0;
    let line = forecast(last, replay);
    let end = line.map_or(last.time, |(end, _)| end.min(last.time + (last.time - first.time) / 2.0));
    let mut chart = chart(area, "by the clock, days", days(end).max(1e-3), most(samples))?;
    let points: Vec<_> = samples.iter().map(|sample| (days(sample.time), sample.bytes / MIB)).collect();
    chart.draw_series(LineSeries::new(thinned(&points), &MEMORY))?;
    limit(&mut chart, samples, days(end))?;
    if let Some((end, bytes)) = line {
        let ends = [(days(last.time), last.bytes / MIB), (days(end), bytes / MIB)];
        chart.draw_series(DashedLineSeries::new(ends, 6, 4, FORECAST.stroke_width(2)))?;
    }
    if let Some(alert) = replay.first_alert {
        let ends = [(days(alert), 0.0), (days(alert), most(samples))];
        chart.draw_series(DashedLineSeries::new(ends, 3, 3, ALERT.stroke_width(1)))?;
        let label =
            Text::new("first alert", (days(alert), most(samples) * 0.97), ("sans-serif", 13).into_font().color(&ALERT));
        chart.draw_series([label])?;
    }
    Ok(())
}

fn by_uptime(area: &Area<'_>, samples: &[Sample], replay: &Replay) -> Drawn {
    let Some(last) = samples.last() else { return Ok(()) };
    let line = forecast(last, replay);
    let longest = samples.iter().map(|sample| sample.time - sample.start).fold(HOUR, f64::max);
    let end = line.map_or(longest, |(end, _)| (end - last.start).clamp(longest, 3.0 * longest)) / HOUR;
    let mut chart = chart(area, "by uptime, hours", end, most(samples))?;
    for run in samples.chunk_by(|a, b| a.start == b.start) {
        let points: Vec<_> =
            run.iter().map(|sample| ((sample.time - sample.start) / HOUR, sample.bytes / MIB)).collect();
        chart.draw_series(LineSeries::new(thinned(&points), MEMORY.mix(0.5)))?;
    }
    limit(&mut chart, samples, end)?;
    if let Some((end, bytes)) = line {
        let ends = [((last.time - last.start) / HOUR, last.bytes / MIB), ((end - last.start) / HOUR, bytes / MIB)];
        chart.draw_series(DashedLineSeries::new(ends, 6, 4, FORECAST.stroke_width(2)))?;
    }
    Ok(())
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn chart<'a, 'b>(
    area: &'a Area<'b>,
    name: &str,
    right: f64,
    top: f64,
) -> Result<Chart<'a, 'b>, Box<dyn std::error::Error>> {
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(38)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().x_desc(name).y_desc("MiB").light_line_style(TRANSPARENT).draw()?;
    Ok(chart)
}

fn limit(chart: &mut Chart<'_, '_>, samples: &[Sample], right: f64) -> Drawn {
    if let Some(limit) = samples.iter().rev().find_map(|sample| sample.limit) {
        chart.draw_series(LineSeries::new([(0.0, limit / MIB), (right, limit / MIB)], LIMIT.stroke_width(2)))?;
    }
    Ok(())
}

/// When and at how many bytes the present growth ends: at the limit.
fn forecast(last: &Sample, replay: &Replay) -> Option<(f64, f64)> {
    Some((last.time + replay.forecast.time_to_oom_seconds?, last.limit?))
}

/// The top of the plots, MiB.
fn most(samples: &[Sample]) -> f64 {
    samples.iter().map(|sample| sample.bytes.max(sample.limit.unwrap_or(0.0))).fold(1.0, f64::max) / MIB * 1.05
}

/// The least and the most of each stretch.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(POINTS / 2).max(1);
    let ends = points.chunks(stretch).flat_map(|chunk| {
        let least = chunk.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
        let most = chunk.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
        let (Some(least), Some(most)) = (least, most) else { return [(0.0, 0.0); 2] };
        if least.0 <= most.0 { [least, most] } else { [most, least] }
    });
    if stretch == 1 { points.to_vec() } else { ends.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_drawn_of_much_and_of_little() {
        let directory = tempfile::tempdir().expect("a directory");
        for minutes in [1, 60 * 24 * 7] {
            let samples: Vec<Sample> = (0..minutes)
                .map(|minute| {
                    let time = 1.7e9 + f64::from(minute) * 60.0;
                    let start = time - f64::from(minute % 1440) * 60.0;
                    let bytes = 2e8 + (time - start) * 1100.0;
                    Sample { time, start, bytes, limit: Some(1e9), cpu: None, pressure: None, build: None }
                })
                .collect();
            let path = directory.path().join("plot.svg");
            draw(&path, &samples, &Replay::of(&samples)).expect("it is drawn");
            let text = std::fs::read_to_string(&path).expect("it is there");
            assert!(text.starts_with("<svg") && text.contains("by uptime") && text.len() < 2_000_000, "{}", text.len());
        }
        assert!(draw(&directory.path().join("none/plot.svg"), &[], &Replay::of(&[])).is_err());
    }

    #[test]
    fn thinning_keeps_the_extremes() {
        let points: Vec<(f64, f64)> = (0..100_000).map(|x| (f64::from(x), if x == 777 { 9.0 } else { 1.0 })).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS + 2 && thin.iter().any(|point| point.1 == 9.0));
    }
}
