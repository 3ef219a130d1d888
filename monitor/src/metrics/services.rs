//! The series of services, in the text format of Prometheus.
//!
//! A service has some seventy series, which all exist from the start. In a registry each is an object with its own copy of
//! name, help and labels: 54 KiB for a service, and a second for a scrape of ten thousand. Here a service is one row of
//! numbers, and names are written when they are asked for, part by part. Most services never die, so what is counted has no
//! place before the first count.

use std::{
    fmt::Write as _,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use super::families::{Family, Of, Whose, families};

/// Upper bounds of an outage's buckets, seconds: from a restart without grace to the eleven minutes of the incident this was
/// written for, and beyond.
const OUTAGE_BOUNDS: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 660.0, 1800.0];
/// Rows in one part of the text: some hundred kilobytes at a time, however many services there are.
const PART: usize = 500;
/// Of a flag, that it was set once; the flag itself is 32 bits below.
const KNOWN: u64 = 1 << 32;
/// A value that was never set. No value that is set has these bits.
const ABSENT: u64 = u64::MAX;

/// A series: what is written before and after the name of the service, and where its value is in a row.
struct Series {
    before: String,
    after: String,
    at: At,
}

/// Where a value is in a row.
#[derive(Clone, Copy, Debug)]
enum At {
    /// Of those that are 0 or 1.
    Flag(u32),
    Number(usize),
    /// Of those that are counted seldom.
    Counter(usize),
}

/// A family, laid out.
struct Laid {
    head: String,
    whose: Whose,
    values: Vec<&'static str>,
    series: Vec<Series>,
}

/// The numbers of one service.
pub(super) struct Row {
    /// As it is written.
    label: Box<str>,
    is_managed: AtomicBool,
    /// In the lower half the flags that are set, in the upper half those that are known.
    flags: AtomicU64,
    /// The bits of doubles.
    numbers: Box<[AtomicU64]>,
    /// `None`: nothing has been counted.
    counts: OnceLock<Box<Counts>>,
}

/// What was counted of one service.
struct Counts {
    counters: Box<[AtomicU32]>,
    /// Outages in each bucket, those beyond the last, and the bits of their sum in seconds.
    outages: [AtomicU32; OUTAGE_BOUNDS.len() + 1],
    outage_sum: AtomicU64,
}

/// All of them. Rows are made and written by one owner; whoever scrapes reads beside it.
pub(crate) struct Table {
    families: Vec<Laid>,
    numbers: usize,
    counters: usize,
    /// The flags of a service of which nothing is known yet.
    flags: u64,
    rows: RwLock<Vec<Arc<Row>>>,
}

