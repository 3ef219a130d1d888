//! One incarnation as it goes on, in a bounded number of bins by uptime.

use serde::{Deserialize, Serialize};

use super::make_place;

/// Bins of the whole incarnation; when they are full, two become one and each covers twice as much.
pub(super) const BINS: usize = 40;
/// Bins of the last two days, an hour each: what sets in late would drown in the long ones.
pub(super) const HOURS: usize = 48;
/// Seconds.
pub(super) const MINUTE: f64 = 60.0;
pub(super) const HOUR: f64 = 3600.0;
pub(super) const DAY: f64 = 24.0 * HOUR;

/// What was seen in one stretch of uptime.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Bin {
    /// Least bytes: garbage collection, caches and bursts stand above it. Negative where nothing was seen.
    pub(super) floor: f32,
    /// Most bytes.
    pub(super) peak: f32,
    /// Mean cores in use; negative where that is not known.
    pub(super) cpu: f32,
}

impl Bin {
    const EMPTY: Self = Self { floor: -1.0, peak: -1.0, cpu: -1.0 };

    pub(super) fn seen(&self) -> bool {
        self.floor >= 0.0
    }

    /// Adds a sample; `count` are already in it.
    fn add(&mut self, bytes: f32, cpu: Option<f32>, count: u16) {
        let both = Self { floor: bytes, peak: bytes, cpu: cpu.unwrap_or(-1.0) };
        let share = 1.0 / (f32::from(count) + 1.0);
        *self = self.merged(&both, share);
    }

    /// Both together; `share` is the other's part of the mean.
    fn merged(&self, other: &Self, share: f32) -> Self {
        match (self.seen(), other.seen()) {
            (_, false) => *self,
            (false, true) => *other,
            (true, true) => Self {
                floor: self.floor.min(other.floor),
                peak: self.peak.max(other.peak),
                cpu: match (self.cpu >= 0.0, other.cpu >= 0.0) {
                    (_, false) => self.cpu,
                    (false, true) => other.cpu,
                    (true, true) => self.cpu + (other.cpu - self.cpu) * share,
                },
            },
        }
    }
}

/// An hour of the last two days.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Hour {
    pub(super) floor: f32,
    pub(super) cpu: f32,
}

/// The present incarnation. Times are seconds of the trend's own pace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Run {
    /// When it began.
    pub(super) start: f64,
    /// Its build; 0 where that is not known.
    pub(super) build: u16,
    /// The uptime at which the first bin begins: a service may be older than the agent.
    origin: f64,
    /// The highest uptime seen.
    pub(super) uptime: f64,
    /// Seconds that a bin covers.
    width: f32,
    #[serde(deserialize_with = "super::bounded::<_, _, BINS>")]
    bins: Vec<Bin>,
    /// Samples in the last bin.
    count: u16,
    /// Which hour of its uptime the last one in `hours` is.
    hour: u32,
    #[serde(deserialize_with = "super::bounded::<_, _, HOURS>")]
    hours: Vec<Hour>,
    /// The hour that goes on.
    open: Bin,
    open_count: u16,
}

impl Run {
    pub(super) fn new(start: f64, uptime: f64, build: u16) -> Self {
        let origin = (uptime / MINUTE).floor() * MINUTE;
        Self {
            start,
            build,
            origin,
            uptime,
            width: MINUTE as f32,
            bins: Vec::new(),
            count: 0,
            hour: (uptime / HOUR) as u32,
            hours: Vec::new(),
            open: Bin::EMPTY,
            open_count: 0,
        }
    }

    /// Adds a sample at an uptime no lower than the last. Returns true when an hour was completed.
    pub(super) fn add(&mut self, uptime: f64, bytes: f32, cpu: Option<f32>) -> bool {
        self.uptime = uptime;
        let since = uptime - self.origin;
        // What was kept may have been damaged, and a bin of no width would be halved for ever.
        self.width = self.width.max(MINUTE as f32);
        while since >= f64::from(self.width) * BINS as f64 {
            self.halve();
        }
        let index = ((since / f64::from(self.width)) as usize).min(BINS - 1);
        if index >= self.bins.len() {
            while index >= self.bins.len() {
                make_place::<_, BINS>(&mut self.bins);
                self.bins.push(Bin::EMPTY);
            }
            self.count = 0;
        }
        self.bins[index].add(bytes, cpu, self.count);
        self.count = self.count.saturating_add(1);

        let completed = self.close_hours((uptime / HOUR) as u32);
        self.open.add(bytes, cpu, self.open_count);
        self.open_count = self.open_count.saturating_add(1);
        completed
    }

