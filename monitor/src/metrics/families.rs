//! What is told of each service: names, help and labels.

use crate::{
    diagnosis::{Cause, Scope},
    healing::{Action, renewal::Renewal},
    memory::forecast::Verdict,
    pool::State,
};

/// What a scrape knows of a service. Each has a family, and those with a label one series for each of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Of {
    OomKills,
    Deaths,
    Up,
    LastDeath,
    Restarts,
    Suppressed,
    IncidentsOpen,
    CircuitOpen,
    Paused,
    Covered,
    Memory,
    MemoryLimit,
    Growth,
    OomEta,
    Leak,
    PoolState,
    PoolMoves,
    PoolKept,
    Renewals,
}

impl Of {
    /// Its values are 0 and 1.
    pub(super) fn is_flag(self) -> bool {
        matches!(
            self,
            Self::Up
                | Self::IncidentsOpen
                | Self::CircuitOpen
                | Self::Paused
                | Self::Covered
                | Self::Leak
                | Self::PoolState
        )
    }
}

/// Whose series exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Everybody's.
    All,
    /// Those of services that Defib looks after.
    Managed,
    /// Likewise, from when their value is known.
    Known,
}

pub(super) struct Family {
    pub(super) of: Of,
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: &'static str,
    pub(super) whose: Whose,
    /// A label beside `service`, and all of its values.
    pub(super) label: Option<(&'static str, Vec<&'static str>)>,
}

/// One for each [`Of`].
pub(super) fn families() -> Vec<Family> {
    use Whose::{All, Known, Managed};
    let counter = |of, name, whose, help| Family { of, name, help, kind: "counter", whose, label: None };
    let gauge = |of, name, whose, help| Family { of, name, help, kind: "gauge", whose, label: None };
    let labelled = |family: Family, label, values: Vec<&'static str>| Family { label: Some((label, values)), ..family };
    vec![
        labelled(
            counter(
                Of::OomKills,
                "defib_oom_kills_total",
                All,
                "Processes killed by the kernel for want of memory; goes on over restarts of the agent.",
            ),
            "scope",
            Scope::LABELS.to_vec(),
        ),
        labelled(
            counter(Of::Deaths, "defib_deaths_total", All, "Deaths with their cause."),
            "cause",
            Cause::KINDS.to_vec(),
        ),
        gauge(Of::Up, "defib_service_up", Managed, "1 while the service lives, 0 while it does not."),
        gauge(
            Of::LastDeath,
            "defib_service_last_death_timestamp_seconds",
            Managed,
            "Last death of the service, Unix time; 0: none.",
        ),
        labelled(
            counter(Of::Restarts, "defib_restarts_total", Managed, "Restarts by Defib."),
            "result",
            vec!["ok", "failed"],
        ),
        labelled(
            counter(Of::Suppressed, "defib_restart_suppressed_total", Managed, "Restarts that Defib decided against."),
            "reason",
            Action::SUPPRESSED.to_vec(),
        ),
        gauge(Of::IncidentsOpen, "defib_incidents_open", Managed, "Outages that are not over."),
        gauge(
            Of::CircuitOpen,
            "defib_circuit_open",
            Managed,
            "1 while restarts are only tried now and then, because the budget is spent.",
        ),
        gauge(
            Of::Paused,
            "defib_service_paused",
            Managed,
            "1 while operators want no restarts and no alerts (see defib pause).",
        ),
        gauge(
            Of::Covered,
            "defib_unit_oom_restart_covered",
            Known,
            "1 when systemd would bring the unit back after an OOM kill, 0 when it would stay dead (see defib audit).",
        ),
        gauge(
            Of::Memory,
            "defib_service_memory_bytes",
            Managed,
            "Memory of the service that no reclaim frees, swap included.",
        ),
        gauge(
            Of::MemoryLimit,
            "defib_service_memory_limit_bytes",
            Managed,
            "The least memory limit above the service; 0: none.",
        ),
        gauge(
            Of::Growth,
            "defib_service_memory_growth_bytes_per_hour",
            Known,
            "Growth of its memory with uptime, over all its incarnations.",
        ),
        gauge(
            Of::OomEta,
            "defib_service_oom_eta_seconds",
            Known,
            "Time until its memory runs out if it is not restarted; +Inf: not foreseen.",
        ),
        labelled(
            gauge(
                Of::Leak,
                "defib_service_leak",
                Known,
                "1 for what holds of its memory: leak, masked_leak (only restarts keep it alive), steady, insufficient (too little was seen).",
            ),
            "verdict",
            Verdict::ALL.map(Verdict::as_str).to_vec(),
        ),
        labelled(
            gauge(
                Of::PoolState,
                "defib_pool_state",
                Managed,
                "1 for where the service stands in its pool: in, draining, out.",
            ),
            "state",
            State::ALL.map(State::as_str).to_vec(),
        ),
        labelled(
            counter(Of::PoolMoves, "defib_pool_moves_total", Managed, "Moves of the service in its pool, by where to."),
            "state",
            State::ALL.map(State::as_str).to_vec(),
        ),
        counter(
            Of::PoolKept,
            "defib_pool_kept_total",
            Managed,
            "Times that the service should have drained and was the last that could serve.",
        ),
        labelled(
            counter(
                Of::Renewals,
                "defib_planned_restarts_total",
                Managed,
                "Restarts ahead of time by Defib: ok, failed (what comes next are restarts), called_off before the end was asked for.",
            ),
            "result",
            Renewal::ALL.map(Renewal::as_str).to_vec(),
        ),
    ]
}