impl Table {
    /// Nobody yet.
    pub(super) fn new() -> Self {
        let (mut flags, mut numbers, mut counters, mut known) = (0, 0, 0, 0);
        let lay = |Family { of, name, help, kind, whose, label }| {
            // Labels in the order of their names, as a registry has them.
            let (label, values) = label.unwrap_or(("", vec![""]));
            let series = values.iter().map(|value| {
                let next = |count: &mut usize| std::mem::replace(count, *count + 1);
                let at = match (kind, of) {
                    // Everybody moves, if only into its pool.
                    (_, Of::PoolMoves) => At::Number(next(&mut numbers)),
                    ("counter", _) => At::Counter(next(&mut counters)),
                    _ if of.is_flag() => At::Flag(next(&mut flags) as u32),
                    _ => At::Number(next(&mut numbers)),
                };
                if let At::Flag(at) = at
                    && whose != Whose::Known
                {
                    known |= KNOWN << at;
                }
                let (before, after) = match label {
                    "" => (format!("{name}{{service=\""), "\"} ".to_owned()),
                    label if label < "service" => {
                        (format!("{name}{{{label}=\"{value}\",service=\""), "\"} ".to_owned())
                    }
                    label => (format!("{name}{{service=\""), format!("\",{label}=\"{value}\"}} ")),
                };
                Series { before, after, at }
            });
            let series = series.collect();
            Laid { head: format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"), whose, values, series }
        };
        let mut families = families();
        families.sort_by_key(|family| family.of);
        let families = families.into_iter().map(lay).collect();
        Self { families, numbers, counters, flags: known, rows: RwLock::default() }
    }

    /// A new service.
    pub(super) fn add(&self, service: &str) -> Arc<Row> {
        let known_later = self.families.iter().filter(|family| family.whose == Whose::Known);
        let numbers: Box<[AtomicU64]> = (0..self.numbers).map(|_| AtomicU64::new(0)).collect();
        for series in known_later.flat_map(|family| &family.series) {
            if let At::Number(at) = series.at {
                numbers[at].store(ABSENT, Ordering::Relaxed);
            }
        }
        let row = Arc::new(Row {
            label: escaped(service),
            is_managed: AtomicBool::new(false),
            flags: AtomicU64::new(self.flags),
            numbers,
            counts: OnceLock::new(),
        });
        self.rows.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&row));
        row
    }

    /// Stops writing the series of a service that has gone.
    pub(super) fn remove(&self, row: &Arc<Row>) {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        rows.retain(|other| !Arc::ptr_eq(other, row));
    }

    /// Where the value of a series is; `value` is that of its label, if it has one.
    fn at(&self, of: Of, value: &str) -> At {
        let family = &self.families[of as usize];
        let index = family.values.iter().position(|known| *known == value);
        debug_assert!(index.is_some(), "{of:?} has no {value:?}");
        family.series[index.unwrap_or(0)].at
    }

    /// Sets a gauge.
    pub(super) fn set(&self, row: &Row, of: Of, value: f64) {
        self.set_with(row, of, "", value);
    }

    /// Sets a gauge with a label.
    pub(super) fn set_with(&self, row: &Row, of: Of, label: &str, value: f64) {
        match self.at(of, label) {
            // One owner sets.
            At::Flag(at) if value == 0.0 => {
                row.flags.fetch_and(!(1 << at), Ordering::Relaxed);
                row.flags.fetch_or(KNOWN << at, Ordering::Relaxed);
            }
            At::Flag(at) => {
                row.flags.fetch_or((KNOWN | 1) << at, Ordering::Relaxed);
            }
            At::Number(at) => row.numbers[at].store(value.to_bits(), Ordering::Relaxed),
            At::Counter(_) => debug_assert!(false, "{of:?} is counted, not set"),
        }
    }

    /// Counts one.
    pub(super) fn count(&self, row: &Row, of: Of) {
        self.count_with(row, of, "");
    }

    /// Counts one with a label; the total.
    pub(super) fn count_with(&self, row: &Row, of: Of, label: &str) -> u64 {
        match self.at(of, label) {
            At::Counter(at) => u64::from(self.counts(row).counters[at].fetch_add(1, Ordering::Relaxed)) + 1,
            // One owner counts.
            At::Number(at) => {
                let count = f64::from_bits(row.numbers[at].load(Ordering::Relaxed)) + 1.0;
                row.numbers[at].store(count.to_bits(), Ordering::Relaxed);
                count as u64
            }
            At::Flag(_) => {
                debug_assert!(false, "{of:?} is set, not counted");
                0
            }
        }
    }

    /// Goes on with what an earlier agent has counted.
    pub(super) fn count_from(&self, row: &Row, of: Of, label: &str, total: u64) {
        match self.at(of, label) {
            At::Counter(at) => {
                self.counts(row).counters[at].store(u32::try_from(total).unwrap_or(u32::MAX), Ordering::Relaxed);
            }
            _ => debug_assert!(false, "{of:?} is not counted seldom"),
        }
    }

    /// Counts an outage of so many seconds that is over.
    pub(super) fn outage(&self, row: &Row, seconds: f64) {
        let counts = self.counts(row);
        let bucket = OUTAGE_BOUNDS.iter().position(|&bound| seconds <= bound).unwrap_or(OUTAGE_BOUNDS.len());
        counts.outages[bucket].fetch_add(1, Ordering::Relaxed);
        // One owner adds.
        let sum = f64::from_bits(counts.outage_sum.load(Ordering::Relaxed)) + seconds;
        counts.outage_sum.store(sum.to_bits(), Ordering::Relaxed);
    }

    fn counts<'a>(&self, row: &'a Row) -> &'a Counts {
        row.counts.get_or_init(|| {
            Box::new(Counts {
                counters: (0..self.counters).map(|_| AtomicU32::new(0)).collect(),
                outages: Default::default(),
                outage_sum: AtomicU64::new(0),
            })
        })
    }

    /// The text, part by part.
    pub(crate) fn text(self: Arc<Self>) -> impl Iterator<Item = String> + Send + use<> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner).clone();
        let parts = rows.len().div_ceil(PART).max(1);
        // One more family than those that are laid out: the histogram.
        let all = (0..=self.families.len()).flat_map(move |family| (0..parts).map(move |part| (family, part)));
        all.map(move |(family, part)| {
            let rows = rows.chunks(PART).nth(part).unwrap_or_default();
            match self.families.get(family) {
                Some(family) => family.text(rows, part == 0),
                None => outages(rows, part == 0),
            }
        })
    }
}

