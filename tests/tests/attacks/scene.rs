//! An agent within the packaged unit's limits, and honest services beside it.

use std::{
    collections::BTreeMap,
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{PATIENCE, cage::Cage, cgroup::Cgroup, defib::Agent, eventually, ordered::Ordered, victim::Victim};

/// Most resident memory of an agent under any attack, bytes.
pub(crate) const RESIDENT_MAX: u64 = 48 << 20;
/// Grace of honest services: time in which others may restart them.
pub(crate) const GRACE: Duration = Duration::from_millis(200);
/// Budgets that honest services never use up, and short back-offs.
const DEFAULTS: &str = "[defaults]\nbackoff = { initial = '10ms', max = '20ms' }\n\
                        budget = { per_service = '1000/1s', per_host = '1000/1s' }\n";
/// Memory limit of honest services, bytes.
const LIMIT: u64 = 32 << 20;
/// Ends of honest services: the victim's arguments, and the cause to be reported.
pub(crate) const ENDS: [(&str, &str); 5] =
    [("leak", "oom_kill"), ("segv", "crash"), ("exit 3", "exit"), ("abort", "crash"), ("leak", "oom_kill")];

/// An agent and honest services. The last field is dropped last.
pub(crate) struct Scene {
    pub(crate) agent: Agent,
    pub(crate) honest: Vec<Ordered>,
    /// Cgroup in which processes of no service run out of memory.
    pub(crate) limited: Cgroup,
    pub(crate) cage: Cage,
    /// Causes expected of each honest service so far; then the number of OOM kills of others.
    told: Vec<Vec<&'static str>>,
    others: u64,
}

impl Scene {
    /// With `honest` services, the first of them in the pool `web`, and with more sections of configuration.
    pub(crate) fn new(honest: usize, sections: &str) -> Self {
        Self::among(honest, &[], sections)
    }

    /// The same with environment variables for the agent.
    pub(crate) fn among(honest: usize, variables: &[(&str, &str)], sections: &str) -> Self {
        let (cage, limited) = (Cage::new(), Cgroup::new(Some(8 << 20)));
        let honest: Vec<_> = (0..honest).map(|number| Ordered::new(format!("honest-{number}"), LIMIT)).collect();
        let grace = format!("grace = '{}ms'", GRACE.as_millis());
        let pool = |number| if number == 0 { "\npool = 'web'" } else { "" };
        let services = honest.iter().enumerate();
        let services: String =
            services.map(|(number, service)| service.config(&(grace.clone() + pool(number)))).collect();
        let victims = format!(
            "[[service]]\nname = 'victims'\ncommand = {{ start = ['/bin/false'], cgroup = '{}' }}\n",
            limited.path
        );
        let config = format!("{DEFAULTS}{services}{victims}{sections}");
        let agent = Agent::start_caged(&cage, variables, &config);
        let told = vec![Vec::new(); honest.len()];
        let scene = Self { agent, honest, limited, cage, told, others: 0 };
        for number in 0..scene.honest.len() {
            scene.settled(number);
        }
        scene.forget_the_peak();
        scene
    }

    /// Waits until an honest service is up and its outage over, and was started once for each of its ends.
    pub(crate) fn settled(&self, number: usize) {
        let service = &self.honest[number];
        let starts = self.told[number].len() as u64 + 1;
        eventually(&format!("{} to be back", service.name), || {
            self.lives();
            let metrics = self.agent.metrics();
            let series = |name| metrics.get(&format!("{name}{{service=\"{}\"}}", service.name));
            let is_well = (series("defib_service_up"), series("defib_incidents_open")) == (Some(1.0), Some(0.0));
            (is_well && service.started() == starts).then_some(())
        });
    }

    /// Resets the peak of resident memory, so that the start does not count.
    fn forget_the_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.agent.pid()), "5").expect("the peak can be set back");
    }

    /// Most resident memory since it was ready, bytes.
    pub(crate) fn resident_peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.agent.pid())).expect("the agent lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it has memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// Orders an honest service to die that way; returns the time until it was started again.
    pub(crate) fn kill(&mut self, number: usize, (end, cause): (&'static str, &'static str)) -> Duration {
        let service = &self.honest[number];
        eventually("the service to listen", || service.order(end).then_some(()));
        let begin = Instant::now();
        self.told[number].push(cause);
        let starts = self.told[number].len() as u64 + 1;
        eventually("it to be started again", || {
            self.lives();
            (service.started() == starts).then_some(())
        });
        begin.elapsed()
    }

    /// Asserts that the agent lives: a killed process has no `exe`.
    pub(crate) fn lives(&self) {
        let program = fs::read_link(format!("/proc/{}/exe", self.agent.pid()));
        assert!(program.is_ok(), "the agent has gone; {} OOM kills by its own limit", self.cage.oom_kills());
    }

    /// A process that belongs to no honest service runs out of memory.
    pub(crate) fn kill_another(&mut self) {
        assert!(!Victim::start(Some(&self.limited), &["leak"]).wait().success());
        self.others += 1;
    }

    /// Lets every honest service die of every cause and come back, while others run out of memory; then
    /// [`Self::judge`].
    pub(crate) fn go_through_all(&mut self) {
        for end in ENDS {
            for number in 0..self.honest.len() {
                self.settled(number);
                let back = self.kill(number, end);
                println!("{} back after {} ms from `{}`", self.honest[number].name, back.as_millis(), end.0);
            }
            self.kill_another();
        }
        for number in 0..self.honest.len() {
            self.settled(number);
        }
        self.judge();
    }

    /// Asserts that the agent never restarted, stayed within its bounds, and reported every death once with the right
    /// cause.
    pub(crate) fn judge(&self) {
        self.lives();
        assert!(!self.agent.log().contains("panicked"), "{}", self.agent.log());
        assert_eq!(self.cage.oom_kills(), 0, "the agent met its own limit");
        for (service, told) in self.honest.iter().zip(&self.told) {
            let incidents = self.incidents(service, told.len() + 1);
            let causes: Vec<_> = incidents.iter().skip(1).map(|incident| incident["cause"]["kind"].clone()).collect();
            assert_eq!(causes, *told, "{}: {incidents:?}", service.name);
            // The first incident is that it was not running at the start.
            let restarts: u64 = incidents.iter().filter_map(|incident| incident["restarts"].as_u64()).sum();
            assert_eq!(restarts, told.len() as u64 + 1, "{}", service.name);
        }
        let metrics = eventually("the OOM kills of others", || {
            let metrics = self.agent.metrics();
            (oom_kills(&metrics.0, "victims") >= self.others as f64).then_some(metrics)
        });
        assert_eq!(oom_kills(&metrics.0, "victims"), self.others as f64, "each once");
        for (service, told) in self.honest.iter().zip(&self.told) {
            let want = told.iter().filter(|cause| **cause == "oom_kill").count() as f64;
            assert_eq!(oom_kills(&metrics.0, &service.name), want, "{}", service.name);
        }
        assert_eq!(metrics.get("defib_events_lost_total{ring=\"critical\"}"), Some(0.0));
        let peak = self.resident_peak();
        println!("resident memory {:.1} MiB at most", peak as f64 / f64::from(1 << 20));
        assert!(peak <= RESIDENT_MAX, "resident memory {peak} bytes at most");
    }

    /// The incidents of an honest service, once there are `count` and the last is over.
    fn incidents(&self, service: &Ordered, count: usize) -> Vec<Value> {
        let begin = Instant::now();
        loop {
            let incidents = self.agent.incidents(&service.name);
            let is_over = incidents.last().is_some_and(|incident| incident["ended"].is_string());
            if incidents.len() >= count && is_over || begin.elapsed() > PATIENCE {
                return incidents;
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// All values of the label `service` in its metrics, with their number of series.
    pub(crate) fn labels(&self) -> BTreeMap<String, usize> {
        let mut labels = BTreeMap::new();
        for line in self.agent.metrics().0.lines() {
            let label = line.split("service=\"").nth(1).and_then(|rest| rest.split('"').next());
            if let Some(label) = label {
                *labels.entry(label.to_owned()).or_default() += 1;
            }
        }
        labels
    }
}

/// OOM kills reported of a service, in all scopes.
fn oom_kills(metrics: &str, service: &str) -> f64 {
    let own =
        |line: &&str| line.starts_with("defib_oom_kills_total{") && line.contains(&format!("service=\"{service}\""));
    metrics.lines().filter(own).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Configuration of a command service whose program attacks: it starts as root in the service's cgroup and becomes
/// another user.
pub(crate) fn attacking(name: &str, cgroup: &str, settings: &str, words: &[&str]) -> String {
    let program = tests::victim::binary("attacker").display().to_string();
    let outside: Vec<_> = tests::cage::outside().iter().map(|path| path.display().to_string()).collect();
    let mut start = vec![program.as_str()];
    for outside in &outside {
        start.extend(["--enter", outside]);
    }
    start.extend(words);
    format!(
        "[[service]]\nname = '{name}'\nrestart = true\ngrace = '0s'\n{settings}\n\
         command = {{ start = {start:?}, cgroup = '{}' }}\n",
        cgroup
    )
}

/// True for a service with a name of the attacker's cgroups: `a12.service`, with or without a manager's name before it.
pub(crate) fn is_numbered_unit(name: &str) -> bool {
    // A plain cgroup is named by its path, which claims nothing.
    let unit = if name.starts_with('/') { None } else { name.rsplit('/').next() };
    let number = unit.and_then(|unit| unit.strip_prefix('a')?.strip_suffix(".service"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}