    /// Two bins become one.
    fn halve(&mut self) {
        let merged = self.bins.len().div_ceil(2);
        for index in 0..merged {
            let second = self.bins.get(2 * index + 1).copied().unwrap_or(Bin::EMPTY);
            self.bins[index] = self.bins[2 * index].merged(&second, 0.5);
        }
        self.bins.truncate(merged);
        self.width *= 2.0;
        // The last bin goes on with about as many samples as its width has minutes.
        self.count = (self.width / MINUTE as f32 / 2.0) as u16;
    }

    fn close_hours(&mut self, hour: u32) -> bool {
        if hour <= self.hour {
            return false;
        }
        if hour - self.hour > HOURS as u32 {
            self.hours.clear();
        } else {
            self.push_hour(Hour { floor: self.open.floor, cpu: self.open.cpu });
            for _ in self.hour + 1..hour {
                self.push_hour(Hour { floor: -1.0, cpu: -1.0 });
            }
        }
        self.hour = hour;
        self.open = Bin::EMPTY;
        self.open_count = 0;
        true
    }

    fn push_hour(&mut self, hour: Hour) {
        if self.hours.len() >= HOURS {
            self.hours.remove(0);
        }
        make_place::<_, HOURS>(&mut self.hours);
        self.hours.push(hour);
    }

    /// The bins with their middle in uptime, seconds; those where nothing was seen are left out.
    pub(super) fn bins(&self) -> impl Iterator<Item = (f32, Bin)> + Clone {
        let middle = |index: usize| (self.origin + (index as f64 + 0.5) * f64::from(self.width)) as f32;
        self.bins.iter().enumerate().filter(|(_, bin)| bin.seen()).map(move |(index, bin)| (middle(index), *bin))
    }

    /// The completed hours of the last two days, as bins.
    pub(super) fn hours(&self) -> impl Iterator<Item = (f32, Bin)> + Clone {
        let first = f64::from(self.hour) - self.hours.len() as f64;
        let middle = move |index: usize| ((first + index as f64 + 0.5) * HOUR) as f32;
        let seen = self.hours.iter().enumerate().filter(|(_, hour)| hour.floor >= 0.0);
        seen.map(move |(index, hour)| (middle(index), Bin { floor: hour.floor, peak: hour.floor, cpu: hour.cpu }))
    }

    /// The last two completed hours, the older one first, if both were seen.
    pub(super) fn last_hours(&self) -> Option<(Hour, Hour)> {
        let [.., before, last] = self.hours.as_slice() else { return None };
        (before.floor >= 0.0 && last.floor >= 0.0).then_some((*before, *last))
    }

    /// Seconds of uptime that were seen.
    pub(super) fn seen(&self) -> f64 {
        self.uptime - self.origin
    }

    /// The most bytes seen in bins that ended at least `before` seconds ago.
    pub(super) fn peak_before(&self, before: f64) -> f32 {
        let until = (self.uptime - before) as f32;
        self.bins()
            .filter(|(middle, _)| middle + self.width / 2.0 <= until)
            .fold(0.0, |most, (_, bin)| most.max(bin.peak))
    }

    /// Seconds until one of the peaks of the last day comes again and is at `limit`, at that growth in bytes a second.
    pub(super) fn reaches(&self, limit: f32, slope: f32) -> f64 {
        let from = (self.uptime - DAY) as f32;
        let recent = self.bins().filter(|(middle, _)| *middle + self.width / 2.0 >= from);
        let soonest = recent.map(|(middle, bin)| {
            // Growth alone puts the peak of a bin at its end.
            f64::from(middle + self.width / 2.0).min(self.uptime) + f64::from((limit - bin.peak) / slope)
        });
        (soonest.fold(f64::INFINITY, f64::min) - self.uptime).max(0.0)
    }

    /// Bytes that it holds beside its own size.
    pub(super) fn heap(&self) -> usize {
        self.bins.capacity() * size_of::<Bin>() + self.hours.capacity() * size_of::<Hour>()
    }
}
