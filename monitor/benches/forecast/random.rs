//! Random draws that a seed repeats.

/// A stream of draws.
pub(crate) struct Random(fastrand::Rng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.0.f64()
    }

    /// Each order of magnitude as likely as the next.
    pub(crate) fn magnitude(&mut self, low: f64, high: f64) -> f64 {
        self.between(low.ln(), high.ln()).exp()
    }

    /// Mean 0, deviation 1 (Box and Muller 1958).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.0.f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.0.f64()).cos()
    }

    /// A waiting time, exponential with that mean.
    pub(crate) fn wait(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.0.f64()).ln()
    }
}

/// Noise that remembers: AR(1), one value for each minute.
pub(crate) struct Noise {
    keep: f64,
    shock: f64,
    value: f64,
}

impl Noise {
    /// `keep`: correlation of neighbours. `deviation`: of the whole.
    pub(crate) fn new(keep: f64, deviation: f64) -> Self {
        Self { keep, shock: deviation * (1.0 - keep * keep).sqrt(), value: 0.0 }
    }

    pub(crate) fn next(&mut self, random: &mut Random) -> f64 {
        self.value = self.keep * self.value + self.shock * random.normal();
        self.value
    }
}
