//! From a process to the service it belongs to, and to its role there.
//!
//! * [`origin`]: what a cgroup's path says (pure)
//! * [`table`]: cgroup id → path and service, kept over a cgroup's removal until late records have passed

mod origin;
mod table;

use serde::Serialize;

pub(crate) use origin::Origin;
pub(crate) use table::{Place, Table};

use std::{future::Future, sync::Arc};

use crate::host::containers;

/// A container's cgroup and the question after its name; `None` for what needs none.
pub(crate) fn ask_name(place: &Place) -> Option<impl Future<Output = Option<(Arc<str>, Arc<str>)>> + Send + use<>> {
    let Origin::Container { engine, id } = (*place.origin).clone() else { return None };
    // A nested cgroup has the name of its container.
    place.origin.container_root(&place.path).filter(|&root| root == &*place.path)?;
    let root = Arc::clone(&place.path);
    Some(async move {
        match containers::name(engine, &id).await {
            Ok(name) => name.map(|name| (root, name.into())),
            Err(error) => {
                tracing::warn!("the name of a container is not known: {error:#}");
                None
            }
        }
    })
}

/// What a process is to its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Its parent lives outside the service: the supervisor started it.
    Main,
    /// Its parent is in the service.
    Worker,
}
