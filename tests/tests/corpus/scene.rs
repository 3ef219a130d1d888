//! What one case uses: the deaths that it causes, checked field by field, and cgroups of its own.
//!
//! A wrong field does not end the case: all that is wrong with a record is said at once.

use std::rc::Rc;

use serde_json::Value;
use tests::{PATIENCE, cgroup::Cgroup, engine::Engine, victim::Victim};

use crate::stage::{self, Stage};

/// See the module.
pub(crate) struct Scene<'a> {
    stage: &'a mut Stage,
    expect: &'static str,
    begin_ns: u64,
    // A child goes before its parent.
    children: Vec<Rc<Cgroup>>,
    cgroups: Vec<Rc<Cgroup>>,
    checked: Vec<(Value, Value)>,
    expected: usize,
    slowest_ms: Option<f64>,
    wrong: Vec<String>,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(expect: &'static str, stage: &'a mut Stage) -> Self {
        stage.watch();
        Self {
            stage,
            expect,
            begin_ns: stage::boot_ns(),
            children: Vec::new(),
            cgroups: Vec::new(),
            checked: Vec::new(),
            expected: 0,
            slowest_ms: None,
            wrong: Vec::new(),
        }
    }

    /// A memory cgroup, with a limit in bytes or without, whose OOM kills are compared with those seen.
    pub(crate) fn cgroup(&mut self, limit: Option<u64>) -> Rc<Cgroup> {
        let cgroup = Rc::new(Cgroup::new(limit));
        self.cgroups.push(Rc::clone(&cgroup));
        cgroup
    }

    /// A cgroup below `parent`, a cgroup of this case, without a limit of its own.
    pub(crate) fn child(&mut self, parent: &Cgroup) -> Rc<Cgroup> {
        let cgroup = Rc::new(parent.child("child"));
        self.children.push(Rc::clone(&cgroup));
        cgroup
    }

    /// Starts a victim that dies by itself, waits for its end, and returns its record.
    pub(crate) fn dies(&mut self, cgroup: Option<&Cgroup>, words: &[&str]) -> Value {
        let victim = Victim::start(cgroup, words);
        let pid = victim.pid();
        victim.wait_with_input_open();
        self.death_of(pid)
    }

    /// The record of the death of process `pid` in this case.
    pub(crate) fn death_of(&mut self, pid: u32) -> Value {
        self.death(&format!("process {pid}"), |death| death["tgid"] == pid)
    }

    /// The record of a death in this case that fits.
    pub(crate) fn death(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let begin_ns = self.begin_ns;
        let ours = |death: &Value| death["kernel_ns"].as_u64() >= Some(begin_ns) && fits(death);
        self.stage.watch().find(PATIENCE, ours).unwrap_or_else(|| panic!("the death of {what} was not reported"))
    }

    /// Runs a parent, of which `fact` says that it ended well; its pid, and the death of its child.
    pub(crate) fn parent_and_child(&mut self, way: &str, fact: &str) -> (u32, Vec<Value>) {
        let cgroup = self.cgroup(None);
        let parent = Victim::start(Some(&cgroup), &[way]);
        let pid = parent.pid();
        self.fact(fact, parent.wait().success(), true);
        let (parents, children): (Vec<_>, Vec<_>) =
            self.deaths_in(&cgroup, 2).into_iter().partition(|death| death["tgid"] == pid);
        for death in &parents {
            self.is_a(death, "clean_exit");
        }
        (pid, children)
    }

    /// All deaths in a cgroup, as many as there must be.
    pub(crate) fn deaths_in(&mut self, cgroup: &Cgroup, count: usize) -> Vec<Value> {
        let mut found: Vec<Value> = Vec::new();
        while found.len() < count {
            let known = |death: &Value| found.iter().any(|other| other["tgid"] == death["tgid"]);
            let what = format!("process {} of {count} in {}", found.len() + 1, cgroup.path);
            let next = self.death(&what, |death| death["cgroup"] == cgroup.path && !known(death));
            found.push(next);
        }
        found
    }

    /// The death that the case is about: a record without a fault, of the kind that the case expects.
    pub(crate) fn expected(&mut self, death: &Value) {
        self.expected += 1;
        let expect = self.expect;
        self.is_a(death, expect);
    }

    /// The death that the case is about, whose cause somebody else has to tell: a record without a fault.
    pub(crate) fn expected_of_another(&mut self, death: &Value) {
        self.expected += 1;
        self.is_sound(death);
    }

    /// A record without a fault, of this kind.
    pub(crate) fn is_a(&mut self, death: &Value, kind: &str) {
        self.has(death, "/cause/kind", kind);
        self.is_sound(death);
    }

    fn is_sound(&mut self, death: &Value) {
        self.checked.push((death["tgid"].clone(), death["start_ns"].clone()));
        let ns = |key: &str| death[key].as_u64();
        let (start, kernel, seen) = (ns("start_ns"), ns("kernel_ns"), ns("seen_ns"));
        let in_order = start.is_some() && start <= kernel && kernel <= seen;
        self.holds(death, "start_ns <= kernel_ns <= seen_ns", in_order);
        self.holds(death, "an exit code or a signal", death["exit_code"].is_null() != death["signal"].is_null());
        if let (Some(decided), Some(kernel)) = (ns("decided_ns"), kernel) {
            let took_ms = decided.saturating_sub(kernel) as f64 / 1e6;
            self.slowest_ms = Some(self.slowest_ms.map_or(took_ms, |slowest| slowest.max(took_ms)));
            self.holds(death, "kernel_ns <= decided_ns", kernel <= decided);
        }
    }

    /// The field at `path` (RFC 6901) has this value.
    pub(crate) fn has(&mut self, death: &Value, path: &str, value: impl Into<Value>) {
        let (is, must) = (death.pointer(path).unwrap_or(&Value::Null), value.into());
        if *is != must {
            self.wrong(format!("{path} is {is}, not {must}"), death);
        }
    }

    /// Something that must be true of a record.
    pub(crate) fn holds(&mut self, death: &Value, what: &str, is: bool) {
        if !is {
            self.wrong(format!("does not hold: {what}"), death);
        }
    }

    /// Something that must be true and is not a record's.
    pub(crate) fn fact<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, is: T, must: T) {
        if is != must {
            self.wrong.push(format!("{what}: {is:?}, not {must:?}"));
        }
    }

    fn wrong(&mut self, what: String, death: &Value) {
        // On standard error: the reason stays readable in a table.
        use std::io::Write as _;
        writeln!(std::io::stderr(), "{what}: {death}").expect("standard error is open");
        self.wrong.push(format!("{what} (process {}, {})", death["tgid"], death["comm"]));
    }

    /// The kernel's log has room: for cases that ask for what only the log says on some kernels.
    pub(crate) fn let_the_kernel_log_recover(&mut self) {
        self.stage.let_the_kernel_log_recover();
    }

    /// The Docker engine.
    pub(crate) fn engine(&mut self) -> &Engine {
        self.stage.engine()
    }

    /// What is wrong, and the slowest verdict in milliseconds.
    pub(crate) fn end(mut self) -> (Vec<String>, Option<f64>) {
        if self.expected == 0 {
            self.wrong.push("the death was not seen".to_owned());
        }
        self.compare_cgroups();
        let (seen, _) = self.stage.seen().expect("the watcher runs");
        for (tgid, start_ns) in &self.checked {
            let records = seen.iter().filter(|death| death["tgid"] == *tgid && death["start_ns"] == *start_ns).count();
            if records != 1 {
                self.wrong.push(format!("process {tgid} was reported {records} times"));
            }
        }
        (self.wrong, self.slowest_ms)
    }

    /// Each cgroup counts its own OOM kills.
    fn compare_cgroups(&mut self) {
        for cgroup in &self.cgroups {
            let Some(counted) = cgroup.oom_kills() else { continue };
            let (seen, _) = self.stage.seen().expect("the watcher runs");
            let is_inside = |path: &str| {
                path.strip_prefix(&cgroup.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let inside = |death: &&Value| death["cgroup"].as_str().is_some_and(is_inside);
            let kills: u64 = seen.iter().filter(inside).map(kernel_count).sum();
            if counted != kills {
                self.wrong.push(format!("{} counted {counted} OOM kills, seen were {kills}", cgroup.path));
            }
            self.stage.in_cgroups.0 += counted;
            self.stage.in_cgroups.1 += kills;
        }
    }
}

/// How often the kernel counts a death as an OOM kill.
pub(crate) fn kernel_count(death: &Value) -> u64 {
    death["cause"]["kernel_count"].as_u64().unwrap_or(0)
}
