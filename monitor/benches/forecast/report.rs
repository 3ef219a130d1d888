//! The tables, as Markdown.

use crate::{
    Args, Row,
    replay::Outcome,
    service::{GAP, HEALTHY, LEAKING, Schedule},
};

pub(crate) fn print(rows: &[Row], args: &Args) {
    println!("| family | schedule | alerts | advisories | before gap |");
    for leaking in [false, true] {
        let families = if leaking { &LEAKING } else { &HEALTHY };
        for (index, family) in families.iter().enumerate() {
            let mut line = format!("{:<6}{:<20}", if leaking { "LEAK" } else { "ok" }, family.name);
            for schedule in Schedule::ALL {
                let of: Vec<&Outcome> = rows
                    .iter()
                    .filter(|row| row.leaking == leaking && row.family == index && row.schedule == schedule)
                    .map(|row| &row.outcome)
                    .collect();
                let count = |yes: &dyn Fn(&Outcome) -> bool| of.iter().filter(|one| yes(one)).count();
                line += &format!(
                    " | {:>3} {:>3} gap {:>3} {:>3}",
                    count(&|one| one.in_time(one.alert)),
                    count(&|one| one.in_time(one.advisory)),
                    count(&|one| one.before_gap(one.alert)),
                    count(&|one| one.before_gap(one.advisory)),
                );
                let mut ratios: Vec<f64> = of.iter().filter_map(|one| one.eta).collect();
                ratios.sort_by(f64::total_cmp);
                if leaking {
                    line += &format!(
                        " eta {:.2} [{:.2} {:.2}] n{}",
                        ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN),
                        ratios.get(ratios.len() / 10).copied().unwrap_or(f64::NAN),
                        ratios.get(ratios.len() * 9 / 10).copied().unwrap_or(f64::NAN),
                        ratios.len()
                    );
                }
            }
            println!("{line}");
        }
    }
    for schedule in Schedule::ALL {
        let of = |leaking: bool| rows.iter().filter(move |row| row.leaking == leaking && row.schedule == schedule);
        let share = |leaking: bool, yes: &dyn Fn(&Outcome) -> bool| {
            100.0 * of(leaking).filter(|row| yes(&row.outcome)).count() as f64 / of(leaking).count() as f64
        };
        println!(
            "{:<10} false {:.1}% adv {:.1}%  found {:.1}% adv {:.1}%  before gap {:.1}% adv {:.1}%  others false {:.0} {:.0} {:.0}",
            schedule.name(),
            share(false, &|one| one.alert.is_some()),
            share(false, &|one| one.advisory.is_some()),
            share(true, &|one| one.in_time(one.alert)),
            share(true, &|one| one.in_time(one.advisory)),
            share(true, &|one| one.before_gap(one.alert)),
            share(true, &|one| one.before_gap(one.advisory)),
            share(false, &|one| one.others[0].is_some()),
            share(false, &|one| one.others[1].is_some()),
            share(false, &|one| one.others[2].is_some()),
        );
    }
    let mut ratios: Vec<f64> = rows.iter().filter_map(|row| row.outcome.eta).collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "eta median {:.2} 10% {:.2} 90% {:.2}",
        ratios[ratios.len() / 2],
        ratios[ratios.len() / 10],
        ratios[ratios.len() * 9 / 10]
    );
    let mut seconds: Vec<f64> = rows.iter().map(|row| row.outcome.seconds * 1000.0).collect();
    seconds.sort_by(f64::total_cmp);
    let slowest = rows.iter().map(|row| row.outcome.verdict_seconds * 1e6).fold(0.0, f64::max);
    println!(
        "replay {:.1} ms median, {:.1} ms most; verdict {slowest:.0} µs at most",
        seconds[seconds.len() / 2],
        seconds[seconds.len() - 1]
    );
    if args.misses {
        for row in rows {
            let one = &row.outcome;
            let families = if row.leaking { &LEAKING } else { &HEALTHY };
            let bad = if row.leaking {
                !one.in_time(one.alert) || (row.schedule != Schedule::Never && !one.before_gap(one.alert))
            } else {
                one.alert.is_some()
            };
            if bad {
                println!(
                    "{} {} {} {}: alert {:?} advisory {:?} oom {:?} gap {GAP}",
                    if row.leaking { "LEAK" } else { "ok" },
                    families[row.family].name,
                    row.schedule.name(),
                    row.seed,
                    one.alert,
                    one.advisory,
                    one.oom
                );
            }
        }
    }
}
