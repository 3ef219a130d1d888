//! The tables, as Markdown.

use std::fmt::{self, Write as _};

use crate::{
    Row, families,
    replay::Outcome,
    service::{DAYS, Schedule},
};

/// Families that set in late are counted apart: until they do, there is nothing to find.
const LATE: &str = "late onset";
/// Families that the first algorithm's published figures are of, in each list.
const PUBLISHED: usize = 8;

/// All tables.
pub(crate) fn text(rows: &[Row], misses: bool) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    write(&mut out, rows, misses).ok();
    out
}

/// A sentence on the same services where nothing is known of their load.
pub(crate) fn without_load(rows: &[Row]) -> String {
    let of = |leaking: bool| rows.iter().filter(move |row| row.leaking == leaking);
    format!(
        "The same services without their CPU: {} false alarms, {} found.",
        Share::new(of(false), |row| row.outcome.alert.is_some()),
        Share::new(of(true), Row::alerted)
    )
}

fn write(out: &mut String, rows: &[Row], misses: bool) -> fmt::Result {
    let healthy = rows.iter().filter(|row| !row.leaking).count();
    let leaking = rows.len() - healthy;
    writeln!(
        out,
        "{healthy} healthy and {leaking} leaking services of {} and {} kinds under three schedules, {DAYS:.0} days of minutes \
         each.\n",
        families(false).len(),
        families(true).len()
    )?;
    targets(out, rows)?;
    rules(out, rows)?;
    kinds(out, rows)?;
    if misses {
        for row in rows.iter().filter(|row| if row.leaking { !row.alerted() } else { row.outcome.alert.is_some() }) {
            let what = if row.leaking { "not found" } else { "false alarm" };
            let family = families(row.leaking)[row.family].name;
            writeln!(out, "- {what}: {family}, {}, seed {}: {:?}", row.schedule.name(), row.seed, row.outcome)?;
        }
    }
    Ok(())
}

impl Row {
    fn alerted(&self) -> bool {
        self.outcome.in_time(self.outcome.alert)
    }

    fn flagged(&self) -> Option<f64> {
        match (self.outcome.alert, self.outcome.advisory) {
            (Some(alert), Some(advisory)) => Some(alert.min(advisory)),
            (alert, advisory) => alert.or(advisory),
        }
    }

    fn late(&self) -> bool {
        families(self.leaking)[self.family].name == LATE
    }
}

/// How many of those rows, as a share.
struct Share {
    yes: usize,
    of: usize,
}

impl Share {
    fn new<'a>(rows: impl Iterator<Item = &'a Row>, yes: impl Fn(&Row) -> bool) -> Self {
        let (mut share, mut of) = (0, 0);
        for row in rows {
            of += 1;
            share += usize::from(yes(row));
        }
        Self { yes: share, of }
    }

    fn percent(&self) -> f64 {
        100.0 * self.yes as f64 / self.of.max(1) as f64
    }
}

impl fmt::Display for Share {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} of {} ({:.1} %)", self.yes, self.of, self.percent())
    }
}

fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len().saturating_sub(1) as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// What was to be reached, and what was.
fn targets(out: &mut String, rows: &[Row]) -> fmt::Result {
    writeln!(out, "| | wanted | alerts | alerts and advisories |\n|---|---|---|---|")?;
    let mut line = |name: &str, wanted: f64, most: bool, alerts: &Share, flagged: &Share| {
        let met = |share: &Share| {
            let met = if most { share.percent() <= wanted } else { share.percent() >= wanted };
            if met { "" } else { ", **not met**" }
        };
        let bound = if most { "at most" } else { "at least" };
        writeln!(out, "| {name} | {bound} {wanted} % | {alerts}{} | {flagged}{} |", met(alerts), met(flagged))
    };
    let healthy = || rows.iter().filter(|row| !row.leaking);
    line(
        "false alarms, healthy services",
        2.0,
        true,
        &Share::new(healthy(), |row| row.outcome.alert.is_some()),
        &Share::new(healthy(), |row| row.flagged().is_some()),
    )?;
    let leaking = || rows.iter().filter(|row| row.leaking);
    line(
        "leaks found before memory was out",
        97.0,
        false,
        &Share::new(leaking(), Row::alerted),
        &Share::new(leaking(), |row| row.outcome.in_time(row.flagged())),
    )?;
    line(
        "of these, those with a late onset",
        70.0,
        false,
        &Share::new(leaking().filter(|row| row.late()), Row::alerted),
        &Share::new(leaking().filter(|row| row.late()), |row| row.outcome.in_time(row.flagged())),
    )?;
    for (schedule, name, wanted) in [(Schedule::Daily, "daily", 97.0), (Schedule::EightHours, "every 8 h", 85.0)] {
        let of = || leaking().filter(move |row| row.schedule == schedule);
        let published = || of().filter(|row| row.family < PUBLISHED && !row.late());
        let before = |row: &Row| row.outcome.before_gap(row.outcome.alert);
        let flagged = |row: &Row| row.outcome.before_gap(row.flagged());
        line(
            &format!("found before the gap, restarted {name}, the kinds of the first algorithm without late onset"),
            wanted,
            false,
            &Share::new(published(), before),
            &Share::new(published(), flagged),
        )?;
        line(
            &format!("found before the gap, restarted {name}, all kinds"),
            wanted,
            false,
            &Share::new(of(), before),
            &Share::new(of(), flagged),
        )?;
    }
    let ratios: Vec<f64> = rows.iter().filter_map(|row| row.outcome.eta).collect();
    let of = ratios.len();
    let (median, low, high) = (quantile(ratios.clone(), 0.5), quantile(ratios.clone(), 0.1), quantile(ratios, 0.9));
    writeln!(
        out,
        "| forecast a day ahead, to what came: median | 0.7 to 1.15 | {median:.2} (8 of 10 from {low:.2} to {high:.2}, \
         {of} leaks) | |"
    )?;
    let micros = quantile(rows.iter().map(|row| row.outcome.verdict_seconds * 1e6).collect(), 0.5);
    writeln!(out, "| one hourly verdict, CPU, 99 of 100 | at most 200 µs | {micros:.0} µs | |")?;
    let replay: Vec<f64> = rows.iter().map(|row| row.outcome.seconds * 1e3).collect();
    let (median, most) = (quantile(replay.clone(), 0.5), quantile(replay, 0.95));
    writeln!(
        out,
        "| replay of {DAYS:.0} days, CPU | at most 50 ms | {median:.0} ms, 19 of 20 within {most:.0} ms | |\n"
    )
}

