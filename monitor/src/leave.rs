//! Leave to restart a service ahead of time: asked for before anything is done, given back when it is over. On one host it
//! is always given; whoever lets only so many of a fleet go at once puts an [`Office`] of its own in the place of [`Always`].

use std::{any::Any, fmt, future::ready, pin::Pin, sync::Arc};

/// Leave that was given; dropped, it is given back.
pub(crate) type Leave = Box<dyn Any + Send>;

/// The answer on its way, as long as it takes; why not. Whoever does not want it any more drops it.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Leave, String>> + Send>>;

/// Gives leave.
pub(crate) trait Office: fmt::Debug + Send + Sync {
    /// May this service go now?
    fn ask(&self, service: &Arc<str>) -> Answer;
}

/// Nobody else has to be asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Always;

impl Office for Always {
    fn ask(&self, _: &Arc<str>) -> Answer {
        Box::pin(ready(Ok(Box::new(()) as Leave)))
    }
}
