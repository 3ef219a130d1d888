//! Asks those who may know more about a death: systemd about the unit, whoever keeps its output about its last words.
//!
//! Nothing here decides: an answer that does not come in time, or says nothing, leaves the verdict to the rest of the
//! evidence.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    attribution::{Origin, Place},
    diagnosis::{Question, Reply},
    host::{
        last_words::{self, Source},
        systemd::{Meaning, Systemd},
    },
};

/// The verdict has been given long before.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module. Cheap to clone; the clones share one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Enquiry {
    systemd: Arc<Mutex<Option<Systemd>>>,
}

impl Enquiry {
    /// Connects to systemd now, so that the first question is not a slow one. Hosts without systemd are no error.
    pub(crate) async fn prepare(&self) {
        if let Ok(systemd) = Systemd::connect().await {
            *self.systemd.lock().await = Some(systemd);
        }
    }

    /// Asks; `output` is the file that the agent itself keeps of the service, if it does.
    pub(crate) async fn ask(&self, question: Question, output: Option<PathBuf>) -> Reply {
        match question {
            Question::Systemd { unit } => Reply::Systemd(in_time(self.meaning(&unit)).await),
            Question::LastWords { place, tgid } => Reply::LastWords(in_time(words(&place, tgid, output)).await),
        }
    }

    async fn meaning(&self, unit: &str) -> Result<Meaning> {
        let systemd = {
            let mut shared = self.systemd.lock().await;
            match &*shared {
                Some(systemd) => systemd.clone(),
                None => shared.insert(Systemd::connect().await?).clone(),
            }
        };
        match systemd.view(unit).await {
            Ok(view) => Ok(view.with_context(|| format!("{unit} is not known (any more)"))?.meaning()),
            Err(error) => {
                // The next one connects again.
                *self.systemd.lock().await = None;
                Err(error)
            }
        }
    }
}

async fn words(place: &Place, tgid: u32, output: Option<PathBuf>) -> Result<Option<String>> {
    let source = match (output, &*place.origin) {
        (Some(output), _) => Source::File(output),
        (None, Origin::Unit(unit)) => Source::Journal { unit: unit.clone(), tgid },
        (None, Origin::Container { engine, id }) => Source::Container { engine, id: id.clone() },
        (None, Origin::Cgroup(_)) => anyhow::bail!("nobody keeps what it writes"),
    };
    let text = last_words::read(&source).await?;
    Ok(last_words::out_of_memory(&text).map(str::to_owned))
}

async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> Result<T, String> {
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