/// When a rule first alerted.
type First = fn(&Outcome) -> Option<f64>;

/// Beside what people use.
fn rules(out: &mut String, rows: &[Row]) -> fmt::Result {
    let rules: [(&str, First); 5] = [
        ("Defib, alerts", |one| one.alert),
        ("Defib, alerts within a week (warn)", |one| one.warned),
        ("`predict_linear` over 1 h, 4 h ahead", |one| one.others[0]),
        ("`predict_linear` over 6 h, 24 h ahead", |one| one.others[1]),
        ("a tenth more than the day before", |one| one.others[2]),
    ];
    writeln!(
        out,
        "| schedule | rule | false alarms | found | before the gap | median lead, days |\n|---|---|---|---|---|---:|"
    )?;
    for schedule in Schedule::ALL {
        for (name, first) in rules {
            let of = |leaking: bool| rows.iter().filter(move |row| row.leaking == leaking && row.schedule == schedule);
            let leads = of(true).filter(|row| row.outcome.in_time(first(&row.outcome)));
            let leads = leads.filter_map(|row| Some(row.outcome.oom? - first(&row.outcome)?)).collect();
            let before = Share::new(of(true), |row| row.outcome.before_gap(first(&row.outcome)));
            writeln!(
                out,
                "| {} | {name} | {} | {} | {} | {:.1} |",
                schedule.name(),
                Share::new(of(false), |row| first(&row.outcome).is_some()),
                Share::new(of(true), |row| row.outcome.in_time(first(&row.outcome))),
                if schedule == Schedule::Never { "-".to_owned() } else { before.to_string() },
                quantile(leads, 0.5)
            )?;
        }
    }
    writeln!(
        out,
        "| all | the first algorithm, as published, on its own 8 and 8 kinds | 12 of 480 (2.5 %) | | 137 of 140 daily, 98 of \
         140 every 8 h | 7.7 to 14.9 |\n"
    )
}

/// Kind by kind.
fn kinds(out: &mut String, rows: &[Row]) -> fmt::Result {
    writeln!(out, "Alerts + advisories without an alert, of each kind; leaks: before the gap where there is one.\n")?;
    writeln!(out, "| kind | daily | every 8 h | none |\n|---|---|---|---|")?;
    for leaking in [false, true] {
        for (index, family) in families(leaking).iter().enumerate() {
            write!(out, "| {}: {} |", if leaking { "leak" } else { "healthy" }, family.name)?;
            for schedule in Schedule::ALL {
                let of = || {
                    rows.iter()
                        .filter(move |row| row.leaking == leaking && row.family == index && row.schedule == schedule)
                };
                let counts = |row: &Row, first: Option<f64>| match (leaking, schedule) {
                    (true, Schedule::Daily | Schedule::EightHours) => row.outcome.before_gap(first),
                    _ => row.outcome.in_time(first),
                };
                let alerts = Share::new(of(), |row| counts(row, row.outcome.alert));
                let flagged = Share::new(of(), |row| counts(row, row.flagged()));
                write!(out, " {} + {} of {} |", alerts.yes, flagged.yes - alerts.yes, alerts.of)?;
            }
            writeln!(out)?;
        }
    }
    writeln!(out)
}
