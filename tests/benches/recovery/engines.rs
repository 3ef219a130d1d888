//! A Docker of the bench's own, with Defib beside it or without.

use serde_json::Value;
use tests::{
    defib::Agent,
    engine::{Engine, Kind},
    eventually,
};

use super::{Keeper, config};

const NAME: &str = "defib-bench";

struct Docker {
    agent: Option<Agent>,
    engine: Engine,
}

pub(super) fn start(port: u16, policy: &str, with_defib: bool) -> Result<Box<dyn Keeper>, String> {
    if let Some(what) = Kind::Docker.missing() {
        return Err(what.to_owned());
    }
    let engine = Engine::start(Kind::Docker);
    let (variable, host) = engine.variable();
    let rules = config(&format!("container = \"{NAME}\""));
    let agent = with_defib.then(|| Agent::start_among(&[(variable, &host)], &rules));
    // The host's network, as one of its own would need rights that not every machine gives.
    engine.run(&[
        "run",
        "-d",
        "--name",
        NAME,
        "--network",
        "host",
        "--restart",
        policy,
        "--volume",
        "/bin/busybox:/bin/httpd:ro",
        "busybox",
        "/bin/httpd",
        "-f",
        "-p",
        &format!("127.0.0.1:{port}"),
        "-h",
        "/",
    ]);
    if let Some(agent) = &agent {
        let up = format!("defib_service_up{{service=\"{NAME}\"}}");
        eventually("the container to be looked after", || (agent.metrics().get(&up) == Some(1.0)).then_some(()));
    }
    Ok(Box::new(Docker { agent, engine }))
}

impl Keeper for Docker {
    fn main(&self) -> Option<u32> {
        self.engine.run(&["inspect", "-f", "{{.State.Pid}}", NAME]).parse().ok().filter(|&pid| pid != 0)
    }

    fn incidents(&self) -> Vec<Value> {
        self.agent.as_ref().map(|agent| agent.incidents(NAME)).unwrap_or_default()
    }
}
