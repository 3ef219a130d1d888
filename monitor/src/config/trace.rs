//! `trace` of `[defaults]` and of a `[[service]]`.

use serde::Deserialize;

/// Whether the agent has a service traced by itself: where does its memory grow? It costs the service processor time, so nobody's
/// is traced unasked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Trace {
    /// Only when somebody says so.
    #[default]
    Off,
    /// When it is said to leak.
    Suspects,
}
