//! What an agent leaves to the next one, and where that finds it: in the service manager's store, in a bpffs, or open in the same
//! process when it begins again.

use std::{env, path::Path, process::Command};

use anyhow::Result;

use crate::{
    host::{
        inherited::{self, Named, PINNED},
        manager::Manager,
    },
    kernel::{Kernel, Origin, Pins},
};

/// See the module.
pub(crate) struct Handover {
    manager: Manager,
    pins: Option<Pins>,
    /// Why there are no pins, though they are wanted.
    trouble: Option<String>,
}

impl Handover {
    /// Opens the directory of pins, if there shall be one; with what an earlier agent left there, unless this process has
    /// `inherited` that already.
    pub(crate) fn open(pin_dir: Option<&Path>, inherited: Vec<Named>) -> (Self, Vec<Named>) {
        let opened = pin_dir.map(Pins::open).transpose();
        let (pins, mut trouble) = match opened {
            Ok(pins) => (pins, None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        if let Some(before) = env::var_os(PINNED).filter(|before| pin_dir != Some(Path::new(before)))
            && let Ok(before) = Pins::open(Path::new(&before))
        {
            before.clear();
        }
        let left = match &pins {
            Some(pins) if inherited.is_empty() => pins.take().unwrap_or_else(|error| {
                trouble = Some(format!("{error:#}"));
                Vec::new()
            }),
            _ => inherited,
        };
        (Self { manager: Manager::from_env(), pins, trouble }, left)
    }

    /// Why nothing is left for the next agent, though it should be.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Leaves what keeps the programs running. What was taken over is where it was.
    ///
    /// # Errors
    /// When it cannot be copied or pinned.
    pub(crate) fn keep(&self, kernel: &Kernel, origin: &Origin) -> Result<()> {
        let descriptors = kernel.descriptors()?;
        if !matches!(origin, Origin::TakenOver) {
            self.manager.keep(&descriptors);
        }
        let Some(pins) = &self.pins else { return Ok(()) };
        let pinned = pins.names();
        for name in pinned.iter().filter(|name| !descriptors.iter().any(|(known, _)| known == *name)) {
            pins.remove(name);
        }
        let is_there = |name: &String| matches!(origin, Origin::TakenOver) && pinned.contains(name);
        descriptors.iter().filter(|(name, _)| !is_there(name)).try_for_each(|named| pins.keep(named))
    }

    /// Leaves one that is new, in the place of the one of its name.
    ///
    /// # Errors
    /// When it cannot be pinned.
    pub(crate) fn renew(&self, named: Named) -> Result<()> {
        let pinned = self.pins.as_ref().map_or(Ok(()), |pins| pins.keep(&named));
        self.manager.keep(&[named]);
        pinned
    }

    /// Whether all that should be pinned is.
    pub(crate) fn is_whole(&self, kernel: &Kernel) -> bool {
        let Some(pins) = &self.pins else { return true };
        let pinned = pins.names();
        kernel.descriptor_names().iter().all(|name| pinned.contains(name))
    }

    /// For a clean end: nothing shall run on. What the service manager keeps, it closes itself when it will not start the agent
    /// again.
    pub(crate) fn end(&self) {
        if let Some(pins) = &self.pins {
            pins.clear();
        }
    }

    /// Has the same process, as `command`, inherit it.
    ///
    /// # Errors
    /// When it cannot be kept open.
    pub(crate) fn leave(command: &mut Command, descriptors: &[Named], pin_dir: Option<&Path>) -> Result<()> {
        match pin_dir {
            Some(directory) => command.env(PINNED, directory),
            None => command.env_remove(PINNED),
        };
        inherited::leave(command, descriptors)
    }
}
