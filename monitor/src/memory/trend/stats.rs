//! Order statistics of short series. None of them assumes a distribution, and one wild value moves none of them.

/// A value at an uptime: seconds and bytes, and the load at that time in cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Dot {
    pub(super) x: f32,
    pub(super) y: f32,
    pub(super) load: f32,
    /// All load since the beginning: core seconds.
    pub(super) work: f32,
}

/// The middle value; 0 of none. Reorders the values.
pub(super) fn median(values: &mut [f32]) -> f32 {
    let half = values.len() / 2;
    if values.is_empty() {
        return 0.0;
    }
    let upper = *values.select_nth_unstable_by(half, f32::total_cmp).1;
    if values.len() % 2 == 1 {
        return upper;
    }
    let lower = values[..half].iter().copied().max_by(f32::total_cmp).unwrap_or(upper);
    f32::midpoint(lower, upper)
}

/// The median of the slopes of all pairs (Theil 1950, Sen 1968), y a unit of x; 0 of fewer than two dots.
pub(super) fn slope(dots: &[Dot], scratch: &mut Vec<f32>) -> f32 {
    scratch.clear();
    for (index, a) in dots.iter().enumerate() {
        for b in &dots[index + 1..] {
            if b.x > a.x {
                scratch.push((b.y - a.y) / (b.x - a.x));
            }
        }
    }
    median(scratch)
}

/// Pairs that rise less pairs that fall (Mann 1945, Kendall), and the variance of that under no trend.
pub(super) fn rising(dots: &[Dot]) -> (f32, f32) {
    let mut sum = 0_i32;
    for (index, a) in dots.iter().enumerate() {
        for b in &dots[index + 1..] {
            sum += i32::from(b.y > a.y) - i32::from(b.y < a.y);
        }
    }
    let n = dots.len() as f32;
    (sum as f32, n * (n - 1.0) * (2.0 * n + 5.0) / 18.0)
}

/// Correlation of neighbours, from 0 to 0.95: what it says against a trend is never counted for one.
pub(super) fn persistence(residuals: &[f32]) -> f32 {
    let n = residuals.len() as f32;
    let mean = residuals.iter().sum::<f32>() / n.max(1.0);
    let own: f32 = residuals.iter().map(|value| (value - mean).powi(2)).sum();
    let next: f32 = residuals.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
    if own > 0.0 { (next / own).clamp(0.0, 0.95) } else { 0.0 }
}

/// A standard deviation that outliers do not move: 1.4826 times the median distance from the median.
pub(super) fn spread(values: &[f32], scratch: &mut Vec<f32>) -> f32 {
    scratch.clear();
    scratch.extend_from_slice(values);
    let middle = median(scratch);
    scratch.iter_mut().for_each(|value| *value = (*value - middle).abs());
    1.4826 * median(scratch)
}

/// The median of values, each as often as its weight; 0 of none. Reorders the values.
pub(super) fn weighted_median(values: &mut [(f32, f32)]) -> f32 {
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half = values.iter().map(|(_, weight)| weight).sum::<f32>() / 2.0;
    let mut sum = 0.0;
    for &(value, weight) in values.iter() {
        sum += weight;
        if sum >= half {
            return value;
        }
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_none_odd_and_even() {
        assert_eq!(median(&mut []), 0.0);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(weighted_median(&mut [(1.0, 1.0), (9.0, 5.0), (2.0, 1.0)]), 9.0);
        assert_eq!(weighted_median(&mut []), 0.0);
    }

    #[test]
    fn a_wild_value_does_not_move_a_slope() {
        let mut dots: Vec<Dot> =
            (0..20).map(|x| Dot { x: x as f32, y: 2.0 * x as f32, load: 0.0, work: 0.0 }).collect();
        dots[7].y = 1e9;
        let mut scratch = Vec::new();
        assert!((slope(&dots, &mut scratch) - 2.0).abs() < 1e-3);
        let (sum, variance) = rising(&dots);
        assert!(sum / variance.sqrt() > 4.0);
    }

    #[test]
    fn noise_that_persists_is_seen() {
        let steps: Vec<f32> = (0..64).map(|index| if index / 8 % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let swings: Vec<f32> = (0..64).map(|index| if index % 2 == 0 { 1.0 } else { -1.0 }).collect();
        assert!(persistence(&steps) > 0.6);
        assert_eq!(persistence(&swings), 0.0);
        assert_eq!(persistence(&[]), 0.0);
    }
}
