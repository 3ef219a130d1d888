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

/// What was to be reached, and what was. It was asked of the kinds of the first algorithm; the others stand beside them.
fn targets(out: &mut String, rows: &[Row]) -> fmt::Result {
    let published = |row: &Row| row.family < PUBLISHED;
    let healthy = |row: &Row| !row.leaking && row.family < PUBLISHED;
    let leaking = |row: &Row| row.leaking && row.family < PUBLISHED;
    let false_alarm = |_: &Row, first: Option<f64>| first.is_some();
    let in_time = |row: &Row, first| row.outcome.in_time(first);
    let before_gap = |row: &Row, first| row.outcome.before_gap(first);
    let leak_of = |schedule| move |row: &Row| leaking(row) && !row.late() && row.schedule == schedule;
    let other_leak_of = |schedule| move |row: &Row| row.leaking && !published(row) && row.schedule == schedule;
    let (daily, eight_hours) = (Schedule::Daily, Schedule::EightHours);

    writeln!(out, "| | wanted | alerts | alerts and advisories | the first algorithm |\n|---|---|---|---|---|")?;
    let at_most = |percent| Some(Wanted { percent, most: true });
    let at_least = |percent| Some(Wanted { percent, most: false });
    let mut line = |name: &str, wanted, of: &dyn Fn(&Row) -> bool, yes: &dyn Fn(&Row, Option<f64>) -> bool| {
        target(out, rows, name, wanted, of, yes)
    };
    line("false alarms, healthy services", at_most(2.0), &healthy, &false_alarm)?;
    line("the same, further kinds", None, &|row| !row.leaking && !published(row), &false_alarm)?;
    line("leaks found before memory was out", at_least(97.0), &leaking, &in_time)?;
    line("the same, further kinds", None, &|row| row.leaking && !published(row), &in_time)?;
    line("of the first line's leaks, those with a late onset", at_least(70.0), &|row| row.late(), &in_time)?;
    line("found before the gap, restarted daily, without late onset", at_least(97.0), &leak_of(daily), &before_gap)?;
    line("the same, further kinds", None, &other_leak_of(daily), &before_gap)?;
    line(
        "found before the gap, restarted every 8 h, without late onset",
        at_least(85.0),
        &leak_of(eight_hours),
        &before_gap,
    )?;
    line("the same, further kinds", None, &other_leak_of(eight_hours), &before_gap)?;
    let ratios: Vec<f64> = rows.iter().filter_map(|row| row.outcome.eta).collect();
    let of = ratios.len();
    let (median, low, high) = (quantile(ratios.clone(), 0.5), quantile(ratios.clone(), 0.1), quantile(ratios, 0.9));
    writeln!(
        out,
        "| forecast a day ahead, to what came: median | 0.7 to 1.15 | {median:.2} (8 of 10 from {low:.2} to {high:.2}, \
         {of} leaks) | | |"
    )?;
    let micros = quantile(rows.iter().map(|row| row.outcome.verdict_seconds * 1e6).collect(), 0.5);
    writeln!(out, "| one hourly verdict, CPU, 99 of 100 | at most 200 µs | {micros:.0} µs | | |")?;
    let replay: Vec<f64> = rows.iter().map(|row| row.outcome.seconds * 1e3).collect();
    let (median, most) = (quantile(replay.clone(), 0.5), quantile(replay, 0.95));
    writeln!(
        out,
        "| replay of {DAYS:.0} days, CPU | at most 50 ms | {median:.0} ms, 19 of 20 within {most:.0} ms | | |\n"
    )
}

/// A share that was to be reached.
struct Wanted {
    percent: f64,
    /// At most that, not at least.
    most: bool,
}

/// When something was first said of a service, by one of several rules.
type Said<'a> = &'a dyn Fn(&Row) -> Option<f64>;

fn target(
    out: &mut String,
    rows: &[Row],
    name: &str,
    wanted: Option<Wanted>,
    of: &dyn Fn(&Row) -> bool,
    yes: &dyn Fn(&Row, Option<f64>) -> bool,
) -> fmt::Result {
    let firsts: [Said<'_>; 3] = [&|row| row.outcome.alert, &|row| row.flagged(), &|row| row.outcome.others[0]];
    let bound = match &wanted {
        Some(Wanted { percent, most }) => format!("{} {percent} %", if *most { "at most" } else { "at least" }),
        None => String::new(),
    };
    write!(out, "| {name} | {bound} |")?;
    for first in firsts {
        let share = Share::new(rows.iter().filter(|row| of(row)), |row| yes(row, first(row)));
        let missed = wanted.as_ref().is_some_and(|wanted| {
            if wanted.most { share.percent() > wanted.percent } else { share.percent() < wanted.percent }
        });
        write!(out, " {share}{} |", if missed { ", **not met**" } else { "" })?;
    }
    writeln!(out)
}

/// When a rule first alerted.
type First = fn(&Outcome) -> Option<f64>;

/// Beside what people use.
fn rules(out: &mut String, rows: &[Row]) -> fmt::Result {
    let rules: [(&str, First); 6] = [
        ("Defib, alerts", |one| one.alert),
        ("Defib, alerts within a week (warn)", |one| one.warned),
        ("the first algorithm", |one| one.others[0]),
        ("`predict_linear` over 1 h, 4 h ahead", |one| one.others[1]),
        ("`predict_linear` over 6 h, 24 h ahead", |one| one.others[2]),
        ("a tenth more than the day before", |one| one.others[3]),
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
    writeln!(out)
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
