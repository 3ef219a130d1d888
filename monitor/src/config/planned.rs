//! `planned_restart` of a `[[service]]`.

use std::{str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};

use super::values::duration;

/// When a service is restarted before it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PlannedRestart {
    /// When that may begin; `None`: at any time.
    pub(crate) window: Option<Window>,
    /// The forecast says that memory runs out within this.
    #[serde(deserialize_with = "duration")]
    pub(crate) when: Duration,
    /// It may take so long until its connections are done.
    #[serde(deserialize_with = "duration")]
    pub(crate) drain: Duration,
    /// An incarnation younger than this is left alone: a wrong forecast must not restart it again and again.
    #[serde(deserialize_with = "duration")]
    pub(crate) min_uptime: Duration,
}

impl Default for PlannedRestart {
    fn default() -> Self {
        Self {
            window: None,
            when: Duration::from_secs(4 * 3600),
            drain: Duration::from_secs(30),
            min_uptime: Duration::from_secs(1800),
        }
    }
}

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// A part of each day, in UTC; its end is no part of it. It may go over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    from: u16,
    to: u16,
}

impl Window {
    /// Whether this minute of a day lies in it; 0 is midnight.
    pub(crate) fn contains(self, minute: u16) -> bool {
        let since = |at: u16| (at + DAY - self.from) % DAY;
        since(minute % DAY) < since(self.to)
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no window; allowed are two different times of day in UTC: 02:00-05:00");
        let minute = |time: &str| {
            let (hour, minute) = time.trim().split_once(':')?;
            let number = |text: &str, most: u16| {
                let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse().ok().filter(|&number: &u16| digits && number < most)
            };
            Some(number(hour, 24)? * 60 + number(minute, 60)?)
        };
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let (from, to) = (minute(from).ok_or_else(wrong)?, minute(to).ok_or_else(wrong)?);
        if from == to { Err(wrong()) } else { Ok(Self { from, to }) }
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_may_go_over_midnight() {
        let minute = |hour: u16, minute: u16| hour * 60 + minute;
        let night: Window = "02:00-05:00".parse().expect("a window");
        for (at, inside) in [(minute(1, 59), false), (minute(2, 0), true), (minute(4, 59), true), (minute(5, 0), false)]
        {
            assert_eq!(night.contains(at), inside, "{at}");
        }
        let late: Window = "23:30-00:15".parse().expect("a window");
        for (at, inside) in [(minute(23, 29), false), (minute(23, 30), true), (0, true), (minute(0, 15), false)] {
            assert_eq!(late.contains(at), inside, "{at}");
        }
        for wrong in ["", "02:00", "2:00-5:00", "02:00-24:00", "02:60-03:00", "02:00-02:00", "02:00-+3:00", "a-b"] {
            assert!(wrong.parse::<Window>().is_err(), "{wrong:?}");
        }
    }
}
