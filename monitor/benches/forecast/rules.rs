//! The rules that people write today, on the same minutes: each says when it would first have alerted, in days.

use crate::service::Minute;

/// Looks are five minutes apart.
const EVERY: usize = 5;

/// `predict_linear(memory[window], ahead) >= limit`, by the clock; minutes.
pub(crate) fn predict_linear(minutes: &[Minute], window: usize, ahead: f64) -> Option<f64> {
    (window..minutes.len()).step_by(EVERY).find_map(|end| {
        let seen = &minutes[end - window..=end];
        let n = seen.len() as f64;
        // Minutes before now; the mean of 0 to n-1 is the middle, and their squares about it have a closed form.
        let middle = (n - 1.0) / 2.0;
        let mean = seen.iter().map(|minute| minute.memory).sum::<f64>() / n;
        let covariance: f64 =
            seen.iter().enumerate().map(|(index, minute)| (index as f64 - middle) * (minute.memory - mean)).sum();
        let slope = covariance / (n * (n * n - 1.0) / 12.0);
        (mean + slope * (middle + ahead) >= 1.0).then(|| minutes[end].time)
    })
}

/// The mean of the last hour is a tenth above that of the same hour a day before.
pub(crate) fn growth(minutes: &[Minute]) -> Option<f64> {
    const DAY: usize = 1440;
    let mean = |end: usize| minutes[end - 59..=end].iter().map(|minute| minute.memory).sum::<f64>() / 60.0;
    let looks = (DAY + 60..minutes.len()).step_by(EVERY);
    looks.into_iter().find(|&end| mean(end) > 1.1 * mean(end - DAY)).map(|end| minutes[end].time)
}
