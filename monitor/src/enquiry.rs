//! Asks those who may know more about a death: systemd about the unit, whoever keeps its output about its last words.
//!
//! Nothing here decides: an answer that does not come in time, or says nothing, leaves the verdict to the rest of the
//! evidence.

use std::path::PathBuf;

use crate::diagnosis::{Question, Reply};

/// See the module. Cheap to clone; the clones share one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Enquiry {}

impl Enquiry {
    /// Asks; `output` is the file that the agent itself keeps of the service, if it does.
    pub(crate) async fn ask(&self, question: Question, output: Option<PathBuf>) -> Reply {
        drop(output);
        match question {
            Question::Systemd { .. } => Reply::Systemd(Err("stub".to_owned())),
            Question::LastWords { .. } => Reply::LastWords(Err("stub".to_owned())),
        }
    }
}
