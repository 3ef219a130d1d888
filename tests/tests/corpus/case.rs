//! One way to die, and the judgement on what was reported of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use libtest_mimic::Failed;
use serde_json::{Value, json};
use tests::live;

use crate::{scene::Scene, stage::Stage};

/// See the module.
pub(crate) struct Case {
    /// Stable name, in snake case.
    pub(crate) id: &'static str,
    /// Its row of the table.
    pub(crate) group: &'static str,
    /// What happens, for people.
    pub(crate) title: &'static str,
    /// `cause.kind` of the death that the case is about.
    pub(crate) expect: &'static str,
    /// Why it cannot happen on this machine; `None` when it can.
    pub(crate) cannot: fn() -> Option<String>,
    /// Makes it happen, and checks the record.
    pub(crate) act: fn(&mut Scene<'_>),
}

impl Case {
    /// Runs the case and prints its cell.
    pub(crate) fn judge(&self, stage: &mut Stage) -> Result<(), Failed> {
        if let Some(reason) = live::obstacle() {
            self.cell("cannot", Some(&reason), None);
            live::skip(self.id, &reason);
            return Ok(());
        }
        if let Some(reason) = (self.cannot)() {
            self.cell("cannot", Some(&reason), None);
            live::skip_ok(self.id, &reason);
            return Ok(());
        }
        let mut scene = Scene::new(self.expect, stage);
        let end = catch_unwind(AssertUnwindSafe(|| (self.act)(&mut scene)));
        let (mut wrong, slowest_ms) = scene.end();
        if let Err(panic) = end {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            wrong.push(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned());
        }
        if wrong.is_empty() {
            self.cell("right", None, slowest_ms);
            return Ok(());
        }
        let reason = wrong.join("; ");
        self.cell("wrong", Some(&reason), slowest_ms);
        Err(reason.into())
    }

    fn cell(&self, outcome: &str, reason: Option<&str>, slowest_ms: Option<f64>) {
        let Self { id, group, title, expect, cannot: _, act: _ } = self;
        let mut cell = json!({ "case": id, "group": group, "title": title, "expect": expect, "outcome": outcome });
        if let Some(reason) = reason {
            cell["reason"] = reason.into();
        }
        if let Some(slowest_ms) = slowest_ms {
            cell["slowest_ms"] = slowest_ms.into();
        }
        line("CELL", &cell);
    }
}

/// Prints a line of its own: the harness has begun one with the name of the test.
pub(crate) fn line(tag: &str, value: &Value) {
    println!("\n{tag} {value}");
}
