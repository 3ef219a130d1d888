//! Asks others about a death: systemd about the unit; journal, engine or output file about the last words.
//!
//! Nothing here decides. Without an answer in time the verdict rests on the other evidence.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use tokio::time::timeout;

use crate::{
    attribution::{Origin, Place},
    diagnosis::{Question, Reply},
    host::{
        last_words::{self, Source},
        systemd::{Meaning, Systemd},
    },
    questions::Kind,
};

/// The verdict has been given long before.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Enquiry {
    systemd: Systemd,
}

impl Enquiry {
    /// One that asks this systemd.
    pub(crate) fn new(systemd: Systemd) -> Self {
        Self { systemd }
    }

    /// Connects to systemd now, so that the first question is not a slow one. Hosts without systemd are no error.
    pub(crate) async fn prepare(&self) {
        self.systemd.connect().await.ok();
    }

    /// Asks; `output` is the file in which the agent keeps the service's output, if it does. `turn` is dropped when no
    /// work on the answer is left.
    pub(crate) async fn ask(&self, question: Question, output: Option<PathBuf>, turn: impl Send + 'static) -> Reply {
        match question {
            Question::Systemd { unit } => {
                let reply = Reply::Systemd(in_time(self.meaning(&unit)).await);
                drop(turn);
                reply
            }
            Question::LastWords { place, tgid } => Reply::LastWords(in_time(words(&place, tgid, output, turn)).await),
        }
    }

    async fn meaning(&self, unit: &str) -> Result<Meaning> {
        Ok(self.systemd.view(unit).await?.map_or(Meaning::Forgotten, |view| view.meaning()))
    }
}

/// The kind of question; `None` when the service's output is kept nowhere. `output` as for [`Enquiry::ask`].
pub(crate) fn kind(question: &Question, output: Option<&PathBuf>) -> Option<Kind> {
    match question {
        Question::Systemd { .. } => Some(Kind::Systemd),
        Question::LastWords { .. } if output.is_some() => Some(Kind::Output),
        Question::LastWords { place, .. } => match &*place.origin {
            Origin::Unit(_) => Some(Kind::Journal),
            Origin::Container { .. } => Some(Kind::Engine),
            Origin::Cgroup => None,
        },
    }
}

async fn words(place: &Place, tgid: u32, output: Option<PathBuf>, turn: impl Send + 'static) -> Result<Option<String>> {
    let source = match (output, &*place.origin) {
        (Some(output), _) => Source::File(output),
        (None, Origin::Unit(unit)) => Source::Journal { unit: unit.clone(), tgid },
        (None, Origin::Container { engine, id }) => Source::Container { engine, id: id.clone() },
        (None, Origin::Cgroup) => anyhow::bail!("nobody keeps what it writes"),
    };
    let text = last_words::read(&source, turn).await?;
    Ok(last_words::out_of_memory(&text).map(str::to_owned))
}

async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> Result<T, String> {
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
