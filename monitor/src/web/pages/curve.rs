//! Memory against time as inline SVG: a line, the limit as a dashed one. Both are told in words too. Pure.

use std::fmt::Write as _;

use maud::{Markup, html};

use crate::{
    figures::{bytes, span},
    incident::Sample,
};

/// Size of a curve in a table, and of a plot, in the units of its view box.
const SPARK: (f64, f64) = (120.0, 28.0);
const PLOT: (f64, f64) = (720.0, 200.0);
/// Points of a small curve: a page has two hundred of them.
const POINTS: usize = 18;

/// A small curve for a table.
pub(super) fn spark(samples: &[Sample], limit: Option<u64>) -> Markup {
    draw(samples, limit, SPARK, "spark", POINTS)
}

/// A curve for a page of its own.
pub(super) fn plot(samples: &[Sample], limit: Option<u64>) -> Markup {
    draw(samples, limit, PLOT, "plot", usize::MAX)
}

fn draw(
    samples: &[Sample],
    limit: Option<u64>,
    (width, height): (f64, f64),
    class: &str,
    most_points: usize,
) -> Markup {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return html! { "not measured yet" };
    };
    let most = samples.iter().map(|sample| sample.bytes).max().unwrap_or(0);
    let top = most.max(limit.unwrap_or(0)).max(1) as f64 * 1.05;
    let time = |sample: &Sample| sample.at.duration_since(first.at).as_secs_f64();
    let whole = time(last).max(1e-3);
    let level = |bytes: u64| height * (1.0 - bytes as f64 / top);
    let mut points = String::with_capacity(samples.len() * 12);
    // Counted from the end: the last one is what matters most.
    let step = samples.len().div_ceil(most_points);
    for sample in samples.iter().rev().step_by(step).rev() {
        let across = (time(sample) / whole).clamp(0.0, 1.0) * width;
        // Writing to a string does not fail.
        write!(points, "{across:.0},{:.1} ", level(sample.bytes)).ok();
    }
    let limit_text = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("limit {}", bytes(limit)));
    let title = format!(
        "Memory from {} to {} in {}, at most {}; {limit_text}",
        bytes(first.bytes),
        bytes(last.bytes),
        span((time(last).max(0.0) * 1e3) as u64),
        bytes(most)
    );
    html! {
        svg class=(class) role="img" viewBox=(format!("0 0 {width} {height}")) preserveAspectRatio="none" {
            title { (title) }
            @if let Some(limit) = limit {
                line class="limit" x1="0" x2=(width) y1=(format!("{:.1}", level(limit))) y2=(format!("{:.1}", level(limit))) {}
            }
            polyline points=(points.trim_end()) {}
        }
    }
}
