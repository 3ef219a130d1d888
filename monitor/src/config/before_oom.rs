//! `before_oom` of `[defaults]` and of a `[[service]]`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error as _};

use super::values::duration;

/// What stands for something in an argument.
const PLACEHOLDERS: [&str; 3] = ["{pid}", "{dir}", "{service}"];
/// Bytes that may be kept.
const LEAST: u64 = 64 << 10;
const MOST: u64 = 1 << 40;

/// What is looked at before memory is out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BeforeOom {
    /// Whether pictures of its memory are taken at all.
    pub(crate) picture: bool,
    /// Program and arguments; without any, none is run.
    pub(crate) command: Vec<String>,
    /// It may take so long.
    pub(crate) timeout: Duration,
    /// The forecast says that memory may run out within this; there is no newer picture of the incarnation than that.
    pub(crate) within: Duration,
    /// Bytes that the command may leave for all incarnations of a service.
    pub(crate) keep: u64,
}

impl Default for BeforeOom {
    fn default() -> Self {
        Self {
            picture: true,
            command: Vec::new(),
            timeout: Duration::from_secs(30),
            within: Duration::from_secs(600),
            keep: 1 << 30,
        }
    }
}

/// What is said of it in one place; the rest comes from `[defaults]`, then from the built-in values.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    picture: Option<bool>,
    #[serde(deserialize_with = "command")]
    command: Option<Vec<String>>,
    #[serde(deserialize_with = "timeout")]
    timeout: Option<Duration>,
    #[serde(deserialize_with = "within")]
    within: Option<Duration>,
    #[serde(deserialize_with = "size")]
    keep: Option<u64>,
}

impl Raw {
    pub(super) fn over(&self, base: BeforeOom) -> BeforeOom {
        BeforeOom {
            picture: self.picture.unwrap_or(base.picture),
            command: self.command.clone().unwrap_or(base.command),
            timeout: self.timeout.unwrap_or(base.timeout),
            within: self.within.unwrap_or(base.within),
            keep: self.keep.unwrap_or(base.keep),
        }
    }
}

/// None is one too: a service need not have that of `[defaults]`.
fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let words = Vec::<String>::deserialize(deserializer)?;
    if let Some(program) = words.first().filter(|program| !program.starts_with('/') || program.contains(['{', '}'])) {
        return Err(D::Error::custom(format!(
            "{program:?} is no absolute path; the program is run without a shell, and is the same for all"
        )));
    }
    for word in words.iter().skip(1) {
        let rest = PLACEHOLDERS.iter().fold(word.clone(), |rest, placeholder| rest.replace(placeholder, ""));
        if rest.contains(['{', '}']) {
            return Err(D::Error::custom(format!(
                "{word:?} has an unknown placeholder; allowed are {}",
                PLACEHOLDERS.join(", ")
            )));
        }
    }
    Ok(Some(words))
}

fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let time = duration(deserializer)?;
    if (Duration::from_secs(1)..=Duration::from_secs(600)).contains(&time) {
        Ok(Some(time))
    } else {
        Err(D::Error::custom(format!("{time:?} is out of range; allowed is 1s to 10m")))
    }
}

fn within<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let time = duration(deserializer)?;
    if (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&time) {
        Ok(Some(time))
    } else {
        Err(D::Error::custom(format!("{time:?} is out of range; allowed is 1s to 1d")))
    }
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let bytes = units.iter().find_map(|(unit, shift)| {
        let number = text.strip_suffix(unit)?.trim();
        number.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
        number.parse::<u64>().ok()?.checked_mul(1 << shift)
    });
    match bytes.filter(|bytes| (LEAST..=MOST).contains(bytes)) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(D::Error::custom(format!("{text:?} is no size; allowed are 64KiB to 1TiB: 512MiB, 1GiB"))),
    }
}
