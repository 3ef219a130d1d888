//! `defib fleet`: who is out by plan, and a slot for maintenance by hand. Asks etcd itself; no agent needs to run.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use anyhow::{Result, bail, ensure};
use clap::Subcommand;
use jiff::Timestamp;
use prometheus::Registry;
use serde::Serialize;
use tokio::time::sleep;

use super::{asked_to_stop, config_arg, output};
use crate::{
    config::{Config, Target},
    fleet::{self, Fleet, FleetMetrics, Permit, Refused, Taken},
    host::clock,
    text::Clean,
};

/// Arguments of `fleet`.
#[derive(clap::Args)]
// Its group would be called as that of the arguments within, which a debug build refuses.
#[group(skip)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: config_arg::Args,
    /// JSON, for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Takes a slot of a pool and keeps it until Ctrl-C: one of its members is yours to work on
    Hold(Hold),
}

#[derive(clap::Args)]
struct Hold {
    /// The pool, as 'defib fleet' names it: the backend, or the service's own name
    pool: String,
    /// Give it back after this time: 10m, 2h; without it, at Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// What for; others see it
    #[arg(long, value_name = "TEXT", default_value = "by hand")]
    reason: String,
    /// While too many are out, wait for a slot instead of failing
    #[arg(long)]
    wait: bool,
}

/// A pool, in JSON.
#[derive(Debug, Serialize)]
struct Pool {
    pool: String,
    /// How many may be out by plan at once, as this host's configuration has it.
    max_unavailable: u32,
    holders: Vec<Out>,
}

#[derive(Debug, Serialize)]
struct Out {
    slot: Option<u32>,
    host: Option<String>,
    service: Option<String>,
    since: Option<Timestamp>,
    /// As etcdctl has it: `etcdctl lease revoke` frees the slot.
    lease: Option<String>,
    expires_in_seconds: Option<u64>,
}

pub(super) async fn run(args: Args) -> Result<()> {
    let config = args.config.load()?;
    ensure!(!config.fleet.etcd.is_empty(), "no fleet is configured; name the members of etcd in [fleet] etcd");
    let metrics = FleetMetrics::new(&Registry::new(), &config.fleet.etcd, [])?;
    let fleet = Fleet::new(&config.fleet, metrics);
    match args.command {
        None => list(&config, &fleet, args.json).await,
        Some(Command::Hold(hold)) => hold.run(&fleet, args.json).await,
    }
}

async fn list(config: &Config, fleet: &Fleet, json: bool) -> Result<()> {
    let taken = match fleet.list().await {
        Ok(taken) => taken,
        Err(why) => bail!("{why}"),
    };
    let pools = pools(config, taken);
    if json {
        return output::json(&pools);
    }
    output::line(format_args!("{:<28} {:>3} {:>3}  OUT BY PLAN", "POOL", "OUT", "MAY"))?;
    for Pool { pool, max_unavailable, holders } in &pools {
        let out = |out: &Out| {
            let name = |name: &Option<String>| Clean(name.as_deref().unwrap_or("?")).to_string();
            let since = out.since.map_or_else(String::new, |since| format!(" since {since:.0}"));
            let left = out.expires_in_seconds.map_or_else(String::new, |left| format!(", for {left} s if not renewed"));
            let lease = match &out.lease {
                Some(lease) => format!("lease {lease}{left}"),
                None => "until its key is deleted".to_owned(),
            };
            format!("{} on {}{since} ({lease})", name(&out.service), name(&out.host))
        };
        let outs: Vec<_> = holders.iter().map(out).collect();
        output::line(format_args!(
            "{:<28} {:>3} {max_unavailable:>3}  {}",
            output::tail(&Clean(pool).to_string(), 28),
            holders.len(),
            if outs.is_empty() { "-".to_owned() } else { outs.join("; ") },
        ))?;
    }
    Ok(())
}