impl Row {
    /// From now on it is one that Defib looks after.
    pub(super) fn manage(&self) {
        self.is_managed.store(true, Ordering::Relaxed);
    }

    /// The value at a place; `None`: it was never set.
    fn value(&self, at: At) -> Option<f64> {
        match at {
            At::Flag(at) => {
                let flags = self.flags.load(Ordering::Relaxed) >> at;
                (flags & KNOWN != 0).then_some((flags & 1) as f64)
            }
            At::Number(at) => {
                let bits = self.numbers[at].load(Ordering::Relaxed);
                (bits != ABSENT).then(|| f64::from_bits(bits))
            }
            At::Counter(at) => {
                let count = self.counts.get().map_or(0, |counts| counts.counters[at].load(Ordering::Relaxed));
                Some(f64::from(count))
            }
        }
    }
}

impl Laid {
    fn text(&self, rows: &[Arc<Row>], with_head: bool) -> String {
        let mut text = if with_head { self.head.clone() } else { String::new() };
        for row in rows {
            if self.whose != Whose::All && !row.is_managed.load(Ordering::Relaxed) {
                continue;
            }
            for Series { before, after, at } in &self.series {
                if let Some(value) = row.value(*at) {
                    line(&mut text, &[before, &row.label, after], value);
                }
            }
        }
        text
    }
}

fn outages(rows: &[Arc<Row>], with_head: bool) -> String {
    const NAME: &str = "defib_outage_seconds";
    let mut text = String::new();
    if with_head {
        // A String takes whatever is written.
        writeln!(text, "# HELP {NAME} Death of a service to its proven health.\n# TYPE {NAME} histogram").ok();
    }
    for row in rows.iter().filter(|row| row.is_managed.load(Ordering::Relaxed)) {
        let counts = row.counts.get();
        let mut count = 0;
        for (bucket, bound) in OUTAGE_BOUNDS.iter().map(Some).chain([None]).enumerate() {
            count += counts.map_or(0, |counts| counts.outages[bucket].load(Ordering::Relaxed));
            let bound = bound.map_or_else(|| "+Inf".to_owned(), f64::to_string);
            let after = ["\",le=\"", &bound, "\"} "].concat();
            line(&mut text, &[NAME, "_bucket{service=\"", &row.label, &after], f64::from(count));
        }
        let sum = counts.map_or(0.0, |counts| f64::from_bits(counts.outage_sum.load(Ordering::Relaxed)));
        line(&mut text, &[NAME, "_sum{service=\"", &row.label, "\"} "], sum);
        line(&mut text, &[NAME, "_count{service=\"", &row.label, "\"} "], f64::from(count));
    }
    text
}

fn line(text: &mut String, parts: &[&str], value: f64) {
    parts.iter().for_each(|part| text.push_str(part));
    // A String takes whatever is written. Most values are small whole numbers, for which this is the shorter way.
    if value == 0.0 {
        text.push('0');
    } else if value.is_infinite() {
        text.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    } else if value.fract() == 0.0 && value.abs() < 1e15 {
        write!(text, "{}", value as i64).ok();
    } else {
        write!(text, "{value}").ok();
    }
    text.push('\n');
}