/// The pools that this host's services are in, as far as the configuration names them, and all others with somebody out.
fn pools(config: &Config, taken: Vec<Taken>) -> Vec<Pool> {
    let mut pools: BTreeMap<String, Vec<Out>> = BTreeMap::new();
    for service in config.services() {
        let own = match &service.target {
            Target::Command { name, .. } => Some(name.as_str()),
            Target::Unit(_) | Target::Container(_) => None,
        };
        // What units and containers a pattern matches is known where they run.
        let pool = fleet::pool_of(service.pool.as_ref(), own.unwrap_or_default());
        if !pool.is_empty() {
            pools.entry(pool.to_owned()).or_default();
        }
    }
    for Taken { pool, slot, holder, lease, expires_in_seconds } in taken {
        let (host, service, since) = match holder {
            Some(holder) => (Some(holder.host), Some(holder.service), Some(holder.since)),
            None => (None, None, None),
        };
        pools.entry(pool).or_default().push(Out { slot, host, service, since, lease, expires_in_seconds });
    }
    let max_unavailable = config.fleet.max_unavailable;
    pools.into_iter().map(|(pool, holders)| Pool { pool, max_unavailable, holders }).collect()
}

impl Hold {
    async fn run(self, fleet: &Fleet, json: bool) -> Result<()> {
        let mut stop = pin!(asked_to_stop()?);
        let permit = tokio::select! {
            permit = self.permit(fleet) => permit?,
            () = &mut stop => return Ok(()),
        };
        self.say(&permit, "held", json)?;
        let time = async {
            match self.time {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let lost = tokio::select! {
            () = &mut stop => false,
            () = time => false,
            () = permit.lost() => true,
        };
        if lost || !permit.is_valid(clock::boot_ns()) {
            bail!("the slot of {} is lost: etcd has not confirmed it in time; others may begin", Clean(&self.pool));
        }
        self.say(&permit, "given_back", json)?;
        if let Err(why) = permit.release().await {
            bail!("{why}; the slot is free when its lease has run out");
        }
        Ok(())
    }

    async fn permit(&self, fleet: &Fleet) -> Result<Permit> {
        loop {
            match fleet.acquire(&self.pool, &self.reason).await {
                Ok(permit) => return Ok(permit),
                Err(Refused { again_in, .. }) if self.wait => sleep(again_in).await,
                Err(refused) => bail!("no slot of {}: {refused}", Clean(&self.pool)),
            }
        }
    }

    fn say(&self, permit: &Permit, what: &str, json: bool) -> Result<()> {
        let (pool, slot) = (&self.pool, permit.slot().unwrap_or(0));
        if json {
            return output::json(&serde_json::json!({
                "time": Timestamp::now(), "pool": pool, "slot": slot, "state": what
            }));
        }
        let pool = Clean(pool);
        match (what, self.time) {
            ("held", Some(time)) => {
                output::line(format_args!("slot {slot} of {pool} is yours for {}", humantime::format_duration(time)))
            }
            ("held", None) => output::line(format_args!("slot {slot} of {pool} is yours until Ctrl-C")),
            _ => output::line(format_args!("slot {slot} of {pool} is given back")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn pools_are_those_of_the_configuration_and_those_with_somebody_out() {
        let text = "[[service]]\nunit = 'web@*.service'\npool = 'be_web/web1'\n\
            [[service]]\nname = 'batch'\ncommand = { start = ['/bin/true'], cgroup = '/batch' }\n\
            [[service]]\nunit = 'other-*.service'\n";
        let config = Config::parse(Path::new("x"), text).expect("valid");
        let taken = Taken {
            pool: "be_api".to_owned(),
            slot: Some(0),
            holder: None,
            lease: Some("1f".to_owned()),
            expires_in_seconds: Some(9),
        };
        let pools = pools(&config, vec![taken]);
        let short: Vec<_> = pools.iter().map(|pool| (pool.pool.as_str(), pool.holders.len())).collect();
        assert_eq!(short, [("batch", 0), ("be_api", 1), ("be_web", 0)]);
    }
}