/// As a label's value is written.
fn escaped(text: &str) -> Box<str> {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::Cause;

    fn text(table: &Arc<Table>) -> String {
        Arc::clone(table).text().collect()
    }

    #[test]
    fn each_family_has_a_place_of_its_own() {
        let mut all: Vec<_> = families().into_iter().map(|family| family.of as usize).collect();
        all.sort_unstable();
        assert_eq!(all, Vec::from_iter(0..all.len()));
    }

    #[test]
    fn series_exist_at_zero_and_those_of_managed_services_when_they_are() {
        let table = Arc::new(Table::new());
        table.add("other");
        let row = table.add("web");
        let before = text(&table);
        assert!(before.contains("defib_deaths_total{cause=\"oom_kill\",service=\"web\"} 0\n"), "{before}");
        assert!(before.contains("defib_oom_kills_total{scope=\"memcg\",service=\"other\"} 0\n"));
        assert!(!before.contains("defib_service_up{"), "nobody is looked after");
        row.manage();
        let managed = text(&table);
        assert!(
            managed.contains("defib_service_up{service=\"web\"} 0\n") && !managed.contains("up{service=\"other\"}")
        );
        assert!(managed.contains("defib_pool_state{service=\"web\",state=\"draining\"} 0\n"));
        assert!(!managed.contains("eta_seconds{"), "it is not known yet");
        table.set(&row, Of::OomEta, f64::INFINITY);
        table.set(&row, Of::Memory, 1_234_567_890_123.0);
        table.set(&row, Of::Growth, -0.5);
        table.count_with(&row, Of::Deaths, "crash");
        table.count_with(&row, Of::Deaths, "crash");
        let told = text(&table);
        for line in [
            "defib_service_oom_eta_seconds{service=\"web\"} +Inf\n",
            "defib_service_memory_bytes{service=\"web\"} 1234567890123\n",
            "defib_service_memory_growth_bytes_per_hour{service=\"web\"} -0.5\n",
            "defib_deaths_total{cause=\"crash\",service=\"web\"} 2\n",
            "# TYPE defib_deaths_total counter\n",
        ] {
            assert!(told.contains(line), "{line} in {told}");
        }
    }

    #[test]
    fn an_outage_is_in_its_bucket_and_all_above() {
        let table = Arc::new(Table::new());
        let row = table.add("web");
        row.manage();
        table.outage(&row, 0.3);
        table.outage(&row, 4000.0);
        let text = text(&table);
        for line in [
            "_bucket{service=\"web\",le=\"0.25\"} 0\n",
            "_bucket{service=\"web\",le=\"0.5\"} 1\n",
            "_bucket{service=\"web\",le=\"1800\"} 1\n",
            "_bucket{service=\"web\",le=\"+Inf\"} 2\n",
            "_sum{service=\"web\"} 4000.3\n",
            "_count{service=\"web\"} 2\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn each_family_is_whole_however_many_parts_it_has() {
        let table = Arc::new(Table::new());
        for number in 0..=PART {
            table.add(&format!("s{number}"));
        }
        let text = text(&table);
        let deaths: Vec<_> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| line.starts_with("defib_deaths_total"))
            .map(|(number, _)| number)
            .collect();
        assert_eq!(deaths.len(), (PART + 1) * Cause::KINDS.len());
        assert_eq!(deaths[deaths.len() - 1] - deaths[0] + 1, deaths.len(), "in one piece");
        assert_eq!(text.matches("# TYPE defib_deaths_total").count(), 1);
    }

    #[test]
    fn a_service_that_has_gone_leaves_no_series() {
        let table = Arc::new(Table::new());
        let (web, _db) = (table.add("web"), table.add("db"));
        table.remove(&web);
        let text = text(&table);
        assert!(!text.contains("\"web\"") && text.contains("\"db\""), "{text}");
    }

    #[test]
    fn a_name_cannot_end_its_label() {
        let table = Arc::new(Table::new());
        table.add("a\"} 1\nb\\");
        assert!(text(&table).contains("service=\"a\\\"} 1\\nb\\\\\"} 0\n"));
    }
}
